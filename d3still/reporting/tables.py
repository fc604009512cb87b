"""A comparison as tables of text, and those tables as Markdown, LaTeX and console output; pages show them too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

from d3still.reporting.comparison import Comparison
from d3still.reporting.rows import COLUMNS, Column, Difference, Row
from d3still.reporting.statistics import LEVEL, MIN_IDENTITIES, RESAMPLES, signed
from d3still.runs.facts import BASELINE, FINETUNE, VARIANT_TITLES
from d3still.text import visible

NONE = "–"
PUBLISHED = ("mAP", "R1")  # measures of the published tables, AIR
NAMED_SEEDS = 3  # up to as many are named
MARKDOWN = str.maketrans({letter: f"\\{letter}" for letter in "\\|*_`[]<>~"})
LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "Δ": r"$\Delta$", "−": r"$-$", "–": "--",
    "×": r"$\times$", "→": r"$\to$", "<": r"$<$", ">": r"$>$", "α": r"$\alpha$", "β": r"$\beta$", "*": r"$^{*}$",
})  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A cell's text, and what a page shows beyond it: small print, and whether it is a gain or a loss, and sure."""

    text: str
    details: tuple[str, ...] = ()
    kind: str = ""


@dataclass(frozen=True)
class Table:
    """Groups of lines of cells under a header; the first column is text, the others are numbers."""

    title: str
    header: list[Cell]
    groups: list[list[list[Cell]]]

    def texts(self, write: Callable[[str], str] = visible) -> tuple[list[str], list[list[list[str]]]]:
        """The texts of the header, and those of the groups of lines, each as ``write`` gives it."""

        def line(cells: list[Cell]) -> list[str]:
            return [write(cell.text) for cell in cells]

        return line(self.header), [list(map(line, group)) for group in self.groups]


def tables_of(comparison: Comparison) -> list[Table]:
    """One table a pair: a line a baseline, and one a variant on top of it."""
    return [_table(pair, rows) for pair, rows in comparison.by_pair.items()]


def footnotes(comparison: Comparison) -> list[str]:
    """What the numbers are, how they were tested, and the comparison's notes."""
    rows = comparison.rows
    verdicts = [d.verdict for row in rows for part in row.differences.values() for d in part.values()]
    identities = sorted({verdict.identities for verdict in verdicts if verdict is not None})
    lines = [
        "Percent, mean ± sample standard deviation over seeds. AIR: query network against gallery network; "
        "SIR: gallery network against itself, for a baseline the gallery network of stage 0.",
        "Δ: percentage points over the baseline of the same seeds.",
    ]
    if any(FINETUNE in row.differences for row in rows):
        lines[-1] += " Δft: over fine-tuning alone (KD_WEIGHT = α = β = 0, RAHO's rates)."
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
    if any(row.published for row in rows):
        lines.append("Published: AIR, mean of three runs, as in the paper's VeRi-776 table.")
    return [*lines, *comparison.notes]


def pair_title(pair: str) -> str:
    """A pair's name for people: ``emoji, gallery ResNet18 64×64, query ResNet18 32×32``."""
    dataset, _, networks = pair.partition("/")
    parts = [dataset]
    for side, network in zip(("gallery", "query"), networks.split("__"), strict=False):
        name, _, size = network.rpartition("_")
        parts.append(f"{side} {name} {size.replace('x', '×')}")
    return ", ".join(parts)


def title_of(row: Row, below: bool = False) -> str:
    """A row's name: the baseline's and what is added to it, which is said alone ``below`` a line of that baseline."""
    kind, space, rest = row.variant.partition(" (")
    added = VARIANT_TITLES.get(kind, f"+ {kind}")
    title = row.baseline if kind == BASELINE else added if below else f"{row.baseline} {added}"
    return title + space + rest


def score_text(row: Row, column: Column) -> str:
    """``57.20 ± 0.21``; the mean alone for a single seed, which has no deviation."""
    mean, deviation = row.summary(column)
    return f"{mean:.2f}" if deviation is None else f"{mean:.2f} ± {deviation:.2f}"


def difference_cell(difference: Difference | None) -> Cell:
    """``+1.20*`` where significant, ``+1.20`` where not, a dash where there is none; below it, interval and p."""
    if difference is None:
        return Cell(NONE)
    verdict, value = difference.verdict, difference.value
    details = ("not tested",)
    if verdict is not None:
        details = (f"{signed(verdict.low)} … {signed(verdict.high)}", _p_text(verdict.p_holm))
    kind = "gain" if value > 0 else "loss" if value < 0 else "even"
    return Cell(signed(value) + "*" * difference.significant, details, kind + " sure" * difference.significant)


