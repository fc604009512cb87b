"""The baselines, each with its +ACD variant. Importing this package registers all of them."""

from d3still.distillers import aml, bct, cc, csd, d3, fitnet, kd, pkt, raml, rkd, rop, ssp, ugd, vanilla  # noqa: F401
from d3still.distillers.acd import distiller  # noqa: F401
from d3still.distillers.base import Distiller, Pair, SupervisedLoss
from d3still.distillers.registry import DISTILLERS, without_idle_sections

__all__ = ["DISTILLERS", "Distiller", "Pair", "SupervisedLoss", "without_idle_sections"]
