"""A build that is killed at any moment goes on where it was, and ends in the very file of one that was not."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from PIL import Image

from d3still.deploy import Embedder, GalleryIndex, IndexBuilder, IndexOptions
from d3still.deploy import build as build_module
from d3still.deploy import store as store_module
from d3still.deploy.build import remove_images
from d3still.deploy.index import read_header
from d3still.deploy.listing import list_images
from d3still.errors import UserError
from tests.deploy.small import needs, picture, save_pictures, save_run
from tests.tiny import REPOSITORY

pytestmark = needs("faiss")
BATCH, SAVE_EVERY = 4, 16  # 40 pictures: ten batches, three chunks


class Killed(BaseException):
    """Stands for a kill in tests within one process: nothing catches it."""


@pytest.fixture(scope="module")
def gallery(run):
    return Embedder.from_checkpoint(run, "gallery", batch_size=BATCH)


@pytest.fixture(scope="module")
def straight(gallery, pictures, tmp_path_factory):
    """The file of a build that nothing interrupted."""
    return builder(gallery, tmp_path_factory.mktemp("straight") / "g.index").build(pictures).read_bytes()


def builder(embedder, out, **more):
    return IndexBuilder(embedder, out, save_every=SAVE_EVERY, **more)


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


class KillAtWrite:
    """Dies at the n-th file that is written: before, in the middle of it, or just after."""

    def __init__(self, monkeypatch, number, moment):
        self.left, self.moment = number, moment
        original = store_module.write_atomically

        def write(path, make):
            self.left -= 1
            if self.left == 0 and self.moment == "before":
                raise Killed
            if self.left == 0 and self.moment == "during":
                (path.parent / f".{path.name}.cut.d3still-part").write_bytes(b"half of it")
                raise Killed
            original(path, make)
            if self.left == 0:
                raise Killed

        for module in ("d3still.deploy.store", "d3still.deploy.index", "d3still.deploy.build", "d3still.files"):
            monkeypatch.setattr(sys.modules[module], "write_atomically", write)


@contextmanager
def killed_at_write(monkeypatch, number, moment):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        KillAtWrite(patch, number, moment)
        yield


@pytest.mark.parametrize("moment", ["before", "during", "after"])
def test_killed_at_every_write(gallery, pictures, straight, tmp_path, monkeypatch, moment):
    """One plan, three chunks of two files, one index: eight files, one after the other."""
    for number in range(1, 9):
        out = tmp_path / str(number) / "g.index"
        with killed_at_write(monkeypatch, number, moment):
            builder(gallery, out).build(pictures)
        assert not out.exists() or out.read_bytes() == straight, "there is no index but a whole one"
        builder(gallery, out).build(pictures)
        assert out.read_bytes() == straight, number
        assert leftovers(out.parent) == ["g.index"]


def test_what_is_embedded_is_not_embedded_again(gallery, pictures, tmp_path, monkeypatch, caplog):
    out = tmp_path / "g.index"
    with killed_at_write(monkeypatch, 5, "after"):  # the plan and two chunks
        builder(gallery, out).build(pictures)
    embedded = []
    original = gallery.embed_pixels
    monkeypatch.setattr(gallery, "embed_pixels", lambda pixels: embedded.append(len(pixels)) or original(pixels))
    with caplog.at_level("INFO", logger="d3still"):
        builder(gallery, out).build(pictures)
    assert sum(embedded) == 40 - 2 * SAVE_EVERY and "32 of 40 images are embedded already" in caplog.text


def test_images_that_come_or_change_meanwhile_are_right(gallery, tmp_path, monkeypatch):
    folder, out = tmp_path / "pictures", tmp_path / "g.index"
    paths = save_pictures(folder, 20)
    with killed_at_write(monkeypatch, 3, "after"):  # sixteen are embedded
        builder(gallery, out).build(folder)
    Image.fromarray(picture(99)).save(paths[2])
    os.utime(paths[2], ns=(1, 1))  # a coarse clock must not hide the change
    paths[5].unlink()
    save_pictures(folder, 1, first=30)
    found = GalleryIndex.load(builder(gallery, out).build(folder))
    expected = GalleryIndex.build(gallery, folder)
    assert found.images == expected.images
    for path in (paths[2], folder / "0030.png"):
        best = found.search(gallery, path, topk=1)[0]
        assert best.path == str(path) and best.score == pytest.approx(1, abs=1e-5)


SCRIPT = """
import sys, time
sys.path.insert(0, {repository!r})
import tests.deploy.small
from d3still.deploy import Embedder, IndexBuilder
embedder = Embedder.from_checkpoint({run!r}, "gallery", batch_size={batch})
quick = embedder.embed_pixels
def slow(pixels):
    time.sleep(0.05)
    return quick(pixels)
