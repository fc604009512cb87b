"""A comparison as tables of text, and those tables as Markdown, LaTeX and console output."""

from __future__ import annotations

from dataclasses import dataclass, field

from d3still.reporting.comparison import Comparison
from d3still.reporting.rows import COLUMNS, Column, Difference, Row
from d3still.reporting.statistics import LEVEL, MIN_IDENTITIES, RESAMPLES
from d3still.runs.facts import BASELINE, FINETUNE, VARIANT_TITLES
from d3still.text import visible

NONE, MINUS = "–", "−"
MARKDOWN = str.maketrans({letter: f"\\{letter}" for letter in "\\|*_`[]<>~"})
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "Δ": r"$\Delta$", "−": r"$-$", "–": "--",
    "×": r"$\times$", "→": r"$\to$", "<": r"$<$", ">": r"$>$", "α": r"$\alpha$", "β": r"$\beta$", "*": r"$^{*}$",
}  # fmt: skip


@dataclass
class Table:
    """Lines of text cells under a header; the first column is text, the others are numbers.

    ``starts`` holds the lines that begin a group, so that a rule can be drawn above them.
    """

    title: str
    header: list[str]
    lines: list[list[str]]
    starts: set[int] = field(default_factory=set)


def tables_of(comparison: Comparison) -> list[Table]:
    """One table a pair: a line a baseline, and one a variant on top of it."""
    return [_table(pair, comparison.of_pair(pair)) for pair in comparison.pairs]


def footnotes(comparison: Comparison) -> list[str]:
    """What the numbers are, how they were tested, and the comparison's notes."""
    verdicts = [d.verdict for row in comparison.rows for part in row.differences.values() for d in part.values()]
    identities = sorted({verdict.identities for verdict in verdicts if verdict is not None})
    lines = [
        "Percent, mean ± sample standard deviation over seeds. AIR: query network against gallery network; "
        "SIR: gallery network against itself, for a baseline the gallery network of stage 0.",
        "Δ: percentage points over the baseline of the same seeds."
        + (" Δft: over fine-tuning alone (KD_WEIGHT = α = β = 0, RAHO's rates)." if has_finetune(comparison) else ""),
    ]
    if identities:
        counted = " / ".join(f"{number:,}" for number in identities)
        lines.append(
            f"* p < {LEVEL:.2f}: paired bootstrap over the {counted} test identities ({RESAMPLES:,} resamples, all "
            "seeds pooled, two-sided), Holm-corrected over the rows of all tables, for each column of Δ on its own. "
            "It speaks of other test identities, not of other training runs; for those see the standard deviation."
        )
    else:
        lines.append(
            f"Differences are not tested: no row has per-query results of {MIN_IDENTITIES} identities or more."
        )
    if any(row.published for row in comparison.rows):
        lines.append("Published: AIR, mean of three runs, as in the paper's VeRi-776 table.")
    return [*lines, *comparison.notes]


def has_finetune(comparison: Comparison) -> bool:
    """Whether any row has a difference over the finetune control."""
    return any(FINETUNE in row.differences for row in comparison.rows)


def pair_title(pair: str) -> str:
    """A pair's name for people: ``emoji, gallery ResNet18 64×64, query ResNet18 32×32``."""
    dataset, _, networks = pair.partition("/")
    parts = [dataset]
    for side, network in zip(("gallery", "query"), networks.split("__"), strict=False):
        name, _, size = network.rpartition("_")
        parts.append(f"{side} {name} {size.replace('x', '×')}")
    return ", ".join(parts)


def title_of(row: Row) -> str:
    """A row's name in a table: the baseline's, or what is added to it."""
    kind, space, rest = row.variant.partition(" (")
    title = row.baseline if kind == BASELINE else VARIANT_TITLES.get(kind, f"+ {kind}")
    return title + space + rest


def score_text(row: Row, column: Column) -> str:
    """``57.20 ± 0.21``; the mean alone for a single seed, which has no deviation."""
    mean, deviation = row.summary(column)
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def difference_text(difference: Difference | None) -> str:
    """``+1.20*`` where significant, ``+1.20`` where not, a dash where there is none."""
    if difference is None:
        return NONE
    return signed(difference.value) + ("*" if difference.significant else "")


