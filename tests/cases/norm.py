"""Rows for scratchvit/ops/norm.py."""

import numpy as np

from scratchvit import ops
from scratchvit.random import Generator
from tests.support.seeds import moved

from .case import Case

_mean, _var = np.array([0.1, -0.2, 0.3, 0.0]), np.array([0.5, 1.0, 2.0, 1.5])


def _batch_norm(note, inputs, training):
    def ours(x, *affine):
        statistics = [ops.asarray(a, x.dtype) for a in (_mean, _var)]
        return ops.batch_norm(x, *statistics, *affine, training=training)

    def theirs(torch, x, *affine):
        statistics = [torch.tensor(a, dtype=x.dtype) for a in (_mean, _var)]
        return torch.nn.functional.batch_norm(x, *statistics, *affine, training=training)

    return Case("batch_norm", inputs, ours, theirs, note)


def _frozen_batch_norm():
    _weight, _bias = np.array([1.5, -0.5, 0.0, 2.0]), np.array([0.2, 0.0, -1.0, 0.4])

    def ours(x):
        return ops.frozen_batch_norm(x, *(ops.asarray(a, x.dtype) for a in (_mean, _var, _weight, _bias)))

    def theirs(torch, x):
        constants = [torch.tensor(a, dtype=x.dtype) for a in (_mean, _var, _weight, _bias)]
        return torch.nn.functional.batch_norm(x, *constants, training=False)

    return Case("frozen_batch_norm", ((3, 4, 2, 2),), ours, theirs)


def _add_layer_norm(note, *inputs, p=0.0):
    def ours(x, added, *affine):
        return ops.add_layer_norm(x, added, 5, *affine, p=p, generator=Generator(moved(7)))

    def theirs(torch, x, added, *affine):
        kept = torch.as_tensor(Generator(moved(7)).bernoulli(1 - p, x.shape))
        return torch.nn.functional.layer_norm(x + added * kept / (1 - p), (5,), *affine)

    return Case("add_layer_norm", inputs, ours, theirs, note)


CASES = [
    Case("layer_norm", ((2, 3, 5), (5,), (5,)), lambda x, w, b: ops.layer_norm(x, (5,), w, b, eps=1e-6),
         lambda torch, x, w, b: torch.nn.functional.layer_norm(x, (5,), w, b, eps=1e-6)),
    Case("layer_norm", ((4, 5),), lambda x: ops.layer_norm(x, 5, eps=1e-5),
         lambda torch, x: torch.nn.functional.layer_norm(x, (5,), eps=1e-5), "no weight"),
    _add_layer_norm("", (2, 3, 5), (2, 3, 5), (5,), (5,)),
    _add_layer_norm("dropout", (2, 3, 5), (2, 3, 5), (5,), (5,), p=0.4),
    _add_layer_norm("no weight", (4, 5), (4, 5)),
    Case("group_norm", ((2, 4, 3, 2), (4,), (4,)), lambda x, w, b: ops.group_norm(x, 2, w, b),
         lambda torch, x, w, b: torch.nn.functional.group_norm(x, 2, w, b)),
    Case("group_norm", ((2, 4, 3),), lambda x: ops.group_norm(x, 4),
         lambda torch, x: torch.nn.functional.group_norm(x, 4), "no weight"),
    _batch_norm("training", ((3, 4, 2, 2), (4,), (4,)), True),
    _batch_norm("training, no weight", ((5, 4),), True),
    _batch_norm("evaluation", ((3, 4, 2, 2), (4,), (4,)), False),
    _frozen_batch_norm(),
    Case("weight_standardization", ((3, 2, 2, 2),), lambda w: ops.weight_standardization(w, eps=1e-6),
         lambda torch, w: torch.nn.functional.batch_norm(w.reshape(1, 3, -1), None, None, training=True, momentum=0.0,
                                                         eps=1e-6).reshape(w.shape)),
]
