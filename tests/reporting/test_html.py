"""The report page as text: well-formed, self-contained, escaped, and with everything that the results hold."""

import errno
import html
import json
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from d3still.errors import UserError
from d3still.reporting.album import Album
from d3still.reporting.comparison import compare
from d3still.reporting.details import MAX_DOTS, sample_of
from d3still.reporting.figures import Bar, Series, bar_chart, line_chart
from d3still.reporting.html import report_html
from d3still.reporting.outputs import write_comparison
from d3still.runs.finished import find_runs
from tests.reporting.fabricate import BLOCKS, config, fake_lists, images, make_log, make_run
from tests.tiny import REPOSITORY

VOID = {"meta", "link", "img", "br"}
HOSTILE = '<img src=x onerror="window.hacked=1">\'&amp;</script>.png'
LIMIT = 15_000_000  # bytes


class Page(HTMLParser):
    """Checks that tags are balanced and keeps what was found."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.labels, self.links, self.text = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, name, attributes):
        values = dict(attributes)
        assert len(values) == len(attributes), f"{name} repeats an attribute"
        self.tags.append((name, values))
        self.labels += [values["aria-label"]] if "aria-label" in values else []
        self.links += [values[key] for key in ("src", "href") if key in values]
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        self.text.append(data)

    def points(self, class_):
        classes = {"pt", class_}
        return [v["aria-label"] for _, v in self.tags if classes <= set((v.get("class") or "").split())]


@pytest.fixture(scope="module")
def comparison(log):
    return compare(*find_runs(log))


@pytest.fixture(scope="module")
def page(comparison, queries):
    return report_html(comparison, fake_lists(queries))


def test_it_is_well_formed_and_needs_nothing_from_outside(page):
    parsed = Page(page)
    assert page.startswith("<!DOCTYPE html>") and len(page.encode()) < LIMIT
    assert all(link.startswith(("data:", "#")) for link in parsed.links)
    assert not re.search(r"https?:|@import|url\(", page)
    targets = {values.get("id") for _, values in parsed.tags}
    assert all(link[1:] in targets for link in parsed.links if link.startswith("#"))
    assert "default-src 'none'" in html.unescape(page)


def test_it_holds_the_table(page, comparison):
    text = "".join(Page(page).text)
    before, after = comparison.rows
    for row in (before, after):
        for column in (("AIR", "mAP"), ("SIR", "R1")):
            assert f"{row.summary(column)[0]:.2f} ± {row.summary(column)[1]:.2f}" in text
    difference = after.differences["baseline"]["AIR", "mAP"]
    assert f"+{difference.value:.2f}*" in text and "p < 0.001" in text and "Holm" in text
    assert "Asymmetric mAP rises in 1 of 1 rows (1 significantly) with + ACD" in text
    assert "Symmetric mAP falls in 1 of 1 rows" in text


def test_every_query_is_a_point_with_its_text(page, comparison, queries):
    parsed = Page(page)
    points = [label for name in ("up", "down", "same") for label in parsed.points(name)]
    assert len(points) == len(queries)
    results = [row.results for row in comparison.rows]
    path, identity = queries[11]
    old, new = ([r[s].run.per_query["AIR_ap"][11] * 100 for s in (2024, 2025)] for r in results)
    (label,) = [label for label in points if label.startswith(path.rpartition("/")[2])]
    assert f"identity shoe-{identity}: AP {np.mean(old):.1f} % → {np.mean(new):.1f} %" in label


def test_cmc_raho_losses_and_settings_are_there(page, comparison):
    parsed = Page(page)
    cmc = (
        comparison.rows[1].results[2024].run.per_query["AIR_cmc"],
        comparison.rows[1].results[2025].run.per_query["AIR_cmc"],
    )
    assert f"ROP + ACD, AIR, rank 3: {100 * np.mean(cmc, axis=0)[2]:.4g} %" in parsed.labels
    bars = parsed.points("bar")
    assert len(bars) == 2 * (len(BLOCKS) - 1), "both views of every scored block"
    tiers = {block: label for label in bars for block in BLOCKS if label.startswith(f"{block}:")}
    assert "unimportant at both resolutions: lr" in tiers["layer2.1"]
    assert "unimportant at high resolution only: γ·lr" in tiers["layer3.1"]
    assert "important: γ²·lr" in tiers["layer4.0"]
    assert any(label.startswith("ROP, seed 2025, epoch 8:") for label in parsed.labels)
    text = "".join(parsed.text)
    for term in ("ce", "triplet", "kd", "logits"):
        assert f">{term}</figcaption>" in page
    assert "SOLVER.OPTIMIZER_BUILDER" in text and "RAHO" in text and "Uniform" in text


def test_most_changed_queries_come_with_both_lists(page, comparison, queries):
    parsed = Page(page)
    text = "".join(parsed.text)
    assert "Most improved queries" in text and "Most harmed queries" in text
    cards = [values for name, values in parsed.tags if name == "article"]
    results = [row.results for row in comparison.rows]
    gains = np.mean([r[s].run.per_query["AIR_ap"] for s in (2024, 2025) for r in results[1:]], axis=0)
    gains -= np.mean([r[s].run.per_query["AIR_ap"] for s in (2024, 2025) for r in results[:1]], axis=0)
    assert len(cards) == 3 + min(3, int((gains < 0).sum()))
    best = queries[int(np.argmax(gains))][0].rpartition("/")[2]
    shown = [values["alt"] for name, values in parsed.tags if name == "img"]
    assert f"query {best}" in shown and f"identity shoe-{int(best[:4])}, 32×32 pixels" in text
    assert all(re.search(r"identity shoe-\d+, ", alt) for alt in shown if alt.startswith("rank"))
    assert text.index("Most improved queries") < text.index(best)
    lists = [values for name, values in parsed.tags if name == "ol"]
    assert len(lists) == 2 * len(cards)


def test_hostile_names_are_text(tmp_path):
    """In file names, identities' labels, settings and experiment names."""
    queries = images(tmp_path / "images", identities=12)
    hostile = [(path.replace("_c001_0.png", f"_{HOSTILE}"), identity) for path, identity in queries]
    log = make_log(tmp_path / "log", hostile, seeds=(2024,))
    named = {"OUTPUT_DIR__EXPERIMENT_NAME": f"emoji/{HOSTILE.replace('/', '_')}", "RAHO__GAMMA": 0.9}
    make_run(config("acd_rop", log, 2024, **named), hostile, 0.5, 0.5)
    for path in log.glob("emoji/acd_rop/seed2024/metrics.json"):
        metrics = json.loads(path.read_text().replace("layer2.1", "<b>block</b>"))
        path.write_text(json.dumps(metrics))
    page = report_html(compare(*find_runs(log)), fake_lists(hostile))
    parsed = Page(page)
    assert "<img src=x" not in page and "<b>block" not in page and page.count("</script>") == 1
    assert all(set(values) <= {"src", "alt", "decoding"} for name, values in parsed.tags if name == "img")
    assert not any(key.startswith("on") for _, values in parsed.tags for key in values)
    assert any(HOSTILE.rpartition("/")[2] in label for label in parsed.labels), "and are shown as they are"


