"""The baselines, each with its +ACD variant. Importing this package registers all of them."""

from d3still.distillers import aml, bct, cc, csd, d3, fitnet, kd, pkt, raml, rkd, rop, ssp, ugd, vanilla
from d3still.distillers.acd import distiller
from d3still.distillers.base import Distiller, Pair, SupervisedLoss
from d3still.distillers.registry import DISTILLERS, without_idle_sections

__all__ = [
    "DISTILLERS",
    "Distiller",
    "Pair",
    "SupervisedLoss",
    "aml",
    "bct",
    "cc",
    "csd",
    "d3",
    "distiller",
    "fitnet",
    "kd",
    "pkt",
    "raml",
    "rkd",
    "rop",
    "ssp",
    "ugd",
    "vanilla",
    "without_idle_sections",
]
