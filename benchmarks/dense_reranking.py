"""k-reciprocal re-ranking the straightforward way, on dense float32 arrays: what the sparse one is held against."""

from __future__ import annotations

import numpy as np


def dense_k_reciprocal_distances(query_feats, gallery_feats, k1, k2, lambda_value):
    """The same distances as d3still.evaluation.k_reciprocal_distances, in (Q + G)² arrays."""
    images = np.concatenate([query_feats, gallery_feats]).astype(np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    distance = np.maximum(2 - 2 * images @ images.T, 0)
    np.fill_diagonal(distance, 0)
    distance = (distance / distance.max(axis=0)).T
    to_sort = distance.copy()
    np.fill_diagonal(to_sort, -1)  # an image is its own nearest, also among duplicates
    ranking = np.argsort(to_sort, axis=1)

    def reciprocal(image, k):
        nearest = ranking[image, : k + 1]
        return nearest[(ranking[nearest, : k + 1] == image).any(axis=1)]

    weights = np.zeros_like(distance)
    for image in range(len(images)):
        core = reciprocal(image, k1)
        members = [core]
        for member in core:
            half = reciprocal(member, round(k1 / 2))
            if 3 * len(np.intersect1d(half, core)) > 2 * len(half):
                members.append(half)
        chosen = np.unique(np.concatenate(members))
        weight = np.exp(-distance[image, chosen])
        weights[image, chosen] = weight / weight.sum()
    if k2 > 1:
        weights = np.stack([weights[ranking[image, :k2]].mean(axis=0) for image in range(len(images))])

    num_queries = len(query_feats)
    shared = np.zeros((num_queries, len(images)), dtype=np.float32)
    holders = [np.flatnonzero(column) for column in weights.T]
    for query in range(num_queries):
        for image in np.flatnonzero(weights[query]):
            held = holders[image]
            shared[query, held] += np.minimum(weights[query, image], weights[held, image])
    jaccard = 1 - shared / (2 - shared)
    return ((1 - lambda_value) * jaccard + lambda_value * distance[:num_queries])[:, num_queries:]
