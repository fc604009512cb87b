"""ROP: Wu et al., "A General Rank Preserving Framework for Asymmetric Image Retrieval", ICLR 2023."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from d3still.config.rules import AT_LEAST_1, NOT_NEGATIVE, TEMPERATURE
from d3still.distillers.base import Distiller
from d3still.distillers.registry import DISTILLERS
from d3still.losses import full_precision
from d3still.losses.similarity import nearest_by_gallery

HARD_TEMPERATURE = 1e-6  # the gallery's indicator while the query network learns
CHUNK_ELEMENTS = 2**21  # entries of the B×k×k comparison held at once; fewer make threads wait on each other


@full_precision
def rop_loss(
    query_feat: Tensor,
    gallery_feat: Tensor,
    topk: int,
    temperature: float,
    rank_weight: float,
    gallery_temperature: float = HARD_TEMPERATURE,
) -> Tensor:
    """Difference between both networks' pairwise orders of each image's gallery neighbours.

    With s the ``topk`` best S_gg of an image, best first, and q its S_qg at the same neighbours:
    I_g[a,b] = σ((s_b − s_a)/τ_g), I_q[a,b] = σ((q_b − s_a)/τ), w_a = softmax(rank_weight·s)_a · a;
    loss = mean over the batch of Σ_ab w_a (I_g − I_q)² / topk.

    Args:
        query_feat, gallery_feat: (B, D) raw features. The gallery's gradient flows through s, also in I_q and w.
        topk: neighbours an image, itself included, at most B (``ROP.TOPK``).
        temperature: τ of the query indicator.
        rank_weight: sharpness of the weights over ranks.
        gallery_temperature: τ_g; 1e-6 is a hard order (stage 1), ``temperature`` a soft one (stage 2).

    Raises:
        UserError: when ``topk`` does not fit the batch.
    """
    gallery_sim, query_sim = nearest_by_gallery(query_feat, gallery_feat, topk, "ROP.TOPK")
    ranks = torch.arange(1, topk + 1, device=gallery_sim.device, dtype=gallery_sim.dtype)
    weights = (rank_weight * gallery_sim).softmax(1) * ranks
    total = _OrderDifference.apply(gallery_sim, query_sim, weights, temperature, gallery_temperature)
    return total / (len(gallery_sim) * topk)


class _OrderDifference(torch.autograd.Function):
    """Σ over images and ordered pairs of w_a (I_g − I_q)², with its gradient worked out chunk by chunk.

    Autograd would keep half a dozen B×k×k tensors for the backward pass. Here each chunk of images gives
    its loss and its gradient at once and is forgotten.
    """

    @staticmethod
    def forward(
        ctx: Any,
        gallery_sim: Tensor,
        query_sim: Tensor,
        weights: Tensor,
        temperature: float,
        gallery_temperature: float,
    ) -> Tensor:
        batch, topk = gallery_sim.shape
        needs_gallery = ctx.needs_input_grad[0] or ctx.needs_input_grad[2]
        grads = [torch.zeros_like(gallery_sim), torch.empty_like(query_sim), torch.zeros_like(weights)]
        total = gallery_sim.new_zeros(())
        for rows in torch.arange(batch).split(max(1, CHUNK_ELEMENTS // topk**2)):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            anchor, weight = gallery_sim[part, :, None], weights[part, :, None]
            order_g = torch.sub(gallery_sim[part, None, :], anchor).div_(gallery_temperature).sigmoid_()
            order_q = torch.sub(query_sim[part, None, :], anchor).div_(temperature).sigmoid_()
            gap = order_g - order_q
            squared_by_anchor = gap.square().sum(2)
            total += (squared_by_anchor * weights[part]).sum()
            gap.mul_(weight).mul_(2)
            slope_q = torch.addcmul(order_q, order_q, order_q, value=-1).mul_(gap).div_(-temperature)
            grads[1][part] = slope_q.sum(1)
            if needs_gallery:
                slope_g = torch.addcmul(order_g, order_g, order_g, value=-1).mul_(gap).div_(gallery_temperature)
                grads[0][part] = slope_g.sum(1) - slope_g.sum(2) - slope_q.sum(2)
                grads[2][part] = squared_by_anchor
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        grads = ctx.saved_tensors
        return (
            *(grad_output * g if need else None for g, need in zip(grads, ctx.needs_input_grad, strict=False)),
            None,
            None,
        )


@DISTILLERS.register(
    "ROP",
    defaults={
        "TOPK": (96, AT_LEAST_1),  # neighbours an image, itself included, among the pair batch
        "TEMPERATURE": (0.1, TEMPERATURE),  # of the soft order
        "RANK_WEIGHT": 0.2,  # sharpness of the weights over ranks
        "KD_WEIGHT": (1.0, NOT_NEGATIVE),
    },
)
class ROP(Distiller):
    """`rop_loss` on ``retrieval_feat``; the gallery's order is soft when the gallery network learns."""

    loss_function = staticmethod(rop_loss)

    def __init__(self, *, temperature: float, **common: Any) -> None:
        super().__init__(temperature=temperature, **common)
        if self.learner == "gallery":
            self.options.setdefault("gallery_temperature", temperature)
