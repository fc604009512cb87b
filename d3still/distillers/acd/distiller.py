"""ACD: any baseline with its direction turned round, plus collaborative logits."""

from __future__ import annotations

from torch import Tensor, nn
from yacs.config import CfgNode

from d3still.config.rules import NOT_NEGATIVE, TEMPERATURE, Rule
from d3still.distillers.acd.logits import collaborative_logits, collaborative_logits_loss
from d3still.distillers.base import Distiller, Pairs, Side
from d3still.distillers.registry import DISTILLERS
from d3still.errors import UserError
from d3still.modeling import ModelOutput


@DISTILLERS.register(
    "ACD",
    defaults={
        "BASELINE": ("ROP", Rule("the baseline of stage 1, e.g. ROP", lambda name: name not in ("ACD", "NONE"))),
        "ALPHA": (3.0, NOT_NEGATIVE),  # weight of the query-logits term
        "BETA": (2.0, NOT_NEGATIVE),  # weight of the collaborative-logits term
        "TEMPERATURE": (2.0, TEMPERATURE),
    },
)
class ACD(Distiller):
    """Asymmetric Collaborative Distillation over a baseline: the gallery network learns, the query network is frozen.

    Args:
        baseline: the distiller of stage 1, built with ``learner="gallery"``; its loss and weight are kept.
        alpha, beta, temperature: see `collaborative_logits_loss`.
    """

    def __init__(self, *, baseline: Distiller, alpha: float, beta: float, temperature: float) -> None:
        super().__init__(
            query=baseline.query,
            gallery=baseline.gallery,
            supervised=baseline.supervised,
            kd_weight=baseline.kd_weight,
            learner="gallery",
        )
        self.extra, self.prepared = baseline.extra, baseline.prepared
        self._baseline = [baseline]  # in a list: its networks are this module's already
        self.alpha, self.beta, self.temperature = alpha, beta, temperature

    @classmethod
    def build(cls, cfg: CfgNode, query: nn.Module | None, gallery: nn.Module, learner: Side = "gallery") -> Distiller:
        name = cfg.ACD.BASELINE
        known = [entry for entry in DISTILLERS if entry != "ACD" and DISTILLERS.get(entry).uses_pairs]
        if name not in known:
            raise UserError(f"ACD.BASELINE '{name}' is not a known baseline; known: {', '.join(known)}")
        baseline = DISTILLERS.get(name).build(cfg, query, gallery, learner="gallery")
        distiller = cls(baseline=baseline, **cls.settings(cfg))
        distiller.freeze()
        return distiller

    @classmethod
    def settings(cls, cfg: CfgNode) -> dict[str, float]:
        return {"alpha": cfg.ACD.ALPHA, "beta": cfg.ACD.BETA, "temperature": cfg.ACD.TEMPERATURE}

    @property
    def baseline(self) -> Distiller:
        return self._baseline[0]

    def prepare(self, pairs: Pairs) -> None:
        self.baseline.prepare(pairs)

    def feature_loss(self, query: ModelOutput, gallery: ModelOutput, labels: Tensor) -> Tensor:
        return self.baseline.feature_loss(query, gallery, labels)

    def pair_losses(self, query: ModelOutput, gallery: ModelOutput, labels: Tensor) -> dict[str, Tensor]:
        losses = super().pair_losses(query, gallery, labels)
        if self.alpha or self.beta:
            classifier = self.gallery.fc.classifier.weight
            together = collaborative_logits(classifier, query.retrieval_feat, gallery.retrieval_feat)
            losses["logits"] = collaborative_logits_loss(
                query.logits, gallery.logits, together, self.alpha, self.beta, self.temperature
            )
        return losses
