"""What a network's features depend on: its weights, its input and its settings, in one small record."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from d3still.errors import UserError
from d3still.runs.facts import max_pixels_of

PARTS = ("query", "gallery")
RESIZE_RULE = "bilinear, antialiased, align_corners off, to exactly (height, width), on uint8, rounded to uint8"
COLOUR_RULE = "first frame, turned upright as EXIF says, RGB, transparency over white, 16 bits a channel scaled to 8"
SHORT = 12  # hexadecimal digits of a hash that messages show

_STAGE_0 = "NONE"
_ACD = "ACD"
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
        values = asdict(self)
        del values["networks"], values["config"]
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON can hold them."""
        return {**self.embedding(), "networks": self.networks, "config": self.config}

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
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            problem = f"{type(error).__name__}: {error}"
            raise UserError(f"the description of its network is damaged ({problem}); export it again") from error

    def __str__(self) -> str:
        return f"{self.part} network {self.network} {self.weights_hash[:SHORT]}"


def describe(config: Mapping[str, Any], part: str, feature_width: int, hashes: Mapping[str, str]) -> Description:
    """The network that is ``part`` of a run with this config.

    Args:
        config: a frozen config, or the tree of sections that a checkpoint holds.
        part: "query" or "gallery".
        feature_width: D.
        hashes: weights hash of each network that the file holds.

    Raises:
        UserError: the run has no such network.
    """
    inputs, test = config["INPUT"], config["TEST"]
    side, size = _side(config, part)
    return Description(
        part=part,
        network=config["DISTILLER"][f"{side}_NAME"],
        last_stride=config["DISTILLER"][f"{side}_LAST_STRIDE"],
        size=tuple(size),
        mean=tuple(inputs["PIXEL_MEAN"]),
        std=tuple(inputs["PIXEL_STD"]),
        mirrored=test["FLIP_FEATS"],
        feature_width=feature_width,
        weights_hash=hashes[part],
        networks=dict(hashes),
        config=plain(config),
    )


def _side(config: Mapping[str, Any], part: str) -> tuple[str, list[int]]:
    """Prefix of the network's keys, and its test size: those of the stage that the config describes."""
    kind, inputs = config["DISTILLER"]["TYPE"], config["INPUT"]
    if kind == _STAGE_0 and part == "query":
        raise UserError("stage 0 has no query network, only a gallery network; ask for part gallery")
    if kind == _STAGE_0 or part == "query":
        return "STUDENT", inputs["STUDENT_SIZE_TEST"]
    return "TEACHER", inputs["SIZE_TEST"] if kind == _ACD else inputs["TEACHER_SIZE_TEST"]


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


def plain(tree: Any) -> Any:
    """A config as dictionaries, lists and scalars."""
    if isinstance(tree, Mapping):
        return {str(key): plain(value) for key, value in tree.items()}
    return [plain(value) for value in tree] if isinstance(tree, list | tuple) else tree
