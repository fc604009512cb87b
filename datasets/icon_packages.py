"""What make_emoji.py and make_icons.py share: a package of vector drawings, and images of them in an archive.

A development tool: nothing needs it to run. It wants resvg-py and pillow.
"""

from __future__ import annotations

import io
import json
import random
import sys
import zipfile
from collections import defaultdict
from collections.abc import Collection
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image

SIZE = 96  # pixels, height and width
BACKGROUND = (255, 255, 255)
ZIP_TIME = (1980, 1, 1, 0, 0, 0)  # the oldest time that the format can hold


class Package:
    """The drawings of one package of ``@iconify-json``, by icon name."""

    def __init__(self, folder: Path, version: str) -> None:
        found = json.loads((folder / "package.json").read_text(encoding="utf-8"))["version"]
        if found != version:
            sys.exit(f"{folder} has version {found}; {version} is needed")
        self.name = folder.name
        self.data = json.loads((folder / "icons.json").read_text(encoding="utf-8"))

    def names(self) -> list[str]:
        """Icon names, then aliases, in the package's order."""
        return [*self.data["icons"], *self.data.get("aliases", {})]

    def svg(self, name: str) -> str:
        """A whole SVG file of the icon or alias."""
        icon: dict = {}
        turns, flips = 0, []
        while name not in self.data["icons"]:
            alias = self.data["aliases"][name]
            flips += [flip for flip in ("hFlip", "vFlip") if alias.get(flip)]
            turns += alias.get("rotate", 0)
            icon = alias | icon
            name = alias["parent"]
        icon = self.data["icons"][name] | icon
        if turns or "vFlip" in flips:
            sys.exit(f"{self.name}/{name} is turned or flipped upside down, which this tool does not draw")
        left, top = icon.get("left", 0), icon.get("top", 0)
        width, height = (icon.get(side, self.data.get(side, 16)) for side in ("width", "height"))
        body = icon["body"]
        if flips.count("hFlip") % 2:
            body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{SIZE}" height="{SIZE}" viewBox="{left} {top} {width} {height}">{body}</svg>'
        )


def render(svg: str) -> Image.Image:
    """The drawing, as large as fits into the square, on the background."""
    import resvg_py  # here, so that the tests can use the rest without it

    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE, skip_system_fonts=True)
    drawing = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    if drawing.size != (SIZE, SIZE):
        raise ValueError(f"rendered as {drawing.size}")
    image = Image.new("RGB", drawing.size, BACKGROUND)
    image.paste(drawing, mask=drawing)
    return image


def encode(svg: str, effort: int = 6) -> bytes:
    """The drawing as a lossless WebP file; an empty one is an error. ``effort`` is WebP's method, 0 to 6."""
    image = render(svg)
    if len(image.getcolors(SIZE * SIZE) or []) == 1:
        raise ValueError("blank: one colour only")
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=True, quality=100, method=effort, exact=True)
    with Image.open(io.BytesIO(file.getvalue())) as stored:
        if stored.convert("RGB").tobytes() != image.tobytes():
            raise ValueError("the WebP file is not lossless")
    return file.getvalue()


def archive(images: dict[str, bytes]) -> bytes:
    """An uncompressed zip file of the images, the same bytes every time."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as target:
        for name, content in images.items():
            info = zipfile.ZipInfo(name, ZIP_TIME)
            info.create_system, info.external_attr = 3, 0o644 << 16  # as if made on Unix, wherever it was
            target.writestr(info, content)
    return file.getvalue()


def split_of(
    names: list[str], num_train: int, num_validation: int, queries: int, seed: int, always_train: Collection[str] = ()
) -> dict[str, list[str]]:
    """A fixed split: identities of each part, and the file names that are queries.

    Args:
        names: all files, ``IDENTITY_cCAMERA_SET.webp``.
        num_train, num_validation: training identities, and how many of these are for tuning.
        queries: files of each tested identity that are queries.
        seed: of the draw.
        always_train: identities that are never tested.
    """
    files: dict[str, list[str]] = defaultdict(list)
    for name in names:
        files[name.split("_")[0]].append(name)
    draw = random.Random(seed)
    free = [identity for identity in sorted(files) if identity not in always_train]
    test = sorted(draw.sample(free, len(files) - num_train))
    train = sorted(set(files) - set(test))
    validation = sorted(draw.sample([i for i in train if i not in always_train], num_validation))
    asked = {
        part: sorted(q for i in identities for q in draw.sample(files[i], queries))
        for part, identities in (("test", test), ("validation", validation))
    }
    for query in asked["test"] + asked["validation"]:
        identity, camera, _ = query.split("_")
        rest = set(files[identity]) - set(asked["test"] + asked["validation"])
        if all(name.split("_")[1] == camera for name in rest):
            raise ValueError(f"{query} has no match by another camera")
    return {
        "train": train,
        "validation": validation,
        "test": test,
        "query": asked["test"],
        "validation_query": asked["validation"],
    }


def split_file(split: dict[str, list[str]]) -> bytes:
    """split.json."""
    return (json.dumps(split, indent=0) + "\n").encode()


def readme_with(readme: Path, marks: tuple[str, str], figures: str) -> bytes:
    """README.md with what stands between the two marks replaced."""
    before, _, rest = readme.read_text(encoding="utf-8").partition(marks[0])
    return (before + marks[0] + figures + marks[1] + rest.partition(marks[1])[2]).encode()


def write_or_check(folder: Path, outputs: dict[str, bytes], check: bool) -> None:
    """Write the files into the folder, or exit with 1 at the first that differs from what is there."""
    for name, content in outputs.items():
        path = folder / name
        same = path.exists() and path.read_bytes() == content
        print(f"{name}: {len(content):,} bytes, {'as before' if same else 'changed'}")
        if not check:
            path.write_bytes(content)
        elif not same:
            sys.exit(1)


def encode_all(svgs: dict[str, str], effort: int = 6) -> dict[str, bytes]:
    """File name → image file of every drawing, on all cores."""
    with ProcessPoolExecutor() as pool:
        return dict(zip(svgs, pool.map(partial(encode, effort=effort), svgs.values(), chunksize=64), strict=True))
