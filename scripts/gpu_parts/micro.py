"""Variants of an operation beside each other, where there is a choice: microseconds of a call among many.

A row's "table" is {size: {variant: {"us", "host_us"}, or its error}}. Variants that begin with "torch" are PyTorch's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

import scratchvit as sv
from scratchvit import optim
from scratchvit.kernels.sums import total
from scratchvit.plain import plain_forms
from scratchvit.precision import computing_in
from scripts.gpu_parts.cases import CASES, OF_ADAMW, our_model
from scripts.gpu_parts.part import Item, Row, Setting, not_run
from scripts.gpu_parts.probes import accelerators, answer_of
from scripts.gpu_parts.timing import call_times

Calls = dict[str, Callable[[], Any]]

SECONDS = 0.04              # for each variant


class Bench:
    """Arrays on the device, here and in PyTorch if it is there, and what is measured on them."""

    def __init__(self, setting: Setting):
        self.setting, self.device = setting, setting.use()
        self.xp = self.device.xp
        try:
            import torch

            self.torch: Any = torch if torch.cuda.is_available() or not setting.on_gpu else None
        except ModuleNotFoundError:
            self.torch = None
        self.place = "cuda" if setting.on_gpu else "cpu"
        self.table: dict[str, dict[str, Any]] = {}

    def array(self, *shape: int) -> Any:
        host = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        return self.xp.asarray(host)

    def tensor(self, *shape: int, dtype: str = "float32") -> Any:
        return self.torch.randn(shape, device=self.place, dtype=getattr(self.torch, dtype))

    def wait(self) -> None:
        self.device.synchronize()
        if self.torch is not None and self.setting.on_gpu:
            self.torch.cuda.synchronize()

    def measure(self, size: str, calls: Calls) -> None:
        of_size = self.table.setdefault(size, {})
        seconds = self.setting.pick(SECONDS, 0.001)
        for name, call in calls.items():
            if self.torch is not None or not name.startswith("torch"):
                of_size[name] = answer_of(lambda call=call: call_times(call, self.wait, seconds))

    def row(self) -> Row:
        """All variants of ours must have run."""
        failed = [f"{size}, {name}: {found}" for size, of_size in self.table.items() for name, found in of_size.items()
                  if isinstance(found, str) and not name.startswith("torch")]
        fastest = {
            size: min((found["us"], name) for name, found in of_size.items() if isinstance(found, dict))
            for size, of_size in self.table.items() if any(isinstance(found, dict) for found in of_size.values())
        }
        text = "; ".join(f"{size}: {name} {us:.1f} µs" for size, (us, name) in fastest.items())
        return {"ok": not failed, "table": self.table, "result": "; ".join(failed) or f"fastest: {text}"}


def both_ways(function: Callable[..., Any], arrays: list[Any], dy: Any) -> Callable[[], None]:
    """An op of ours on arrays, forward and backward."""
    inputs = [sv.Tensor(each, requires_grad=True) for each in arrays]

    def call() -> None:
        for each in inputs:
            each.grad = None
        function(*inputs).backward(dy)

    return call


def torch_both_ways(function: Callable[..., Any], tensors: list[Any], dy: Any) -> Callable[[], None]:
    inputs = [each.requires_grad_() for each in tensors]

    def call() -> None:
        for each in inputs:
            each.grad = None
        function(*inputs).backward(dy)

    return call


def plainly(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call with plain forms instead of kernels."""
    def plain() -> None:
        with plain_forms():
            call()

    return plain


