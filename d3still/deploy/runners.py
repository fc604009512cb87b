"""Running a network on pixels, by PyTorch or an exported one by onnxruntime, and what that costs.

Query and gallery network side by side: the ratio of their costs is the reason for asymmetric retrieval.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from d3still.data import ImageBatch, Normalizer
from d3still.deploy.network_files import CLASSIFIER, PARTS, Description, open_networks, read_description, weights_hash
from d3still.errors import UserError, require
from d3still.files import require_regular
from d3still.modeling import RetrievalModel
from d3still.modeling.inference import exact_inference
from d3still.modeling.out_of_memory import InParts

Runner = Callable[[Tensor], Tensor]
"""uint8 pixels (B, 3, height, width) on the CPU → L2-normalised features (B, D) on the CPU."""

NORMALIZE_KEY, L2_KEY, RESIZE_KEY = "normalize", "l2", "resize"
"""Metadata of an ONNX file, "true" or "false": what its graph does itself."""
_SEAL_KEY = "sha256"
_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")  # the first that onnxruntime has
PIXEL_RANGE = 255
WARM_UP = 2  # forward passes before the clock starts
PASSES, SECONDS = 50, 3.0  # the fastest of so many passes, or of those that fit in the time
_FLOPS_PER_MULTIPLY_ADD = 2
_MEGA, _GIGA = 1e6, 1e9


class EmbeddingGraph(nn.Module):
    """Features of a batch of images, and nothing else.

    Args:
        network: a trained network; it is put into eval mode.
        description: its own.
        normalize: take uint8 pixels and normalise them here, as `d3still.data.Normalizer` does; otherwise
            take normalised float images.
        l2: divide each feature by its length.
        resize: take images of any one size and resize them here, as `d3still.data.transforms.resize` does.
    """

    def __init__(
        self, network: RetrievalModel, description: Description, normalize: bool, l2: bool, resize: bool = False
    ) -> None:
        super().__init__()
        self.network, self.normalize, self.l2 = network.eval(), normalize, l2
        self.size = description.size if resize else None
        self.mirrored = description.mirrored
        mean, std = (
            torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)
            for values in (description.mean, description.std)
        )
        self.register_buffer("scale", (1 / (PIXEL_RANGE * std)).float())
        self.register_buffer("offset", (mean / std).float())

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), uint8 0 … 255 or normalised float32 → (B, D) float32."""
        if self.size:
            images = F.interpolate(images.to(torch.float32), size=self.size, mode="bilinear", antialias=True)
            images = images.round().clamp(0, PIXEL_RANGE)
        if self.normalize:
            images = images.to(torch.float32) * self.scale - self.offset
        features = self.network(images).retrieval_feat
        if self.mirrored:
            features = features + self.network(images.flip(3)).retrieval_feat
        return F.normalize(features) if self.l2 else features


def _normalizing(description: Description) -> Callable[[Tensor], Tensor]:
    """Pixels to normalised images, as training and testing do it."""
    normalizer = Normalizer(description.mean, description.std)

    def normalize(pixels: Tensor) -> Tensor:
        nothing = torch.zeros(len(pixels), 4, dtype=torch.int64, device=pixels.device)  # no box, no label, no index
        return normalizer(ImageBatch(pixels, nothing, nothing[:, 0], nothing[:, 0]))

    return normalize


def torch_runner(network: RetrievalModel, description: Description, device: torch.device) -> Runner:
    """A runner over a network on ``device``: in the arithmetic of evaluation, and in parts where the memory ends."""
    graph = EmbeddingGraph(network, description, normalize=False, l2=True)
    graph.to(device, memory_format=torch.channels_last)
    normalize = _normalizing(description)

    def embed(part: Tensor) -> Tensor:
        return graph(normalize(part.to(device, non_blocking=True))).cpu()

    embed_in_parts = InParts(embed, "the batch size")

    def run(pixels: Tensor) -> Tensor:
        with exact_inference(graph):
            return embed_in_parts(pixels)

    return run


def onnx_runner(path: Path, part: str | None) -> tuple[Runner, Description]:
    """A runner over an exported file, whatever its graph does itself, and the network's description.

    Raises:
        UserError: the file is missing, damaged, another part's or not from this package, or see `onnx_graph`.
    """
    content = _content(path)
    if not _is_whole(content):  # onnxruntime itself notices no changed weight
        raise UserError(
            f"{path}: is no ONNX file of tools/export_net.py, or damaged or changed since; export it again"
        )
    graph, metadata = onnx_graph(content, path)
    description = read_description(path, metadata, part)
    normalize = _normalizing(description)
    normalizes, scales = (json.loads(metadata.get(key, "false")) for key in (NORMALIZE_KEY, L2_KEY))

    def run(pixels: Tensor) -> Tensor:
        images = pixels if normalizes else normalize(pixels)
        features = torch.from_numpy(graph(images.contiguous().numpy()))
        return features if scales else F.normalize(features)

    return run, description


class OnnxNetwork(nn.Module):
    """An exported query network in the place of its original, for the evaluation of a run.

    Args:
        path: the ONNX file.
        gallery: the run's gallery network, which the file must belong with.

    Raises:
        UserError: as of `onnx_runner`; or it belongs with another gallery network.
    """

    def __init__(self, path: Path, gallery: nn.Module) -> None:
        super().__init__()
        self._run, self.description = onnx_runner(path, None)
        if weights_hash(gallery.state_dict()) not in self.description.networks.values():
            raise UserError(f"{path}: belongs with another gallery network; export the query network of this run")
        self.feature_width = self.description.feature_width

    def forward(self, images: Tensor) -> SimpleNamespace:
        """(B, 3, H, W), normalised → an object with ``retrieval_feat`` (B, D), of length 1."""
        mean, std = (
            torch.tensor(values, device=images.device).view(1, -1, 1, 1)
            for values in (self.description.mean, self.description.std)
        )
        pixels = ((images * std + mean) * PIXEL_RANGE).round().clamp(0, PIXEL_RANGE).to(torch.uint8)
        return SimpleNamespace(retrieval_feat=self._run(pixels.cpu()).to(images.device))


