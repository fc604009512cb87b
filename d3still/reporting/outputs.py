"""Everything that a comparison writes."""

from __future__ import annotations

from pathlib import Path

from d3still.errors import UserError
from d3still.files import write_text
from d3still.reporting.comparison import Comparison
from d3still.reporting.details import ListSource
from d3still.reporting.exports import to_csv, to_json
from d3still.reporting.html import SHOWN_QUERIES, report_html
from d3still.reporting.tables import footnotes, tables_of, to_console, to_latex, to_markdown

TABLE, DATA, REPORT = "table", "comparison.json", "report.html"


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
