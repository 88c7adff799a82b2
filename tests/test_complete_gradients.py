"""backward() tells when the gradient of a leaf is complete: once, and not before its last edge was followed."""

from __future__ import annotations

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import ops
from scratchvit.graph import telling
from scratchvit.models import create_model
from scratchvit.tensor import Tensor
from tests.support.seeds import seeded


def leaf(value: float = 2.0) -> Tensor:
    return Tensor(value, requires_grad=True)


def told_by(loss: Tensor) -> list[tuple[int, float | None]]:
    """(identity of a leaf, its gradient when it was told)."""
    told: list[tuple[int, float | None]] = []
    with telling(lambda leaf: told.append((id(leaf), None if leaf.grad is None else leaf.grad.item()))):
        loss.backward()
    return told


def test_the_last_layer_comes_first():
    x, y, z = leaf(), leaf(3.0), leaf(5.0)
    assert told_by((x * y) * z) == [(id(z), 6), (id(x), 15), (id(y), 10)]


def test_a_leaf_that_is_used_often_is_told_once_at_its_last_use():
    x, y = leaf(), leaf(3.0)
    assert dict(told := told_by(x * y + x * x)) == {id(x): 3 + 4, id(y): 2} and len(told) == 2
    assert dict(told := told_by((x * y) * x)) == {id(x): 7 + 12, id(y): 2 + 4} and len(told) == 2      # added to those
    assert told_by(x) == [(id(x), 20)]


def test_checkpoints_inside_of_each_other():
    """x is used in both checkpoints and outside of them, w in the inner one only."""
    x, w, outside = leaf(), leaf(3.0), leaf(7.0)

    def inner(t: Tensor) -> Tensor:
        return t * w * x

    def outer(t: Tensor) -> Tensor:
        return sv.checkpoint(inner, t * x) + x

    def loss() -> Tensor:
        return sv.checkpoint(outer, sv.checkpoint(outer, outside * x)) * x

    told = told_by(loss())
    expected = {id(tensor): tensor.grad.item() for tensor in (x, w, outside)}
    assert len(told) == 3 and dict(told) == expected

    for tensor in (x, w, outside):
        tensor.grad = None
    plain = ((((outside * x) * x * w * x + x) * x) * w * x + x) * x
    plain.backward()
    assert {id(tensor): tensor.grad.item() for tensor in (x, w, outside)} == pytest.approx(expected)


def test_a_leaf_without_a_gradient_is_told_too():
    x, y = leaf(), leaf()
    assert told_by(ops.where(np.array(True), x, y).sum()) == [(id(x), 1), (id(y), 0)]


def test_gradients_of_a_model_are_complete_when_told():
    """At the end they are what they were when told, for every parameter of a model with shared tables and tokens."""
    model = create_model("swin_tiny_patch4_window7_224", img_size=16, patch_size=2, window_size=2, embed_dim=8,
                         depths=(2, 2), num_heads=(2, 2), num_classes=3)
    images = seeded(0).standard_normal((2, 3, 16, 16), np.float32)
    told = {}

    def tell(parameter: Tensor) -> None:
        assert id(parameter) not in told
        told[id(parameter)] = parameter.grad.copy()

    with telling(tell):
        ops.cross_entropy(model(Tensor(images)), np.array([0, 2])).backward()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert told.keys() == names.keys()
    for parameter in model.parameters():
        assert np.array_equal(told[id(parameter)], parameter.grad)
    order = [names[key] for key in told]
    assert order.index("head.fc.weight") < order.index("layers.1.blocks.0.attn.qkv.weight")
    assert order.index("layers.1.blocks.0.attn.qkv.weight") < order.index("patch_embed.proj.weight")


def test_an_error_of_the_listener_is_that_of_backward():
    x, y = leaf(), leaf()
    x.grad = np.ones((), np.float32)

    def tell(leaf: Tensor) -> None:
        raise KeyError("listener")

    with telling(tell), pytest.raises(KeyError, match="listener"):
        ((x * y) * y).backward()
    assert np.isnan(x.grad) and y.grad is None


def test_nothing_is_told_outside():
    x, told = leaf(), []
    with telling(told.append):
        pass
    (x * x).backward()
    assert told == []
