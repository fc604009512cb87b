"""A gallery in Milvus: in this process (Milvus Lite, one file) or on a cluster, by the same code.

Names never enter a filter: identities and cameras are compared by numbers that follow from them, so that no name
can be read as a part of the filter.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from d3still.deploy.gallery import Gallery, Match
from d3still.deploy.kinds import Blocks
from d3still.deploy.listing import GalleryImage, Stamp
from d3still.errors import UserError, require
from d3still.files import user_path

COLLECTION = "gallery"
_ABOUT = "_about"  # of the small collection beside: the header, and the next id
_HEADER, _NEXT = 0, 1
_ROWS = 1000  # written at once
_LISTED = 16_000  # read at once; Milvus gives at most 16,384
_TEXT = 65535  # Milvus's longest text
_NO_NAME = -1


class MilvusGallery(Gallery):
    """A gallery in a collection of Milvus. `open` one that is there, or `create` one.

    Args:
        client: a ``pymilvus.MilvusClient``.
        uri: where it leads, for messages.
        collection: its name.
        header: what `d3still.deploy.gallery.header_of` made.
    """

    def __init__(self, client: Any, uri: str, collection: str, header: dict[str, Any]) -> None:
        self._client, self._uri, self._collection, self.header = client, uri, collection, header

    @classmethod
    def create(
        cls, uri: str, header: dict[str, Any], collection: str = COLLECTION, overwrite: bool = False
    ) -> MilvusGallery:
        """An empty gallery for features of the network that the header names.

        Raises:
            UserError: there is one already and ``overwrite`` does not say to drop it, or Milvus does not answer.
        """
        client = _connected(uri)
        with _asking(uri):
            for name in (collection, collection + _ABOUT):
                if client.has_collection(name):
                    if not overwrite:
                        raise UserError(f"{uri} holds a collection {name}; add to it, or replace it with --overwrite")
                    client.drop_collection(name)
            _create(client, collection, header["embedding"]["feature_width"], ("identity", "camera", "path"), "image")
            _create(client, collection + _ABOUT, 2, (), "text")
        gallery = cls(client, uri, collection, header)
        gallery._note(_NEXT, 0)
        gallery._note(_HEADER, {**header, "unreadable": {}})  # last: with it the gallery is one
        return gallery

    @classmethod
    def open(cls, uri: str, collection: str = COLLECTION) -> MilvusGallery:
        """The gallery that is there.

        Raises:
            UserError: there is none, or Milvus does not answer.
        """
        none = UserError(f"{uri}: holds no gallery {collection}; make it with tools/index_net.py build --engine milvus")
        if "://" not in uri and not user_path(uri).exists():
            raise none
        client = _connected(uri)
        with _asking(uri):
            if not all(client.has_collection(name) for name in (collection, collection + _ABOUT)):
                raise none
            for name in (collection, collection + _ABOUT):
                client.load_collection(name)
            header = cls(client, uri, collection, {})._noted(_HEADER)
        if header is None:
            raise none
        return cls(client, uri, collection, header)

    def close(self) -> None:
        """Let go of Milvus."""
        self._client.close()

    def append(
        self, images: list[GalleryImage], blocks: Blocks, unreadable: dict[str, str], stamps: Sequence[Stamp]
    ) -> None:
        """See `Gallery.append`. Ids are taken before the first row is written, so that a kill gives none twice."""
        with _asking(self._uri):
            first = self._noted(_NEXT)
            self._note(_NEXT, first + len(images))
            rows = zip(range(first, first + len(images)), images, stamps, strict=True)
            for block in blocks():
                for start in range(0, len(block), _ROWS):
                    part = block[start : start + _ROWS]
                    self._client.insert(self._collection, [_row(next(rows), feature) for feature in part])
        added = {image.path for image in images}
        self.header["unreadable"] = {p: why for p, why in unreadable.items() if p not in added}

    def remove(self, ids: Iterable[int]) -> list[GalleryImage]:
        """See `Gallery.remove`."""
        wanted = sorted(set(ids))
        parts = [wanted[start : start + _ROWS] for start in range(0, len(wanted), _ROWS)]
        found = {}
        with _asking(self._uri):
            for part in parts:
                rows = self._client.query(self._collection, filter=f"id in {part}", output_fields=["id", "image"])
                found |= {row["id"]: _image(row["image"])[0] for row in rows}
            for id in wanted:
                if id not in found:
                    raise UserError(f"the index holds no image of the id {id}; see the ids that a search gives")
            for part in parts:
                self._client.delete(self._collection, ids=part)
        return [found[id] for id in wanted]

    def _find(self, features: np.ndarray, topk: int, without: dict[str, str]) -> list[list[Match]]:
        left = " and ".join(f"{field} != {_number(name)}" for field, name in without.items())
        with _asking(self._uri):
            answers = self._client.search(
                self._collection, data=list(features), limit=topk, filter=left, output_fields=["image"]
            )
        return [[_match(hit) for hit in answer] for answer in answers]

    def __len__(self) -> int:
        with _asking(self._uri):
            return self._client.query(self._collection, filter="", output_fields=["count(*)"])[0]["count(*)"]

    def image_of(self, id: int) -> GalleryImage | None:
        """See `Gallery.image_of`."""
        if not 0 <= id < 2**63:
            return None
        with _asking(self._uri):
            rows = self._client.query(self._collection, filter=f"id == {id}", output_fields=["image"])
        return _image(rows[0]["image"])[0] if rows else None

    def entries(self) -> Iterator[tuple[int, GalleryImage, Stamp]]:
        """See `Gallery.entries`; ascending."""
        with _asking(self._uri):
            end = self._noted(_NEXT)
        for start in range(0, end, _LISTED):
            within = f"id >= {start} and id < {start + _LISTED}"
            with _asking(self._uri):
                rows = self._client.query(self._collection, filter=within, output_fields=["id", "image"])
            for row in sorted(rows, key=lambda row: row["id"]):
                yield row["id"], *_image(row["image"])

    def _note(self, key: int, value: Any) -> None:
        with _asking(self._uri):
            self._client.upsert(
                self._collection + _ABOUT, [{"id": key, "vector": [0.0, 1.0], "text": json.dumps(value)}]
            )

    def _noted(self, key: int) -> Any:
        rows = self._client.query(self._collection + _ABOUT, filter=f"id == {key}", output_fields=["text"])
        return json.loads(rows[0]["text"]) if rows else None


def _connected(uri: str) -> Any:
    client = require("pymilvus", "the engine milvus").MilvusClient
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # what it logs, it raises too
    with _asking(uri):
        if "://" not in uri:
            user_path(uri).parent.mkdir(parents=True, exist_ok=True)
        return client(uri if "://" in uri else str(user_path(uri)))


@contextmanager
def _asking(uri: str) -> Iterator[None]:
    """What Milvus refuses, in one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # pymilvus's errors have several bases, and Milvus Lite's another
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{uri}: Milvus does not do it ({reason})") from error


