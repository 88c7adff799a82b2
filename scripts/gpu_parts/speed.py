"""Training steps of the cases, here and in PyTorch: time, the host's share of it, peak memory; and long runs."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import scratchvit as sv
from scratchvit import backend, optim
from scratchvit.costs.measured import peak_of
from scratchvit.detection.config import DetectConfig
from scratchvit.detection.task import make_criterion
from scratchvit.precision import computing_in
from scratchvit.replay import WARM_UP
from scripts.bench import random_objects
from scripts.gpu_parts.cases import CASES, OF_ADAMW, Case, our_model, our_step
from scripts.gpu_parts.part import Item, Row, Setting, cannot_be_captured, not_run
from scripts.gpu_parts.timing import step_times

STEPS, SECONDS = 50, 1.5            # of a measurement, at most
PRECISIONS = ("float32", "TF32", "bf16")
COMPILED = ("ViT D192 L6, 32²", "ViT-Ti/16, 224²")      # also by torch.compile, which takes 25 s for each
EAGER, REPLAY, PLAIN = "eager", "replay", "plain attention"
COMPILE_MODES = ("default", "reduce-overhead")


# --- ours -----------------------------------------------------------------------------------------------------------


def ours(name: str, precision: str, way: str, setting: Setting) -> Row:
    """A training step here, in a precision as `scratchvit train --precision` has it.

    way: EAGER or REPLAY. The peak of memory is that of an eager step, as a graph keeps its memory outside of the pool.
    """
    if not setting.on_gpu and (precision, way) != ("float32", EAGER):
        return not_run("TF32, 16 bits and graphs belong to GPUs")
    device = setting.use()
    errors: list[Exception] = []
    peak = None
    with computing_in(precision.lower()):
        step = our_step(CASES[name], setting.small, errors.append if way == REPLAY else None)
        if way == REPLAY:
            for _ in range(WARM_UP + 1):
                step()
            if errors:
                return cannot_be_captured(errors[0])
        times = step_times(step, device.synchronize, setting.pick(STEPS, 1), setting.pick(SECONDS, 0.1))
        if setting.on_gpu and way == EAGER:
            with peak_of(device.xp, device.xp.get_default_memory_pool().used_bytes()) as memory:
                loss = step().item()
            peak = memory.most
        else:
            loss = step().item()
        del step
    if setting.on_gpu:
        device.xp.get_default_memory_pool().free_all_blocks()
    return row_of("ours", name, precision, way, times, loss, peak)


def row_of(
    side: str, case: str, precision: str, way: str, times: dict[str, Any], loss: float, peak: int | None
) -> Row:
    """The row of a measurement, which has failed if the loss is no number."""
    memory = "" if peak is None else f", at most {peak / 2**30:.2f} GiB"
    return {
        "ok": math.isfinite(loss), "side": side, "case": case, "precision": precision, "way": way, **times,
        "loss": loss, "peak_bytes": peak,
        "result": f"{times['ms']:.2f} ms a step, issued in {times['host_ms']:.2f} ms{memory}",
    }


# --- PyTorch --------------------------------------------------------------------------------------------------------


def theirs(name: str, precision: str, way: str, setting: Setting) -> Row:
    """PyTorch's eager mode with AdamW as it comes (foreach on a GPU), and its TF32 switches set for products and cuDNN.

    way: EAGER; PLAIN, without scaled_dot_product_attention; or a mode of torch.compile.
    """
    import torch

    from scripts.gpu_parts import peers

    if precision == "TF32" and not setting.on_gpu:
        return not_run("TF32 belongs to GPUs")
    place = "cuda" if setting.on_gpu else "cpu"
    wait = torch.cuda.synchronize if setting.on_gpu else lambda: None
    if setting.on_gpu:
        torch.cuda.init()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    attention = peers.plain_attention() if way == PLAIN else contextlib.nullcontext()
    with attention, torch_precision(precision):
        step = torch_step(CASES[name], setting.small, place, precision, way)
        times = step_times(step, wait, setting.pick(STEPS, 1), setting.pick(SECONDS, 0.1))
        loss = float(step())
    peak = torch.cuda.max_memory_allocated() if setting.on_gpu else None
    return row_of("PyTorch", name, precision, way, times, loss, peak)


@contextlib.contextmanager
def torch_precision(precision: str) -> Iterator[None]:
    """float32 products and convolutions by TF32, or not: cuDNN's switch is on by default."""
    import torch

    switches = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [each.allow_tf32 for each in switches]
    try:
        for each in switches:
            each.allow_tf32 = precision == "TF32"
        yield
    finally:
        for each, value in zip(switches, before):
            each.allow_tf32 = value


