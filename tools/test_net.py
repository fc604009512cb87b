"""Test a run: python tools/test_net.py --config-file configs/emoji/rop.yaml [KEY VALUE …]

Or rank features that any tool made: python tools/test_net.py --features query.npz gallery.npz
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import _bootstrap

from d3still.config import get_cfg, load_config
from d3still.errors import UserError
from d3still.files import user_path

if TYPE_CHECKING:
    from d3still.deploy.runners import OnnxNetwork
    from d3still.engine.finished_run import LoadedRun
    from d3still.evaluation import RankingResult


def rank_files(paths: list[str], opts: list[str]) -> dict[str, RankingResult]:
    """Rank the features of two .npz files; TEST settings may follow as KEY VALUE."""
    from d3still.evaluation import evaluate_ranking, load_features, pair_cameras

    cfg = get_cfg()
    cfg.merge_from_list(opts)
    query, gallery = (load_features(path) for path in paths)
    labels = (query.ids, gallery.ids, *pair_cameras(query, gallery))
    rules = {"metric": cfg.TEST.TEST_METRIC, "exclude_same_camera": cfg.TEST.EXCLUDE_SAME_CAMERA}
    return {"features": evaluate_ranking(query.features, gallery.features, *labels, **rules)}


def table(results: dict[str, RankingResult]) -> str:
    """Results in percent, a row a protocol."""
    first = next(iter(results.values()))
    lines = [f"{'':14}" + "".join(f"{measure:>8}" for measure in first.summary())]
    for name, result in results.items():
        lines.append(f"{name:14}" + "".join(f"{value:8.2f}" for value in result.summary().values()))
    if first.num_unmatched:
        lines.append(
            f"{first.num_unmatched} of {first.num_valid + first.num_unmatched} queries have no match: left out"
        )
    return "\n".join(lines)


def exported(path: Path | None) -> Callable[[LoadedRun], OnnxNetwork] | None:
    """What gives an ONNX file as the query network of a run; None without a file."""
    if path is None:
        return None
    from d3still.deploy.runners import OnnxNetwork

    def opened(run: LoadedRun) -> OnnxNetwork:
        if run.distiller.query is None:
            raise UserError("stage 0 has no query network to put --query-onnx in the place of")
        network = OnnxNetwork(path, run.distiller.gallery)
        if tuple(network.description.size) != tuple(run.data.sizes.query_test):
            raise UserError(f"{path}: takes images of {network.description.size}, the run {run.data.sizes.query_test}")
        return network

    return opened


def main() -> None:
    """Parse the command line, test, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", "--cfg", help="the experiment's YAML file")
    parser.add_argument(
        "--features", nargs=2, metavar=("QUERY", "GALLERY"), help="two .npz files with features, ids, cams"
    )
    parser.add_argument("--query-onnx", type=user_path, metavar="FILE", help="an export to test as the query network")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings over the file's")
    args = parser.parse_intermixed_args()
    if bool(args.config_file) == bool(args.features):
        raise UserError("give either --config-file FILE or --features QUERY.npz GALLERY.npz")
    if args.features:
        results = rank_files(args.features, args.opts)
    else:
        from d3still.engine.finished_run import test

        results = test(load_config(args.config_file, args.opts), exported(args.query_onnx)).results
    if _bootstrap.speaks():
        print(json.dumps({name: r.summary() for name, r in results.items()}) if args.json else table(results))


if __name__ == "__main__":
    _bootstrap.run(main)
