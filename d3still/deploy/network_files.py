"""Opening a trained network for deployment: a run's checkpoint, a published file, or a safetensors export.

A `Description` says what a network's features depend on: its weights, its input and its settings.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from d3still.config import read_tree
from d3still.errors import UserError, require
from d3still.files import user_path
from d3still.modeling import RetrievalModel, build_model, load_weights, read_weights
from d3still.modeling.head import FEATURE_WIDTH
from d3still.runs.facts import max_pixels_of, side_of, stage_of

SAFETENSORS, ONNX = ".safetensors", ".onnx"
METADATA_KEY = "d3still"
"""Under this key exported files carry their description, as JSON."""
PARTS = ("query", "gallery")
RESIZE_RULE = "bilinear, antialiased, align_corners off, to exactly (height, width), on uint8, rounded to uint8"
COLOUR_RULE = "first frame, turned upright as EXIF says, RGB, transparency over white, 16 bits a channel scaled to 8"
SHORT = 12  # hexadecimal digits of a hash that messages show

CLASSIFIER = "fc.classifier.weight"  # plays no part in the embedding
#: Entries of published files that carry no weights: counters, and tables that follow from the architecture.
_NO_WEIGHTS = ("num_batches_tracked", "relative_coords_table", "relative_position_index", "attn_mask")


@dataclass(frozen=True)
class Description:
    """A network as deployment knows it.

    Attributes:
        part: "query" or "gallery".
        network: its published name, such as ``ResNet18``.
        last_stride: stride of its last stage.
        size: height and width of its input.
        mean: of each channel, for pixels scaled to 0 … 1.
        std: likewise.
        mirrored: whether the features of the mirrored image are added (``TEST.FLIP_FEATS``).
        feature_width: D.
        weights_hash: `weights_hash` of its weights.
        networks: part → weights hash, of every network that its file held: those that it belongs with.
        config: the run's config, sections of keys; empty where there was none.
    """

    part: str
    network: str
    last_stride: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mirrored: bool
    feature_width: int
    weights_hash: str
    networks: dict[str, str]
    config: dict[str, Any]

    @property
    def max_pixels(self) -> int:
        """The largest image that is decoded for it."""
        return max_pixels_of(self.config)

    def embedding(self) -> dict[str, Any]:
        """Everything that decides a feature, as plain values: equal for two networks whose features may mix."""
        values = self.to_dict()
        del values["networks"], values["config"]
        return values

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON gives them back."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Description:
        """The inverse of `to_dict`.

        Raises:
            UserError: when a field is missing or of another kind.
        """
        try:
            fields = {name: values[name] for name in cls.__dataclass_fields__}
            height, width = fields["size"]
            fields |= {"size": (int(height), int(width)), "mean": tuple(fields["mean"]), "std": tuple(fields["std"])}
            fields |= {name: dict(fields[name]) for name in ("networks", "config")}
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            problem = f"{type(error).__name__}: {error}"
            raise UserError(f"the description of its network is damaged ({problem}); export it again") from error

    def __str__(self) -> str:
        return f"{self.part} network {self.network} {self.weights_hash[:SHORT]}"


def describe(config: Mapping[str, Any], part: str, hashes: Mapping[str, str]) -> Description:
    """The network that is ``part`` of a run with this config.

    Args:
        config: a frozen config, or the tree of sections that a checkpoint holds.
        part: "query" or "gallery".
        hashes: weights hash of each network that the file holds.

    Raises:
        UserError: the run has no such network.
    """
    inputs, test = config["INPUT"], config["TEST"]
    if stage_of(config) == 0 and part == "query":
        raise UserError("stage 0 has no query network, only a gallery network; ask for part gallery")
    side, size = side_of(config, part)
    return Description(
        part=part,
        network=config["DISTILLER"][f"{side}_NAME"],
        last_stride=config["DISTILLER"][f"{side}_LAST_STRIDE"],
        size=size,
        mean=tuple(inputs["PIXEL_MEAN"]),
        std=tuple(inputs["PIXEL_STD"]),
        mirrored=test["FLIP_FEATS"],
        feature_width=FEATURE_WIDTH,
        weights_hash=hashes[part],
        networks=dict(hashes),
        config=json.loads(json.dumps(config)),
    )


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the weights that an embedding comes from, in hexadecimal.

    The same for the same network in any kind of file: names are sorted, numbers hashed as float32, and
    what the embedding does not use (classifier, batch counters, position tables) is left out.
    """
    digest = hashlib.sha256()
    for key in sorted(state):
        if key == CLASSIFIER or key.endswith(_NO_WEIGHTS):
            continue
        value = state[key].detach().cpu().to(torch.float32).contiguous()
        digest.update(f"{key} {tuple(value.shape)}\n".encode())
        digest.update(value.numpy())
    return digest.hexdigest()


