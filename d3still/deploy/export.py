"""Writing a trained network for other programs: ONNX that has checked itself, or safetensors."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from d3still import __version__
from d3still.data.transforms import resize
from d3still.deploy.network_files import COLOUR_RULE, METADATA_KEY, RESIZE_RULE, Description, open_network
from d3still.deploy.quantize import quantised, quiet
from d3still.deploy.runners import L2_KEY, NORMALIZE_KEY, RESIZE_KEY, EmbeddingGraph, onnx_graph, sealed
from d3still.errors import UserError, require
from d3still.files import user_path, write_atomically, write_text
from d3still.modeling.swin import SwinModel

FORMATS, QUANTISED = ("onnx", "safetensors"), ("int8",)
CHECK_BATCHES = (1, 3, 14)
TOLERANCE = 1e-4  # largest difference of any number of an L2-normalised feature
OTHER_SIZE = (1.25, 0.75)  # a dynamic graph is also checked at this share of its height and width
RESIZED_FROM, RESIZED_COSINE = (0.7, 1.6, 7.3), 0.9999  # shares of its size that a resizing graph is checked at
OLDEST_TORCH = (2, 6)  # the first whose exporter takes dynamic shapes
SMALLEST_SIDE = 32  # a side for which every backbone's last map still has a pixel
_EXAMPLE_BATCH = 2  # the exporter takes a batch of one for a constant
_EXAMPLE_SIZE = (96, 128)  # and so a last map of one pixel, which a small image would give
_EXPORTER_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir")


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
    with_resize: bool = False,
    quantize: str | None = None,
    calibration: str | Path | Iterable[Any] | None = None,
    accept_loss: bool = False,
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
        with_resize: ONNX only: the graph takes uint8 pixels of any size and resizes them itself, so that who runs
            it need not know how.
        quantize: ONNX only: "int8" makes weights and activations of 8 bits: see `d3still.deploy.quantize`.
        calibration: images for that; None = the training images of the run's dataset.
        accept_loss: write the quantised network whatever its distance from the original.

    Raises:
        UserError: the weights cannot be opened, a package is missing, the exported graph differs from the
            network by more than 1e-4, or the file cannot be written. Nothing is written then.
    """
    if format not in FORMATS:
        raise UserError(f"the format '{format}' is not known; choose {' or '.join(FORMATS)}")
    network, description = open_network(weights, part, config)
    path = user_path(weights).parent if out is None else user_path(out)
    path = path / f"{description.part}.{format}" if path.is_dir() else path
    if path.suffix != f".{format}":
        raise UserError(f"{path}: a file of the format {format} must end in .{format}; correct --out")
    if quantize and (format != "onnx" or quantize not in QUANTISED or not normalize):
        raise UserError(f"--quantize takes {', '.join(QUANTISED)}, for the format onnx and without --no-normalize")
    if format == "onnx":
        if with_resize and (fixed_size or not normalize):
            raise UserError("a graph that resizes takes pixels of any size: leave out --fixed-size and --no-normalize")
        graph = EmbeddingGraph(network, description, normalize, l2, with_resize)
        content, details = onnx_bytes(graph, description, fixed_size)
        details["differences"] = checked_differences(graph, content, description, details)
        if quantize:
            given = details["input"]
            content, details["quantized"] = quantised(content, given, description, calibration, accept_loss)
        content = sealed(_with_metadata(content, graph, description))
    else:
        content, details = _safetensors_bytes(network.state_dict(), description), {}
    card = _card(description, format, path, content, details)
    card_path = path.with_name(f"{path.name}.json")
    write_atomically(path, lambda file: file.write(content))
    write_text(card_path, json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    return Export(path, card_path, card)


def _safetensors_bytes(state: Mapping[str, Tensor], description: Description) -> bytes:
    safetensors = require("safetensors.torch", "exporting to safetensors")
    metadata = {METADATA_KEY: json.dumps(description.to_dict()), "format": "pt"}
    return safetensors.save({key: value.contiguous() for key, value in state.items()}, metadata=metadata)


def _card(description: Description, format: str, path: Path, content: bytes, details: dict[str, Any]) -> dict[str, Any]:
    """The model card: everything that someone needs who has nothing but the two files."""
    height, width = description.size
    return {
        "name": f"{description.network} as {description.part} network",
        "network": description.network,
        "part": description.part,
        "last_stride": description.last_stride,
        "file": path.name,
        "format": format,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
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


def onnx_bytes(graph: EmbeddingGraph, description: Description, fixed_size: bool) -> tuple[bytes, dict[str, Any]]:
    """The graph as an ONNX file, and what a reader must know of it.

    The batch is dynamic, and so are height and width unless ``fixed_size``, or for Swin, whose window
    masks are made for one size; a graph that resizes takes any size.

    Raises:
        UserError: when onnx or onnxscript is not installed, or PyTorch is too old.
    """
    for module in ("onnx", "onnxscript"):
        require(module, "exporting to ONNX")
    if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
        wanted = ".".join(map(str, OLDEST_TORCH))
        raise UserError(f"exporting to ONNX needs PyTorch {wanted} or later, not {torch.__version__}; update it")
    fixed = fixed_size or (isinstance(graph.network, SwinModel) and not graph.size)
    axes = {0: "batch"} if fixed else {0: "batch", 2: "height", 3: "width"}
    name = "pixels" if graph.normalize else "images"
    example = _example(graph, _EXAMPLE_BATCH, description.size if fixed else _EXAMPLE_SIZE)
    with warnings.catch_warnings(), quiet(*_EXPORTER_LOGGERS):
        warnings.simplefilter("ignore")  # the exporter's own deprecations, which no user can mend
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            dynamic_shapes=({axis: torch.export.Dim(label) for axis, label in axes.items()},),
            input_names=[name],
            output_names=["features"],
            verbose=False,
        )
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # stack traces, which name folders of this machine
    details = {
        "opset": next(entry.version for entry in model.opset_import if not entry.domain),
        "input": name,
        "input_type": "uint8, RGB, 0 … 255" if graph.normalize else "float32, normalised",
        "input_shape": ["batch", 3, *(description.size if fixed else ("height", "width"))],
        "output": "features",
        "output_shape": ["batch", description.feature_width],
        "resizes": bool(graph.size),
        "normalizes": graph.normalize,
        "l2": graph.l2,
    }
    return model.SerializeToString(), details


def _with_metadata(content: bytes, graph: EmbeddingGraph, description: Description) -> bytes:
    """The file with what `d3still.deploy.runners` must know of it."""
    model = require("onnx", "exporting to ONNX").load_from_string(content)
    metadata = {
        METADATA_KEY: json.dumps(description.to_dict()),
        NORMALIZE_KEY: json.dumps(graph.normalize),
        L2_KEY: json.dumps(graph.l2),
        RESIZE_KEY: json.dumps(bool(graph.size)),
    }
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString()


def checked_differences(
    graph: EmbeddingGraph, content: bytes, description: Description, details: dict[str, Any]
) -> dict[str, float]:
    """Largest difference between onnxruntime and PyTorch, L2-normalised, by "batch × height × width".

    A graph that resizes is also compared, at other sizes, with the resize of testing.

    Raises:
        UserError: when one is larger than `TOLERANCE`, or onnxruntime is not installed.
    """
    exported, _ = onnx_graph(content)
    sizes = [(batch, *description.size) for batch in CHECK_BATCHES]
    if graph.size:
        sizes += [(1, *(int(side * share) for side in description.size)) for share in RESIZED_FROM]
    elif "height" in details["input_shape"]:
        sides = zip(description.size, OTHER_SIZE, strict=True)
        sizes.append((CHECK_BATCHES[1], *(max(SMALLEST_SIDE, int(side * share)) for side, share in sides)))
    found = {}
    for batch, *size in sizes:
        images = _example(graph, batch, tuple(size))
        answer = F.normalize(torch.from_numpy(exported(images.numpy())))
        resized = tuple(size) != description.size and graph.size is not None
        with torch.inference_mode():
            pixels = torch.stack([resize(image, description.size) for image in images]) if resized else images
            expected = F.normalize(graph(pixels))
        difference = float((answer - expected).abs().max())
        cosine = float((answer * expected).sum(1).min())
        found[" × ".join(map(str, (batch, *size)))] = difference
        # a resize may round a pixel to its neighbour, which no tolerance of single numbers allows for
        if not (cosine >= RESIZED_COSINE if resized else difference <= TOLERANCE):  # also for NaN
            raise UserError(
                f"the exported {description} differs from the original by {difference:.1e} (cosine {cosine:.5f}) at "
                f"{batch} images of {size[0]} × {size[1]} (allowed: {TOLERANCE:.0e}, or a cosine of {RESIZED_COSINE} "
                "after a resize); nothing was written. Try other versions of torch, onnxscript and onnxruntime"
            )
    return found


def _example(graph: EmbeddingGraph, batch: int, size: tuple[int, int]) -> Tensor:
    """Random input of the kind that ``graph`` takes; always the same numbers."""
    rng = np.random.default_rng(batch)
    pixels = torch.from_numpy(rng.integers(0, 256, (batch, 3, *size), dtype=np.uint8))
    return pixels if graph.normalize else pixels.float() * graph.scale - graph.offset
