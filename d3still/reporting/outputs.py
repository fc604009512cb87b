"""Everything that a comparison writes.

For other programs that is JSON, a run each, and CSV, a row of a table and a measure each.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from d3still.errors import UserError
from d3still.files import write_text
from d3still.reporting.comparison import Comparison
from d3still.reporting.details import ListSource
from d3still.reporting.html import SHOWN_QUERIES, report_html
from d3still.reporting.rows import AGAINST, EVERY_COLUMN, PROTOCOLS, Column, Row
from d3still.reporting.tables import footnotes, tables_of, to_console, to_latex, to_markdown
from d3still.runs.finished import MEASURES
from d3still.text import visible

TABLE, DATA, REPORT = "table", "comparison.json", "report.html"
CSV_HEADER = (
    "pair", "baseline", "variant", "protocol", "measure", "seeds", "mean", "deviation", "published",
    *(f"{name}_over_{other}" for other in AGAINST for name in ("delta", "low", "high", "p", "p_holm")),
)  # fmt: skip
FORMULA = tuple("=+-@＝＋－＠")  # a spreadsheet computes a text that begins so


def write_comparison(
    comparison: Comparison, folder: Path, lists_of: ListSource | None = None, shown_queries: int = SHOWN_QUERIES
) -> str:
    """Write ``table.md``, ``table.tex``, ``table.csv``, ``comparison.json`` and ``report.html``.

    Args:
        comparison: what was compared.
        folder: created where it is not there.
        lists_of: see `report_html`.
        shown_queries: see `report_html`.

    Returns:
        The table for the console.

    Raises:
        UserError: when the folder cannot be written to.
    """
    tables, notes = tables_of(comparison), footnotes(comparison)
    write_files(
        folder,
        {
            f"{TABLE}.md": to_markdown(tables, notes),
            f"{TABLE}.tex": to_latex(tables, notes),
            f"{TABLE}.csv": to_csv(comparison),
            DATA: to_json(comparison),
            REPORT: report_html(comparison, lists_of, shown_queries),
        },
    )
    return to_console(tables, notes)


def write_files(folder: Path, texts: dict[str, str]) -> None:
    """Write texts by their file names, each whole or not at all.

    Raises:
        UserError: when one cannot be written.
    """
    for name, text in texts.items():
        try:
            write_text(folder / name, text)
        except UserError as error:
            raise UserError(f"{error}, or choose another folder with --out") from error


def to_json(comparison: Comparison) -> str:
    """{"runs": [{pair, baseline, variant, seed, precision, AIR, SIR, seconds}, …]}, scores in percent."""
    return json_text({"runs": [run_entry(row, seed) for row in comparison.rows for seed in row.seeds]})


def to_csv(comparison: Comparison) -> str:
    """A line a row, protocol and measure, in percent; empty where there is no number."""
    return csv_text([CSV_HEADER, *(_cells(row, column) for row in comparison.rows for column in EVERY_COLUMN)])


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
    published = (row.published or {}).get(column[1]) if column[0] == "AIR" else None
    cells = [row.pair, row.baseline, row.variant, *column, len(row.seeds), *row.summary(column), published]
    for other in AGAINST:
        difference = row.differences.get(other, {}).get(column)
        verdict = None if difference is None else difference.verdict
        cells.append(None if difference is None else difference.value)
        cells += [getattr(verdict, name, None) for name in ("low", "high", "p", "p_holm")]
    return cells


def json_text(content: Any) -> str:
    """JSON as the standard has it: NaN and infinities, which it lacks, become null."""
    strict = json.loads(json.dumps(content), parse_constant=lambda _: None)
    return json.dumps(strict, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def csv_text(lines: Iterable[Sequence[Any]]) -> str:
    """Comma-separated lines: numbers to six significant digits, empty for none, and texts that stay texts."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(map(_csv_cell, line) for line in lines)
    return buffer.getvalue()


def _csv_cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else ""
    if isinstance(value, str):
        text = visible(value)
        return f"'{text}" if text.lstrip().startswith(FORMULA) else text
    return value