embedder.embed_pixels = slow
print("ready", flush=True)
IndexBuilder(embedder, {out!r}, save_every={save_every}).build({pictures!r})
"""


def start(run, pictures, out):
    values = {"run": str(run), "pictures": str(pictures), "out": str(out), "repository": str(REPOSITORY)}
    script = SCRIPT.format(**values, batch=BATCH, save_every=SAVE_EVERY)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    process.stdout.readline()
    return process


def kill_9(run, pictures, out, after):
    """Kill a build -9 so many seconds after it began; whether it was still at it."""
    process = start(run, pictures, out)
    time.sleep(after)
    running = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    return running


def test_kill_9(run, gallery, pictures, straight, tmp_path):
    out = tmp_path / "g.index"
    assert kill_9(run, pictures, out, 0.3), "it was still running"
    assert not out.exists()
    builder(gallery, out).build(pictures)
    assert out.read_bytes() == straight
    assert leftovers(tmp_path) == ["g.index"]


@pytest.mark.slow
def test_kill_9_again_and_again(run, gallery, pictures, straight, tmp_path):
    out, caught = tmp_path / "g.index", 0
    for number in range(12):
        caught += kill_9(run, pictures, out, 0.02 + 0.04 * (number % 6))
    assert caught > 3, "some kills hit a running build"
    builder(gallery, out).build(pictures)
    assert out.read_bytes() == straight


def test_a_finished_index_is_left_alone(gallery, pictures, tmp_path, caplog):
    out = builder(gallery, tmp_path / "g.index").build(pictures)
    before = out.stat().st_mtime_ns
    with caplog.at_level("INFO", logger="d3still"):
        builder(gallery, out).build(pictures)
    assert "is complete: 40 images; nothing to do" in caplog.text and out.stat().st_mtime_ns == before
    assert leftovers(tmp_path) == ["g.index"]


def test_another_index_is_replaced_only_when_asked_to(gallery, run, pictures, tmp_path):
    out = builder(gallery, tmp_path / "g.index").build(pictures)
    before = out.read_bytes()
    others = save_pictures(tmp_path / "others", 3)
    retrained = Embedder.from_checkpoint(save_run(tmp_path / "acd.pth", gallery=3), "gallery")
    for embedder, images, options in [
        (gallery, others, None),
        (retrained, pictures, None),
        (gallery, pictures, IndexOptions("hnsw")),
    ]:
        with pytest.raises(UserError, match=r"g\.index exists.*another --out.*add.*--overwrite"):
            builder(embedder, out).build(images, options)
        assert out.read_bytes() == before
    builder(gallery, out).build(others, overwrite=True)
    assert len(GalleryIndex.load(out)) == 3


def test_a_damaged_index_is_no_finished_one(gallery, pictures, straight, tmp_path):
    out = tmp_path / "g.index"
    for content in (straight[:-9], straight[:200], b"something else"):
        out.write_bytes(content)
        with pytest.raises(UserError, match=r"g\.index: is .*build it again \(build --overwrite\)"):
            builder(gallery, out).build(pictures)
        assert out.read_bytes() == content
    builder(gallery, out).build(pictures, overwrite=True)
    assert out.read_bytes() == straight


def test_reading_processes_change_nothing(gallery, pictures, straight, tmp_path):
    assert builder(gallery, tmp_path / "g.index", num_workers=1).build(pictures).read_bytes() == straight


def test_an_overwriting_build_that_is_killed_leaves_the_former_index(gallery, pictures, tmp_path, monkeypatch):
    out = builder(gallery, tmp_path / "g.index").build(save_pictures(tmp_path / "others", 3))
    before = out.read_bytes()
    with killed_at_write(monkeypatch, 8, "during"):
        builder(gallery, out).build(pictures, overwrite=True)
    assert out.read_bytes() == before
    assert len(GalleryIndex.load(builder(gallery, out).build(pictures, overwrite=True))) == 40


def test_an_unfinished_build_of_another_network_is_not_mixed_in(gallery, pictures, straight, tmp_path, monkeypatch):
    out = tmp_path / "g.index"
    retrained = Embedder.from_checkpoint(save_run(tmp_path / "run/acd.pth", gallery=3), "gallery", batch_size=BATCH)
    with killed_at_write(monkeypatch, 5, "after"):
        builder(retrained, out).build(pictures)
    with pytest.raises(UserError, match=r"g\.index\.building holds an unfinished build by another network"):
        builder(gallery, out).build(pictures)
    finished = builder(gallery, tmp_path / "other.index").build(pictures)
    finished.rename(out)
    builder(gallery, out).build(pictures)
    builder(gallery, out).add(pictures)
    assert list(tmp_path.glob("g.index.building/chunk*")), "what is finished drops no one else's features"
    builder(gallery, out).build(pictures, overwrite=True)
    assert out.read_bytes() == straight, "none of the other network's features are in it"


@pytest.mark.parametrize("number", range(1, 6))
def test_an_addition_that_is_killed_loses_nothing(gallery, pictures, tmp_path, monkeypatch, number):
    """Adding 15 of 40: a plan, one chunk of two files, the index."""
    paths = sorted(pictures.iterdir())
    out = builder(gallery, tmp_path / "g.index").build(paths[:25])
    before = out.read_bytes()
    with monkeypatch.context() as patch:
        killer = KillAtWrite(patch, number, "during")
        try:
            builder(gallery, out).add(pictures)
        except Killed:
            assert out.read_bytes() == before
        assert (killer.left <= 0) == (number <= 4)
    builder(gallery, out).add(pictures)
    found = GalleryIndex.load(out)
    assert [image.path for image in found.images] == [str(path) for path in paths]
    assert leftovers(tmp_path) == ["g.index"]
    for place in (3, 30):
        assert found.search(gallery, paths[place], topk=1)[0].path == str(paths[place])


def test_adding_in_a_file(gallery, query, pictures, tmp_path):
    out = builder(gallery, tmp_path / "g.index").build(sorted(pictures.iterdir())[:25])
    assert builder(gallery, out).add(pictures) == 15
    assert builder(gallery, out).add(pictures) == 0
    assert len(GalleryIndex.load(out)) == 40
    retrained = Embedder.from_checkpoint(save_run(tmp_path / "run/acd.pth", gallery=3), "gallery")
    before = out.read_bytes()
    for other in (retrained, query):
        with pytest.raises(UserError, match=r"g\.index: the index was made by.*must be embedded again"):
            builder(other, out).add(save_pictures(tmp_path / "more", 2, first=80))
    assert out.read_bytes() == before
    with pytest.raises(UserError, match=r"missing\.index: no such gallery index"):
        builder(gallery, tmp_path / "missing.index").add(pictures)


def test_sync_follows_a_folder(gallery, tmp_path, monkeypatch):
    """New, changed and vanished images; a kill before the file is written changes nothing, and the rest goes on."""
    folder, out = tmp_path / "pictures", tmp_path / "g.index"
    paths = save_pictures(folder, 20)
    elsewhere = save_pictures(tmp_path / "elsewhere", 2, first=50)
    builder(gallery, out).build([*paths, *elsewhere])
    assert builder(gallery, out).sync(folder) == (0, 0)
    before = out.read_bytes()
    for changed in paths[2:4]:
        Image.fromarray(picture(90 + int(changed.stem))).save(changed)
        os.utime(changed, ns=(1, 1))  # a coarse clock must not hide the change
    paths[5].unlink()
    elsewhere[0].unlink()
    save_pictures(folder, 1, first=30)
    with killed_at_write(monkeypatch, 4, "during"):
        builder(gallery, out).sync(folder)
    assert out.read_bytes() == before
    assert builder(gallery, out).sync(folder) == (3, 3)
    found = GalleryIndex.load(out)
    ids = dict(zip((image.path for image in found.images), found.ids.tolist(), strict=True))
    assert sorted(ids) == sorted(map(str, [*folder.iterdir(), *elsewhere])), "what lies elsewhere stays"
    assert [ids[str(path)] for path in (paths[0], paths[4], elsewhere[0])] == [0, 4, 20]
    assert sorted(ids[str(path)] for path in (paths[2], paths[3], folder / "0030.png")) == [22, 23, 24]
    for path in (paths[2], folder / "0030.png", paths[19]):
        best = found.search(gallery, path, topk=1)[0]
        assert best.path == str(path) and best.score == pytest.approx(1, abs=1e-5) and best.id == ids[str(path)]
    assert builder(gallery, out).sync(folder) == (0, 0)
    with pytest.raises(UserError, match="is no folder; sync takes the folder"):
        builder(gallery, out).sync(paths[0])


def test_removing_by_path_and_identity(gallery, tmp_path):
    paths = save_pictures(tmp_path / "p", 5)
    table, out = tmp_path / "p/t.csv", tmp_path / "g.index"
    table.write_text("path,identity\n" + "".join(f"{path.name},{'ab'[n % 2]}\n" for n, path in enumerate(paths)))
    builder(gallery, out).build(table)
    before = out.read_bytes()
    for arguments, message in [
        (([paths[0], tmp_path / "no.png"], []), "no image .*no.png; nothing was removed"),
        (([], ["c"]), "no image of the identity c; nothing was removed"),
        (([], []), "give --path or --identity"),
    ]:
        with pytest.raises(UserError, match=message):
            remove_images(out, *arguments)
    assert out.read_bytes() == before
    assert remove_images(out, [paths[0]], ["b"]) == 3
    assert GalleryIndex.load(out).ids.tolist() == [2, 4]
    assert builder(gallery, out).add(table) == 3
    assert GalleryIndex.load(out).ids.tolist() == [2, 4, 5, 6, 7], "no id is given again"
    assert leftovers(tmp_path) == ["g.index", "p"]


def test_two_builds_of_one_index_do_not_meet(gallery, pictures, tmp_path, monkeypatch):
    one, other = (builder(gallery, tmp_path / "g.index") for _ in range(2))
    monkeypatch.setattr("d3still.locks.WAIT_SECONDS", 0.01)
    who = rf"g\.index\.building is in use by process {os.getpid()} on {socket.gethostname()}"
    with one.store.alone(), pytest.raises(UserError, match=who):
        other.build(pictures)
    other.build(pictures)
    assert leftovers(tmp_path) == ["g.index"]


@pytest.mark.parametrize("content", ["own.txt", "plan.json", "chunk-0-00000001.npy", "sub/own.txt"])
def test_a_folder_that_is_not_ours_is_left_alone(gallery, pictures, tmp_path, content):
    """What OUT.building may hold that no build of ours put there, however alike the names."""
    theirs = tmp_path / "g.index.building" / content
    theirs.parent.mkdir(parents=True)
    theirs.write_text("{}")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"g\.index\.building is no unfinished build"):
            builder(gallery, tmp_path / "g.index").build(pictures, overwrite=overwrite)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [theirs.name]


def test_what_others_put_into_an_unfinished_build_stays(gallery, pictures, straight, tmp_path, monkeypatch):
    out = tmp_path / "g.index"
    with killed_at_write(monkeypatch, 5, "during"):
        builder(gallery, out).build(pictures)
    (tmp_path / "g.index.building/notes.txt").write_text("mine")
    builder(gallery, out).build(pictures)
    assert out.read_bytes() == straight
    assert [path.name for path in (tmp_path / "g.index.building").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", ["*", "env", "g[1].index"])
def test_names_are_no_patterns(gallery, tmp_path, monkeypatch, name):
    paths, out = save_pictures(tmp_path / "p", 3), tmp_path / "o" / name
    out.parent.mkdir()
    for other in (".bash.rc", ".env.local"):
        (out.parent / other).write_text("")
    with killed_at_write(monkeypatch, 4, "during"):
        builder(gallery, out).build(paths)
    builder(gallery, out).build(paths)
    assert leftovers(out.parent) == sorted([".bash.rc", ".env.local", name])


@pytest.mark.parametrize("suffix", ["npy", "json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "gone"])
def test_damaged_chunks_are_embedded_again(gallery, pictures, straight, tmp_path, monkeypatch, caplog, suffix, damage):
    out = tmp_path / "g.index"
    with killed_at_write(monkeypatch, 5, "after"):  # the plan and two chunks
        builder(gallery, out).build(pictures)
    path = tmp_path / f"g.index.building/chunk-0-00000001.{suffix}"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 128
    damaged = {"cut": path.read_bytes()[:-7], "flip": content, "empty": b""}
    path.unlink() if damage == "gone" else path.write_bytes(damaged[damage])
    builder(gallery, out).build(pictures)
    assert out.read_bytes() == straight
    assert "chunk-0-00000001 is damaged" in caplog.text or (suffix, damage) == ("json", "gone")


@pytest.mark.parametrize("plan", [b"", b"{", b"[]", b"\xff", b'{"format": "other"}'])
def test_a_damaged_plan_is_named(gallery, pictures, tmp_path, monkeypatch, plan):
    out = tmp_path / "g.index"
    with killed_at_write(monkeypatch, 5, "after"):
        builder(gallery, out).build(pictures)
    (tmp_path / "g.index.building/plan.json").write_bytes(plan)
    with pytest.raises(UserError, match=r"g\.index\.building is no unfinished build .*move it away"):
        builder(gallery, out).build(pictures)


def test_unreadable_images_are_listed_beside_the_index(gallery, tmp_path, caplog):
    paths = save_pictures(tmp_path / "p", 12)
    paths[3].write_bytes(b"")
    paths[9].write_bytes(b"no image")
    out = builder(gallery, tmp_path / "g.index").build(tmp_path / "p")
    report = tmp_path / "g.index.unreadable.txt"
    assert [line.split("\t")[0] for line in report.read_text().splitlines()] == [str(paths[3]), str(paths[9])]
    assert "2 images could not be read" in caplog.text and str(paths[3]) in caplog.text
    assert len(GalleryIndex.load(out)) == 10
    save_pictures(tmp_path / "p", 12)
    assert builder(gallery, out).add(tmp_path / "p") == 2
    assert not report.exists(), "nothing is left out any more"


def test_a_full_disk_keeps_what_there_is(gallery, pictures, straight, tmp_path, monkeypatch):
    out, written = tmp_path / "g.index", []
    original = store_module.write_atomically

    def full(path, make):
        written.append(path)
        if len(written) > 2:
            raise UserError(f"cannot write {path}: No space left on device")
        original(path, make)

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "write_atomically", full)
        with pytest.raises(UserError, match="No space left"):
            builder(gallery, out).build(pictures)
    builder(gallery, out).build(pictures)
    assert out.read_bytes() == straight


def test_impossible_requests_fail_before_anything_is_embedded(gallery, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(build_module, "embed_images", None)
    out = tmp_path / "new/g.index"
    with pytest.raises(UserError, match="at least 256 images, not 40"):
        builder(gallery, out).build(pictures, IndexOptions("ivfpq"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no image .* in .*empty; expected the gallery's images"):
        builder(gallery, out).build(tmp_path / "empty")
    assert not out.parent.exists(), "nothing was begun"
    with pytest.raises(UserError, match="every 0 images"):
        IndexBuilder(gallery, out, save_every=0)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match="faiss-cpu"):
        builder(gallery, out).build(pictures)


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_parts_merge_to_the_whole(gallery, pictures, tmp_path, kind):
    """FAISS's own merging of parts filled by shares, without the processes."""
    import faiss
    import numpy as np

    from d3still.deploy.kinds import new_index, train

    features = gallery(sorted(pictures.iterdir()))
    whole = new_index(IndexOptions(kind), 512, 40)
    train(whole, lambda: iter([features]), 40)
    parts = [faiss.clone_index(whole) for _ in range(3)]
    whole.add(features)
    for number, (part, share) in enumerate(zip(parts, np.array_split(features, 3), strict=True)):
        part.add(share)
        faiss.write_index(part, str(tmp_path / str(number)))
    merged = build_module._merged(parts[0], [tmp_path / "1", tmp_path / "2"])
    for found, expected in zip(merged.search(features, 5), whole.search(features, 5), strict=True):
        assert np.array_equal(found, expected)


