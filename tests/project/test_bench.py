"""The benchmark of training steps: both sides take the same, and what cannot be compared is said in a sentence."""

import argparse
import itertools

import numpy as np
import pytest

from scratchvit.costs.counting import OpCost
from scratchvit.errors import ScratchvitError
from tests.support.margins import assert_close, rounding
from tests.support.peers import import_timm
from tests.support.scripts import import_script
from tests.support.seeds import moved

bench = import_script("bench.py")


def arguments(model, size, batch=1):
    return argparse.Namespace(model=model, img_size=size, batch=batch, steps=1, memory_of=None)


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    ("model", "batch", "image"),
    [
        ("resnet18", 2, (3, 32, 32)), ("mvit_v2_s", 1, (3, 16, 32, 32)),
        ("pixel_transformer_tiny", 1, (3, 8, 8)), ("igpt_tiny", 2, (3, 8, 8)),
    ],
)
def test_both_take_the_same_steps(model, batch, image, monkeypatch):
    """With timm, with torchvision on clips, with transformers on pixels; `alternate` compares the losses."""
    import_timm()
    torch = pytest.importorskip("torch")
    reports, losses = [], []
    alternate = bench.alternate

    def noting(*steps_and_count):
        *steps, count = steps_and_count
        return alternate(*(lambda step=step: losses.append(step()) or losses[-1] for step in steps), count)

    monkeypatch.setattr(bench, "report", lambda *found: reports.append(found))
    monkeypatch.setattr(bench, "alternate", noting)

    def measure():
        losses.clear()
        torch.manual_seed(moved(0))                                     # the weights that both begin with are theirs
        bench.measure(arguments(model, image[-1], batch))
        return [np.array(losses[i::2]) for i in range(2)]               # three steps, in turn

    found, expected = measure()
    ((_, shape, ours, theirs, products),) = reports
    assert shape == image and len(ours) == len(theirs) == 1 and min(*ours, *theirs, products) > 0
    assert len(losses) == 6 and losses[4] != losses[0]
    # For the bound, neither theirs nor the products need to be computed again.
    monkeypatch.setattr(bench, "torch_step", lambda *_: itertools.cycle(expected.tolist()).__next__)
    monkeypatch.setattr(bench, "matrix_products", lambda *_: None)
    assert_close(found, expected, rounding(lambda: measure()[0])[""])


@pytest.mark.parity
@pytest.mark.parametrize(
    ("model", "size", "says"),
    [
        ("mvit_v1_b_image", None, "neither timm, torchvision nor transformers has a model 'mvit_v1_b_image'"),
        ("mvit_v1_b", 100, "torchvision's mvit_v1_b takes frames whose sides 32 divides, not 100"),
        ("vit_tiny_patch16_224", 100, "100×100 cannot be cut into patches of 16×16"),
        ("vit_tine_patch16_224", None, "no model 'vit_tine_patch16_224'"),
    ],
)
def test_what_cannot_be_compared(model, size, says):
    import_timm()
    with pytest.raises(ScratchvitError, match=says):
        bench.measure(arguments(model, size))


def test_the_products_of_a_clips_convolution(monkeypatch):
    """(3, 4, 8, 8) → (6, 2, 4, 4) by kernels of 3×2×2: y = W x, dW and, but for the first layer, dx."""
    made = []

    class Counted(np.ndarray):
        def __matmul__(self, other):
            made.append((*self.shape, other.shape[-1]))
            return np.asarray(self) @ np.asarray(other)

    monkeypatch.setattr(bench.np, "ones", lambda shape, dtype: np.zeros(shape, dtype).view(Counted))
    image, clips = (3, 4, 8, 8), 5
    layer = OpCost("", "conv3d", ((1, *image), (6, 3, 3, 2, 2)), ((1, 6, 2, 4, 4),))
    bench.matrix_products([layer], image, clips)
    assert made == [(6, 36, 5 * 32), (6, 5 * 32, 36)]
    made.clear()
    bench.matrix_products([layer], (1, 4, 8, 8), clips)
    assert made == [(6, 36, 5 * 32), (6, 5 * 32, 36), (36, 6, 5 * 32)]