def _table(pair: str, rows: list[Row]) -> Table:
    finetune = any(FINETUNE in row.differences for row in rows)
    published = any(row.published for row in rows)
    header = [Cell("", ("networks trained with",))]
    for column in COLUMNS:
        header += [Cell(" ".join(column), ("%",)), Cell("Δ", ("over the baseline",))]
        header += [Cell("Δft", ("over fine-tuning",))] if finetune else []
    header += [Cell(f"published {name}", ("AIR, %",)) for name in PUBLISHED if published] + [Cell("seeds")]
    groups: dict[str, list[list[Cell]]] = {}
    for row in rows:
        title = title_of(row, below=row.baseline in groups)
        groups.setdefault(row.baseline, []).append(_line(row, title, finetune, published))
    return Table(pair_title(pair), header, list(groups.values()))


def _line(row: Row, title: str, finetune: bool, published: bool) -> list[Cell]:
    over_baseline, over_finetune = row.differences.get(BASELINE, {}), row.differences.get(FINETUNE, {})
    cells = [Cell(title)]
    for column in COLUMNS:
        cells += [Cell(score_text(row, column)), difference_cell(over_baseline.get(column))]
        cells += [difference_cell(over_finetune.get(column))] if finetune else []
    if published:
        cells += [Cell(f"{row.published[name]:.2f}" if row.published else NONE) for name in PUBLISHED]
    named = len(row.seeds) <= NAMED_SEEDS
    return [*cells, Cell(str(len(row.seeds)), (", ".join(map(str, row.seeds)),) if named else ())]


def _p_text(p: float | None) -> str:
    """``p 0.012``; ``p < 0.001`` for what is smaller."""
    if p is None:
        return NONE
    return "p < 0.001" if p < 0.001 else f"p {p:.3f}"


def to_console(tables: list[Table], notes: list[str]) -> str:
    """Columns aligned with spaces."""
    blocks = []
    for table in tables:
        header, groups = table.texts()
        widths = [max(map(len, cells)) for cells in zip(header, *chain(*groups), strict=True)]
        rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
        lines = [visible(table.title), _aligned(header, widths)]
        for group in groups:
            lines += [rule, *(_aligned(line, widths) for line in group)]
        blocks.append("\n".join(lines))
    return "\n\n".join([*blocks, "\n".join(map(visible, notes))]) + "\n"


def to_markdown(tables: list[Table], notes: list[str]) -> str:
    """GitHub's Markdown."""
    blocks = []
    for table in tables:
        header, groups = table.texts(_in_markdown)
        rule = ["---"] + ["---:"] * (len(header) - 1)
        body = "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *chain(*groups)))
        blocks.append(f"### {_in_markdown(table.title)}\n\n{body}")
    return "\n\n".join([*blocks, "\n".join(f"- {_in_markdown(note)}" for note in notes)]) + "\n"


def to_latex(tables: list[Table], notes: list[str]) -> str:
    """One ``table`` environment a pair, for the booktabs package."""
    blocks = []
    for table in tables:
        header, groups = table.texts(in_latex)
        lines = [_latex_line(header)]
        for group in groups:
            lines += [r"\midrule", *map(_latex_line, group)]
        blocks.append(
            "\\begin{table}\n\\centering\n"  # noqa: RUF027  (LaTeX's braces)
            f"\\caption{{{in_latex(table.title)}}}\n"
            f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}\n\\toprule\n"
            + "\n".join(lines)
            + "\n\\bottomrule\n\\end{tabular}\n\\end{table}"
        )
    comments = "\n".join(f"% {visible(note)}" for note in notes)
    return "\n\n".join(["% \\usepackage{booktabs}", *blocks, comments]) + "\n"


def in_latex(text: str) -> str:
    """Text with what LaTeX would take for commands or lacks a sign for."""
    return visible(text).translate(LATEX)


def _aligned(cells: list[str], widths: list[int]) -> str:
    first, *others = zip(cells, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]).rstrip()


def _latex_line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _in_markdown(text: str) -> str:
    return visible(text).translate(MARKDOWN)
