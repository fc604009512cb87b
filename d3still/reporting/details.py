"""What the report shows of one baseline before and after + ACD, beyond its lines in the table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from d3still.errors import UserError
from d3still.evaluation.lists import RankedList, most_changed
from d3still.reporting.album import Album
from d3still.reporting.figures import TALL, Bar, Chart, Series, bar_chart, line_chart, scatter
from d3still.reporting.pairing import Pairs, mean_pairs, pairs_of_seeds
from d3still.reporting.rows import COLUMNS, PROTOCOLS, Result, Row, shared_seeds
from d3still.reporting.tables import difference_cell, pair_title, title_of
from d3still.runs.facts import BASELINE, differences, max_pixels_of
from d3still.runs.finished import Run
from d3still.text import file_name

logger = logging.getLogger(__name__)

# The AIR lists of some queries of a run, by the query's path; a `UserError` where weights or images are not there.
ListSource = Callable[[Run, Sequence[str]], Mapping[str, RankedList]]

MAX_CMC_RANK = 20
MAX_DOTS = 1500  # queries in the scatter; more would make the page slow
LARGEST = 1e30  # what is larger, or no number, is not drawn
NOT_LOSSES = {"epoch", "lr", "seconds", "images_per_second", "data_wait", "steps", "AIR", "SIR"}
TIERS = {  # RAHO's tiers: colour of the bar, its rate, what it means
    "unimportant_at_both": ("after", "lr", "unimportant at both resolutions: lr"),
    "unimportant_at_high_resolution_only": ("half", "γ·lr", "unimportant at high resolution only: γ·lr"),
    "important": ("before", "γ²·lr", "important: γ²·lr"),
}
VIEWS = {"high": "High-resolution images", "cross": "Low-resolution images (cross-resolution)"}


def detail(before: Row, after: Row, album: Album, lists_of: ListSource | None, shown_queries: int) -> dict[str, Any]:
    """The page's part of a baseline and its + ACD, which share a seed; for the arguments see `report_html`."""
    seed = shared_seeds(before, after)[0]
    parts = pairs_of_seeds(after, before, COLUMNS[0])
    pairs = mean_pairs(parts) if parts else None
    remarks, queries = [], []
    if lists_of is not None and pairs is not None and shown_queries:
        remarks, queries = _queries(before, after, seed, pairs, album, lists_of, shown_queries)
    configs = (row.results[seed].run.config for row in (before, after))
    return {
        "title": before.baseline,
        "pair": pair_title(before.pair),
        "change": difference_cell(after.differences[BASELINE][COLUMNS[0]]).text,
        "seed": seed,  # of the runs that single results are of
        "rankings": [*cmc_chart(before, after), *ap_scatter(pairs)],
        "remarks": remarks,  # on the queries
        "queries": queries,  # a heading with its cards, twice
        "blocks": list(block_charts(after.results[seed])),
        "losses": list(loss_charts(before, after)),
        "settings": [(key, *map(_setting, values)) for key, *values in differences(*configs)],
    }


def cmc_chart(before: Row, after: Row) -> Iterator[Chart]:
    """Share of queries with a hit by each rank, for both rows and both protocols."""
    series = []
    for row, kind in ((before, "before"), (after, "after")):
        for protocol in PROTOCOLS:
            curve = _mean_cmc([row.results[seed] for seed in row.seeds], protocol)
            if curve is not None:
                points = list(enumerate((100 * curve).tolist(), start=1))
                series.append(Series(f"{title_of(row)}, {protocol}", points, kind, protocol == "SIR"))
    if series:
        yield line_chart("CMC", series, "rank", "queries with a hit (%)", high=100, unit=" %", height=TALL)


def ap_scatter(pairs: Pairs | None) -> Iterator[Chart]:
    """AP of each query after against before."""
    if pairs is None:
        return
    shown = sample_of(pairs.values)
    dots = [
        (
            pairs.before[i],
            pairs.after[i],
            f"{file_name(pairs.paths[i])}, identity {pairs.names[i]}: AP {pairs.change(i)}",
        )
        for i in shown
    ]
    caption = f"AP of {len(pairs.values):,} queries (AIR)"
    if len(shown) < len(pairs.values):
        caption += f"; shown: the {MAX_DOTS // 2:,} most changed and as many others"
    yield scatter(caption, dots, "AP before (%)", "AP after + ACD (%)")


