"""Datasets of a few tiny images, and runs of a few steps on them, for tests of the engine and the tools."""

from __future__ import annotations

import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog

REPOSITORY = Path(__file__).resolve().parents[1]
IDENTITIES, IMAGES, CAMERAS = 6, 6, 3
# Settings under which a stage trains in seconds: 6 identities × 6 images, 2 × 2 in an identity-balanced batch.
SETTINGS = {
    "EXPERIMENT.DEVICE": "cpu",
    "EXPERIMENT.PRECISION": "float32",
    "EXPERIMENT.NUM_THREADS": 1,  # else the numbers follow from what else the machine does
    "DISTILLER.STUDENT_PRETRAIN_CHOICE": False,
    "DISTILLER.STUDENT_NAME": "MobileNetV3_Small",
    "DISTILLER.TEACHER_NAME": "ResNet18",
    "DATALOADER.NUM_INSTANCE": 2,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 8,
    "SOLVER.IMS_DISTILLATION_PER_BATCH": 8,
    "SOLVER.MAX_EPOCHS": 2,
    "SOLVER.LR_WARMUP_EPOCHS": 0,
    "SOLVER.LR_DECAY_STEPS": [0],
    "INPUT.STUDENT_SIZE_TRAIN": [16, 16],
    "INPUT.STUDENT_SIZE_TEST": [16, 16],
    "INPUT.TEACHER_SIZE_TRAIN": [32, 32],
    "INPUT.TEACHER_SIZE_TEST": [32, 32],
    "INPUT.SIZE_TRAIN": [32, 32],
    "INPUT.SIZE_TEST": [32, 32],
    "ROP.TOPK": 8,
    "CSD.TOPK": 8,
    "D3.TOPK": 4,
}
GALLERY = {
    "DISTILLER.STUDENT_NAME": "ResNet18",
    "INPUT.STUDENT_SIZE_TRAIN": [32, 32],
    "INPUT.STUDENT_SIZE_TEST": [32, 32],
}


def picture(identity: int, number: int) -> Image.Image:
    """A picture that shows its identity as a colour and a stripe, with some noise."""
    rng = np.random.default_rng([identity, number])
    pixels = rng.integers(0, 60, (40, 40, 3))
    pixels[:, :, identity % 3] += 120
    pixels[identity * 5 : identity * 5 + 8] += 70
    return Image.fromarray(pixels.astype(np.uint8))


def make_veri(root: Path) -> Path:
    """A folder in VeRi-776's own layout: training identities 1…6, test identities 11…13."""
    names: dict[str, list[str]] = {"train": [], "query": [], "test": []}
    for part, identities in (("train", range(1, 1 + IDENTITIES)), ("test", range(11, 14))):
        for identity in identities:
            for number in range(IMAGES):
                names[part].append(f"{identity:04}_c{number % CAMERAS + 1:03}_{number:08}_0.jpg")
    names["query"] = [name for name in names["test"] if name.endswith(("00000000_0.jpg", "00000001_0.jpg"))]
    for part, files in names.items():
        folder = root / f"image_{part}"
        folder.mkdir(parents=True)
        for name in files:
            identity, _, number, _ = name.split("_")
            picture(int(identity) % 10, int(number)).save(folder / name)
        (root / f"name_{part}.txt").write_text("\n".join(files) + "\n")
    return root


def overrides(data: Path, log: Path, **more: object) -> list[str]:
    """Command-line settings of a tiny run; further ones as ``SECTION__KEY=value``."""
    places = {"DATASETS.NAMES": "VeRi776", "DATASETS.ROOT_DIR": str(data), "OUTPUT_DIR.ROOT_PATH": str(log)}
    settings = SETTINGS | places | {key.replace("__", "."): value for key, value in more.items()}
    return [str(text) for pair in settings.items() for text in pair]


def stage_settings(stage: str, log: Path) -> dict[str, object]:
    """What the three stages of one chain add: ``vanilla``, a baseline's file name, or ``acd_`` before it."""
    if stage == "vanilla":
        return dict(GALLERY)
    chain: dict[str, object] = {"DISTILLER.TEACHER_MODEL_PATH": str(log / "VeRi776/vanilla/seed2024/last.pth")}
    if stage.startswith("acd_"):
        chain["DISTILLER.STUDENT_PRETRAIN_PATH"] = str(log / f"VeRi776/{stage[4:]}/seed2024/last.pth")
    return chain


def read_events(path: Path) -> list[Event]:
    """An event file's events: each record is its length (8 bytes), a checksum (4), the event, a checksum (4)."""
    data, start, events = path.read_bytes(), 0, []
    while start < len(data):
        (length,) = struct.unpack_from("<Q", data, start)
        events.append(Event.FromString(data[start + 12 : start + 12 + length]))
        start += 12 + length + 4
    return events


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each TensorBoard curve of a run as TensorBoard shows it, the runs' starts taken in order.

    A start at step N makes it forget what it had from N on (tensorboard's `EventAccumulator`).
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted((folder / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        for event in read_events(path):
            if event.session_log.status == SessionLog.START:
                found = {tag: [p for p in points if p[0] < event.step] for tag, points in found.items()}
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


HOLD = """
import sys, time
from pathlib import Path
from d3still.locks import locked
with locked(Path(sys.argv[1])):
    print("there", flush=True)
    time.sleep(60)
"""


@contextmanager
def held_by_another(folder: Path) -> Iterator[subprocess.Popen]:
    """A process that has the folder's lock."""
    with subprocess.Popen([sys.executable, "-c", HOLD, folder], cwd=REPOSITORY, stdout=subprocess.PIPE) as first:
        assert first.stdout.readline() == b"there\n"
        try:
            yield first
        finally:
            first.kill()


def tool(name: str, *arguments: object, **options: object) -> subprocess.CompletedProcess:
    """Run a command of tools/ as a person would, from the repository."""
    command = [sys.executable, str(REPOSITORY / "tools" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False, **options)
