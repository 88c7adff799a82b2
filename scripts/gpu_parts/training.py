"""Does training on the device do what it does on the CPU, and twice the same? How long does a first step take?"""

from __future__ import annotations

import functools
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import scratchvit as sv
from scratchvit import backend, optim
from scratchvit.backend import Array
from scratchvit.random import Generator
from scratchvit.replay import Replay
from scripts.gpu_parts.cases import CASES, our_loss, our_model, our_step
from scripts.gpu_parts.part import Item, Row, Setting, cannot_be_captured, not_run
from scripts.gpu_parts.timing import seconds_of

LOSS_LIMIT = 1e-3       # relative, of the loss in any of the steps: two devices, two orders of summation
GRADIENT_LIMIT = 1e-3   # relative, of the gradient of any parameter, by norms; or of this share of the whole gradient,
SMALL_GRADIENT = 1e-3   # as some are nothing but rounding: a DETR's first queries have the same values everywhere


def as_on_the_cpu(setting: Setting) -> Row:
    """The same small ViT on the same batches, dropout and all, here and on the CPU: how far apart are losses?"""
    steps = setting.pick(50, 6)
    expected = train("cpu", steps)
    actual = train(setting.device, steps)
    difference = float(np.max(np.abs(actual - expected) / np.abs(expected)))
    return {
        "ok": difference < LOSS_LIMIT and bool(expected[-1] < expected[0]),
        "result": f"{steps} steps, loss {expected[0]:.3f} to {expected[-1]:.3f}, largest relative difference "
        f"{difference:.1e} (limit {LOSS_LIMIT:.0e})",
        "difference": difference, "losses": [expected.tolist(), actual.tolist()],
    }


def gradients(name: str, setting: Setting) -> Row:
    """Loss and gradients of a small version of a model against the CPU's."""
    found = []
    for device in ("cpu", setting.device):
        sv.use(device)
        found.append(loss_and_gradients(name))
    (loss, expected), (other, actual) = found
    norms = {key: float(np.linalg.norm(g)) for key, g in expected.items()}
    least = SMALL_GRADIENT * math.hypot(*norms.values())
    errors = {
        key: float(np.linalg.norm(actual[key] - g)) / max(norms[key], least) for key, g in expected.items()
    }
    worst = max(errors, key=lambda key: errors[key])
    difference = abs(other - loss) / abs(loss)
    return {
        "ok": errors[worst] < GRADIENT_LIMIT and difference < LOSS_LIMIT, "errors": errors,
        "result": f"loss {loss:.4f}, relative difference {difference:.1e}; of gradients at most {errors[worst]:.1e} "
        f"({worst}; limit {GRADIENT_LIMIT:.0e})",
    }


def loss_and_gradients(name: str) -> tuple[float, dict[str, np.ndarray]]:
    """Of the small version of a case, on the device in use. Norms' weights that begin at 0 become 1."""
    case = CASES[name]
    model = our_model(case, small=True)
    for parameter in model.parameters():
        if not parameter.numpy().any():
            parameter.assign(1 if parameter.ndim == 1 else 0.1)
    loss_of, arrays = our_loss(case, True, model)
    loss = loss_of(*arrays)
    loss.backward()
    return loss.item(), {name: backend.asnumpy(p.grad) for name, p in model.named_parameters() if p.grad is not None}


def twice(setting: Setting) -> Row:
    """The same steps twice on the device: the same bits?"""
    steps = setting.pick(20, 4)
    first, second = (train(setting.device, steps) for _ in range(2))
    same = first.tobytes() == second.tobytes()
    return {"ok": same, "result": f"{steps} steps, {'the same' if same else 'OTHER'} bits of all losses",
            "losses": [first.tolist(), second.tolist()]}


