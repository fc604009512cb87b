"""tools/test_net.py: a run's numbers, features of another tool, and one-line errors."""

import json

import numpy as np
import pytest

from tests.tiny import overrides, stage_settings, tool


@pytest.fixture
def features(tmp_path):
    """One query whose two matches stand at ranks 1 and 3 of four gallery images."""
    np.savez(tmp_path / "query.npz", features=np.array([[1.0, 0.0]]), ids=[5], cams=[0])
    angles = np.deg2rad([0, 10, 20, 80])
    gallery = np.stack([np.cos(angles), np.sin(angles)], 1)
    np.savez(tmp_path / "gallery.npz", features=gallery, ids=[5, 6, 5, 7], cams=[1, 1, 1, 1])
    return tmp_path


def test_features_of_another_tool_are_ranked(features):
    done = tool("test_net.py", "--json", "--features", features / "query.npz", features / "gallery.npz")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["features"]
    # hits at ranks {1, 3}: AP (1 + 2/3)/2 = 0.833333 (PITFALLS), INP 2/3
    assert found["mAP"] == pytest.approx(100 * 0.833333, abs=1e-3)
    assert found["mINP"] == pytest.approx(100 * 2 / 3)
    assert found["R1"] == 100


@pytest.mark.parametrize("rank", ["0", "1"])
def test_of_several_ranks_one_prints(features, run_tool, monkeypatch, rank):
    monkeypatch.setenv("RANK", rank)
    _, printed = run_tool("test_net", "--features", features / "query.npz", features / "gallery.npz")
    assert printed.count("83.33") == (rank == "0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --config-file FILE or --features"),
        (["--features", "nowhere.npz", "gallery.npz"], "nowhere.npz"),
        (["--config-file", "configs/veri/nothing.yaml"], "configs/veri/nothing.yaml"),
        (["--config-file", "configs/veri/rop.yaml", "TEST.METRIC", "cosine"], "TEST.TEST_METRIC"),
    ],
)
def test_errors_are_one_line_with_status_2(arguments, message):
    done = tool("test_net.py", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1


def test_a_run_is_tested_by_its_config(chain, veri):
    settings = overrides(veri, chain, **stage_settings("acd_rop", chain))
    done = tool("test_net.py", "--config-file", "configs/veri/acd_rop.yaml", *settings)
    assert done.returncode == 0, done.stderr
    reported = json.loads((chain / "VeRi776/acd_rop/seed2024/metrics.json").read_text())
    row = next(line for line in done.stdout.splitlines() if line.startswith("AIR"))
    assert [float(x) for x in row.split()[1:]] == pytest.approx(list(reported["AIR"].values()), abs=0.005)


def test_without_weights_it_says_what_to_do(veri, tmp_path):
    done = tool("test_net.py", "--cfg", "configs/veri/rop.yaml", *overrides(veri, tmp_path))
    assert done.returncode == 2 and "train this config first, or set TEST.WEIGHTS" in done.stderr
