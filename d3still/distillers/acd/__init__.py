"""Asymmetric Collaborative Distillation: collaborative logits, the distiller, and RAHO's block importance."""

from d3still.distillers.acd.analysis import measure_importance
from d3still.distillers.acd.distiller import ACD
from d3still.distillers.acd.importance import BlockImportance, ImportanceGroups
from d3still.distillers.acd.logits import collaborative_logits, collaborative_logits_loss

__all__ = [
    "ACD",
    "BlockImportance",
    "ImportanceGroups",
    "collaborative_logits",
    "collaborative_logits_loss",
    "measure_importance",
]