def resumed(setting: Setting) -> Row:
    """Steps that were stopped in the middle, saved and resumed by another model: the same bits as in one go?"""
    steps = setting.pick(20, 4)
    whole, parts = train(setting.device, steps), train(setting.device, steps, stop_at=steps // 2)
    same = whole.tobytes() == parts.tobytes()
    return {"ok": same, "result": f"{steps} steps, resumed after {steps // 2}: {'the same' if same else 'OTHER'} bits",
            "losses": [whole.tolist(), parts.tolist()]}


def replayed(setting: Setting) -> Row:
    """Steps that are captured and replayed: the same bits as steps whose operations are started one by one?"""
    if not setting.on_gpu:
        return not_run("on the CPU")
    steps, errors = setting.pick(20, 5), list[Exception]()
    one_by_one, losses = train(setting.device, steps), train(setting.device, steps, failed=errors.append)
    if errors:
        return cannot_be_captured(errors[0])
    same = one_by_one.tobytes() == losses.tobytes()
    return {"ok": same, "result": f"{steps} steps, {'the same' if same else 'OTHER'} bits of all losses",
            "losses": [one_by_one.tolist(), losses.tolist()]}


def train(
    device: str, steps: int, stop_at: int | None = None, failed: Callable[[Exception], None] | None = None
) -> np.ndarray:
    """The losses (steps,) of AdamW on pictures of ten classes that can be learned, with dropout and stochastic depth.

    stop_at: after so many steps, the states of model, generator and optimiser are saved and loaded into new ones.
    failed: steps are captured and replayed, or this is called with what prevents it.
    """
    sv.use(device)
    rng = np.random.default_rng(0)
    prototypes = rng.standard_normal((10, 1, 28, 28), dtype=np.float32)
    parts = _parts(seed=0)

    def step_of(x: Array, y: Array) -> sv.Tensor:
        model, optimizer, _ = parts
        optimizer.zero_grad()
        loss = sv.ops.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    learn = step_of if failed is None else Replay(step_of, failed)
    losses = []
    for step in range(steps):
        if step == stop_at:
            saved = [each.state_dict() for each in parts]
            parts = _parts(seed=1)
            for part, state in zip(parts, saved):
                part.load_state_dict(state)
        y = rng.integers(10, size=32)
        x = prototypes[y] + rng.standard_normal((32, 1, 28, 28), dtype=np.float32)
        losses.append(learn(backend.asarray(x), backend.asarray(y)).item())
    return np.array(losses)


def _parts(seed: int) -> tuple[Any, Any, Generator]:
    """A model, its optimiser and the generator of its dropout."""
    model: Any = sv.create_model(
        "vit_tiny_patch16_224", num_classes=10, in_chans=1, img_size=28, patch_size=7, embed_dim=64, depth=4,
        num_heads=4, proj_drop_rate=0.1, drop_path_rate=0.1, seed=seed,
    )
    generator = Generator(seed)
    model.set_generator(generator)
    return model, optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.05), generator


# --- the first step ---


def first_step(name: str, folder: str, setting: Setting) -> Row:
    """Seconds until the first training step is done, in a new process, with kernels kept in a folder of its own.

    The batch is small, as the kernels are the same for all sizes. The second step is what remains without compiling.
    """
    kept = setting.scratch / folder
    os.environ["CUPY_CACHE_DIR"] = str(kept)        # read when CuPy is imported, which this process has not done
    before = _number_of_files(kept)
    begin = time.perf_counter()
    device = setting.use()
    opened = time.perf_counter()
    step = our_step(replace(CASES[name], batch=2), setting.small)
    made = time.perf_counter()
    first, second = (seconds_of(step, device.synchronize) for _ in range(2))
    compiled = _number_of_files(kept) - before
    return {
        "ok": True, "device_s": opened - begin, "model_s": made - opened, "first_s": first, "second_s": second,
        "compiled": compiled, "pch": os.environ.get("CUPY_NVRTC_USE_PCH"),
        "result": f"device {opened - begin:.1f} s, first step {first:.1f} s, second {second:.2f} s; {compiled} kernels "
        "compiled",
    }


def _number_of_files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*.cubin"))


TRAINING: dict[str, Item] = {
    "losses as on the CPU": as_on_the_cpu,
    **{f"gradients, {name.partition(',')[0]}": functools.partial(gradients, name) for name in CASES},
    "the same bits twice": twice,
    "resumed: the same bits": resumed,
    "replayed: the same bits": replayed,
}
FIRST_STEPS: dict[str, Item] = {
    f"{name}, {state}": functools.partial(first_step, name, f"first-{number}")
    for number, name in enumerate(("ViT-Ti/16, 224²", "DETR-R18, 256²"))
    for state in ("nothing compiled", "compiled before")
}