def bias_gradients(setting: Setting) -> Row:
    """Sums of columns: of CuPy, by a product with ones, as ops make them, of PyTorch."""
    bench = Bench(setting)
    for rows, width in setting.pick(((12_608, 192), (25_216, 768), (25_216, 3072), (200_704, 96)), ((65, 33),)):
        x = bench.array(rows, width)
        ones = bench.xp.ones((1, rows), np.float32)
        calls: Calls = {
            "CuPy's sum": lambda x=x: x.sum(axis=0), "ones @ x": lambda x=x, ones=ones: ones @ x,
            "as in ops": lambda x=x: total(x, (0,)),
        }
        if bench.torch is not None:
            t = bench.tensor(rows, width)
            calls["torch"] = lambda t=t: t.sum(0)
        bench.measure(f"{rows} × {width}", calls)
    return bench.row()


def row_sums(setting: Setting) -> Row:
    """Sums of rows of the lengths that softmax and layer norm have, with CUB and without."""
    bench = Bench(setting)

    def without_cub(x: Any) -> Any:
        with accelerators(bench.xp, []):
            return x.sum(axis=-1)

    for length in setting.pick((49, 65, 197, 768), (49,)):
        x = bench.array(setting.pick(1 << 15, 8), length)
        ones = bench.xp.ones((length, 1), np.float32)
        calls: Calls = {"as set": lambda x=x: x.sum(axis=-1), "x @ ones": lambda x=x, ones=ones: x @ ones}
        if setting.on_gpu:
            calls["without CUB"] = lambda x=x: without_cub(x)
        if bench.torch is not None:
            t = bench.tensor(*x.shape)
            calls["torch"] = lambda t=t: t.sum(-1)
        bench.measure(f"rows of {length}", calls)
    return bench.row()


def products(setting: Setting) -> Row:
    """x @ wᵀ at the sizes of ViT-Ti and ViT-B, in float32, TF32 and bf16; and q kᵀ in stacks."""
    bench = Bench(setting)

    def ours(x: Any, w: Any, precision: str) -> Any:
        with computing_in(precision.lower()):
            return sv.kernels.products.matmul(x, w.T)

    sizes = ((25_216, 192, 576), (25_216, 192, 768), (25_216, 768, 192), (12_608, 768, 2304), (12_608, 768, 3072),
             (12_608, 3072, 768))
    for n, k, m in setting.pick(sizes, ((32, 16, 24),)):
        x, w, dy = bench.array(n, k), bench.array(m, k), bench.array(n, m)
        calls: Calls = {
            "float32": lambda x=x, w=w: ours(x, w, "float32"), "TF32": lambda x=x, w=w: ours(x, w, "TF32"),
            "CuPy": lambda x=x, w=w: x @ w.T, "dw": lambda x=x, dy=dy: sv.kernels.products.matmul(dy.T, x),
        }
        if bench.torch is not None:
            a, b = bench.tensor(n, k), bench.tensor(m, k)
            c, d = bench.tensor(n, k, dtype="bfloat16"), bench.tensor(m, k, dtype="bfloat16")
            calls |= {"torch, float32": lambda a=a, b=b: a @ b.T, "torch, bf16": lambda c=c, d=d: c @ d.T}
        bench.measure(f"{n} × {k} by {m}", calls)
    for shape in setting.pick(((128, 3, 197, 64), (4096, 3, 49, 32)), ((2, 3, 17, 8),)):
        q, k = bench.array(*shape), bench.array(*shape)
        turned = bench.xp.ascontiguousarray(k.swapaxes(2, 3))
        bench.measure(f"q kᵀ, {shape}", {
            "CuPy, k swapped": lambda q=q, k=k: bench.xp.matmul(q, k.swapaxes(2, 3)),
            "CuPy, kᵀ contiguous": lambda q=q, t=turned: bench.xp.matmul(q, t),
            "as in ops": lambda q=q, k=k: sv.kernels.products.matmul(q, k.swapaxes(2, 3)),
        })
    return bench.row()


