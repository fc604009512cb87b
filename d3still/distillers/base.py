"""The base of every distiller: both networks, the supervised losses, who is frozen, the one forward flow."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from d3still.errors import UserError
from d3still.losses.full_precision import full_precision
from d3still.losses.global_batch import global_batch
from d3still.losses.triplet import triplet_loss
from d3still.modeling import ModelOutput

Side = Literal["query", "gallery"]
LABEL_SMOOTHING = 0.1  # METHOD, stage 0
_cross_entropy = full_precision(F.cross_entropy)


@dataclass(frozen=True)
class SupervisedLoss:
    """Cross entropy and triplet on identity-balanced images, with their weights and variants."""

    ce_weight: float = 1.0
    triplet_weight: float = 1.0
    triplet_method: str = "batch_hard"
    triplet_margin: float = 0.3
    label_smoothing: float = LABEL_SMOOTHING

    def __call__(self, output: ModelOutput, labels: Tensor) -> dict[str, Tensor]:
        """Weighted losses of one network's ``output`` on (B,) ``labels``."""
        cross_entropy = _cross_entropy(output.logits, labels, label_smoothing=self.label_smoothing)
        triplet = triplet_loss(
            global_batch(output.pooled_feat), global_batch(labels), self.triplet_margin, self.triplet_method
        )
        return {"ce": self.ce_weight * cross_entropy, "triplet": self.triplet_weight * triplet}


@dataclass(frozen=True)
class Pair:
    """Two views of the same images, normalised: ``low`` and ``high`` (B, 3, ·, ·) and their (B,) ``labels``."""

    low: Tensor
    high: Tensor
    labels: Tensor


Pairs = Callable[[], Iterable[Pair]]  # gives an epoch's pair batches, this rank's part, on the networks' device


