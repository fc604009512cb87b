"""What the search service is asked: a vector or an image, read and checked; beyond the limits, one line back."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from d3still.data.image import DECODE_ERRORS, FORMATS
from d3still.deploy.embedder import Embedder
from d3still.errors import UserError
from d3still.text import visible

_TOPK = {"type": "integer", "minimum": 1, "default": 10}
_WITHOUT = {name: {"type": "string"} for name in ("without_identity", "without_camera")}
_VECTOR = {"type": "array", "items": {"type": "number"}}
SEARCH = {
    "requestBody": {
        "content": {
            "application/json": {
                "schema": {"type": "object", "properties": {"vector": _VECTOR, "topk": _TOPK, **_WITHOUT}}
            },
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"image": {"type": "string", "format": "binary"}, "topk": _TOPK, **_WITHOUT},
                }
            },
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        }
    }
}
"""`POST /search` as OpenAPI describes it."""


@dataclass(frozen=True)
class Limits:
    """What a request may ask for; beyond it the answer is 4xx, or 503 where the service is too busy.

    Attributes:
        upload: bytes of a request.
        pixels: of an image, as its header says.
        topk: answers.
        requests: at work at once.
        seconds: a request.
        batch: searches that go to the index together.
    """

    upload: int = 20_000_000
    pixels: int = 40_000_000
    topk: int = 100
    requests: int = 64
    seconds: float = 20.0
    batch: int = 64


class Question(NamedTuple):
    """One search: a feature (D,), how many answers, and the identity and camera whose images are passed over."""

    feature: np.ndarray
    topk: int
    without_identity: str | None = None
    without_camera: str | None = None


class Refused(Exception):
    """A request that gets no answer: an HTTP status and one line."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, visible(detail)


def parsed(kind: str, body: bytes, fields: dict[str, Any], width: int, limits: Limits) -> tuple[Question, Any]:
    """A question without its feature's width in doubt, and the image to be embedded, if it brought one.

    Args:
        kind: the request's content type.
        body: JSON or raw float32, of another kind than a form.
        fields: of a form, or of the address.
        width: D.
        limits: that hold.

    Raises:
        Refused: 400 or 422, saying what is wrong.
    """
    vector: Any = None
    if kind == "application/json":
        try:
            content = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"the request is no JSON ({error})") from error
        if not isinstance(content, dict):
            raise Refused(422, 'the request must be an object such as {"vector": [...], "topk": 5}')
        fields, vector = content, content.get("vector")
        if not isinstance(vector, list) or not all(type(number) in (int, float) for number in vector):
            raise Refused(422, "the vector must be a list of numbers")
    elif kind == "application/octet-stream":
        if len(body) % 4:
            raise Refused(422, f"{len(body)} bytes are no float32 numbers")
        vector = np.frombuffer(body, "<f4")
    image = fields.get("image")
    if vector is None and (image is None or isinstance(image, str)):
        raise Refused(422, "there is neither a vector nor a file in the field image")
    feature = np.zeros(width, np.float32) if vector is None else _unit(vector, width)
    names = (fields.get(name) for name in ("without_identity", "without_camera"))
    without = [None if name in (None, "") else str(name) for name in names]
    return Question(feature, _topk(fields.get("topk", 10), limits), *without), None if vector is not None else image


def _unit(vector: Any, width: int) -> np.ndarray:
    """A feature of length 1."""
    try:
        with np.errstate(invalid="ignore"):  # raw bytes may be any number
            values = np.asarray(vector, np.float64)
    except (ValueError, OverflowError) as error:
        raise Refused(422, f"the vector holds numbers that are none ({error})") from error
    if values.shape != (width,):
        raise Refused(422, f"the vector has {values.size} numbers; the gallery's features have {width}")
    largest = np.abs(values).max()
    if not np.isfinite(largest) or largest == 0:
        raise Refused(422, "the vector must be finite and not zero")
    values = values / largest
    return (values / np.linalg.norm(values)).astype(np.float32)


def _topk(value: Any, limits: Limits) -> int:
    text = str(value)
    if isinstance(value, bool) or not text.isdecimal() or not 1 <= int(text[:9]) <= limits.topk or len(text) > 9:
        raise Refused(422, f"topk is {text[:20]}; it must be a number from 1 to {limits.topk}")
    return int(text)


def embedded(embedder: Embedder, data: bytes, limits: Limits) -> np.ndarray:
    """The feature (D,) of an uploaded image.

    Raises:
        Refused: 413 or 422, saying what is wrong.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > limits.pixels:
                raise Refused(413, f"the image has {image.width} × {image.height} pixels; {limits.pixels:,} are taken")
            return embedder(image)
    except (UserError, *DECODE_ERRORS) as error:
        raise Refused(422, f"the image cannot be read ({' '.join(str(error).split())[:200]})") from error
