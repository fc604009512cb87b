"""Everything that only a GPU can show, in one command and one page.

    python benchmarks/gpu.py --out DIR [--minutes 8] [--dry]

Needs nothing fetched. In order, each part in a process of its own with its own time limit, so that a part that fails
leaves the others running:

- tests: what is marked ``cuda``;
- steps: both stages of the four VeRi-776 pairs at their published batches, in bfloat16 and channels-last, on
  synthetic images: images/s, the step against the bare networks, the peak against docs/memory.md, recomputation;
- loader: images/s that one core prepares from 300-pixel JPEGs, and how many cores feed the card;
- job: the three stages on the emoji set, ResNet101 at 256 ← ResNet18 at 64, for the minutes that are left.

DIR/gpu.json holds the numbers, DIR/gpu.md the page. ``--dry`` runs the same on a CPU with tiny sizes. Exit status 1
where a part failed or a goal was missed (not with ``--dry``, where times mean nothing: there only for a failure).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

PARTS = {"tests": 0.2, "steps": 0.4, "loader": 0.05, "job": 0.35}  # shares of the time
STEP_GOAL, PEAK_GOAL = 1.05, 0.1  # step / bare loop; relative gap between peak and estimate
VERI = REPOSITORY / "configs/veri"
PAIRS = ("", "ResNet101_384x384_ResNet18_128x128", "ResNet101_256x256_MobileNetV3_128x128")
PAIRS += ("ResNet101_IBN_256x256_ResNet18_128x128",)
TINY = (
    "DISTILLER.TEACHER_NAME", "ResNet18", "DISTILLER.STUDENT_NAME", "MobileNetV3_Small",
    "INPUT.STUDENT_SIZE_TRAIN", "[16, 16]", "INPUT.TEACHER_SIZE_TRAIN", "[16, 16]", "INPUT.SIZE_TRAIN", "[16, 16]",
    "SOLVER.IMS_PER_BATCH", 8, "SOLVER.IMS_DISTILLATION_PER_BATCH", 8, "DATALOADER.NUM_INSTANCE", 2, "ROP.TOPK", 8,
)  # fmt: skip
IDENTITIES, JPEG_SIDE = 576, 300
WARM_UP = 3
GRACE = 15.0  # seconds that a part may take longer, for its start


# --- the parts, each in its own process -------------------------------------------------------------------------------


def tests(dry: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """The tests marked cuda, by name; without a GPU they are skipped."""
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-rA", "--no-header", "tests/test_cuda.py"]
    if dry:  # that they are there; they would all be skipped
        command += ["--collect-only"]
    else:
        command += ["tests/evaluation/test_ranking.py", "tests/data/test_batch.py"]
    with tempfile.TemporaryFile("w+") as output:
        try:
            code = subprocess.run(command, cwd=REPOSITORY, stdout=output, stderr=output, timeout=seconds).returncode
        except subprocess.TimeoutExpired:
            code = None
        output.seek(0)
        lines = output.read().splitlines()
    named = ("PASSED", "FAILED", "ERROR", "SKIPPED")
    results = [line for line in lines if line.startswith(named) or (dry and "::" in line)]
    counts = {word.lower(): sum(line.startswith(word) for line in results) for word in ("PASSED", "FAILED", "ERROR")}
    failed = [line for line in results if line.startswith(("FAILED", "ERROR"))]
    yield {"exit": code, "listed": len(results), **counts, "failures": failed, "tail": lines[-60:] if failed else []}
    if code != 0:
        raise RuntimeError(f"the tests ended with {'a time-out' if code is None else code}")


def steps(dry: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """A row a pair, stage and kind of recomputation, until the time is over; torch.compile last, as an option."""
    began = time.monotonic()
    rows = [(pair, stage, recompute, False) for pair in PAIRS for stage in (2, 1) for recompute in (False, True)]
    rows += [(PAIRS[0], 2, False, True)]
    for row in rows[:2] if dry else rows:
        if time.monotonic() - began > 0.9 * seconds:
            yield {"pair": row[0] or "ResNet101_256x256_ResNet18_128x128", "stage": row[1], "note": "no time left"}
            continue
        yield measured_step(*row, dry)


def measured_step(pair: str, stage: int, recompute: bool, compiled: bool, dry: bool) -> dict[str, Any]:
    """One row: seconds of the step and of the bare networks, peak and estimate."""
    import torch

    from d3still.config import load_config
    from d3still.engine.distributed import choose_device
    from d3still.engine.precision import choose_precision
    from d3still.engine.setup import build_distiller
    from d3still.engine.step import compute_gradients, update
    from d3still.engine.step_memory import estimated_peak, setting_of
    from d3still.modeling.out_of_memory import is_out_of_memory, release_memory

    name = "rop" if stage == 1 else "acd_rop"
    cfg = load_config(VERI / pair / f"{name}.yaml", ["EXPERIMENT.PRECISION", "bfloat16", *(TINY if dry else ())])
    device = choose_device("cuda", "0", 0, 1)
    precision = choose_precision("bfloat16", device)
    row: dict[str, Any] = {"pair": pair or "ResNet101_256x256_ResNet18_128x128", "stage": stage}
    row |= {"recompute": recompute, "compiled": compiled, "device": device.type}
    distiller = build_distiller(cfg, IDENTITIES).to(device, memory_format=torch.channels_last)
    distiller.learner_network.checkpoint_activations = recompute
    distiller.train()
    setting = setting_of(cfg, distiller, precision, recompute)
    row["images"] = setting.triplet_batch + setting.pair_batch
    if stage == 2 and not compiled:  # the heavier stage, the one of the page; counting takes seconds
        row["estimate_gib"] = estimated_peak(setting) / 2**30
    inputs = synthetic(cfg, distiller, device)
    optimizer = torch.optim.SGD([p for _, p in distiller.learnable_parameters()], lr=1e-4, momentum=0.9)
    scaler = precision.scaler()
    if compiled:
        distiller.learner_network.compile(dynamic=False)

    def whole() -> None:
        compute_gradients(distiller, precision, scaler, *inputs)
        update(distiller, optimizer, scaler)

    full = None
    try:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        count = 1 if dry else 5
        row["step_seconds"] = seconds_of(whole, device, count)
        if device.type == "cuda":
            row["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
            if "estimate_gib" in row:
                row["peak_gap"] = row["peak_gib"] / row["estimate_gib"] - 1
        row["bare_seconds"] = seconds_of(partial(bare_step, distiller, optimizer, precision, inputs), device, count)
        row["step_to_bare"] = row["step_seconds"] / row["bare_seconds"]
        row["images_per_second"] = row["images"] / row["step_seconds"]
    except (RuntimeError, MemoryError) as error:
        full = str(error).splitlines()[0] if is_out_of_memory(error) else None
        if full is None:
            raise
    if full is not None:  # the traceback that holds the tensors is gone here
        row["note"] = f"does not fit: {full[:120]}"
        release_memory()
    return row


def synthetic(cfg: Any, distiller: Any, device: Any) -> tuple[Any, Any, Any]:
    """One batch of noise at the run's sizes: images, labels, pair."""
    import torch

    from d3still.distillers import Pair

    generator = torch.Generator().manual_seed(0)

    def images(count: int, size: Any) -> Any:
        noise = torch.randn(count, 3, *size, generator=generator)
        return noise.to(device).contiguous(memory_format=torch.channels_last)

    own = cfg.INPUT.STUDENT_SIZE_TRAIN if distiller.learner == "query" else cfg.INPUT.SIZE_TRAIN
    batch, pairs = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.IMS_DISTILLATION_PER_BATCH
    labels = (torch.arange(batch) // cfg.DATALOADER.NUM_INSTANCE).to(device)
    pair_labels = torch.randint(0, IDENTITIES, (pairs,), generator=generator).to(device)
    views = images(pairs, cfg.INPUT.STUDENT_SIZE_TRAIN), images(pairs, cfg.INPUT.TEACHER_SIZE_TRAIN)
    return images(batch, own), labels, Pair(*views, pair_labels)


def bare_step(distiller: Any, optimizer: Any, precision: Any, inputs: Any) -> None:
    """The same three forward passes, one backward and one update, with sums for losses."""
    import torch

    images, _, pair = inputs
    low = distiller.learner == "query"
    with precision.autocast():
        outputs = [distiller.learner_network(images), distiller.learner_network(pair.low if low else pair.high)]
        with torch.no_grad():
            distiller.frozen_network(pair.high if low else pair.low)
        total = sum(output.logits.float().mean() + output.retrieval_feat.float().mean() for output in outputs)
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    optimizer.step()


def seconds_of(action: Callable[[], None], device: Any, count: int) -> float:
    """Median seconds of one call, the GPU's work included, after some calls that are not counted."""
    import statistics

    import torch

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    taken = []
    for number in range(count + (WARM_UP if count > 1 else 0)):
        wait()
        began = time.perf_counter()
        action()
        wait()
        if number >= WARM_UP or count == 1:
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def loader(dry: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """Pairs of views a second from JPEGs at VeRi-776's sizes: with one process, and with one a core."""
    import numpy as np
    from PIL import Image

    from d3still.data import Sample, pair_loader
    from d3still.data.sources import usable_cores

    count, batch = (8, 4) if dry else (512, 64)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        samples = []
        for number in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8))
            path = Path(folder) / f"{number}.jpg"
            coarse.resize((JPEG_SIDE, JPEG_SIDE), Image.Resampling.BICUBIC).save(path, quality=90)
            samples.append(Sample(str(path), number % 4, 0))
        for workers in [0] if dry else [1, usable_cores()]:
            loading = pair_loader(
                samples, low_size=[128, 128], low_padding=4, high_size=[256, 256], high_padding=8, flip_prob=0.5,
                erase_prob=0.5, batch_size=batch, seed=0, num_workers=workers,
            )  # fmt: skip
            made, began = 0, 0.0
            for epoch in range(1 if dry else 3):  # the first starts the processes
                if epoch == (0 if dry else 1):
                    began, made = time.perf_counter(), 0
                for batch_of_pairs in loading.epoch(epoch):
                    made += len(batch_of_pairs)
            taken = time.perf_counter() - began
            loading.close()
            yield {"processes": workers, "pairs_per_second": made / taken, "seconds": taken}


