"""Make emoji.zip, split.json and the figures in README.md from the seven icon packages.

A development tool: nothing needs it to run. It wants Python ≥ 3.10 with resvg-py and pillow, and the packages
of `SETS`, fetched with their exact versions (README.md has the command):

    python datasets/emoji/make_emoji.py node_modules/@iconify-json            # writes everything
    python datasets/emoji/make_emoji.py node_modules/@iconify-json --check    # compares, writes nothing

With the same versions of resvg-py and pillow a second run gives the same bytes.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops, ImageStat

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import icon_packages
from icon_packages import archive, encode_all, write_or_check

HERE = Path(__file__).resolve().parent
MIN_SETS = 6  # an identity is a code point that at least so many of the seven sets draw
NUM_TRAIN, NUM_VALIDATION, QUERIES_PER_IDENTITY = 700, 100, 2
SEED = 2024
VARIATION_SELECTOR = "fe0f"
SKIN_TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
NEAR_IDENTICAL = 5.0  # mean absolute difference of two images over pixels and channels, of 255
FIGURES = ("<!-- figures: written by make_emoji.py -->\n", "<!-- end of figures -->")  # in README.md


@dataclass(frozen=True)
class IconSet:
    """One package: its name, its exact version, and the vendor, numbered from 1, that drew it."""

    name: str
    version: str
    camera: int


SETS = (
    IconSet("noto", "1.2.9", 1),
    IconSet("noto-v1", "1.2.5", 1),
    IconSet("twemoji", "1.2.5", 2),
    IconSet("openmoji", "1.2.29", 3),
    IconSet("emojione", "1.2.3", 4),
    IconSet("emojione-v1", "1.2.3", 4),
    IconSet("fluent-emoji-flat", "1.2.6", 5),
)

# Sets without a chars.json are matched by name, and names have changed their meaning: "up-button" is now
# U+1F199, but in these two sets it is an alias of U+1F53C. Here the right drawing exists under another name.
RENAMED = {("emojione", "1f199"): "up-text-button", ("emojione-v1", "1f199"): "up-text-button"}

# "cricket" is now the insect, but in noto-v1 and emojione an alias of the game: they never drew the insect.
# "keyboard" in emojione-v1 is one of a piano, elsewhere of a computer. These three wrong images stay, so that
# the selection is the plain rule's, but their identities are never tested.
ALWAYS_TRAIN = ("1f997", "2328")


class Package(icon_packages.Package):
    """The drawings of one set, by icon name and by code point."""

    def __init__(self, folder: Path, icon_set: IconSet) -> None:
        super().__init__(folder, icon_set.version)
        self.set = icon_set
        self.chars: dict[str, str] = json.loads((folder / "chars.json").read_text(encoding="utf-8"))

    def by_character(self) -> dict[str, str]:
        """Identity → icon name, by chars.json."""
        found: dict[str, str] = {}
        for character, name in self.chars.items():
            identity = identity_of(character)
            if identity:
                found.setdefault(identity, name)
        return found

    def by_name(self, identities: dict[str, str]) -> dict[str, str]:
        """Identity → icon name, for a set without chars.json: by the other sets' names."""
        found: dict[str, str] = {}
        for name in self.names():
            if name in identities:
                found.setdefault(identities[name], name)
        for (set_name, identity), name in RENAMED.items():
            if set_name == self.set.name:
                found[identity] = name
        return found


def identity_of(character: str) -> str | None:
    """A chars.json key without its variation selectors; None for a drawing with a skin tone."""
    points = [point for point in character.lower().split("-") if point != VARIATION_SELECTOR]
    return None if SKIN_TONES & set(points) or not points else "-".join(points)


def identities_by_name(packages: list[Package]) -> dict[str, str]:
    """Icon name → the identity that most of the sets with a chars.json give it."""
    votes: dict[str, Counter] = defaultdict(Counter)
    for package in packages:
        for character, name in package.chars.items():
            identity = identity_of(character)
            if identity:
                votes[name][identity] += 1
    return {name: max(sorted(count), key=count.__getitem__) for name, count in votes.items()}


def select(packages: list[Package]) -> dict[str, str]:
    """File name → SVG of every image, sorted by file name."""
    by_name = identities_by_name(packages)
    drawings = {p: p.by_character() if p.chars else p.by_name(by_name) for p in packages}
    held = Counter(identity for found in drawings.values() for identity in found)
    return dict(
        sorted(
            (f"{identity}_c{package.set.camera:03d}_{package.set.name}.webp", package.svg(name))
            for package, found in drawings.items()
            for identity, name in found.items()
            if held[identity] >= MIN_SETS
        )
    )


def split_of(names: list[str]) -> dict[str, list[str]]:
    """The fixed split: identities of each part, and the file names that are queries."""
    return icon_packages.split_of(names, NUM_TRAIN, NUM_VALIDATION, QUERIES_PER_IDENTITY, SEED, ALWAYS_TRAIN)


