"""A whole training step on every device: the same numbers as on the CPU, and no hidden trip to the host."""

import contextlib

import numpy as np

import scratchvit as sv
from scratchvit import optim
from scratchvit.random import Generator
from tests.support.margins import assert_all_close, rounding
from tests.support.seeds import moved, seeded
from tests.support.strict_array import no_transfers

STEPS = 4


def train(steps: int, guard: contextlib.AbstractContextManager) -> tuple[list[float], dict[str, np.ndarray]]:
    """Losses and final weights of a small ViT with everything that draws, decays, clips or averages."""
    rng = seeded(0)
    model = sv.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, in_chans=1, num_classes=5, embed_dim=32, depth=2,
        num_heads=2, proj_drop_rate=0.1, attn_drop_rate=0.1, drop_path_rate=0.1,
    )
    model.set_generator(Generator(moved(3)))
    optimizer = optim.AdamW(optim.param_groups(model, 0.05), lr=1e-3)
    ema = optim.EMA(model, 0.9)
    images = sv.Tensor(rng.standard_normal((8, 1, 16, 16), dtype=np.float32))
    labels = sv.backend.asarray(rng.integers(0, 5, 8))
    losses = []
    with guard:
        for _ in range(steps):
            loss = sv.ops.cross_entropy(model(images), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optim.clip_grad_norm(model.parameters(), 1.0)
            optimizer.step()
            ema.update()
            losses.append(loss)
    return [loss.item() for loss in losses], model.state_dict()


def test_a_step_computes_the_same_on_every_device(device):
    found = train(STEPS, contextlib.nullcontext())
    sv.use("cpu")
    expected = train(STEPS, contextlib.nullcontext())
    assert_all_close(found, expected, rounding(lambda: train(STEPS, contextlib.nullcontext())))
    losses, _ = found
    assert losses[-1] < losses[0]


def test_a_step_never_waits_for_the_device():
    from tests.support.strict_array import STRICT

    sv.use(STRICT)
    try:
        train(STEPS, no_transfers())
    finally:
        sv.use("cpu")
