"""What only a GPU can show. `make gpu-check` runs these first; without a GPU they are skipped.

The steps are those of tests/distillers/test_flow.py, so that what holds on a CPU is asked again on the card.
"""

import copy
import os
import subprocess
import sys
from itertools import pairwise

import pytest
import torch

from d3still.data import pair_loader
from d3still.distillers import Pair
from d3still.distillers.acd.analysis import measure_importance
from d3still.engine.precision import Precision
from d3still.engine.recomputation import Recomputation
from d3still.engine.signals import Preempted
from d3still.engine.step import compute_gradients, update
from d3still.engine.step_memory import GIB, StepShape, estimated_peak, images_that_fit
from d3still.evaluation import evaluate_ranking
from d3still.modeling import build_model
from d3still.modeling.inference import exact_inference
from d3still.modeling.out_of_memory import InParts
from tests.data.helpers import training_set
from tests.distillers.test_flow import BASELINES, batch, build
from tests.engine import two_ranks
from tests.engine.test_resume import StopAfter, assert_same, chained, result
from tests.tiny import REPOSITORY

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first use of cuBLAS: the same sums each time
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda", 0)
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3  # batch norms of twelve images enlarge what rounding leaves


@pytest.fixture(autouse=True)
def exact_arithmetic():
    """Float32 that is float32, and the same sums each time."""
    cudnn = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = False, True, False
    yield
    torch.set_float32_matmul_precision(before[0])
    cudnn.allow_tf32, cudnn.deterministic, cudnn.benchmark = before[1:]
    torch.cuda.empty_cache()


def on(device, images, labels, pair):
    pair = Pair(pair.low.to(device), pair.high.to(device), pair.labels.to(device))
    return images.to(device), labels.to(device), pair


def gradients(distiller, precision="float32", device=CUDA, scaler=None, **shape):
    """Losses and gradients of one step, on the device."""
    distiller.to(device, memory_format=torch.channels_last).train()
    precision = Precision(precision, device)
    inputs = on(device, *batch(on_high=distiller.learner == "gallery", **shape))
    values = compute_gradients(distiller, precision, scaler or torch.amp.GradScaler(enabled=False), *inputs)
    return values, {n: p.grad.clone() for n, p in distiller.learnable_parameters() if p.grad is not None}


def made(stage, baseline):
    return build(baseline) if stage == 1 else build("ACD", baseline=baseline)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("stage", [1, 2])
def test_a_step_on_the_gpu_is_the_step_on_the_cpu(stage, baseline):
    expected, expected_grads = gradients(made(stage, baseline), device=torch.device("cpu"))
    found, grads = gradients(made(stage, baseline))
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=LOSS_TOLERANCE, abs=1e-6), name
    assert grads.keys() == expected_grads.keys()
    whole = torch.cat([g.flatten() for g in expected_grads.values()])
    gap = torch.cat([grads[name].cpu().flatten() for name in expected_grads]) - whole
    assert (gap.norm() / whole.norm()).item() < GRADIENT_TOLERANCE


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_steps_stay_finite(baseline, precision):
    for stage in (1, 2):
        values, grads = gradients(made(stage, baseline), precision)
        assert all(value.isfinite() for value in values.values()), (stage, values)
        assert all(grad.isfinite().all() for grad in grads.values())


def test_the_loss_scale_recovers_from_an_overflow():
    distiller = build("ROP").to(CUDA, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD([p for _, p in distiller.learnable_parameters()], lr=1e-4)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40, growth_interval=2)
    inputs, scales = on(CUDA, *batch()), []
    for _ in range(60):
        values = compute_gradients(distiller, Precision("float16", CUDA), scaler, *inputs)
        update(distiller, optimizer, scaler)
        scales.append(scaler.get_scale())
        assert values["loss"].isfinite()
    assert scales[0] < 2.0**40, "the first step overflowed and was left out"
    assert any(later > earlier for earlier, later in pairwise(scales)), "and the scale grew back"
    assert all(p.isfinite().all() for p in distiller.parameters())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("query", ["ResNet18", "MobileNetV3_Small"])
