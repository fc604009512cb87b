"""The networks that a config can name."""

from d3still.registry import Registry

#: An entry is called with (name, num_classes, last_stride, checkpoint_activations) and gives a
#: `RetrievalModel`.
NETWORKS = Registry("network", "DISTILLER.STUDENT_NAME / TEACHER_NAME")
