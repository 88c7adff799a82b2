"""What the engine refuses rather than do it wrong, and what users of PyTorch write by habit."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import nn, ops
from scratchvit.backend import Array, asarray, asnumpy
from scratchvit.tensor import Tensor, op
from tests.support.seeds import seeded


def leaf(*shape: int, seed: int = 0, dtype: type = np.float32) -> Tensor:
    return Tensor(seeded(seed).standard_normal(shape).astype(dtype), requires_grad=True)


# --- in place --------------------------------------------------------------------------------------------------------


def test_the_loop_that_everyone_writes_first_trains(device: str) -> None:
    model, x = nn.Linear(3, 1), leaf(8, 3).detach()
    model.weight.overwrite(leaf(1, 3, seed=2).data)
    before = model.weight.numpy().copy()
    losses = []
    for _ in range(20):
        loss = ops.mse_loss(model(x), np.ones((8, 1), np.float32))
        model.zero_grad()
        loss.backward()
        with sv.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2 and not np.array_equal(model.weight.numpy(), before)


def test_in_place_operators_and_assignment_change_a_leaf_under_no_grad(device: str) -> None:
    p = Tensor(np.full((2, 2), 2, np.float32), requires_grad=True)
    kept, data = p, p.data
    with sv.no_grad():
        p += 1
        p *= Tensor(np.array([2, 4], np.float32))
        p -= np.float64(1)
        p /= 2
        p[0] = 0
        p **= 2
    assert p is kept and p.data is data and p.dtype == np.float32
    np.testing.assert_array_equal(p.numpy(), [[0, 0], [6.25, 30.25]])


def test_in_place_operators_on_an_attribute_of_a_module() -> None:
    model = nn.Linear(2, 1)
    weight = model.weight
    with sv.no_grad():
        model.weight -= 0.5
    assert model.weight is weight and dict(model.named_parameters())["weight"] is weight


@pytest.mark.parametrize("of", ["a leaf while ops are recorded", "a result"])
def test_in_place_elsewhere_is_an_error(of: str) -> None:
    x = leaf(2) if of == "a leaf while ops are recorded" else leaf(2) * 2
    before = x.numpy().copy()
    with pytest.raises(RuntimeError, match=r"in place.*use x = x \+ …"):
        x += 1
    with pytest.raises(RuntimeError, match=r"ops\.where"):
        x[0] = 1
    np.testing.assert_array_equal(x.numpy(), before)


def test_a_sum_that_begins_with_a_number_says_how_to_go_on() -> None:
    total = 0
    total += leaf(2).sum()              # a Tensor from now on
    with pytest.raises(RuntimeError, match=r"use x = x \+"):
        total += leaf(2).sum()


def test_an_operand_that_does_not_fit_into_a_leaf_is_refused() -> None:
    p = leaf(2)
    with sv.no_grad(), pytest.raises(ValueError, match=r"shape \(3, 2\) does not broadcast to \(2,\)"):
        p += np.ones((3, 2), np.float32)


@pytest.mark.parametrize("change", ["step", "+=", "overwrite", "load_state_dict"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_leaf_changed_between_forward_and_backward_is_an_error(change: str, checkpointed: bool) -> None:
    """w³ at 2, stepped to 0: the gradient would be 0, right is 12. No gradient may be left behind by the attempt."""
    model = nn.Linear(1, 1)
    w = model.weight
    w.overwrite(2)

    def cube(x: Tensor) -> Tensor:
        return x * w * w * w

    x = Tensor(np.ones((1, 1), np.float32), requires_grad=True)
    y = (sv.checkpoint(cube, x) if checkpointed else cube(x)).sum()
    if change == "step":
        w.grad = np.ones((1, 1), np.float32)
        sv.optim.SGD([w], lr=2.0).step()
        w.grad = None
    elif change == "+=":
        with sv.no_grad():
            w += 1
    elif change == "overwrite":
        w.overwrite(0)
    else:
        model.load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()
    assert w.grad is None and x.grad is None


def test_going_back_before_the_step_is_right() -> None:
    w = Tensor(np.float32(2), requires_grad=True)
    first, second = w * w * w, w * w
    first.backward()
    second.backward()
    assert w.grad == 16


# --- parameters stay parameters --------------------------------------------------------------------------------------


def test_a_parameter_buffer_or_module_is_replaced_by_its_like_only() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm2d(2))
    for module, name, kind in ((model, "0", "Module"), (model[0], "weight", "Parameter"),
                               (model[1], "running_mean", "Buffer")):
        before = getattr(module, name)
        for value in (Tensor(np.zeros((2, 2), np.float32)), np.zeros(2), 1.0):
            with pytest.raises(TypeError, match=f"is a {kind} and cannot become a {type(value).__name__}"):
                setattr(module, name, value)
        assert getattr(module, name) is before
    model[0].bias = None
    model[0].weight = nn.Parameter(np.zeros((2, 2), np.float32))
    assert [name for name, _ in model[0].named_parameters()] == ["weight"]


# --- gradients that would be lost ------------------------------------------------------------------------------------

LOST = [
    (lambda x, t: ops.pad(x, (1, 1), value=t.sum()), "pad: value"),
    (lambda x, t: ops.dropout(x, t.sum()), "dropout: p"),
    (lambda x, t: ops.layer_norm(x, 3, eps=t.sum()), "layer_norm: eps"),
    (lambda x, t: ops.smooth_l1_loss(x, x, beta=t.sum()), "smooth_l1_loss: beta"),
    (lambda x, t: ops.attention(x.reshape(1, 2, 3), x.reshape(1, 2, 3), x.reshape(1, 2, 3), scale=t.sum()), "scale"),
    (lambda x, t: ops.binary_cross_entropy(x.sigmoid(), x.sigmoid().detach(), weight=t), "weight"),
    (lambda x, t: ops.binary_cross_entropy_with_logits(x, x.detach(), pos_weight=t), "pos_weight"),
    (lambda x, t: ops.frozen_batch_norm(x, t, t, t, t), "running_mean"),
    (lambda x, t: x[[t]], "getitem: index"),
]


@pytest.mark.parametrize(("call", "what"), LOST, ids=lambda value: value if isinstance(value, str) else "")
def test_a_constant_that_requires_a_gradient_is_refused(call, what: str) -> None:
    x, t = leaf(2, 3), Tensor(np.full(3, 0.5, np.float32), requires_grad=True)
    with pytest.raises(TypeError, match=rf"{what}.* requires a gradient.*detach"):
        call(x, t)
    with sv.no_grad():
        frozen = t.detach()
    if "index" not in what and "dropout" not in what and "beta" not in what and "eps" not in what:
        call(x, frozen)                     # the same numbers without a gradient are welcome


def test_class_indices_beside_a_weight_that_requires_a_gradient_are_an_error() -> None:
    loss = ops.cross_entropy(leaf(2, 3), np.array([0, 2]), weight=leaf(3))
    with pytest.raises(TypeError, match="weight gets no gradient"):
        loss.backward()


def test_the_entropy_of_a_prediction_has_its_whole_gradient() -> None:
    """Entropy minimisation: the prediction is its own target."""
    x = leaf(4, 5, dtype=np.float64)
    ops.cross_entropy(x, ops.softmax(x, 1)).backward()
    assert np.linalg.norm(x.grad) > 0.01
    sv.gradcheck(lambda x: ops.cross_entropy(x, ops.softmax(x, 1), label_smoothing=0.1), x.numpy())
    sv.gradcheck(
        lambda x, t, w: ops.cross_entropy(x, ops.softmax(t, 1), w, 0.1),
        leaf(2, 3, 4, seed=1, dtype=np.float64).numpy(), leaf(2, 3, 4, seed=2, dtype=np.float64).numpy(),
        np.array([0.5, 2, 1]),
    )


def test_limits_have_gradients(device: str) -> None:
    x, low, high = np.array([[-2.0, 0.3, 3.0, 0.7]]), np.array([[-1.0], [0.5]]), np.array([1.0, 2.0, 2.5, 0.4])
    sv.gradcheck(lambda x, low, high: ops.clip(x, low, high), x, low, high, jacobian=True)
    sv.gradcheck(lambda x, low: x.clip(low), x, low, jacobian=True)
    sv.gradcheck(lambda x, high: x.clip(max=high), x, high, jacobian=True)


# --- ops of one's own ------------------------------------------------------------------------------------------------


def test_an_op_of_ones_own_does_not_replace_the_built_in() -> None:
    @op
    def exp(x: Array):
        return x * 0, lambda dy: dy

    assert exp(leaf(2)).numpy().tolist() == [0, 0] and Tensor([0.0]).exp().item() == 1


def with_a_default(x: Array):
    return x * 3, lambda dy, factor=3: dy * factor


def with_a_partial(x: Array):
    return x * 3, functools.partial(lambda factor, dy: dy * factor, 3)


class Times:
    """A callable object as a backward."""

    def __init__(self, factor: float):
        self.factor = factor

    def __call__(self, dy: np.ndarray, need: list[bool]) -> np.ndarray | None:
        return dy * self.factor if need[0] else None


def with_an_object(x: Array):
    return x * 3, Times(3)


def with_need_by_name(x: Array):
    def backward(dy, factor=3, *, need):
        return dy * factor if need == [True] else None

    return x * 3, backward


@pytest.mark.parametrize("function", [with_a_default, with_a_partial, with_an_object, with_need_by_name])
def test_a_backward_may_be_any_callable(function) -> None:
    x = leaf(3)
    op(function)(x).backward(np.ones(3, np.float32))
    assert x.grad.tolist() == [3, 3, 3]


# --- a Tensor among other things -------------------------------------------------------------------------------------


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_backward_is_not_called_if_no_gradient_arrives_at_any_output(outputs: int) -> None:
    def unused(x: Array):
        def backward(dy):
            raise AssertionError("called without a gradient")

        return (x * 1 if outputs == 1 else (x * 1, x * 2)), backward

    def sends_nothing(x: Array, y: Array):
        return x + y, lambda dy: (dy, None)

    x = Tensor([1.0, 2.0], requires_grad=True)
    made = op(unused)(x)
    op(sends_nothing)(x, made if outputs == 1 else made[0]).backward(np.ones(2))
    assert x.grad is not None and x.grad.tolist() == [1, 1]


def test_comparing_tensors_is_an_error_and_not_identity() -> None:
    x, y = Tensor([1.0]), Tensor([1.0])
    for compare in (lambda: x == y, lambda: x != y, lambda: 1.0 in x, lambda: np.array_equal(x, y)):
        with pytest.raises(TypeError, match="numpy"):
            compare()
    assert len({x, y, x}) == 2              # hashed by identity


def test_a_result_is_not_copied_without_its_leaves() -> None:
    x = leaf(2)
    with pytest.raises(RuntimeError, match="cannot be deep-copied"):
        copy.deepcopy(x * 2)
    x.grad = np.ones(2, np.float32)
    model = nn.Linear(2, 2)
    again, layer = copy.deepcopy([x, x]), copy.deepcopy(model)
    assert again[0] is again[1] is not x and again[0].data is not x.data and again[0].grad.tolist() == [1, 1]
    assert isinstance(layer.weight, nn.Parameter) and layer.weight is not model.weight


def test_a_number_prints_as_one() -> None:
    x = Tensor(np.float32(0.125), requires_grad=True)
    assert float(x) == 0.125 and f"{x:.2f}" == "0.12" and f"{x}" == repr(x)


def test_axes_may_be_given_one_by_one(device: str) -> None:
    x = leaf(1, 3, 2)
    assert x.permute(0, 2, 1).shape == x.permute((0, 2, 1)).shape == (1, 2, 3)
    assert x.expand(4, 3, 2).shape == x.expand((4, 3, 2)).shape == (4, 3, 2)


@pytest.mark.parametrize(("call", "says"), [
    (lambda a, b: a + b, r"^add: .*\(2, ?3\) \(4,\).*shape \(2, 3\), \(4,\)"),
    (lambda a, b: ops.where(np.ones((2, 3), bool), a, b), r"^where: .*shape \(2, 3\), \(4,\)"),
    (lambda a, b: a @ b, r"^matmul: x of shape \(2, 3\) and y of shape \(4,\)"),
    (lambda a, b: ops.mse_loss(a, b), r"^mse_loss: target has shape \(4,\), x has shape \(2, 3\)"),
])
def test_a_wrong_shape_names_the_op_and_both_shapes(call, says: str, device: str) -> None:
    with pytest.raises(ValueError, match=says):
        call(leaf(2, 3), leaf(4))


@pytest.mark.parametrize(("call", "says"), [
    (lambda x: x @ 2.0, "^matmul: arrays or Tensors are needed, not float$"),
    (lambda x: ops.linear(x, "weight"), "^linear: arrays or Tensors are needed, not str$"),
    (lambda x: ops.concatenate(x), "^concatenate: a list of arrays or Tensors is needed"),
    (lambda x: ops.stack(x.data), "^stack: a list of arrays or Tensors is needed"),
    (lambda x: ops.sum(x, 1.0), "^sum: dim must be an integer, not 1.0"),
])
def test_what_is_no_array_is_named(call, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        call(leaf(2, 3))


def test_an_attribute_error_of_an_op_itself_stays_one() -> None:
    @op
    def misspelt(x: Array):
        return x.summ(), None

    with pytest.raises(AttributeError, match="summ"):
        misspelt(leaf(2))


def test_a_number_that_an_integer_dtype_does_not_have_names_the_op() -> None:
    with pytest.raises(ValueError, match=r"^add: Python integer 300 out of bounds for uint8 .*\(1,\)"):
        Tensor(np.array([5], np.uint8)) + 300


def test_flatten_refuses_an_axis_that_is_not_there() -> None:
    x = leaf(2, 3, 4)
    assert x.flatten(-2).shape == (2, 12) and Tensor(1.0).flatten().shape == (1,)
    for start in (3, -4):
        with pytest.raises(IndexError, match=rf"flatten: start {start} is not an axis of a Tensor of shape"):
            x.flatten(start)


@pytest.mark.parametrize("call", [lambda x: x.max(1), lambda x: ops.min(x, 1), lambda x: x.max(1, keepdim=True)])
def test_max_over_a_dim_is_not_unpacked_as_values_and_indices(call, device: str) -> None:
    """Of two rows, PyTorch's `values, indices = x.max(1)` would be the rows."""
    x = leaf(2, 3)
    for y in (call(x), call(x.detach())):
        with pytest.raises(TypeError, match=r"values alone.*no indices.*\.unbind\(0\)"):
            _values, _indices = y
        assert len(y.unbind(0)) == 2 and type(y * 1) is Tensor
    call(x).sum().backward()
    assert x.grad.sum() == 2


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_constant_changed_between_forward_and_backward_is_an_error(checkpointed: bool) -> None:
    """PyTorch: an error too. The gradient of x · c would be what c became."""
    x, c = leaf(2), leaf(2, seed=1).detach()

    def product(x: Tensor, c: Tensor) -> Tensor:
        return x * c

    y = (sv.checkpoint(product, x, c) if checkpointed else product(x, c)).sum()
    with sv.no_grad():
        c *= 10
    with pytest.raises(RuntimeError, match=r"leaf of shape \(2,\) that was changed in place"):
        y.backward()
    assert x.grad is None
    y = (x * c).sum()
    c = leaf(2).detach()        # another Tensor: the old one is dropped, and nobody can change it any more
    y.backward()
    assert x.grad is not None


