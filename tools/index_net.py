"""Index a gallery and search it.

  python tools/index_net.py build  --weights log/…/last.pth [--images DIR|CSV] --out gallery.index
  python tools/index_net.py search --weights log/…/last.pth --index gallery.index [--html page.html] IMAGE…
  python tools/index_net.py add    --weights log/…/last.pth --index gallery.index --images DIR|CSV
  python tools/index_net.py remove --index gallery.index [--path FILE …] [--identity NAME …]
  python tools/index_net.py sync   --weights log/…/last.pth --index gallery.index DIR
  python tools/index_net.py info   --index gallery.index

With --engine milvus --uri ./gallery.db (in this process) or --uri http://HOST:19530 (a cluster) instead of an index
file, all of them work on a gallery in Milvus.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _bootstrap

from d3still.config import load_config
from d3still.errors import UserError
from d3still.files import user_path
from d3still.text import visible

if TYPE_CHECKING:
    from d3still.deploy import Embedder, Gallery, IndexBuilder, Ranks

KINDS = ("exact", "ivf", "ivfpq", "hnsw")
ENGINES = ("faiss", "milvus")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="embed a gallery; started again after a kill, it goes on")
    search = commands.add_parser("search", help="the best gallery images for each query image")
    add = commands.add_parser("add", help="append images that the index does not hold yet")
    info = commands.add_parser("info", help="what an index says about itself")
    remove = commands.add_parser("remove", help="take images out")
    sync = commands.add_parser("sync", help="hold what a folder now holds: add new images, embed changed ones again")
    for command, part in ((build, "gallery"), (add, "gallery"), (sync, "gallery"), (search, None)):
        command.add_argument("--weights", required=True, help="a run's last.pth, an export, or a published file")
        command.add_argument("--part", choices=("query", "gallery"), default=part, help="which of its networks")
        command.add_argument("--config-file", "--cfg", help="the YAML file of published weights")
        command.add_argument("--batch-size", type=int, default=64)
    for command in (build, add, search, info, remove, sync):
        name = "--out" if command is build else "--index"
        command.add_argument(name, dest="index", type=user_path, help="the index file")
        add_engine(command)
    for command in (build, add):
        command.add_argument("--images", help="a folder, or a CSV file with a column path; left out: the run's gallery")
    for command in (build, add, sync):
        command.add_argument("--workers", type=int, default=0, help="processes that read images; 0 = a thread")
        command.add_argument("--save-every", type=int, default=1024, help="images between two savings")
    build.add_argument("--kind", choices=KINDS, default="exact")
    build.add_argument("--recall", type=float, default=0.95, help="recall@10 that a search's effort is chosen for")
    build.add_argument("--code-bytes", type=int, default=64, help="ivfpq: bytes of an image's code")
    build.add_argument("--queries", help="images that the gallery lacks, to measure recall with: a folder or CSV")
    build.add_argument("--query-weights", help="the query network that embeds them; left out: that of --weights")
    build.add_argument("--overwrite", action="store_true", help="replace another index, once the new one is complete")
    remove.add_argument("--path", nargs="+", default=[], metavar="FILE", help="image files")
    remove.add_argument("--identity", nargs="+", default=[], metavar="NAME", help="identities, with all their images")
    sync.add_argument("folder", metavar="DIR")
    search.add_argument("--topk", type=int, default=10)
    search.add_argument("--html", type=user_path, help="also write the answers as a page")
    search.add_argument("images", nargs="+", metavar="IMAGE")
    return parser.parse_args()


def add_engine(parser: argparse.ArgumentParser) -> None:
    """The options that say where the gallery is, if not in an index file."""
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0])
    parser.add_argument("--uri", help="of Milvus: a file, or http://HOST:19530")


def place(args: argparse.Namespace) -> Path:
    """The index file, or what the unfinished build of a gallery in Milvus is named after."""
    if (args.engine == "faiss") != bool(args.index) or (args.engine == "milvus") != bool(args.uri):
        raise UserError("give the index file (--index, build: --out), or --engine milvus with --uri")
    return args.index or Path("gallery.milvus" if "://" in args.uri else user_path(args.uri))


def opened(args: argparse.Namespace) -> Gallery:
    """The gallery that the command line names."""
    from d3still.deploy import GalleryIndex
    from d3still.deploy.milvus import MilvusGallery

    return GalleryIndex.load(place(args)) if args.engine == "faiss" else MilvusGallery.open(args.uri)


def build_in_milvus(args: argparse.Namespace, builder: IndexBuilder, network: Embedder, images: Any) -> None:
    """Make the collection on rank 0, where it is missing, then embed what it does not hold."""
    if args.kind != "exact" or args.queries or args.query_weights:
        raise UserError("Milvus chooses its kind of index itself: leave out --kind, --queries and --query-weights")
    from d3still.deploy import IndexOptions
    from d3still.deploy.gallery import header_of
    from d3still.deploy.milvus import MilvusGallery

    if builder.ranks.is_main:
        header = header_of(network.description, IndexOptions(), {})
        with suppress(UserError) if not args.overwrite else nullcontext():
            MilvusGallery.create(args.uri, header, overwrite=args.overwrite).close()  # or it is there, and is added to
    builder.add(images)


def embedder(args: argparse.Namespace, ranks: Ranks, weights: str, part: str | None) -> Embedder:
    """A network that the command line names."""
    from d3still.deploy import Embedder

    config = load_config(args.config_file) if args.config_file else None
    return Embedder.from_checkpoint(weights, part, ranks.device, args.batch_size, config)


def search(args: argparse.Namespace, network: Embedder) -> None:
    """Print the answers, and write them as a page where asked to."""
    from d3still.deploy import write_page
    from d3still.deploy.listing import shown

    index = opened(args)
    answers = index.search(network, args.images, args.topk)
    for query, matches in zip(args.images, answers, strict=True):
        print(visible(query))
        for rank, match in enumerate(matches, start=1):
            known = "" if match.identity is None else f"  [{visible(match.identity)}]"
            print(f"{rank:4}  {match.score:7.4f}  {shown(match.path)}{known}")
    if args.html:
        write_page(args.html, args.images, answers, f"{len(args.images)} queries, {len(index)} gallery images")
        print(f"page: {visible(args.html)}")


def main() -> None:
    """Do what the command says."""
    args = parse()
    from d3still.deploy import IndexBuilder, IndexOptions, torchrun_ranks
    from d3still.deploy.build import remove_images
    from d3still.deploy.index import read_header
    from d3still.deploy.listing import run_dataset
    from d3still.engine.events import logging_to

    sys.stdout.reconfigure(errors="backslashreplace")  # paths need not be Unicode
    path = place(args)
    if args.command == "info":
        header = read_header(path) if args.engine == "faiss" else opened(args).header
        print(json.dumps(header, indent=1))
        return
    if args.command == "remove":
        with logging_to(None):
            remove_images(path, args.path, args.identity, lambda: opened(args))
        return
    with torchrun_ranks() as ranks, logging_to(None, quiet=not ranks.is_main):
        network = embedder(args, ranks, args.weights, args.part)
        if args.command == "search":
            search(args, network)
            return
        builder = IndexBuilder(network, path, args.workers, args.save_every, ranks, lambda: opened(args))
        if args.command == "sync":
            builder.sync(args.folder)
            return
        images = args.images or run_dataset(network.description).gallery
        if args.command == "add":
            builder.add(images)
        elif args.engine == "milvus":
            build_in_milvus(args, builder, network, images)
        else:
            options = IndexOptions(args.kind, args.recall, args.code_bytes)
            asking = embedder(args, ranks, args.query_weights, None) if args.query_weights else None
            builder.build(images, options, args.overwrite, args.queries, asking)


if __name__ == "__main__":
    _bootstrap.run(main)
