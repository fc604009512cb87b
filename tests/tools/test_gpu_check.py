"""benchmarks/gpu.py in its dry form: the script must be right the first time that it meets a card."""

import json
import subprocess
import sys

from tests.tiny import REPOSITORY


def test_a_dry_run_goes_through_every_part_and_writes_its_page(tmp_path):
    command = [sys.executable, "benchmarks/gpu.py", "--dry", "--minutes", "30", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "gpu.json").read_text())
    parts = {part["part"]: part for part in report["parts"]}
    assert list(parts) == ["tests", "steps", "loader", "job"]
    assert all(part["problem"] is None for part in parts.values())
    assert parts["tests"]["rows"][0]["listed"] >= 12
    assert all(row["step_seconds"] > 0 and row["estimate_gib"] > 0 for row in parts["steps"]["rows"])
    assert {row["recompute"] for row in parts["steps"]["rows"]} == {False, True}
    assert parts["loader"]["rows"][0]["pairs_per_second"] > 0
    assert [row["stage"] for row in parts["job"]["rows"]] == [0, 1, 2] and parts["job"]["rows"][2]["AIR"]["mAP"] > 0
    assert "- met: job ran to its end" in (tmp_path / "gpu.md").read_text()


def test_a_part_that_fails_or_runs_over_leaves_the_others_and_its_rows(monkeypatch):
    from benchmarks import gpu

    monkeypatch.setattr(gpu, "__file__", str(REPOSITORY / "tests/tools/failing_part.py"))
    monkeypatch.setattr(gpu, "GRACE", 2.0)
    failed, late = (gpu.run_part(name, 0.0, dry=True) for name in ("steps", "job"))
    assert failed["rows"] == [{"pair": 1}] and failed["problem"] == "RuntimeError: the card fell out"
    assert late["rows"] == [{"stage": 0}] and late["problem"] == "time is over"
    assert gpu.verdicts([failed, late], dry=True) == [("steps ran to its end", False), ("job ran to its end", False)]