def signed(value: float) -> str:
    """A number with its sign, two decimals."""
    return f"{value:+.2f}".replace("-", MINUS)


def _table(pair: str, rows: list[Row]) -> Table:
    finetune = any(FINETUNE in row.differences for row in rows)
    published = any(row.published for row in rows)
    header = [""]
    for column in COLUMNS:
        header += [" ".join(column), "Δ", *(["Δft"] if finetune else [])]
    header += (["published mAP", "published R1"] if published else []) + ["seeds"]
    table = Table(pair_title(pair), header, [])
    for row in rows:
        if row.variant == BASELINE or not table.lines:
            table.starts.add(len(table.lines))
        table.lines.append(_line(row, finetune, published))
    return table


def _line(row: Row, finetune: bool, published: bool) -> list[str]:
    over_baseline, over_finetune = row.differences.get(BASELINE, {}), row.differences.get(FINETUNE, {})
    cells = [title_of(row)]
    for column in COLUMNS:
        cells += [score_text(row, column), difference_text(over_baseline.get(column))]
        cells += [difference_text(over_finetune.get(column))] if finetune else []
    if published:
        cells += [f"{row.published[name]:.2f}" if row.published else NONE for name in ("mAP", "R1")]
    return [*cells, str(len(row.seeds))]


def to_console(tables: list[Table], notes: list[str]) -> str:
    """Columns aligned with spaces."""
    blocks = []
    for table in tables:
        rows = [list(map(visible, cells)) for cells in (table.header, *table.lines)]
        widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
        rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
        lines = [visible(table.title), _aligned(rows[0], widths)]
        for number, row in enumerate(rows[1:]):
            lines += [rule] if number in table.starts else []
            lines.append(_aligned(row, widths))
        blocks.append("\n".join(lines))
    return "\n\n".join([*blocks, "\n".join(map(visible, notes))]) + "\n"


def to_markdown(tables: list[Table], notes: list[str]) -> str:
    """GitHub's Markdown."""
    blocks = []
    for table in tables:
        rule = ["---"] + ["---:"] * (len(table.header) - 1)
        rows = [_in_markdown(table.header), rule, *map(_in_markdown, table.lines)]
        body = "\n".join("| " + " | ".join(row) + " |" for row in rows)
        blocks.append(f"### {_in_markdown([table.title])[0]}\n\n{body}")
    return "\n\n".join([*blocks, "\n".join(f"- {note}" for note in _in_markdown(notes))]) + "\n"


def to_latex(tables: list[Table], notes: list[str]) -> str:
    """One ``table`` environment a pair, for the booktabs package."""
    blocks = []
    for table in tables:
        lines = [_latex_line(table.header)]
        for number, line in enumerate(table.lines):
            lines += [r"\midrule"] if number in table.starts else []
            lines.append(_latex_line(line))
        blocks.append(
            "\\begin{table}\n\\centering\n"  # noqa: RUF027  (LaTeX's braces)
            f"\\caption{{{in_latex(table.title)}}}\n"
            f"\\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}\n\\toprule\n"
            + "\n".join(lines)
            + "\n\\bottomrule\n\\end{tabular}\n\\end{table}"
        )
    comments = "\n".join(f"% {visible(note)}" for note in notes)
    return "\n\n".join(["% \\usepackage{booktabs}", *blocks, comments]) + "\n"


def in_latex(text: str) -> str:
    """Text with what LaTeX would take for commands or lacks a sign for."""
    return "".join(LATEX.get(letter, letter) for letter in visible(text))


def _aligned(cells: list[str], widths: list[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip()


def _latex_line(cells: list[str]) -> str:
    return " & ".join(map(in_latex, cells)) + r" \\"


def _in_markdown(texts: list[str]) -> list[str]:
    return [visible(text).translate(MARKDOWN) for text in texts]