def _create(client: Any, name: str, width: int, numbers: Sequence[str], text: str) -> None:
    kinds = require("pymilvus", "the engine milvus").DataType
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", kinds.INT64, is_primary=True)
    schema.add_field("vector", kinds.FLOAT_VECTOR, dim=width)
    for number in numbers:
        schema.add_field(number, kinds.INT64)
    schema.add_field(text, kinds.VARCHAR, max_length=_TEXT)
    index = client.prepare_index_params()
    index.add_index("vector", index_type="FLAT" if width == 2 else "AUTOINDEX", metric_type="IP")
    client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")


def _row(entry: tuple[int, GalleryImage, Stamp], feature: np.ndarray) -> dict[str, Any]:
    id, image, stamp = entry
    text = json.dumps([*image, stamp])  # ASCII: a name that is no Unicode is kept, too
    if len(text) > _TEXT:
        raise UserError(f"the names of {image.path} are longer than Milvus keeps")
    numbers = {"identity": _number(image.identity), "camera": _number(image.camera), "path": _number(image.path)}
    return {"id": id, "vector": feature, "image": text, **numbers}


def _number(name: str | None) -> int:
    """A name as a number: the first 63 bits of its hash; −1 for none."""
    if name is None:
        return _NO_NAME
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _image(text: str) -> tuple[GalleryImage, Stamp]:
    path, identity, box, camera, stamp = json.loads(text)
    return GalleryImage(path, identity, None if box is None else tuple(box), camera), tuple(stamp)


def _match(hit: Any) -> Match:
    image, _ = _image(hit["entity"]["image"])
    return Match(float(hit["distance"]), *image, int(hit["id"]))
