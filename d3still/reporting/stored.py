"""Ranked lists of a run, kept in its folder once they were made, so that reports need its networks only once."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from d3still.data import Sample
from d3still.errors import UserError
from d3still.evaluation import RankedLists
from d3still.evaluation.lists import Embedded, RankedList, Ranking, rank
from d3still.files import require_regular, write_atomically
from d3still.runs.finished import METRICS, Run
from d3still.runs.inputs import relative_names

logger = logging.getLogger(__name__)

FILE = "ranked_lists.npz"
TOPK = 10  # images of each list
WHOLE = (-1, -1, -1, -1)  # the box of an image of which all is used


def kept_lists(embed: Callable[[Run], Embedded], run: Run, paths: Sequence[str]) -> Mapping[str, RankedList]:
    """The AIR list of each query of a run; those of all its queries are made and kept when first asked for.

    Args:
        embed: embeds a run's query and gallery images; a `UserError` where it cannot.
        run: whose.
        paths: the queries, as ``per_query.npz`` has them.

    Raises:
        UserError: when they are neither kept nor can be made.
    """
    ranking = _read(run) or _make(embed, run)
    known = run.per_query["query_paths"].tolist()
    name_of = dict(zip(known, relative_names(known), strict=True))
    place = {name: i for i, name in enumerate(relative_names([sample.path for sample in ranking.query]))}
    lost = [path for path in paths if name_of.get(path) not in place]
    if lost:
        raise UserError(f"{run.folder}: the dataset has no query {lost[0]} any more; see DATASETS.ROOT_DIR")
    return {path: ranking.of(place[name_of[path]]) for path in paths}


def _make(embed: Callable[[Run], Embedded], run: Run) -> Ranking:
    test = run.config["TEST"]
    ranking = rank(embed(run), test["TEST_METRIC"], test["EXCLUDE_SAME_CAMERA"], TOPK)
    try:
        _write(run, ranking)
    except UserError as error:  # a full disk, somebody else's folder: the report can do without
        logger.warning("%s; the lists will be made again next time", error)
    return ranking


def _write(run: Run, ranking: Ranking) -> None:
    """Keep the lists with only those gallery images that are in one."""
    used, indices = np.unique(ranking.lists.indices, return_inverse=True)
    indices = indices.reshape(ranking.lists.indices.shape)
    if used[0] == -1:  # marks where a list is shorter than others
        used, indices = used[1:], indices - 1
    arrays = {
        "of": np.array(_fingerprint(run)),
        "ap": ranking.ap,
        "indices": indices,
        "scores": ranking.lists.scores,
        "hits": ranking.lists.hits,
        **_columns("query", ranking.query),
        **_columns("gallery", [ranking.gallery[i] for i in used]),
    }
    write_atomically(run.folder / FILE, lambda file: np.savez_compressed(file, **arrays))


def _read(run: Run) -> Ranking | None:
    """The kept lists; None where there are none of this very result, or the images have moved since."""
    path = run.folder / FILE
    try:
        require_regular(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        if str(arrays["of"]) != _fingerprint(run):
            return None
        lists = RankedLists(arrays["indices"], arrays["scores"], arrays["hits"])
        ranking = Ranking(_samples("query", arrays), _samples("gallery", arrays), arrays["ap"], lists)
        return ranking if Path(ranking.query[0].path).exists() else None
    except FileNotFoundError:
        return None
    except Exception as error:  # zipfile, zlib and numpy have each their own for what is damaged
        logger.warning("%s is damaged (%s); it is made again", path, error)
        return None


def _fingerprint(run: Run) -> str:
    """Tells the results that lists belong to: a run trained again has others."""
    return hashlib.sha256((run.folder / METRICS).read_bytes()).hexdigest()


def _columns(side: str, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
    return {
        f"{side}_paths": np.array([sample.path for sample in samples]),
        f"{side}_names": np.array([sample.name for sample in samples]),
        f"{side}_labels": np.array([(sample.identity, sample.camera) for sample in samples]).reshape(-1, 2),
        f"{side}_boxes": np.array([sample.box or WHOLE for sample in samples]).reshape(-1, 4),
    }


def _samples(side: str, arrays: Mapping[str, np.ndarray]) -> list[Sample]:
    columns = (arrays[f"{side}_{name}"].tolist() for name in ("paths", "names", "labels", "boxes"))
    return [
        Sample(path, identity, camera, None if tuple(box) == WHOLE else tuple(box), name)
        for path, name, (identity, camera), box in zip(*columns, strict=True)
    ]
