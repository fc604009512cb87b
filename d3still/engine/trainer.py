"""The training loop of all three stages."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from d3still.data import BatchLoader, ImageBatch, PairBatch
from d3still.distillers import Distiller
from d3still.engine.distributed import Agreement, Rank, gather_lists, share_buffers
from d3still.engine.events import Board
from d3still.engine.meter import Meter
from d3still.engine.precision import Precision
from d3still.engine.recomputation import Recomputation
from d3still.engine.retrieval import Evaluation
from d3still.engine.signals import Preempted, StopRequest
from d3still.engine.step import compute_gradients, normalized_pair, seed_step, update
from d3still.errors import UserError
from d3still.logs import progress_bar
from d3still.runs.checkpoint import load_network_state, network_state, save_checkpoint
from d3still.runs.folder import RunFolder
from d3still.runs.history import append_record
from d3still.solver import set_learning_rates

logger = logging.getLogger(__name__)

SCALE_FLOOR = 2.0**-10  # a loss scale below this means that every step overflows


@dataclass(frozen=True)
class LoopSettings:
    """How long a `Trainer` trains, and how often it does what beside training (``SOLVER`` in a config).

    Attributes:
        epochs: in all, those before a resumption included.
        seed: of each step's randomness, with its epoch, number and rank.
        log_every: steps between two points of the curves.
        evaluate_every: epochs between two evaluations; the last epoch always has one.
        keep_every: epochs between two checkpoints that stay, as ``epoch_N.pth``; 0 keeps none.
        save_every: steps between two checkpoints within an epoch; 0 saves after each epoch alone.
    """

    epochs: int
    seed: int = 0
    log_every: int = 20
    evaluate_every: int = 1
    keep_every: int = 0
    save_every: int = 0


class Trainer:
    """Trains a distiller and keeps its run folder in order. Without a config file: docs/python.md.

    Args:
        distiller: with its start weights, on its device, frozen where it does not learn.
        optimizer: over its ``learnable_parameters()``.
        schedule: (epoch from 0, a parameter group's ``base_lr``) → the group's learning rate.
        identity_loader: identity-balanced batches of the learner's resolution.
        pair_loader: two views of each image; None for a distiller that uses no pairs.
        normalize: a batch of pixels → images as the networks take them.
        folder: where the run lives, within ``folder.alone()``.
        loop: epochs and periods.
        evaluate: embeds and ranks; its first result's mAP says which epoch is ``best.pth``. None never evaluates.
        precision: what the networks compute in; float32 by default.
        ranks: this process among others.
        recomputation: what to do when a step's memory ends; by default it is done again with recomputed activations.
        report: of the optimizer's builder (`d3still.solver.Built`), plain values, kept in checkpoints.
        about: what checkpoints are to hold beside weights and progress, plain values.
    """

    def __init__(
        self,
        distiller: Distiller,
        optimizer: Optimizer,
        schedule: Callable[[int, float], float],
        identity_loader: BatchLoader,
        pair_loader: BatchLoader | None = None,
        *,
        normalize: Callable[[ImageBatch], Tensor],
        folder: RunFolder,
        loop: LoopSettings,
        evaluate: Callable[[], Evaluation] | None = None,
        precision: Precision | None = None,
        ranks: Rank | None = None,
        recomputation: Recomputation | None = None,
        report: Mapping[str, Any] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.distiller, self.optimizer, self.schedule = distiller, optimizer, schedule
        self.identity_loader, self.pair_loader, self.normalize = identity_loader, pair_loader, normalize
        self.folder, self.loop, self.evaluate = folder, loop, evaluate
        self.device = next(distiller.learner_network.parameters()).device
        self.precision = precision or Precision("float32", self.device)
        self.ranks = ranks or Rank()
        self.recomputation = recomputation or Recomputation(distiller)
        self.report, self.about = dict(report or {}), dict(about or {})
        self.epoch, self.step, self.seconds, self.images = 0, 0, 0.0, 0
        self.best, self.finished = float("-inf"), False
        self.skipped: set[str] = set()
        self.meter, self.scaler, self.agreement = Meter(), self.precision.scaler(), Agreement()
        self.recomputes = self.recomputation.on  # as known to all ranks

    def run(self) -> Evaluation | None:
        """Train from where the run stands to its last epoch, evaluate, and return that evaluation, if there is one.

        Raises:
            Preempted: after a SIGTERM or SIGINT, with everything saved.
            UserError: when the loss is no longer finite.
        """
        self.steps_before = sum(map(self.num_steps, range(self.epoch)))
        next_step = self.steps_before + self.step + 1
        self.board = Board(self.folder.tensorboard if self.ranks.is_main else None, purge_step=next_step)
        self.board.optimizer_report(self.report)
        evaluation = None
        with StopRequest() as self.stop:
            while self.epoch < self.loop.epochs:
                evaluation = self._run_epoch()
        if evaluation is None and self.evaluate is not None:  # killed between the last checkpoint and its evaluation
            evaluation = self._evaluate()
            self._save()
        self.board.close()
        return evaluation

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a checkpoint that such a trainer wrote (``load_checkpoint(folder.last)``), bit for bit."""
        load_network_state(self.distiller, saved)
        progress = saved["progress"]
        self.epoch, self.step = progress["epoch"], progress["step"]
        self.seconds, self.images = progress["seconds"], progress["images"]
        self.best, self.finished = progress["best"], progress["finished"]
        self.skipped = set(progress["skipped"])
        if progress.get("recomputes") and self.recomputation.may_switch:  # the memory ended before
            self.recomputation.switch_on()
            self.recomputes = True
        self.meter.load_state_dict(progress["meter"], self.device)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        logger.info("resuming at epoch %d, step %d", self.epoch + 1, self.step)

    def num_steps(self, epoch: int) -> int:
        """Steps of an epoch: the shorter loader ends it."""
        steps = self.identity_loader.num_batches(epoch)
        return steps if self.pair_loader is None else min(steps, self.pair_loader.num_batches(epoch))

    def _run_epoch(self) -> Evaluation | None:
        set_learning_rates(self.optimizer, self.schedule, self.epoch)
        self.distiller.train()
        began, data_wait, first_step, former_images = time.perf_counter(), 0.0, self.step, self.images
        total = self.num_steps(self.epoch)
        batches = self._batches(self.epoch, self.step)
        description = f"epoch {self.epoch + 1}/{self.loop.epochs}"
        with progress_bar(total, self.step, description, "step", self.ranks.is_main) as bar:
            while self.step < total:
                asked = time.perf_counter()
                identity, pair = next(batches)
                data_wait += time.perf_counter() - asked
                self._train_on(identity, pair)
                bar.update()
                self._report_step(bar, began, data_wait, self.images - former_images)
                self._save_if_asked(began)
        batches.close()
        elapsed = time.perf_counter() - began
        self.seconds += elapsed
        self._check_losses()
        self._check_weights()
        rates = sorted(group["lr"] for group in self.optimizer.param_groups)
        record = {
            "epoch": self.epoch,
            **self.meter.means(),
            "lr": [rates[0], rates[-1]],
            "seconds": round(elapsed, 3),
            "images_per_second": round((self.images - former_images) / elapsed, 2),
            "data_wait": round(data_wait / elapsed, 4),
            "steps": total - first_step,
        }
        return self._end_epoch(record)

    def _batches(self, epoch: int, start: int) -> Iterator[tuple[ImageBatch, PairBatch | None]]:
        """Both loaders' batches, from step ``start`` on."""
        pairs = repeat(None) if self.pair_loader is None else self.pair_loader.epoch(epoch, start)
        yield from zip(self.identity_loader.epoch(epoch, start), pairs, strict=False)

    def _train_on(self, identity: ImageBatch, pair: PairBatch | None) -> None:
        self.skipped.update(identity.skipped, pair.skipped if pair else ())
        if self.epoch == self.step == 0 and pair is not None:
            self.board.pair_images(pair.low.pixels, pair.high.pixels)
        self.meter.add(self.recomputation.attempt(partial(self._compute_gradients, identity, pair)))
        update(self.distiller, self.optimizer, self.scaler)
        self.step += 1
        self.images += (len(identity) + (len(pair) if pair else 0)) * self.ranks.world_size

    def _compute_gradients(self, identity: ImageBatch, pair: PairBatch | None) -> dict[str, Tensor]:
        """All of a step before its update, from its seed on, so that it may be done again."""
        seed_step(self.loop.seed, self.epoch, self.step, self.ranks.rank)
        identity = identity.to(self.device, non_blocking=True)
        views = None if pair is None else normalized_pair(pair, self.normalize, self.device)
        images, labels = self.normalize(identity), identity.labels
        return compute_gradients(self.distiller, self.precision, self.scaler, images, labels, views)

    def _report_step(self, bar: Any, began: float, data_wait: float, images: int) -> None:
        """Read the losses every LOG_PERIOD steps, and on a CPU, where reading is free, whenever the bar is drawn."""
        due = self.step % self.loop.log_every == 0
        if not (due or self.device.type == "cpu"):
            return
        self._check_losses()
        elapsed = time.perf_counter() - began
        rates = [group["lr"] for group in self.optimizer.param_groups]
        values = self.meter.means()
        shown = {name: f"{value:.3g}" for name, value in values.items()}
        shown |= {"lr": _range(rates), "img/s": f"{images / elapsed:.0f}", "wait": f"{data_wait / elapsed:.0%}"}
        bar.set_postfix(shown, refresh=False)
        if due:
            curves = {f"train/{name}": value for name, value in values.items()}
            self.board.scalars(curves, self.steps_before + self.step)

    def _check_losses(self) -> None:
        """Stop at a loss that is not finite; under a loss scaler such steps are skipped, within reason."""
        if self.scaler.is_enabled() and self.scaler.get_scale() > SCALE_FLOOR:
            return
        self.meter.check_finite(self.epoch, self._last_good())

    def _check_weights(self) -> None:
        """Stop at weights or optimizer states that are not finite, before they are evaluated or replace good ones.

        A step with a finite loss may end in an update that leaves the numbers.
        """
        named = [*self.distiller.learner_network.state_dict().items(), *self.distiller.extra.state_dict().items()]
        for slot in self.optimizer.state.values():
            named += [(f"the optimizer's {name}", value) for name, value in slot.items()]
        named = [(name, value) for name, value in named if isinstance(value, Tensor) and value.is_floating_point()]
        finite = torch.stack([value.isfinite().all().cpu() for _, value in named]).tolist()
        bad = [name for (name, _), good in zip(named, finite, strict=True) if not good]
        if bad:
            raise UserError(
                f"{len(bad)} of {len(named)} tensors of weights and optimizer are not finite after step {self.step} "
                f"of epoch {self.epoch} (the first is {bad[0]}); {self._last_good()}; lower SOLVER.BASE_LR"
            )

    def _last_good(self) -> str:
        where = self.folder.last
        return f"the last good checkpoint is {where}" if where.exists() else "no checkpoint was written yet"

    def _save_if_asked(self, began: float) -> None:
        """After a step: act on what any rank noticed, and save within the epoch when it is asked for."""
        number, recompute = self.agreement.highest(self.stop.number, self.recomputation.on)
        if recompute and not self.recomputes:
            self._tell_of_recomputation()
        every = self.loop.save_every
        if not number and not (every and self.step % every == 0):
            return
        self._check_losses()
        self._check_weights()
        self._save(seconds=self.seconds + time.perf_counter() - began)
        if number:
            logger.info(
                "stopped by signal %d after step %d of epoch %d; start the command again to go on",
                number,
                self.step,
                self.epoch + 1,
            )
            self.board.close()
            raise Preempted(number)

    def _tell_of_recomputation(self) -> None:
        """All ranks recompute from the same step on, whichever one's memory has ended."""
        self.recomputation.switch_on()
        self.recomputes = True
        logger.info(
            "the memory ended in step %d of epoch %d: that step was done again with recomputed activations, as all "
            "are from here on; it takes longer and changes no number (EXPERIMENT.CHECKPOINT_ACTIVATIONS auto)",
            self.step,
            self.epoch + 1,
        )

    def _end_epoch(self, record: dict[str, Any]) -> Evaluation | None:
        """Evaluate if due, write the epoch's line, then the checkpoint that makes the epoch count."""
        done = self.epoch + 1
        self.finished = done == self.loop.epochs
        evaluation = None
        if self.evaluate is not None and (self.finished or done % self.loop.evaluate_every == 0):
            evaluation = self._evaluate()
            record |= evaluation.summaries()
        self.board.scalars({f"epoch/{k}": v for k, v in record.items() if isinstance(v, float)}, self.epoch)
        losses = ", ".join(f"{name} {record[name]:.4g}" for name in self.meter.names)
        speed = f"{record['images_per_second']:.0f} images/s, data wait {record['data_wait']:.1%}"
        logger.info("epoch %d/%d: %s; %s", done, self.loop.epochs, losses, speed)
        self.steps_before += self.step
        self.epoch, self.step, self.meter = done, 0, Meter()
        if self.ranks.is_main:
            append_record(self.folder.history, record)
        every = self.loop.keep_every
        keep = every and done % every == 0 and not self.finished
        self._save(keep_as=done if keep else None)
        return evaluation

    def _evaluate(self) -> Evaluation:
        """Evaluate both networks; the best so far goes to ``best.pth``."""
        share_buffers(self.distiller.learner_network)
        evaluation = self.evaluate()
        self.skipped.update(evaluation.skipped)
        for name, values in evaluation.summaries().items():
            logger.info("%s: %s", name, ", ".join(f"{key} {value:.2f} %" for key, value in values.items()))
            self.board.scalars({f"{name}/{key}": value for key, value in values.items()}, self.epoch)
        self.board.hardest_queries(evaluation, self.epoch)
        score = float(next(iter(evaluation.results.values())).mAP)  # AIR, or SIR in stage 0
        if score > self.best or not self.folder.best.exists():
            self.best = score
            if self.ranks.is_main:
                save_checkpoint(self.folder.best, self._weights() | {"epoch": self.epoch})
        return evaluation

    def _weights(self) -> dict[str, Any]:
        return {**network_state(self.distiller), **self.about}

    def _save(self, seconds: float | None = None, keep_as: int | None = None) -> None:
        """Write ``last.pth``, and the same as ``epoch_N.pth`` where it is to be kept."""
        skipped = sorted(set(gather_lists(sorted(self.skipped))))
        if not self.ranks.is_main:
            return
        progress = {
            "epoch": self.epoch,
            "step": self.step,
            "seconds": self.seconds if seconds is None else seconds,
            "images": self.images,
            "best": self.best,
            "finished": self.finished,
            "skipped": skipped,
            "recomputes": self.recomputes,
            "threads": torch.get_num_threads(),
            "meter": self.meter.state_dict(),
        }
        training = {
            "progress": progress,
            "optimizer": self.optimizer.state_dict(),
            "optimizer_report": self.report,
            "scaler": self.scaler.state_dict(),
        }
        self.folder.save(self._weights() | training, keep_as)


def _range(rates: list[float]) -> str:
    low, high = min(rates), max(rates)
    return f"{high:.2g}" if low == high else f"{low:.2g}…{high:.2g}"