def open_network(
    path: str | os.PathLike[str], part: str | None = None, config: Mapping[str, Any] | None = None
) -> tuple[RetrievalModel, Description]:
    """A network with its weights, in eval mode on the CPU, and what it is.

    Args:
        path: a run's ``last.pth`` or ``best.pth``, a published weight file, or a safetensors export.
        part: "query" or "gallery"; None = the query network where the file holds one.
        config: a config for files that carry none (published ones), or to use instead of theirs.

    Raises:
        UserError: naming the file, when it cannot be read, holds no such network or no config, or when
            the weights do not fit.
    """
    path = user_path(path)
    states, description = _open_states(path, part, config)
    return _build(path, states[description.part], description), description


def open_networks(
    path: str | os.PathLike[str], part: str | None = None, config: Mapping[str, Any] | None = None
) -> dict[str, tuple[RetrievalModel, Description]]:
    """All networks of a file by part, query first. Arguments and errors: `open_network`."""
    path = user_path(path)
    states, chosen = _open_states(path, part, config)
    found = {}
    for name in (name for name in PARTS if name in states):
        described = chosen if name == chosen.part else describe(chosen.config, name, chosen.networks)
        found[name] = _build(path, states[name], described), described
    return found


def _build(path: Path, state: dict[str, Tensor], description: Description) -> RetrievalModel:
    classes = len(state[CLASSIFIER]) if CLASSIFIER in state else 1
    try:
        model = build_model(description.network, classes, description.last_stride)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    # A file that it can read itself, load_weights names in what it says; reading twice is the price.
    load_weights(model, state if path.suffix == SAFETENSORS else path, description.part, purpose="test")
    return model.eval()


def _open_states(
    path: Path, part: str | None, config: Mapping[str, Any] | None
) -> tuple[dict[str, dict[str, Tensor]], Description]:
    """State dicts by part, and the description of the wanted one."""
    if path.suffix == SAFETENSORS and config is None:
        return _open_safetensors(path, part)
    weights = read_weights(path)
    states = weights.networks()
    config = config or _config_of(weights.raw, path)
    if "network" in states:  # a file that does not say which of the two it holds
        states = {part or _only_part(config, path): states["network"]}
    part = part or next(iter(states))  # query first
    if part not in states:
        raise UserError(f"{path}: holds no {part} network, only the {next(iter(states))} network; ask for that part")
    hashes = {name: weights_hash(state) for name, state in states.items()}
    try:
        return states, describe(config, part, hashes)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except KeyError as error:
        raise UserError(f"{path}: its config lacks the key {error}; name a whole one with --config-file") from error


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """State dict, as `d3still.modeling.load_weights` takes it, and metadata of a safetensors file.

    Raises:
        UserError: when the file is missing or damaged, or the package is not installed.
    """
    safetensors = require("safetensors", f"reading {path}")
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such weight file; correct the path")
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"{path}: is no safetensors file, or a damaged one ({error}); export it again") from error


def read_description(path: Path, metadata: Mapping[str, str], part: str | None) -> Description:
    """The description in an exported file's metadata.

    Raises:
        UserError: when there is none, or it is of another part than the wanted one.
    """
    if METADATA_KEY not in metadata:
        raise UserError(f"{path}: carries no description of its network; export it with tools/export_net.py")
    try:
        description = Description.from_dict(json.loads(metadata[METADATA_KEY]))
    except (ValueError, UserError) as error:
        raise UserError(f"{path}: {error}") from error
    if part not in (None, description.part):
        raise UserError(f"{path}: holds the {description.part} network, not the {part} network; ask for that part")
    return description


def _open_safetensors(path: Path, part: str | None) -> tuple[dict[str, dict[str, Tensor]], Description]:
    state, metadata = read_safetensors(path)
    description = read_description(path, metadata, part)
    if weights_hash(state) != description.weights_hash:
        raise UserError(f"{path}: its weights are not those that its description names; export it again")
    return {description.part: state}, description


def _config_of(content: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The config that a run's checkpoint carries; read as data, so that nothing it names is imported."""
    text = content.get("config")
    if not isinstance(text, str):
        raise UserError(
            f"{path}: carries no config, so that its network and input size are unknown; name its YAML file "
            "with --config-file (config=load_config(FILE) in Python)"
        )
    config = read_tree(text, f"the config in {path}")
    if not isinstance(config, dict) or not {"DISTILLER", "INPUT", "TEST"} <= config.keys():
        raise UserError(f"{path}: its config lacks the sections DISTILLER, INPUT and TEST")
    return config


def _only_part(config: Mapping[str, Any], path: Path) -> str:
    if stage_of(config) == 0:
        return "gallery"
    raise UserError(f"{path}: holds one network without saying which; ask for part query or part gallery")
