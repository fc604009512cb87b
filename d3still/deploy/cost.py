"""What a network costs, query and gallery side by side: that ratio is the reason for asymmetric retrieval."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from d3still.deploy.description import CLASSIFIER, PARTS
from d3still.deploy.network_files import open_networks
from d3still.modeling import RetrievalModel

WARM_UP = 2  # forward passes before the clock starts
PASSES, SECONDS = 50, 3.0  # the fastest of so many passes, or of those that fit in the time
_FLOPS_PER_MULTIPLY_ADD = 2
_MEGA, _GIGA = 1e6, 1e9


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
