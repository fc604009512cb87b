"""The loaders: the same batches whatever makes them, and clear errors when an image or a worker fails."""

import gc
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from d3still.data import (
    ImageCache,
    Sample,
    identity_loader,
    pair_loader,
    read_image,
    test_loader,
)
from d3still.data.sources import usable_cores
from d3still.data.transforms import resize
from d3still.errors import UserError
from tests.data.helpers import save, training_set

AUGMENT = {"flip_prob": 0.5, "erase_prob": 0.5}
PAIR = {"low_size": [16, 12], "low_padding": 2, "high_size": [32, 24], "high_padding": 4, **AUGMENT}
BALANCED = {"size": [32, 24], "padding": 4, "num_instances": 2, **AUGMENT}


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return training_set(tmp_path_factory.mktemp("images"))


@pytest.fixture
def read(monkeypatch):
    """The paths of the images that are decoded in this process, in order."""
    paths = []

    def reading(path, *more):
        paths.append(path)
        return read_image(path, *more)

    monkeypatch.setattr("d3still.data.sources.read_image", reading)
    return paths


def pairs(samples, **options):
    return pair_loader(samples, **{"batch_size": 12, "seed": 7, **PAIR, **options})


def balanced_pairs(samples, **options):
    return pairs(samples, sampler="identity", num_instances=2, **options)


def balanced(samples, **options):
    return identity_loader(samples, **{"batch_size": 12, "seed": 7, **BALANCED, **options})


def views(batch):
    return (batch.low, batch.high) if hasattr(batch, "low") else (batch,)


def tensors(batch):
    return [t for view in views(batch) for t in (view.pixels, view.erase, view.labels, view.indices)]


def collect(make, samples, world_size=1, epochs=(0, 1), **options):
    """The global batches of some epochs: the ranks' parts put together."""
    loaders = [make(samples, rank=rank, world_size=world_size, **options) for rank in range(world_size)]
    batches = []
    for epoch in epochs:
        parts = [list(loader.epoch(epoch)) for loader in loaders]
        assert all(len(part) == loader.num_batches(epoch) for part, loader in zip(parts, loaders, strict=True))
        for ranks in zip(*parts, strict=True):
            batches.append([torch.cat(pieces) for pieces in zip(*map(tensors, ranks), strict=True)])
    for loader in loaders:
        loader.close()
    return batches


def assert_same(batches, others):
    assert len(batches) == len(others) > 0
    for batch, other in zip(batches, others, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("make", [pairs, balanced_pairs, balanced])
@pytest.mark.parametrize(
    "options",
    [{"num_workers": 2}, {"cache": "ram"}, {"world_size": 2}, {"world_size": 3, "cache": "ram"}, {"num_workers": 4}],
    ids=str,
)
def test_workers_ranks_and_cache_do_not_change_a_batch(samples, make, options, monkeypatch):
    monkeypatch.setattr("d3still.data.prefetch.usable_cores", lambda: 4)
    assert_same(collect(make, samples), collect(make, samples, **options))


def test_each_anchor_of_balanced_pairs_has_its_positives_and_they_are_no_identity_batch(samples):
    for _, _, labels, indices, *high in collect(balanced_pairs, samples):
        assert (labels[:, None] == labels).sum(1).tolist() == [2] * 12
        assert torch.equal(high[2], labels) and torch.equal(high[3], indices)
    drawn = [[batch[3].tolist() for batch in collect(make, samples)] for make in (balanced_pairs, balanced)]
    assert drawn[0] != drawn[1], "two loaders that step together draw apart"


def test_spawned_workers_give_the_same_batches(samples):
    # macOS and Windows start workers this way: everything must pickle.
    loader = pairs(samples, num_workers=1)
    loader._start_method = "spawn"
    assert_same(collect(pairs, samples, epochs=(0,)), [tensors(batch) for batch in loader.epoch(0)])
    loader.close()


@pytest.mark.parametrize("make", [pairs, balanced_pairs])
@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"cache": "ram"}], ids=str)
def test_an_epoch_can_be_taken_up_in_its_middle(samples, make, options):
    whole = collect(make, samples, epochs=(3,))
    loader = make(samples, **options)
    assert_same(whole[1:], [tensors(batch) for batch in loader.epoch(3, start=1)])
    assert list(loader.epoch(3, start=len(whole))) == []
    loader.close()


def test_batches_before_the_start_are_not_decoded(samples, read):
    loader = pairs(samples)
    rest = list(loader.epoch(0, start=2))
    assert len(read) == 12 * len(rest)


def drawn(seed, epoch, stream, position, number):
    """One number of `d3still.data.draws`, from its definition, in Python's own integers."""

    def splitmix64(state):
        z = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    state = 0
    for part in (seed, epoch, stream, position):
        state = splitmix64((state + part) % 2**64)
    return (splitmix64((state + number * 0x9E3779B97F4A7C15) % 2**64) >> 11) / 2**53