class Distiller(nn.Module):
    """Base of the baselines. A subclass names its `loss_function` or implements `feature_loss`; all else is shared.

    Args:
        query, gallery: the two networks. In stage 0 there is only one, given as ``gallery``.
        supervised: cross entropy and triplet on the network that learns.
        kd_weight: weight of `feature_loss` (``KD_WEIGHT`` of the baseline's section).
        learner: the side that learns; the other is frozen, in eval mode, and runs without gradient.
        options: arguments of `loss_function` by their names.

    Raises:
        TypeError: for an option that `loss_function` does not take, and for one that it needs.
    """

    section: ClassVar[str]  # its config section, set by DISTILLERS.register
    uses_pairs: ClassVar[bool] = True

    def __init__(
        self,
        *,
        query: nn.Module | None,
        gallery: nn.Module,
        supervised: SupervisedLoss,
        kd_weight: float = 1.0,
        learner: Side = "query",
        **options: Any,
    ) -> None:
        super().__init__()
        signature = inspect.signature(self.loss_function)
        batch = {"labels": None} if "labels" in signature.parameters else {}
        signature.bind(None, None, **batch, **options)
        self.query, self.gallery = query, gallery
        self.extra = nn.ModuleDict()  # learnable parts of a baseline beside the query network
        self.prepared: dict[str, Tensor] = {}  # what `prepare` found, kept in checkpoints
        self.supervised, self.kd_weight, self.learner, self.options = supervised, kd_weight, learner, options
        self._check_widths()

    @classmethod
    def settings(cls, cfg: CfgNode) -> dict[str, Any]:
        """Constructor arguments from the config: the keys of its section in lower case, unless overridden."""
        section = cfg.get(cls.section, {})
        return {key.lower(): value for key, value in section.items()}

    @classmethod
    def build(cls, cfg: CfgNode, query: nn.Module | None, gallery: nn.Module, learner: Side = "query") -> Distiller:
        """The distiller that ``cfg`` describes, over the two networks, with its side frozen."""
        supervised = SupervisedLoss(
            cfg.EXPERIMENT.CE_LOSS_WEIGHT,
            cfg.EXPERIMENT.TRIPLET_LOSS_WEIGHT,
            cfg.EXPERIMENT.TRIPLET_METHOD,
            cfg.EXPERIMENT.TRIPLET_MARGIN,
            LABEL_SMOOTHING if cfg.EXPERIMENT.IF_LABELSMOOTH else 0.0,
        )
        distiller = cls(query=query, gallery=gallery, supervised=supervised, learner=learner, **cls.settings(cfg))
        distiller.freeze()
        return distiller

    @staticmethod
    def loss_function(query_feat: Tensor, gallery_feat: Tensor) -> Tensor:
        """The baseline as a pure function of (B, D) features and, by name, of the keys of its section."""
        raise NotImplementedError("a baseline must have a loss_function, or implement feature_loss")

    def feature_loss(self, query: ModelOutput, gallery: ModelOutput, labels: Tensor) -> Tensor:
        """The baseline's own loss between both networks' outputs on the two views of a batch.

        With several ranks, ``logits``, features and ``labels`` are those of the global batch;
        ``feature_maps`` stay this rank's.
        """
        return self.loss_function(query.retrieval_feat, gallery.retrieval_feat, **self.options)

    def prepare(self, pairs: Pairs) -> None:
        """Fill ``prepared`` with what the loss needs to know of the frozen network: once, before the first step.

        A resumed run has it from its checkpoint. Most baselines need nothing.
        """

    @property
    def baseline(self) -> Distiller:
        """The baseline whose `feature_loss` this is: itself, but for a distiller that wraps another."""
        return self

    def freeze(self) -> None:
        """Fix the side that does not learn. Call once when built."""
        self.learner_network.requires_grad_(True)
        self.extra.requires_grad_(self.learner == "query")
        if self.frozen_network is not None:
            self.frozen_network.requires_grad_(False)
        self.train(self.training)

    @property
    def learner_network(self) -> nn.Module:
        """The network whose parameters the optimizer holds."""
        return self.query if self.learner == "query" else self.gallery

    @property
    def frozen_network(self) -> nn.Module | None:
        """The other network; None in stage 0."""
        return self.gallery if self.learner == "query" else self.query

    def learnable_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """(name, parameter) of all that is trained: the learner's by their own names, then ``extra.*``."""
        named = list(self.learner_network.named_parameters())
        named += [(f"extra.{name}", parameter) for name, parameter in self.extra.named_parameters()]
        return [(name, parameter) for name, parameter in named if parameter.requires_grad]

    def extra_parameter_count(self) -> int:
        """Parameters that a baseline adds beside the two networks."""
        return sum(parameter.numel() for parameter in self.extra.parameters())

    def train(self, mode: bool = True) -> Distiller:
        """Train mode for what learns; what is frozen stays in eval mode, whatever is asked."""
        super().train(mode)
        if self.frozen_network is not None:
            self.frozen_network.eval()
        if self.learner != "query":
            self.extra.eval()
        return self

    def forward(self, images: Tensor, labels: Tensor, pair: Pair | None) -> tuple[dict[str, Tensor], Tensor]:
        """One step's losses.

        Args:
            images: identity-balanced (B, 3, H, W) at the learner's resolution.
            labels: their (B,) identities.
            pair: the two views of another batch; None in stage 0.

        Returns:
            The weighted losses by name, whose sum is to be minimised, and the share of ``images`` classified right.
        """
        learner_on_low = self.learner == "query"
        view = None if pair is None else (pair.low if learner_on_low else pair.high)
        output = self.learner_network(images)
        learned = None if view is None else self.learner_network(view)  # with batch statistics of its own
        losses = self.supervised(output, labels)
        if pair is not None:
            with torch.no_grad():
                fixed = self.frozen_network(pair.high if learner_on_low else pair.low)
            query, gallery = (learned, fixed) if learner_on_low else (fixed, learned)
            losses |= self.pair_losses(query, gallery, pair.labels)
        accuracy = (output.logits.detach().argmax(1) == labels).float().mean()
        return losses, accuracy

    def pair_losses(self, query: ModelOutput, gallery: ModelOutput, labels: Tensor) -> dict[str, Tensor]:
        """Weighted losses on the pair batch; a weight of 0 costs nothing."""
        if not self.kd_weight:
            return {}
        loss = self.feature_loss(_over_ranks(query), _over_ranks(gallery), global_batch(labels))
        return {"kd": self.kd_weight * loss}

    def _check_widths(self) -> None:
        if self.query is None:
            return
        query_width, gallery_width = self.query.feature_width, self.gallery.feature_width
        if query_width != gallery_width:
            raise UserError(
                f"the query network {self.query.name} gives {query_width}-d features and the gallery network "
                f"{self.gallery.name} {gallery_width}-d ones; both must share one space"
            )


def _over_ranks(output: ModelOutput) -> ModelOutput:
    return output._replace(
        logits=global_batch(output.logits),
        retrieval_feat=global_batch(output.retrieval_feat),
        pooled_feat=global_batch(output.pooled_feat),
    )
