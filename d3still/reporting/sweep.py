"""One hyper-parameter of stage 2 over several values: the results, their table and figure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from d3still.errors import UserError
from d3still.files import write_atomically
from d3still.plans.sweep import SweepPlan, plain
from d3still.reporting.families import rows_of
from d3still.reporting.figures import COLOURS
from d3still.reporting.outputs import csv_text, json_text, run_entry
from d3still.reporting.rows import COLUMNS, EVERY_COLUMN, Result, Row
from d3still.reporting.tables import pair_title
from d3still.runs.facts import BASELINE, baseline_of, pair_of
from d3still.runs.finished import read_run
from d3still.text import visible

SYMBOLS = {"ACD.ALPHA": "α", "ACD.BETA": "β", "ACD.TEMPERATURE": "τ", "RAHO.GAMMA": "γ", "RAHO.RATIO": "p"}
LOG_FROM = 30  # largest over smallest value from which the axis is logarithmic
PANEL = (4.0, 3.0)  # inches
DPI = 150


@dataclass(frozen=True, eq=False)
class Sweep:
    """Results of a sweep: a row for each value, in order, and the baseline's where it was run here."""

    key: str
    rows: Mapping[Any, Row]
    baseline: Row | None


def read_sweep(plan: SweepPlan, usable: set[Path]) -> Sweep:
    """Results of the planned runs whose folders are usable.

    Raises:
        UserError: when none is.
    """
    rows, needed = {}, set()
    for value, by_seed in plan.runs.items():
        results = {}
        for seed, planned in by_seed.items():
            if planned.folder in usable:
                run = read_run(planned.folder)
                results[seed] = Result(run, run)
                needed.update(planned.needs)
        if results:
            config = next(iter(results.values())).run.config
            rows[value] = Row(pair_of(config), baseline_of(config), f"{plan.key}={plain(value)}", results)
    if not rows:
        raise UserError(f"no run of the sweep over {plan.key} is finished, so there is nothing to draw")
    earlier = rows_of(read_run(folder) for folder in sorted(needed) if folder in usable)
    baseline = next((row for row in earlier if row.variant == BASELINE), None)
    return Sweep(plan.key, rows, baseline)


def sweep_json(sweep: Sweep) -> str:
    """{"key": …, "runs": [{"value": …, pair, baseline, variant, seed, precision, AIR, SIR, seconds}, …]}."""
    runs = [{"value": value, **run_entry(row, seed)} for value, row in sweep.rows.items() for seed in row.seeds]
    reference = [run_entry(sweep.baseline, seed) for seed in sweep.baseline.seeds] if sweep.baseline else []
    return json_text({"key": sweep.key, "runs": runs, "baseline_runs": reference})


def sweep_csv(sweep: Sweep) -> str:
    """A line a value, protocol and measure; percent."""
    lines = [
        (plain(value) if isinstance(value, tuple) else value, *column, len(row.seeds), *row.summary(column))
        for value, row in sweep.rows.items()
        for column in EVERY_COLUMN
    ]
    return csv_text([(sweep.key, "protocol", "measure", "seeds", "mean", "deviation"), *lines])


def sweep_text(sweep: Sweep) -> str:
    """The four measures of each value, for the console."""
    lines = [f"{sweep.key:>14}" + "".join(f"{' '.join(column):>10}" for column in COLUMNS) + "  seeds"]
    for name, row in (("baseline", sweep.baseline), *((plain(value), row) for value, row in sweep.rows.items())):
        if row is not None:
            means = "".join(f"{row.summary(column)[0]:10.2f}" for column in COLUMNS)
            lines.append(f"{visible(name):>14}{means}{len(row.seeds):7}")
    return "\n".join(lines) + "\n"


def sweep_figure(sweep: Sweep) -> Figure:
    """Four panels, AIR mAP, AIR R1, SIR mAP and SIR R1 in percent, against the value.

    Points are means over seeds, bars their sample standard deviation, the dashed line the baseline.
    """
    figure = Figure(figsize=(2 * PANEL[0], 2 * PANEL[1]), layout="constrained")
    values = list(sweep.rows)
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    places = values if numeric else list(range(len(values)))
    for axes, column in zip(figure.subplots(2, 2).flat, COLUMNS, strict=True):
        summaries = [row.summary(column) for row in sweep.rows.values()]
        means = [mean for mean, _ in summaries]
        bars = [math.nan if deviation is None else deviation for _, deviation in summaries]
        axes.errorbar(places, means, yerr=bars, marker="o", color=COLOURS["before"], capsize=3, label="+ ACD")
        if sweep.baseline is not None:
            axes.axhline(sweep.baseline.summary(column)[0], color=COLOURS["after"], linestyle="--", label="baseline")
        if numeric and min(values) > 0 and max(values) / min(values) >= LOG_FROM:
            axes.set_xscale("log")
            axes.minorticks_off()
        axes.set_xticks(places, [plain(value) for value in values])
        axes.set_xlabel(f"{SYMBOLS[sweep.key]} ({sweep.key})" if sweep.key in SYMBOLS else sweep.key)
        axes.set_ylabel(f"{' '.join(column)} (%)")
        axes.grid(alpha=0.3)
    figure.axes[0].legend()
    row = next(iter(sweep.rows.values()))
    seeds = max(len(row.seeds) for row in sweep.rows.values())
    figure.suptitle(
        f"{pair_title(row.pair)}, {row.baseline} + ACD, {seeds} seed{'s' if seeds > 1 else ''}", fontsize=10
    )
    return figure


def save_figure(figure: Figure, folder: Path, stem: str) -> list[Path]:
    """Save as PNG and PDF; the same figure gives the same files.

    Raises:
        UserError: when they cannot be written.
    """
    png, pdf = folder / f"{stem}.png", folder / f"{stem}.pdf"
    write_atomically(png, lambda file: figure.savefig(file, format="png", dpi=DPI))
    write_atomically(pdf, lambda file: figure.savefig(file, format="pdf", metadata={"CreationDate": None}))
    return [png, pdf]