def test_names_turn_no_direction_and_end_no_line(queries, tmp_path):
    hostile = [(path.replace("_c001_0.png", "_\x1b[2J\u202e\n0.png"), identity) for path, identity in queries]
    page = report_html(compare(*find_runs(make_log(tmp_path / "log", hostile, seeds=(1,)))), fake_lists(hostile))
    assert r"_\x1b[2J\u202e\n0.png" in page and page.replace("\n", "").isprintable()


def test_lists_that_cannot_be_had_are_said_not_fatal(comparison):
    def lists_of(run, paths):
        raise UserError("no weights at last.pth; <train> it")

    page = report_html(comparison, lists_of)
    assert "No ranked lists: no weights at last.pth; &lt;train&gt; it" in page
    assert "No ranked lists" not in report_html(comparison, None)


def test_images_that_are_gone_leave_a_frame(comparison, queries):
    moved = {path: path.replace("images", "gone") for path, _ in queries}
    source = fake_lists([(moved[path], identity) for path, identity in queries])

    def lists_of(run, paths):
        found = source(run, [moved[path] for path in paths])
        return {path: found[moved[path]] for path in paths}

    parsed = Page(report_html(comparison, lists_of))
    assert any("cannot be read" in label for label in parsed.labels)


def test_a_page_stays_small(comparison, queries, monkeypatch):
    monkeypatch.setattr("d3still.reporting.html.Album", lambda: Album(budget=20_000))
    page = report_html(comparison, fake_lists(queries))
    assert "left out to keep this page small" in page and page.count("data:image") < 60


