"""Attention that never writes its matrix, against its definition in float64, within what its roundings explain."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import Tensor, ops
from scratchvit.backend import asarray, asnumpy, current
from scratchvit.costs.measured import peak_of
from scratchvit.kernels.attention import attention_over_rows
from scratchvit.kernels.attention_blocks import attention_in_blocks
from scratchvit.kernels.cuda import flash
from scratchvit.random import Draw, Generator
from tests.support import tensor_cores
from tests.support.margins import assert_close
from tests.support.one_op import run
from tests.support.seeds import moved, seeded


@pytest.fixture(autouse=True)
def tf32(cuda):
    """Where float32 is taken too."""
    if int(current().xp.cuda.Device().compute_capability) < 80:
        pytest.skip("this GPU has no tensor cores for it")
    sv.set_matmul_precision("tf32")
    yield
    sv.set_matmul_precision("float32")


@dataclass
class Case:
    """q, k, v and dy, in numbers that tensor cores multiply without rounding; and what attention is of them."""

    char: str
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    dy: np.ndarray
    bias: np.ndarray | None = None
    mask: np.ndarray | None = None
    draw: Draw | None = None
    scale: float = 0.3
    exact: dict[str, np.ndarray] = field(init=False)
    bounds: dict[str, np.ndarray] = field(init=False)

    def __post_init__(self):
        q, k, v, dy = (x.astype(np.float64) for x in (self.q, self.k, self.v, self.dy))
        shape = (*q.shape[:-1], k.shape[-2])
        s = q @ turned(k) * self.scale + (0 if self.bias is None else self.bias)
        s = s if self.mask is None else np.where(self.mask, s, -np.inf)
        p = np.exp(s - np.maximum(s.max(-1, keepdims=True), -1e300))
        p /= np.maximum(p.sum(-1, keepdims=True), 1e-300)
        kept = np.ones(shape)
        if self.draw is not None:
            positions = np.arange(math.prod(shape), dtype=np.uint32)
            kept = self.draw.at(positions).reshape(shape) / self.draw.probability
        y = (p * kept) @ v
        dp = (dy @ turned(v)) * kept
        ds = p * (dp - (y * dy).sum(-1, keepdims=True))
        self.exact = {
            "y": y, "dq": ds @ k * self.scale, "dk": turned(ds) @ q * self.scale, "dv": turned(p * kept) @ dy
        }

        # What is rounded: P and dS before their products, and the results, except for TF32. Σ y dy is as wrong as y.
        # Float32, in which all else is computed, is 2¹³ times as exact as TF32: what it rounds is a hundredth of that.
        def error(x):
            return 1.01 * tensor_cores.rounding(x, self.char)

        def of_result(x):
            return 2.0**-20 * np.abs(x).max(initial=0) + (0 if self.char == "f" else error(x))

        of_y = error(p * kept) @ np.abs(v)
        of_ds = error(ds) + p * (np.abs(dy) * (of_y + of_result(y))).sum(-1, keepdims=True)
        self.bounds = {
            "y": of_y + of_result(y), "dq": of_ds @ np.abs(k) * self.scale + of_result(self.exact["dq"]),
            "dk": turned(of_ds) @ np.abs(q) * self.scale + of_result(self.exact["dk"]),
            "dv": turned(error(p * kept)) @ np.abs(dy) + of_result(self.exact["dv"]),
        }


def turned(x):
    return x.swapaxes(-1, -2)


def case(char, shape, N, M, d, **more):
    """Of random numbers. shape: (B, H)."""
    rng = seeded(0)
    arrays = (tensor_cores.rounded(rng.standard_normal((*shape, n, d)), char) for n in (N, M, M, N))
    return Case(char, *arrays, **more)


def compute(case: Case, attention: Any = attention_over_rows, arrange: Any = asarray) -> dict[str, np.ndarray]:
    """y and, unless there is a bias, the gradients. arrange: puts an array on the device."""
    q, k, v, dy = (arrange(x) for x in (case.q, case.k, case.v, case.dy))
    bias, mask = (None if x is None else arrange(x) for x in (case.bias, case.mask))
    with sv.no_grad():
        assert flash.takes(q, k, v, bias)
        y, backward = attention(q, k, v, bias, mask, case.draw, case.scale)
    arrays = {"y": y}
    if bias is None:
        arrays |= dict(zip(("dq", "dk", "dv"), backward(dy, [True] * 3 + [False])))
    assert all(x.dtype == q.dtype for x in arrays.values())
    return {name: asnumpy(x) for name, x in arrays.items()}


def check(case: Case, **more: Any) -> dict[str, np.ndarray]:
    """Right, and the same bits twice."""
    found, again = (compute(case, **more) for _ in range(2))
    for name, x in found.items():
        exact, bound = case.exact[name], case.bounds[name]
        assert x.shape == exact.shape
        assert_close((x.astype(np.float64) - exact) / bound, np.zeros(exact.shape), 1.0, name)
        assert x.tobytes() == again[name].tobytes()
    return found


# (N, M, d): a row and a tile more or less; d that is a width, that fills half of a step, and that is filled up to one.
SIZES = [
    (1, 1, 8), (1, 7, 64), (7, 1, 32), (64, 64, 64), (65, 7, 64), (7, 65, 32), (64, 130, 72), (130, 65, 32),
    (197, 197, 64), (33, 70, 80), (20, 65, 128),
]


@pytest.mark.parametrize("char", tensor_cores.CHARS)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_shapes(sizes, char):
    N, M, d = sizes
    check(case(char, (1, 1) if N * M > 5000 else (2, 3), N, M, d))


@pytest.mark.parametrize("char", tensor_cores.CHARS)
@pytest.mark.parametrize("shape", [(2, 3, 17, 70), (3, 17, 1), (17, 70), (70,), (2, 1, 1, 70), (3, 1, 1), ()], ids=str)
def test_a_mask(shape, char):
    """Of every image, head, query and key, so that every exchange of indices shows."""
    check(case(char, (2, 3), 17, 70, 32, mask=seeded(1).random(shape) > 0.4))


@pytest.mark.parametrize("char", tensor_cores.CHARS)
@pytest.mark.parametrize("shape", [(2, 3, 17, 70), (3, 1, 70), (2, 1, 17, 1), (70,)], ids=str)
def test_a_bias_where_nothing_is_recorded(shape, char):
    bias = seeded(1).standard_normal(shape).astype(np.float32)
    check(case(char, (2, 3), 17, 70, 32, bias=bias, mask=seeded(2).random((17, 70)) > 0.3))


def test_a_mask_and_a_bias_with_strides():
    rng = seeded(1)
    mask, bias = np.asfortranarray(rng.random((17, 70)) > 0.4), rng.standard_normal((17, 70, 3)).astype(np.float32)
    check(case("f", (2, 3), 17, 70, 32, mask=mask, bias=bias.transpose(2, 0, 1)))


@pytest.mark.parametrize("char", tensor_cores.CHARS)
def test_a_query_that_may_look_nowhere_gets_zeros_and_gives_none(char):
    mask = seeded(1).random((2, 1, 70, 70)) > 0.5
    mask[0, :, 3], mask[1, :, 66], mask[1, :, 5, :64] = False, False, False
    found = check(case(char, (2, 2), 70, 70, 32, mask=mask))
    for y in (found["y"], found["dq"]):
        assert not y[0, :, 3].any() and not y[1, :, 66].any() and y[1, :, 5].any()


def test_what_a_mask_hides_may_be_anything():
    mask = np.arange(70) % 3 > 0
    given = case("e", (1, 2), 17, 70, 32, mask=mask)
    before = compute(given)["y"]
    given.k[:, :, 3], given.k[:, :, 66] = np.nan, np.inf
    assert before.tobytes() == compute(given)["y"].tobytes()


@pytest.mark.parametrize("level", [-1e9, -3e38, 1e9])
def test_a_query_whose_scores_are_all_far_from_zero_attends_to_all_keys_alike(level):
    """Where a bias of -10⁹ serves as a mask. What is added to it is lost in float32."""
    given = case("e", (1, 2), 17, 70, 32, bias=np.full((17, 70), level, np.float32))
    mean = given.v.astype(np.float64).mean(2, keepdims=True)
    assert_close(compute(given)["y"], np.broadcast_to(mean, given.q.shape), 2.0**-10, "y")


def test_float32_is_rounded_to_the_nearest_number_of_tf32():
    """Where tensor cores would cut off what they do not see."""
    rng = seeded(0)
    arrays = [rng.standard_normal((1, 2, n, 32)).astype(np.float32) for n in (9, 70, 70, 9)]
    given, rounded = Case("f", *arrays), Case("f", *(tensor_cores.rounded(x, "f") for x in arrays))
    for name in ("y", "dv"):
        assert compute(given)[name].tobytes() == compute(rounded)[name].tobytes()


def test_scores_that_would_overflow():
    """Every query attends to one key, of a tile that comes late: what was added up before must vanish."""
    q = np.full((1, 1, 5, 8), 30, np.float16)
    k = np.linspace(-100, 100, 70).astype(np.float16)[None, None, :, None] * np.ones(8, np.float16)
    v = seeded(0).standard_normal((1, 1, 70, 8)).astype(np.float16)
    y = compute(Case("e", q, k, v, q, scale=1.0))["y"]
    assert np.array_equal(y, np.broadcast_to(v[:, :, -1:], y.shape))


@pytest.mark.parametrize("char", tensor_cores.CHARS)
@pytest.mark.parametrize("keys_on_device", [False, True])
def test_dropout_drops_what_the_other_kernels_drop(keys_on_device, char):
    """`Case` takes them from the draw, as the CPU does."""
    draw = Generator(moved(5)).draw(0.6, (2, 3, 40, 70))
    given = case(char, (2, 3), 40, 70, 32, draw=draw)
    if keys_on_device:
        given.draw = Draw(current().xp.asarray(np.array([*draw.keys, 0, 0], np.uint32)), draw.probability, draw.shape)
    check(given)


@pytest.mark.parametrize("attention", [attention_over_rows, attention_in_blocks])
def test_both_forms_of_attention_are_replaced(attention):
    given = case("E", (2, 2), 9, 7, 32, mask=seeded(1).random((1, 1, 9, 7)) > 0.3)
    check(given, attention=attention)


@pytest.mark.parametrize("char", ["e", "E"])
@pytest.mark.parametrize(("attention", "M"), [(attention_over_rows, 4097), (attention_in_blocks, 70)])
def test_16_bits_that_no_kernel_takes_are_computed_in_float32(attention, M, char):
    """Such as those with a bias whose gradient is wanted."""
    sv.set_matmul_precision("float32")
    given = case(char, (1, 2), 3, M, 32, bias=tensor_cores.rounded(seeded(1).standard_normal((1, 2, 1, M)), char))
    arrays = [asarray(x) for x in (given.q, given.k, given.v, given.bias)]
    assert not flash.takes(*arrays)
    y, backward = attention(*arrays, None, None, given.scale)
    found = y, *backward(asarray(given.dy), [True] * 4)
    for x, (name, exact) in zip(found, given.exact.items()):
        assert x.dtype == given.q.dtype
        assert_close((asnumpy(x) - exact) / given.bounds[name], np.zeros(exact.shape), 1.0, name)
    assert found[4].shape == given.bias.shape and found[4].dtype == given.bias.dtype


def test_three_axes():
    given = case("e", (3,), 9, 7, 32, mask=seeded(1).random((3, 9, 7)) > 0.3)
    check(given)


def test_slices_of_one_projection(monkeypatch):
    """They are read where they are, and their gradients are parts of one array, so that joining them copies nothing."""
    views, in_rows = [], flash.in_rows
    monkeypatch.setattr(flash, "in_rows", lambda x: views.append((x, in_rows(x))) or views[-1][1])

    def packed(qkv):
        q, k, v = qkv.reshape(2, 9, 3, 2, 8).permute((2, 0, 3, 1, 4)).unbind(0)
        return ops.attention(q, k, v).transpose(1, 2).reshape(2, 9, 16)

    joined, whole_of = [], ops.shape.whole_of
    monkeypatch.setattr(ops.shape, "whole_of", lambda *given: joined.append(whole_of(*given)) or joined[-1])
    qkv = tensor_cores.rounded(seeded(0).standard_normal((2, 9, 48)), "f")
    found = run(packed, [qkv])
    assert len(joined) == 1 and joined[0] is not None
    assert len(views) == 4 and all(x is y for x, y in views)        # q, k, v and dy

    q, k, v = qkv.reshape(2, 9, 3, 2, 8).transpose(2, 0, 3, 1, 4)
    same = Case("f", q, k, v, np.zeros_like(q), scale=8**-0.5)
    y = found["value"][0].reshape(2, 9, 2, 8).transpose(0, 2, 1, 3)
    assert_close((y - same.exact["y"]) / same.bounds["y"], np.zeros(y.shape), 1.0, "y")


@pytest.mark.parametrize("arrange", [
    lambda x: asarray(np.concatenate([x[..., :1], x], -1))[..., 1:], lambda x: asarray(turned(x).copy()).swapaxes(2, 3),
    lambda x: asarray(np.repeat(x, 2, 2))[:, :, ::2], lambda x: asarray(x[:, :, ::-1].copy())[:, :, ::-1],
    lambda x: current().xp.broadcast_to(asarray(x[:, :1]), x.shape),
], ids=["rows not aligned", "columns", "every second row", "backwards", "one head for all"])
def test_arrays_that_are_not_contiguous(arrange):
    one_head = case("e", (2, 1), 9, 70, 32)
    arrays = (np.repeat(getattr(one_head, name), 2, 1) for name in ("q", "k", "v", "dy"))
    check(Case("e", *arrays), arrange=arrange)


@pytest.mark.parametrize(("B", "N", "M"), [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_empty_arrays(B, N, M):
    q, k, v = (asarray(np.ones((B, 2, n, 8), np.float16)) for n in (N, M, M))
    y, backward = attention_over_rows(q, k, v, None, None, None, 1.0)
    assert y.shape == q.shape and not y.any()
    assert all(g.shape == x.shape and not g.any() for g, x in zip(backward(y, [True] * 4), (q, k, v)))


def test_no_matrix_is_allocated():
    """y and a number a row, three gradients and another number: 132 KB. A bool for each score would be 256 KB."""
    xp, N, d = current().xp, 512, 32
    q, k, v = (xp.zeros((1, 1, N, d), np.float16) for _ in range(3))
    with peak_of(xp, 0) as peak:
        y, backward = attention_over_rows(q, k, v, None, None, None, 1.0)
        backward(y, [True] * 4)
    if not peak.most:
        pytest.skip("CuPy's pool is not in use: FAKEGPU_GUARD=2")
    assert 4 * q.nbytes + 2 * 4 * N <= peak.most < 1.2 * (4 * q.nbytes + 2 * 4 * N)


def test_what_it_takes(monkeypatch):
    def takes(*shapes, dtype=np.float16, bias=None):
        return flash.takes(*(current().xp.zeros(shape, dtype) for shape in shapes), bias)

    q, bias = (2, 3, 5, 32), current().xp.zeros((5, 5))
    assert takes(q, q, q) and takes(q, q, q, dtype=np.float32) and not takes(q, q, q, dtype=np.float64)
    assert takes(*[(2, 5, 128)] * 3) and not takes(*[(2, 5, 136)] * 3) and not takes(*[(2, 5, 12)] * 3)
    assert not takes(*[(2, 2, 3, 5, 32)] * 3) and not takes(q, q, (2, 3, 5, 24))
    assert not takes(q, q, q, bias=bias)
    with sv.no_grad():
        assert takes(q, q, q, bias=bias)
    sv.set_matmul_precision("float32")
    assert takes(q, q, q) and not takes(q, q, q, dtype=np.float32)
    monkeypatch.setattr(flash, "_has_tensor_cores", lambda device: False)
    assert not takes(q, q, q)


def test_a_bias_that_is_recorded_has_its_gradient():
    arrays = [seeded(0).standard_normal(shape).astype(np.float32) for shape in ((2, 3, 5, 8),) * 3]
    bias = seeded(1).standard_normal((3, 5, 5)).astype(np.float32)
    q, k, v, given = (Tensor(asarray(x), requires_grad=True) for x in (*arrays, bias))
    ops.attention(q, k, v, given).sum().backward()
    assert np.abs(asnumpy(given.grad)).max() > 0
