"""The file of a gallery index: a zip archive, not compressed, whose own checksums tell whether it is whole.

    header.json  which network embedded the images, how the index was made
    images.json  id, path, identity, camera and box of each image, in the order of their ids
    index.faiss  what faiss.write_index writes
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from d3still.deploy.extras import require
from d3still.errors import UserError
from d3still.files import require_regular, write_atomically

VERSION = 2
_HEADER, _IMAGES, _FAISS = "header.json", "images.json", "index.faiss"
_FORMER = b"d3still gallery index\n"  # how files of version 1 begin
_MAGIC = b"PK\x03\x04"
_AGAIN = "build it again (build --overwrite)"
_DAMAGE = (zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeDecodeError, ValueError, KeyError, RuntimeError)


def save_index_file(path: Path, header: dict[str, Any], images: dict[str, Any], index: Any) -> None:
    """Write an index, all of it or nothing: a former file at ``path`` is whole until this one is.

    Raises:
        UserError: when it cannot be written.
    """

    def write(file: Any) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(zipfile.ZipInfo(_HEADER), json.dumps({"version": VERSION, **header}))
            archive.writestr(zipfile.ZipInfo(_IMAGES), json.dumps(images))
            with archive.open(zipfile.ZipInfo(_FAISS), "w", force_zip64=True) as member:
                write_faiss(index, member.write)

    write_atomically(path, write)


def write_faiss(index: Any, write: Callable[[bytes], int]) -> None:
    """Pass what ``faiss.write_index`` writes to a function, piece by piece."""
    faiss = require("faiss", "an index")
    writer = faiss.PyCallbackIOWriter(write)
    faiss.write_index(index, writer)
    del writer  # it still holds what it has not passed on


def load_index_file(path: Path) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Header, images and FAISS index of a file.

    Raises:
        UserError: when it is missing, no index, of another version, cut short or damaged.
    """
    faiss = require("faiss", "an index")
    with _opened(path) as (archive, header):
        images = json.loads(archive.read(_IMAGES))
        with archive.open(_FAISS) as member:
            return header, images, faiss.read_index(faiss.PyCallbackIOReader(member.read))


def read_header(path: Path) -> dict[str, Any]:
    """The header alone; the rest is only checked for damage. Errors as of `load_index_file`."""
    with _opened(path) as (_, header):
        return header


@contextmanager
def _opened(path: Path) -> Iterator[tuple[zipfile.ZipFile, dict[str, Any]]]:
    """The archive, every checksum of which is right, and its header; what then still fails is this file's fault."""
    try:
        require_regular(path)
        with path.open("rb") as file:
            start = file.read(len(_FORMER))
            if start == _FORMER:
                raise UserError(f"{path}: is a gallery index of an earlier d3still; {_AGAIN}")
            if not start.startswith(_MAGIC):
                cut = start and _MAGIC.startswith(start)
                raise UserError(f"{path}: {'is cut short' if cut else 'is no gallery index'}; {_AGAIN}")
            with zipfile.ZipFile(file) as archive:
                yield archive, _checked(path, archive)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such gallery index; make it with tools/index_net.py build") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: is a folder, not a gallery index; name the file in it") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except _DAMAGE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: is cut short or damaged ({reason}); copy it again, or {_AGAIN}") from error


def _checked(path: Path, archive: zipfile.ZipFile) -> dict[str, Any]:
    if _HEADER not in archive.namelist():
        raise UserError(f"{path}: is no gallery index; {_AGAIN}")
    if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
        raise UserError(f"{path}: is damaged (it seems compressed); copy it again, or {_AGAIN}")
    damaged = archive.testzip()  # FAISS itself would crash on some damaged files
    if damaged:
        raise UserError(f"{path}: is damaged (the checksum of {damaged} differs); copy it again, or {_AGAIN}")
    header = json.loads(archive.read(_HEADER))
    version = header.pop("version")
    if version != VERSION:
        raise UserError(
            f"{path}: is a gallery index of version {version}, but this d3still reads version {VERSION}; use the "
            f"d3still that wrote it, or {_AGAIN}"
        )
    return header
