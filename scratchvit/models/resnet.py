"""ResNet: deep residual learning for image recognition (He et al., CVPR 2016, arXiv 1512.03385).

The idea: a plain network of 56 layers trains *worse* than one of 20, although it could compute the same with 36
identity layers. So let a block learn what to add to its input instead of its whole output: y = F(x) + x (eq. 1). The
identity is then F = 0, which is easy to learn, and gradients reach the first layers through the sums unchanged.

A ViT has the same residual blocks. What differs is the inductive bias: a 3×3 convolution only sees neighbours and is
the same at every position, and with every stage the map shrinks while its channels double.

    paper                here             shape at ResNet-50, 224×224
    x                    images           (B, 3, 224, 224)
    conv1, 7×7, /2       conv1, bn1       (B, 64, 112, 112)
    3×3 max pool, /2     ops.max_pool2d   (B, 64, 56, 56)
    conv2_x              layer1           (B, 256, 56, 56)
    conv3_x              layer2           (B, 512, 28, 28)
    conv4_x              layer3           (B, 1024, 14, 14)
    conv5_x              layer4           (B, 2048, 7, 7)
    F                    what a block adds: its convolutions, each with batch norm (arXiv 1502.03167) after it
    W_s                  downsample       a 1×1 convolution, if input and output of a block differ in shape
    average pool, fc     fc               (B, 1000)

Two things follow common practice instead of the paper: the stride of a Bottleneck is in its 3×3 convolution, not in the
1×1 before it, which would ignore three quarters of the map (known as v1.5, in torchvision and timm); and the weight of
the last norm of F starts at zero, so that every block starts as an identity (arXiv 1706.02677, §5.1).

As a backbone for detection: `features_only` returns the maps after the stages, `output_stride=16` is DETR's DC5, and
`frozen_bn` its batch norm. Names of parameters and options are timm's, except the options bottleneck (in timm the class
of a block), small_stem and frozen_bn, which timm does not have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchvit import nn, ops
from scratchvit.errors import ScratchvitError
from scratchvit.models.checks import check_images, check_numbers, check_out_indices
from scratchvit.models.registry import register
from scratchvit.nn import init
from scratchvit.options import option
from scratchvit.random import Generator
from scratchvit.tensor import Tensor


@dataclass(frozen=True)
class ResNetConfig:
    """The sizes of a ResNet."""

    layers: tuple[int, ...] = option((3, 4, 6, 3), "blocks in each stage")
    bottleneck: bool = option(
        True, "blocks of 1×1, 3×3 and 1×1 convolutions (the last 4 times as wide); no: blocks of two 3×3 convolutions"
    )
    channels: tuple[int, ...] = option((64, 128, 256, 512), "channels of the 3×3 convolutions in each stage")
    img_size: int | tuple[int, int] = option(224, "intended side of the images; the model takes images of any size")
    in_chans: int = option(3, "channels of the images")
    num_classes: int = option(1000, "number of classes; 0: no head, the model returns the pooled features")
    small_stem: bool = option(False, "for images of about 32×32: conv1 is 3×3 with stride 1, without the max pool")
    output_stride: int = option(32, "32, 16 or 8: later stages use dilated kernels instead of a larger stride")
    features_only: bool = option(False, "return the feature maps of out_indices as a list; no head")
    out_indices: tuple[int, ...] = option(
        (0, 1, 2, 3, 4), "maps to return: 0, before the max pool; 1…4, after that stage; later stages are left out"
    )
    frozen_bn: bool = option(False, "freeze batch norm: its statistics, weight and bias never change")
    zero_init_last: bool = option(True, "whether the weight of the last norm of every block starts at zero")
    drop_rate: float = option(0.0, "dropout rate before the head")
    drop_path_rate: float = option(0.0, "stochastic depth rate of the last block; rises linearly from 0 at the first")


#   layers: conv2_x conv3_x conv4_x conv5_x   each block        Table 1 of the paper
PRESETS = {
    "resnet18":  ResNetConfig(layers=(2, 2,  2, 2), bottleneck=False),
    "resnet34":  ResNetConfig(layers=(3, 4,  6, 3), bottleneck=False),
    "resnet50":  ResNetConfig(layers=(3, 4,  6, 3), bottleneck=True),
    "resnet101": ResNetConfig(layers=(3, 4, 23, 3), bottleneck=True),
    "resnet152": ResNetConfig(layers=(3, 8, 36, 3), bottleneck=True),
}


def _norm(config: ResNetConfig, channels: int) -> nn.BatchNorm2d | nn.FrozenBatchNorm2d:
    return nn.FrozenBatchNorm2d(channels) if config.frozen_bn else nn.BatchNorm2d(channels)


def _downsample(config: ResNetConfig, in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """The shortcut's projection W_s of eq. 2, used only if shapes differ (the paper's option B)."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), _norm(config, out_channels)
    )


