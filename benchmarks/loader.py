"""Images per second of the pair loader against the obvious pipeline, on this machine, in one run.

    python benchmarks/loader.py [--images 256] [--batches 32 64] [--rounds 3] [--workers 0 2]

Both make what a training step needs from 300-pixel JPEG files: two augmented, normalised, erased float
batches, 256 × 256 and 128 × 128. The obvious pipeline is torchvision's transforms on Pillow images in a
torch DataLoader: decode, Resize, RandomHorizontalFlip, Pad, RandomCrop, ToTensor, Normalize, RandomErasing,
once for each view; a second one decodes once for both. Ours normalises and erases in the main process. Rounds
alternate and each pipeline's fastest counts, which other work on the machine disturbs least.
"""

import argparse
import itertools
import os
import platform
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as tv

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.goals import Goal, judge
from d3still.data import Normalizer, Sample, pair_loader

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HIGH, LOW, HIGH_PADDING, LOW_PADDING = 256, 128, 8, 4
SIDE, QUALITY = 300, 90


def make_photos(folder, count):
    """JPEG files like photos: shapes at several scales and a little sensor noise, 300 pixels wide or high."""
    rng = np.random.default_rng(0)
    samples = []
    for number in range(count):
        height, width = (SIDE, int(SIDE * rng.uniform(0.7, 1.0)))[:: 1 if number % 2 else -1]
        picture = np.zeros((height, width, 3), dtype=np.float64)
        for cells, weight in ((4, 0.6), (16, 0.25), (64, 0.15)):
            coarse = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
            picture += weight * np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
        picture += rng.normal(0, 4, picture.shape)
        path = folder / f"{number:05d}.jpg"
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path, quality=QUALITY)
        samples.append(Sample(str(path), number % 10, 0))
    return samples


class ObviousPairs(Dataset):
    """Two views of an image as anyone would write it first."""

    def __init__(self, samples, decode_once):
        self.paths = [sample.path for sample in samples]
        self.low, self.high = self.steps(LOW, LOW_PADDING), self.steps(HIGH, HIGH_PADDING)
        self.decode_once = decode_once

    @staticmethod
    def steps(size, padding):
        fill = {"scale": (0.02, 0.33), "ratio": (0.3, 3.3), "value": list(MEAN)}
        return tv.Compose(
            [
                tv.Resize((size, size)), tv.RandomHorizontalFlip(0.5), tv.Pad(padding), tv.RandomCrop((size, size)),
                tv.ToTensor(), tv.Normalize(MEAN, STD), tv.RandomErasing(0.5, **fill),
            ]
        )  # fmt: skip

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        image = Image.open(self.paths[index]).convert("RGB")
        again = image if self.decode_once else Image.open(self.paths[index]).convert("RGB")
        return self.low(image), self.high(again)


def read(low, high):
    """Reads every value once, as a network would: what a worker made is only mapped until then."""
    assert torch.isfinite(low.sum() + high.sum())
    return len(low)


class Obvious:
    def __init__(self, samples, batch, workers, decode_once):
        self.loader = DataLoader(
            ObviousPairs(samples, decode_once), batch, shuffle=True, drop_last=True, num_workers=workers,
            persistent_workers=workers > 0,
        )  # fmt: skip

    def epoch(self, number):
        for low, high in self.loader:
            yield read(low, high)

    def close(self):
        del self.loader


class Ours:
    def __init__(self, samples, batch, workers):
        self.loader = pair_loader(
            samples, low_size=[LOW, LOW], low_padding=LOW_PADDING, high_size=[HIGH, HIGH], high_padding=HIGH_PADDING,
            flip_prob=0.5, erase_prob=0.5, batch_size=batch, seed=0, num_workers=workers,
        )  # fmt: skip
        self.normalize = Normalizer(MEAN, STD)

    def epoch(self, number):
        for pair in self.loader.epoch(number):
            yield read(self.normalize(pair.low), self.normalize(pair.high))

    def close(self):
        self.loader.close()


def rate(pipeline, number):
    """Images per second of one epoch; an image counts once, though it gives two views."""
    start = time.perf_counter()
    images = sum(pipeline.epoch(number))
    return images / (time.perf_counter() - start)


def measure(samples, batch, workers, rounds):
    pipelines = [
        Obvious(samples, batch, workers, decode_once=False),
        Obvious(samples, batch, workers, decode_once=True),
        Ours(samples, batch, workers),
    ]
    for pipeline in pipelines:  # starts the workers and fills the file cache
        rate(pipeline, 0)
    rates = [[rate(pipeline, 1 + number) for pipeline in pipelines] for number in range(rounds)]
    for pipeline in pipelines:
        pipeline.close()
    return np.max(rates, axis=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 64], help="32: a card's share of 256 on 8 cards")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # of the main process: equal means for both
    print(
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, torch "
        f"{torch.__version__}, torchvision {torchvision.__version__}, Pillow {Image.__version__}; "
        f"{arguments.images} JPEG files of {SIDE} pixels\n"
    )
    print("| workers | batch | obvious, images/s | obvious, one decode | pair loader | factor | to one decode |")
    print("|---|---|---|---|---|---|---|")
    goals = []
    with tempfile.TemporaryDirectory() as folder:
        samples = make_photos(Path(folder), arguments.images)
        for workers, batch in itertools.product(arguments.workers, arguments.batches):
            twice, once, ours = measure(samples, batch, workers, arguments.rounds)
            rates = f"{twice:.0f} | {once:.0f} | {ours:.0f} | {ours / twice:.2f} | {ours / once:.2f}"
            print(f"| {workers} | {batch} | {rates} |", flush=True)
            goals.append(Goal(f"{workers} workers, batch {batch}, times the obvious", ours / twice, 2, at_least=True))
    return judge(goals)


if __name__ == "__main__":
    sys.exit(main())
