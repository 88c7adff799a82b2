"""Rows for scratchvit/ops/linear.py."""

from scratchvit import ops

from .case import Case


def _einsum(equation, *shapes):
    return Case("einsum", shapes, lambda *xs: ops.einsum(equation, *xs), lambda torch, *xs: torch.einsum(equation, *xs),
                equation)


def _matmul(note, *shapes):
    return Case("matmul", shapes, lambda x, y: x @ y, lambda torch, x, y: x @ y, note)


def _linear_parts(sizes, *inputs):
    def theirs(torch, *given):
        *xs, weight, bias = given
        parts = zip(xs, weight.split(sizes), bias.split(sizes))
        return tuple(torch.nn.functional.linear(*part) for part in parts)

    return Case("linear_parts", (*inputs, (sum(sizes), inputs[0][-1]), (sum(sizes),)),
                lambda *given: ops.linear_parts(given[:-2], *given[-2:], sizes), theirs, f"{len(sizes)} inputs")


CASES = [
    _matmul("matrices", (3, 4), (4, 2)),
    _matmul("batched", (2, 3, 4), (2, 4, 2)),
    _matmul("broadcast", (2, 1, 3, 4), (5, 4, 2)),
    _matmul("vectors", (4,), (4,)),
    _matmul("vector on the left", (4,), (2, 4, 3)),
    _matmul("vector on the right", (2, 3, 4), (4,)),
    Case("linear", ((2, 3, 4), (5, 4), (5,)), ops.linear, lambda torch, *a: torch.nn.functional.linear(*a)),
    Case("linear", ((3, 4), (5, 4)), ops.linear, lambda torch, *a: torch.nn.functional.linear(*a), "no bias"),
    Case("linear_gelu", ((2, 3, 4), (5, 4), (5,)), ops.linear_gelu,
         lambda torch, *a: torch.nn.functional.gelu(torch.nn.functional.linear(*a))),
    _linear_parts((2, 1, 3), (2, 3, 4), (2, 5, 4), (5, 4)),
    _linear_parts((4, 2), (2, 3, 4), (3, 4)),
    _einsum("bqd,bkd->bqk", (2, 3, 4), (2, 5, 4)),
    _einsum("ij,jk", (2, 3), (3, 4)),
    _einsum("ij->j", (2, 3)),
    _einsum("...ij,...kj->...ik", (2, 1, 3, 4), (5, 2, 4)),
    _einsum("i,j,k->ijk", (2,), (3,), (4,)),
    _einsum("bhqd,qkd,kb->bhk", (2, 2, 3, 4), (3, 5, 4), (5, 2)),
]
