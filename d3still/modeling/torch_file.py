"""Reading what ``torch.save`` wrote: nothing in it runs, and its checksums are compared.

torch's own restricted unpickler does the reading. It refuses numpy, but trainers keep a best score as
``numpy.float64`` or a random state as an array, which are data. numpy's own functions are not let in for them,
since a made-up state can make them read beyond their memory: the few names that a pickle of numpy values calls
stand here for functions that build them from checked parts.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

from d3still.errors import UserError
from d3still.files import require_regular

_KINDS = "biufcUSmM"  # types that are data; not "O", which would hold any object
_NUMPY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")  # of numpy 1 and 2


def load_torch_file(path: Path) -> Any:
    """The content of a file that ``torch.save`` wrote, on the CPU.

    Raises:
        UserError: naming the file, when it is missing, no regular file, damaged, of another kind, or would run code.
    """
    try:
        require_regular(path)
        _compare_checksums(path)
        with warnings.catch_warnings(), _numpy_is_data():  # of odd files torch warns before it fails
            warnings.simplefilter("ignore")
            return _plain(torch.load(path, map_location="cpu", weights_only=True))
    except IsADirectoryError as error:
        raise UserError(f"{path}: is a folder; name the weight file in it") from error
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such weight file; put it there or correct the path") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or first_line(error)})") from error
    except UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None:
            raise UserError(f"{path}: is no PyTorch weight file, or a damaged one") from error
        raise UserError(
            f"{path}: refused, because loading it would run code ({refused[1]}); only files that hold "
            "tensors alone are read: save the network's state_dict()"
        ) from error
    except Exception as error:  # a damaged file fails in more ways than torch documents
        raise UserError(f"{path}: is no PyTorch weight file, or a damaged one ({first_line(error)})") from error


def first_line(error: Exception) -> str:
    """What went wrong, in one line."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _compare_checksums(path: Path) -> None:
    """Compare the contents of a zip, the form of today's files, with its checksums; torch itself does not."""
    if not zipfile.is_zipfile(path):  # the form before PyTorch 1.6 has none
        return
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged} in it is not what its checksum says; fetch the file again")


class _Dtype:
    """Stands for ``numpy.dtype`` while a file is read."""

    def __init__(self, name: str, align: bool = False, copy: bool = False) -> None:
        self.value = _checked(np.dtype(name) if isinstance(name, str) else name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order, units = state[1], state[8:]  # units: of a date, ({}, (b"ns", 1, 1, 1))
        if self.value.kind in "mM" and units:
            unit, count = units[0][1][:2]
            self.value = np.dtype(f"{self.value.kind}8[{count}{unit.decode()}]")
        self.value = self.value.newbyteorder("=" if order == "|" else order)


class _Array:
    """Stands for ``numpy.ndarray`` while a file is read."""

    value = np.zeros(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        self.value = _buffer(dtype, data).reshape(shape, order="F" if is_fortran else "C").copy(order="K")


def _scalar(dtype: _Dtype, data: bytes | str) -> Any:
    return _buffer(dtype, data)[0]


def _reconstruct(kind: type[_Array], shape: tuple[int, ...], letter: bytes) -> _Array:
    return _Array()


def _buffer(dtype: _Dtype, data: bytes | str) -> np.ndarray:
    data = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(data, dtype.value) if dtype.value.itemsize else np.zeros(1, dtype.value)


def _checked(dtype: np.dtype) -> np.dtype:
    if dtype.kind not in _KINDS:
        raise UnpicklingError(f"GLOBAL numpy.dtype('{dtype.char}')")
    return dtype


@contextmanager
def _numpy_is_data() -> Iterator[None]:
    """Lets torch read numpy's scalars, types and arrays, by the names that pickles call them."""
    serialization = torch.serialization
    before = serialization.get_safe_globals()
    stand_ins = [_named(_Dtype, "numpy", "dtype"), _named(_Array, "numpy", "ndarray")]
    stand_ins.append(_named(lambda: b"", "builtins", "bytes"))  # how an empty array's content is written
    for module in _NUMPY_MODULES:
        stand_ins += [_named(lambda *given: _scalar(*given), module, "scalar")]
        stand_ins += [_named(lambda *given: _reconstruct(*given), module, "_reconstruct")]
    types = {kind for kind in np.sctypeDict.values() if np.dtype(kind).kind in _KINDS}
    serialization.add_safe_globals([*stand_ins, *types])
    try:
        yield
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(before)


def _named(value: Callable[..., Any], module: str, name: str) -> Callable[..., Any]:
    """``value`` under the name by which torch lets it in (releases before 2.6 take no other name beside)."""
    value.__module__, value.__name__, value.__qualname__ = module, name, name
    return value


def _plain(content: Any) -> Any:
    """The content with numpy's own types and arrays in place of those that stood for them."""
    if isinstance(content, _Dtype | _Array):
        return content.value
    if isinstance(content, dict):
        for key, value in content.items():
            content[key] = _plain(value)
    elif isinstance(content, list):
        content[:] = map(_plain, content)
    elif type(content) is tuple:
        return tuple(map(_plain, content))
    return content
