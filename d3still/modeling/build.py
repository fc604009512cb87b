"""One function that builds any network by its published name."""

from __future__ import annotations

from d3still.errors import UserError

# Importing a backbone's file registers its names.
from d3still.modeling import mobilenet, resnet, swin  # noqa: F401
from d3still.modeling.base import RetrievalModel
from d3still.modeling.registry import NETWORKS


def build_model(
    name: str, num_classes: int, last_stride: int = 1, checkpoint_activations: bool = False
) -> RetrievalModel:
    """A network with freshly drawn weights, on the default device (also ``torch.device("meta")``).

    Args:
        name: as published: ``ResNet18``, ``ResNet34``, ``ResNet50``, ``ResNet101``, each of them with
            ``_ibn_a``, ``MobileNetV2``, ``MobileNetV3_Small``, ``Swin_Transformer_V2_Tiny``, ``_Small``, ``_Base``.
        num_classes: identities of the training set.
        last_stride: stride of the last stage, 1 or 2; Swin has no such stride.
        checkpoint_activations: in training, recompute each block's activations in the backward pass.

    Raises:
        UserError: for an unknown name, naming the nearest known one, and for a stride or a number of
            classes that no network can have.
    """
    network = NETWORKS.get(name)
    if last_stride not in (1, 2):
        raise UserError(f"DISTILLER.STUDENT_LAST_STRIDE / TEACHER_LAST_STRIDE must be 1 or 2, not {last_stride}")
    if num_classes < 1:
        raise UserError(f"{name} needs at least one class (training identity), not {num_classes}")
    return network(name, num_classes, last_stride, checkpoint_activations)
