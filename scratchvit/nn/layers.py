"""Layers: ops together with their parameters. Names, shapes and initial weights are those of PyTorch.

`rng` is the NumPy generator for the initial weights; without one they differ from run to run. (A model initialises all
its weights again from its seed.) A layer raises the errors of its op, with the name of the op.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from scratchvit import ops
from scratchvit.casting import array_of
from scratchvit.errors import ScratchvitError, WrongValue
from scratchvit.kernels import cuda
from scratchvit.nn import init
from scratchvit.nn.module import Buffer, Module, Parameter
from scratchvit.parallel.communicator import ALONE, Communicator
from scratchvit.random import Generator
from scratchvit.tensor import Tensor


class Identity(Module):
    """The identity: returns x, of any shape."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Linear(Module):
    """Linear layer y = x Wᵀ + b: x (..., in), weight (out, in), bias (out,), y (..., out)."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, rng: np.random.Generator | None = None):
        rng = rng or np.random.default_rng()
        self.weight = Parameter(init.kaiming_uniform((out_features, in_features), rng, a=math.sqrt(5)))
        self.bias = Parameter(init.uniform((out_features,), rng, 1 / math.sqrt(in_features))) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        out_features, in_features = self.weight.shape
        return f"{in_features} → {out_features}{'' if self.bias is not None else ', no bias'}"


class _Conv(Module):
    axes: int

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | str = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        bias: bool = True,
        rng: np.random.Generator | None = None,
    ):
        if in_channels % groups or out_channels % groups:
            raise WrongValue(f"{groups} groups must divide both {in_channels} input and {out_channels} output channels")
        rng = rng or np.random.default_rng()
        kernel = (kernel_size,) * self.axes if isinstance(kernel_size, int) else tuple(kernel_size)
        shape = (out_channels, in_channels // groups, *kernel)
        self.weight = Parameter(init.kaiming_uniform(shape, rng, a=math.sqrt(5)))
        self.bias = Parameter(init.uniform((out_channels,), rng, 1 / math.sqrt(init.fans(shape)[0]))) if bias else None
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def _options(self) -> tuple[Any, ...]:
        return self.stride, self.padding, self.dilation, self.groups

    def extra_repr(self) -> str:
        out_channels, in_channels, *kernel = self.weight.shape
        text = f"{in_channels * self.groups} → {out_channels}, kernel {tuple(kernel)}, stride {self.stride}"
        if self.padding:
            text += f", padding {self.padding}"
        return text + (f", groups {self.groups}" if self.groups > 1 else "")


class Conv2d(_Conv):
    """2-D convolution: x (B, in, H, W), weight (out, in / groups, k, k), bias (out,), y (B, out, H', W').

    The options are those of `ops.conv2d`.  Raises ValueError for groups that do not divide both numbers of channels.
    """

    axes = 2

    def forward(self, x: Tensor) -> Tensor:
        return ops.conv2d(x, self.weight, self.bias, *self._options())


class Conv3d(_Conv):
    """3-D convolution: x (B, in, T, H, W), weight (out, in / groups, k, k, k), bias (out,), y (B, out, T', H', W').

    The options are those of `ops.conv2d`.  Raises ValueError for groups that do not divide both numbers of channels.
    """

    axes = 3

    def forward(self, x: Tensor) -> Tensor:
        return ops.conv3d(x, self.weight, self.bias, *self._options())


class LayerNorm(Module):
    """Normalise the last axis (Ba et al. 2016, arXiv 1607.06450): x (..., dim), weight and bias (dim,).

    eps: 1e-6 by default, as in timm's ViT; in `torch.nn.LayerNorm` and `ops.layer_norm` it is 1e-5.
    """

    def __init__(self, dim: int, eps: float = 1e-6):
        self.weight = Parameter(np.ones(dim, np.float32))
        self.bias = Parameter(np.zeros(dim, np.float32))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)

    def of_sum(self, x: Tensor, added: Tensor, dropout: Dropout) -> Tensor:
        """norm(x + dropout(added)), as one op: a residual connection of a post-norm Transformer. All (..., dim)."""
        p = dropout.p if dropout.training else 0.0
        return ops.add_layer_norm(
            x, added, self.weight.shape, self.weight, self.bias, self.eps, p, dropout.generator
        )

    def extra_repr(self) -> str:
        return f"{self.weight.size}"


class GroupNorm(Module):
    """Normalise groups of channels (Wu & He 2018, arXiv 1803.08494).

    x (B, channels, ...); weight and bias (channels,).
    """

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5):
        self.weight = Parameter(np.ones(num_channels, np.float32))
        self.bias = Parameter(np.zeros(num_channels, np.float32))
        self.num_groups, self.eps = num_groups, eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.size} channels in {self.num_groups} groups"


class BatchNorm2d(Module):
    """Normalise channels over the batch (Ioffe & Szegedy 2015, arXiv 1502.03167).

    x (B, channels, H, W); weight, bias and running statistics (channels,).
    momentum: weight of the newest batch in the running statistics; None: mean of all batches so far.
    ranks: the processes over whose images the statistics of a batch are; see `synchronise_batch_norms`.
    Raises ValueError for another number of channels, and in training for a single value per channel.
    """

    optional_state = ("num_batches_tracked",)       # missing in checkpoints from before PyTorch 0.4.1
    ranks: Communicator = ALONE

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1):
        self.weight = Parameter(np.ones(num_features, np.float32))
        self.bias = Parameter(np.zeros(num_features, np.float32))
        self.running_mean = Buffer(np.zeros(num_features, np.float32))
        self.running_var = Buffer(np.ones(num_features, np.float32))
        self.num_batches_tracked = Buffer(np.zeros((), np.int64))
        self.eps, self.momentum = eps, momentum

    def forward(self, x: Tensor) -> Tensor:
        momentum: Any = self.momentum
        if momentum is None:
            momentum = 1 / (self.num_batches_tracked.data + 1).astype(self.running_mean.dtype)
        y = ops.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, momentum, self.eps,
            self.ranks.sum if self.ranks.size > 1 else None,
        )
        if self.training:
            self.num_batches_tracked.data += 1
        return y

    def extra_repr(self) -> str:
        return f"{self.weight.size}"


def synchronise_batch_norms(model: Module, ranks: Communicator) -> None:
    """Let all batch norms of a model compute their statistics over the images of all processes, as one process would.

    This is PyTorch's `SyncBatchNorm.convert_sync_batchnorm`, except that layers are changed in place. In training, a
    batch norm sums two small arrays over the processes in the forward and one in the backward pass, and waits for them.
    So all processes must compute the same layers in the same order; they may have different numbers of images. With one
    process nothing changes.
    Raises ScratchvitError for a model without batch norms.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, BatchNorm2d)]
    if not layers:
        raise ScratchvitError(f"{type(model).__name__} has no batch norms to synchronise: leave sync_bn out")
    for layer in layers:
        layer.ranks = ranks