def onnx_graph(
    content: bytes, name: object = "the exported graph"
) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, str]]:
    """An ONNX file of one input and one output as a function, on the GPU where onnxruntime has one, and its metadata.

    Raises:
        UserError: the content is damaged (``name`` says whose it is), or onnxruntime is not installed.
    """
    runtime = require("onnxruntime", "running an ONNX file")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # one setting for both, also OMP_NUM_THREADS
    usable = [provider for provider in _PROVIDERS if provider in runtime.get_available_providers()]
    try:
        session = runtime.InferenceSession(content, options, providers=usable)
    except Exception as error:  # onnxruntime's errors have no common base but this
        raise UserError(f"{name}: is no ONNX file, or a damaged one ({' '.join(str(error).split())})") from error
    (taken,) = session.get_inputs()
    return lambda images: session.run(None, {taken.name: images})[0], session.get_modelmeta().custom_metadata_map


def sealed(content: bytes) -> bytes:
    """An ONNX file with its own SHA-256 as one more entry of its metadata, at its end.

    A protocol buffer may be continued: the entry is ``ModelProto.metadata_props``, field 14, of a key and a value.
    """
    key, value = _SEAL_KEY.encode(), hashlib.sha256(content).hexdigest().encode()
    entry = bytes([1 << 3 | 2, len(key)]) + key + bytes([2 << 3 | 2, len(value)]) + value
    return content + bytes([14 << 3 | 2, len(entry)]) + entry


def _is_whole(content: bytes) -> bool:
    """Whether a file ends in its own seal."""
    length = len(sealed(b""))
    return sealed(content[:-length]) == content


def _content(path: Path) -> bytes:
    try:
        require_regular(path)
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such ONNX file; make it with tools/export_net.py") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


@dataclass(frozen=True)
class Cost:
    """One network's cost on one image of its own size, on the CPU.

    Attributes:
        network: its name.
        size: height and width of its input.
        parameters: numbers learned, the classifier apart.
        bytes: what they take as float32, with batch-norm statistics.
        multiply_adds: of one forward pass.
        milliseconds: time of one forward pass, the fastest of several: what it takes undisturbed.
    """

    network: str
    size: tuple[int, int]
    parameters: int
    bytes: int
    multiply_adds: int
    milliseconds: float


def measure_cost(network: RetrievalModel, size: tuple[int, int]) -> Cost:
    """Cost of embedding one image with ``network``, which is on the CPU and in eval mode."""
    image = torch.zeros(1, 3, *size).contiguous(memory_format=torch.channels_last)
    network = network.to(memory_format=torch.channels_last)
    state = network.state_dict()
    numbers = {key: state[key].numel() for key in state if state[key].is_floating_point() and key != CLASSIFIER}
    learned = {key for key, _ in network.named_parameters()}
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            network(image)
        for _ in range(WARM_UP):
            network(image)
        times, stop = [], time.perf_counter() + SECONDS
        while len(times) < PASSES and (not times or time.perf_counter() < stop):
            began = time.perf_counter()
            network(image)
            times.append(time.perf_counter() - began)
    return Cost(
        network=network.name,
        size=size,
        parameters=sum(count for key, count in numbers.items() if key in learned),
        bytes=4 * sum(numbers.values()),
        multiply_adds=counter.get_total_flops() // _FLOPS_PER_MULTIPLY_ADD,
        milliseconds=1000 * min(times),
    )


def costs(weights: str | Path, part: str | None = None, config: Mapping[str, Any] | None = None) -> dict[str, Cost]:
    """Part → cost of every network in a weight file; arguments and errors as of `open_networks`."""
    networks = open_networks(weights, part, config)
    return {name: measure_cost(network, described.size) for name, (network, described) in networks.items()}


def cost_table(found: Mapping[str, Cost]) -> str:
    """The costs as text, a column a network, and how many times the gallery network's is the query network's."""
    rows = [
        ("network", [cost.network for cost in found.values()], None),
        ("input", [f"{cost.size[0]} × {cost.size[1]}" for cost in found.values()], None),
        ("parameters", [f"{cost.parameters / _MEGA:.2f} M" for cost in found.values()], "parameters"),
        ("weights, float32", [f"{cost.bytes / _MEGA:.1f} MB" for cost in found.values()], "bytes"),
        ("multiply-adds", [f"{cost.multiply_adds / _GIGA:.3f} G" for cost in found.values()], "multiply_adds"),
        ("one image", [f"{cost.milliseconds:.1f} ms" for cost in found.values()], "milliseconds"),
    ]
    both = len(found) == len(PARTS)
    lines = [f"{'':18}" + "".join(f"{part:>28}" for part in found) + (f"{'ratio':>10}" if both else "")]
    for title, texts, attribute in rows:
        line = f"{title:18}" + "".join(f"{text:>28}" for text in texts)
        if both and attribute:
            query, gallery = (getattr(found[part], attribute) for part in PARTS)
            line += f"{gallery / query:9.1f}×"
        lines.append(line)
    return "\n".join([*lines, f"(PyTorch on the CPU, {torch.get_num_threads()} threads)"])
