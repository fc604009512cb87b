"""The trainer from plain arguments, without a config: docs/python.md shows stage 2, this is stage 0."""

import torch

from d3still.data import Normalizer, build_dataset, identity_loader
from d3still.distillers import DISTILLERS, SupervisedLoss
from d3still.engine import LoopSettings, Trainer
from d3still.modeling import build_model
from d3still.runs.checkpoint import load_checkpoint
from d3still.runs.folder import RunFolder


def trained(veri, path, epochs, saved=None):
    """The network's state after so many epochs, from fresh weights or from a checkpoint."""
    dataset = build_dataset("VeRi776", str(veri))
    torch.manual_seed(1)
    network = build_model("MobileNetV3_Small", dataset.num_classes)
    distiller = DISTILLERS.get("NONE")(query=None, gallery=network, supervised=SupervisedLoss(), learner="gallery")
    loader = identity_loader(
        dataset.train, size=(16, 16), padding=2, batch_size=8, num_instances=2, flip_prob=0.5, erase_prob=0.5, seed=3
    )
    normalize, folder = Normalizer((0.5,) * 3, (0.25,) * 3), RunFolder(path)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    with folder.alone():
        trainer = Trainer(
            distiller,
            optimizer,
            lambda epoch, rate: rate / (1 + epoch),
            loader,
            normalize=normalize,
            folder=folder,
            loop=LoopSettings(epochs, seed=3),
        )
        if saved is not None:
            trainer.load_state_dict(load_checkpoint(saved))
        assert trainer.run() is None, "it was given nothing to evaluate with"
    assert optimizer.param_groups[0]["lr"] == 0.05 / epochs
    return network.state_dict()


def test_a_run_from_python_goes_on_bit_for_bit(veri, tmp_path):
    straight = trained(veri, tmp_path / "straight", 2)
    trained(veri, tmp_path / "parted", 1)
    parted = trained(veri, tmp_path / "parted", 2, saved=tmp_path / "parted/last.pth")
    assert all(torch.equal(value, parted[key]) for key, value in straight.items())
    assert len((tmp_path / "parted/metrics.jsonl").read_text().splitlines()) == 2
