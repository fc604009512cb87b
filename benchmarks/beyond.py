"""Candidates for a better stage 2 than ACD's, tried side by side: docs/results/beyond.md.

    python benchmarks/beyond.py --config-file configs/emoji/acd_rop.yaml --candidates acd,finetune,anchor:1 \
        DATASETS.SPLIT val ACD.ALPHA 3 ACD.BETA 2 RAHO.GAMMA 0.05 SOLVER.BASE_LR 0.01 SOLVER.MAX_EPOCHS 4

Each is trained from the config's stages 0 and 1, with its data and steps, into its own folder beside the config's run;
a finished one is not trained again. Printed are AIR and SIR as trained, and with the gallery network's batch-norm
statistics computed again (docs/results/beyond.md says why). The first row is the baseline, before stage 2.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from copy import deepcopy
from itertools import chain
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from d3still.config import load_config, run_dir
from d3still.distillers.acd import ACD
from d3still.distillers.acd.analysis import with_block_outputs
from d3still.distillers.acd.logits import collaborative_logits, collaborative_logits_loss
from d3still.distillers.base import LABEL_SMOOTHING, Distiller
from d3still.engine.distributed import Rank
from d3still.engine.events import logging_to
from d3still.engine.finished_run import LoadedRun
from d3still.engine.merging import take_statistics
from d3still.engine.retrieval import evaluate
from d3still.engine.run import build_trainer
from d3still.engine.setup import Data, build_networks, load_start_weights, open_dataset
from d3still.errors import UserError
from d3still.files import write_text
from d3still.losses import cosine_matrix
from d3still.modeling.inference import exact_inference
from d3still.runs.facts import STAGE_2, variant_settings
from d3still.runs.folder import RunFolder

CHECK_EVERY = 5  # steps between two looks at how far the blocks have moved
COLUMNS = (("AIR", "mAP"), ("AIR", "R1"), ("SIR", "mAP"), ("SIR", "R1"))


class Candidate(ACD):
    """ACD with a change that one number sets."""

    amount: float

    def begin(self):
        """After the start weights are loaded."""


class Anchor(Candidate):
    """b. The baseline's own loss between the new gallery network and the one of stage 0, weight ``amount``."""

    def begin(self):
        self.before = [deepcopy(self.gallery).eval().requires_grad_(False)]  # in a list: no part of a checkpoint

    def forward(self, images, labels, pair):
        with torch.no_grad():
            self.old_output = self.before[0](pair.high)
        return super().forward(images, labels, pair)

    def pair_losses(self, query, gallery, labels):
        anchor = self.feature_loss(self.old_output, gallery, labels)
        return super().pair_losses(query, gallery, labels) | {"anchor": self.amount * self.kd_weight * anchor}


class Both(Candidate):
    """d. The query network learns too, at the rate ``amount``, its batch norm frozen."""

    def begin(self):
        self.query.requires_grad_(True)

    def forward(self, images, labels, pair):
        output, query, gallery = self.gallery(images), self.query(pair.low), self.gallery(pair.high)
        losses = self.supervised(output, labels) | self.pair_losses(query, gallery, pair.labels)
        losses["query_ce"] = F.cross_entropy(query.logits.float(), pair.labels, label_smoothing=LABEL_SMOOTHING)
        return losses, (output.logits.detach().argmax(1) == labels).float().mean()

    def join(self, optimizer):
        """The query network's parameters, into an optimizer that holds the gallery network's."""
        group = dict(optimizer.param_groups[0], params=list(self.query.parameters()), names=[], tier="query")
        optimizer.add_param_group(group | {"lr": self.amount, "base_lr": self.amount})


class Gated(Candidate):
    """h. Logits terms only on images that the query network names right."""

    def pair_losses(self, query, gallery, labels):
        kept = query.logits.argmax(1) == labels
        losses = Distiller.pair_losses(self, query, gallery, labels) | {"logits": gallery.logits.new_zeros(())}
        if kept.any():
            feats = query.retrieval_feat[kept], gallery.retrieval_feat[kept]
            together = collaborative_logits(self.gallery.fc.classifier.weight, *feats)
            logits = query.logits[kept], gallery.logits[kept], together
            term = collaborative_logits_loss(*logits, self.alpha, self.beta, self.temperature)
            losses["logits"] = term * kept.float().mean()
        return losses


class Bounded(Candidate):
    """i. A block stops when its similarity matrix on the first pair batch has moved by ``amount`` a row."""

    def begin(self):
        self.steps, self.start = 0, None

    def forward(self, images, labels, pair):
        if self.start is None:
            self.probe = pair.high.clone()
            self.start = self.structure()
        elif self.steps % CHECK_EVERY == 0:
            blocks = self.gallery.blocks()
            for block, then, now in zip(blocks, self.start, self.structure(), strict=True):
                if torch.linalg.vector_norm(now - then, dim=1).mean() > self.amount:
                    block.module.requires_grad_(False)
        self.steps += 1
        return super().forward(images, labels, pair)

    def structure(self):
        """Cosine matrices of the blocks' outputs on the probe."""
        with exact_inference(self.gallery):
            return [cosine_matrix(feats, feats) for feats in with_block_outputs(self.gallery, self.probe)[1]]