def test_one_decode_feeds_both_views_and_they_draw_independently(samples, read):
    unmoved = {"low_padding": 0, "high_padding": 0, "erase_prob": 0.0}
    (batch,) = pairs(samples, batch_size=40, seed=7, **unmoved).epoch(3)
    assert sorted(read) == sorted(sample.path for sample in samples)
    assert torch.equal(batch.low.indices, batch.high.indices) and torch.equal(batch.low.labels, batch.high.labels)
    flips = []
    for view, size, stream in ((batch.low, (16, 12), 2), (batch.high, (32, 24), 3)):
        flips.append([drawn(7, 3, stream, position, number=0) < 0.5 for position in range(40)])
        for pixels, index, flip in zip(view.pixels, view.indices, flips[-1], strict=True):
            image = resize(read_image(samples[index].path), size)
            assert torch.equal(pixels, image.flip(2) if flip else image)
    # Two coins an image agree in half of the images; one coin for both would in all.
    assert sum(low == high for low, high in zip(*flips, strict=True)) == 22


def test_labels_and_pixels_belong_to_the_indices(samples):
    loader = identity_loader(
        samples, size=[32, 24], padding=0, flip_prob=1.0, erase_prob=0.0, batch_size=8, num_instances=2, seed=0
    )
    for batch in loader.epoch(0):
        assert not batch.erase.any()
        for pixels, label, index in zip(batch.pixels, batch.labels, batch.indices, strict=True):
            assert label == samples[index].identity
            assert torch.equal(pixels, resize(read_image(samples[index].path), (32, 24)).flip(2))


def test_softmax_sampler_is_a_plain_shuffle_apart_from_the_pairs(samples):
    plain = [batch.indices for batch in balanced(samples, sampler="softmax").epoch(0)]
    assert len(torch.cat(plain).unique()) == 36
    assert not torch.equal(plain[0], next(pairs(samples).epoch(0)).low.indices)


def test_epochs_and_seeds_differ(samples):
    first = [tensors(b) for b in balanced(samples).epoch(0)]
    for other in (balanced(samples).epoch(1), balanced(samples, seed=8).epoch(0)):
        assert not torch.equal(first[0][0], tensors(next(other))[0])


def test_the_global_random_state_is_left_alone(samples):
    torch.manual_seed(0)
    before, state = torch.get_rng_state(), np.random.get_state()[1].copy()
    for options in ({}, {"num_workers": 1}, {"cache": "ram"}):
        loader = pairs(samples, **options)
        list(loader.epoch(0))
        loader.close()
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == state).all()


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}], ids=str)
def test_an_abandoned_epoch_does_not_disturb_the_next(samples, options):
    loader = pairs(samples, **options)
    abandoned = loader.epoch(0)
    next(abandoned)
    del abandoned
    assert_same(collect(pairs, samples, epochs=(1,)), [tensors(batch) for batch in loader.epoch(1)])
    loader.close()


def test_two_epochs_cannot_be_read_from_the_workers_at_a_time(samples):
    loader = pairs(samples, num_workers=1)
    first = loader.epoch(0)
    next(first)
    second = loader.epoch(1)
    next(second)
    with pytest.raises(RuntimeError, match="another epoch"):
        next(first)
    loader.close()


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"cache": "ram"}], ids=str)
@pytest.mark.parametrize("count", [1, 5, 13])
def test_every_test_image_comes_once(samples, count, options):
    some = samples[:count]
    for world_size in (1, 2, 3):
        found = []
        for rank in range(world_size):
            loader = test_loader(some, size=[16, 12], batch_size=4, rank=rank, world_size=world_size, **options)
            batches = list(loader.epoch(0))
            assert len(batches) == loader.num_batches(0)
            found += [(int(i), pixels) for batch in batches for pixels, i in zip(*tensors(batch)[::3], strict=True)]
            loader.close()
        assert sorted(index for index, _ in found) == list(range(count))
        for index, pixels in found:
            assert torch.equal(pixels, resize(read_image(some[index].path), (16, 12)))


def test_the_number_of_workers_is_only_an_upper_bound(samples):
    loader = pairs(samples, num_workers=10**6)
    next(loader.epoch(0))
    assert len(multiprocessing.active_children()) <= usable_cores()
    loader.close()


# Unreadable images


@pytest.fixture
def damaged(tmp_path):
    """4 identities of 3 images; the second image of identity 1 is truncated, identity 3 is unreadable."""
    samples = training_set(tmp_path, identities=4, images=3)
    for index in (4, 9, 10, 11):
        path = Path(samples[index].path)
        path.write_bytes(path.read_bytes()[:60])
    return samples


