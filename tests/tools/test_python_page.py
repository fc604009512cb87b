"""docs/python.md: its program runs as it stands, on the tiny folder and with small networks."""

import re
from itertools import pairwise

import pytest
import torch

from d3still.modeling import build_model, load_weights
from d3still.runs.checkpoint import load_checkpoint
from tests.tiny import REPOSITORY


@pytest.mark.parametrize("epochs", [2])
def test_the_program_of_the_page_trains_the_gallery_network_and_no_other(
    chain, veri, tmp_path, monkeypatch, capsys, epochs
):
    monkeypatch.chdir(tmp_path)
    (program,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/python.md").read_text(), re.S)
    small = {
        'DATA, LOG, LOW, HIGH, BATCH, EPOCHS = "datasets/VeRi", "log/VeRi776", (128, 128), (256, 256), 256, 10': (
            f"DATA, LOG, LOW, HIGH, BATCH, EPOCHS = {str(veri)!r}, {str(chain / 'VeRi776')!r}, "
            f"(16, 16), (32, 32), 8, {epochs}"
        ),
        'GALLERY, QUERY, RATE, GAMMA = "ResNet101", "ResNet18", 0.01, 0.05': (
            'GALLERY, QUERY, RATE, GAMMA = "ResNet18", "MobileNetV3_Small", 0.01, 0.05'
        ),
        "batch_size=96, num_instances=6": "batch_size=8, num_instances=2",
    }
    for published, tiny in small.items():
        assert program.count(published) == 1
        program = program.replace(published, tiny)
    names = {}
    exec(compile(program, "docs/python.md", "exec"), names)
    assert len(capsys.readouterr().out.splitlines()) == epochs

    def start(name, stage, part):
        network = build_model(name, 6)
        load_weights(network, chain / f"VeRi776/{stage}/seed2024/last.pth", part=part, purpose="resume")
        return network.to(names["device"]).state_dict()

    query, gallery = start("MobileNetV3_Small", "rop", "query"), start("ResNet18", "vanilla", "gallery")
    assert all(torch.equal(value, query[key]) for key, value in names["query"].state_dict().items())
    by_trainer = load_checkpoint(tmp_path / "log/own/last.pth")
    assert by_trainer["progress"]["finished"] and by_trainer["progress"]["epoch"] == epochs
    for key in ("fc.classifier.weight", "layer4.1.conv2.weight"):
        values = [gallery[key], by_trainer["gallery"][key].to(names["device"]), names["gallery"].state_dict()[key]]
        assert not any(torch.equal(a, b) for a, b in pairwise(values)), "the trainer trains, then the page's own loop"
    rates = {group["base_lr"] for group in names["optimizer"].param_groups}
    assert rates <= {0.01, 0.01 * 0.05, 0.01 * 0.05**2} and len(rates) > 1, "RAHO's"
