"""Serve a gallery: python tools/serve_net.py --index gallery.index --weights query.onnx

Then open http://127.0.0.1:8000. With a query network that was exported with --with-resize, and onnxruntime-web
beside (make serve-demo gets it), the page embeds in the browser and no picture leaves the device.
"""

from __future__ import annotations

import argparse
import ipaddress
import logging
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import _bootstrap

from d3still.config import load_config
from d3still.errors import UserError
from d3still.files import user_path

if TYPE_CHECKING:
    from d3still.deploy import Embedder, Gallery
    from d3still.deploy.listing import GalleryImage

RUNTIME = Path(sys.prefix) / "onnxruntime-web/node_modules/onnxruntime-web/dist"
SAMPLES = 12
DRAIN_SECONDS = 10  # for requests that are at work when the service is told to stop

logger = logging.getLogger("d3still.serve")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--index", type=user_path, help="the index file")
    parser.add_argument("--engine", choices=("faiss", "milvus"), default="faiss")
    parser.add_argument("--uri", help="of Milvus, instead of an index file: a file, or http://HOST:19530")
    parser.add_argument("--weights", type=user_path, help="the query network: query.onnx, or a run's last.pth")
    parser.add_argument("--part", choices=("query", "gallery"), help="which of its networks")
    parser.add_argument("--config-file", "--cfg", help="the YAML file of published weights")
    parser.add_argument("--samples", help="query images for the page: a folder or CSV; left out: the run's own queries")
    parser.add_argument("--runtime", type=user_path, default=RUNTIME, help="the folder of onnxruntime-web's files")
    parser.add_argument("--host", default="127.0.0.1", help="another one lets other machines in")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--max-upload", type=int, help="bytes of a request")
    parser.add_argument("--max-pixels", type=int, help="of an image")
    parser.add_argument("--max-topk", type=int)
    parser.add_argument("--max-requests", type=int, help="at work at once")
    parser.add_argument("--max-seconds", type=float, help="a request")
    return parser.parse_args()


def sample_queries(named: str | None, embedder: Embedder | None) -> list[GalleryImage]:
    """Query images for the page, of different identities where these are known."""
    from d3still.deploy.listing import list_images, run_dataset

    if named:
        listed = list_images(named)
    elif embedder is None:
        return []
    else:
        try:
            listed = list_images(run_dataset(embedder.description).query)
        except UserError:  # the data is not on this machine, or not known
            return []
    firsts = list({image.identity or image.path: image for image in reversed(listed)}.values())[::-1]
    return firsts[:: max(1, len(firsts) // SAMPLES)][:SAMPLES]


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there.

    Raises:
        UserError: it is in use, or not to be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio switches Nagle's algorithm, which costs 40 ms an answer, off only where the protocol is named
    taken = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
        taken.listen()
    except (OSError, OverflowError) as error:
        taken.close()
        raise UserError(f"cannot listen at {host} port {port}: {error}; choose another --port or --host") from error
    return taken


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def opened(args: argparse.Namespace) -> Gallery:
    """The gallery that the command line names."""
    if (args.engine == "faiss") != bool(args.index) or (args.engine == "milvus") != bool(args.uri):
        raise UserError("give the index file (--index), or --engine milvus with --uri")
    from d3still.deploy import GalleryIndex
    from d3still.deploy.kinds import answer_few_together
    from d3still.deploy.milvus import MilvusGallery

    if args.engine == "milvus":
        return MilvusGallery.open(args.uri)
    gallery = GalleryIndex.load(args.index)
    answer_few_together(gallery.width)
    return gallery


def main() -> None:
    """Serve until told to stop."""
    args = parse()
    from d3still.deploy import Embedder
    from d3still.deploy.network_files import ONNX
    from d3still.deploy.service import Limits, create_app
    from d3still.engine.events import logging_to
    from d3still.errors import require

    uvicorn = require("uvicorn", "the search service")
    with logging_to(None):
        gallery = opened(args)
        config = load_config(args.config_file) if args.config_file else None
        embedder = Embedder.from_checkpoint(args.weights, args.part, config=config) if args.weights else None
        query_file = args.weights if args.weights and args.weights.suffix == ONNX else None
        given = {name: getattr(args, f"max_{name}") for name in ("upload", "pixels", "topk", "requests", "seconds")}
        limits = Limits(**{name: value for name, value in given.items() if value is not None})
        samples = sample_queries(args.samples, embedder)
        runtime = args.runtime if args.runtime.is_dir() else None
        app = create_app(gallery, embedder, query_file, samples, limits, runtime)
        listening = bound(args.host, args.port)
        host, port = listening.getsockname()[:2]
        logger.info("%d images at http://%s:%d", len(gallery), f"[{host}]" if ":" in host else host, port)
        if not is_loopback(args.host):
            logger.warning("whoever reaches %s port %d may search, and see every gallery image", host, port)
        options = {"log_level": "warning", "timeout_graceful_shutdown": DRAIN_SECONDS}
        server = uvicorn.Server(uvicorn.Config(app, **options))
        # Having drained, uvicorn sends itself the signal again, by which the process would die: a stop that was
        # asked for is no failure.
        signal.signal(signal.SIGTERM, lambda *_: setattr(server, "should_exit", True))
        server.run(sockets=[listening])


if __name__ == "__main__":
    _bootstrap.run(main)