def job(dry: bool, seconds: float) -> Iterator[dict[str, Any]]:
    """A row a stage of the emoji set: seconds, images/s, peak, AIR and SIR; as many epochs as the time allows."""
    began, epochs, weights = time.monotonic(), 1, []
    with tempfile.TemporaryDirectory() as folder:
        if dry:
            make_images(Path(folder) / "images")
        for stage, name in enumerate(("vanilla", "rop", "acd_rop")):
            run = trained(name, Path(folder), epochs, weights, dry)
            metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
            kept = ("AIR", "SIR", "seconds", "images_per_second", "peak_memory_mib", "precision")
            yield {"stage": stage, "epochs": epochs, **{key: metrics[key] for key in kept}}
            key = ("DISTILLER.TEACHER_MODEL_PATH", "DISTILLER.STUDENT_PRETRAIN_PATH", "")[stage]
            weights += [key, run / "last.pth"]
            if stage == 0 and not dry:  # what is left, for the two stages that remain, with a reserve for their ends
                spent = time.monotonic() - began
                epochs = max(1, int((0.8 * seconds - spent) / 2 / (1.5 * spent)))


def make_images(root: Path) -> None:
    """A tiny set for a dry run: four identities, for training and for testing."""
    from PIL import Image

    for number in range(4 * (4 + 1 + 2)):
        identity, place = number % 4, number // 4
        part = "train" if place < 4 else "query" if place < 5 else "gallery"
        path = root / part / f"{identity + 10 * (part != 'train'):03}" / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (60 * identity, 10 * place, 90)).save(path)


