"""One policy for every kind of image file; what cannot be read is named."""

import errno
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from d3still.data.image import READ_TRIES, UPRIGHT, ImageError, crop, is_image_name, read_image
from d3still.errors import UserError
from tests.data.helpers import picture, save


def array(path):
    return read_image(path).permute(1, 2, 0).numpy()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_rgb_is_read_as_pillow_reads_it(tmp_path):
    path = save(tmp_path / "a.jpg", quality=90)
    image = read_image(path)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 20, 24)
    np.testing.assert_array_equal(array(path), np.asarray(Image.open(path)))


def test_grey_palette_one_bit_and_cmyk_become_rgb(tmp_path):
    grey = picture().convert("L")
    np.testing.assert_array_equal(array(save(tmp_path / "l.png", grey)), np.asarray(grey.convert("RGB")))
    palette = picture().convert("P")
    np.testing.assert_array_equal(array(save(tmp_path / "p.png", palette)), np.asarray(palette.convert("RGB")))
    bits = grey.convert("1")
    assert set(np.unique(array(save(tmp_path / "1.png", bits)))) == {0, 255}
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # no cyan, full magenta and yellow
    assert array(save(tmp_path / "c.jpg", red, quality=95)).reshape(-1, 3).mean(0) == pytest.approx([255, 0, 0], abs=4)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    wide = np.array([[0, 128, 257, 32896, 65407, 65535]], dtype=np.uint16)
    path = save(tmp_path / "wide.png", Image.fromarray(wide))
    assert array(path)[0, :, 0].tolist() == [0, 0, 1, 128, 255, 255]  # rounded v / 257


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_over_white(tmp_path, mode):
    layer = Image.new(mode, (3, 1))
    colours = [(0, 0, 0, 0), (0, 0, 0, 255), (0, 0, 0, 51)] if mode == "RGBA" else [(0, 0), (0, 255), (0, 51)]
    layer.putdata(colours)
    # black at opacity 0, 1 and 1/5 over white
    assert array(save(tmp_path / "a.png", layer))[0].tolist() == [[255] * 3, [0] * 3, [204] * 3]


def test_transparent_palette_entry_and_colour_key_lie_over_white(tmp_path):
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 200, 0, 0])
    palette.putdata([0, 1])
    assert array(save(tmp_path / "p.png", palette, transparency=0))[0].tolist() == [[255] * 3, [200, 0, 0]]
    keyed = Image.new("RGB", (2, 1))
    keyed.putdata([(1, 2, 3), (4, 5, 6)])
    path = save(tmp_path / "k.png", keyed, transparency=(1, 2, 3))
    assert array(path)[0].tolist() == [[255] * 3, [4, 5, 6]]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    lossless = {"webp": {"lossless": True}, "jpg": {"quality": 95}}.get(suffix, {})
    path = save(tmp_path / f"a.{suffix}", exif=turned(orientation), **lossless)
    with Image.open(path) as image:
        np.testing.assert_array_equal(array(path), np.asarray(ImageOps.exif_transpose(image).convert("RGB")))
    assert array(path).shape == ((24, 20, 3) if orientation >= 5 else (20, 24, 3))
    assert set(UPRIGHT) == set(range(2, 9))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_of_a_sound_image_does_not_matter(tmp_path):
    path = save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff broken")
    assert read_image(path).shape == (3, 20, 24)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_first_frame_of_an_animation(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    path = save(tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:])
    assert array(path).reshape(-1, 3).mean(0) == pytest.approx([255, 0, 0], abs=3)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif"])
