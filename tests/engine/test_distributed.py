"""Two processes on half batches are one process on the whole batch."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch

from d3still.config import load_config
from d3still.engine.distributed import Rank
from d3still.engine.finished_run import test as evaluate_run
from d3still.engine.setup import Data, open_dataset
from d3still.errors import UserError
from tests.engine import two_ranks
from tests.tiny import REPOSITORY, held_by_another, overrides, picture, stage_settings

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


def torchrun(*arguments, timeout=240):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [*TORCHRUN, *map(str, arguments)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    for number in range(5):
        picture(number, 0).save(folder / f"{number}.png")
    done = torchrun("tests/engine/two_ranks.py", folder / "out.pt")
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "out.pt", weights_only=True)


@pytest.mark.parametrize("case", two_ranks.CASES, ids=str)
def test_losses_and_gradients_are_those_of_the_whole_batch(measured, case):
    expected = two_ranks.gradients(two_ranks.build(*case), *two_ranks.batch(case[0]))
    found = measured["results"][str(case)]
    assert found.keys() == expected.keys(), "also which parameters have none"
    for name, value in expected.items():
        scale = value.abs().max().clamp(min=1e-300)
        torch.testing.assert_close(
            found[name] / scale, value / scale, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_rank_whose_memory_ends_does_its_step_again_while_the_other_waits(measured):
    """The same bits as when no rank's memory ends."""
    found, expected = measured["results"]["memory ends"], measured["results"][str((1, "ROP", ()))]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_five_images_on_two_ranks_are_five(measured):
    assert sorted(measured["indices"]) == [0, 1, 2, 3, 4]


def test_a_run_on_two_ranks_reports_what_one_process_measures(chain, veri, tmp_path):
    settings = overrides(veri, tmp_path, **stage_settings("acd_rop", chain))
    done = torchrun("tools/train_net.py", "--config-file", "configs/veri/acd_rop.yaml", *settings)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "VeRi776/acd_rop/seed2024"
    reported = json.loads((folder / "metrics.json").read_text())
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2, "only rank 0 writes"
    alone = evaluate_run(load_config(REPOSITORY / "configs/veri/acd_rop.yaml", settings)).summaries()
    assert alone == {name: reported[name] for name in alone}


def test_a_rank_that_fails_ends_the_run_with_its_error(chain, veri, tmp_path):
    # an image that only one rank's share of the last batches holds is gone: that rank fails, the other waits for it
    broken = tmp_path / "VeRi"
    subprocess.run(["cp", "-r", veri, broken], check=True)
    began = time.monotonic()
    victim = sorted((broken / "image_train").iterdir())[0]
    victim.write_bytes(b"")
    settings = overrides(broken, tmp_path / "log", **stage_settings("rop", chain))
    done = torchrun("tools/train_net.py", "--config-file", "configs/veri/rop.yaml", *settings, timeout=120)
    assert done.returncode != 0 and time.monotonic() - began < 100
    assert f"{victim.name} is empty" in done.stderr.replace("\n", " ")


@pytest.mark.slow
def test_a_second_start_on_two_ranks_ends_both(chain, veri, tmp_path):
    settings = overrides(veri, tmp_path, **stage_settings("rop", chain))
    folder = tmp_path / "VeRi776/rop/seed2024"
    with held_by_another(folder) as first:
        done = torchrun("tools/train_net.py", "--config-file", "configs/veri/rop.yaml", *settings, timeout=120)
    assert done.returncode != 0 and f"is in use by process {first.pid} on" in done.stderr
    assert not list(tmp_path.rglob("*.pth"))


@pytest.mark.parametrize("key", ["IMS_PER_BATCH", "IMS_DISTILLATION_PER_BATCH"])
def test_one_image_a_rank_is_refused(veri, tmp_path, key):
    def loader(batch):
        more = {"DATALOADER__SAMPLER": "softmax", "ROP__TOPK": 2, f"SOLVER__{key}": batch}
        cfg = load_config(REPOSITORY / "configs/veri/rop.yaml", overrides(veri, tmp_path, **more))
        data = Data(cfg, open_dataset(cfg), Rank(1, 2), torch.device("cpu"))
        return data.identity() if key == "IMS_PER_BATCH" else data.pairs()

    with pytest.raises(UserError, match=rf"SOLVER\.{key} 2 leaves each of 2 ranks one image.*raise it to 4"):
        loader(2)
    assert loader(4).num_batches(0) == 9, "36 images"


def test_batches_that_the_ranks_do_not_divide_are_refused(chain, veri, tmp_path):
    settings = overrides(
        veri, tmp_path, **stage_settings("rop", chain), SOLVER__IMS_DISTILLATION_PER_BATCH=7, ROP__TOPK=4
    )
    done = torchrun("tools/train_net.py", "--config-file", "configs/veri/rop.yaml", *settings)
    assert done.returncode != 0
    assert "SOLVER.IMS_DISTILLATION_PER_BATCH 7 is not a multiple of the 2 ranks" in done.stderr
    assert not list(tmp_path.rglob("*.pth"))
