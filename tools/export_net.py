"""Export a trained network: python tools/export_net.py --weights log/…/last.pth --part query --format onnx

Beside the file goes a model card, FILE.json. The costs of the query and the gallery network are printed side by
side: that ratio is the reason for asymmetric retrieval.
"""

from __future__ import annotations

import argparse
from typing import Any

import _bootstrap

from d3still.config import load_config
from d3still.files import user_path
from d3still.text import visible

PARTS, FORMATS = ("query", "gallery"), ("onnx", "safetensors")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, type=user_path, help="a run's last.pth, or a published weight file")
    parser.add_argument("--part", choices=PARTS, help="which network; left out: query where the file holds one")
    parser.add_argument("--format", choices=FORMATS, default="onnx")
    out = "a file, or a folder for PART.FORMAT; left out: beside the weights"
    parser.add_argument("--out", type=user_path, help=out)
    parser.add_argument("--config-file", "--cfg", help="the YAML file of published weights, which carry no config")
    switch: dict[str, Any] = {"action": argparse.BooleanOptionalAction, "default": True}
    parser.add_argument("--normalize", **switch, help="ONNX: take uint8 pixels and normalise them inside the graph")
    parser.add_argument("--l2", **switch, help="ONNX: divide features by their length inside the graph")
    parser.add_argument("--fixed-size", action="store_true", help="ONNX: fix height and width (always so for Swin)")
    parser.add_argument("--with-resize", action="store_true", help="ONNX: take images of any size; resize in the graph")
    parser.add_argument("--quantize", choices=("int8",), help="ONNX: 8 bits; the loss is measured and in the card")
    parser.add_argument("--calibration", help="images for that: a folder or CSV; left out: the run's training images")
    parser.add_argument("--accept-loss", action="store_true", help="write it whatever its cosine to float32")
    parser.add_argument("--costs", **switch, help="print what both networks cost")
    return parser.parse_args()


def main() -> None:
    """Export, then say what was written and what it costs."""
    args = parse()
    from d3still.deploy import cost_table, costs, export_network
    from d3still.engine.events import logging_to

    config = load_config(args.config_file) if args.config_file else None
    with logging_to(None):
        done = export_network(
            args.weights,
            args.part,
            args.format,
            args.out,
            normalize=args.normalize,
            l2=args.l2,
            fixed_size=args.fixed_size,
            with_resize=args.with_resize,
            quantize=args.quantize,
            calibration=args.calibration,
            accept_loss=args.accept_loss,
            config=config,
        )
        size = f"{done.card['bytes'] / 1e6:.1f} MB"
        print(visible(f"{done.path}: {done.card['name']}, {size}; model card {done.card_path}"))
        if "differences" in done.card["graph"]:
            found = done.card["graph"]["differences"]
            print(f"checked: onnxruntime differs from PyTorch by at most {max(found.values()):.1e}")
            print(f"         (images × height × width: {'; '.join(found)})")
        if "quantized" in done.card["graph"]:
            found = done.card["graph"]["quantized"]
            smaller = found["bytes_float32"] / done.card["bytes"]
            print(f"int8 ({found['way']}): mean cosine {found['mean_cosine']} to float32, {smaller:.1f} times smaller,")
            print(f"      {found['milliseconds']} ms an image instead of {found['milliseconds_float32']} ms")
            command = f"python tools/test_net.py --config-file … --query-onnx {done.path}"
            print("      what it costs in mAP:", visible(command))
        if args.costs:
            print(cost_table(costs(args.weights, args.part, config)))


if __name__ == "__main__":
    _bootstrap.run(main)