WAYS = [{}, {"num_workers": 2}, {"cache": "ram"}]


@pytest.mark.parametrize("options", WAYS, ids=str)
@pytest.mark.parametrize("make", [pairs, balanced])
def test_a_bad_image_stops_with_its_path(damaged, make, options):
    with pytest.raises(UserError) as caught:
        list(make(damaged, batch_size=6, **options).epoch(0))
    assert any(damaged[index].path in str(caught.value) for index in (4, 9, 10, 11))
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_in_training_a_readable_image_takes_its_place(damaged, options):
    loader = pairs(damaged, batch_size=12, on_bad_image="skip", **options)
    (batch,) = loader.epoch(0)
    loader.close()
    assert len(batch) == 12
    assert sorted(batch.skipped) == sorted(damaged[index].path for index in (4, 9, 10, 11))
    # 4 → 5, the next image of its identity; 9, 10, 11 → 0, the next readable one of all.
    assert sorted(batch.low.indices.tolist()) == [0, 0, 0, 0, 1, 2, 3, 5, 5, 6, 7, 8]
    assert batch.low.labels.tolist() == [damaged[index].identity for index in batch.low.indices]
    assert torch.equal(batch.low.indices, batch.high.indices)


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_in_testing_it_is_left_out(damaged, options):
    loader = test_loader(damaged, size=[8, 8], batch_size=3, on_bad_image="skip", **options)
    batches = list(loader.epoch(0))
    loader.close()
    assert [len(batch) for batch in batches] == [3, 2, 3, 0]
    assert [i for batch in batches for i in batch.indices.tolist()] == [0, 1, 2, 3, 5, 6, 7, 8]
    assert [path for batch in batches for path in batch.skipped] == [damaged[i].path for i in (4, 9, 10, 11)]
    assert batches[3].pixels.shape == (0, 3, 8, 8)


def test_skipping_needs_one_readable_image(tmp_path):
    samples = training_set(tmp_path, identities=2, images=2)
    for sample in samples:
        Path(sample.path).write_bytes(b"")
    with pytest.raises(UserError, match="none of the 4 images can be read"):
        list(pairs(samples, batch_size=4, on_bad_image="skip").epoch(0))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_vanishes_during_the_epoch_is_named(tmp_path, workers):
    samples = training_set(tmp_path, identities=20)
    loader = pairs(samples, batch_size=4, num_workers=workers)
    batches = loader.epoch(0)
    next(batches)
    for sample in samples:
        Path(sample.path).unlink()
    with pytest.raises(UserError, match=r"\.png cannot be read"):
        list(batches)
    loader.close()


# Workers and signals


@pytest.fixture
def worker():
    """(a loader with one worker, that worker's process), the loader having given a batch."""

    def start(samples):
        others = set(multiprocessing.active_children())
        loader = pairs(samples, batch_size=2, num_workers=1)
        loaders.append(loader)
        batches = loader.epoch(0)
        next(batches)
        (process,) = set(multiprocessing.active_children()) - others
        return loader, batches, process

    loaders = []
    yield start
    for loader in loaders:
        loader.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_worker_is_a_clear_error_and_the_loader_recovers(samples, worker, number):
    loader, batches, process = worker(samples)
    os.kill(process.pid, number)
    process.join()
    time.sleep(0.1)  # nothing is raised here, in the middle of a step
    with pytest.raises(UserError, match=r"DATALOADER\.NUM_WORKERS.*resume"):
        list(batches)
    again = [tensors(batch) for batch in loader.epoch(0)]
    assert_same(collect(pairs, samples, epochs=(0,), batch_size=2), again)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere shared memory is not a file with a size limit")
@pytest.mark.parametrize("limit", [10_000, 16])
def test_shared_memory_too_small_for_a_batch_is_a_clear_error_and_no_endless_wait(samples, monkeypatch, limit):
    # A limit on file sizes binds the files of /dev/shm just as a full /dev/shm does: with 10,000 bytes the workers
    # start, but no batch of 12 × 3 × (16 × 12 + 32 × 24) bytes is handed over; with 16 not even a queue can be made.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    loader = pairs(samples, num_workers=1)
    failures = []

    def first_batch():
        try:
            next(loader.epoch(0))
        except UserError as error:
            failures.append(str(error))

    def limited(worker):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))

    if limit == 16:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    else:
        monkeypatch.setattr("d3still.data.prefetch._ignore_interrupts", limited)
    waiting = threading.Thread(target=first_batch, daemon=True)
    try:
        waiting.start()
        waiting.join(timeout=60)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not waiting.is_alive()
    (failure,) = failures
    assert "/dev/shm" in failure and "DATALOADER.NUM_WORKERS" in failure and "\n" not in failure
    loader.close()


