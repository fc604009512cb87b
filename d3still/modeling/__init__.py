"""Networks on torchvision's backbones, their embedding head, and the one door for weights."""

from d3still.modeling.base import Block, ModelOutput, RetrievalModel
from d3still.modeling.build import build_model
from d3still.modeling.loading import LoadReport, load_imagenet_weights, load_weights
from d3still.modeling.registry import NETWORKS
from d3still.modeling.weight_files import CHECKPOINT_FORMAT, Weights, read_weights

__all__ = [
    "CHECKPOINT_FORMAT",
    "NETWORKS",
    "Block",
    "LoadReport",
    "ModelOutput",
    "RetrievalModel",
    "Weights",
    "build_model",
    "load_imagenet_weights",
    "load_weights",
    "read_weights",
]