def trained(stage: str, root: Path, epochs: int, weights: list[Any], dry: bool) -> Path:
    """Train one stage of configs/emoji at the published shape; its run folder."""
    from d3still.config import load_config
    from d3still.engine import train

    low, high = ("[16, 16]", "[16, 16]") if dry else ("[64, 64]", "[256, 256]")
    gallery = "ResNet18" if dry else "ResNet101"
    own = high if stage == "vanilla" else low
    settings: list[Any] = ["OUTPUT_DIR.ROOT_PATH", root, "SOLVER.MAX_EPOCHS", epochs, "SOLVER.LR_DECAY_STEPS", "[0]"]
    settings += ["SOLVER.LR_WARMUP_EPOCHS", 0, "RAHO.MAX_BATCHES", 1 if dry else 0]
    settings += ["DISTILLER.TEACHER_NAME", gallery, "DISTILLER.STUDENT_NAME", gallery if own == high else "ResNet18"]
    settings += ["INPUT.STUDENT_SIZE_TRAIN", own, "INPUT.STUDENT_SIZE_TEST", own]
    for key in ("TEACHER_SIZE_TRAIN", "TEACHER_SIZE_TEST", "SIZE_TRAIN", "SIZE_TEST"):
        settings += [f"INPUT.{key}", high]
    if dry:
        settings += ["DATASETS.NAMES", "folder", "DATASETS.ROOT_DIR", root / "images", "DATALOADER.NUM_INSTANCE", 2]
        settings += ["SOLVER.IMS_PER_BATCH", 8, "SOLVER.IMS_DISTILLATION_PER_BATCH", 8, "ROP.TOPK", 8]
        settings += ["DATALOADER.NUM_WORKERS", 0, "TEST.EXCLUDE_SAME_CAMERA", False, "EXPERIMENT.NUM_THREADS", 1]
    config = REPOSITORY / f"configs/emoji/{stage}.yaml"
    return train(load_config(config, [str(value) for value in settings + weights]))


# --- the whole --------------------------------------------------------------------------------------------------------


