"""What the report shows of one baseline before and after + ACD."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from d3still.reporting.html.charts import TALL, Bar, Dot, Series, bar_chart, line_chart, scatter
from d3still.reporting.html.markup import Safe, join, tag
from d3still.reporting.html.results import scrolling
from d3still.reporting.pairing import Pairs, mean_pairs, paired_differences
from d3still.reporting.rows import PROTOCOLS, Result, Row
from d3still.reporting.tables import signed, title_of
from d3still.runs.facts import differences

MAX_CMC_RANK = 20
MAX_DOTS = 1500  # queries in the scatter; more would make the page slow
NOT_LOSSES = {"epoch", "lr", "seconds", "images_per_second", "data_wait", "steps", "AIR", "SIR"}
TIERS = {  # RAHO's tiers: class of the bar, its rate, what it means
    "unimportant_at_both": ("free", "lr", "unimportant at both resolutions: lr"),
    "unimportant_at_high_resolution_only": ("half", "γ·lr", "unimportant at high resolution only: γ·lr"),
    "important": ("tied", "γ²·lr", "important: γ²·lr"),
}
VIEWS = {"high": "High-resolution images", "cross": "Low-resolution images (cross-resolution)"}


def common_pairs(before: Row, after: Row, protocol: str = "AIR") -> Pairs | None:
    """Each query's AP before and after, in percent, mean over the seeds that both rows have."""
    parts = [
        paired_differences(after.results[seed].source(protocol), before.results[seed].source(protocol), protocol, "mAP")
        for seed in after.seeds
        if seed in before.results
    ]
    parts = [part for part in parts if part is not None]
    return mean_pairs(parts) if parts else None


def cmc_chart(before: Row, after: Row) -> Safe:
    """Share of queries with a hit by each rank, for both rows and both protocols."""
    series = []
    for row, class_ in ((before, "before"), (after, "after")):
        for protocol in PROTOCOLS:
            curve = _mean_cmc([row.results[seed] for seed in row.seeds], protocol)
            if curve is not None:
                name = f"{_name(row, before)}, {protocol}"
                style = class_ if protocol == "AIR" else f"{class_} symmetric"
                series.append(Series(name, list(enumerate((100 * curve).tolist(), start=1)), style))
    if not series:
        return tag("p", "No per-query results, so no CMC curves.", class_="faint")
    return line_chart("CMC", series, "rank", "queries with a hit (%)", high=100.0, unit=" %", height=TALL)


def ap_scatter(pairs: Pairs | None) -> Safe:
    """AP of each query after against before."""
    if pairs is None:
        return tag("p", "No per-query results of both, so no scatter.", class_="faint")
    shown = _sample(pairs.values)
    dots = [
        Dot(
            float(pairs.before[i]),
            float(pairs.after[i]),
            f"{file_name(pairs.paths[i])}, identity {pairs.names[i]}: AP {pairs.before[i]:.1f} % → "
            f"{pairs.after[i]:.1f} % ({signed(float(pairs.values[i]))})",
        )
        for i in shown
    ]
    count = len(pairs.values)
    caption = f"AP of {count:,} queries (AIR)"
    if len(shown) < count:
        caption += f"; shown: the {MAX_DOTS // 2:,} most changed and as many others"
    return scatter(caption, dots, "AP before (%)", "AP after + ACD (%)")


def raho_charts(result: Result) -> Safe:
    """Normalised score of each block, coloured by the tier it ended in."""
    report = result.run.metrics.get("optimizer_report") or {}
    scores, groups = report.get("scores"), report.get("groups")
    if not scores or not groups:
        return tag("p", "This run's optimizer did not score blocks.", class_="faint")
    tier_of = {block: tier for tier in TIERS for block in groups.get(tier, ())}
    tiers = [(class_, meaning) for class_, _, meaning in TIERS.values()]
    charts = []
    for view, title in VIEWS.items():
        bars = [_bar(block, values, view, tier_of.get(block, "important")) for block, values in scores.items()]
        if not any(values[view] for values in scores.values()):
            title += ", which the gallery network never named right"
        charts.append(bar_chart(title, bars, "normalised score", tiers))
    return join(*charts)


def loss_charts(before: Row, after: Row) -> Iterator[Safe]:
    """Each loss term over the epochs, a line a seed."""
    histories = [(row, seed, row.results[seed].run.history) for row in (before, after) for seed in row.seeds]
    terms = dict.fromkeys(term for _, _, records in histories for record in records for term in record)
    for term in terms:
        if term in NOT_LOSSES:
            continue
        series = []
        for row, seed, records in histories:
            points = [(r["epoch"] + 1, float(r[term])) for r in records if _is_number(r.get(term))]
            if points:
                class_ = "before" if row is before else "after"
                series.append(Series(f"{_name(row, before)}, seed {seed}", points, class_))
        if series:
            yield line_chart(term, series, "epoch", "share" if term == "accuracy" else "loss")


def config_table(before: Row, after: Row) -> Safe:
    """Settings that differ between the two, of their first common seed."""
    seed = min(set(before.results) & set(after.results))
    found = differences(before.results[seed].run.config, after.results[seed].run.config)
    if not found:
        return tag("p", "The two configs are the same.", class_="faint")
    lines = [
        tag("tr", tag("th", tag("code", key), scope="row"), *(tag("td", tag("code", _value(v))) for v in values))
        for key, *values in found
    ]
    header = tag("tr", *(tag("th", text, scope="col") for text in ("Key", "Before", "After + ACD")))
    table = tag("table", tag("thead", header), tag("tbody", *lines), class_="settings")
    return scrolling(table, f"Settings that differ, seed {seed}")


def file_name(path: object) -> str:
    """The last part of a path written on any system."""
    return str(path).replace("\\", "/").rpartition("/")[2]


def _name(row: Row, before: Row) -> str:
    return row.baseline if row is before else f"{row.baseline} {title_of(row)}"


def _mean_cmc(results: Sequence[Result], protocol: str) -> np.ndarray | None:
    curves = [r.source(protocol).per_query.get(f"{protocol}_cmc") for r in results]
    curves = [curve[:MAX_CMC_RANK] for curve in curves if curve is not None and len(curve)]
    if not curves:
        return None
    length = min(map(len, curves))
    return np.mean([curve[:length] for curve in curves], axis=0)


def _sample(gains: np.ndarray) -> list[int]:
    """All queries, or of very many the most changed half and an even choice of the others."""
    if len(gains) <= MAX_DOTS:
        return list(range(len(gains)))
    order = np.argsort(-np.abs(gains), kind="stable")
    rest = order[MAX_DOTS // 2 :]
    even = rest[np.linspace(0, len(rest) - 1, MAX_DOTS - MAX_DOTS // 2).astype(int)]
    return [*order[: MAX_DOTS // 2].tolist(), *even.tolist()]


def _bar(block: str, values: Mapping[str, float], view: str, tier: str) -> Bar:
    class_, rate, meaning = TIERS[tier]
    score, raw = values[f"normalised_{view}"], values[view]
    text = f"{block}: normalised score {score:.3f}, raw {raw:.4g}; {meaning}"
    return Bar(block, score, class_, text, f"{score:.2f} {rate}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and np.isfinite(value)


def _value(value: Any) -> str:
    return "–" if value is None else "(empty)" if value == "" else str(value)