def torch_step(case: Case, small: bool, place: str, precision: str, way: str) -> Callable[[], Any]:
    """A training step of the same model in PyTorch. place: "cuda" or "cpu"."""
    import torch

    from scripts.gpu_parts import peers

    images, labels = case.data(small)
    model = peers.peer_of(case.model, case.config(small)).to(place)
    optimizer = torch.optim.AdamW(model.parameters(), **OF_ADAMW)
    x = torch.from_numpy(images).to(place)
    forward = torch.compile(model, mode=way) if way in COMPILE_MODES else model
    if isinstance(labels, list):
        def loss_of() -> Any:
            return peers.set_loss(forward(x), labels)
    else:
        y = torch.from_numpy(labels).to(place)

        def loss_of() -> Any:
            return torch.nn.functional.cross_entropy(forward(x), y)

    def step() -> Any:
        optimizer.zero_grad()
        with torch.autocast(place, torch.bfloat16, enabled=precision == "bf16"):
            loss = loss_of()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


# --- long runs ------------------------------------------------------------------------------------------------------


def long_classification(setting: Setting) -> Row:
    """Steps of the small ViT with a new batch from the host each: pictures per second, and does memory grow?"""
    device, steps = setting.use(), setting.pick(300, 6)
    case = CASES["ViT D192 L6, 32²"]
    model, rng = our_model(case, setting.small), np.random.default_rng(0)
    optimizer = optim.AdamW(model.parameters(), **OF_ADAMW)
    batch = 2 if setting.small else case.batch
    prototypes = rng.standard_normal((10, 3, 32, 32), dtype=np.float32)
    y = rng.integers(10, size=(8, batch))
    x = [prototypes[each] + rng.standard_normal((batch, 3, 32, 32), dtype=np.float32) for each in y]

    def step(i: int) -> sv.Tensor:
        optimizer.zero_grad()
        loss = sv.ops.cross_entropy(model(backend.asarray(x[i % 8])), y[i % 8])
        loss.backward()
        optimizer.step()
        return loss

    return long_run(device, step, steps, batch, most_growth=1.05)


def long_detection(setting: Setting) -> Row:
    """Steps of a DETR whose images have another size each time, as in training: does memory grow?"""
    device, steps = setting.use(), setting.pick(60, 6)
    case, rng = CASES["DETR-R18, 256²"], np.random.default_rng(0)
    model = our_model(case, setting.small)
    optimizer = optim.AdamW(model.parameters(), **OF_ADAMW)
    batch = 2 if setting.small else case.batch
    criterion = make_criterion(DetectConfig(), model)
    sides = rng.integers(*setting.pick((6, 11), (2, 4)), size=(steps, 2)) * 32

    def step(i: int) -> sv.Tensor:
        images = rng.standard_normal((batch, 3, *sides[i]), dtype=np.float32)
        targets = random_objects(rng, batch, model.config.num_classes)
        optimizer.zero_grad()
        loss = criterion.total(criterion(model(backend.asarray(images)), targets))
        loss.backward()
        optimizer.step()
        return loss

    return long_run(device, step, steps, batch, most_growth=1.5)


def long_run(
    device: backend.Backend, step: Callable[[int], sv.Tensor], steps: int, batch: int, most_growth: float
) -> Row:
    """The row of a run: its speed after the first third, and what CuPy's pool held then and at the end."""
    losses, held = [], []
    begin = time.perf_counter()
    for i in range(steps):
        loss = step(i)
        if i in (steps // 3, steps - 1):
            losses.append(loss.item())
            held.append(device.xp.get_default_memory_pool().total_bytes() if device.has_cuda else 0)
            begin = begin if i == steps - 1 else time.perf_counter()
    seconds = time.perf_counter() - begin
    speed = (steps - 1 - steps // 3) * batch / seconds
    return {
        "ok": all(map(math.isfinite, losses)) and held[1] <= most_growth * held[0],
        "losses": losses, "held_bytes": held, "images_per_s": round(speed, 1),
        "result": f"{steps} steps, {speed:,.0f} images/s; the pool held {held[0] / 2**30:.2f} GiB after a third, "
        f"{held[1] / 2**30:.2f} GiB at the end",
    }


OURS: dict[str, Item] = {
    f"{name}, {precision}, {way}": functools.partial(ours, name, precision, way)
    for name in CASES for precision in PRECISIONS for way in (EAGER, REPLAY)
}
PYTORCH: dict[str, Item] = {
    **{f"{name}, {precision}": functools.partial(theirs, name, precision, EAGER)
       for name in CASES for precision in PRECISIONS},
    f"ViT-Ti/16, 224², float32, {PLAIN}": functools.partial(theirs, "ViT-Ti/16, 224²", "float32", PLAIN),
}
COMPILED_PYTORCH: dict[str, Item] = {
    f"{name}, {precision}, {mode}": functools.partial(theirs, name, precision, mode)
    for mode in COMPILE_MODES for name in COMPILED for precision in ("TF32", "bf16")
}
LONG: dict[str, Item] = {"ViT D192 L6, 300 steps": long_classification, "DETR, 60 steps of other sizes": long_detection}
