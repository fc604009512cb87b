"""Stage 0: one network alone."""

from __future__ import annotations

from d3still.distillers.base import Distiller
from d3still.distillers.registry import DISTILLERS


@DISTILLERS.register("NONE")
class Vanilla(Distiller):
    """Cross entropy and triplet on one network (``DISTILLER.TYPE: NONE``), the ``STUDENT_*`` keys' one."""

    uses_pairs = False
