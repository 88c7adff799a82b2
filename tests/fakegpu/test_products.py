"""How many operations of the device the package's matrix products are: no copies, and what can be fused is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import cupy
import numpy as np
import pytest
from fakegpu import device

import scratchvit as sv
from scratchvit import Tensor, ops
from scratchvit.kernels import products
from scratchvit.kernels.cuda import blas
from scratchvit.kernels.cuda.addresses import addresses_of


@pytest.fixture(autouse=True)
def _on_the_gpu() -> Iterator[None]:
    sv.use("gpu")
    with sv.plain_forms(False):
        yield
    sv.use("cpu")


def operations(function: Callable[[], Any]) -> list[str]:
    """The kernels, products, copies and fills of the second call; the first one compiles."""
    function()
    found: list[str] = []
    device.trace(lambda what, name, *_: found.append(name.partition("__")[0] if what in ("gemm", "launch") else what))
    try:
        function()
    finally:
        device.trace(None)
    return found


def new(*shape: int) -> Any:
    return cupy.zeros(shape, np.float32)


def test_a_linear_layer_is_one_product_forward_and_two_backward() -> None:
    x, weight, bias = (Tensor(new(*shape), requires_grad=True) for shape in ((4, 50, 24), (36, 24), (36,)))
    dy = new(4, 50, 36)

    def step() -> None:
        for tensor in (x, weight, bias):
            tensor.grad = None
        ops.linear(x, weight, bias).backward(dy)

    assert operations(step) == ["cublasLtMatmul", "cublasGemmEx", "cublasLtMatmul"]


def test_products_of_views_copy_nothing() -> None:
    x, y, w, v, out = new(6, 5, 7), new(6, 7, 4), new(4, 7), new(7), new(5, 6, 4)
    for function, name in (
        (lambda: products.matmul(x, w.T), "cublasGemmEx"),
        (lambda: products.matmul(x[:, :, 1:], w.T[:-1]), "cublasGemmEx"),
        (lambda: products.matmul(x, y), "cublasGemmStridedBatchedEx"),
        (lambda: products.matmul(y.swapaxes(1, 2), x.swapaxes(1, 2)), "cublasGemmStridedBatchedEx"),
        (lambda: products.matmul(x, y, out=out.swapaxes(0, 1)), "cublasGemmStridedBatchedEx"),
        (lambda: products.matmul(x.swapaxes(1, 2), out.swapaxes(0, 1)[:1, :, :2]), "cublasGemmStridedBatchedEx"),
        (lambda: products.matmul(x, v), "cublasGemmEx"),
    ):
        assert operations(function) == [name]


def test_products_of_attention_share_a_table() -> None:
    q, k, v = new(2, 5, 3, 4, 8).transpose(2, 0, 3, 1, 4)
    s, y = new(2, 4, 5, 5), new(2, 5, 4, 8).transpose(0, 2, 1, 3)
    assert operations(lambda: blas.matmul(q, k.swapaxes(-1, -2), s)) == ["write_addresses", "cublasGemmBatchedEx"]

    def forward() -> None:
        addresses = addresses_of(q, k, v, s, y)
        blas.matmul(q, k.swapaxes(-1, -2), s, alpha=0.5, addresses=addresses)
        blas.matmul(s, v, y, addresses=addresses)

    assert operations(forward) == ["write_addresses", "cublasGemmBatchedEx", "cublasGemmBatchedEx"]
    assert operations(lambda: addresses_of(s, s.swapaxes(-1, -2))) == []         # one stride
    assert operations(lambda: addresses_of(q[:1], k[:1], s[:1])) == []           # of one image
