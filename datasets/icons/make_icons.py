"""Make icons.zip, split.json and the figures in README.md from the icon packages of `SETS`.

A development tool: nothing needs it to run. It wants Python ≥ 3.10 with resvg-py, pillow and numpy, and the packages
fetched with their exact versions (README.md has the command):

    python datasets/icons/make_icons.py node_modules/@iconify-json            # writes everything
    python datasets/icons/make_icons.py node_modules/@iconify-json --check    # compares, writes nothing

With the same versions of resvg-py and pillow a second run gives the same bytes.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections import Counter, defaultdict
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import icon_packages
from icon_packages import Package, archive, encode_all, write_or_check

HERE = Path(__file__).resolve().parent
MIN_SETS = 5  # an identity is a name that at least so many sets draw, each in its own way
VALIDATION_SHARE, QUERIES_PER_IDENTITY, SEED = 0.1, 2, 2024
INK = 40  # of 255: what is darker by so much than the background belongs to the drawing
SIDE = 32  # pixels of the square in which drawings are compared
NEAR_DUPLICATE = 0.1  # 1 − correlation, at most
WEBP_EFFORT = 4  # a hundred times as fast as 6, and hardly larger for drawings in black
FIGURES = ("<!-- figures: written by make_icons.py -->\n", "<!-- end of figures -->")  # in README.md

EVERY = "(.+)"


def without(*endings: str) -> str:
    """A pattern of the names that end in none of these styles."""
    return rf"(?!.*-(?:{'|'.join(endings)})$)(.+)"


class IconSet(NamedTuple):
    """One package: its name, its exact version, and which of its icons are drawn in its plain style.

    Group 1 of ``plain`` is the name without the style.
    """

    name: str
    version: str
    plain: str


SETS = (  # in this order numbered as cameras from 1; of near-duplicates the first stays
    IconSet("tabler", "1.2.41", without("filled")),
    IconSet("ph", "1.2.2", without("bold", "fill", "light", "thin", "duotone")),
    IconSet("solar", "1.2.13", "(.+)-linear"),
    IconSet("fluent", "1.2.60", "(.+)-24-regular"),
    IconSet("mingcute", "1.2.8", "(.+)-line"),
    IconSet("uil", "1.2.3", EVERY),
    IconSet("bi", "1.2.7", without("fill")),
    IconSet("carbon", "1.2.29", without("filled")),
    IconSet("iconoir", "1.2.11", without("solid")),
    IconSet("hugeicons", "1.2.35", "(.+?)(?:-01)?"),
    IconSet("mdi", "1.2.3", without("outline")),
    IconSet("ion", "1.2.7", "(.+)-outline"),
    IconSet("jam", "1.2.3", without("f")),
    IconSet("pixelarticons", "1.2.9", EVERY),
    IconSet("fa6-solid", "1.2.4", EVERY),
    IconSet("cil", "1.2.3", EVERY),
    IconSet("icon-park-outline", "1.2.4", EVERY),
    IconSet("tdesign", "1.2.19", without("filled")),
    IconSet("f7", "1.2.2", without("fill")),
    IconSet("gravity-ui", "1.2.15", without("fill")),
    IconSet("bx", "1.2.3", EVERY),
    IconSet("clarity", "1.2.4", "(.+)-line"),
    IconSet("ant-design", "1.2.9", "(.+)-outlined"),
    IconSet("streamline", "1.2.5", without("solid", "remix", "flat")),
    IconSet("eva", "1.2.3", "(.+)-outline"),
    IconSet("basil", "1.2.4", "(.+)-outline"),
    IconSet("majesticons", "1.2.5", "(.+)-line"),
    IconSet("akar-icons", "1.2.7", without("fill")),
    IconSet("mynaui", "1.2.19", without("solid")),
    IconSet("proicons", "1.2.20", EVERY),
    IconSet("octicon", "1.2.36", "(.+)-24"),
    IconSet("heroicons", "1.2.3", without("solid")),
    IconSet("humbleicons", "1.2.20", EVERY),
    IconSet("memory", "1.2.2", EVERY),
)


def identity_of(name: str) -> str:
    """A name without its style, its words in alphabetical order: circle-minus is minus-circle."""
    return "-".join(sorted(name.split("-")))


def select(packages: list[Package]) -> dict[str, str]:
    """File name → SVG of every drawing of a name that enough sets draw, identity by identity, sets in order."""
    drawings: dict[str, dict[str, str]] = defaultdict(dict)
    for camera, (icon_set, package) in enumerate(zip(SETS, packages, strict=True), start=1):
        for name, icon in package.data["icons"].items():
            match = re.fullmatch(icon_set.plain, name)
            if match and not icon.get("hidden"):
                ending = f"_c{camera:03d}_{icon_set.name}.webp"
                drawings[identity_of(match[1])].setdefault(ending, package.svg(name))
    return {
        identity + ending: svg
        for identity, found in sorted(drawings.items())
        for ending, svg in found.items()
        if len(found) >= MIN_SETS
    }


def shape(content: bytes) -> np.ndarray:
    """What is compared: the drawing's ink, cut out, scaled to one size, blurred; of mean 0 and length 1."""
    ink = 255 - np.asarray(Image.open(io.BytesIO(content)).convert("L"))
    rows, columns = np.nonzero(ink > INK)
    if not len(rows):
        return np.zeros(SIDE * SIDE)
    cut = Image.fromarray(ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1])
    blurred = cut.resize((SIDE, SIDE), Image.Resampling.BOX).filter(ImageFilter.GaussianBlur(1))
    centred = np.asarray(blurred, dtype=np.float64).ravel()
    centred -= centred.mean()
    return centred / max(np.linalg.norm(centred), 1e-9)


