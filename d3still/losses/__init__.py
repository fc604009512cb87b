"""What several distillers share: precision, similarity matrices, divergence, triplets, the global batch."""

from d3still.losses.divergence import kl_divergence
from d3still.losses.full_precision import full_precision
from d3still.losses.similarity import cosine_matrix, need_two_images
from d3still.losses.triplet import triplet_loss

__all__ = [
    "cosine_matrix",
    "full_precision",
    "kl_divergence",
    "need_two_images",
    "triplet_loss",
]