ALIASES = {
    "detach": lambda w: w.detach(), "detach twice": lambda w: w.detach().detach(), "row": lambda w: w[1],
    "reshape": lambda w: w.reshape(-1), "transpose of a row": lambda w: w[1:].transpose(0, 1),
}


@pytest.mark.parametrize("alias", ALIASES.values(), ids=ALIASES)
@pytest.mark.parametrize("of", ["leaf", "constant", "result"])
def test_an_alias_changed_between_forward_and_backward_is_an_error(alias: Callable[[Tensor], Tensor], of: str) -> None:
    """An alias shares memory: changing it changes what the backward saved. PyTorch raises too."""
    x = leaf(2, 3)
    source = {"leaf": x, "constant": leaf(2, 3, seed=1).detach(), "result": x.exp()}[of]
    y = (source * x).sum()
    with sv.no_grad():
        changed = alias(source)
        changed += 1
    with pytest.raises(RuntimeError, match="changed in place after the loss was computed"):
        y.backward()
    assert x.grad is None


def test_an_alias_that_is_changed_before_the_forward_or_a_copy_does_no_harm() -> None:
    w = leaf(2, 3)
    with sv.no_grad():
        alias, copy = w.detach(), Tensor(w.numpy().copy())
        alias += 1
    y = (w * w).sum()
    with sv.no_grad():
        copy += 1
        exponential = w.exp()       # new memory
        exponential += 1
    y.backward()
    assert np.array_equal(w.grad, 2 * w.numpy())