def torchrun(run, pictures, out, *more):
    """Start a build over three ranks."""
    script = REPOSITORY / "tests/deploy/index_tool.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3", script, "build"]
    arguments = ["--weights", run, "--images", pictures, "--out", out, "--save-every", SAVE_EVERY, *more]
    options = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "start_new_session": True}
    return subprocess.Popen(list(map(str, [*command, *arguments])), stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw"])
def test_torchrun(run, gallery, pictures, straight, tmp_path, kind):
    """Three ranks give the index of one process; their batches are of four, too."""
    out = tmp_path / "g.index"
    process = torchrun(run, pictures, out, "--batch-size", BATCH, "--kind", kind)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    found = GalleryIndex.load(out)
    expected = GalleryIndex.build(gallery, pictures, IndexOptions(kind))
    assert found.images == expected.images == list_images(pictures)
    paths = sorted(pictures.iterdir())
    for one, other in zip(found.search(gallery, paths, topk=40), expected.search(gallery, paths, topk=40), strict=True):
        assert [match.path for match in one] == [match.path for match in other]
    assert leftovers(tmp_path) == ["g.index"]
    if kind == "exact":
        assert json.dumps(read_header(out))[1:].encode() in straight, "the same header as one process writes"


@pytest.mark.slow
def test_torchrun_killed_and_gone_on_with_by_one_process(run, gallery, pictures, tmp_path):
    out = tmp_path / "g.index"
    process = torchrun(run, pictures, out, "--batch-size", 1)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("g.index.building/chunk-*.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    found = GalleryIndex.load(builder(gallery, out).build(pictures))
    assert found.images == list_images(pictures)
    for path in sorted(pictures.iterdir())[::7]:
        assert found.search(gallery, path, topk=1)[0].path == str(path)