def attention(setting: Setting) -> Row:
    """Attention forward and backward: ours, its plain form, PyTorch's in float32 and bf16."""
    bench = Bench(setting)
    sizes = (128, 3, 197, 64), (64, 12, 197, 64), (4096, 3, 49, 32), (16, 8, 300, 32)
    for shape in setting.pick(sizes, ((2, 3, 17, 8),)):
        q, k, v, dy = (bench.array(*shape) for _ in range(4))
        call = both_ways(sv.ops.attention, [q, k, v], dy)
        calls: Calls = {"ours": call, "plain form": plainly(call)}
        if bench.torch is not None:
            for name in ("float32", "bfloat16"):
                tensors = [bench.tensor(*shape, dtype=name) for _ in range(4)]
                function = bench.torch.nn.functional.scaled_dot_product_attention
                calls[f"torch, {name}"] = torch_both_ways(function, tensors[:3], tensors[3])
        bench.measure(str(shape), calls)
    return bench.row()


def flash_attention(setting: Setting) -> Row:
    """Attention in bf16 and TF32: by flash.py, by products and a kernel for their scores, and PyTorch's in bf16."""
    if not setting.on_gpu:
        return not_run("on the CPU")
    bench = Bench(setting)
    if int(bench.xp.cuda.Device().compute_capability) < 80:
        return not_run("this GPU has no tensor cores for it")
    from ml_dtypes import bfloat16

    from scratchvit.kernels.cuda import attention as by_rows
    from scratchvit.kernels.cuda import flash

    def both(kernel: Callable[..., Any], arrays: list[Any], dy: Any) -> None:
        with computing_in("tf32"):
            kernel(*arrays, None, None, None, 0.125)[1](dy, [True] * 4)

    for shape in setting.pick(((64, 12, 197, 64), (16, 12, 1024, 64)), ((1, 2, 17, 32),)):
        calls: Calls = {}
        for name, dtype in (("bf16", bfloat16), ("TF32", np.float32)):
            q, k, v, dy = (bench.array(*shape).astype(dtype) for _ in range(4))
            for way, kernel in (("flash", flash.attention), ("rows", by_rows.attention_over_rows)):
                calls[f"{way}, {name}"] = functools.partial(both, kernel, [q, k, v], dy)
        if bench.torch is not None:
            tensors = [bench.tensor(*shape, dtype="bfloat16") for _ in range(4)]
            function = bench.torch.nn.functional.scaled_dot_product_attention
            calls["torch, bf16"] = torch_both_ways(function, tensors[:3], tensors[3])
        bench.measure(str(shape), calls)
    return bench.row()


def norms(setting: Setting) -> Row:
    """Layer norm and batch norm forward and backward: ours, their plain forms, PyTorch's."""
    bench = Bench(setting)
    for rows, D in setting.pick(((25_216, 192), (12_608, 768), (200_704, 96)), ((65, 33),)):
        arrays = [bench.array(rows, D), bench.array(D), bench.array(D)]
        call = both_ways(lambda x, w, b, D=D: sv.ops.layer_norm(x, D, w, b), arrays, bench.array(rows, D))
        calls: Calls = {"ours": call, "plain form": plainly(call)}
        if bench.torch is not None:
            function = bench.torch.nn.functional.layer_norm
            calls["torch"] = torch_both_ways(
                lambda x, w, b, D=D, function=function: function(x, (D,), w, b),
                [bench.tensor(rows, D), bench.tensor(D), bench.tensor(D)], bench.tensor(rows, D),
            )
        bench.measure(f"layer norm, {rows} × {D}", calls)
    for shape in setting.pick(((128, 64, 56, 56), (128, 512, 7, 7)), ((2, 8, 5, 5),)):
        layer = sv.nn.BatchNorm2d(shape[1])
        layer.train()
        call = both_ways(layer, [bench.array(*shape)], bench.array(*shape))
        calls = {"ours": call, "plain form": plainly(call)}
        if bench.torch is not None:
            peer = bench.torch.nn.BatchNorm2d(shape[1]).to(bench.place)
            calls["torch"] = torch_both_ways(peer, [bench.tensor(*shape)], bench.tensor(*shape))
        bench.measure(f"batch norm, {shape}", calls)
    return bench.row()


