"""Writing a trained network for other programs: ONNX that has checked itself, or safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from d3still import __version__
from d3still.deploy.description import COLOUR_RULE, RESIZE_RULE, Description
from d3still.deploy.extras import require
from d3still.deploy.graph import EmbeddingGraph
from d3still.deploy.network_files import METADATA_KEY, ONNX, SAFETENSORS, open_network
from d3still.deploy.onnx_graph import checked_differences, onnx_bytes
from d3still.errors import UserError
from d3still.files import write_atomically, write_text

FORMATS = ("onnx", "safetensors")
_SUFFIX = {"onnx": ONNX, "safetensors": SAFETENSORS}


@dataclass(frozen=True)
class Export:
    """What an export wrote.

    Attributes:
        path: the network's file.
        card_path: the model card beside it.
        card: its content.
    """

    path: Path
    card_path: Path
    card: dict[str, Any]


def export_network(
    weights: str | Path,
    part: str | None = "query",
    format: str = "onnx",
    out: str | Path | None = None,
    *,
    normalize: bool = True,
    l2: bool = True,
    fixed_size: bool = False,
    config: Mapping[str, Any] | None = None,
) -> Export:
    """Export one network of a weight file, with a model card beside it.

    Args:
        weights: see `d3still.deploy.network_files.open_network`, as for ``part`` and ``config``.
        part: "query", "gallery", or None: the query network where the file holds one.
        format: "onnx" or "safetensors".
        out: the file to write, or a folder for ``PART.FORMAT``; None = beside the weights.
        normalize: ONNX only: the graph takes uint8 pixels and normalises them; otherwise normalised images.
        l2: ONNX only: the graph divides features by their length.
        fixed_size: ONNX only: height and width are fixed too. Swin's always are.

    Raises:
        UserError: the weights cannot be opened, a package is missing, the exported graph differs from the
            network by more than 1e-4, or the file cannot be written. Nothing is written then.
    """
    if format not in FORMATS:
        raise UserError(f"the format '{format}' is not known; choose {' or '.join(FORMATS)}")
    network, description = open_network(weights, part, config)
    path = Path(weights).expanduser().parent if out is None else Path(out).expanduser()
    path = path / f"{description.part}{_SUFFIX[format]}" if path.is_dir() else path
    if path.suffix != _SUFFIX[format]:
        raise UserError(f"{path}: a file of the format {format} must end in {_SUFFIX[format]}; correct --out")
    if format == "onnx":
        graph = EmbeddingGraph(network, description, normalize, l2)
        content, details = onnx_bytes(graph, description, fixed_size)
        details["differences"] = checked_differences(graph, content, description, details)
    else:
        content, details = _safetensors_bytes(network.state_dict(), description), {}
    card = _card(description, format, path, len(content), details)
    card_path = path.with_name(f"{path.name}.json")
    write_atomically(path, lambda file: file.write(content))
    write_text(card_path, json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    return Export(path, card_path, card)


def _safetensors_bytes(state: Mapping[str, Tensor], description: Description) -> bytes:
    safetensors = require("safetensors.torch", "exporting to safetensors")
    metadata = {METADATA_KEY: json.dumps(description.to_dict()), "format": "pt"}
    return safetensors.save({key: value.contiguous() for key, value in state.items()}, metadata=metadata)


def _card(description: Description, format: str, path: Path, size: int, details: dict[str, Any]) -> dict[str, Any]:
    """The model card: everything that someone needs who has nothing but the two files."""
    height, width = description.size
    return {
        "name": f"{description.network} as {description.part} network",
        "network": description.network,
        "part": description.part,
        "last_stride": description.last_stride,
        "file": path.name,
        "format": format,
        "bytes": size,
        "input": {
            "height": height,
            "width": width,
            "colour": COLOUR_RULE,
            "resize": RESIZE_RULE,
            "normalize": "(pixel / 255 - mean) / std",
            "mean": list(description.mean),
            "std": list(description.std),
            "mirrored_features_added": description.mirrored,
        },
        "graph": details,
        "feature_width": description.feature_width,
        "compare_by": "cosine: the scalar product of features of length 1",
        "weights_sha256": description.weights_hash,
        "belongs_with": {part: hash for part, hash in description.networks.items() if part != description.part},
        "versions": {"d3still": __version__, "torch": torch.__version__},
        "config": description.config,
    }