CLASSES = {"anchor": Anchor, "both": Both, "gated": Gated, "bounded": Bounded}


def solve_head(run, ridge, share, epochs=1):
    """e. The embedding's linear layer towards the query network's features: ridge regression on training pairs.

    Args:
        ridge: weight of staying where it is, against the mean square of an input.
        share: of the way to the solution.
        epochs: of pairs, each with augmentations of its own.
    """
    gallery, query = run.distiller.gallery, run.distiller.query
    norm_in, _relu, linear, norm_out = gallery.fc.add_block
    inputs, targets = [], []
    with exact_inference(gallery, query):
        loader = run.data.pairs()
        for batch in chain.from_iterable(map(loader.epoch, range(int(epochs)))):
            low, high = run.data.normalize(batch.low), run.data.normalize(batch.high)
            inputs.append(F.relu(norm_in(gallery(high).pooled_feat)))
            targets.append(query(low).retrieval_feat)
        x, t = torch.cat(inputs).double(), torch.cat(targets).double()
        scale = (norm_out.weight / (norm_out.running_var + norm_out.eps).sqrt()).double()
        residual = t - norm_out(linear(x.float())).double()
        centred = x - x.mean(0)
        gram = centred.T @ centred
        gram.diagonal().add_(ridge * gram.trace() / len(gram))
        step = share * torch.linalg.solve(gram, centred.T @ (residual - residual.mean(0))).T
        linear.weight += (step / scale[:, None]).float()
        norm_out.bias += (share * residual.mean(0) - step @ x.mean(0)).float()


def try_candidate(name, config_file, opts):
    """Train and evaluate one; its result, which ``result.json`` keeps."""
    kind, *numbers = name.split(":")
    cfg = load_config(config_file, opts)
    experiment = f"{cfg.OUTPUT_DIR.EXPERIMENT_NAME}-beyond/{name.replace(':', '_')}"
    settings = variant_settings(cfg, kind) if kind in STAGE_2 else {}
    if kind in ("acd_uniform", "bounded"):
        settings |= {"SOLVER.OPTIMIZER_BUILDER": "Uniform", "SOLVER.BASE_LR": float(numbers[0])}
    settings["OUTPUT_DIR.EXPERIMENT_NAME"] = experiment
    cfg = load_config(config_file, [*opts, *(str(word) for pair in settings.items() for word in pair)])
    folder = RunFolder(run_dir(cfg))
    file = folder.path / "result.json"
    if file.exists():
        return json.loads(file.read_text())
    device, dataset = torch.device("cpu"), open_dataset(cfg)
    torch.manual_seed(cfg.SOLVER.SEED)
    distiller = CLASSES.get(kind, ACD).build(cfg, *build_networks(cfg, dataset.num_classes))
    load_start_weights(cfg, distiller)
    distiller.to(memory_format=torch.channels_last)
    run = LoadedRun(distiller, Data(cfg, dataset, Rank(), device), device)
    with folder.alone(), logging_to(None):
        began = time.perf_counter()
        if kind == "closed":
            solve_head(run, *map(float, numbers))
        elif kind != "baseline":
            if isinstance(distiller, Candidate):
                distiller.amount = float(numbers[-1]) if numbers else 0.0
                distiller.begin()
            trainer = build_trainer(cfg, distiller, run.data, folder, device)
            if isinstance(distiller, Both):
                distiller.join(trainer.optimizer)
            trainer.run()
        seconds = time.perf_counter() - began
        found = evaluate(cfg, run.data, distiller.query, distiller.gallery, device).summaries()
        take_statistics(distiller.gallery, run)
        again = evaluate(cfg, run.data, distiller.query, distiller.gallery, device).summaries()
        result = {"candidate": name, "seconds": round(seconds, 1), **found, "statistics again": again}
        write_text(file, json.dumps(result, indent=1) + "\n")
    return result


def main():
    """Every candidate, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="of stage 2; its stages 0 and 1 are trained")
    parser.add_argument(
        "--candidates",
        required=True,
        help=f"with commas between: {', '.join(STAGE_2)}, acd_uniform:RATE, anchor:WEIGHT, both:RATE, gated, "
        "bounded:RATE:DISTANCE, closed:RIDGE:SHARE[:EPOCHS]",
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings over the file's")
    args = parser.parse_intermixed_args()
    names = ["baseline", *args.candidates.split(",")]
    results = [try_candidate(name, args.config_file, args.opts) for name in names]
    head = "".join(f"{' '.join(column):>9}" for column in COLUMNS)
    print(f"{'':>24}{head}   statistics again:{head}{'seconds':>9}")
    for result in results:
        cells = [
            "".join(f"{found[kind][value]:9.2f}" for kind, value in COLUMNS)
            for found in (result, result["statistics again"])
        ]
        print(f"{result['candidate']:>24}{cells[0]}{'':20}{cells[1]}{result['seconds']:9.0f}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
