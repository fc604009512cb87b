"""The report's table of results, and what it comes to in words."""

from __future__ import annotations

from collections.abc import Sequence

from d3still.reporting.comparison import Comparison
from d3still.reporting.html.markup import Safe, join, tag
from d3still.reporting.rows import COLUMNS, Difference, Row
from d3still.reporting.tables import NONE, difference_text, pair_title, score_text, signed, title_of
from d3still.runs.facts import BASELINE, FINETUNE

AIR_MAP, AIR_R1, SIR_MAP = ("AIR", "mAP"), ("AIR", "R1"), ("SIR", "mAP")


def verdict(comparison: Comparison) -> list[str]:
    """Does + ACD help, by how much, is it real, and what did it do to symmetric retrieval: a sentence each."""
    rows = [after for _, after in comparison.compared() if BASELINE in after.differences]
    if not rows:
        return ["No baseline has a finished + ACD run of the same seed yet, so there is nothing to compare."]
    return [
        f"{what} {_changes([row.differences[BASELINE][column] for row in rows])}"
        for column, what in ((AIR_MAP, "Asymmetric mAP"), (AIR_R1, "Asymmetric R1"), (SIR_MAP, "Symmetric mAP"))
    ]


def _changes(found: Sequence[Difference]) -> str:
    """``rises with + ACD in 2 of 3 rows (1 significantly) and falls in 1 (0 significantly): −0.10 to +1.20 …``."""
    parts = []
    for word, sign in (("rises", 1), ("falls", -1)):
        moved = [difference for difference in found if sign * difference.value > 0]
        if moved:
            sure = sum(difference.significant for difference in moved)
            parts.append(f"{word} in {len(moved)} of {len(found)} rows ({sure or 'none'} significantly)")
    low, high = min(d.value for d in found), max(d.value for d in found)
    span = signed(low) if low == high else f"{signed(low)} to {signed(high)}"
    return f"{' and '.join(parts) or 'stays the same'} with + ACD: {span} percentage points."


def results_table(comparison: Comparison, pair: str) -> Safe:
    """One pair's table with intervals and p-values, in a container that scrolls by itself."""
    rows = comparison.of_pair(pair)
    finetune = any(FINETUNE in row.differences for row in rows)
    published = any(row.published for row in rows)
    header = [tag("th", "Networks trained with", scope="col")]
    for column in COLUMNS:
        header += [tag("th", " ".join(column), tag("small", "%"), scope="col")]
        header += [tag("th", "Δ", tag("small", "over the baseline"), scope="col")]
        header += [tag("th", "Δ", tag("small", "over fine-tuning"), scope="col")] if finetune else []
    header += [tag("th", f"AIR {m}", tag("small", "published"), scope="col") for m in ("mAP", "R1") if published]
    header.append(tag("th", "Seeds", scope="col"))
    bodies: list[list[Safe]] = []
    for row in rows:
        if row.variant == BASELINE or not bodies:
            bodies.append([])
        bodies[-1].append(_line(row, finetune, published))
    table = tag(
        "table",
        tag("thead", tag("tr", *header)),
        *(tag("tbody", *lines, class_="family") for lines in bodies),
        class_="results",
    )
    return scrolling(table, f"Results of {pair_title(pair)}")


def scrolling(content: Safe, label: str) -> Safe:
    """A container that scrolls sideways by itself and that the keyboard reaches."""
    return tag("div", content, class_="scroll", tabindex=0, role="region", aria_label=label)


def _line(row: Row, finetune: bool, published: bool) -> Safe:
    kind = "baseline" if row.variant == BASELINE else "variant"
    cells = [tag("th", title_of(row), scope="row")]
    for column in COLUMNS:
        cells.append(tag("td", score_text(row, column)))
        cells.append(_difference(row.differences.get(BASELINE, {}).get(column)))
        cells += [_difference(row.differences.get(FINETUNE, {}).get(column))] if finetune else []
    if published:
        cells += [tag("td", f"{row.published[m]:.2f}" if row.published else NONE) for m in ("mAP", "R1")]
    cells.append(tag("td", ", ".join(map(str, _seeds(row.seeds)))))
    return tag("tr", *cells, class_=kind)


def _seeds(seeds: Sequence[int]) -> list[object]:
    return list(seeds) if len(seeds) <= 3 else [f"{len(seeds)} seeds"]


def _difference(difference: Difference | None) -> Safe:
    if difference is None:
        return tag("td", NONE)
    verdict, value = difference.verdict, difference.value
    details = ["not tested"]
    if verdict is not None:
        details = [f"{signed(verdict.low)} … {signed(verdict.high)}", p_text(verdict.p_holm)]
    kind = ("gain" if value > 0 else "loss" if value < 0 else "even") + (" sure" if difference.significant else "")
    return tag("td", difference_text(difference), *(tag("small", d) for d in details), class_=kind)


def p_text(p: float | None) -> str:
    """``p 0.012``; ``p < 0.001`` for what is smaller."""
    if p is None:
        return NONE
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}"


def bullet_list(texts: Sequence[object]) -> Safe:
    """An unordered list."""
    return tag("ul", join(*(tag("li", text) for text in texts)))