def convolutions(setting: Setting) -> Row:
    """ResNet-18's convolutions forward and backward: ours, their plain form, cuDNN's, in float32."""
    bench = Bench(setting)
    sizes = ((64, 64, 3, 1, 56), (64, 128, 3, 2, 56), (128, 128, 3, 1, 28), (512, 512, 3, 1, 7), (64, 128, 1, 2, 56))
    for inputs, outputs, kernel, stride, side in setting.pick(sizes, ((8, 8, 3, 1, 7),)):
        batch, padding, out = setting.pick(128, 2), kernel // 2, -(-side // stride)
        shapes = (batch, inputs, side, side), (outputs, inputs, kernel, kernel), (batch, outputs, out, out)
        x, w, dy = (bench.array(*shape) for shape in shapes)
        call = both_ways(lambda x, w, s=stride, p=padding: sv.ops.conv2d(x, w, stride=s, padding=p), [x, w], dy)
        calls: Calls = {"ours": call, "plain form": plainly(call)}
        if bench.torch is not None:
            bench.torch.backends.cudnn.allow_tf32 = False
            tensors = [bench.tensor(*shape) for shape in shapes]
            function = bench.torch.nn.functional.conv2d
            calls["torch"] = torch_both_ways(
                lambda x, w, s=stride, p=padding, f=function: f(x, w, stride=s, padding=p), tensors[:2], tensors[2]
            )
        bench.measure(f"{inputs}→{outputs}, {kernel}×{kernel}, /{stride}, {side}²", calls)
    return bench.row()


def elementwise(setting: Setting) -> Row:
    """GELU and the sum with a broadcast bias, forward and backward."""
    bench = Bench(setting)
    for shape in setting.pick(((25_216, 768), (12_608, 3072)), ((65, 33),)):
        dy = bench.array(*shape)
        gelu = both_ways(sv.ops.gelu, [bench.array(*shape)], dy)
        calls: Calls = {
            "GELU": gelu, "GELU, plain form": plainly(gelu),
            "bias": both_ways(lambda x, b: x + b, [bench.array(*shape), bench.array(shape[1])], dy),
        }
        if bench.torch is not None:
            calls["torch, GELU"] = torch_both_ways(
                bench.torch.nn.functional.gelu, [bench.tensor(*shape)], bench.tensor(*shape)
            )
        bench.measure(str(shape), calls)
    return bench.row()


def adamw(setting: Setting) -> Row:
    """AdamW's step on ViT-Ti/16's parameters, and the clipping of gradients: ours, PyTorch's foreach and fused."""
    bench = Bench(setting)
    parameters = list(our_model(CASES["ViT-Ti/16, 224²"], setting.small).parameters())
    for each in parameters:
        each.grad = bench.array(*each.shape)
    optimizer = optim.AdamW(parameters, **OF_ADAMW)
    calls: Calls = {"ours": optimizer.step, "clip": lambda: optim.clip_grad_norm(parameters, 1e9)}
    if bench.torch is not None:
        for way in ("foreach", "fused"):
            tensors = [bench.tensor(*each.shape).requires_grad_() for each in parameters]
            for tensor in tensors:
                tensor.grad = bench.torch.randn_like(tensor)
            calls[f"torch, {way}"] = bench.torch.optim.AdamW(tensors, **OF_ADAMW, **{way: True}).step
        calls["torch, clip"] = lambda: bench.torch.nn.utils.clip_grad_norm_(tensors, 1e9)
    bench.measure(f"{len(parameters)} parameters", calls)
    return bench.row()


MICRO: dict[str, Item] = {
    "gradients of biases": bias_gradients, "sums of rows": row_sums, "products": products, "attention": attention,
    "attention by tensor cores": flash_attention, "norms": norms, "AdamW": adamw, "convolutions": convolutions,
    "element by element": elementwise,
}
