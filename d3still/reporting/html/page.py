"""The report page: one file, no server, nothing from outside."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.resources import files

from d3still.errors import UserError
from d3still.reporting.comparison import Comparison
from d3still.reporting.html.images import Album
from d3still.reporting.html.markup import Safe, empty_tag, join, tag
from d3still.reporting.html.queries import ListSource, Side, query_cards
from d3still.reporting.html.results import AIR_MAP, bullet_list, results_table, verdict
from d3still.reporting.html.sections import (
    ap_scatter,
    cmc_chart,
    common_pairs,
    config_table,
    loss_charts,
    raho_charts,
)
from d3still.reporting.lists import most_changed
from d3still.reporting.pairing import Pairs
from d3still.reporting.rows import Row
from d3still.reporting.tables import difference_text, footnotes, pair_title
from d3still.runs.facts import BASELINE

logger = logging.getLogger(__name__)

SHOWN_QUERIES = 3  # most improved, and as many most harmed
# Nothing is loaded from anywhere: images are part of the page, and so are its style and its script.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def report_html(comparison: Comparison, lists_of: ListSource | None = None, shown_queries: int = SHOWN_QUERIES) -> str:
    """The whole page as text.

    Args:
        comparison: what to report.
        lists_of: where ranked lists come from; None leaves them out.
        shown_queries: how many of the most improved and of the most harmed queries to show for each baseline.
    """
    title = _title(comparison.pairs)
    album = Album()
    compared = [(before, after) for before, after in comparison.compared() if set(before.results) & set(after.results)]
    details = [
        _details(place, before, after, album, lists_of, shown_queries) for place, (before, after) in enumerate(compared)
    ]
    body = tag(
        "body",
        tag("header", tag("h1", title), bullet_list(verdict(comparison))),
        _navigation(comparison, compared),
        tag("main", *_tables(comparison), tag("h2", "Baseline by baseline", id="details"), *details),
        tag("div", id="tip", hidden="", aria_hidden="true"),
        tag("script", Safe(_asset("report.js"))),
    )
    return f"<!DOCTYPE html>\n{tag('html', _head(title), body, lang='en')}\n"


def _title(pairs: Sequence[str]) -> str:
    if len(pairs) == 1:
        return f"+ ACD on {pair_title(pairs[0])}"
    datasets = dict.fromkeys(pair.partition("/")[0] for pair in pairs)
    return f"+ ACD on {', '.join(datasets)}: {len(pairs)} pairs of networks"


def _head(title: str) -> Safe:
    return tag(
        "head",
        empty_tag("meta", charset="utf-8"),
        empty_tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        empty_tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        empty_tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Safe(_asset("report.css"))),
    )


def _asset(name: str) -> str:
    return (files("d3still.reporting.html") / name).read_text(encoding="utf-8")


def _tables(comparison: Comparison) -> list[Safe]:
    parts = [tag("h2", "Results", id="results")]
    for pair in comparison.pairs:
        parts += [tag("h3", pair_title(pair)), results_table(comparison, pair)]
    return [*parts, bullet_list(footnotes(comparison))]


def _navigation(comparison: Comparison, compared: Sequence[tuple[Row, Row]]) -> Safe:
    several = len(comparison.pairs) > 1
    links = [tag("a", "Results", href="#results")]
    for place, (before, _) in enumerate(compared):
        links.append(
            tag(
                "a",
                f"{pair_title(before.pair)}: {before.baseline}" if several else before.baseline,
                href=f"#row{place}",
            )
        )
    return tag("nav", tag("ul", *(tag("li", link) for link in links)), aria_label="Sections")


def _details(
    place: int, before: Row, after: Row, album: Album, lists_of: ListSource | None, shown_queries: int
) -> Safe:
    """One baseline's part, folded but for the first."""
    seed = min(set(before.results) & set(after.results))
    change = difference_text(after.differences.get(BASELINE, {}).get(AIR_MAP))
    heading = tag("span", f"{pair_title(before.pair)}; AIR mAP {change}", class_="faint")
    pairs = common_pairs(before, after)
    losses = list(loss_charts(before, after))
    queries: list[Safe] = []
    if lists_of is not None and pairs is not None and shown_queries:
        queries = _queries(before, after, seed, pairs, album, lists_of, shown_queries)
    content = (
        tag("h3", "Queries"),
        tag("div", cmc_chart(before, after), ap_scatter(pairs), class_="charts"),
        *queries,
        tag("h3", f"RAHO: what each block of the gallery network does, seed {seed}"),
        tag("div", raho_charts(after.results[seed]), class_="charts"),
        tag("h3", "Losses"),
        tag("div", *losses, class_="charts") if losses else tag("p", "No history was kept.", class_="faint"),
        tag("h3", "What differs in the config"),
        config_table(before, after),
    )
    summary = tag("summary", before.baseline, " ", heading)
    opened = {"open": ""} if place == 0 else {}
    return tag("details", summary, *content, id=f"row{place}", **opened)


def _queries(
    before: Row, after: Row, seed: int, pairs: Pairs, album: Album, lists_of: ListSource, count: int
) -> list[Safe]:
    improved, harmed = most_changed(pairs.values, count)
    chosen = [*improved, *harmed]
    if not chosen:
        return [tag("p", "No query changed.", class_="faint")]
    paths = [str(pairs.paths[i]) for i in chosen]
    try:
        sides = [
            Side(name, lists_of(row.results[seed].run, paths))
            for row, name in ((before, f"{before.baseline}, seed {seed}"), (after, f"+ ACD, seed {seed}"))
        ]
    except UserError as error:
        logger.warning("no ranked lists for %s: %s", before.baseline, error)
        return [tag("p", f"No ranked lists: {error}", class_="faint")]
    size = tuple(after.results[seed].run.config["INPUT"]["STUDENT_SIZE_TEST"])
    seeds = len(set(before.results) & set(after.results))
    parts = [
        tag("p", f"Chosen by their AP, the mean over {seeds} seeds; the lists are of seed {seed}.", class_="faint")
    ]
    parts = parts if seeds > 1 else []
    for title, places in (("Most improved queries", improved), ("Most harmed queries", harmed)):
        parts.append(tag("h3", title))
        parts.append(query_cards(pairs, places, sides, size, album) if places else tag("p", "None.", class_="faint"))
    return [join(*parts)]
