"""A comparison as numbers for other programs: JSON, a run each, and CSV, a row of a table and a measure each."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from d3still.reporting.comparison import Comparison
from d3still.reporting.rows import AGAINST, PROTOCOLS, Column, Row
from d3still.runs.finished import MEASURES

CSV_HEADER = (
    "pair", "baseline", "variant", "protocol", "measure", "seeds", "mean", "deviation", "published",
    *(f"{name}_over_{other}" for other in AGAINST for name in ("delta", "low", "high", "p", "p_holm")),
)  # fmt: skip


def to_json(comparison: Comparison) -> str:
    """{"runs": [{pair, baseline, variant, seed, precision, AIR, SIR, seconds}, …]}, scores in percent."""
    runs = [run_entry(row, seed) for row in comparison.rows for seed in row.seeds]
    return json.dumps({"runs": runs}, indent=1, ensure_ascii=False) + "\n"


def to_csv(comparison: Comparison) -> str:
    """A line a row, protocol and measure, in percent; empty where there is no number."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for row in comparison.rows:
        for protocol in PROTOCOLS:
            writer.writerows(_cells(row, (protocol, measure)) for measure in MEASURES)
    return buffer.getvalue()


def run_entry(row: Row, seed: int) -> dict[str, Any]:
    """One run as `to_json` lists it."""
    result = row.results[seed]
    scores = {protocol: {measure: result.score((protocol, measure)) for measure in MEASURES} for protocol in PROTOCOLS}
    metrics = result.run.metrics
    return {
        "pair": row.pair,
        "baseline": row.baseline,
        "variant": row.variant,
        "seed": seed,
        "precision": metrics.get("precision"),
        **scores,
        "seconds": metrics.get("seconds"),
    }


def _cells(row: Row, column: Column) -> list[Any]:
    mean, deviation = row.summary(column)
    published = (row.published or {}).get(column[1]) if column[0] == "AIR" else None
    cells = [
        row.pair,
        row.baseline,
        row.variant,
        *column,
        len(row.seeds),
        number_text(mean),
        number_text(deviation),
        published,
    ]
    for other in AGAINST:
        difference = row.differences.get(other, {}).get(column)
        verdict = None if difference is None else difference.verdict
        cells.append(number_text(None if difference is None else difference.value))
        cells += [number_text(getattr(verdict, name, None)) for name in ("low", "high", "p", "p_holm")]
    return cells


def number_text(value: float | None) -> str:
    """Six significant digits; empty for no number."""
    return "" if value is None else f"{value:.6g}"