class BasicBlock(nn.Module):
    """y = F(x) + x with F of two 3×3 convolutions (Figure 5, left).

    x (B, in, H, W) → (B, width, H / stride, W / stride). dilations: of the two convolutions.
    """

    expansion = 1

    def __init__(
        self, config: ResNetConfig, in_channels: int, width: int, stride: int, dilations: tuple[int, int],
        drop_path: float,
    ):
        first, second = dilations
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=first, dilation=first, bias=False)
        self.bn1 = _norm(config, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=second, dilation=second, bias=False)
        self.bn2 = _norm(config, width)
        self.downsample = _downsample(config, in_channels, width, stride)
        self.drop_path = nn.DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = ops.relu(self.bn1(self.conv1(x)))                       # (B, width, H', W')
        x = self.bn2(self.conv2(x))
        return ops.relu(self.drop_path(x) + shortcut)               # eq. 1; eq. 2 with W_s

    def last_norm(self) -> nn.BatchNorm2d | nn.FrozenBatchNorm2d:
        return self.bn2


class Bottleneck(nn.Module):
    """y = F(x) + x with F squeezing the channels, a 3×3 convolution, and widening again (Figure 5, right).

    x (B, in, H, W) → (B, 4 width, H / stride, W / stride), at about the cost of a BasicBlock of that width.
    """

    expansion = 4

    def __init__(
        self, config: ResNetConfig, in_channels: int, width: int, stride: int, dilations: tuple[int, int],
        drop_path: float,
    ):
        out_channels, dilation = width * self.expansion, dilations[0]
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = _norm(config, width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = _norm(config, width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = _norm(config, out_channels)
        self.downsample = _downsample(config, in_channels, out_channels, stride)
        self.drop_path = nn.DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = ops.relu(self.bn1(self.conv1(x)))                       # (B, width, H, W)
        x = ops.relu(self.bn2(self.conv2(x)))                       # (B, width, H', W')
        x = self.bn3(self.conv3(x))                                 # (B, 4 width, H', W')
        return ops.relu(self.drop_path(x) + shortcut)

    def last_norm(self) -> nn.BatchNorm2d | nn.FrozenBatchNorm2d:
        return self.bn3


class ResNet(nn.Module):
    """images (B, C, H, W), an array or a Tensor → logits (B, num_classes); with features_only, a list of feature maps.

    feature_strides, feature_channels: of the maps at `out_indices`, in their order.
    Raises ScratchvitError for inconsistent options, and for images with another number of channels than in_chans.
    """

    def __init__(self, config: ResNetConfig, seed: int = 0):
        _check(config)
        self.config = config
        if config.small_stem:
            self.conv1 = nn.Conv2d(config.in_chans, 64, 3, padding=1, bias=False)
        else:
            self.conv1 = nn.Conv2d(config.in_chans, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = _norm(config, 64)
        strides, channels = [1 if config.small_stem else 2], [64]       # of the map before the pool, and after stages

        Block = Bottleneck if config.bottleneck else BasicBlock
        drop_paths = iter(np.linspace(0, config.drop_path_rate, sum(config.layers)).tolist())
        last_stage = max(config.out_indices) if config.features_only else 4
        stage_stride, dilation = 1 if config.small_stem else 4, 1
        for stage, depth in enumerate(config.layers[:last_stage], start=1):
            width, stride, before = config.channels[stage - 1], 1 if stage == 1 else 2, dilation
            if stage_stride * stride > config.output_stride:
                # Dilation instead of stride: the map keeps its size, and the kernels of all later blocks are spread
                # by a factor of 2, so that they see the same positions as with a stride.
                dilation, stride = dilation * stride, 1
            stage_stride *= stride
            blocks = []
            for i in range(depth):
                in_channels = channels[-1] if i == 0 else width * Block.expansion
                dilations = (before if i == 0 else dilation, dilation)
                blocks.append(Block(config, in_channels, width, stride if i == 0 else 1, dilations, next(drop_paths)))
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            strides.append(stage_stride)
            channels.append(width * Block.expansion)

        self.num_features = channels[-1]
        self.feature_strides = [strides[i] for i in config.out_indices]
        self.feature_channels = [channels[i] for i in config.out_indices]
        self.head_drop = nn.Dropout(config.drop_rate)
        has_head = config.num_classes and not config.features_only
        self.fc = nn.Linear(self.num_features, config.num_classes) if has_head else nn.Identity()

        self.init_weights(np.random.default_rng(seed))
        self.set_generator(Generator(seed))

    def stages(self) -> list[nn.Module]:
        """The stages that this model has, out of layer1 … layer4."""
        return [module for name, module in self.named_children() if name.startswith("layer")]

    def forward_maps(self, x: Tensor) -> list[Any]:
        """images (B, C, H, W) → maps before the max pool and after each stage, each (B, channels, H / s, W / s).

        The first is None if nobody asks for it. The ReLU is then after the max pool: values and gradients are the same,
        since the largest entry of a window remains the largest, and it passes over a quarter of the entries.
        """
        x = check_images(x, (self.config.in_chans, None, None), self.conv1.weight.dtype)
        x = self.bn1(self.conv1(x))                                 # (B, 64, H / 2, W / 2)
        maps: list[Any] = [None]
        if self.config.small_stem or (self.config.features_only and 0 in self.config.out_indices):
            x = maps[0] = ops.relu(x)
        if not self.config.small_stem:
            x = ops.max_pool2d(x, 3, stride=2, padding=1)           # (B, 64, H / 4, W / 4)
            x = ops.relu(x) if maps[0] is None else x
        for stage in self.stages():
            x = stage(x)
            maps.append(x)
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        """images (B, C, H, W) → the map of the last stage (B, num_features, H / 32, W / 32)."""
        return self.forward_maps(x)[-1]

    def forward_head(self, x: Tensor) -> Tensor:
        """The last map → logits (B, num_classes)."""
        return self.fc(self.head_drop(x.mean(dim=(2, 3))))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        maps = self.forward_maps(x)
        return [maps[i] for i in self.config.out_indices] if self.config.features_only else self.forward_head(maps[-1])

    def init_weights(self, rng: np.random.Generator) -> None:
        """He initialisation for convolutions (arXiv 1502.01852), PyTorch's for the head; last norms start at zero."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.assign(init.kaiming_normal(module.weight.shape, rng, mode="fan_out"))
            # A frozen norm that starts at zero would stay zero, and so would the output of its block.
            if isinstance(module, BasicBlock | Bottleneck) and self.config.zero_init_last:
                weight = module.last_norm().weight
                if isinstance(weight, nn.Parameter):
                    weight.assign(0)
        if isinstance(self.fc, nn.Linear):
            bound = self.num_features**-0.5
            self.fc.weight.assign(init.uniform(self.fc.weight.shape, rng, bound))
            assert self.fc.bias is not None
            self.fc.bias.assign(init.uniform(self.fc.bias.shape, rng, bound))

    def layer_names(self) -> list[tuple[str, ...]]:
        """The modules of each layer, from the image to the head, for `layer_decay` (see `optim.param_groups`)."""
        blocks = [
            (f"layer{stage}.{i}",)
            for stage, modules in enumerate(self.stages(), start=1)
            for i, _ in enumerate(modules.named_children())
        ]
        return [("conv1", "bn1"), *blocks, ("fc",)]


def _check(config: ResNetConfig) -> None:
    """Raise ScratchvitError for inconsistent options."""
    check_numbers(config)
    if len(config.layers) != 4 or min(config.layers) < 1:
        raise ScratchvitError(f"layers must be numbers of blocks for four stages, at least 1 each, not {config.layers}")
    if len(config.channels) != 4 or min(config.channels) < 1:
        raise ScratchvitError(f"channels must be the widths of four stages, each at least 1, not {config.channels}")
    if config.output_stride not in (8, 16, 32):
        raise ScratchvitError(f"output_stride must be 32, 16 or 8, not {config.output_stride}")
    if config.small_stem and config.output_stride != 32:
        raise ScratchvitError("with small_stem the last map has stride 8: do not set output_stride")
    check_out_indices(config)


register(ResNet, PRESETS, paper="ResNet, arXiv 1512.03385")