def test_very_many_queries_are_thinned_out_but_the_most_changed_stay():
    gains = np.random.default_rng(0).normal(size=20_000)
    shown = sample_of(gains)
    assert len(shown) == len(set(shown)) == MAX_DOTS
    assert set(np.argsort(-np.abs(gains))[: MAX_DOTS // 2].tolist()) <= set(shown)
    assert sample_of(gains[:MAX_DOTS]) == list(range(MAX_DOTS))


def test_little_data_makes_a_page_too(queries, tmp_path):
    """A baseline alone; one seed; no per-query results; no history; no RAHO."""
    make_run(config("rop", tmp_path / "a"), queries, 0.5, 0.7)
    alone = report_html(compare(*find_runs(tmp_path / "a")))
    assert "nothing to compare" in alone and Page(alone)
    log = make_log(tmp_path / "b", queries, seeds=(1,))
    for pattern in ("per_query.npz", "metrics.jsonl"):
        for path in log.rglob(pattern):
            path.unlink()
    for path in log.rglob("metrics.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"optimizer_report": {}}))
    bare = report_html(compare(*find_runs(log)), fake_lists(queries))
    assert Page(bare) and "no CMC curves" in bare and "did not score blocks" in bare and "No history" in bare


def test_the_same_comparison_gives_the_same_files(log, queries, tmp_path):
    for name in ("one", "two"):
        write_comparison(compare(*find_runs(log)), tmp_path / name, fake_lists(queries))
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["comparison.json", "report.html", "table.csv", "table.md", "table.tex"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_full_disk_spoils_no_file_that_was_there(comparison, queries, tmp_path, monkeypatch):
    write_comparison(comparison, tmp_path)
    former = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"No space left on device; the former file is kept.*--out"):
        write_comparison(comparison, tmp_path, fake_lists(queries))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == former


def test_a_folder_that_cannot_be_written_to_is_an_error(comparison, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="choose another folder with --out"):
        write_comparison(comparison, tmp_path / "file")


def test_charts_are_the_same_each_time_and_share_no_id():
    """Nothing in a drawing refers to anything, so that a page may hold any number of them, some of them hidden."""
    made = [line_chart("ce", [Series("ROP", [(1, 3.0), (2, 1.5)], "before")], "epoch", "loss") for _ in range(2)]
    assert made[0] == made[1]
    drawing = made[0].drawing
    assert "<text" in drawing and "epoch</text>" in drawing, "text stays text"
    assert "var(--before)" in drawing and "#0072b2" not in drawing
    assert not re.search(r" id=|url\(|href|<style|<metadata|\d{4}-\d\d-\d\d", drawing)


def test_points_lie_on_what_is_drawn():
    """The mark of each point is where the line has its vertex, in the drawing's own pixels."""
    chart = line_chart("x", [Series("a", [(1, 3.0), (2, 1.5), (5, 9.0)], "after")], "epoch", "loss")
    (line,) = re.findall(r'd="([^"]*)"[^>]*var\(--after\)', chart.drawing)
    vertices = [tuple(map(float, pair)) for pair in re.findall(r"[ML] ([\d.]+) ([\d.]+)", line)]
    marks = [tuple(map(float, re.match(r"M([\d.]+) ([\d.]+)a", point.outline).groups())) for point in chart.points]
    assert [(x + 3, y) for x, y in marks] == [pytest.approx(vertex, abs=0.1) for vertex in vertices]
    assert chart.points[2].text == "a, epoch 5: 9"


def test_bars_of_any_name_can_be_drawn():
    values = {"$x": 1.0, "<b>": -0.5, "é" * 99: 0.0, "a\u202e": 1.0}
    bars = [Bar(name, value, "half", "text", "note") for name, value in values.items()]
    chart = bar_chart("scores", bars, "score", [])
    assert "&lt;b&gt;" in chart.drawing and "…" + "é" * 14 in chart.drawing and "$x" in chart.drawing
    assert r"a\u202e" in chart.drawing and chart.drawing.replace("\n", "").isprintable()


def test_what_is_no_number_is_not_drawn(queries, tmp_path):
    """Losses that are missing, infinite or words; blocks without scores."""
    log = make_log(tmp_path / "log", queries, seeds=(1,))
    folder = log / "emoji/acd_rop/seed1"
    odd = [{"epoch": i, "ce": value} for i, value in enumerate((1.0, math.nan, math.inf, "x", None, [], 10**400, True))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in odd))
    metrics = json.loads((folder / "metrics.json").read_text())
    for report in (None, [], {"scores": 3, "groups": {}}, {"scores": {"a": {}}, "groups": {"important": 3}}):
        (folder / "metrics.json").write_text(json.dumps(metrics | {"optimizer_report": report}))
        page = report_html(compare(*find_runs(log)))
        assert "did not score blocks" in page and page.count("ROP + ACD, seed 1, epoch") == 1


def test_training_imports_no_plotting():
    """Nor what pages are made with."""
    code = "import sys, d3still.engine; print(sorted({'matplotlib', 'jinja2'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