def own_drawings(images: dict[str, bytes]) -> dict[str, bytes]:
    """The images without near-duplicates of one identity, and without identities that then have too few."""
    files: dict[str, list[str]] = defaultdict(list)
    shapes: dict[str, np.ndarray] = {}
    for name, content in images.items():
        drawn, kept = shape(content), files[name.split("_")[0]]
        if all(1 - drawn @ shapes[other] > NEAR_DUPLICATE for other in kept):
            kept.append(name)
            shapes[name] = drawn
    return {name: images[name] for kept in files.values() if len(kept) >= MIN_SETS for name in sorted(kept)}


def copied_share(images: dict[str, bytes]) -> list[tuple[float, str, str]]:
    """(share of near-duplicates among the names that both draw, set, set), from the most alike pair of sets on."""
    shapes = {name: shape(content) for name, content in images.items()}
    files: dict[str, list[str]] = defaultdict(list)
    for name in images:
        files[name.split("_")[0]].append(name)
    both, alike = Counter(), Counter()
    for names in files.values():
        for one, other in combinations(names, 2):
            sets = tuple(name.split("_")[2].removesuffix(".webp") for name in (one, other))
            both[sets] += 1
            alike[sets] += 1 - shapes[one] @ shapes[other] <= NEAR_DUPLICATE
    return sorted(((alike[sets] / count, *sets) for sets, count in both.items() if count >= 20), reverse=True)


def split_of(names: list[str]) -> dict[str, list[str]]:
    """Half of the identities train, a tenth of these are for validation."""
    train = len({name.split("_")[0] for name in names}) // 2
    return icon_packages.split_of(names, train, round(train * VALIDATION_SHARE), QUERIES_PER_IDENTITY, SEED)


def figures(drawn: dict[str, bytes], images: dict[str, bytes], split: dict[str, list[str]]) -> str:
    """The part of README.md that is measured, from all drawings and from those that are kept."""
    parts = {part: set(split[part]) for part in ("train", "validation", "test")}
    queries = {"train": [], "validation": split["validation_query"], "test": split["query"]}
    per_identity = Counter(name.split("_")[0] for name in images)
    lines = ["## Figures", "", "| camera | set | images | train | of which validation | test |", "|---" * 6 + "|"]
    for camera, icon_set in enumerate(SETS, start=1):
        names = [name for name in images if name.endswith(f"_{icon_set.name}.webp")]
        held = [sum(name.split("_")[0] in part for name in names) for part in parts.values()]
        counts = " | ".join(f"{n:,}" for n in (len(names), *held))
        lines.append(f"| `c{camera:03d}` | {icon_set.name} | {counts} |")
    lines += ["", "| part | identities | images | query | gallery |", "|---|---|---|---|---|"]
    for part, identities in parts.items():
        size = sum(per_identity[identity] for identity in identities)
        asked = len(queries[part])
        tested = f"{asked:,} | {size - asked:,}" if asked else " | "
        lines.append(f"| {part} | {len(identities):,} | {size:,} | {tested} |")
    sizes = sorted(per_identity.values())
    most = ", ".join(f"{one} and {other} {share:.0%}" for share, one, other in copied_share(drawn)[:3])
    lines += [
        "",
        f"Images of an identity: {sizes[0]} to {sizes[-1]}, {len(images) / len(sizes):.1f} on average.",
        "",
        f"Of {len(drawn):,} drawings of {len({n.split('_')[0] for n in drawn}):,} names that at least {MIN_SETS} sets "
        f"draw, {len(images):,} of {len(per_identity):,} names are left without near-duplicates. The sets that agree "
        f"on most of the names that both draw: {most}; no set is another's copy.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, help="the folder with tabler/, ph/, … (@iconify-json)")
    parser.add_argument("--check", action="store_true", help="compare with what is there; write nothing")
    arguments = parser.parse_args()
    packages = [Package(arguments.packages / icon_set.name, icon_set.version) for icon_set in SETS]
    drawn = encode_all(select(packages), WEBP_EFFORT)
    images = own_drawings(drawn)
    split = split_of(list(images))
    text = figures(drawn, images, split)
    print(f"{len({n.split('_')[0] for n in images})} identities, {len(images)} images")
    outputs = {
        "icons.zip": archive(images),
        "split.json": icon_packages.split_file(split),
        "README.md": icon_packages.readme_with(HERE / "README.md", FIGURES, text),
    }
    write_or_check(HERE, outputs, arguments.check)


if __name__ == "__main__":
    main()
