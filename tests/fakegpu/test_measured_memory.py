"""The peak memory of a model on a GPU, as `costs.measured` counts it, against what is known of it."""

import gc

import cupy
import numpy as np
import pytest

import scratchvit as sv
from scratchvit.cli import main
from scratchvit.costs import peak_memory
from scratchvit.costs.measured import measured_memory
from tests.fakegpu.helpers import start

TINY = {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 3, "num_heads": 2, "num_classes": 5}
WORDS = [word for name, number in TINY.items() for word in (f"--{name.replace('_', '-')}", str(number))]


@pytest.fixture
def gpu():
    yield sv.use("gpu")
    sv.use("cpu")


def test_a_peak_that_can_be_counted_by_hand(gpu):
    """A linear layer without a hidden array: images, weights, output and gradients."""
    class Layer(sv.nn.Module):
        def __init__(self):
            self.head = sv.nn.Linear(1024, 1024, bias=False, rng=np.random.default_rng(0))

        def forward(self, x):
            return self.head(x.reshape(len(x.data), -1))

    found = measured_memory(Layer(), (4, 16, 16), batch_size=2048)
    weight, batch = 4 * 1024**2, 4 * 2048 * 1024
    assert (found.weights, found.moments) == (weight, 2 * weight)
    assert weight + 2 * batch <= found.inference < weight + 2 * batch + 1e5
    # In cross_entropy: images, logits, their log-probabilities and at most three temporary arrays of that size.
    assert 3 * weight + 3 * batch <= found.training < 3 * weight + 6.1 * batch
    assert found.held >= found.training


@pytest.mark.parametrize(("name", "options"), [
    ("vit_tiny_patch16_224", TINY), ("resnet18", {"img_size": 96, "channels": (16, 32, 64, 64)}),
    ("igpt_tiny", {"img_size": 8}), ("detr_tiny", {}),
])
def test_it_grows_with_the_batch_as_on_the_cpu(gpu, name, options):
    model = sv.create_model(name, **options)
    small, large = (measured_memory(model, batch_size=batch) for batch in (2, 6))
    sv.use("cpu")
    reference = sv.create_model(name, **options)
    one, other = (peak_memory(reference, batch_size=batch) for batch in (2, 6))
    assert (small.weights, small.moments) == (one.weights, one.moments) == (large.weights, large.moments)
    assert 0.5 < (large.training - small.training) / (other.training - one.training) < 2
    assert small.inference < small.training <= small.held


@pytest.mark.parametrize(("name", "options"), [
    ("vit_tiny_patch16_224", TINY),
    ("resnet18", {"img_size": 64, "layers": (1, 1, 1, 1), "channels": (16, 32, 64, 64)}),
])
def test_sixteen_bits_are_predicted_as_they_are_measured(gpu, name, options):
    """Within 30 %, as far as facts are those of the CPU's kernels: convolutions need more on a GPU."""
    found = measured_memory(sv.create_model(name, **options), batch_size=8, precision="bf16")
    in_full = measured_memory(sv.create_model(name, **options), batch_size=8)
    sv.use("cpu")
    predicted = peak_memory(sv.create_model(name, **options), batch_size=8, precision="bf16")
    assert predicted.shadows == found.shadows > 0 == in_full.shadows
    assert 0.7 < predicted.activations / found.activations < 1.3
    assert found.activations < 0.8 * in_full.activations


def test_what_is_measured_is_what_the_pool_gave_out(gpu):
    """A batch does not fit into a pool that is limited to 95 % of the peak."""
    pool = cupy.get_default_memory_pool()
    gc.collect()
    before = pool.used_bytes()
    found = measured_memory(sv.create_model("vit_tiny_patch16_224", **TINY), batch_size=16)
    gc.collect()
    model = sv.create_model("vit_tiny_patch16_224", **TINY)
    try:
        pool.set_limit(before + found.training * 95 // 100)
        with pytest.raises(sv.ScratchvitError, match="memory of the GPU is full with a batch of 16 images"):
            measured_memory(model, batch_size=16)
    finally:
        pool.set_limit(0)


def test_the_cpu_has_no_such_measurement():
    with pytest.raises(sv.ScratchvitError, match="memory is measured on a GPU, not on 'cpu'"):
        measured_memory(sv.create_model("vit_tiny_patch16_224", **TINY))


def test_the_command(gpu, capsys):
    assert main(["cost", "vit_tiny_patch16_224", *WORDS, "--batch-size", "16", "--device", "gpu"]) == 0
    text = capsys.readouterr().out
    assert "for a batch of 16 images, in float32, measured on the GPU\n" in text
    assert "by CuPy, which keeps freed memory" in text and "From shapes alone, as in the table, a step would" in text


def test_a_batch_that_is_too_large_is_a_sentence():
    words = ["cost", "vit_tiny_patch16_224", "--batch-size", "64", "--device", "gpu"]
    done = start("-m", "scratchvit", *words, FAKEGPU_MEMORY_MB="100")
    assert done.returncode == 1 and "the memory of the GPU is full with a batch of 64 images" in done.stderr
    assert "total" in done.stdout and "Traceback" not in done.stderr
