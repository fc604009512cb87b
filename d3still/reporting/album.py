"""The queries that a report shows, with small pictures inside the page, within a budget of bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from d3still.data import Sample
from d3still.evaluation.lists import Entry, RankedList
from d3still.pages import picture_uri
from d3still.reporting.pairing import Pairs
from d3still.reporting.pictures import Size, network_view, thumbnail
from d3still.text import file_name

THUMBNAIL = 72  # pixels, as large as the page shows them
BUDGET = 10_000_000  # bytes of all pictures in a page, so that with everything else it stays below 15 MB


class Album:
    """Makes the cards of queries and counts the bytes of their pictures.

    An image that cannot be read is reported once.
    """

    def __init__(self, budget: int = BUDGET) -> None:
        self.left = budget
        self._made: dict[tuple[Sample, object], Markup | None] = {}

    @property
    def full(self) -> bool:
        """Whether the budget is used up."""
        return self.left <= 0

    def card(
        self, pairs: Pairs, i: int, lists: Mapping[str, RankedList], size: Size, max_pixels: int
    ) -> dict[str, Any]:
        """The page's card of a query: as the query network sees it, what changed, and its list by each run.

        A picture is its address in the page; None where it cannot be read.

        Args:
            pairs: the queries.
            i: a place in them.
            lists: by the name of each run.
            size: (height, width) at which the query network sees the query.
            max_pixels: the largest image that is decoded.
        """
        query = next(iter(lists.values())).query
        return {
            "sides": [
                (f"{name}: AP {100 * ranked.ap:.1f} %", [self._shown(entry, max_pixels) for entry in ranked.entries])
                for name, ranked in lists.items()
            ],
            "name": file_name(pairs.paths[i]),
            "picture": self._picture(query, max_pixels, size),
            "change": f"identity {pairs.names[i]}, {size[0]}×{size[1]} pixels; AP {pairs.change(i)}",
        }

    def _shown(self, entry: Entry, max_pixels: int) -> tuple[Markup | None, str, Entry]:
        sample = entry.sample
        alt = f"rank {entry.rank}, {'hit' if entry.hit else 'miss'}, identity {sample.name}, {file_name(sample.path)}"
        return self._picture(sample, max_pixels), alt, entry

    def _picture(self, sample: Sample, max_pixels: int, size: Size | None = None) -> Markup | None:
        """At the pixels of the query network, losslessly, or the whole image, small."""
        key = (sample, size)
        if key not in self._made:
            picture = network_view(sample, size, max_pixels) if size else thumbnail(sample, THUMBNAIL, max_pixels)
            self._made[key] = None if picture is None else picture_uri(picture, lossless=size is not None)
        self.left -= len(self._made[key] or "")  # a repeated picture is repeated in the page
        return self._made[key]
