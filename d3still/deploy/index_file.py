"""The file of a gallery index: a header, the images, the FAISS index, and a seal that tells if it is whole.

    line      d3still gallery index
    16 bytes  version, length of the header, length of the images' part
    header    JSON: which network embedded the images, how the index was made
    images    JSON: path, identity and box of each, in the order of the FAISS index
    FAISS     what faiss.write_index writes
    12 bytes  CRC-32 of all before it, length of the file
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from d3still.deploy.extras import require
from d3still.errors import UserError
from d3still.files import write_atomically

MAGIC = b"d3still gallery index\n"
VERSION = 1
_SIZES = struct.Struct("<IIQ")
_SEAL = struct.Struct("<IQ")
_READ_AT_ONCE = 2**20
_AGAIN = "build it again (build --overwrite)"


def save_index_file(path: Path, header: dict[str, Any], images: dict[str, Any], index: Any) -> None:
    """Write an index, all of it or nothing: a former file at ``path`` is whole until this one is.

    Raises:
        UserError: when it cannot be written.
    """
    parts = [json.dumps(part).encode() for part in (header, images)]

    def write(file: IO[bytes]) -> None:
        sealed = _Sealing(file)
        sealed.write(MAGIC + _SIZES.pack(VERSION, *map(len, parts)))
        for part in parts:
            sealed.write(part)
        write_faiss(index, sealed.write)
        file.write(_SEAL.pack(sealed.checksum, sealed.length + _SEAL.size))

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
    with _open(path) as file:
        sizes = _read_sizes(path, file)
        _check_seal(path, file)
        file.seek(len(MAGIC) + _SIZES.size)
        try:
            header, images = (json.loads(file.read(size)) for size in sizes)
            index = faiss.read_index(faiss.PyCallbackIOReader(file.read))
        except (ValueError, RuntimeError) as error:
            raise UserError(f"{path}: cannot be read by this FAISS ({_first_line(error)}); {_AGAIN}") from error
    return header, images, index


def read_header(path: Path) -> dict[str, Any]:
    """The header alone; the rest is only checked for damage. Errors as of `load_index_file`."""
    with _open(path) as file:
        header_size, _ = _read_sizes(path, file)
        _check_seal(path, file)
        file.seek(len(MAGIC) + _SIZES.size)
        return json.loads(file.read(header_size))


def _open(path: Path) -> IO[bytes]:
    if path.is_dir():
        raise UserError(f"{path}: is a folder, not a gallery index; name the file in it")
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such gallery index; make it with tools/index_net.py build") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _read_sizes(path: Path, file: IO[bytes]) -> tuple[int, int]:
    start = file.read(len(MAGIC) + _SIZES.size)
    if not start.startswith(MAGIC):
        cut = start and MAGIC.startswith(start)
        raise UserError(f"{path}: {'is cut short' if cut else 'is no gallery index'}; {_AGAIN}")
    if len(start) < len(MAGIC) + _SIZES.size:
        raise UserError(f"{path}: is cut short; {_AGAIN}")
    version, header_size, images_size = _SIZES.unpack(start[len(MAGIC) :])
    if version != VERSION:
        raise UserError(
            f"{path}: is a gallery index of version {version}, but this d3still reads version {VERSION}; use the "
            "d3still that wrote it, or {_AGAIN}"
        )
    return header_size, images_size


def _check_seal(path: Path, file: IO[bytes]) -> None:
    """Whether the file is as long and as it was written; FAISS itself would crash on some damaged files."""
    length = file.seek(0, os.SEEK_END)
    file.seek(max(0, length - _SEAL.size))
    seal = file.read(_SEAL.size)
    checksum, expected = _SEAL.unpack(seal) if len(seal) == _SEAL.size else (0, -1)
    if expected != length:
        raise UserError(f"{path}: is cut short or damaged ({length:,} bytes); copy it again, or {_AGAIN}")
    file.seek(0)
    left, found = length - _SEAL.size, 0
    while block := file.read(min(_READ_AT_ONCE, left)):
        found, left = zlib.crc32(block, found), left - len(block)
    if found != checksum:
        raise UserError(f"{path}: is damaged (its checksum differs); copy it again, or {_AGAIN}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


class _Sealing:
    """Passes bytes on to a file and keeps count of them."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.checksum, self.length = file, 0, 0

    def write(self, data: bytes) -> int:
        self.checksum = zlib.crc32(data, self.checksum)
        self.length += len(data)
        return self._file.write(data)
