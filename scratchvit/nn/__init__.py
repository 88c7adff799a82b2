"""Modules, layers and initialisers."""

from scratchvit.nn import init
from scratchvit.nn.layers import (
    GELU,
    BatchNorm2d,
    Conv2d,
    Conv3d,
    Dropout,
    DropPath,
    Embedding,
    FrozenBatchNorm2d,
    GroupNorm,
    Identity,
    LayerNorm,
    Linear,
    Mlp,
    PReLU,
    synchronise_batch_norms,
)
from scratchvit.nn.module import Buffer, Module, ModuleList, Parameter, Sequential, evaluating
