"""Differentiable functions, one file per family. Names and arguments follow `torch.nn.functional`."""

from scratchvit import graph
from scratchvit.backend import asarray
from scratchvit.kernels.cuda.add_up import add_up
from scratchvit.ops.attention import attention, drop_path, dropout, log_softmax, record_attention, softmax
from scratchvit.ops.conv import conv2d, conv3d
from scratchvit.ops.elementwise import (
    abs,
    add,
    clip,
    cos,
    div,
    erf,
    exp,
    gelu,
    log,
    maximum,
    minimum,
    mul,
    neg,
    pow,
    prelu,
    relu,
    sigmoid,
    silu,
    sin,
    sqrt,
    sub,
    tanh,
    where,
)
from scratchvit.ops.index import embedding, gather, getitem
from scratchvit.ops.linear import einsum, linear, linear_gelu, linear_parts, matmul
from scratchvit.ops.loss import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    kl_div,
    l1_loss,
    mse_loss,
    sigmoid_focal_loss,
    smooth_l1_loss,
)
from scratchvit.ops.norm import (
    add_layer_norm,
    batch_norm,
    frozen_batch_norm,
    group_norm,
    layer_norm,
    weight_standardization,
)
from scratchvit.ops.padding import pad
from scratchvit.ops.pool import avg_pool2d, avg_pool3d, max_pool2d, max_pool3d
from scratchvit.ops.reduce import max, mean, min, sum, var
from scratchvit.ops.resize import interpolate
from scratchvit.ops.shape import (
    concatenate,
    expand,
    flip,
    permute,
    reshape,
    roll,
    split,
    stack,
    to_float32,
    transpose,
    unbind,
)
from scratchvit.ops.windows import window_partition, window_reverse
from scratchvit.tensor import OPS

OPS.update({name: value for name, value in globals().items() if hasattr(value, "takes")})
graph.add_up = add_up
