"""What commands that look at single queries need: the features of a run's two networks."""

from __future__ import annotations

import _bootstrap  # noqa: F401  (puts the repository on the import path)
from torch import Tensor, nn

from d3still.config import Config
from d3still.data import Sample
from d3still.engine.retrieval import extract
from d3still.engine.testing import open_run
from d3still.errors import UserError
from d3still.reporting.lists import Embedded


def embed(cfg: Config, protocol: str) -> Embedded:
    """Embed the dataset's queries and gallery with a run's networks, as its evaluation does.

    Args:
        cfg: the run's config.
        protocol: AIR (queries by the query network) or SIR (by the gallery network).

    Raises:
        UserError: when weights or images are missing.
    """
    with open_run(cfg) as run:
        data, dataset, distiller = run.data, run.data.dataset, run.distiller

        def features(network: nn.Module, samples: list[Sample], size: tuple[int, int]) -> tuple[list[Sample], Tensor]:
            found = extract(network, data.test(samples, size), data.normalize, run.device, cfg.TEST.FLIP_FEATS)
            return [samples[i] for i in found.indices], found.values

        asking = {"AIR": (distiller.query, data.sizes.query_test), "SIR": (distiller.gallery, data.sizes.gallery_test)}
        network, size = asking[protocol]
        if network is None:
            raise UserError("stage 0 has no query network, so there is no AIR to show; ask for SIR")
        query, query_feats = features(network, dataset.query, size)
        gallery, gallery_feats = features(distiller.gallery, dataset.gallery, data.sizes.gallery_test)
    return Embedded(query, gallery, query_feats, gallery_feats, size)
