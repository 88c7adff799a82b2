"""The benchmark of training steps: both sides take the same, and what cannot be compared is said in a sentence."""

import argparse
import itertools
from pathlib import Path

import numpy as np
import pytest

from scratchvit.costs.counting import OpCost
from scratchvit.errors import ScratchvitError
from tests.support.margins import assert_close, rounding
from tests.support.peers import import_timm
from tests.support.scripts import import_script
from tests.support.seeds import moved

bench, table = import_script("bench.py"), import_script("bench_table.py")
ROOT = Path(__file__).resolve().parents[2]


def arguments(model, size, batch=1):
    return argparse.Namespace(
        model=model, img_size=size, batch=batch, steps=1, memory_of=None, patch_size=None, depth=None
    )


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    ("model", "batch", "image"),
    [
        ("resnet18", 2, (3, 32, 32)), ("mvit_v2_s", 1, (3, 16, 32, 32)), ("detr_resnet18", 1, (3, 64, 64)),
        ("pixel_transformer_tiny", 1, (3, 8, 8)), ("igpt_tiny", 2, (3, 8, 8)),
    ],
)
def test_both_do_the_same_work(model, batch, image, monkeypatch):
    """With timm, with torchvision on clips, with transformers on pixels and boxes; `alternate` compares the numbers."""
    import_timm()
    torch = pytest.importorskip("torch")
    results = []
    alternate = bench.alternate

    def noting(*steps_and_count):
        *steps, count = steps_and_count
        return alternate(*(lambda step=step: results.append(step()) or results[-1] for step in steps), count)

    monkeypatch.setattr(bench, "alternate", noting)

    def measure():
        results.clear()
        torch.manual_seed(moved(0))                                     # the weights that both begin with are theirs
        measured.append(bench.measure(arguments(model, image[-1], batch)))
        return [np.array(results[i::2]) for i in range(2)]              # three inferences and three steps, in turn

    measured = []
    found, expected = measure()
    (one,) = measured
    assert one.image == image and len(one.training.ratios()) == len(one.inference.ratios()) == 1
    assert min(*one.training.ours, *one.inference.theirs, one.products) > 0
    assert len(found) == 6 and found[0] == found[2] and found[3] != found[5]
    # For the bound, neither theirs nor the products need to be computed again.
    numbers = itertools.cycle(expected.tolist()).__next__
    monkeypatch.setattr(bench, "torch_work", lambda *_: bench.Work(numbers, numbers))
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


def test_a_row_of_the_table_says_what_is_met_and_what_is_missed():
    record = {
        "ratio": {"median": 1.1, "least": 1.0, "most": 1.2},
        "inference_ratio": {"median": 0.9, "least": 0.8, "most": 1.0},
        "gib": 1.0, "torch_gib": 2.0, "seconds": 2.0, "products_seconds": 1.0,
        "targets": {"ratio": 1.0, "inference_ratio": 0.95},
    }
    assert table.lines(record) == [
        "training: 1.10 × PyTorch (1.00 to 1.20), target 1.00: missed by 10%",
        "inference: 0.90 × PyTorch (0.80 to 1.00), target 0.95: met",
        "memory: 0.50 × PyTorch, target 0.80: met",
        "a step: 2.00 × its matrix products, target 1.35: missed by 48%",
    ]
    assert table.lines({"seconds": 0.1, "targets": {"seconds": 0.25}}) == ["0.10 s, target 0.25: met"]


def test_a_row_that_there_is_not_is_an_error():
    with pytest.raises(SystemExit, match="no row matches 'ConvNeXt': there are ViT-Ti/16"):
        table.main("ConvNeXt", record=False)


def test_the_chain_is_measured_in_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(table, "ROOT", ROOT)
    assert float(table.printed("import scripts.bench_table as t; t.CHAIN = 3; t.REPEATS = 1; print(our_chain())")) > 0
