"""The one exception for everything that a user can put right."""

from __future__ import annotations

import importlib
from types import ModuleType

INSTALL = "pip install -r requirements-{}.txt"
_PACKAGES = {"faiss": "faiss-cpu", "prometheus_client": "prometheus-client", "python_multipart": "python-multipart"}
_SERVE = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")


class UserError(Exception):
    """A mistake in a config, a file or a command that the user can correct.

    The message is one line that names the file, key or identity in question and says what to do.
    The commands under ``tools/`` print it without a traceback and exit with status 2.
    """


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
        package = _PACKAGES.get(top, top)  # its name to install, where that differs from the module's
        install = INSTALL.format("serve" if top in _SERVE else "milvus" if top == "pymilvus" else "deploy")
        raise UserError(f"{purpose} needs the package {package} ({error}); install it with: {install}") from error
