"""How far to follow ACD: gallery networks between stage 0 (share 0) and stage 2 (share 1), without training.

    python tools/merge_net.py --config-file configs/emoji/acd_rop.yaml [--shares 0,0.5,0.75,1] [KEY VALUE …]
    python tools/merge_net.py --config-file configs/emoji/acd_rop.yaml --shares 0.75 --save merged.pth

Prints AIR and SIR of each share, batch-norm statistics computed again on the training images. Choose one on validation
identities (DATASETS.SPLIT val, of runs trained so). The saved file is tested with TEST.WEIGHTS, exported and indexed as
a run's own.
"""

from __future__ import annotations

import argparse
import json
from contextlib import suppress
from math import isfinite

import _bootstrap

from d3still.config import dump_config, load_config
from d3still.errors import UserError
from d3still.files import user_path
from d3still.runs.facts import stage_of

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
COLUMNS = (("AIR", "mAP"), ("AIR", "R1"), ("SIR", "mAP"), ("SIR", "R1"))


def numbers(text: str) -> tuple[float, ...]:
    """Finite numbers with commas between them."""
    with suppress(ValueError):
        found = tuple(float(word) for word in text.split(","))
        if all(map(isfinite, found)):
            return found
    raise argparse.ArgumentTypeError(f"'{text}' is no list of numbers such as 0,0.5,1")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", "--cfg", required=True, help="the YAML file of a stage-2 run")
    parser.add_argument("--shares", type=numbers, default=SHARES, help="of the way from stage 0 to stage 2: 0,0.5,1")
    parser.add_argument("--save", type=user_path, help="write the network of the one share given")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings over the file's")
    args = parser.parse_intermixed_args()
    if args.save and len(args.shares) != 1:
        raise UserError("--save writes one network; give one share, such as --shares 0.75")
    return args


def main() -> None:
    """Merge, evaluate, print, save."""
    args = parse()
    from d3still.engine.finished_run import open_run
    from d3still.engine.merging import merged_galleries
    from d3still.engine.retrieval import evaluate
    from d3still.runs.checkpoint import network_state, save_checkpoint

    cfg = load_config(args.config_file, args.opts)
    if stage_of(cfg) != 2:
        raise UserError(f"{args.config_file} is no config of stage 2, whose gallery network has a before and after")
    found = []
    with open_run(cfg) as run:
        for share, network in merged_galleries(cfg, run, args.shares):
            results = evaluate(cfg, run.data, run.distiller.query, network, run.device).summaries()
            found.append({"share": share, **results})
            if args.save:
                run.distiller.gallery = network
                dataset = run.data.dataset
                names = {"identity_map": dataset.identity_map, "identity_names": dataset.identity_names}
                save_checkpoint(args.save, network_state(run.distiller) | {"config": dump_config(cfg)} | names)
    print(json.dumps(found, indent=1) if args.json else table(found))


def table(found: list[dict]) -> str:
    """A row a share, in percent."""
    lines = [f"{'share':>8}" + "".join(f"{' '.join(column):>10}" for column in COLUMNS)]
    for row in found:
        lines.append(f"{row['share']:8g}" + "".join(f"{row[kind][name]:10.2f}" for kind, name in COLUMNS))
    return "\n".join(lines)


if __name__ == "__main__":
    _bootstrap.run(main)
