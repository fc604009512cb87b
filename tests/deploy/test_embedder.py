"""The same picture gives the same feature by every door."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from d3still.data import ImageBatch, Normalizer, Sample, test_loader
from d3still.data.image import EXIF_ORIENTATION
from d3still.deploy import Embedder
from d3still.deploy.embedder import embed_images
from d3still.deploy.listing import list_images
from d3still.deploy.network_files import open_network
from d3still.deploy.runners import EmbeddingGraph
from d3still.engine.retrieval import extract
from d3still.errors import UserError
from tests.deploy.small import make_config, picture, save_pictures, save_run

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def embed(run):
    return Embedder.from_checkpoint(run, part="query", batch_size=4)


def tensor_of(array):
    return torch.from_numpy(array).permute(2, 0, 1)


@pytest.mark.parametrize("part", ["query", "gallery"])
def test_features_are_the_evaluators(run, tmp_path, part):
    """The engine's own extraction, normalised: bit for bit, batch for batch."""
    paths = [str(path) for path in save_pictures(tmp_path, 7)]
    network, description = open_network(run, part)
    samples = [Sample(path, 0, 0) for path in paths]
    loader = test_loader(samples, size=description.size, batch_size=4)
    normalize = Normalizer([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    (_, expected), _ = extract(network.to(memory_format=torch.channels_last), samples, loader, normalize, CPU)
    found = Embedder.from_checkpoint(run, part, batch_size=4)(paths)
    assert np.array_equal(found, torch.nn.functional.normalize(expected).numpy())
    assert found.dtype == np.float32 and found.shape == (7, 512)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_mirrored_features_follow_the_config(tmp_path):
    path = save_run(tmp_path / "last.pth", cfg=make_config(TEST__FLIP_FEATS=True))
    network, description = open_network(path, "query")
    found = Embedder.from_checkpoint(path)(picture(0, (12, 16)))
    graph = EmbeddingGraph(network, description, normalize=True, l2=False)
    graph.mirrored = False
    pixels = tensor_of(picture(0, (12, 16)))[None]
    with torch.no_grad():
        expected = torch.nn.functional.normalize(graph(pixels) + graph(pixels.flip(3)))
    assert np.allclose(found, expected[0], atol=1e-6)


def test_normalising_in_the_graph_is_the_normalizer(run):
    """Bit for bit, so that an export embeds what testing embeds."""
    network, description = open_network(run, "query")
    outside, inside = (EmbeddingGraph(network, description, normalize=flag, l2=True) for flag in (False, True))
    pixels = torch.stack([tensor_of(picture(number, (12, 16))) for number in range(5)])
    nothing = torch.zeros(5, 4, dtype=torch.int64)
    batch = ImageBatch(pixels, nothing, nothing[:, 0], nothing[:, 0])
    with torch.no_grad():
        expected = outside(Normalizer(description.mean, description.std)(batch).contiguous())
        assert torch.equal(inside(batch.pixels), expected)


def test_every_door_gives_the_same_feature(embed, tmp_path):
    (path,) = save_pictures(tmp_path, 1)
    array = picture(0)
    expected = embed(path)
    assert expected.shape == (512,)
    with Image.open(path) as opened:
        doors = {
            "string": str(path),
            "PIL": Image.fromarray(array),
            "PIL, opened": opened,
            "array": array,
            "array, not contiguous": np.asfortranarray(array),
            "array, reversed strides": array[::-1][::-1],
            "float array": (array / 255).astype(np.float64),
            "float16 array": (array / 255).astype(np.float16),
            "tensor": tensor_of(array),
            "contiguous tensor": tensor_of(array).contiguous(),
            "float tensor": tensor_of(array).float() / 255,
            "tensor with gradient": (tensor_of(array).float() / 255).requires_grad_(),
        }
        for name, image in doors.items():
            assert np.array_equal(embed(image), expected), name


def test_one_and_many(embed, tmp_path):
    paths = save_pictures(tmp_path, 6)
    arrays = [picture(number) for number in range(6)]
    expected = embed(paths)
    assert expected.shape == (6, 512)
    for name, images in {
        "list": arrays,
        "tuple": tuple(arrays),
        "generator": (array for array in arrays),
        "array": np.stack(arrays),
        "tensor": torch.stack([tensor_of(array) for array in arrays]),
        "mixed": [paths[0], arrays[1], tensor_of(arrays[2]), Image.fromarray(arrays[3]), str(paths[4]), arrays[5]],
    }.items():
        assert np.array_equal(embed(images), expected), name
    assert np.allclose(embed(arrays[3]), expected[3], atol=1e-6), "a batch changes nothing but rounding"
    assert embed([paths[0]]).shape == (1, 512)
    assert embed([]).shape == (0, 512)
    assert np.abs(expected[0] - expected[1]).max() > 1e-2, "different pictures have different features"


def test_images_of_any_size_and_of_different_sizes(embed):
    sizes = [(1, 1), (1, 300), (12, 16), (500, 3), (700, 900)]
    assert embed([picture(1, size) for size in sizes]).shape == (5, 512)


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "I", "F"]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(embed, mode):
    if mode == "I;16":
        image = Image.fromarray(picture(3)[:, :, 0].astype(np.uint16) * 257)
    else:
        image = Image.fromarray(picture(3)).convert("L" if mode == "LA" else "RGB").convert(mode)
    assert np.isfinite(embed(image)).all()


def test_grey_transparent_and_turned_images_are_read_as_files_are(embed, tmp_path):
    grey, alpha = picture(2)[:, :, 0], np.dstack([picture(2), picture(3)[:, :, :1]])
    assert np.array_equal(embed(grey), embed(np.dstack([grey] * 3)))
    assert np.array_equal(embed(grey[:, :, None]), embed(torch.from_numpy(np.array(grey))))
    assert np.array_equal(embed(torch.from_numpy(np.array(grey))[None]), embed(grey))
    for name, array in (("grey", grey), ("alpha", alpha)):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
        assert np.array_equal(embed(tmp_path / f"{name}.png"), embed(array)), name
    assert np.array_equal(embed(tensor_of(alpha)), embed(alpha))
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    buffer = io.BytesIO()
    Image.fromarray(picture(2)).save(buffer, "PNG", exif=exif)
    (tmp_path / "turned.png").write_bytes(buffer.getvalue())
    turned = np.rot90(picture(2), -1)
    assert np.array_equal(embed(tmp_path / "turned.png"), embed(turned))
    assert np.array_equal(embed(Image.open(io.BytesIO(buffer.getvalue()))), embed(turned))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((3, 30, 40), np.uint8), r"\(3, 30, 40\).*channels-first images as tensors"),
        (torch.zeros(30, 40, 3, dtype=torch.uint8), r"\(30, 40, 3\).*channels-last images as arrays"),
        (np.zeros((30, 40, 3), np.int32), "uint8 or floating numbers 0 … 1, not int32"),
        (np.zeros((30, 40, 3), bool), "not bool"),
        (np.full((30, 40, 3), 200.0), r"must lie in 0 … 1, not 200 … 200; pass pixels 0 … 255 as uint8"),
        (torch.linspace(-2, 2, 3600).reshape(3, 30, 40), "must lie in 0 … 1.*no normalised images"),
        (np.full((30, 40, 3), np.nan), "must lie in 0 … 1"),
        (np.zeros((0, 40, 3), np.uint8), "holds no pixel"),
        (np.zeros((0, 40), np.uint8), "holds no pixel"),
        (np.zeros(30, np.uint8), r"\(30,\) is no image"),
        (np.zeros((2, 2, 3, 4, 3), np.uint8), "is no image"),
        (torch.zeros(2, 2, 3, 4, 3), "is no image"),
        (5, "not int"),
        (None, "not NoneType"),
        ([b"bytes"], "not bytes"),
        ("no/such/file.jpg", r"no/such/file\.jpg cannot be read"),
    ],
    ids=str,
)
def test_what_is_no_image_is_refused_in_one_line(embed, image, message):
    with pytest.raises(UserError, match=message) as caught:
        embed(image)
    assert "\n" not in str(caught.value)


