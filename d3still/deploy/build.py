"""Building and extending an index file: streamed, resumable after a kill at any moment, over any number of ranks."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from d3still.deploy.embedder import EmbeddedBatch, Embedder, embed_images
from d3still.deploy.gallery import Gallery, header_of
from d3still.deploy.index import GalleryIndex, read_header, write_faiss
from d3still.deploy.kinds import IndexOptions, add, held_out, new_index, recall_queries, train
from d3still.deploy.listing import GalleryImage, absolute, list_images, stamps_of
from d3still.deploy.store import PART, TRAINED, FeatureStore, Key, Ranks, keyed
from d3still.errors import UserError, require
from d3still.files import user_path, write_atomically
from d3still.logs import progress_bar

logger = logging.getLogger(__name__)

Listed = Sequence[tuple[GalleryImage, Key]]

SAVE_EVERY, SAVE_SECONDS = 1024, 30.0  # features are saved after so many images, or so long
SHOWN = 10  # unreadable images that are named on the console; the file names all


class IndexBuilder:
    """Makes an index file, or adds to one, from images.

    While it works, features are kept in ``OUT.building`` beside the index; started again after a kill, it
    goes on with what is there. Images that cannot be read are left out and listed in ``OUT.unreadable.txt``.

    Args:
        embedder: of the gallery network, on this rank's device.
        out: the index file.
        num_workers: upper bound of processes that read images; 0 = a thread.
        save_every: images between two savings of the features.
        ranks: the processes of torchrun; each embeds its share.
        opened: gives the gallery that `add` and `sync` change; left out: the index file's.
    """

    def __init__(
        self,
        embedder: Embedder,
        out: str | Path,
        num_workers: int = 0,
        save_every: int = SAVE_EVERY,
        ranks: Ranks | None = None,
        opened: Callable[[], Gallery] | None = None,
    ) -> None:
        if save_every < 1:
            raise UserError(f"features are to be saved every {save_every} images; it must be at least 1")
        self.embedder, self.out = embedder, user_path(out)
        self.num_workers, self.save_every, self.ranks = num_workers, save_every, ranks or Ranks()
        self.store = FeatureStore.beside(self.out)
        self._opened = opened or (lambda: GalleryIndex.load(self.out))

    def build(
        self,
        images: str | Path | Iterable[Any],
        options: IndexOptions | None = None,
        overwrite: bool = False,
        queries: str | Path | Iterable[Any] | None = None,
        query_network: Embedder | None = None,
    ) -> Path:
        """Embed a gallery into the index file.

        Args:
            images: a folder, a CSV file, or paths: see `d3still.deploy.listing.list_images`.
            options: the kind of index.
            overwrite: make it anew where one is already; that one stays until the new one is complete.
            queries: images to measure recall with: see `d3still.deploy.kinds.held_out`.
            query_network: that embeds them; None = that of the embedder's file.

        Returns:
            The index file. One that is complete already is left alone.

        Raises:
            UserError: there is another index, an unfinished one by another network, no image, or none that
                can be read.
        """
        options = options or IndexOptions()
        with self._alone():
            plan = self.ranks.from_main(lambda: self._plan(images, options, overwrite, queries))
            if plan is None:
                return self.out
            listed, asked = plan
            self._embed(listed)
            readable = self._readable(listed)
            index = self._assembled(readable, options)
            if index is not None:
                gallery = [image for image, _ in readable]
                unreadable = self.store.unreadable(listed)
                header = header_of(self.embedder.description, options, unreadable, _digest(listed))
                whole = GalleryIndex(index, gallery, header, stamps=[key[2:] for _, key in readable])
                if asked is not None:
                    found = recall_queries(self.embedder, gallery, asked, query_network)
                    whole.measure(lambda: self.store.blocks(readable), options, found)
                self._finish(whole)
            self.ranks.wait()
        return self.out

    def add(self, images: str | Path | Iterable[Any]) -> int:
        """Embed what the index file does not hold yet, and append it.

        Returns:
            The number of images added.

        Raises:
            UserError: the index is of another network, or none of the new images can be read. The index is
                then as it was.
        """
        return self._change(lambda index: (index.missing(list_images(images)), []))[0]

    def sync(self, folder: str | Path) -> tuple[int, int]:
        """Make the index hold what a folder now holds: new images are added, changed ones embedded again under a
        new id, vanished ones removed. Images from elsewhere stay.

        Returns:
            The numbers of images embedded and removed.

        Raises:
            UserError: the index is of another network, or the folder holds no image.
        """

        def plan(index: Gallery) -> tuple[list[GalleryImage], list[int]]:
            top = Path(absolute(folder))
            if not top.is_dir():
                raise UserError(f"{top}: is no folder; sync takes the folder of a gallery's images")
            held = [entry for entry in index.entries() if Path(entry[1].path).is_relative_to(top)]
            listed = list_images(top)
            present, known = {image.path for image in listed}, {image.path for _, image, _ in held}
            now = stamps_of(image for _, image, _ in held)
            stale = [(id, image) for id, image, stamp in held if image.path not in present or now[image] != stamp]
            fresh = {image for _, image, stamp in held if now[image] == stamp}  # after a kill, beside its former form
            again = {image: None for _, image in stale if image.path in present and image not in fresh}
            return [*(image for image in listed if image.path not in known), *again], [id for id, _ in stale]

        return self._change(plan)

    def _change(self, plan: Callable[[Gallery], tuple[list[GalleryImage], list[int]]]) -> tuple[int, int]:
        """Embed the images that ``plan`` names and take out the ids that it names, in one step of the file."""
        with self._alone():
            index = self._opened() if self.ranks.is_main else None
            todo = self.ranks.from_main(lambda: self._plan_change(index, plan))
            if todo is None:
                return 0, 0
            listed, gone = todo
            self._embed(listed)
            readable = self.store.readable(listed)
            if not readable and not gone:
                self._readable(listed)  # says why
            if index is not None:
                images, stamps = [image for image, _ in readable], [key[2:] for _, key in readable]
                index.append(images, lambda: self.store.blocks(readable), self.store.unreadable(listed), stamps)
                index.remove(gone)
                self._finish(index)
            self.ranks.wait()
        return len(readable), len(gone)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self.ranks.is_main:
            yield
            return
        require("faiss", "an index")  # now, and not after hours of embedding
        with self.store.alone():
            yield

    def _plan(
        self,
        images: str | Path | Iterable[Any],
        options: IndexOptions,
        overwrite: bool,
        queries: str | Path | Iterable[Any] | None,
    ) -> tuple[Listed, list[GalleryImage] | None] | None:
        """The images of the index to be, and those to measure its recall with; None when it is complete already."""
        description = self.embedder.description
        listed = keyed(list_images(images))
        if self.out.exists() and not overwrite:
            if self._is_complete(listed, options):
                logger.info("%s is complete: %d images; nothing to do", self.out, len(listed))
                self.store.remove(self.embedder.description.embedding())
                return None
            raise UserError(
                f"{self.out} exists, made of other images, by another network or in another way; choose another --out, "
                "add to it (index_net.py add), or replace it with --overwrite"
            )
        new_index(options, description.feature_width, len(listed))  # refuses now what it would refuse at the end
        measured = options.kind != "exact"
        asked = held_out(self.embedder, [image for image, _ in listed], queries) if measured else None
        self.store.begin(description.embedding(), restart=overwrite)
        return listed, asked

    def _plan_change(
        self, index: Gallery | None, plan: Callable[[Gallery], tuple[list[GalleryImage], list[int]]]
    ) -> tuple[Listed, list[int]] | None:
        assert index is not None  # on the main rank
        description = self.embedder.description
        try:
            index.require_same_network(description)
        except UserError as error:
            raise UserError(f"{self.out}: {error}") from error
        images, gone = plan(index)
        if not images and not gone:
            logger.info("%s holds all these images already; nothing to do", self.out)
            self.store.remove(description.embedding())
            return None
        self.store.begin(description.embedding())
        return keyed(images), gone

    def _is_complete(self, listed: Listed, options: IndexOptions) -> bool:
        wanted = {
            "embedding": self.embedder.description.embedding(),
            "options": asdict(options),
            "source": _digest(listed),
        }
        return wanted.items() <= read_header(self.out).items()

    def _embed(self, listed: Listed) -> None:
        """Put the features of this rank's share into the store, then wait for the others'."""
        self.store.read()
        share = self.ranks.share(listed)
        todo = [entry for entry in share if entry[1] not in self.store]
        if len(todo) < len(share):
            logger.info("%d of %d images are embedded already", len(share) - len(todo), len(share))
        if todo:
            self._embed_into_store(todo, done=len(share) - len(todo))
        self.ranks.wait()
        self.store.read()

    def _embed_into_store(self, todo: Listed, done: int) -> None:
        pending, since = [], time.monotonic()
        batches = embed_images(self.embedder, [image for image, _ in todo], self.num_workers)
        bar = progress_bar(len(todo) + done, done, "embedding", "img", self.ranks.is_main, leave=True)
        with bar, closing(batches):
            for batch in batches:
                pending.append(batch)
                bar.update(len(batch))
                if sum(map(len, pending)) >= self.save_every or time.monotonic() - since > SAVE_SECONDS:
                    self._save(todo, pending)
                    pending, since = [], time.monotonic()
        if pending:
            self._save(todo, pending)

    def _save(self, todo: Listed, batches: list[EmbeddedBatch]) -> None:
        keys = [todo[position][1] for batch in batches for position in batch.positions]
        unreadable = [(todo[position][1], why) for batch in batches for position, why in batch.unreadable.items()]
        self.store.save(self.ranks.rank, keys, np.concatenate([batch.features for batch in batches]), unreadable)

    def _readable(self, listed: Listed) -> Listed:
        readable = self.store.readable(listed)
        if not readable:
            first = next(iter(self.store.unreadable(listed).values()))
            raise UserError(f"none of the {len(listed)} images can be read; {first}")
        return readable

    def _assembled(self, readable: Listed, options: IndexOptions) -> Any:
        """The FAISS index over all features, on rank 0; None on the others.

        Each rank fills a part with its share, and FAISS merges the parts. Only a graph of neighbours cannot
        be merged: rank 0 makes it alone.
        """
        faiss, ranks = require("faiss", "an index"), self.ranks
        alone = ranks.world_size == 1 or options.kind == "hnsw"
        trained = self.store.folder / TRAINED
        if ranks.is_main:
            index = new_index(options, self.embedder.description.feature_width, len(readable))
            train(index, lambda: self.store.blocks(readable), len(readable))
            if alone:
                add(index, lambda: self.store.blocks(readable))
                return index
            _write(index, trained)
        elif alone:
            return None
        ranks.wait()
        part = faiss.read_index(str(trained))
        add(part, lambda: self.store.blocks(ranks.share(readable)))
        files = [self.store.folder / PART.format(rank) for rank in range(ranks.world_size)]
        if not ranks.is_main:
            _write(part, files[ranks.rank])
        ranks.wait()
        return _merged(part, files[1:]) if ranks.is_main else None

    def _finish(self, index: Gallery) -> None:
        """Write what could not be read, and the index where it is a file; then the features are no longer needed."""
        unreadable = index.header["unreadable"]
        report = self.out.with_name(f"{self.out.name}.unreadable.txt")
        if unreadable:
            lines = "".join(f"{path}\t{why}\n" for path, why in unreadable.items())
            write_atomically(report, lambda file: file.write(lines.encode("utf-8", "surrogateescape")))
            for reason in list(unreadable.values())[:SHOWN]:
                logger.warning("left out: %s", reason)
            logger.warning("%d images could not be read; %s lists them", len(unreadable), report)
        else:
            report.unlink(missing_ok=True)
        size = ""
        if isinstance(index, GalleryIndex):
            index.save(self.out)
            size = f", {self.out.stat().st_size / 1e6:.1f} MB"
        self.store.remove(self.embedder.description.embedding())
        logger.info("%s: %d images by %s%s", self.out, len(index), index.network, size)


def _write(index: Any, path: Path) -> None:
    write_atomically(path, lambda file: write_faiss(index, file.write))


def _merged(index: Any, files: Sequence[Path]) -> Any:
    """The first part with the others appended, in order."""
    faiss = require("faiss", "an index")
    for file in files:
        part = faiss.read_index(str(file))
        # lists carry the images' numbers, which go on from those before; a flat index counts by itself
        index.merge_from(part, index.ntotal if hasattr(index, "nlist") else 0)
    return index


def _digest(listed: Listed) -> str:
    """SHA-256 of the list of images and the state of their files."""
    digest = hashlib.sha256()
    for image, key in listed:
        digest.update(json.dumps([*key, image.identity, image.camera]).encode())
    return digest.hexdigest()


def remove_images(
    path: Path,
    paths: Iterable[str | Path] = (),
    identities: Iterable[str] = (),
    opened: Callable[[], Gallery] | None = None,
) -> int:
    """Take all images of these files and of these identities out of a gallery.

    Args:
        path: the index file, or what a build of another engine's gallery is named after.
        paths: image files.
        identities: their names.
        opened: gives the gallery; left out: the index file's.

    Returns:
        The number of images removed.

    Raises:
        UserError: the index holds no such image, or a build is at work on it; it is then as it was.
    """
    paths, identities = list(paths), list(identities)
    if not paths and not identities:
        raise UserError("nothing is named that is to be removed; give --path or --identity")
    with FeatureStore.beside(path).alone():
        gallery = opened() if opened else GalleryIndex.load(path)
        removed = gallery.remove(gallery.ids_of(paths, identities))
        if isinstance(gallery, GalleryIndex):
            gallery.save(path)
    logger.info("%s: %d images removed, %d left", path, len(removed), len(gallery))
    return len(removed)
