"""Draw queries beside what a run ranked for them.

python tools/visualize_net.py --config-file configs/emoji/acd_rop.yaml --worst 5 [KEY VALUE …]
python tools/visualize_net.py --config-file configs/emoji/acd_rop.yaml --most-improved 5
python tools/visualize_net.py --config-file configs/emoji/acd_rop.yaml --queries 1f600_c002_twemoji.webp
"""

from __future__ import annotations

import argparse
from pathlib import Path

import _bootstrap
from _features import embed
from PIL import Image

from d3still.config import load_config, run_dir, weight_path
from d3still.engine.events import logging_to
from d3still.errors import UserError
from d3still.reporting.choose import by_name, gains_over
from d3still.reporting.lists import most_changed, rank, with_excluded, worst
from d3still.reporting.pictures import ranked_list_picture
from d3still.reporting.runs import read_run

SHOWN = 5  # queries, where the command does not say


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", "--cfg", required=True, help="the run's YAML file")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--queries", nargs="+", metavar="FILE", help="these queries, by file name or path")
    which.add_argument("--worst", type=int, metavar="N", help=f"the N of lowest AP (default, with N = {SHOWN})")
    which.add_argument("--most-improved", type=int, metavar="N", help="the N whose AP rose most over another run")
    which.add_argument("--most-harmed", type=int, metavar="N", help="the N whose AP fell most")
    parser.add_argument("--over", metavar="FOLDER", help="that other run (default: the stage-1 run ACD started from)")
    parser.add_argument("--protocol", choices=("AIR", "SIR"), default="AIR", help="by which network queries are seen")
    parser.add_argument("--topk", type=int, default=10, help="gallery images of a list")
    parser.add_argument("--out", help="the picture's file (default: pictures/ in the run's folder)")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings over the file's")
    args = parser.parse_intermixed_args()
    return args


def main() -> None:
    """Embed, rank, choose, draw."""
    args = parse()
    with logging_to(None):
        cfg = load_config(args.config_file, args.opts)
        embedded = embed(cfg, args.protocol)
        test = cfg.TEST
        ranking = rank(embedded, test.TEST_METRIC, test.EXCLUDE_SAME_CAMERA, args.topk)
    gains = None
    if args.queries:
        what, chosen = "chosen", by_name(args.queries, embedded.query)
    elif args.most_improved is not None or args.most_harmed is not None:
        folder = Path(args.over) if args.over else weight_path(cfg, cfg.DISTILLER.STUDENT_PRETRAIN_PATH).parent
        gains = gains_over(read_run(folder), embedded.query, ranking.ap, args.protocol)
        improved, harmed = most_changed(gains, args.most_improved or args.most_harmed)
        what, chosen = ("most_improved", improved) if args.most_improved else ("most_harmed", harmed)
    else:
        what, chosen = "worst", worst(ranking.ap, SHOWN if args.worst is None else args.worst)
    if not chosen:
        raise UserError(f"no query is {what.replace('_', ' ')}, so there is nothing to draw")
    lists = [ranking.of(i) for i in chosen]
    if test.EXCLUDE_SAME_CAMERA:
        lists = [with_excluded(shown, i, embedded, test.TEST_METRIC) for shown, i in zip(lists, chosen, strict=True)]
    title = (
        f"{cfg.OUTPUT_DIR.EXPERIMENT_NAME}, seed {cfg.SOLVER.SEED}, {args.protocol}: {what.replace('_', ' ')} queries"
    )
    out = Path(args.out) if args.out else run_dir(cfg) / "pictures" / f"{args.protocol}_{what}.png"
    out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ranked_list_picture(lists, embedded.query_size, title)).save(out)
    for i, shown in zip(chosen, lists, strict=True):
        change = "" if gains is None else f" ({100 * gains[i]:+.2f})"
        print(f"{100 * shown.ap:6.2f} % AP{change}  {shown.query.path}")
    print(out)


if __name__ == "__main__":
    _bootstrap.run(main)