class FrozenBatchNorm2d(Module):
    """Batch norm with fixed statistics, weight and bias, in training too: all four are buffers.

    For small batches with a pretrained backbone, as in DETR. x (B, channels, H, W); all buffers (channels,).
    """

    optional_state = ("num_batches_tracked",)       # so that the state of a BatchNorm2d can be loaded

    def __init__(self, num_features: int, eps: float = 1e-5):
        self.weight = Buffer(np.ones(num_features, np.float32))
        self.bias = Buffer(np.zeros(num_features, np.float32))
        self.running_mean = Buffer(np.zeros(num_features, np.float32))
        self.running_var = Buffer(np.ones(num_features, np.float32))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.frozen_batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.size}"


class Embedding(Module):
    """An embedding matrix of n learned vectors: index int (...) in 0 … n - 1, weight (n, dim), y (..., dim)."""

    def __init__(self, num_embeddings: int, embedding_dim: int, rng: np.random.Generator | None = None):
        self.weight = Parameter(init.normal((num_embeddings, embedding_dim), rng or np.random.default_rng(), 1.0))

    def forward(self, index: Any) -> Tensor:
        return ops.embedding(index, self.weight)

    def extra_repr(self) -> str:
        return "{} × {}".format(*self.weight.shape)


class PReLU(Module):
    """PReLU, max(x, 0) + weight · min(x, 0), for x of any shape (He et al. 2015, arXiv 1502.01852, eq. 1).

    weight (1,): a learned slope, initially 0.25.
    """

    def __init__(self) -> None:
        self.weight = Parameter(np.full(1, 0.25, np.float32))

    def forward(self, x: Tensor) -> Tensor:
        return ops.prelu(x, self.weight)


class Dropout(Module):
    """Dropout: in training, set entries of x to 0 with probability p and multiply the others by 1 / (1 - p).

    x: any shape. In evaluation mode x is returned unchanged.
    """

    def __init__(self, p: float = 0.5):
        self.p = p
        self.generator = Generator()

    def forward(self, x: Tensor) -> Tensor:
        return ops.dropout(x, self.p, generator=self.generator) if self.training and self.p else x

    def extra_repr(self) -> str:
        return f"{self.p}"


class DropPath(Dropout):
    """Stochastic depth (Huang et al. 2016, arXiv 1603.09382): dropout of whole samples, for residual branches.

    x (B, ...).
    """

    def forward(self, x: Tensor) -> Tensor:
        return ops.drop_path(x, self.p, generator=self.generator) if self.training and self.p else x


class GELU(Module):
    """GELU, x Φ(x), for x of any shape (Hendrycks & Gimpel, arXiv 1606.08415), as a module for Sequential."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.gelu(x)


class Mlp(Module):
    """Two linear layers, an activation between them and dropout after each: x (..., dim) → (..., out_dim or dim)."""

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        act: Callable[..., Tensor] = ops.gelu,
        drop: float = 0.0,
        out_dim: int | None = None,
    ):
        self.fc1 = Linear(dim, hidden_dim)
        self.act = act
        self.drop = Dropout(drop)
        self.fc2 = Linear(hidden_dim, dim if out_dim is None else out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self._hidden(x))))

    def _hidden(self, x: Tensor) -> Tensor:
        """act(fc1(x)), with the bias and GELU as one operation on a GPU."""
        if self.act is ops.gelu and type(self.fc1) is Linear and self.fc1.bias is not None and cuda.takes(array_of(x)):
            return ops.linear_gelu(x, self.fc1.weight, self.fc1.bias)
        return self.act(self.fc1(x))
