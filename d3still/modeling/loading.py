"""The one door through which weights enter a network: strict, and open about what it leaves out."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.error import URLError

import torch
from torch import Tensor
from torchvision.models import WeightsEnum

from d3still.errors import UserError
from d3still.files import require_regular
from d3still.modeling.base import RetrievalModel
from d3still.modeling.recognition import recognise
from d3still.modeling.torch_file import first_line
from d3still.modeling.weight_files import Weights, read_weights, some

logger = logging.getLogger(__name__)

_HEAD = "fc."
_CLASSIFIER = "fc.classifier.weight"
#: Batch norm's count of batches: no weight, and absent from files written before PyTorch 0.4.1.
_COUNTER = ".num_batches_tracked"
_PRETRAIN_KEY = "DISTILLER.STUDENT_PRETRAIN_PATH"
_IBN_RELEASE = "https://github.com/XingangPan/IBN-Net/releases"


class LoadReport(NamedTuple):
    """What came of loading weights.

    Attributes:
        kind: what sort of weights they were, in words.
        left_out: keys of the file that were not used.
        missing: keys of the network that the file did not fill.
    """

    kind: str
    left_out: list[str]
    missing: list[str]


def load_weights(
    model: RetrievalModel,
    path_or_state_dict: str | os.PathLike[str] | Mapping[str, Any],
    part: str | None = None,
    purpose: str = "train",
    tie: str | None = None,
) -> LoadReport:
    """Fill ``model`` from a file or a state dict, strictly; on an error the network is unchanged.

    Accepted forms: see `read_weights`; besides, ImageNet classifiers of torchvision, IBN-Net and timm,
    whose classifier is left out and whose embedding head stays as it is. The only other exception to
    strictness: at test a classifier of another width is left out. Both are reported and logged.

    Args:
        model: the network to fill.
        path_or_state_dict: where the weights are.
        part: ``"query"`` or ``"gallery"``: which network of a file that holds both. Without it, the
            one that fits. A file that holds one network gives that one.
        purpose: ``"train"``: the start of a training, which ImageNet weights suit; ``"resume"``: a
            trained network that goes on or stays frozen, so all of it must be there; ``"test"``.
        tie: without ``part``, which network is meant where both fit; an error if it is not said.

    Raises:
        UserError: naming the file and the keys, when anything is missing, left over or of another
            shape, when the number of classes differs (but at test), or when the file cannot be read.
    """
    if part not in (None, "query", "gallery") or purpose not in ("train", "resume", "test"):
        raise ValueError(f"part={part!r}, purpose={purpose!r}")
    weights = read_weights(path_or_state_dict)
    kind, state = weights.kind, _own_form(model, _choose(weights, model, part, tie), weights.source)
    left_out, may_stay = [], ""
    foreign = model.from_imagenet(state) if weights.alone is not None else None
    if foreign is not None:
        if purpose != "train":
            raise UserError(
                f"{weights.source}: {foreign.kind} weights have no embedding head; give a trained network's file"
            )
        (kind, state, left_out), may_stay = foreign, _HEAD
    elif purpose == "test" and _other_classes(model, state) is not None:
        left_out, may_stay = [_CLASSIFIER], _CLASSIFIER
        del state[_CLASSIFIER]
    report = LoadReport(kind, left_out, _fill(model, state, weights.source, may_stay))
    _log(report, model, weights)
    return report


def load_imagenet_weights(
    model: RetrievalModel, path: str = "", part: str | None = None, tie: str | None = None
) -> LoadReport:
    """Start ``model`` from ImageNet weights: from a file, or else torchvision's own, downloaded.

    Args:
        model: the network to fill; its embedding head stays as it is.
        path: a weight file of any form that `load_weights` accepts; "" downloads.
        part, tie: of a file that holds two networks, as in `load_weights`.

    Raises:
        UserError: when the weights cannot be had, saying which file to fetch and where to name it.
    """
    if path:
        return load_weights(model, path, part, tie=tie)
    source = model.imagenet_weights()
    if source is None:
        raise UserError(
            f"{model.name}: torchvision publishes no ImageNet weights for it; fetch the IBN-Net authors' "
            f"file from {_IBN_RELEASE} and set {_PRETRAIN_KEY} to it"
        )
    logger.info("%s starts from torchvision's %s (%s)", model.name, source, source.url)
    return load_weights(model, _download(source, model.name))


def _download(source: WeightsEnum, name: str) -> Mapping[str, Tensor]:
    """torchvision's weights, from torch's cache if they are there."""
    try:
        _require_whole(Path(torch.hub.get_dir(), "checkpoints", PurePosixPath(source.url).name))
        return source.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except (URLError, OSError, RuntimeError) as error:  # no network; disk; a hash that differs
        raise UserError(
            f"ImageNet weights of {name} could not be downloaded ({first_line(error)}); fetch {source.url} elsewhere "
            f"and set {_PRETRAIN_KEY} to the file, or DISTILLER.STUDENT_PRETRAIN_CHOICE to False"
        ) from error


def _require_whole(cached: Path) -> None:
    """Compare a file in torch's cache with the hash in its name, as torch does only when it downloads."""
    if not cached.exists():
        return
    require_regular(cached)
    expected = cached.stem.rpartition("-")[2]
    found = hashlib.sha256(cached.read_bytes()).hexdigest()
    if not found.startswith(expected):
        raise UserError(
            f"{cached}: is damaged (its SHA-256 begins with {found[: len(expected)]}, not {expected}); "
            "delete it, and the next start downloads it again"
        )


