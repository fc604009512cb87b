"""Making batches ahead of the training step: a thread, or worker processes."""

from __future__ import annotations

import contextlib
import signal
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from d3still.data.batch import ImageBatch, PairBatch
from d3still.data.fetch import NO_SHARED_MEMORY, BatchMaker, Failure, Request
from d3still.data.samplers import BatchSampler
from d3still.data.sources import usable_cores
from d3still.errors import UserError

PREFETCH = 2  # batches made ahead, by the thread or by each worker
_TORCH_WORKER_DEATH = "DataLoader worker"  # how torch's message about a dead worker begins
_TORCH_NO_HANDLE = "received 0 items of ancdata"  # and its message when there are too many open files

# What was not even begun has nothing to shut down; torch would print a traceback on deleting it.
_MultiProcessingDataLoaderIter._shutdown = True


class BatchLoader:
    """Batches of an epoch, any epoch, from any batch on.

    Args:
        maker: makes a batch.
        sampler: says which images a batch holds.
        num_workers: upper bound of worker processes, never more than there are cores; 0 = a thread.
        pin_memory: give batches in page-locked memory.
        start_method: how workers start ("fork", "spawn", …); None = the platform's way.
    """

    def __init__(
        self,
        maker: BatchMaker,
        sampler: BatchSampler,
        num_workers: int = 0,
        pin_memory: bool = False,
        start_method: str | None = None,
    ) -> None:
        self._maker, self._sampler = maker, sampler
        self._num_workers = min(num_workers, usable_cores())
        self._pin_memory, self._start_method = pin_memory, start_method
        self._requests = _Requests()
        self._workers: DataLoader[Any] | None = None
        self._end_workers: Callable[[], Any] | None = None

    def num_batches(self, epoch: int) -> int:
        """How many batches `epoch` gives this rank; may differ from epoch to epoch."""
        return self._sampler.num_batches(epoch)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[ImageBatch | PairBatch]:
        """The batches of an epoch from batch ``start`` on; those before it are not even read.

        One epoch at a time: beginning another ends the one before.

        Raises:
            UserError: an image cannot be read, a worker process died, or shared memory does not hold a batch.
        """
        requests = [Request(epoch, batch) for batch in self._sampler.epoch(epoch)[start:]]
        return self._from_workers(requests) if self._num_workers else self._from_thread(requests)

    def close(self) -> None:
        """Ends the worker processes and the epoch being read; a later epoch starts them again."""
        self._requests.current = []
        if self._end_workers is not None:
            self._end_workers()
        self._workers = self._end_workers = None

    def _from_thread(self, requests: list[Request]) -> Iterator[ImageBatch | PairBatch]:
        pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        ahead: deque[Future[ImageBatch | PairBatch]] = deque()
        try:
            for request in requests:
                ahead.append(pool.submit(self._make, request))
                if len(ahead) > PREFETCH:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _make(self, request: Request) -> ImageBatch | PairBatch:
        batch = self._maker.make(request)
        return batch.pin_memory() if self._pin_memory else batch

    def _from_workers(self, requests: list[Request]) -> Iterator[ImageBatch | PairBatch]:
        self._requests.current = requests
        try:
            batches = self._start_epoch()
            for _ in requests:
                if self._requests.current is not requests:
                    raise RuntimeError("another epoch has begun, or the loader was closed; this one is over")
                yield self._next(batches)
        except Exception:
            if self._requests.current is requests:
                self.close()
            raise

    def _next(self, batches: Iterator[Any]) -> ImageBatch | PairBatch:
        try:
            batch = next(batches)
        except OSError as error:
            raise UserError(NO_SHARED_MEMORY.format(error)) from error
        except RuntimeError as error:
            if _TORCH_NO_HANDLE in str(error):
                raise UserError(NO_SHARED_MEMORY.format("too many open files")) from error
            if not str(error).startswith(_TORCH_WORKER_DEATH):
                raise
            raise UserError(
                f"a process that loads images died ({' '.join(str(error).split())}); if memory or shared "
                "memory (/dev/shm) ran out, lower DATALOADER.NUM_WORKERS; then start the command again to resume"
            ) from error
        if isinstance(batch, Failure):
            raise UserError(batch.message)
        return batch

    def _start_epoch(self) -> Iterator[Any]:
        if self._workers is None:
            self._workers = DataLoader(
                self._maker,
                batch_size=None,
                sampler=self._requests,
                num_workers=self._num_workers,
                collate_fn=_as_it_is,
                pin_memory=self._pin_memory,
                worker_init_fn=_ignore_interrupts,
                multiprocessing_context=self._start_method,
                # Its own generator: torch would draw the workers' seeds from the global one, and a run
                # with workers would differ from one without.
                generator=torch.Generator(),
                prefetch_factor=PREFETCH,
                persistent_workers=True,
            )
            self._end_workers = weakref.finalize(self, _end_workers, self._workers)
        with _child_handler_kept():
            try:
                return iter(self._workers)
            except OSError as error:  # its queues live in shared memory too
                raise UserError(NO_SHARED_MEMORY.format(error)) from error


def _end_workers(workers: DataLoader[Any]) -> None:
    """Ends persistent workers, for which torch has no public way.

    Left to the garbage collector, torch's queues may be gone before the workers are told to stop, and
    each would be waited for in vain.
    """
    iterator, workers._iterator = workers._iterator, None
    if iterator is not None:
        iterator._shutdown_workers()


@contextlib.contextmanager
def _child_handler_kept() -> Iterator[None]:
    """Takes back the handler by which torch raises in the main thread, wherever that is, when a worker dies.

    It would break off a step or the writing of a checkpoint when a preemption ends all processes of a job.
    The next batch that is asked for reports the death just as well.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)


class _Requests:
    """The "sampler" that torch's loader reads: the requests of the current epoch."""

    def __init__(self) -> None:
        self.current: list[Request] = []

    def __iter__(self) -> Iterator[Request]:
        return iter(self.current)

    def __len__(self) -> int:
        return len(self.current)


def _as_it_is(batch: ImageBatch | PairBatch | Failure) -> ImageBatch | PairBatch | Failure:
    return batch


def _ignore_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the trainer decides what it means for the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
