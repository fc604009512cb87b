"""The training loop of all three stages."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from d3still.config import dump_config
from d3still.data import ImageBatch, PairBatch
from d3still.distillers import Distiller, Pair
from d3still.engine.distributed import Agreement, Rank, gather_lists, share_buffers
from d3still.engine.events import Board, progress_bar
from d3still.engine.meter import Meter
from d3still.engine.precision import Precision
from d3still.engine.recomputation import Recomputation
from d3still.engine.retrieval import Evaluation, evaluate
from d3still.engine.setup import Data
from d3still.engine.signals import Preempted, StopRequest
from d3still.engine.step import compute_gradients, seed_step, update
from d3still.engine.step_memory import does_not_fit
from d3still.errors import UserError
from d3still.runs.checkpoint import load_network_state, network_state, save_checkpoint
from d3still.runs.folder import RunFolder
from d3still.solver import Built, build_optimizer, build_schedule, set_learning_rates

logger = logging.getLogger(__name__)

SCALE_FLOOR = 2.0**-10  # a loss scale below this means that every step overflows


class Trainer:
    """Trains a distiller and keeps its run folder in order.

    Args:
        cfg: the frozen config.
        distiller: built, with its start weights, on ``device``.
        data: the run's loaders.
        folder: where the run lives.
        precision: what the networks compute in.
        ranks: this process among others.
        device: where the networks are.
        saved: the checkpoint to go on from; None for a fresh run.
    """

    def __init__(
        self,
        cfg: CfgNode,
        distiller: Distiller,
        data: Data,
        folder: RunFolder,
        precision: Precision,
        ranks: Rank,
        device: torch.device,
        saved: dict[str, Any] | None = None,
    ) -> None:
        self.cfg, self.distiller, self.data, self.folder = cfg, distiller, data, folder
        self.precision, self.ranks, self.device = precision, ranks, device
        self.identity_loader = data.identity()
        self.pair_loader = data.pairs() if distiller.uses_pairs else None
        self.epoch, self.step, self.seconds, self.images = 0, 0, 0.0, 0
        self.best, self.finished = float("-inf"), False
        self.skipped: set[str] = set()
        self.meter, self.scaler, self.agreement = Meter(), precision.scaler(), Agreement()
        if saved is not None:
            load_network_state(distiller, saved)
        explain = partial(does_not_fit, cfg, distiller, precision, device)
        self.recomputation = Recomputation(distiller, cfg.EXPERIMENT.CHECKPOINT_ACTIVATIONS, explain)
        if ranks.world_size > 1 and cfg.EXPERIMENT.SYNC_BN:
            self._synchronise_batch_norms()
        self.built = self._build_optimizer(saved)
        self.schedule = build_schedule(cfg)
        if saved is not None:
            self._restore(saved)
        self.recomputes = self.recomputation.on  # as known to all ranks

    def run(self) -> Evaluation:
        """Train from where the run stands to its last epoch, evaluate, and return that evaluation.

        Raises:
            Preempted: after a SIGTERM or SIGINT, with everything saved.
            UserError: when the loss is no longer finite.
        """
        self.steps_before = sum(map(self.num_steps, range(self.epoch)))
        next_step = self.steps_before + self.step + 1
        self.board = Board(self.folder.tensorboard if self.ranks.is_main else None, purge_step=next_step)
        self.board.optimizer_report(self.built.report)
        evaluation = None
        with StopRequest() as self.stop:
            while self.epoch < self.cfg.SOLVER.MAX_EPOCHS:
                evaluation = self._run_epoch()
        if evaluation is None:  # killed between the last checkpoint and its evaluation
            evaluation = self._evaluate()
            self._save()
        self.board.close()
        return evaluation

    def num_steps(self, epoch: int) -> int:
        """Steps of an epoch: the shorter loader ends it."""
        steps = self.identity_loader.num_batches(epoch)
        return steps if self.pair_loader is None else min(steps, self.pair_loader.num_batches(epoch))

    def pairs(self, epoch: int = 0, start: int = 0) -> Iterator[Pair]:
        """Pair batches of an epoch, normalised, on the device."""
        for batch in self.pair_loader.epoch(epoch, start):
            yield self._to_pair(batch)

    def _run_epoch(self) -> Evaluation | None:
        set_learning_rates(self.built.optimizer, self.schedule, self.epoch)
        self.distiller.train()
        began, data_wait, first_step, former_images = time.perf_counter(), 0.0, self.step, self.images
        total = self.num_steps(self.epoch)
        batches = self._batches(self.epoch, self.step)
        description = f"epoch {self.epoch + 1}/{self.cfg.SOLVER.MAX_EPOCHS}"
        with progress_bar(total, self.step, description, self.ranks.is_main) as bar:
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
        record = self._epoch_record(elapsed, data_wait / elapsed, (self.images - former_images) / elapsed)
        record["steps"] = total - first_step
        return self._end_epoch(record)

    def _batches(self, epoch: int, start: int) -> Iterator[tuple[ImageBatch, PairBatch | None]]:
        """Both loaders' batches on the device, from step ``start`` on."""
        identity = self.identity_loader.epoch(epoch, start)
        if self.pair_loader is None:
            yield from ((batch, None) for batch in identity)
        else:
            yield from zip(identity, self.pair_loader.epoch(epoch, start), strict=False)

    def _train_on(self, identity: ImageBatch, pair: PairBatch | None) -> None:
        self.skipped.update(identity.skipped, pair.skipped if pair else ())
        if self.epoch == self.step == 0 and pair is not None:
            self.board.pair_images(pair.low.pixels, pair.high.pixels)
        self.meter.add(self.recomputation.attempt(partial(self._compute_gradients, identity, pair)))
        update(self.distiller, self.built.optimizer, self.scaler)
        self.step += 1
        self.images += (len(identity) + (len(pair) if pair else 0)) * self.ranks.world_size

    def _compute_gradients(self, identity: ImageBatch, pair: PairBatch | None) -> dict[str, Tensor]:
        """All of a step before its update, from its seed on, so that it may be done again."""
        seed_step(self.cfg.SOLVER.SEED, self.epoch, self.step, self.ranks.rank)
        identity = identity.to(self.device, non_blocking=True)
        images, views = self.data.normalize(identity), None if pair is None else self._to_pair(pair)
        return compute_gradients(self.distiller, self.precision, self.scaler, images, identity.labels, views)

    def _to_pair(self, batch: PairBatch) -> Pair:
        batch = batch.to(self.device, non_blocking=True)
        return Pair(self.data.normalize(batch.low), self.data.normalize(batch.high), batch.low.labels)

    def _report_step(self, bar: Any, began: float, data_wait: float, images: int) -> None:
        """Read the losses every LOG_PERIOD steps, and on a CPU, where reading is free, whenever the bar is drawn."""
        due = self.step % self.cfg.SOLVER.LOG_PERIOD == 0
        if not (due or self.device.type == "cpu"):
            return
        self._check_losses()
        elapsed = time.perf_counter() - began
        rates = [group["lr"] for group in self.built.optimizer.param_groups]
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
        for slot in self.built.optimizer.state.values():
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
        every = self.cfg.SOLVER.CHECKPOINT_STEPS
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

    def _synchronise_batch_norms(self) -> None:
        if self.device.type == "cpu":
            raise UserError("EXPERIMENT.SYNC_BN needs GPUs: PyTorch has no SyncBatchNorm on CPUs; set it to False")
        nn.SyncBatchNorm.convert_sync_batchnorm(self.distiller.learner_network)
        nn.SyncBatchNorm.convert_sync_batchnorm(self.distiller.extra)
        self.recomputation.switch_on()  # ranks that recompute exchange more: all must, from the first step on

    def _epoch_record(self, elapsed: float, data_wait: float, speed: float) -> dict[str, Any]:
        rates = sorted(group["lr"] for group in self.built.optimizer.param_groups)
        return {
            "epoch": self.epoch,
            **self.meter.means(),
            "lr": [rates[0], rates[-1]],
            "seconds": round(elapsed, 3),
            "images_per_second": round(speed, 2),
            "data_wait": round(data_wait, 4),
        }

    def _end_epoch(self, record: dict[str, Any]) -> Evaluation | None:
        """Evaluate if due, write the epoch's line, then the checkpoint that makes the epoch count."""
        done = self.epoch + 1
        self.finished = done == self.cfg.SOLVER.MAX_EPOCHS
        evaluation = None
        if self.finished or done % self.cfg.SOLVER.EVAL_PERIOD == 0:
            evaluation = self._evaluate()
            record |= evaluation.summaries()
        self.board.scalars({f"epoch/{k}": v for k, v in record.items() if isinstance(v, float)}, self.epoch)
        losses = ", ".join(f"{name} {record[name]:.4g}" for name in self.meter.names)
        speed = f"{record['images_per_second']:.0f} images/s, data wait {record['data_wait']:.1%}"
        logger.info("epoch %d/%d: %s; %s", done, self.cfg.SOLVER.MAX_EPOCHS, losses, speed)
        self.steps_before += self.step
        self.epoch, self.step, self.meter = done, 0, Meter()
        if self.ranks.is_main:
            self.folder.add_epoch(record)
        keep = done % self.cfg.SOLVER.CHECKPOINT_PERIOD == 0 and not self.finished
        self._save(keep_as=done if keep else None)
        return evaluation

    def _evaluate(self) -> Evaluation:
        """Evaluate both networks; the best so far goes to ``best.pth``."""
        share_buffers(self.distiller.learner_network)
        networks = self.distiller.query, self.distiller.gallery
        evaluation = evaluate(self.cfg, self.data, *networks, self.device, list_hardest=self.ranks.is_main)
        self.skipped.update(evaluation.skipped)
        for name, values in evaluation.summaries().items():
            logger.info("%s: %s", name, ", ".join(f"{key} {value:.2f} %" for key, value in values.items()))
            self.board.scalars({f"{name}/{key}": value for key, value in values.items()}, self.epoch)
        sizes = {"AIR": self.data.sizes.query_test, "SIR": self.data.sizes.gallery_test}
        self.board.hardest_queries(evaluation, sizes, self.cfg.DATALOADER.MAX_PIXELS, self.epoch)
        score = float(next(iter(evaluation.results.values())).mAP)  # AIR, or SIR in stage 0
        if score > self.best or not self.folder.best.exists():
            self.best = score
            if self.ranks.is_main:
                save_checkpoint(self.folder.best, self._weights() | {"epoch": self.epoch})
        return evaluation

    def _weights(self) -> dict[str, Any]:
        return {
            **network_state(self.distiller),
            "config": dump_config(self.cfg),
            "identity_map": self.data.dataset.identity_map,
            "identity_names": self.data.dataset.identity_names,
        }

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
            "optimizer": self.built.optimizer.state_dict(),
            "optimizer_report": self.built.report,
            "scaler": self.scaler.state_dict(),
        }
        state = self._weights() | training
        self.folder.save(state)
        if keep_as is not None:
            self.folder.save_epoch(state, keep_as)

    def _restore(self, saved: dict[str, Any]) -> None:
        progress = saved["progress"]
        self.epoch, self.step = progress["epoch"], progress["step"]
        self.seconds, self.images = progress["seconds"], progress["images"]
        self.best, self.finished = progress["best"], progress["finished"]
        self.skipped = set(progress["skipped"])
        if progress.get("recomputes") and self.cfg.EXPERIMENT.CHECKPOINT_ACTIVATIONS == "auto":
            self.recomputation.switch_on()  # the memory ended before
        self.meter.load_state_dict(progress["meter"], self.device)
        self.built.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        logger.info("resuming at epoch %d, step %d", self.epoch + 1, self.step)

    def _build_optimizer(self, saved: dict[str, Any] | None) -> Built:
        report = None if saved is None else saved["optimizer_report"]
        if saved is None:
            self.distiller.prepare(self.pairs)
        began = time.perf_counter()
        built = build_optimizer(self.cfg, self.distiller, self.pairs, report)
        if built.report and report is None:
            logger.info("block importance measured in %.1f s", time.perf_counter() - began)
        return built


def _range(rates: list[float]) -> str:
    low, high = min(rates), max(rates)
    return f"{high:.2g}" if low == high else f"{low:.2g}…{high:.2g}"
