"""Layer norm, group norm and weight standardisation at sizes that are cut into blocks: the definition, in float64."""

import numpy as np
import pytest

import scratchvit as sv
from scratchvit import backend, ops, threads
from scratchvit.plain import plain_forms
from tests.support import strict_array
from tests.support.margins import agree
from tests.support.processes import alone
from tests.support.seeds import seeded

# Each in several blocks on the CPU; of the group norms one has long planes, one short, one none.
SHAPES = {
    "layer_norm": [(9, 197, 192), (3, 2, 768), (5, 50_000)],
    "group_norm": [(2, 64, 60, 60), (4, 512, 7, 7), (600, 320)],
    "weight_standardization": [(512, 64, 3, 3), (40, 3, 7, 7)],
}
ROWS = [(name, shape) for name, shapes in SHAPES.items() for shape in shapes]
by_op = pytest.mark.parametrize(("name", "shape"), ROWS, ids=lambda value: str(value))
GROUPS, EPS = 32, 1e-6


def inputs(name, shape, mean=0.0):
    """x, weight and bias (for weight_standardization x alone), and dy."""
    rng = seeded(0)
    x, dy = (rng.standard_normal(shape, np.float32) for _ in range(2))
    features = {"layer_norm": shape[-1], "group_norm": shape[1]}.get(name)
    affine = [] if features is None else [rng.standard_normal(features, np.float32) for _ in range(2)]
    return [x + np.float32(mean), *affine], dy


def run(name, arrays, dy):
    """(y, dx, dweight, dbias), or (y, dx), as NumPy arrays."""
    tensors = [sv.Tensor(array, requires_grad=True) for array in arrays]
    groups = {"group_norm": [GROUPS], "layer_norm": [arrays[0].shape[-1]]}.get(name, [])
    y = getattr(ops, name)(tensors[0], *groups, *tensors[1:], eps=EPS)
    y.backward(dy)
    return [y.numpy(), *(backend.asnumpy(tensor.grad) for tensor in tensors)]


def exact(name, arrays, dy):
    """The same by the definition, in float64, going back through mean and variance one by one."""
    x, dy = np.asarray(arrays[0], np.float64), np.asarray(dy, np.float64)
    trailing = x.shape[2:] if name == "group_norm" else ()
    affine = [a.astype(np.float64).reshape(-1, *(1 for _ in trailing)) for a in arrays[1:]]
    weight, bias = affine or (1.0, 0.0)
    rows = {"layer_norm": x.size // x.shape[-1], "group_norm": len(x) * GROUPS}.get(name, len(x))
    flat = x.reshape(rows, -1)
    centred = flat - flat.mean(1, keepdims=True)
    r = ((centred**2).mean(1, keepdims=True) + EPS) ** -0.5
    x_hat = (centred * r).reshape(x.shape)
    g = (dy * weight).reshape(flat.shape)
    d_centred = g * r - centred * (g * centred).mean(1, keepdims=True) * r**3
    dx = (d_centred - d_centred.mean(1, keepdims=True)).reshape(x.shape)
    results = [x_hat * weight + bias, dx]
    if affine:
        over = tuple(axis for axis in range(x.ndim) if axis != (x.ndim - 1 if name == "layer_norm" else 1))
        results += [(dy * x_hat).sum(over), dy.sum(over)]
    return results


@by_op
def test_it_is_the_definition(name, shape, device):
    arrays, dy = inputs(name, shape)
    assert all(array.dtype == np.float32 for array in run(name, arrays, dy))
    agree(lambda: run(name, arrays, dy), exact(name, arrays, dy), samples=2)


@by_op
def test_a_mean_far_above_the_deviation_keeps_its_digits(name, shape):
    """Here the squares' mean minus the mean's square would be all noise: 1e6 against 1, with seven digits."""
    arrays, dy = inputs(name, shape, mean=1000)
    agree(lambda: run(name, arrays, dy), exact(name, arrays, dy), samples=2)


@by_op
def test_any_number_of_threads_gives_the_same_bits(name, shape, monkeypatch):
    arrays, dy = inputs(name, shape)
    one, two, four = [], [], []
    for number, results in ((1, one), (2, two), (4, four)):
        monkeypatch.setattr(threads, "cpu_threads", lambda number=number: number)
        results += run(name, arrays, dy)
    assert all(map(np.array_equal, one, two)) and all(map(np.array_equal, one, four))


def test_a_group_norm_of_other_channels_is_refused():
    with pytest.raises(ValueError, match=r"group_norm: x \(2, 64, 2, 2\) has 64 channels, .* shape \(32,\)"):
        ops.group_norm(np.ones((2, 64, 2, 2), np.float32), GROUPS, np.ones(32, np.float32))


@pytest.mark.parametrize("name", ["layer_norm", "group_norm", "batch_norm"])
def test_on_a_gpu_statistics_are_no_products(name, monkeypatch):
    """Which TF32 would round, and which would be a batch of one for every token."""
    def refuse(*_, **__):
        raise AssertionError("a product")

    sv.use(strict_array.STRICT)
    try:
        monkeypatch.setattr(strict_array.xp, "matmul", refuse)
        monkeypatch.setattr(strict_array.StrictArray, "__matmul__", refuse)
        rng = seeded(0)
        x = sv.Tensor(rng.standard_normal((3, 4, 5), dtype=np.float32), requires_grad=True)
        width = 5 if name == "layer_norm" else 4
        weight, bias = (sv.Tensor(rng.standard_normal(width, dtype=np.float32), requires_grad=True) for _ in range(2))
        with plain_forms(False):
            y = {
                "layer_norm": lambda: ops.layer_norm(x, 5, weight, bias),
                "group_norm": lambda: ops.group_norm(x, 2, weight, bias),
                "batch_norm": lambda: ops.batch_norm(x, None, None, weight, bias, training=True),
            }[name]()
            (y * y).sum().backward()
        assert all(np.isfinite(backend.asnumpy(t.grad)).all() for t in (x, weight, bias))
    finally:
        sv.use("cpu")


def errors_around_ten():
    """The largest errors of layer norm, group norm and batch norm of numbers around 10, on the GPU."""
    sv.use("gpu")
    values = np.float32(10) + seeded(0).standard_normal((2, 4, 2000), np.float32)
    x, wide = sv.Tensor(values), values.astype(np.float64)
    found = {
        (2,): ops.layer_norm(x, 2000, eps=0.0), (1, 2): ops.group_norm(x, 1, eps=0.0),
        (0, 2): ops.batch_norm(x, None, None, training=True, eps=0.0),
    }
    return [
        float(np.abs(y.numpy() - (wide - wide.mean(axes, keepdims=True)) / wide.std(axes, keepdims=True)).max())
        for axes, y in found.items()
    ]


def test_tf32_does_not_round_statistics(request):
    """It has 10 bits: numbers around 10 would be off by up to 4e-3, and their mean by 5e-5 or more."""
    if request.config.getoption("--device") != "gpu":
        pytest.skip("needs a GPU, or CuPy's stand-in: --device gpu")
    assert max(alone(errors_around_ten, CUPY_TF32="1")) < 1e-5
