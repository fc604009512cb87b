"""A user's baseline from a file outside the package, with its own config section, with and without ACD."""

import json
import re

import pytest

from tests.tiny import REPOSITORY, overrides, tool


def code_from_docs():
    """The loss exactly as docs/own_baseline.md prints it."""
    return re.search(r"```python\n(.*?)```", (REPOSITORY / "docs/own_baseline.md").read_text(), re.S).group(1)


@pytest.fixture
def own_files(tmp_path, chain):
    (tmp_path / "my_loss.py").write_text(code_from_docs())
    own = "EXPERIMENT: {IMPORTS: [my_loss.py]}\nHuber: {DELTA: 0.5, KD_WEIGHT: 2.0}\n"
    head = f"{own}_BASE_: {REPOSITORY}/configs/veri/"
    gallery = f'TEACHER_MODEL_PATH: "{chain}/VeRi776/vanilla/seed2024/last.pth"'
    (tmp_path / "huber.yaml").write_text(f"{head}rop.yaml\nDISTILLER: {{TYPE: Huber, {gallery}}}\n")
    (tmp_path / "acd_huber.yaml").write_text(
        f"{head}acd_rop.yaml\nACD: {{BASELINE: Huber}}\nDISTILLER:\n"
        f'  {gallery}\n  STUDENT_PRETRAIN_PATH: "{{root}}/VeRi776/huber/seed{{seed}}/last.pth"\n'
    )
    return tmp_path


def test_a_users_baseline_trains_with_and_without_acd(own_files, veri):
    for stage, losses in (("huber", {"kd"}), ("acd_huber", {"kd", "logits"})):
        settings = overrides(veri, own_files / "log")
        done = tool("train_net.py", "--config-file", own_files / f"{stage}.yaml", *settings)
        assert done.returncode == 0, done.stderr
        folder = own_files / f"log/VeRi776/{stage}/seed2024"
        last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        assert last.keys() & {"kd", "logits"} == losses
        assert "DELTA: 0.5" in (folder / "config.yaml").read_text()
    tested = tool("test_net.py", "--config-file", own_files / "acd_huber.yaml", *overrides(veri, own_files / "log"))
    assert tested.returncode == 0 and "AIR" in tested.stdout and "SIR" in tested.stdout


def test_a_mistake_in_the_own_section_is_named(own_files, veri):
    done = tool(
        "train_net.py",
        "--config-file",
        own_files / "huber.yaml",
        *overrides(veri, own_files / "log"),
        "Huber.DELTAA",
        1,
    )
    assert done.returncode == 2
    assert "Huber.DELTAA" in done.stderr and "DELTA" in done.stderr and "Traceback" not in done.stderr
