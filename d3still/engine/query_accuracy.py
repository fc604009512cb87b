"""How well the frozen query network names its training images, on which stage 2's logits terms rest."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import islice

import torch
from torch import nn

from d3still.distillers import Pair
from d3still.modeling.inference import exact_inference

logger = logging.getLogger(__name__)

BATCHES = 16  # of pairs; enough for a percent or two
LOW = 0.6  # docs/results: at 24 % and 49 % the logits terms cost symmetric retrieval and add nothing


def say_query_accuracy(query: nn.Module, pairs: Iterable[Pair]) -> None:
    """Log the share of low-resolution training images that are named right, as a warning where it is low."""
    with exact_inference(query):
        right = [query(pair.low).logits.argmax(1) == pair.labels for pair in islice(pairs, BATCHES)]
    accuracy = float(torch.cat(right).float().mean())
    if accuracy >= LOW:
        logger.info("the query network names %.0f %% of its training images right", 100 * accuracy)
    else:
        logger.warning(
            "the query network names only %.0f %% of its training images right: more of stage 1 may gain as much "
            "as stage 2, and the terms on its logits (ACD.ALPHA, ACD.BETA) can cost symmetric retrieval",
            100 * accuracy,
        )
