"""Run folders made without training, with results that tell what they are, for tests of the reports."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from d3still.config import dump_config, load_config
from d3still.runs.facts import stage_of
from tests.tiny import REPOSITORY

RANKS = 50
TERMS = ("loss", "ce", "triplet", "kd", "logits")
SIZES = {  # so that these tests do not follow the configs' tuning
    "INPUT.TEACHER_SIZE_TEST": [64, 64],
    "INPUT.SIZE_TEST": [64, 64],
    "INPUT.STUDENT_SIZE_TEST": [32, 32],
}
BLOCKS = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]


def random(*words: object) -> np.random.Generator:
    """A generator that follows from what it is for."""
    return np.random.default_rng([zlib.crc32(str(word).encode()) for word in words])


def images(folder: Path, identities: int = 30, each: int = 2) -> list[tuple[str, int]]:
    """(path, identity) of small coloured images; every identity has ``each``."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for identity in range(identities):
        for number in range(each):
            path = folder / f"{identity:04}_c{number + 1:03}_0.png"
            pixels = random(identity, number).integers(0, 80, (24, 24, 3)) + np.array([identity * 5, 60, 90])
            Image.fromarray(pixels.astype(np.uint8)).save(path)
            found.append((str(path), identity))
    return found


def name_of(identity: int) -> str:
    """What the dataset calls an identity."""
    return f"shoe-{identity}"


def config(stage: str, root: Path, seed: int = 2024, **settings: object):
    """The config of one of configs/emoji's files in a log of one's own; settings as ``SECTION__KEY``."""
    words = {"OUTPUT_DIR.ROOT_PATH": root, "SOLVER.SEED": seed, **SIZES}
    words |= {key.replace("__", "."): value for key, value in settings.items()}
    return load_config(REPOSITORY / f"configs/emoji/{stage}.yaml", [str(w) for pair in words.items() for w in pair])


def scores(queries: list[tuple[str, int]], level: float, *words: object) -> dict[str, np.ndarray]:
    """AP, INP, first hit and CMC of each query around a level; the query's own difficulty is always the same."""
    difficulty = np.array([random("difficulty", Path(path).name).normal(0, 0.15) for path, _ in queries])
    noise = random(*words).normal(0, 0.03, len(queries))
    ap = np.clip(level + difficulty + noise, 0.01, 1.0)
    first = np.where(ap > 0.5, 1, np.ceil(1 / ap)).astype(np.int64)
    cmc = np.array([(first <= rank).mean() for rank in range(1, RANKS + 1)])
    return {"ap": ap, "inp": ap / 2, "first_hit": first, "cmc": cmc}


def summary(found: dict[str, np.ndarray]) -> dict[str, float]:
    """What ``metrics.json`` says of per-query scores."""
    ranks = {f"R{rank}": 100 * float(found["cmc"][rank - 1]) for rank in (1, 5, 10)}
    return {"mAP": 100 * float(found["ap"].mean()), "mINP": 100 * float(found["inp"].mean()), **ranks}


def make_run(
    cfg,
    queries: list[tuple[str, int]],
    air: float | None,
    sir: float,
    precision: str = "float32",
    ident: str = "",
) -> Path:
    """The folder of a finished run of this config, with AIR and SIR around the levels given (fractions)."""
    folder = Path(cfg.OUTPUT_DIR.ROOT_PATH) / cfg.OUTPUT_DIR.EXPERIMENT_NAME / f"seed{cfg.SOLVER.SEED}"
    folder.mkdir(parents=True)
    levels = {"AIR": air, "SIR": sir}
    seed, name = cfg.SOLVER.SEED, ident or cfg.OUTPUT_DIR.EXPERIMENT_NAME
    found = {p: scores(queries, level, p, seed, name, level) for p, level in levels.items() if level is not None}
    arrays = {
        "query_paths": np.array([path for path, _ in queries]),
        "query_ids": np.array([identity for _, identity in queries]),
        "query_names": np.array([name_of(identity) for _, identity in queries]),
        **{f"{p}_{key}": values for p, part in found.items() for key, values in part.items()},
    }
    np.savez_compressed(folder / "per_query.npz", **arrays)
    metrics = {"AIR": None} | {p: summary(part) for p, part in found.items()}
    metrics |= {"seconds": 12.5, "precision": precision, "seed": seed, "optimizer_report": {}}
    if stage_of(cfg) == 2 and cfg.SOLVER.OPTIMIZER_BUILDER == "RAHO":
        metrics["optimizer_report"] = raho_report()
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "config.yaml").write_text(dump_config(cfg))
    terms = TERMS[: {0: 3, 1: 4, 2: 5}[stage_of(cfg)]]
    lines = [{"epoch": e, **{t: 3 / (1 + e + i) for i, t in enumerate(terms)}, "lr": [0.01, 0.02]} for e in range(8)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def raho_report() -> dict:
    """RAHO's report on a ResNet18: one block free, one half-free."""
    rng = random("raho")
    keys = ("high", "cross", "normalised_high", "normalised_cross")
    return {
        "groups": {
            "unimportant_at_both": ["layer2.1"],
            "unimportant_at_high_resolution_only": ["layer3.1"],
            "important": [block for block in BLOCKS if block not in ("layer2.1", "layer3.1")],
        },
        "scores": {block: dict(zip(keys, rng.normal(1, 0.4, 4).tolist(), strict=True)) for block in BLOCKS[1:]},
    }


def make_log(root: Path, queries: list[tuple[str, int]], seeds: tuple[int, ...] = (2024, 2025)) -> Path:
    """A log of the emoji chain at several seeds: +ACD gains 5 points in AIR and loses 2 in SIR."""
    for seed in seeds:
        make_run(config("vanilla", root, seed), queries, None, 0.70)
        make_run(config("rop", root, seed), queries, 0.50, 0.70, ident="emoji/vanilla")
        make_run(config("acd_rop", root, seed), queries, 0.55, 0.68)
    return root


def fake_lists(queries: list[tuple[str, int]], topk: int = 10):
    """A source of ranked lists that needs no network: neighbours in the list of images, hits among them."""
    from d3still.data import Sample
    from d3still.evaluation.lists import Entry, RankedList

    samples = {path: Sample(path, identity, 0, name=name_of(identity)) for path, identity in queries}

    def lists_of(run, paths):
        found = {}
        for path in paths:
            others = [sample for sample in samples.values() if sample.path != path]
            start = int(random(run.experiment, path).integers(len(others)))
            shown = [others[(start + i) % len(others)] for i in range(topk)]
            entries = [
                Entry(sample, 0.9 - i / 20, sample.identity == samples[path].identity, i + 1)
                for i, sample in enumerate(shown)
            ]
            found[path] = RankedList(samples[path], 0.5, tuple(entries))
        return found

    return lists_of
