"""Train one stage: python tools/train_net.py --config-file configs/emoji/rop.yaml [KEY VALUE …]"""

from __future__ import annotations

import argparse

import _bootstrap


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", "--cfg", required=True, help="the experiment's YAML file")
    parser.add_argument(
        "--resume",
        default="auto",
        help="auto: go on with the run in the output folder if there is one; never: start afresh; or a checkpoint",
    )
    parser.add_argument(
        "--accept-changes",
        action="store_true",
        help="go on although the start weights or the images are others than the run was begun with",
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings over the file's")
    args = parser.parse_intermixed_args()
    from d3still.config import load_config
    from d3still.engine import train

    train(load_config(args.config_file, args.opts), args.resume, args.accept_changes)


if __name__ == "__main__":
    _bootstrap.run(main)