def test_recomputation_is_exact(query, precision):
    plain = build("ROP", query=query)
    recomputing = copy.deepcopy(plain)
    recomputing.query.checkpoint_activations = True
    results = []
    for distiller in (plain, recomputing):
        torch.manual_seed(5)
        results.append((*gradients(distiller, precision), distiller.query.state_dict()))
    for one, other in zip(*results, strict=True):
        assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def step_of(distiller, inputs):
    def compute():
        torch.manual_seed(5)
        return compute_gradients(
            distiller, Precision("float32", CUDA), torch.amp.GradScaler(enabled=False), *inputs
        )

    return compute


def test_auto_recomputes_under_a_memory_cap_and_changes_no_bit():
    plain = build("ROP", query="ResNet50").to(CUDA, memory_format=torch.channels_last).train()
    capped, probe = copy.deepcopy(plain), copy.deepcopy(plain)
    inputs = on(CUDA, *batch(low=(160, 160), high=(64, 64)))
    peaks = []
    for distiller, recompute in ((plain, False), (probe, True)):
        distiller.query.checkpoint_activations = recompute
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        step_of(distiller, inputs)()
        peaks.append(torch.cuda.max_memory_reserved())
    del probe
    torch.cuda.empty_cache()
    assert peaks[0] > peaks[1] + 2**27, "else the cap would have no room"
    total = torch.cuda.get_device_properties(CUDA).total_memory
    recomputation = Recomputation(capped, "auto", lambda: "does not fit")
    torch.cuda.set_per_process_memory_fraction((peaks[0] + peaks[1]) / 2 / total)
    try:
        recomputation.attempt(step_of(capped, inputs))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert recomputation.on
    for (name, one), other in zip(plain.query.named_parameters(), capped.query.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name
    for (name, one), other in zip(plain.query.named_buffers(), capped.query.buffers(), strict=True):
        assert torch.equal(one, other), name


def test_embedding_goes_on_in_parts_under_a_memory_cap():
    network = build_model("ResNet50", 5).to(CUDA).eval()
    images = torch.randn(64, 3, 224, 224)

    def embed(part):
        return network(part.to(CUDA)).retrieval_feat.cpu()

    with exact_inference(network):
        expected = torch.cat([embed(part) for part in images.split(4)])
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(CUDA).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**29) / total)
        try:
            found = InParts(embed, "TEST.IMS_PER_BATCH")(images)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("recompute", [False, True])
def test_the_peak_is_the_estimate_of_the_page(recompute):
    """docs/memory.md: within a tenth, which kernels' workspaces are."""
    setting = StepShape("ResNet50", 128, "ResNet18", 64, 64, recompute=recompute, triplet_batch=32)
    from d3still.engine.step_memory import networks_of, step

    learner, frozen = (network.to(CUDA) for network in networks_of(setting))
    torch.cuda.reset_peak_memory_stats()
    with torch.device(CUDA):
        step(learner, frozen, setting)
    assert torch.cuda.max_memory_allocated() == pytest.approx(estimated_peak(setting), rel=0.1)
    assert images_that_fit(setting, 80 * GIB) > images_that_fit(setting, 24 * GIB) > 96


def test_a_run_stopped_and_resumed_on_the_gpu_is_the_same_bits(chain, run_stage, tmp_path, monkeypatch):
    more = chained("acd_rop", chain) | {"EXPERIMENT__DEVICE": "cuda", "EXPERIMENT__PRECISION": "bfloat16"}
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        straight = run_stage("acd_rop", tmp_path / "straight", **more)
        with monkeypatch.context() as patch:
            StopAfter(patch, 15, steps=5)
            with pytest.raises(Preempted):
                run_stage("acd_rop", tmp_path / "stopped", **more)
        resumed = run_stage("acd_rop", tmp_path / "stopped", **more)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(result(straight), result(resumed))