def block_charts(result: Result) -> Iterator[Chart]:
    """Normalised score of each block, coloured by the tier it ended in; nothing where none was scored."""
    report = result.run.metrics.get("optimizer_report")
    scores, groups = (_tree(_tree(report).get(key)) for key in ("scores", "groups"))
    tier_of = {block: tier for tier in TIERS if isinstance(groups.get(tier), list) for block in groups[tier]}
    for view, title in VIEWS.items():
        keys = (view, f"normalised_{view}")
        pairs = {name: [_tree(block).get(key) for key in keys] for name, block in scores.items()}
        known = {name: pair for name, pair in pairs.items() if all(map(_is_drawn, pair))}
        bars = [_bar(name, *pair, tier_of.get(name, "important")) for name, pair in known.items()]
        if not any(raw for raw, _ in known.values()):
            title += ", which the gallery network never named right"
        if bars:
            yield bar_chart(title, bars, "normalised score", [(kind, meaning) for kind, _, meaning in TIERS.values()])


def loss_charts(before: Row, after: Row) -> Iterator[Chart]:
    """Each loss term over the epochs, a line a seed."""
    histories = [(row, seed, row.results[seed].run.history) for row in (before, after) for seed in row.seeds]
    terms = dict.fromkeys(term for _, _, records in histories for record in records for term in record)
    for term in terms:
        if term in NOT_LOSSES:
            continue
        series = []
        for row, seed, records in histories:
            points = [(r["epoch"] + 1, float(r[term])) for r in records if _is_drawn(r.get(term))]
            if points:
                kind = "before" if row is before else "after"
                series.append(Series(f"{title_of(row)}, seed {seed}", points, kind))
        if series:
            yield line_chart(term, series, "epoch", "share" if term == "accuracy" else "loss")


def sample_of(gains: np.ndarray) -> list[int]:
    """Places of all queries, or of very many the most changed half and an even choice of the others."""
    if len(gains) <= MAX_DOTS:
        return list(range(len(gains)))
    order = np.argsort(-np.abs(gains), kind="stable")
    rest = order[MAX_DOTS // 2 :]
    even = rest[np.linspace(0, len(rest) - 1, MAX_DOTS - MAX_DOTS // 2).astype(int)]
    return [*order[: MAX_DOTS // 2].tolist(), *even.tolist()]


def _queries(
    before: Row, after: Row, seed: int, pairs: Pairs, album: Album, lists_of: ListSource, count: int
) -> tuple[list[str], list[tuple[str, list[dict[str, Any]]]]]:
    """What to say of the most improved and the most harmed queries, and their cards."""
    improved, harmed = most_changed(pairs.values, count)
    chosen = [*improved, *harmed]
    if not chosen:
        return ["No query changed."], []
    paths = [str(pairs.paths[i]) for i in chosen]
    names = (f"{before.baseline}, seed {seed}", f"+ ACD, seed {seed}")
    try:
        lists = [lists_of(row.results[seed].run, paths) for row in (before, after)]
    except UserError as error:
        logger.warning("no ranked lists for %s: %s", before.baseline, error)
        return [f"No ranked lists: {error}"], []
    config = after.results[seed].run.config
    view = tuple(config["INPUT"]["STUDENT_SIZE_TEST"]), max_pixels_of(config)
    seeds = len(shared_seeds(before, after))
    remarks = [f"Chosen by their AP, the mean over {seeds} seeds; the lists are of seed {seed}."] if seeds > 1 else []
    cards = {}
    for i, path in zip(chosen, paths, strict=True):
        if not album.full:
            cards[i] = album.card(pairs, i, dict(zip(names, (side[path] for side in lists), strict=True)), *view)
    if len(cards) < len(chosen):
        remarks.append("Some queries are left out to keep this page small.")
    parts = (("Most improved queries", improved), ("Most harmed queries", harmed))
    return remarks, [(heading, [cards[i] for i in places if i in cards]) for heading, places in parts]


def _mean_cmc(results: Sequence[Result], protocol: str) -> np.ndarray | None:
    curves = [r.source(protocol).per_query.get(f"{protocol}_cmc") for r in results]
    curves = [curve[:MAX_CMC_RANK] for curve in curves if curve is not None and len(curve)]
    if not curves:
        return None
    length = min(map(len, curves))
    return np.mean([curve[:length] for curve in curves], axis=0)


def _bar(block: str, raw: float, score: float, tier: str) -> Bar:
    kind, rate, meaning = TIERS[tier]
    text = f"{block}: normalised score {score:.3f}, raw {raw:.4g}; {meaning}"
    return Bar(block, score, kind, text, f"{score:.2f} {rate}")


def _tree(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _is_drawn(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST  # NaN is not


def _setting(value: Any) -> str:
    return "–" if value is None else "(empty)" if value == "" else str(value)
