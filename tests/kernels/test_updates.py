"""Shadows of parameters in the NumPy form of an optimiser's step; the kernels' are in cuda/test_half_precision.py."""

import numpy as np
import pytest

from scratchvit.kernels import updates
from scratchvit.plain import plain_forms
from tests.support.seeds import seeded

SHAPES = [(0,), (7,), (4097,), (300, 200)]
STEPS = {
    "adam": (updates.adam, 4, updates.AdamNumbers(0.1, 1e-3, 0.99, 0.0, 0.9, 0.999, 1)),
    "sgd": (updates.sgd, 3, updates.SGDNumbers(0.1, 0.2, 0.9, True)),
}


def half(name):
    return np.dtype(np.float16 if name == "float16" else pytest.importorskip("ml_dtypes").bfloat16)


def rows_of(columns):
    rng = seeded(0)
    return [tuple(rng.uniform(0.5, 2, shape).astype(np.float32) for _ in range(columns)) for shape in SHAPES]


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize(("update", "columns", "numbers"), STEPS.values(), ids=STEPS)
def test_a_step_rounds_each_parameter_into_its_shadow(update, columns, numbers, name, plain):
    rows, alone = rows_of(columns), rows_of(columns)
    shadows = [None if i == 1 else np.zeros(shape, half(name)) for i, shape in enumerate(SHAPES)]
    with plain_forms(plain):
        update(rows, [0] * len(rows), lambda: [numbers], shadows=shadows)
        update(alone, [0] * len(rows), lambda: [numbers])
    for row, other, shadow in zip(rows, alone, shadows):
        assert [x.tobytes() for x in row] == [x.tobytes() for x in other]
        assert shadow is None or shadow.tobytes() == row[0].astype(shadow.dtype).tobytes()


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_parameters_are_rounded_into_shadows(name):
    x = seeded(0).standard_normal((3, 40)).astype(np.float32)
    y = np.zeros((3, 40), half(name))
    updates.round_into([(y, x)])
    assert y.tobytes() == x.astype(y.dtype).tobytes()