def distances(images: dict[str, bytes]) -> dict[tuple[str, str], float]:
    """Mean absolute difference (of 255) of each pair of one identity's images by different vendors."""
    pixels = {name: Image.open(io.BytesIO(content)).convert("RGB") for name, content in images.items()}
    found = {}
    for _, names in itertools.groupby(images, key=lambda name: name.split("_")[0]):
        for a, b in itertools.combinations(names, 2):
            if a.split("_")[1] != b.split("_")[1]:
                channels = ImageStat.Stat(ImageChops.difference(pixels[a], pixels[b])).mean
                found[a, b] = sum(channels) / len(channels)
    return found


def shared_drawings(images: dict[str, bytes]) -> list[str]:
    """Images that are, pixel for pixel, also an image of another identity."""
    holders: dict[bytes, list[str]] = defaultdict(list)
    for name, content in images.items():
        with Image.open(io.BytesIO(content)) as image:
            holders[image.convert("RGB").tobytes()].append(name)
    return [n for names in holders.values() if len({n.split("_")[0] for n in names}) > 1 for n in names]


def near_identical_table(images: dict[str, bytes], split: dict[str, list[str]]) -> list[str]:
    """Markdown lines: how many pairs of one identity by different vendors look alike."""
    test, queries = set(split["test"]), set(split["query"])
    groups: dict[str, list[float]] = {"all identities": [], "test": [], "test, a query and a gallery image": []}
    for (a, b), distance in distances(images).items():
        groups["all identities"].append(distance)
        if a.split("_")[0] in test:
            groups["test"].append(distance)
            if (a in queries) != (b in queries):
                groups["test, a query and a gallery image"].append(distance)
    lines = [
        f"Pairs of the same identity by different vendors, near-identical where the mean absolute difference of the "
        f"96-pixel RGB images is at most {NEAR_IDENTICAL:g} of 255:",
        "",
        f"| pairs | in all | exactly identical | near-identical (≤ {NEAR_IDENTICAL:g}) | ≤ {2 * NEAR_IDENTICAL:g} |",
        "|---|---|---|---|---|",
    ]
    for name, values in groups.items():
        counts = (sum(v <= limit for v in values) for limit in (0, NEAR_IDENTICAL, 2 * NEAR_IDENTICAL))
        lines.append(f"| {name} | {len(values):,} | " + " | ".join(f"{count:,}" for count in counts) + " |")
    return lines


def figures(images: dict[str, bytes], split: dict[str, list[str]]) -> str:
    """The part of README.md that is measured."""
    parts = {part: set(split[part]) for part in ("train", "validation", "test")}
    queries = {"train": set(), "validation": set(split["validation_query"]), "test": set(split["query"])}
    per_identity = Counter(name.split("_")[0] for name in images)
    lines = ["## Figures", "", "| set | images | train | of which validation | test |", "|---|---|---|---|---|"]
    for icon_set in SETS:
        names = [name for name in images if name.endswith(f"_{icon_set.name}.webp")]
        held = [sum(name.split("_")[0] in part for name in names) for part in parts.values()]
        lines.append(f"| {icon_set.name} | {len(names):,} | " + " | ".join(f"{n:,}" for n in held) + " |")
    lines += ["", "| part | identities | images | query | gallery |", "|---|---|---|---|---|"]
    for part, identities in parts.items():
        size = sum(per_identity[identity] for identity in identities)
        tested = (f"{len(queries[part]):,}", f"{size - len(queries[part]):,}") if queries[part] else ("", "")
        lines.append(f"| {part} | {len(identities):,} | {size:,} | {tested[0]} | {tested[1]} |")
    sizes = ", ".join(f"{n:,} identities have {size}" for size, n in sorted(Counter(per_identity.values()).items()))
    shared = shared_drawings(images)
    asked = [name for name in shared if name in queries["test"]]
    lines += ["", f"Images of an identity: {sizes}. Blank images: 0.", "", *near_identical_table(images, split), ""]
    lines.append(
        f"{len(shared)} images are pixel for pixel also an image of another identity by the same vendor, which draws "
        f"both alike; {len(asked)} of the {len(split['query'])} test queries are among them."
    )
    return "\n".join(lines) + "\n"


def readme_with(figures_text: str) -> bytes:
    """README.md with its measured part replaced."""
    return icon_packages.readme_with(HERE / "README.md", FIGURES, figures_text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path, help="the folder with noto/, twemoji/, … (@iconify-json)")
    parser.add_argument("--check", action="store_true", help="compare with what is there; write nothing")
    arguments = parser.parse_args()
    packages = [Package(arguments.packages / icon_set.name, icon_set) for icon_set in SETS]
    svgs = select(packages)
    images = encode_all(svgs)
    split = split_of(list(images))
    outputs = {
        "emoji.zip": archive(images),
        "split.json": icon_packages.split_file(split),
        "README.md": readme_with(figures(images, split)),
    }
    print(f"{len({n.split('_')[0] for n in images})} identities, {len(images)} images, 0 blank")
    write_or_check(HERE, outputs, arguments.check)


if __name__ == "__main__":
    main()
