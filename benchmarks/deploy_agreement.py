"""Does the deployed search answer as the evaluator does?

    python benchmarks/deploy_agreement.py --run log/demo/emoji/acd_rop/seed2024

Exports the run's query network to ONNX, indexes its gallery exactly, searches with onnxruntime and FAISS under
the same-camera rule, and compares R1, query by query, with the run's own per_query.npz. They may differ only
where the two best scores lie within 1e-4 of each other. For a run of stage 0 the gallery network plays both parts.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.goals import Goal, judge
from d3still.data import Sample
from d3still.deploy import Embedder, GalleryIndex, IndexBuilder, export_network
from d3still.deploy.embedder import embed_images
from d3still.deploy.listing import list_images, run_dataset
from d3still.errors import UserError

NEAR = 1e-4  # cosine; what export may change
JUNK = -1


@dataclass(frozen=True)
class Agreement:
    """Both answers: R1 in percent over the queries that have a match, and the queries where they differ.

    ``gaps`` holds, for each of those, how far apart the two best scores are.
    """

    deployed: float
    evaluated: float
    queries: int
    gaps: list[float]

    @property
    def holds(self) -> bool:
        """Whether every difference is a near tie."""
        return all(gap <= NEAR for gap in self.gaps)


def agreement(run: Path, folder: Path, fixed_size: bool = False) -> Agreement:
    """Compare a finished run with its deployed form, whose files go to ``folder``."""
    weights = run / "last.pth"
    gallery = Embedder.from_checkpoint(weights, "gallery")
    part = "query" if "query" in gallery.description.networks else "gallery"
    with np.load(run / "per_query.npz") as arrays:
        first_hit = arrays[f"{'AIR' if part == 'query' else 'SIR'}_first_hit"]
        paths = arrays["query_paths"].tolist()
    config = gallery.description.config
    data, dataset = config["DATASETS"], run_dataset(gallery.description)
    if [sample.path for sample in dataset.query] != paths:
        other = f"its queries are not those of {data['NAMES']} in {data['ROOT_DIR']}"
        raise UserError(f"{run}: {other}; start this where the run was started")
    exported = export_network(weights, part, out=folder / "query.onnx", fixed_size=fixed_size)
    index_file = IndexBuilder(gallery, folder / "gallery.index").build(dataset.gallery)
    index = GalleryIndex.load(index_file)
    query = Embedder.from_checkpoint(exported.path, part)
    index.require_partner(query.description)
    features = np.concatenate([batch.features for batch in embed_images(query, list_images(dataset.query))])
    hits, gaps = first_answers(index, features, dataset.query, dataset.gallery, config["TEST"])
    valid = first_hit > 0
    differing = valid & (hits != (first_hit == 1))
    return Agreement(
        100 * float(hits[valid].mean()), 100 * float((first_hit[valid] == 1).mean()), int(valid.sum()),
        gaps[differing].tolist(),
    )  # fmt: skip


def first_answers(
    index: GalleryIndex,
    features: np.ndarray,
    queries: Sequence[Sample],
    gallery: Sequence[Sample],
    rules: Mapping[str, Any],
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each query's best answer is right (Q,), and how far the second best lies behind (Q,).

    Junk, and with ``EXCLUDE_SAME_CAMERA`` images of the query's own identity and camera, are passed over.
    """
    own_camera = rules["EXCLUDE_SAME_CAMERA"]
    labels = {(image.path, image.box): sample for image, sample in zip(list_images(gallery), gallery, strict=True)}
    rows = [labels[image.path, image.box] for image in index.images]
    same = Counter((sample.identity, sample.camera) for sample in rows) if own_camera else Counter()
    passed_over = sum(sample.identity == JUNK for sample in rows) + max(same.values(), default=0)
    scores, positions = index.search_features(features, passed_over + 2)
    hits, gaps = np.zeros(len(queries), bool), np.full(len(queries), np.inf)
    for number, query in enumerate(queries):
        answers = [
            (score, rows[place].identity == query.identity)
            for score, place in zip(scores[number], positions[number], strict=True)
            if rows[place].identity != JUNK
            and not (own_camera and (rows[place].identity, rows[place].camera) == (query.identity, query.camera))
        ]
        hits[number] = answers[0][1]
        if len(answers) > 1:
            gaps[number] = answers[0][0] - answers[1][0]
    return hits, gaps


def main() -> int:
    """Compare one run and print the result; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, type=Path, help="the folder of a finished run")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = agreement(args.run, Path(folder))
    print(f"{found.queries} queries with a match")
    print(f"R1 of onnxruntime and FAISS: {found.deployed:.4f} %")
    print(f"R1 of the evaluator:         {found.evaluated:.4f} %")
    print(f"queries that differ: {len(found.gaps)}; gaps between their two best scores: {found.gaps}")
    return judge([Goal("largest of these gaps", max(found.gaps, default=0.0), NEAR)])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"error: {error}")
