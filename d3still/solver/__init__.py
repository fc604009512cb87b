"""Optimizers by the table of builders, and learning-rate schedules."""

from d3still.solver import raho
from d3still.solver.optimizers import OPTIMIZER_BUILDERS, Built, build_optimizer, parameter_groups
from d3still.solver.schedule import build_schedule, set_learning_rates

__all__ = [
    "OPTIMIZER_BUILDERS",
    "Built",
    "build_optimizer",
    "build_schedule",
    "parameter_groups",
    "raho",
    "set_learning_rates",
]
