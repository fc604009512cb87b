"""Training and testing a run: the loop, checkpoints, precision, several processes."""

from d3still.engine.precision import Precision, choose_precision
from d3still.engine.retrieval import Evaluation, evaluate
from d3still.engine.run import train
from d3still.engine.trainer import LoopSettings, Trainer

__all__ = ["Evaluation", "LoopSettings", "Precision", "Trainer", "choose_precision", "evaluate", "train"]