def _choose(weights: Weights, model: RetrievalModel, part: str | None, tie: str | None) -> dict[str, Tensor]:
    """The state dict meant for ``model``."""
    networks = weights.networks()
    if len(networks) == 1:
        return next(iter(networks.values()))
    if part is not None:
        return networks[part]
    fitting = [state for state in networks.values() if _fits(model, state)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting and tie is not None:
        return networks[tie]
    how_many = "both fit" if fitting else "neither fits"
    raise UserError(
        f"{weights.source}: holds a query and a gallery network, and {how_many} {model.name}; "
        "say which is meant (part='query' or part='gallery')"
    )


def _own_form(model: RetrievalModel, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    try:
        return model.own_form(state)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def _fits(model: RetrievalModel, state: Mapping[str, Tensor]) -> bool:
    return all(
        key in state and state[key].shape == value.shape
        for key, value in model.state_dict().items()
        if key != _CLASSIFIER and not key.endswith(_COUNTER)
    )


def _other_classes(model: RetrievalModel, state: Mapping[str, Tensor]) -> int | None:
    """The number of classes that ``state`` was trained on, if it is another than the model's."""
    classifier = state.get(_CLASSIFIER)
    if classifier is None or classifier.ndim != 2 or classifier.shape[1] != model.feature_width:
        return None
    return None if len(classifier) == model.num_classes else len(classifier)


def _fill(model: RetrievalModel, state: Mapping[str, Tensor], source: str, may_stay: str) -> list[str]:
    """Copy ``state`` into ``model``.

    Args:
        model: the network.
        state: its weights; counters of batches may be absent altogether.
        source: how to name the weights in an error.
        may_stay: prefix of the keys that ``state`` need not fill; "" for none.

    Returns:
        The keys that stay as they are.
    """
    expected = model.state_dict()
    required = [key for key in expected if not (may_stay and key.startswith(may_stay))]
    if not any(key.endswith(_COUNTER) for key in state):
        state = {**state, **{key: torch.zeros_like(expected[key]) for key in required if key.endswith(_COUNTER)}}
    _require_nothing_wrong(model, expected, state, [key for key in required if key not in state], source)
    classes = _other_classes(model, state)
    if classes is not None:
        raise UserError(
            f"{source}: was trained on {classes} identities, but this run has {model.num_classes}; "
            "use the dataset that it was trained on, or other weights"
        )
    model.load_state_dict({key: state.get(key, value) for key, value in expected.items()})
    return [key for key in expected if key not in state]


def _require_nothing_wrong(
    model: RetrievalModel,
    expected: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    missing: list[str],
    source: str,
) -> None:
    """Refuse all that does not fit, but another number of classes, which has an error of its own."""
    right = {_CLASSIFIER} if _other_classes(model, state) is not None else set()
    left_over = [key for key in state if key not in expected]
    misshapen = [
        f"{key} (file {_shape(state[key])}, network {_shape(value)})"
        for key, value in expected.items()
        if key in state and key not in right and state[key].shape != value.shape
    ]
    problems = {"missing": missing, "left over": left_over, "of another shape": misshapen}
    found = [f"{len(keys)} {what}: {some(keys)}" for what, keys in problems.items() if keys]
    if found:
        name = recognise(state)
        others = f" (these are weights of {name})" if name not in (None, model.name) else ""
        raise UserError(f"{source}: does not fit {model.name}{others}; {'; '.join(found)}")


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"


def _log(report: LoadReport, model: RetrievalModel, weights: Weights) -> None:
    logger.info("%s: loaded %s from %s", model.name, report.kind, weights.source)
    if weights.extra:
        logger.info("%s: not part of a network: %s", weights.source, some(list(weights.extra)))
    if report.missing or report.left_out:
        logger.warning(
            "%s: left out %s; not filled: %s", weights.source, some(report.left_out) or "nothing", some(report.missing)
        )