def test_a_broken_file_is_named(embed, tmp_path):
    paths = save_pictures(tmp_path, 5)
    paths[3].write_bytes(paths[3].read_bytes()[:60])
    with pytest.raises(UserError, match=r"0003\.png cannot be decoded"):
        embed(paths)
    with pytest.raises(UserError, match=r"0003\.png"):
        embed(Image.open(paths[3]))


def test_a_large_opened_image_is_refused_before_it_is_decoded(embed, tmp_path):
    Image.new("1", (9000, 9000)).save(tmp_path / "large.png")
    with Image.open(tmp_path / "large.png") as image, pytest.raises(UserError, match="has 9000 × 9000 pixels"):
        embed(image)


def test_the_runs_own_limit_of_pixels_holds(tmp_path):
    """Pictures have 30 × 40 pixels."""
    paths = save_pictures(tmp_path / "p", 2)
    embed = Embedder.from_checkpoint(save_run(tmp_path / "last.pth", cfg=make_config(DATALOADER__MAX_PIXELS=1199)))
    for image in (paths[0], Image.open(paths[0])):
        with pytest.raises(UserError, match=r"more than DATALOADER\.MAX_PIXELS 1199 allows"):
            embed(image)
    (batch,) = embed_images(embed, list_images(paths))
    assert batch.positions == [] and all("MAX_PIXELS 1199" in why for why in batch.unreadable.values())
    exact = Embedder.from_checkpoint(save_run(tmp_path / "last.pth", cfg=make_config(DATALOADER__MAX_PIXELS=1200)))
    (batch,) = embed_images(exact, list_images(paths))
    assert batch.positions == [0, 1] and np.array_equal(exact(paths), batch.features)


def test_batch_size_must_be_positive(run):
    with pytest.raises(UserError, match="batch size is 0"):
        Embedder.from_checkpoint(run, batch_size=0)