def test_workers_do_not_mind_ctrl_c(samples, worker):
    _, batches, process = worker(samples)
    os.kill(process.pid, signal.SIGINT)
    assert len(list(batches)) == 19


def test_closing_ends_the_workers_and_the_epoch(samples, worker):
    loader, batches, process = worker(samples)
    start = time.monotonic()
    loader.close()
    assert time.monotonic() - start < 3
    assert not process.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        next(batches)


def test_a_loader_left_to_the_garbage_collector_ends_its_workers_at_once(samples):
    def leave():
        loader = pairs(samples, batch_size=2, num_workers=2)
        batches = loader.epoch(0)
        next(batches)
        circle = [loader, batches]
        circle.append(circle)

    gc.collect()
    before = set(multiprocessing.active_children())
    leave()
    assert len(set(multiprocessing.active_children()) - before) == min(2, usable_cores())
    start = time.monotonic()
    gc.collect()
    assert time.monotonic() - start < 3
    assert not set(multiprocessing.active_children()) - before


def test_a_process_that_forgets_to_close_ends_all_the_same(samples):
    script = (
        "import sys; from tests.data.test_loaders import pairs, training_set; from pathlib import Path\n"
        "loader = pairs(training_set(Path(sys.argv[1])), num_workers=2)\n"
        "batches = loader.epoch(0); next(batches); circle = [loader, batches]; circle.append(circle)\n"
    )
    folder = str(Path(samples[0].path).parent)
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", script, folder], cwd=root, timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# The cache


def test_loaders_share_a_cache(samples, read):
    cache = ImageCache(samples)
    cache.load([(16, 12), (32, 24)])
    assert len(read) == len(samples)
    assert_same(collect(pairs, samples, cache=cache), collect(pairs, samples, cache=cache))
    assert_same(collect(balanced, samples, cache=cache), collect(balanced, samples, cache=cache))
    assert len(read) == len(samples)
    with pytest.raises(ValueError, match="other images"):
        pairs(samples[1:], cache=cache)


def test_a_cache_that_does_not_fit_is_refused(samples, monkeypatch):
    monkeypatch.setattr("d3still.data.sources.available_memory", lambda: 10_000)
    with pytest.raises(UserError, match=r"DATALOADER\.CACHE.*MiB"):
        pairs(samples, cache="ram")
    monkeypatch.setattr("d3still.data.sources.available_memory", lambda: None)
    pairs(samples, cache="ram")


def test_a_box_cuts_the_image_by_every_way(tmp_path):
    path = str(save(tmp_path / "a.png"))
    sample = Sample(path, 0, 0, box=(2, 3, 20, 15))
    expected = resize(read_image(path)[:, 3:15, 2:20], (8, 8))
    for options in WAYS:
        loader = test_loader([sample], size=[8, 8], batch_size=1, **options)
        (batch,) = loader.epoch(0)
        loader.close()
        assert torch.equal(batch.pixels[0], expected)


# Settings that make no batch


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cache": "disk"}, "DATALOADER.CACHE 'disk'"),
        ({"on_bad_image": "ignore"}, "DATALOADER.ON_BAD_IMAGE 'ignore'"),
        ({"sampler": "random"}, "DATALOADER.SAMPLER 'random'"),
        ({"num_workers": -1}, "DATALOADER.NUM_WORKERS is -1"),
        ({"size": [64]}, "image size"),
        ({"size": [64, 0]}, "image size"),
    ],
)
def test_wrong_settings_are_named(samples, options, words):
    with pytest.raises(UserError) as caught:
        balanced(samples, **options)
    assert words in str(caught.value)


def test_wrong_settings_of_pairs_are_named(samples):
    with pytest.raises(UserError, match=r"DATALOADER\.PAIR_SAMPLER 'triplet' is neither 'random' nor 'identity'"):
        pairs(samples, sampler="triplet")
    with pytest.raises(UserError, match=r"SOLVER\.IMS_DISTILLATION_PER_BATCH 12 is not a multiple of .*INSTANCE 5"):
        pairs(samples, sampler="identity", num_instances=5)


@pytest.mark.parametrize("make", [pairs, balanced])
def test_labels_must_run_from_zero(make):
    # VeRi's identities reach 776 with 576 classes
    with pytest.raises(UserError, match=r"label 776 of b\.jpg is outside 0 … 1"):
        make([Sample("a.jpg", 0, 0), Sample("b.jpg", 776, 0)])
    with pytest.raises(UserError, match="label -1"):
        make([Sample("a.jpg", 0, 0), Sample("b.jpg", -1, 0)])
    with pytest.raises(UserError, match="no image"):
        make([])
    with pytest.raises(UserError, match="no images to test"):
        test_loader([], size=[8, 8], batch_size=1)
