"""Peak memory without running: against the closures of real ops, and against the peaks of real steps."""

import gc
import subprocess
import sys
import tracemalloc
import types
from pathlib import Path

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import nn, ops
from scratchvit.inspect import cost, peak_memory
from scratchvit.inspect.blanks import as_blanks
from scratchvit.inspect.cost import configured_shape, signature_of
from scratchvit.inspect.memory import differentiable
from scratchvit.inspect.saved import SAVED, nothing
from scratchvit.models import create_model
from scratchvit.recording import no_grad, replace_ops
from scratchvit.tensor import Tensor
from tests.cases import CASES
from tests.support.processes import SECONDS, alone
from tests.support.seeds import seeded

# One small model of every family: enough tokens that arrays outweigh what is not counted.
FAMILIES = {
    "vit_tiny_patch16_224": {"depth": 4},
    "pixel_transformer_tiny": {"img_size": 16, "depth": 3},
    "deit_tiny_distilled_patch16_224": {"depth": 3},
    "resnet18": {"img_size": 128, "layers": (1, 1, 1, 1)},
    "resnet50": {"img_size": 96, "layers": (1, 1, 1, 1)},
    "resnetv2_50x1_bit": {"img_size": 96, "layers": (1, 2)},
    "vit_tiny_r_s16_p8_224": {"depth": 3},
    "igpt_tiny": {"img_size": 16},
    "swin_tiny_patch4_window7_224": {"img_size": 108, "depths": (2, 2), "num_heads": (3, 6)},      # with padding
    "swinv2_tiny_window8_256": {"img_size": 128, "depths": (2, 2), "num_heads": (3, 6)},
    "mvit_v1_b_image": {"img_size": 96, "depths": (1, 2)},
    "mvitv2_tiny": {"img_size": 96, "depths": (1, 2)},
    "mvit_v2_s": {"img_size": 64, "num_frames": 8, "depths": (1, 2)},
    "detr_tiny": {"img_size": 96, "enc_layers": 2},
    "dab_detr_tiny": {},
}  # fmt: skip


def without_weights(name, **options):
    with nn.init.without_weights():
        return create_model(name, **options)


