"""Is a dataset complete and readable? Prints one screen and saves a contact sheet.

    python tools/check_dataset.py veri --root datasets

Exit status: 0 all is well, 1 something differs or cannot be read, 2 the dataset cannot be loaded.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import _bootstrap

from d3still.files import user_path
from d3still.text import visible


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="veri, msmt17, cub, …, folder, csv: a name of datasets/README.md, in any case")
    parser.add_argument("--root", default="datasets", help="the dataset's folder or the one that holds it")
    parser.add_argument("--split", choices=("test", "val"), default="test", help="val: identities held out of training")
    parser.add_argument("--camera-pattern", default="", help="folder: regular expression, group 1 = the camera")
    parser.add_argument("--fast", action="store_true", help="open 500 files instead of all")
    parser.add_argument("--max-pixels", type=int, help="DATALOADER.MAX_PIXELS")
    parser.add_argument("--sheet", type=user_path, help="where the contact sheet goes (default: log/check_NAME.png)")
    return parser.parse_args()


def main() -> None:
    """Load, check, report."""
    arguments = parse()
    from d3still.data import build_dataset
    from d3still.data.check import check_dataset, contact_sheet, full_name
    from d3still.data.image import MAX_PIXELS

    name = full_name(arguments.name)
    logging.getLogger("d3still").setLevel(logging.ERROR)  # its notes are in the report
    dataset = build_dataset(
        name, arguments.root, split=arguments.split, camera_pattern=arguments.camera_pattern
    )
    largest = arguments.max_pixels or MAX_PIXELS
    check = check_dataset(dataset, fast=arguments.fast, max_pixels=largest)
    sheet = arguments.sheet or Path("log") / f"check_{name}.png"
    contact_sheet(dataset, sheet, largest)
    print(visible(f"{name} in {arguments.root}"), *map(visible, check.lines), sep="\n")
    print(visible(f"{'contact sheet':<22}{sheet}"))
    for problem in check.problems:
        print(visible(f"problem: {problem}"))
    print("all is well" if check.ok else f"{len(check.problems)} problems")
    sys.exit(0 if check.ok else 1)


if __name__ == "__main__":
    _bootstrap.run(main)
