"""The embedded emoji set: its numbers (issue 2), its split, and unpacking that survives everything."""

import collections
import errno
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from d3still.data import build_dataset
from d3still.data.datasets import embedded as module
from d3still.data.datasets.drawings import emoji
from d3still.data.image import read_image
from d3still.errors import UserError

REPOSITORY = Path(__file__).parents[2]
EMBEDDED = REPOSITORY / "datasets" / "emoji"
IMAGES_PER_SET = {  # of the 1,078 code points that at least six of the seven sets draw: 7,366 in all
    "noto": 1078,
    "noto-v1": 1077,
    "twemoji": 1078,
    "openmoji": 1078,
    "emojione": 1078,
    "emojione-v1": 919,
    "fluent-emoji-flat": 1058,
}
CAMERAS = {  # issue 2: noto and noto-v1 are one vendor, emojione and emojione-v1 another
    "noto": 0,
    "noto-v1": 0,
    "twemoji": 1,
    "openmoji": 2,
    "emojione": 3,
    "emojione-v1": 3,
    "fluent-emoji-flat": 4,
}
WRONGLY_DRAWN = {"1f997", "2328"}  # datasets/emoji/README.md


def code_point(sample):
    return Path(sample.path).name.split("_")[0]


def set_name(sample):
    return Path(sample.path).stem.split("_")[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A copy of the embedded archive, for which nothing is unpacked yet."""
    folder = tmp_path_factory.mktemp("data") / "emoji"
    folder.mkdir()
    for name in ("emoji.zip", "split.json"):
        shutil.copy(EMBEDDED / name, folder)
    return folder


@pytest.fixture(scope="module")
def for_test(whole):
    return emoji(whole)


@pytest.fixture(scope="module")
def for_val(whole):
    return emoji(whole, split="val")


@pytest.fixture(scope="module")
def contents():
    with zipfile.ZipFile(EMBEDDED / "emoji.zip") as source:
        return {name: source.read(name) for name in source.namelist()}


@pytest.fixture(scope="module")
def maker():
    """datasets/emoji/make_emoji.py, whose renderer is not needed for what is tested here."""
    spec = importlib.util.spec_from_file_location("make_emoji", EMBEDDED / "make_emoji.py")
    made = importlib.util.module_from_spec(spec)
    sys.modules["make_emoji"] = made  # dataclasses look their module up
    spec.loader.exec_module(made)
    yield made
    del sys.modules["make_emoji"]


# ---- the numbers


def test_identities_and_images_are_the_issues(for_test):
    assert len(for_test.train) + len(for_test.query) + len(for_test.gallery) == 7366
    assert for_test.num_classes == 700
    assert {s.identity for s in for_test.train} == set(range(700))
    tested = {code_point(s) for s in for_test.query}
    assert len(tested) == 378
    assert tested == {code_point(s) for s in for_test.gallery}
    assert tested.isdisjoint(code_point(s) for s in for_test.train)


def test_validation_is_100_of_the_training_identities(for_test, for_val):
    assert for_val.num_classes == 600
    assert {s.identity for s in for_val.train} == set(range(600))
    train = {code_point(s) for s in for_test.train}
    held_out = {code_point(s) for s in for_val.query}
    assert len(held_out) == 100
    assert held_out == {code_point(s) for s in for_val.gallery}
    assert {code_point(s) for s in for_val.train} == train - held_out
    parts = (*for_val.train, *for_val.query, *for_val.gallery)
    assert sorted(s.path for s in parts) == [s.path for s in for_test.train]


def test_one_image_for_an_identity_and_a_set(for_test):
    everything = [*for_test.train, *for_test.query, *for_test.gallery]
    assert len({(code_point(s), set_name(s)) for s in everything}) == len(everything)
    assert collections.Counter(map(set_name, everything)) == IMAGES_PER_SET
    assert set(collections.Counter(map(code_point, everything)).values()) == {6, 7}


def test_the_camera_is_the_vendor(for_test):
    for sample in (*for_test.train, *for_test.query, *for_test.gallery):
        assert sample.camera == CAMERAS[set_name(sample)]


@pytest.mark.parametrize("split", ["for_test", "for_val"])
def test_two_queries_an_identity_each_with_a_match_by_another_vendor(split, request):
    dataset = request.getfixturevalue(split)
    assert set(collections.Counter(s.identity for s in dataset.query).values()) == {2}
    cameras = collections.defaultdict(set)
    for sample in dataset.gallery:
        cameras[sample.identity].add(sample.camera)
    assert all(cameras[query.identity] - {query.camera} for query in dataset.query)
    assert {s.path for s in dataset.query}.isdisjoint(s.path for s in dataset.gallery)
    numbers = {(s.identity, code_point(s)) for s in (*dataset.query, *dataset.gallery)}
    assert [name for _, name in sorted(numbers)] == sorted({name for _, name in numbers})


def test_no_wrong_drawing_is_tested(for_test, for_val):
    for sample in (*for_test.query, *for_test.gallery, *for_val.query, *for_val.gallery):
        assert code_point(sample) not in WRONGLY_DRAWN


def test_no_skin_tone_and_no_variation_selector(contents):
    points = {point for name in contents for point in name.split("_")[0].split("-")}
    assert points.isdisjoint({"fe0f", "1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"})


def test_lists_are_sorted_and_repeat(for_test, whole):
    for part in (for_test.train, for_test.query, for_test.gallery):
        assert [s.path for s in part] == sorted(s.path for s in part)
    assert emoji(whole) == for_test


def test_it_is_a_registered_dataset_found_from_the_folder_above(whole, for_test):
    assert build_dataset("emoji", whole.parent) == for_test
    assert len(build_dataset("emoji", str(whole), split="val").train) == 4102
    with pytest.raises(UserError, match=r"SPLIT 'dev' is not one of test, val"):
        build_dataset("emoji", whole, split="dev")


# ---- the images


def test_every_image_is_lossless_webp_of_96_pixels_on_white_and_none_is_blank(contents):
    for name, content in contents.items():
        assert content[:4] + content[8:16] == b"RIFFWEBPVP8L", name  # the lossless kind
        with Image.open(io.BytesIO(content)) as image:
            assert (image.size, image.mode) == ((96, 96), "RGB"), name
            assert len(image.getcolors(96 * 96)) > 1, name


def test_the_packages_reader_sees_what_pillow_sees(for_test):
    for sample in for_test.query[::100]:
        np.testing.assert_array_equal(
            read_image(sample.path).permute(1, 2, 0).numpy(), np.asarray(Image.open(sample.path))
        )


def test_torchvisions_decoder_reads_them_too(contents):
    torch = pytest.importorskip("torch")
    decode = getattr(pytest.importorskip("torchvision.io"), "decode_webp", None)
    if decode is None:
        pytest.skip("this torchvision has no WebP decoder")
    content = contents["1f600_c002_twemoji.webp"]
    decoded = decode(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    np.testing.assert_array_equal(decoded.permute(1, 2, 0).numpy(), np.asarray(Image.open(io.BytesIO(content))))


# ---- what made them


def test_the_stored_split_is_the_seeds(maker, contents):
    assert maker.split_of(list(contents)) == json.loads((EMBEDDED / "split.json").read_text(encoding="utf-8"))


def test_the_archive_is_made_the_same_again(maker, contents):
    assert maker.archive(contents) == (EMBEDDED / "emoji.zip").read_bytes()
    infos = zipfile.ZipFile(EMBEDDED / "emoji.zip").infolist()
    assert {(i.compress_type, i.date_time) for i in infos} == {(zipfile.ZIP_STORED, (1980, 1, 1, 0, 0, 0))}
    assert [i.filename for i in infos] == sorted(contents)


@pytest.mark.slow
def test_the_figures_in_the_readme_are_measured(maker, contents):
    split = json.loads((EMBEDDED / "split.json").read_text(encoding="utf-8"))
    written = maker.readme_with(maker.figures(contents, split))
    assert written == (EMBEDDED / "README.md").read_bytes()


def test_near_identical_is_the_mean_over_pixels_and_channels(maker):
    def content(colour):
        file = io.BytesIO()
        Image.new("RGB", (96, 96), colour).save(file, "WEBP", lossless=True)
        return file.getvalue()

    images = {
        "aa_c001_noto-v1.webp": content((10, 20, 30)),
        "aa_c001_noto.webp": content((10, 20, 30)),
        "aa_c002_twemoji.webp": content((13, 20, 24)),  # |3| + |0| + |6| over three channels: 3
        "bb_c002_twemoji.webp": content((10, 20, 30)),
    }
    assert maker.distances(images) == {
        ("aa_c001_noto-v1.webp", "aa_c002_twemoji.webp"): pytest.approx(3.0),
        ("aa_c001_noto.webp", "aa_c002_twemoji.webp"): pytest.approx(3.0),
    }
    assert maker.shared_drawings(images) == [n for n in images if n != "aa_c002_twemoji.webp"]


def test_an_identity_is_the_code_points_less_selector_and_skin_tone(maker):
    assert maker.identity_of("1F468-200D-2764-FE0F-200D-1F468") == "1f468-200d-2764-200d-1f468"
    assert maker.identity_of("1f44b") == "1f44b"
    assert maker.identity_of("1f44b-1f3fd") is None


def test_every_set_has_its_author_licence_and_version(maker):
    text = (EMBEDDED / "LICENSES.md").read_text(encoding="utf-8")
    for icon_set in maker.SETS:
        line = next(
            row for row in text.splitlines() if row.startswith(f"| `*_c{icon_set.camera:03d}_{icon_set.name}.webp")
        )
        assert f"`@iconify-json/{icon_set.name}` {icon_set.version}" in line
        licence = re.search(r"\]\((licenses/[^)]+)\) \|$", line)[1]
        assert (EMBEDDED / licence).stat().st_size > 1000


# ---- unpacking


@pytest.fixture
def small(tmp_path, contents):
    """The set cut down to three training (one of them validation) and two tested identities."""
    return cut_down(tmp_path / "emoji", contents)


def cut_down(folder, contents):
    split = json.loads((EMBEDDED / "split.json").read_text(encoding="utf-8"))
    validation, test = split["validation"][:1], split["test"][:2]
    train = sorted([*[i for i in split["train"] if i not in split["validation"]][:2], *validation])
    keep = {*train, *test}
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "emoji.zip", "w") as target:
        for name, content in contents.items():
            if name.split("_")[0] in keep:
                target.writestr(name, content)
    lists = {"train": train, "validation": validation, "test": test}
    for key, tested in (("query", test), ("validation_query", validation)):
        lists[key] = [name for name in split[key] if name.split("_")[0] in tested]
    (folder / "split.json").write_text(json.dumps(lists))
    return folder


def digests(images):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in images.iterdir()}


def expected(folder):
    with zipfile.ZipFile(folder / "emoji.zip") as source:
        return {name: hashlib.sha256(source.read(name)).hexdigest() for name in source.namelist()}


def leftovers(folder):
    return sorted({path.name for path in folder.iterdir()} - {"emoji.zip", "split.json", "images"})


def test_the_images_are_unpacked_once(small, monkeypatch):
    emoji(small)
    assert digests(small / "images") == expected(small)
    assert leftovers(small) == []
    monkeypatch.setattr(module, "_extract", lambda *_: pytest.fail("unpacked again"))
    emoji(small)


def test_a_half_unpacked_folder_is_completed_and_the_rest_left_alone(small):
    emoji(small)
    images = sorted((small / "images").iterdir())
    images[0].unlink()
    images[1].write_bytes(images[1].read_bytes()[:50])
    images[2].write_bytes(b"")
    kept = {path: path.stat().st_mtime_ns for path in images[3:]}
    (small / "images" / ".DS_Store").write_bytes(b"not ours")
    emoji(small)
    found = digests(small / "images")
    del found[".DS_Store"]
    assert found == expected(small)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert leftovers(small) == []


def test_an_empty_images_folder_is_filled(small):
    (small / "images").mkdir()
    emoji(small)
    assert digests(small / "images") == expected(small)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_kill_in_the_middle_leaves_nothing_half_done(small):
    program = f"""
import os, signal
from pathlib import Path
from d3still.data.datasets.drawings import emoji
write, count = Path.write_bytes, []
def killed(path, content):
    count.append(path)
    if len(count) == 5:
        write(path, content[:10])
        os.kill(os.getpid(), signal.SIGKILL)
    return write(path, content)
Path.write_bytes = killed
emoji(Path({str(small)!r}))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert not (small / "images").exists()
    (abandoned,) = leftovers(small)

    emoji(small)
    assert digests(small / "images") == expected(small)
    assert leftovers(small) == [abandoned]  # it might belong to a process that still runs

    os.utime(small / abandoned, (0, 0))
    next((small / "images").iterdir()).unlink()
    emoji(small)
    assert leftovers(small) == []


def test_processes_that_start_at_once_all_see_the_whole_set(whole, tmp_path):
    folder = tmp_path / "emoji"
    folder.mkdir()
    for name in ("emoji.zip", "split.json"):
        shutil.copy(whole / name, folder)
    program = f"""
import sys, time
from pathlib import Path
from d3still.data.datasets.drawings import emoji
print("ready", flush=True)
sys.stdin.readline()
dataset = emoji(Path({str(folder)!r}))
paths = [s.path for part in (dataset.train, dataset.query, dataset.gallery) for s in part]
print(len(paths), all(Path(path).stat().st_size > 0 for path in paths))
"""
    start = [sys.executable, "-c", program]
    pipe = subprocess.PIPE
    running = [subprocess.Popen(start, cwd=REPOSITORY, stdin=pipe, stdout=pipe, text=True) for _ in range(3)]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in running:
        answer, _ = process.communicate(timeout=120)
        assert (process.returncode, answer) == (0, "7366 True\n")
    assert leftovers(folder) == []
    assert digests(folder / "images") == expected(folder)


@pytest.mark.parametrize("half_there", [False, True])
def test_many_at_once_again_and_again(small, half_there):
    wanted, wrong = expected(small), []

    def load(barrier):
        barrier.wait()
        dataset = emoji(small)
        for sample in (*dataset.train, *dataset.query, *dataset.gallery):  # whole at once, and from then on
            if hashlib.sha256(Path(sample.path).read_bytes()).hexdigest() != wanted[Path(sample.path).name]:
                wrong.append(sample.path)
        finished.append(True)

    for _ in range(15):
        shutil.rmtree(small / "images", ignore_errors=True)
        if half_there:
            emoji(small)
            for path in sorted((small / "images").iterdir())[::2]:
                path.write_bytes(b"half")
        barrier, finished = threading.Barrier(6), []
        threads = [threading.Thread(target=load, args=(barrier,)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(finished) == 6
        assert wrong == []
        assert leftovers(small) == []


def refuse_writing(monkeypatch, *folders):
    """As if no new entry could be made in the folders (tests may run as root, who can write anywhere)."""
    mkdir = Path.mkdir

    def refused(path, *args, **kwargs):
        if any(folder in path.parents for folder in folders):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return mkdir(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", refused)


def test_a_folder_that_cannot_be_written_to_sends_the_images_to_the_cache(small, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    refuse_writing(monkeypatch, small)
    dataset = emoji(small)
    images = tmp_path / "cache" / "d3still" / "emoji" / "images"
    assert digests(images) == expected(small)
    assert {Path(s.path).parent for s in (*dataset.train, *dataset.query, *dataset.gallery)} == {images}
    assert not (small / "images").exists()


def test_nowhere_to_unpack_is_one_clear_line(small, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    refuse_writing(monkeypatch, small, tmp_path / "cache")
    with pytest.raises(UserError, match=r"cache.*Permission denied.*DATASETS\.ROOT_DIR") as caught:
        emoji(small)
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_named_and_leaves_nothing(small, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"No space left on device.*make room"):
        emoji(small)
    assert leftovers(small) == []
    assert not (small / "images").exists()
    monkeypatch.undo()
    emoji(small)
    assert digests(small / "images") == expected(small)


def test_a_file_called_images_is_named(small):
    (small / "images").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot be unpacked to .*images \(Not a directory\)"):
        emoji(small)


# ---- what is missing or damaged


def test_a_missing_archive_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(UserError, match=r"no emoji\.zip in .* nor in .*emoji; set DATASETS\.ROOT_DIR"):
        emoji(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        build_dataset("emoji", tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"PK\x05\x06" + bytes(18)])
def test_an_archive_that_is_none_is_damaged(small, content):
    (small / "emoji.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"emoji\.zip is (damaged|empty).*git checkout -- datasets/emoji"):
        emoji(small)


def test_a_truncated_archive_is_damaged(small):
    content = (small / "emoji.zip").read_bytes()
    (small / "emoji.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"emoji\.zip is damaged"):
        emoji(small)


def test_a_damaged_image_is_found_by_its_checksum_and_nothing_is_left(small):
    content = bytearray((small / "emoji.zip").read_bytes())
    content[200] ^= 1  # inside the first image
    (small / "emoji.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"emoji\.zip is damaged \(Bad CRC-32"):
        emoji(small)
    assert leftovers(small) == []
    assert not (small / "images").exists()


@pytest.mark.parametrize("name", ["../1f600_c001_noto.webp", "folder/", "1f600.webp", "1f600_c001_noto.png"])
def test_an_archive_of_something_else_writes_nothing(small, name):
    with zipfile.ZipFile(small / "emoji.zip", "a") as target:
        target.writestr(name, b"content")
    with pytest.raises(UserError, match=re.escape(repr(name))):
        emoji(small)
    assert leftovers(small) == []


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), at_the_end=st.booleans())
def test_one_flipped_bit_never_gives_wrong_images_or_a_traceback(small, where, bit, at_the_end):
    archive = small / "emoji.zip"
    intact = archive.read_bytes()
    wanted = expected(small)
    shutil.rmtree(small / "images", ignore_errors=True)
    directory = intact.index(b"PK\x01\x02") if at_the_end else 0  # half of the time in the table of contents
    damaged = bytearray(intact)
    damaged[directory + int(where * (len(intact) - directory))] ^= 1 << bit
    archive.write_bytes(damaged)
    try:
        dataset = emoji(small)
        for sample in (*dataset.train, *dataset.query, *dataset.gallery):
            path = Path(sample.path)
            assert hashlib.sha256(path.read_bytes()).hexdigest() == wanted[path.name]
    except UserError as error:
        assert "\n" not in str(error)
    finally:
        archive.write_bytes(intact)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"train": 3}', '{"train": null, "test": []}', "null", '{"train": [[]]}', "\x00"]
)
def test_a_damaged_split_is_named(small, text):
    (small / "split.json").write_text(text)
    with pytest.raises(UserError, match=r"split\.json is damaged.*git checkout"):
        emoji(small)


def test_a_missing_split_and_one_of_another_archive_are_named(small):
    lists = json.loads((small / "split.json").read_text())
    (small / "split.json").unlink()
    with pytest.raises(UserError, match=r"split\.json cannot be read \(No such file"):
        emoji(small)
    for key, stranger in (("test", "1f0000"), ("query", "1f600_c009_nobody.webp")):
        (small / "split.json").write_text(json.dumps(lists | {key: [*lists[key], stranger]}))
        with pytest.raises(UserError, match=rf"split\.json lists {stranger} in '{key}', which emoji\.zip lacks"):
            emoji(small)


def test_lists_that_overlap_or_leave_an_identity_out_are_named(small):
    lists = json.loads((small / "split.json").read_text())
    train, test, query = lists["train"], lists["test"], lists["query"]
    wrong = {
        f"has {test[0]} in both 'train' and 'test'": {"train": [*train, test[0]]},
        f"has {test[0]} in both 'validation' and 'test'": {"validation": test[:1]},
        f"has {train[0]} in neither 'train' nor 'test'": {"train": train[1:]},
        f"has {query[0]} in 'validation_query', whose identity is not in 'validation'": {"validation_query": query[:1]},
    }
    for problem, changed in wrong.items():
        (small / "split.json").write_text(json.dumps(lists | changed))
        with pytest.raises(UserError, match=re.escape(problem)):
            emoji(small)