def run_part(name: str, seconds: float, dry: bool) -> dict[str, Any]:
    """A part in a process of its own; its rows so far, whatever happens to it."""
    began = time.monotonic()
    command = [sys.executable, __file__, "--part", name, "--seconds", str(seconds), *(["--dry"] if dry else [])]
    with tempfile.TemporaryFile("w+") as rows, tempfile.TemporaryFile("w+") as errors:
        try:
            code: int | None = subprocess.run(
                command, cwd=REPOSITORY, stdout=rows, stderr=errors, timeout=seconds + GRACE
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
        rows.seek(0), errors.seek(0)
        found = [json.loads(line) for line in rows.read().splitlines() if line.startswith("{")]
        last = errors.read().strip().splitlines()[-1:]
    problem = None if code == 0 else "time is over" if code is None else (last or [f"status {code}"])[0]
    return {"part": name, "seconds": round(time.monotonic() - began, 1), "problem": problem, "rows": found}


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    import torch

    found: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__, "cores": os.cpu_count()}
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        found |= {"card": card.name, "memory_gib": round(card.total_memory / 2**30, 1), "cuda": torch.version.cuda}
    return found


def verdicts(results: list[dict[str, Any]], dry: bool) -> list[tuple[str, bool]]:
    """Each goal and whether it was met; none in a dry run but that all parts end well."""
    found = [(f"{result['part']} ran to its end", result["problem"] is None) for result in results]
    if dry:
        return found
    rows = {result["part"]: result["rows"] for result in results}
    for row in rows.get("steps", []):
        name = f"{row['pair']}, stage {row['stage']}{', recomputing' if row.get('recompute') else ''}"
        if "step_to_bare" in row and not row["compiled"]:
            ratio = row["step_to_bare"]
            found.append((f"{name}: step / bare {ratio:.3f} ≤ {STEP_GOAL}", ratio <= STEP_GOAL))
        if "peak_gap" in row and not row["compiled"]:
            met = abs(row["peak_gap"]) <= PEAK_GOAL
            found.append((f"{name}: peak {100 * row['peak_gap']:+.1f} % of the estimate, within 10 %", met))
    speeds = [row["pairs_per_second"] / max(1, row["processes"]) for row in rows.get("loader", [])]
    demand = max((row.get("images_per_second", 0) for row in rows.get("steps", [])), default=0)
    if speeds and demand:
        cores, here = demand / max(speeds), os.cpu_count() or 1
        found.append((f"{cores:.1f} cores feed the fastest pair; {here} are here", cores <= here))
    return found


def page(report: dict[str, Any]) -> str:
    """The Markdown page."""
    about = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    lines = ["# On a GPU" if "card" in report["machine"] else "# Without a GPU (a dry run)", "", about, ""]
    for result in report["parts"]:
        lines += [f"## {result['part']} ({result['seconds']} s)", ""]
        if result["problem"]:
            lines += [f"**{result['problem']}**", ""]
        columns = list(dict.fromkeys(key for row in result["rows"] for key in row if key not in ("tail", "failures")))
        if columns:
            lines += [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
            lines += ["| " + " | ".join(_cell(row.get(key)) for key in columns) + " |" for row in result["rows"]]
            lines += ["", *(f"- `{text}`" for row in result["rows"] for text in row.get("failures", [])), ""]
    lines += ["## Goals", "", *(f"- {'met' if met else '**missed**'}: {goal}" for goal, met in report["goals"])]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(item)}" for key, item in value.items())
    return "" if value is None else str(value).replace("|", "\\|")


def main() -> int:
    """Run the parts and write the page after each, so that nothing measured is lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for gpu.json and gpu.md")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all parts together")
    parser.add_argument("--dry", action="store_true", help="tiny sizes, on a CPU")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        for row in {"tests": tests, "steps": steps, "loader": loader, "job": job}[args.part](args.dry, args.seconds):
            print(json.dumps(row), flush=True)
        return 0
    if args.out is None:
        parser.error("give --out DIR")
    if args.dry:  # on a machine with a GPU too
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    args.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"machine": machine(), "dry": args.dry, "parts": [], "goals": []}
    if not args.dry and "card" not in report["machine"]:
        parser.error("there is no GPU here; --dry runs the same on a CPU")
    began, left = time.monotonic(), dict(PARTS)
    for name in PARTS:  # what a part leaves of its time goes to those after it
        share = left[name] / sum(left.values())
        del left[name]
        seconds = max(20.0, share * (60 * args.minutes - (time.monotonic() - began)))
        print(f"{name}: up to {seconds:.0f} s", flush=True)
        report["parts"].append(run_part(name, seconds, args.dry))
        report["goals"] = verdicts(report["parts"], args.dry)
        (args.out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        (args.out / "gpu.md").write_text(page(report), encoding="utf-8")
    print((args.out / "gpu.md").read_text(encoding="utf-8"))
    return int(not all(met for _, met in report["goals"]))


if __name__ == "__main__":
    sys.exit(main())
