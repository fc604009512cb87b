"""An exported network with weights and activations of 8 bits: smaller and faster, at a loss that is measured.

Which way of quantising loses least depends on the network: per-channel weights, which should be the finer way, are
known to go wrong on MobileNetV3 (onnxruntime#11415), and a bad calibration can make features collapse. So the few
sound ways are tried, and that whose features stay nearest to float32's on images that did not calibrate is taken.
"""

from __future__ import annotations

import io
import logging
import tempfile
import timeit
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from d3still.data import ImageError, read_image
from d3still.data.transforms import resize
from d3still.deploy.listing import list_images, run_dataset
from d3still.deploy.network_files import Description
from d3still.deploy.runners import onnx_graph
from d3still.errors import UserError, require

logger = logging.getLogger(__name__)

CALIBRATED_ON, COMPARED_ON = 128, 128  # images
LEAST_COSINE = 0.95  # mean; below it no file is written unless it is asked for
WAYS = ((False, "MinMax"), (True, "MinMax"), (False, "Percentile"))
"""Per channel or per tensor, and how the range of activations is chosen."""
_QUANTISED = ("Conv", "MatMul", "Gemm")
_TIMES = 20  # forward passes; the fastest counts
_BATCH = 16

Images = str | Path | Iterable[Any] | None


def quantised(
    content: bytes, given: str, description: Description, images: Images, accept_loss: bool
) -> tuple[bytes, dict[str, Any]]:
    """The best int8 form of an ONNX graph that takes uint8 pixels, and what its card says of it.

    Args:
        content: the graph in float32.
        given: its input's name.
        description: its network's.
        images: that calibrate it and that it is compared on, half of them each; None = the training images of
            the run's dataset.
        accept_loss: give it whatever its cosine to float32.

    Raises:
        UserError: there are too few images, or the mean cosine to float32 is below `LEAST_COSINE`.
    """
    pixels = _pixels(description, images)
    calibrating, comparing = (np.ascontiguousarray(pixels[start::2]) for start in (0, 1))
    expected = _features(content, comparing)
    tried = []
    for per_channel, method in WAYS:
        found = _quantised(content, given, calibrating, per_channel, method)
        cosines = (_features(found, comparing) * expected).sum(1)
        way = f"{'per channel' if per_channel else 'per tensor'}, {method}"
        logger.info("int8, %s: mean cosine to float32 %.4f, least %.4f", way, cosines.mean(), cosines.min())
        tried.append((float(cosines.mean()), found, way, cosines))
    mean, found, way, cosines = max(tried, key=itemgetter(0))
    if not (mean >= LEAST_COSINE or accept_loss):  # also for NaN
        raise UserError(
            f"the int8 {description} has a mean cosine of {mean:.3f} to its float32 form, below {LEAST_COSINE}; "
            "nothing was written. Calibrate it with images like those it will see (--calibration), or take it as it "
            "is with --accept-loss"
        )
    return found, {
        "type": "int8",
        "way": way,
        "calibrated_on": len(calibrating),
        "compared_on": len(comparing),
        "mean_cosine": round(mean, 5),
        "least_cosine": round(float(cosines.min()), 5),
        "bytes_float32": len(content),
        "milliseconds": round(_milliseconds(found, comparing[:1]), 2),
        "milliseconds_float32": round(_milliseconds(content, comparing[:1]), 2),
    }


def _pixels(description: Description, images: Images) -> np.ndarray:
    """(N, 3, height, width) of evenly spread images that can be read, uint8."""
    listed = list_images(run_dataset(description).train if images is None else images)
    wanted = CALIBRATED_ON + COMPARED_ON
    chosen = listed[:: max(1, len(listed) // wanted)][:wanted]
    found = []
    for image in chosen:
        try:
            found.append(resize(read_image(image.path, image.box, description.max_pixels), description.size))
        except ImageError as error:
            logger.warning("left out: %s", error)
    if len(found) < 2:
        raise UserError(f"int8 is calibrated on at least two images, not {len(found)}; name more with --calibration")
    return torch.stack(found).contiguous().numpy()  # an image read has its channels last in memory


def _quantised(content: bytes, given: str, pixels: np.ndarray, per_channel: bool, method: str) -> bytes:
    quantization = require("onnxruntime.quantization", "quantising")
    inputs = ({given: image[None]} for image in pixels)
    with tempfile.TemporaryDirectory() as folder, quiet():
        source, target = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(content)
        quantization.quantize_static(
            source,
            target,
            SimpleNamespace(get_next=lambda: next(inputs, None)),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=list(_QUANTISED),
            per_channel=per_channel,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod[method],
        )
        return target.read_bytes()


def _features(content: bytes, pixels: np.ndarray) -> np.ndarray:
    """(N, D), of length 1."""
    graph, _ = onnx_graph(content)
    parts = [graph(pixels[start : start + _BATCH]) for start in range(0, len(pixels), _BATCH)]
    return F.normalize(torch.from_numpy(np.concatenate(parts))).numpy()


def _milliseconds(content: bytes, pixels: np.ndarray) -> float:
    graph, _ = onnx_graph(content)
    return 1000 * min(timeit.repeat(lambda: graph(pixels), number=1, repeat=_TIMES))


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Without what onnx's packages print and advise, which no user can follow: on the root logger and these."""
    levels = {logger: logger.level for logger in map(logging.getLogger, ("root", *names))}
    handlers = list(logging.root.handlers)
    for quieted in levels:
        quieted.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        for quieted, level in levels.items():
            quieted.setLevel(level)
        logging.root.handlers = handlers  # onnxruntime adds one of its own, and all would be said twice
