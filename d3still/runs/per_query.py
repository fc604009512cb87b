"""``per_query.npz``: what a run's evaluation found, query by query."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from d3still.errors import UserError
from d3still.files import require_regular

# dtype kinds of the arrays by the end of their name; all have an entry a query, but for the curve, which has one a rank
KINDS = {"paths": "U", "ids": "iu", "names": "U", "ap": "f", "inp": "f", "hit": "iu", "cmc": "f"}
SHARES = ("ap", "inp", "cmc")  # from 0 to 1; NaN for a query without a match


def read_per_query(path: Path) -> dict[str, np.ndarray]:
    """The arrays by name; none where there is no file.

    ``query_paths``, ``query_ids`` and (of newer runs) ``query_names`` (Q,), and for each protocol ``AIR_ap``,
    ``AIR_inp``, ``AIR_first_hit`` (Q,) and ``AIR_cmc``, as `RankingResult` has them.

    Raises:
        UserError: when the file is damaged or holds something else.
    """
    try:
        require_regular(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        return {}
    except Exception as error:  # zipfile, zlib and numpy have each their own for what is damaged
        raise UserError(f"{path} is damaged ({error}); test the run again") from error
    if not _is_per_query(arrays):
        raise UserError(f"{path} does not hold what a run writes; test the run again")
    return arrays


def _is_per_query(arrays: Mapping[str, np.ndarray]) -> bool:
    ends = {name: name.rpartition("_")[2] for name in arrays}
    known = {name: array for name, array in arrays.items() if ends[name] in KINDS}
    needed = {"query_paths", "query_ids"} | {
        f"{name.removesuffix('_ap')}_{part}" for name in known if ends[name] == "ap" for part in ("first_hit", "cmc")
    }
    if not needed <= known.keys():
        return False
    for name, array in known.items():
        if array.ndim != 1 or array.dtype.kind not in KINDS[ends[name]]:
            return False
        if ends[name] != "cmc" and len(array) != len(arrays["query_paths"]):
            return False
        if ends[name] in SHARES and not (np.isnan(array) | ((array >= 0) & (array <= 1))).all():
            return False
    return True
