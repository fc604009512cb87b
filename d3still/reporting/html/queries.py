"""The most improved and most harmed queries, with both ranked lists side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from d3still.reporting.html.images import Album
from d3still.reporting.html.markup import Safe, join, tag
from d3still.reporting.html.sections import file_name
from d3still.reporting.lists import Entry, RankedList
from d3still.reporting.pairing import Pairs
from d3still.reporting.tables import signed
from d3still.runs.finished import Run

# The AIR lists of some queries of a run, by the query's place among those asked for; a `UserError` where the
# run's weights or images are not there.
ListSource = Callable[[Run, Sequence[str]], Mapping[str, RankedList]]


@dataclass(frozen=True)
class Side:
    """One of the two runs: its name, and its list of each query by the query's path."""

    name: str
    lists: Mapping[str, RankedList]


def query_cards(
    pairs: Pairs, chosen: Sequence[int], sides: Sequence[Side], size: tuple[int, int], album: Album
) -> Safe:
    """A card a query: what changed, the query as the query network sees it, both lists.

    Args:
        pairs: of all queries.
        chosen: places of those to show.
        sides: before and after.
        size: (height, width) of the query network's input.
        album: makes the images.
    """
    cards = []
    for i in chosen:
        if album.full:
            cards.append(tag("p", "Further queries are left out to keep this page small.", class_="faint"))
            break
        cards.append(_card(pairs, i, sides, size, album))
    return join(*cards)


def _card(pairs: Pairs, i: int, sides: Sequence[Side], size: tuple[int, int], album: Album) -> Safe:
    path = str(pairs.paths[i])
    name, sample = file_name(path), sides[0].lists[path].query
    change = f"AP {pairs.before[i]:.1f} % → {pairs.after[i]:.1f} % ({signed(float(pairs.values[i]))})"
    heading = tag(
        "header",
        album.query(sample, size, f"query {name}"),
        tag(
            "div",
            tag("p", tag("strong", name)),
            tag("p", f"identity {pairs.names[i]}, {size[0]}×{size[1]} pixels; {change}", class_="faint"),
        ),
    )
    columns = [_ranks(side.name, side.lists[path], album) for side in sides]
    return tag("article", heading, tag("div", *columns, class_="lists"), class_="query")


def _ranks(name: str, ranked: RankedList, album: Album) -> Safe:
    title = f"{name}: AP {100 * ranked.ap:.1f} %"
    return tag("section", tag("h4", title), tag("ol", *(_entry(e, album) for e in ranked.entries), class_="ranks"))


def _entry(entry: Entry, album: Album) -> Safe:
    kind, sign = ("hit", "✓") if entry.hit else ("miss", "✗")
    alt = f"rank {entry.rank}, {kind}, identity {entry.sample.name}, {file_name(entry.sample.path)}"
    image = album.gallery(entry.sample, alt)
    return tag("li", image, tag("b", f"{entry.rank} {sign}"), f" {entry.score:.3f}", class_=kind, title=alt)