def test_raho_scores_on_the_gpu_are_those_on_the_cpu():
    distiller = build("ACD")
    pair = batch()[2]
    scores = []
    for device in ("cpu", "cuda"):
        distiller.to(device)
        here = Pair(pair.low.to(device), pair.high.to(device), pair.labels.to(device))
        scores.append(measure_importance(distiller.gallery, distiller.query, [here]).scores())
    for name, values in scores[0].items():
        assert scores[1][name] == pytest.approx(values, rel=1e-3, abs=1e-4), name


def test_features_on_the_gpu_are_those_on_the_cpu_whatever_the_user_allows():
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("medium")
    network, images = build_model("ResNet50", 5).eval(), torch.randn(4, 3, 128, 128)
    feats = []
    for device in ("cpu", "cuda"):
        network.to(device)
        with torch.autocast(device, torch.bfloat16), exact_inference(network):
            feats.append(network(images.to(device)).retrieval_feat.cpu())
    assert feats[1].dtype == torch.float32
    torch.testing.assert_close(feats[1], feats[0], rtol=1e-3, atol=1e-4)


def test_ranking_on_the_gpu_is_the_ranking_on_the_cpu():
    torch.manual_seed(0)
    query, gallery = torch.randn(50, 64), torch.randn(500, 64)
    labels = [torch.randint(0, 10, (count,)) for count in (50, 500)]
    cameras = [torch.zeros(50, dtype=torch.long), torch.ones(500, dtype=torch.long)]
    expected = evaluate_ranking(query, gallery, *labels, *cameras)
    found = evaluate_ranking(query.cuda(), gallery.cuda(), *labels, *cameras)
    assert found.summary() == expected.summary()


def test_pinned_batches_arrive_whole(tmp_path):
    settings = {"low_size": [16, 16], "high_size": [32, 32], "low_padding": 2, "high_padding": 4}
    options = settings | {"flip_prob": 0.5, "erase_prob": 0.5, "batch_size": 8, "seed": 0}
    samples = training_set(tmp_path)
    plain = list(pair_loader(samples, **options).epoch(0))
    pinned = list(pair_loader(samples, **options, pin_memory=True).epoch(0))
    assert len(plain) == len(pinned)
    for one, other in zip(plain, pinned, strict=True):
        moved = other.to(CUDA, non_blocking=True)
        for here, there in ((one.low, moved.low), (one.high, moved.high)):
            assert torch.equal(here.pixels, there.pixels.cpu()) and torch.equal(here.erase, there.erase.cpu())


def test_two_ranks_on_one_card_with_sync_bn_are_one_process(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = ["tests/engine/two_ranks.py", str(tmp_path / "out.pt"), "cuda"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [*command, *script], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    expected = two_ranks.sync_bn_gradients(CUDA, slice(None))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = value.abs().max().clamp(min=1e-6)
        torch.testing.assert_close(found[name].to(CUDA) / scale, value / scale, rtol=1e-3, atol=1e-3)


def test_a_network_trained_on_the_gpu_is_exported(chain, run_stage, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from d3still.deploy import Embedder
    from d3still.deploy.export import export_network

    more = chained("rop", chain) | {"EXPERIMENT__DEVICE": "cuda"}
    folder = run_stage("rop", tmp_path, **more)
    exported = export_network(folder / "last.pth", "query", "onnx", tmp_path / "query.onnx")
    pixels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    on_gpu = Embedder.from_checkpoint(folder / "last.pth", "query", "cuda").embed_pixels(pixels)
    by_onnx = Embedder.from_checkpoint(exported.path).embed_pixels(pixels)
    assert abs((on_gpu * by_onnx).sum(1) - 1).max() < 1e-4, "cosine"
