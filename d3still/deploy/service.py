"""The search as a service: features or images in, the nearest gallery images out, and a page to try it.

A picture need not leave the device: the page runs the query network itself, where it can, and sends 512 numbers.
"""

# No postponed annotations here: FastAPI reads those of the handlers, whose names are imported with it.

import asyncio
import io
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from d3still.data import ImageError
from d3still.deploy.embedder import Embedder
from d3still.deploy.gallery import Gallery, Match
from d3still.deploy.listing import Box, GalleryImage
from d3still.deploy.network_files import ONNX
from d3still.deploy.page import thumbnail
from d3still.deploy.questions import SEARCH, Limits, Question, Refused, embedded, parsed
from d3still.errors import require
from d3still.text import visible

logger = logging.getLogger(__name__)

RUNTIME_FILES = {"ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"}
"""Files of onnxruntime-web that a browser needs to run the query network."""
_TYPES = {".mjs": "text/javascript", ".js": "text/javascript", ".wasm": "application/wasm", ".css": "text/css"}
_TEMPLATES = Path(__file__).parent / "templates"
_PAGE_FILES = {"search.js", "search.css"}
_THUMBNAIL, _QUALITY = 320, 85
_CACHED_THUMBNAILS = 2048
_GONE = "this image is no longer there"
_FOREVER = {"Cache-Control": "public, max-age=31536000, immutable"}  # an id is never given to another image
_POLICY = (
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; img-src 'self' blob: data:; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Searcher:
    """Searches in another thread; those that wait meanwhile go to the index together."""

    def __init__(self, gallery: Gallery, batch: int) -> None:
        self._gallery, self._batch = gallery, batch
        self._waiting: asyncio.Queue[tuple[Question, asyncio.Future[list[Match]]]] = asyncio.Queue()

    async def __call__(self, question: Question) -> list[Match]:
        """The answers, best first."""
        future: asyncio.Future[list[Match]] = asyncio.get_running_loop().create_future()
        await self._waiting.put((question, future))
        return await future

    async def work(self) -> None:
        """Answer questions until cancelled."""
        while True:
            entries = [await self._waiting.get()]
            while len(entries) < self._batch and not self._waiting.empty():
                entries.append(self._waiting.get_nowait())
            try:
                answers: Sequence[Any] = await asyncio.to_thread(self._answers, [entry[0] for entry in entries])
            except Exception as error:
                answers = [error] * len(entries)
            for (_, future), answer in zip(entries, answers, strict=True):
                if future.done():  # its request has gone
                    continue
                future.set_exception(answer) if isinstance(answer, Exception) else future.set_result(answer)

    def _answers(self, questions: Sequence[Question]) -> list[list[Match]]:
        together: dict[tuple[str | None, str | None], list[int]] = {}
        for place, question in enumerate(questions):
            together.setdefault(question[2:], []).append(place)
        answers: list[list[Match]] = [[] for _ in questions]
        for (identity, camera), places in together.items():
            features = np.stack([questions[place].feature for place in places])
            topk = max(questions[place].topk for place in places)
            for place, found in zip(places, self._gallery.find(features, topk, identity, camera), strict=True):
                answers[place] = found[: questions[place].topk]
        return answers


class _Measured:
    """What /metrics tells; numbers of this service alone."""

    def __init__(self, gallery: Gallery) -> None:
        self._client = require("prometheus_client", "the search service")
        self._registry = self._client.CollectorRegistry()
        kinds = {"registry": self._registry, "namespace": "d3still"}
        self._requests = self._client.Counter("requests", "answered requests", ["route", "status"], **kinds)
        self._seconds = self._client.Histogram("seconds", "time of a part of a search", ["part"], **kinds)
        self._client.Gauge("images", "images of the gallery", **kinds).set_function(lambda: len(gallery))

    def answered(self, route: str, response: Any) -> Any:
        self._requests.labels(route if response.status_code != 404 else "unknown", response.status_code).inc()
        return response

    @contextmanager
    def timed(self, part: str, into: dict[str, float]) -> Iterator[None]:
        """Note how long a block took."""
        began = time.perf_counter()
        try:
            yield
        finally:
            into[part] = round(time.perf_counter() - began, 6)
            self._seconds.labels(part).observe(into[part])

    def text(self) -> bytes:
        return self._client.generate_latest(self._registry)


def create_app(
    gallery: Gallery,
    embedder: Embedder | None = None,
    query_file: Path | None = None,
    samples: Sequence[GalleryImage] = (),
    limits: Limits | None = None,
    runtime: Path | None = None,
) -> Any:
    """The service over a gallery, as an ASGI application.

    Args:
        gallery: what is searched.
        embedder: the query network, for images that the server embeds; None = it takes features only.
        query_file: its ONNX file; the page runs it in the browser, if it resizes itself and ``runtime`` is there.
        samples: query images that the page offers.
        limits: of a request.
        runtime: the folder of onnxruntime-web's files.

    Raises:
        UserError: FastAPI is missing, or the network does not belong with the gallery's.
    """
    for module in ("fastapi", "prometheus_client", "python_multipart"):
        require(module, "the search service")
    from fastapi import FastAPI

    limits = limits or Limits()
    if embedder is not None:
        gallery.require_partner(embedder.description)
    measured, searcher = _Measured(gallery), Searcher(gallery, limits.batch)
    in_browser = query_file is not None and runtime is not None and _resizes(query_file)

    @asynccontextmanager
    async def lifespan(_: Any) -> Any:
        task = asyncio.create_task(searcher.work())
        yield
        task.cancel()

    app = FastAPI(title="d3still search", lifespan=lifespan)
    _guard(app, limits, measured)
    _add_search(app, gallery, embedder, searcher, limits, measured)
    _add_pictures(app, gallery, samples)
    _add_network(app, query_file, runtime)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Whether the service answers, and over what."""
        return {"status": "ok", "images": len(gallery), "network": gallery.network}

    @app.get("/settings", include_in_schema=False)
    async def settings() -> dict[str, Any]:
        return {
            "images": len(gallery),
            "gallery": gallery.network,
            "query": None if embedder is None else str(embedder.description),
            "size": None if embedder is None else embedder.description.size,
            "in_browser": in_browser,
            "upload": limits.upload,
            "pixels": limits.pixels,
            "samples": [{"image": f"/sample/{n}", "identity": s.identity} for n, s in enumerate(samples)],
        }

    return app


def _guard(app: Any, limits: Limits, measured: _Measured) -> None:
    """What holds for every request: how many at once, how long, what an error looks like, and what is counted."""
    from fastapi import Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, Response

    at_work = 0

    @app.middleware("http")
    async def guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        nonlocal at_work
        route = f"/{request.url.path.split('/')[1]}"
        if at_work >= limits.requests:
            busy = _refusal(JSONResponse, Refused(503, "too many requests at once; try again"))
            return measured.answered(route, busy)
        at_work += 1
        try:
            response = await asyncio.wait_for(answer(request), limits.seconds)
        except asyncio.TimeoutError:
            response = _refusal(JSONResponse, Refused(503, f"this took more than {limits.seconds:g} s; try again"))
        except Exception:
            logger.exception("%s failed", request.url.path)
            response = _refusal(JSONResponse, Refused(500, "the service failed; its log says why"))
        finally:
            at_work -= 1
        response.headers["Content-Security-Policy"] = _POLICY if route not in ("/docs", "/redoc") else ""
        response.headers["X-Content-Type-Options"] = "nosniff"
        return measured.answered(route, response)

    @app.exception_handler(Refused)
    async def refuse(_: Request, refused: Refused) -> Response:
        return _refusal(JSONResponse, refused)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return JSONResponse({"detail": visible(error.errors()[0]["msg"])}, 422)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Numbers for Prometheus."""
        return Response(measured.text(), media_type="text/plain; version=0.0.4")


def _add_search(
    app: Any, gallery: Gallery, embedder: Embedder | None, searcher: Searcher, limits: Limits, measured: _Measured
) -> None:
    from fastapi import Request

    @app.post("/search", openapi_extra=SEARCH)
    async def search(request: Request) -> Any:
        """The nearest gallery images of a feature vector or of an image."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        await _read(request, limits.upload)
        fields: dict[str, Any] = dict(request.query_params)
        if kind == "multipart/form-data":
            try:
                fields |= dict(await request.form(max_files=1, max_fields=8))
            except Exception as error:
                raise Refused(400, f"the form cannot be read ({getattr(error, 'detail', error)})") from error
        question, upload = parsed(kind, await request.body(), fields, gallery.width, limits)
        seconds = {"embed": 0.0, "search": 0.0}
        if upload is not None:
            if embedder is None:
                raise Refused(422, "this service has no query network (--weights): send a vector")
            with measured.timed("embed", seconds):
                data = await upload.read()
                question = question._replace(feature=await asyncio.to_thread(embedded, embedder, data, limits))
        with measured.timed("search", seconds):
            matches = await searcher(question)
        return {
            "results": [_result(match) for match in matches],
            "embedded_by": "client" if upload is None else "server",
            "seconds": seconds,
        }


def _add_pictures(app: Any, gallery: Gallery, samples: Sequence[GalleryImage]) -> None:
    from fastapi.responses import FileResponse, Response

    cached = lru_cache(_CACHED_THUMBNAILS)(_jpeg)

    @app.get("/image/{id}")
    async def image(id: int) -> Response:
        """A gallery image by its number, small."""
        found = gallery.image_of(id)
        if found is None:
            raise Refused(404, f"the gallery holds no image {id}")
        try:
            return Response(await asyncio.to_thread(cached, found.path, found.box), 200, _FOREVER, "image/jpeg")
        except ImageError as error:
            raise Refused(404, _GONE) from error

    @app.get("/sample/{number}")
    async def sample(number: int) -> Response:
        """A sample query by its number, as it is."""
        if not 0 <= number < len(samples):
            raise Refused(404, f"there is no sample {number}")
        if not Path(samples[number].path).is_file():
            raise Refused(404, _GONE)
        return FileResponse(samples[number].path)


def _add_network(app: Any, query_file: Path | None, runtime: Path | None) -> None:
    """The page, the query network that it runs, and what runs that."""
    from fastapi.responses import FileResponse, Response

    async def own_file(path: Path | None, kind: str) -> Response:
        if path is None or not path.is_file():
            raise Refused(404, "this service has no such file; start it with --weights query.onnx")
        return FileResponse(path, media_type=kind)

    @app.get("/query.onnx")
    async def query_network() -> Response:
        """The query network."""
        return await own_file(query_file, "application/octet-stream")

    @app.get("/query.onnx.json")
    async def query_card() -> Response:
        """Its card."""
        return await own_file(query_file and query_file.with_name(f"{query_file.name}.json"), "application/json")

    @app.get("/runtime/{name}", include_in_schema=False)
    async def runtime_file(name: str) -> Response:
        if name not in RUNTIME_FILES:
            raise Refused(404, "there is no such file")
        return await own_file(runtime and runtime / name, _TYPES[Path(name).suffix])

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(_TEMPLATES / "search.html", media_type="text/html")

    @app.get("/page/{name}", include_in_schema=False)
    async def page_file(name: str) -> Response:
        if name not in _PAGE_FILES:
            raise Refused(404, "there is no such file")
        return FileResponse(_TEMPLATES / name, media_type=_TYPES[Path(name).suffix])


async def _read(request: Any, limit: int) -> None:
    """Read the body into the request, up to a limit."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise Refused(413, f"the request has {int(length):,} bytes; at most {limit:,} are taken")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise Refused(413, f"the request has more than the {limit:,} bytes that are taken")
    request._body = bytes(body)  # what `request.body()` and `request.form()` then take


def _jpeg(path: str, box: Box | None) -> bytes:
    buffer = io.BytesIO()
    thumbnail(path, box, _THUMBNAIL).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _result(match: Match) -> dict[str, Any]:
    return {
        "id": match.id,
        "score": round(match.score, 6),
        "identity": match.identity,
        "camera": match.camera,
        "image": f"/image/{match.id}",
    }


def _refusal(response: Any, refused: Refused) -> Any:
    return response({"detail": refused.detail}, refused.status, {"Retry-After": "1"} if refused.status == 503 else None)


def _resizes(query_file: Path) -> bool:
    """Whether an ONNX file takes images of any size, so that a browser need not know how to resize."""
    if query_file.suffix != ONNX:
        return False
    try:
        card = json.loads(query_file.with_name(f"{query_file.name}.json").read_text(encoding="utf-8"))
        return bool(card["graph"]["resizes"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
