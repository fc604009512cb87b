"""What a run is made from, told without its place: the weights that it starts from and the images of its dataset."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from d3still.data import RetrievalDataset, Sample
from d3still.modeling import read_weights

PARTS = {"TEACHER_MODEL_PATH": "gallery", "STUDENT_PRETRAIN_PATH": "query"}  # the network that each weight key is for


def fingerprint(weights: Mapping[str, Path], dataset: RetrievalDataset) -> dict[str, dict[str, Any]]:
    """`weights_fingerprint` under ``weights`` and `images_fingerprint` under ``images``."""
    return {"weights": weights_fingerprint(weights), "images": images_fingerprint(dataset)}


def weights_fingerprint(files: Mapping[str, Path]) -> dict[str, str]:
    """Key → SHA-256 of the network's tensors, whatever kind of file holds them; plain values, for a checkpoint.

    Args:
        files: that each key of DISTILLER names; one that is gone is left out.

    Raises:
        UserError: when a file cannot be read.
    """
    states = {key: path.stat() for key, path in files.items() if path.exists()}
    return {key: _weights_digest(files[key], PARTS[key], s.st_size, s.st_mtime_ns) for key, s in states.items()}


def images_fingerprint(dataset: RetrievalDataset) -> dict[str, dict[str, Any]]:
    """Part → its ``number`` of images, and ``sha256`` of their names, sizes in bytes, and labels."""
    parts = {"training": dataset.train, "query": dataset.query, "gallery": dataset.gallery}
    names = iter(relative_names([sample.path for samples in parts.values() for sample in samples]))
    return {
        part: {"number": len(samples), "sha256": _images_digest(samples, [next(names) for _ in samples])}
        for part, samples in parts.items()
    }


def input_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two fingerprints, a phrase each; what either lacks is not compared."""
    changes = []
    for key, digest in before.get("weights", {}).items():
        if now.get("weights", {}).get(key, digest) != digest:
            changes.append(f"the weights that DISTILLER.{key} names are others")
    for part, known in before.get("images", {}).items():
        found = now.get("images", {}).get(part, known)
        if found["number"] != known["number"]:
            changes.append(f"there are {found['number']} {part} images, not {known['number']}")
        elif found != known:
            changes.append(f"names, sizes or labels of the {part} images are others")
    return changes


@lru_cache(maxsize=64)  # a comparison asks for the same few files again and again
def _weights_digest(path: Path, part: str, size: int, changed: int) -> str:
    """SHA-256 of the tensors of a file's network, by sorted name; of the query network's with a baseline's parts."""
    weights = read_weights(path)
    networks = weights.networks()
    used = {part: networks[part]} if part in networks else networks
    parts = used | ({"extra": weights.extra} if part == "query" else {})  # a baseline's, learned with the query network
    return _tensors_digest({f"{name}.{key}": value for name, state in parts.items() for key, value in state.items()})


def _tensors_digest(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _images_digest(samples: Sequence[Sample], names: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for sample, name in zip(samples, names, strict=True):
        labels = sample.identity, sample.camera, sample.box
        digest.update(f"{name!r} {_size(sample.path)} {labels}\n".encode())
    return digest.hexdigest()


def _size(path: str) -> int:
    """Bytes of a file; −1 where it is not there, which is reported when it is read."""
    try:
        return Path(path).stat().st_size
    except OSError:
        return -1


def relative_names(paths: Iterable[str]) -> list[str]:
    """Paths below the folder that they all share, with forward slashes: names that do not say where the data lies."""
    texts = [str(path).replace("\\", "/") for path in paths]
    folders = {text.rpartition("/")[0] for text in texts}
    try:
        shared = os.path.commonpath(folders) if all(folders) else ""
    except ValueError:  # no paths, or full ones among relative ones
        shared = ""
    return [text.removeprefix(shared).lstrip("/") for text in texts]
