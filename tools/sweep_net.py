"""Rerun stage 2 over values of one key and draw AIR and SIR against it.

    python tools/sweep_net.py --config-file configs/emoji/acd_rop.yaml --over ACD.ALPHA 0 1 2 3 4 5 [KEY VALUE …]

Writes sweep_KEY.png, .pdf, .json and .csv (docs/reporting.md).
"""

from __future__ import annotations

import argparse

import _bootstrap

from d3still.errors import UserError
from d3still.files import user_path
from d3still.reporting.words import is_key, is_whole_number, split_words
from d3still.text import visible

SOME_FAILED = 1  # exit status when values or seeds are missing from the figure


def parse() -> tuple[argparse.Namespace, list[str]]:
    """The command line, and its KEY VALUE settings, wherever they stand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", "--cfg", required=True, help="a stage-2 YAML file")
    parser.add_argument("--over", nargs="+", required=True, metavar=("KEY", "VALUE"), help="the key and its values")
    parser.add_argument("--seeds", nargs="+", default=["2024"], help="a run of each value for every seed")
    parser.add_argument("--out", type=user_path, help="where to write (default: sweep/ in the experiment's folder)")
    parser.add_argument("--dry-run", action="store_true", help="list the runs and what is finished, and stop")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings over the file's, for all stages")
    args = parser.parse_intermixed_args()
    args.key, *values = args.over
    args.values, settings = split_words(values, lambda word: not is_key(word))
    args.seeds, more = split_words(args.seeds, is_whole_number)
    if not args.values:
        raise UserError(f"--over {args.key} needs values, e.g. --over ACD.ALPHA 0 1 2 3 4 5")
    return args, [*args.opts, *settings, *more]


def main() -> int:
    """Train what is missing, draw, write; the exit status."""
    args, settings = parse()

    from d3still.engine.events import logging_to
    from d3still.plans.execute import carry_out, plan_text
    from d3still.plans.sweep import plan_sweep
    from d3still.plans.training import Training
    from d3still.reporting import sweep as sweeps
    from d3still.reporting.outputs import write_files

    training = Training()
    with logging_to(None):
        plan = plan_sweep(args.config_file, args.key, args.values, [int(seed) for seed in args.seeds], settings)
        if args.dry_run:
            print(plan_text(plan.all_runs, training), end="")
            return 0
        outcomes = carry_out(plan.all_runs, training)
        sweep = sweeps.read_sweep(plan, {outcome.planned.folder for outcome in outcomes if outcome.usable})
    out = args.out or plan.folder
    stem = f"sweep_{args.key}"
    paths = sweeps.save_figure(sweeps.sweep_figure(sweep), out, stem)
    write_files(out, {f"{stem}.json": sweeps.sweep_json(sweep), f"{stem}.csv": sweeps.sweep_csv(sweep)})
    print(sweeps.sweep_text(sweep))
    print("\n".join(map(visible, paths)))
    return 0 if all(outcome.usable for outcome in outcomes) else SOME_FAILED


if __name__ == "__main__":
    _bootstrap.run(main)
