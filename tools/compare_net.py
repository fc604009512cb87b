"""Compare baselines with and without ACD: train what is missing, print the table, write the report.

    python tools/compare_net.py configs/emoji/*.yaml --seeds 2024 2025 2026 [KEY VALUE …]
    python tools/compare_net.py --from log/

Writes table.md, table.tex, table.csv, comparison.json and report.html (docs/reporting.md).
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import _bootstrap

from d3still.config import Config, load_config, user_code
from d3still.errors import UserError
from d3still.files import user_path
from d3still.plans.plan import CONFIG_SUFFIXES, Planner
from d3still.reporting.words import count, is_whole_number, split_words
from d3still.runs.facts import ACD, BASELINE, VARIANTS
from d3still.text import visible

if TYPE_CHECKING:
    from d3still.evaluation.lists import Embedded
    from d3still.runs.finished import Run

SOME_FAILED = 1  # exit status when the table lacks runs


def parse() -> tuple[argparse.Namespace, list[str]]:
    """The command line, and its KEY VALUE settings, wherever they stand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="CONFIG", help="config files or folders of them; then KEY VALUE …")
    parser.add_argument("--seeds", nargs="+", default=["2024"], help="a run of each stage for every seed")
    parser.add_argument("--variants", nargs="+", default=[BASELINE, ACD], help=f"any of {', '.join(VARIANTS)}")
    parser.add_argument("--uniform-lr", type=float, help="the rate of acd_uniform (default: BASE_LR · γ)")
    parser.add_argument(
        "--from", dest="log", type=user_path, help="compare the finished runs below a folder; nothing is trained"
    )
    parser.add_argument("--trust", action="store_true", help="run the code that runs below --from FOLDER import")
    parser.add_argument("--out", type=user_path, help="where to write (default: compare/ in the folder of the runs)")
    parser.add_argument(
        "--queries",
        type=partial(count, least=0),
        nargs=1,
        default=[],
        help="improved and harmed queries to show each",
    )
    parser.add_argument("--dry-run", action="store_true", help="list the runs and what is finished, and stop")
    args = parser.parse_intermixed_args()
    args.configs, settings = split_words(args.words, lambda w: Path(w).is_dir() or w.endswith(CONFIG_SUFFIXES))
    args.seeds, more = split_words(args.seeds, is_whole_number)
    args.variants, last = split_words(args.variants, lambda word: "." not in word)
    if bool(args.configs) == bool(args.log):
        raise UserError("give either config files or --from FOLDER, the folder that holds the runs")
    return args, [*settings, *more, *last]


def config_of(run: Run, settings: list[str], trusted: bool) -> Config:
    """The config of a run that may be somebody else's.

    Raises:
        UserError: when it imports code that nobody vouched for.
    """
    file = run.folder / "config.yaml"
    code = user_code(file)
    if code and not trusted:
        raise UserError(f"{file} imports {', '.join(code)}, which would run that code; if you trust it, give --trust")
    return load_config(file, ["OUTPUT_DIR.ROOT_PATH", str(run.root), *settings])


def main() -> int:
    """Train, compare, write; the exit status."""
    args, settings = parse()

    from d3still.engine.events import logging_to
    from d3still.engine.finished_run import embed
    from d3still.plans.execute import carry_out, plan_text
    from d3still.plans.training import Training
    from d3still.reporting.comparison import compare
    from d3still.reporting.outputs import REPORT, write_comparison
    from d3still.reporting.stored import kept_lists
    from d3still.runs.finished import find_runs, read_runs

    training = Training()
    planned: dict[Path, Config] = {}
    with logging_to(None):
        if args.log:
            runs, notes = find_runs(args.log)
            root = args.log
        else:
            planner = Planner(args.configs, settings)
            planner.add_all([int(seed) for seed in args.seeds], args.variants, args.uniform_lr)
            if args.dry_run:
                print(plan_text(planner.runs, training), end="")
                return 0
            outcomes = carry_out(planner.runs, training)
            planned = {outcome.planned.folder: outcome.planned.cfg for outcome in outcomes if outcome.usable}
            runs, notes = read_runs(planned)
            notes += [f"{o.planned.name} {o.state}: {o.reason}" for o in outcomes if not o.usable]
            root = user_path(planner.runs[0].cfg.OUTPUT_DIR.ROOT_PATH)

        def embed_run(run: Run) -> Embedded:
            return embed(planned.get(run.folder) or config_of(run, settings, args.trust), "AIR")

        comparison = compare(runs, notes)
        if not comparison.rows:
            raise UserError("no run of stage 1 or 2 is finished, so there is nothing to compare")
        out = args.out or root / "compare"
        print(write_comparison(comparison, out, partial(kept_lists, embed_run), *args.queries))
    print(visible(out / REPORT))
    return SOME_FAILED if not args.log and notes else 0


if __name__ == "__main__":
    _bootstrap.run(main)
