"""The collaborative logits: what the gallery network learns from the query network's class scores."""

from __future__ import annotations

from torch import Tensor

from d3still.losses import kl_divergence


def collaborative_logits(classifier: Tensor, query_feat: Tensor, gallery_feat: Tensor) -> Tensor:
    """z^c = W_g·(f_g + f_q)/2, the gallery classifier on the mean of both raw features.

    Args:
        classifier: W_g, (classes, D), without bias.
        query_feat, gallery_feat: (B, D) raw ``retrieval_feat``.
    """
    return (gallery_feat + query_feat) / 2 @ classifier.T


def collaborative_logits_loss(
    query_logits: Tensor,
    gallery_logits: Tensor,
    collaborative_logits: Tensor,
    alpha: float,
    beta: float,
    temperature: float,
) -> Tensor:
    """α·τ²·KL(p^g_τ ‖ p^q_τ) + β·(τ/2)²·KL(p^c_{τ/2} ‖ p^q_{τ/2}) (ACD, stage 2).

    Gradient flows through the gallery and the collaborative side only; the query side is fixed.

    Args:
        query_logits, gallery_logits, collaborative_logits: (B, classes).
        alpha, beta: weights of the two terms; a term of weight 0 is not computed.
        temperature: τ > 0; the collaborative term runs at half of it.
    """
    query_logits = query_logits.detach()
    loss = gallery_logits.new_zeros(())
    if alpha:
        loss = loss + alpha * kl_divergence(gallery_logits, query_logits, temperature)
    if beta:
        loss = loss + beta * kl_divergence(collaborative_logits, query_logits, temperature / 2)
    return loss