def test_truncated_empty_or_foreign_files_are_named(tmp_path, suffix):
    whole = save(tmp_path / f"a.{suffix}", picture(64, 64)).read_bytes()
    for number, content in enumerate((whole[: len(whole) // 2], b"", b"no image", whole[:3])):
        path = tmp_path / f"bad{number}.{suffix}"
        path.write_bytes(content)
        with pytest.raises(ImageError, match=path.name):
            read_image(path)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about the damage
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif"])
def test_no_damage_raises_anything_but_an_image_error(tmp_path, suffix):
    rng = random.Random(7)
    whole = save(tmp_path / f"a.{suffix}", picture(32, 32)).read_bytes()
    path = tmp_path / f"b.{suffix}"
    for trial in range(40):
        content = bytearray(whole[: rng.randrange(len(whole))] if trial % 4 == 0 else whole)
        for _ in range(rng.choice([1, 8]) if content else 0):
            content[rng.randrange(min(len(content), rng.choice([60, 10**6])))] = rng.randrange(256)
        path.write_bytes(bytes(content))
        try:
            assert read_image(path).shape[0] == 3
        except ImageError as error:
            assert path.name in str(error) and "\n" not in str(error)


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.jpg"):
        read_image(tmp_path / "gone.jpg")
    with pytest.raises(UserError, match=tmp_path.name):
        read_image(tmp_path)


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # 480 pixels are more than twice that
    with pytest.raises(ImageError, match=r"big\.png"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["png", "gif", "bmp", "tif"])
def test_an_image_of_too_many_pixels_is_refused_by_its_header(tmp_path, suffix, monkeypatch):
    path = save(tmp_path / f"a.{suffix}", Image.new("P", (9001, 3)))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(ImageError, match=r"9001 × 3 pixels, more than DATALOADER\.MAX_PIXELS 27002 allows"):
        read_image(path, max_pixels=9001 * 3 - 1)


def test_the_limit_without_a_setting_is_8192_by_8192(tmp_path):
    path = save(tmp_path / "a.bmp")
    content = bytearray(path.read_bytes())
    content[18:26] = struct.pack("<ii", 8192, 8193)  # width and height, of which the file has nothing
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"8192 × 8193 pixels.*67108864"):
        read_image(path)


@pytest.mark.parametrize(("limit", "factor"), [(48 * 40, 1), (48 * 40 - 1, 2), (24 * 20 - 1, 4), (30, 8)])
def test_a_jpeg_above_the_limit_is_decoded_smaller(tmp_path, limit, factor):
    path = save(tmp_path / "a.jpg", picture(40, 48), quality=95)
    image = read_image(path, max_pixels=limit)
    assert image.shape == (3, 40 // factor, 48 // factor)
    whole = torch.nn.functional.avg_pool2d(read_image(path).float(), factor)  # the decoder averages blocks, nearly
    assert (image - whole).abs().mean() < 2
    # a box is given in pixels of the whole image
    left, top, right, bottom = (edge // factor for edge in (16, 8, 40, 32))
    torch.testing.assert_close(read_image(path, (16, 8, 40, 32), limit), image[:, top:bottom, left:right])


def test_a_jpeg_that_stays_too_large_and_a_file_too_large_to_be_an_image(tmp_path):
    with pytest.raises(ImageError, match=r"48 × 40 pixels.*MAX_PIXELS 29"):
        read_image(save(tmp_path / "a.jpg", picture(40, 48)), max_pixels=29)
    with (tmp_path / "b.png").open("wb") as file:
        file.truncate(2**40)  # one TiB, of which the disk holds nothing
    with pytest.raises(ImageError, match=r"b\.png.*larger than any image"):
        read_image(tmp_path / "b.png")


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "CMYK", "I;16", "1"])
def test_converting_in_strips_gives_the_same_pixels(tmp_path, mode, monkeypatch):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (33, 20, 4), dtype=np.uint8))
    image = noise if mode == "RGBA" else noise.convert("RGB").convert("L" if mode == "I;16" else mode)
    path = save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"), image.convert(mode), exif=turned(6))
    whole = array(path)
    monkeypatch.setattr("d3still.data.image._STRIP", 20 * 7)  # strips of 7 rows, and a rest of 5
    np.testing.assert_array_equal(array(path), whole)
    assert whole.shape == (20, 33, 3)


def test_no_other_program_is_started_for_a_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    monkeypatch.setattr("subprocess.Popen", pytest.fail)  # Pillow gives PostScript to ghostscript
    with pytest.raises(ImageError, match="no known image format"):
        read_image(path)


def test_a_passing_failure_of_the_disk_is_tried_again_and_a_lasting_one_ends(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png")
    expected, read_bytes, calls = array(path), Path.read_bytes, []

    def failing(times):
        def read(self):
            calls.append(self)
            if len(calls) <= times:
                raise OSError(errno.EIO, "Input/output error")
            return read_bytes(self)

        return read

    monkeypatch.setattr("d3still.data.image.RETRY_SECONDS", 0)
    monkeypatch.setattr(Path, "read_bytes", failing(READ_TRIES - 1))
    np.testing.assert_array_equal(array(path), expected)
    calls.clear()
    monkeypatch.setattr(Path, "read_bytes", failing(10**9))
    with pytest.raises(ImageError, match="Input/output error"):
        read_image(path)
    assert len(calls) == READ_TRIES


def test_names_with_blanks_accents_and_great_length(tmp_path):
    for name in ("a b.png", "Übergröße 犬.png", "x" * 200 + ".png"):
        assert read_image(save(tmp_path / "ein Ordner" / name)).shape == (3, 20, 24)


def test_image_names():
    good = ["a.jpg", "A.JPG", "b.Jpeg", "c.png", "d.WEBP"]
    assert all(is_image_name(Path(name)) for name in good)
    assert not any(is_image_name(Path(name)) for name in ["._a.jpg", ".b.png", "list.txt", "jpg", "a.jpg.part"])


def test_crop(tmp_path):
    image = torch.arange(3 * 4 * 5, dtype=torch.uint8).view(3, 4, 5)
    torch.testing.assert_close(crop(image, (1, 2, 4, 9), "a"), image[:, 2:4, 1:4])
    torch.testing.assert_close(crop(image, (-3, -1, 2, 2), "a"), image[:, :2, :2])
    with pytest.raises(ImageError, match=r"a\.jpg"):
        crop(image, (5, 0, 9, 4), "a.jpg")