@pytest.mark.parametrize("call", [
    lambda x, t: x * [t, t], lambda x, t: ops.where(np.array([True, False]), [t, 1.0], x),
    lambda x, t: ops.stack([x, (t, t)]),
])
def test_a_list_does_not_swallow_the_gradients_of_its_tensors(call) -> None:
    with pytest.raises(TypeError, match=r"^\w+: Tensors in a list would get no gradient: give ops.stack"):
        call(leaf(2), leaf())
    with sv.no_grad():
        assert (leaf(2) * [leaf(), 1.0]).shape == (2,)


# --- an error on the way back ----------------------------------------------------------------------------------------


def failing(times: int):
    """An op whose backward raises so many times."""
    left = [times]

    @op
    def fails(x: Array):
        def backward(dy):
            left[0] -= 1
            if left[0] >= 0:
                raise ValueError("no gradient today")
            return dy * 3

        return x * 3, backward

    return fails


@pytest.mark.parametrize("checkpointed", [False, True])
def test_an_error_on_the_way_back_leaves_no_part_of_a_gradient(checkpointed: bool, device: str) -> None:
    fails, x, reached, older = failing(1), leaf(2), leaf(2, seed=1), leaf(2, seed=2)
    older.grad = asarray(np.ones(2, np.float32))

    def loss() -> Tensor:
        def late(t: Tensor) -> Tensor:
            return fails(t) * 1.0

        def early(t: Tensor) -> Tensor:     # reaches a parameter in a graph of its own
            return t * reached * older

        y = late(x)
        return (sv.checkpoint(early, y) if checkpointed else early(y)).sum()

    y = loss()
    with pytest.raises(ValueError, match="no gradient today"):
        y.backward()
    assert x.grad is None and reached.grad is None and np.isnan(asnumpy(older.grad)).all()
    with pytest.raises(RuntimeError, match="already used and freed"):
        y.backward()
    older.grad = None
    loss().backward()
    np.testing.assert_allclose(asnumpy(reached.grad), 3 * x.numpy() * older.numpy(), rtol=1e-6)
    np.testing.assert_allclose(asnumpy(x.grad), 3 * reached.numpy() * older.numpy(), rtol=1e-6)


@pytest.mark.parametrize(("call", "python"), [
    (lambda x: ops.linear(x, x[:, :2].detach()), ValueError), (lambda x: ops.sum(x, 5), IndexError),
    (lambda x: x == x, TypeError), (lambda x: x.backward(), RuntimeError), (lambda x: x + np.ones((9, 9)), ValueError),
    (lambda x: ops.conv2d(x, x), ValueError), (lambda x: bool(x), TypeError), (lambda x: x.__iadd__(1), RuntimeError),
])
def test_mistakes_of_users_are_one_family_of_errors(call: Callable[[Tensor], object], python: type[Exception]) -> None:
    """`except sv.ScratchvitError` catches them all, and so does the exception that PyTorch or NumPy would raise."""
    with pytest.raises(python) as caught:
        call(leaf(2, 3))
    assert isinstance(caught.value, sv.ScratchvitError)
