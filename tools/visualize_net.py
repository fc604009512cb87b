"""Draw queries beside what a run ranked for them.

python tools/visualize_net.py --config-file configs/emoji/acd_rop.yaml --worst 5 [KEY VALUE …]
python tools/visualize_net.py --config-file configs/emoji/acd_rop.yaml --most-improved 5
python tools/visualize_net.py --config-file configs/emoji/acd_rop.yaml --queries 1f600_c002_twemoji.webp
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import _bootstrap

from d3still.config import load_config, run_dir, weight_path
from d3still.errors import UserError
from d3still.files import user_path
from d3still.reporting.words import count, is_key, split_words
from d3still.runs.facts import stage_of
from d3still.text import visible

if TYPE_CHECKING:
    from d3still.runs.finished import Run

SHOWN = 5  # queries, where the command does not say


def parse() -> tuple[argparse.Namespace, list[str]]:
    """The command line, and its KEY VALUE settings, wherever they stand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", "--cfg", required=True, help="the run's YAML file")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--queries", nargs="+", metavar="FILE", help="these queries, by file name or path")
    which.add_argument(
        "--worst", type=count, metavar="N", default=SHOWN, help="the N of lowest AP (default, with N = %(default)s)"
    )
    which.add_argument("--most-improved", type=count, metavar="N", help="the N whose AP rose most over another run")
    which.add_argument("--most-harmed", type=count, metavar="N", help="the N whose AP fell most")
    over = "that other run (default: the stage-1 run ACD started from)"
    parser.add_argument("--over", type=user_path, metavar="FOLDER", help=over)
    parser.add_argument("--protocol", choices=("AIR", "SIR"), default="AIR", help="by which network queries are seen")
    parser.add_argument("--topk", type=count, default=10, help="gallery images of a list")
    parser.add_argument("--out", type=user_path, help="the picture's file (default: pictures/ in the run's folder)")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings over the file's")
    args = parser.parse_intermixed_args()
    args.queries, more = split_words(args.queries or [], lambda word: not is_key(word))
    return args, [*args.opts, *more]


def main() -> None:
    """Embed, rank, choose, draw."""
    args, settings = parse()

    from d3still.engine.events import logging_to
    from d3still.engine.finished_run import embed
    from d3still.evaluation.lists import rank, with_excluded
    from d3still.reporting.choose import choose
    from d3still.reporting.pictures import ranked_list_picture, save_picture
    from d3still.runs.finished import read_run

    cfg = load_config(args.config_file, settings)
    rules = {"metric": cfg.TEST.TEST_METRIC, "exclude_same_camera": cfg.TEST.EXCLUDE_SAME_CAMERA}

    def other() -> Run:
        if args.over or stage_of(cfg) == 2:
            return read_run(args.over or weight_path(cfg, cfg.DISTILLER.STUDENT_PRETRAIN_PATH).parent)
        raise UserError("this config is not of stage 2, so name the run to compare with: --over FOLDER")

    with logging_to(None):
        embedded = embed(cfg, args.protocol)
        ranking = rank(embedded, **rules, topk=args.topk)
        choice = choose(ranking, args.protocol, other, args.queries, args.most_improved, args.most_harmed, args.worst)
        lists = [ranking.of(i) for i in choice.places]
        if cfg.TEST.EXCLUDE_SAME_CAMERA:
            pairs = zip(lists, choice.places, strict=True)
            lists = [with_excluded(shown, i, embedded, cfg.TEST.TEST_METRIC) for shown, i in pairs]
        run = f"{cfg.OUTPUT_DIR.EXPERIMENT_NAME}, seed {cfg.SOLVER.SEED}, {args.protocol}"
        title = f"{run}: {choice.what} queries"
        picture = ranked_list_picture(lists, embedded.query_size, title, max_pixels=cfg.DATALOADER.MAX_PIXELS)
    name = f"{args.protocol}_{choice.what.replace(' ', '_')}.png"
    out = args.out or run_dir(cfg) / "pictures" / name
    save_picture(picture, out)
    for i, shown in zip(choice.places, lists, strict=True):
        change = "" if choice.gains is None else f" ({100 * choice.gains[i]:+.2f})"
        print(f"{100 * shown.ap:6.2f} % AP{change}  {visible(shown.query.path)}")
    print(visible(out))


if __name__ == "__main__":
    _bootstrap.run(main)