def measured(name, batch_size):
    """(training, inference) in bytes: the peaks of the second step, weights and moments included."""
    tracemalloc.start()
    model = create_model(name, **FAMILIES[name])
    images = seeded(0).standard_normal((batch_size, *configured_shape(model)), dtype=np.float32)
    labels = model.tokens(images) if getattr(model, "generative", False) else np.zeros(batch_size, np.int64)

    def loss():
        answers = model(images)
        if not isinstance(answers, dict):
            return ops.cross_entropy(answers, labels)
        layers = [answers, *answers["aux_outputs"]]             # a detector's: of all classes and boxes
        return sum(ops.cross_entropy(
            layer["pred_logits"].transpose(1, 2), np.zeros(layer["pred_boxes"].shape[:2], np.int64)
        ) + abs(layer["pred_boxes"]).mean() for layer in layers)  # fmt: skip

    optimizer = sv.optim.AdamW(model.parameters(), lr=1e-4)

    def forward():
        with no_grad():
            model.eval()(images)

    def step():
        optimizer.zero_grad()
        model.train()
        loss().backward()
        optimizer.step()

    peaks = []
    for run in (forward, step):
        run()               # what is made once is made: caches, moments
        gc.collect()
        tracemalloc.reset_peak()
        run()
        peaks.append(tracemalloc.get_traced_memory()[1])
    return peaks[1], peaks[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_predicted_peaks_agree_with_measured_ones(name):
    """Within 15 %, in training and in inference, of what NumPy tells tracemalloc that it allocates."""
    predicted = peak_memory(without_weights(name, **FAMILIES[name]), batch_size=3)
    training, inference = alone(measured, name, 3)
    ratios = predicted.training / training, predicted.inference / inference
    print(f"{name}: training {ratios[0] - 1:+.1%}, inference {ratios[1] - 1:+.1%} of what was measured")
    assert predicted.training == pytest.approx(training, rel=0.15)
    assert predicted.inference == pytest.approx(inference, rel=0.15)
    fixed = predicted.weights + predicted.moments
    assert predicted.activations == pytest.approx(training - fixed, rel=0.2)        # not by the weights alone


def saved_by(backward):
    """The arrays that a closure refers to, each once; of integers, only flags and winners, since indices are small."""
    found, seen, waiting = {}, set(), [backward]
    while waiting:
        x = waiting.pop()
        if id(x) in seen:
            continue
        seen.add(id(x))
        if isinstance(x, np.ndarray):
            owner = x.base if isinstance(x.base, np.ndarray) else x
            if x.dtype.kind in "fb" or x.dtype == np.uint8:
                found[id(owner)] = x
        elif isinstance(x, list | tuple):
            waiting.extend(x)
        elif isinstance(x, dict):
            waiting.extend(x.values())
        elif isinstance(x, types.FunctionType):
            waiting.extend(cell.cell_contents for cell in x.__closure__ or () if _is_filled(cell))
    return list(found.values())


def _is_filled(cell):
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_ops_save_is_what_their_closures_hold(case):
    """To within a row and a column of numbers: ones that sums are made with, means, deviations."""

    def compare(function, args, kwargs):
        value, backward = function(*args, **kwargs)
        outputs = value if isinstance(value, tuple) else (value,)
        arguments = signature_of(function).bind(*as_blanks(args), **as_blanks(kwargs)).arguments
        rule = SAVED.get(function.__name__, nothing)
        predicted = {id(x): x for x in rule(arguments, as_blanks(outputs))}
        predicted_bytes = sum(x if isinstance(x, int) else x.nbytes for x in predicted.values())
        held = sum(x.nbytes for x in saved_by(backward))
        shapes = [x.shape for x in (*differentiable(function, arguments), *outputs) if hasattr(x, "shape")]
        slack = 8 * 4 * sum(sum(shape) + np.prod(shape[:-1], dtype=int) for shape in shapes)
        rows.append((function.__name__, predicted_bytes, held, slack))
        return value, backward

    rows = []
    with replace_ops(compare):
        case.ours(*(Tensor(x, requires_grad=True) for x in case.make()))
    for name, predicted, held, slack in rows:
        assert predicted - slack <= held <= predicted + slack, name


# --- attention without the matrix ---

PIXELS = {"img_size": 64, "embed_dim": 128, "num_heads": 8, "depth": 21, "mlp_ratio": 2.0}
WITHOUT_CLASS_TOKEN = {"class_token": False, "global_pool": "avg"}

STEP = """
import numpy as np, scratchvit as sv
model = sv.create_model("pixel_transformer_tiny", num_classes=10, **{options})
optimizer = sv.optim.AdamW(model.parameters(), lr=1e-3)
images = np.random.default_rng(0).standard_normal((1, 3, 64, 64), dtype=np.float32)
before = [p.data.copy() for p in model.parameters()]
loss = sv.ops.cross_entropy(model(images), np.array([3]))
loss.backward()
optimizer.step()
assert all(np.isfinite(p.data).all() for p in model.parameters()) and np.isfinite(loss.item())
moved = [np.abs(p.data - old).max() > 0 for p, old in zip(model.parameters(), before)]
assert all(moved)
status = open("/proc/self/status").read()
print(1024 * int(status.split("VmHWM:")[1].split()[0]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read as on Linux")
def test_4096_pixels_train_within_2_gib():
    """A step in a process of its own, Python and all. The matrices of 21 layers of 8 heads alone would be 10.5 GiB."""
    options = {**PIXELS, **WITHOUT_CLASS_TOKEN}
    model = without_weights("pixel_transformer_tiny", **options)
    found, predicted = cost(model), peak_memory(model)
    assert found.tokens == 4096
    assert found.attention_bytes == 21 * 8 * 4096**2 * 4 > 10 << 30
    step = subprocess.run(
        [sys.executable, "-c", STEP.format(options=options)], capture_output=True, text=True, timeout=SECONDS
    )
    assert step.returncode == 0, step.stderr
    print(f"the process {int(step.stdout) / 2**20:.0f} MiB, its arrays by prediction {predicted.training / 2**20:.0f}")
    assert predicted.training < int(step.stdout) < predicted.training + (400 << 20) < 2 << 30
