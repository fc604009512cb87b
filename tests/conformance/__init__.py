"""Reference numbers measured once from the published implementations (see README.md in this folder)."""

import gzip
import json
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent


def load(name: str) -> tuple[dict, dict[str, np.ndarray]]:
    """(JSON values, arrays) of one set of reference numbers."""
    path = FOLDER / f"{name}.json"
    text = path.read_text() if path.exists() else gzip.decompress((FOLDER / f"{name}.json.gz").read_bytes()).decode()
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return json.loads(text), dict(arrays)
