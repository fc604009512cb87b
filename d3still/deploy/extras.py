"""Packages that only deployment needs: imported when they are used, and named when they are missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from d3still.errors import UserError

INSTALL = "pip install -r requirements-deploy.txt"
_PACKAGES = {"faiss": "faiss-cpu"}  # module → name to install, where the two differ


def require(module: str, purpose: str) -> ModuleType:
    """The module, imported.

    Args:
        module: its name, such as ``faiss`` or ``safetensors.torch``.
        purpose: what needs it, as the error should begin.

    Raises:
        UserError: when it is not installed, saying what to type.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        top = module.partition(".")[0]
        package = _PACKAGES.get(top, top)
        raise UserError(f"{purpose} needs the package {package} ({error}); install it with: {INSTALL}") from error
