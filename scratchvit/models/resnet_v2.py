"""ResNetV2 as in BiT: a ResNet made to be scaled and transferred (Kolesnikov et al., ECCV 2020, arXiv 1912.11370).

ViT was first compared with this model, and it is the CNN in ViT's hybrids (hybrid.py). What changes against ResNet
(1512.03385):

*No batch statistics* (BiT §2). If a large model is distributed over many devices, batch norm sees too few images on
each, and its running averages fit the training data, not those of a transfer task. Here group norm normalises groups of
channels of one image (1803.08494). Weight standardisation (1903.10520) compensates for the loss against batch norm: the
kernel of every output channel o is normalised to mean 0 and standard deviation 1,

    Ŵ_o = (W_o - μ_o) / √(σ_o² + ε),   μ_o and σ_o² over the in · k · k numbers of W_o

*Pre-activation* (He et al. 2016, arXiv 1603.05027). Norm and ReLU are before each convolution instead of after it, so
that there is nothing on the shortcut, and the sum of the outputs of all blocks reaches the last norm unchanged.

*Width.* "×3" has three times the channels everywhere.

    paper     here              shape at R50x1, 224×224
    x         images            (B, 3, 224, 224)
              stem              (B, 64, 56, 56): 7×7 convolution and 3×3 max pooling, each of stride 2
    stage i   stages.i          (B, 256, 56, 56), (B, 512, 28, 28), (B, 1024, 14, 14), (B, 2048, 7, 7)
    W         conv?.weight      (out, in, k, k), standardised in every forward pass
              norm, head.fc     group norm and ReLU, mean over all positions, 1×1 convolution (1000, 2048, 1, 1)

Names of parameters and options are timm's, so that its checkpoints load here and ours there; padding_same replaces its
stem_type and conv_layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scratchvit import nn, ops
from scratchvit.errors import ScratchvitError
from scratchvit.models.checks import check_images, check_numbers, check_out_indices
from scratchvit.models.registry import register
from scratchvit.nn import init
from scratchvit.options import option
from scratchvit.random import Generator
from scratchvit.tensor import Tensor

GROUPS = 32                         # of every group norm
STEM_CHANNELS = 64                  # at width 1


@dataclass(frozen=True)
class ResNetV2Config:
    """The sizes of a ResNetV2."""

    img_size: int | tuple[int, int] = option(224, "intended side of the images; the model takes images of any size")
    in_chans: int = option(3, "channels of the images")
    num_classes: int = option(1000, "number of classes; 0: no head, the model returns the pooled features")
    layers: tuple[int, ...] = option((3, 4, 6, 3), "blocks in each stage, each of three convolutions")
    channels: tuple[int, ...] = option(
        (256, 512, 1024, 2048), "output channels of each stage, before multiplication by width_factor"
    )
    width_factor: int = option(1, "multiplies the number of channels in every layer")
    preact: bool = option(True, "norm and ReLU before each convolution; no: after it, as in ViT's hybrids")
    padding_same: bool = option(False, "TensorFlow's \"SAME\" padding, which can be uneven; no: k // 2 on each side")
    global_pool: str = option("avg", "\"avg\", or \"\" for the last feature map without pooling and head")
    features_only: bool = option(False, "return the feature maps of out_indices as a list; no head")
    out_indices: tuple[int, ...] = option(
        (0, 1, 2, 3, 4), "maps to return: 0, before the max pool; 1…4, after that stage; later stages are left out"
    )
    drop_rate: float = option(0.0, "dropout rate before the head")
    drop_path_rate: float = option(0.0, "stochastic depth rate of the last block; rises linearly from 0 at the first")


#    name              layers         width  pixels of timm's default weights
_SIZES = {
    "resnetv2_50x1_bit":  ((3, 4,  6, 3), 1, 224),
    "resnetv2_50x3_bit":  ((3, 4,  6, 3), 3, 448),
    "resnetv2_101x1_bit": ((3, 4, 23, 3), 1, 448),
    "resnetv2_101x3_bit": ((3, 4, 23, 3), 3, 448),
    "resnetv2_152x2_bit": ((3, 8, 36, 3), 2, 224),
    "resnetv2_152x4_bit": ((3, 8, 36, 3), 4, 480),
}

PRESETS = {
    name: ResNetV2Config(img_size=size, layers=layers, width_factor=width)
    for name, (layers, width, size) in _SIZES.items()
}


class StdConv2d(nn.Conv2d):
    """A convolution with weight standardisation, without bias, which the following norm would remove."""

    def __init__(self, config: ResNetV2Config, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        padding = "same" if config.padding_same else kernel_size // 2
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return ops.conv2d(x, ops.weight_standardization(self.weight, eps=1e-8), None, *self._options())


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm with 32 groups, for any width."""
    return nn.GroupNorm(GROUPS, channels)


class Stem(nn.Module):
    """The stem, of stride 4: images (B, C, H, W) → (B, 64·width, H/4, W/4), each side rounded up."""

    stride = 4

    def __init__(self, config: ResNetV2Config):
        self.config = config
        self.num_features = STEM_CHANNELS * config.width_factor
        self.conv = StdConv2d(config, config.in_chans, self.num_features, 7, stride=2)
        self.norm = nn.Identity() if config.preact else group_norm(self.num_features)

    def before_pooling(self, x: Tensor) -> Tensor:
        """The convolution of the stem: images (B, C, H, W) → (B, 64·width, H/2, W/2)."""
        x = self.conv(x)
        return x if self.config.preact else ops.relu(self.norm(x))

    def pool(self, x: Tensor) -> Tensor:
        """3×3 max pooling with stride 2."""
        if self.config.padding_same:
            return ops.max_pool2d(x, 3, stride=2, padding="same")
        return ops.max_pool2d(x.pad((1, 1, 1, 1)), 3, stride=2)     # in BiT the zero padding takes part in the maximum

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.before_pooling(x))

    def init_weights(self, rng: np.random.Generator) -> None:
        """Initialise the convolution as PyTorch does; timm does so for a stem without stages."""
        self.conv.weight.assign(init.kaiming_uniform(self.conv.weight.shape, rng, a=5**0.5))


class Downsample(nn.Module):
    """The shortcut of the first block of a stage, which changes the shape: a 1×1 convolution."""

    def __init__(self, config: ResNetV2Config, in_channels: int, channels: int, stride: int):
        self.conv = StdConv2d(config, in_channels, channels, 1, stride)
        self.norm = nn.Identity() if config.preact else group_norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class PreActBottleneck(nn.Module):
    """A pre-activation bottleneck block, x + F(x): F reduces the channels to a quarter, applies 3×3, and expands.

    x (B, in_channels, H, W) → (B, channels, H / stride, W / stride). first: of its stage, with a convolved shortcut.
    """

    def __init__(
        self, config: ResNetV2Config, in_channels: int, channels: int, stride: int, drop_path: float, first: bool
    ):
        narrow = channels // 4
        self.downsample = Downsample(config, in_channels, channels, stride) if first else None
        self.norm1 = group_norm(in_channels)
        self.conv1 = StdConv2d(config, in_channels, narrow, 1)
        self.norm2 = group_norm(narrow)
        self.conv2 = StdConv2d(config, narrow, narrow, 3, stride)
        self.norm3 = group_norm(narrow)
        self.conv3 = StdConv2d(config, narrow, channels, 1)
        self.drop_path = nn.DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = ops.relu(self.norm1(x))
        shortcut = x if self.downsample is None else self.downsample(y)
        y = self.conv1(y)                                           # (B, channels/4, H, W)
        y = self.conv2(ops.relu(self.norm2(y)))                     # (B, channels/4, H/s, W/s)
        y = self.conv3(ops.relu(self.norm3(y)))                     # (B, channels, H/s, W/s)
        return shortcut + self.drop_path(y)


class Bottleneck(nn.Module):
    """A bottleneck block with norm and ReLU after each convolution, as in the first ResNet."""

    def __init__(
        self, config: ResNetV2Config, in_channels: int, channels: int, stride: int, drop_path: float, first: bool
    ):
        narrow = channels // 4
        self.downsample = Downsample(config, in_channels, channels, stride) if first else None
        self.conv1 = StdConv2d(config, in_channels, narrow, 1)
        self.norm1 = group_norm(narrow)
        self.conv2 = StdConv2d(config, narrow, narrow, 3, stride)
        self.norm2 = group_norm(narrow)
        self.conv3 = StdConv2d(config, narrow, channels, 1)
        self.norm3 = group_norm(channels)
        self.drop_path = nn.DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = ops.relu(self.norm1(self.conv1(x)))                     # (B, channels/4, H, W)
        y = ops.relu(self.norm2(self.conv2(y)))                     # (B, channels/4, H/s, W/s)
        y = self.norm3(self.conv3(y))                               # (B, channels, H/s, W/s)
        return ops.relu(shortcut + self.drop_path(y))


class Stage(nn.Module):
    """The blocks of one resolution. The first one changes the number of channels and, by its stride, the resolution."""

    def __init__(
        self, config: ResNetV2Config, in_channels: int, channels: int, stride: int, drop_paths: list[float]
    ):
        block = PreActBottleneck if config.preact else Bottleneck
        first, *others = drop_paths
        self.blocks = nn.Sequential(
            block(config, in_channels, channels, stride, first, first=True),
            *(block(config, channels, channels, 1, drop_path, first=False) for drop_path in others),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class Head(nn.Module):
    """The head: mean over all positions, then a 1×1 convolution. (B, C, H, W) → (B, num_classes)."""

    def __init__(self, config: ResNetV2Config, channels: int):
        self.drop = nn.Dropout(config.drop_rate)
        has_head = config.num_classes and not config.features_only
        self.fc = nn.Conv2d(channels, config.num_classes, 1) if has_head else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(dim=(2, 3), keepdim=True)                        # (B, C, 1, 1)
        return self.fc(self.drop(x)).flatten(1)


class ResNetV2(nn.Module):
    """images (B, C, H, W) of any size, an array or a Tensor → logits (B, num_classes).

    With features_only it returns a list of feature maps, without the last norm; with global_pool="", the last map.

    feature_strides, feature_channels: of the maps at `out_indices`, in their order.
    Raises ScratchvitError for inconsistent options, and for images with another number of channels than in_chans.
    """

    def __init__(self, config: ResNetV2Config, seed: int = 0):
        _check(config)
        self.config = config
        widths = [channels * config.width_factor for channels in config.channels]
        drop_paths = np.linspace(0, config.drop_path_rate, sum(config.layers)).tolist()
        last_stage = max(config.out_indices) if config.features_only else len(config.layers)

        self.stem = Stem(config)
        channels, strides = [self.stem.num_features], [2]           # of each feature map
        stages = []
        for i, layers in enumerate(config.layers[:last_stage]):
            rates, drop_paths = drop_paths[:layers], drop_paths[layers:]
            stages.append(Stage(config, channels[-1], widths[i], 2 if i else 1, rates))
            channels.append(widths[i])
            strides.append(self.stem.stride << i)
        self.stages = nn.Sequential(*stages)
        self.num_features, self.stride = channels[-1], strides[-1]
        indices = config.out_indices if config.features_only else range(len(channels))
        self.feature_strides = [strides[i] for i in indices]
        self.feature_channels = [channels[i] for i in indices]
        has_norm = config.preact and not config.features_only
        self.norm = group_norm(self.num_features) if has_norm else nn.Identity()
        self.head = Head(config, self.num_features)

        self.init_weights(np.random.default_rng(seed))
        self.set_generator(Generator(seed))

    def forward_maps(self, x: Tensor) -> list[Tensor]:
        """images (B, C, H, W) → maps before the max pool and after each stage, each (B, channels, H / s, W / s)."""
        x = check_images(x, (self.config.in_chans, None, None), self.stem.conv.weight.dtype)
        maps = [self.stem.before_pooling(x)]
        x = self.stem.pool(maps[0])
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        """images (B, C, H, W) → the map of the last stage (B, num_features, H / 32, W / 32), normalised if preact."""
        x = self.forward_maps(x)[-1]
        return x if isinstance(self.norm, nn.Identity) else ops.relu(self.norm(x))

    def forward_head(self, x: Tensor) -> Tensor:
        """The last map → logits (B, num_classes)."""
        return self.head(x) if self.config.global_pool else x

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        if self.config.features_only:
            maps = self.forward_maps(x)
            return [maps[i] for i in self.config.out_indices]
        return self.forward_head(self.forward_features(x))

    def init_weights(self, rng: np.random.Generator) -> None:
        """He initialisation for kernels, although their scale has no effect; standard deviation 0.01 for the head.

        Biases are zero. In blocks without pre-activation, the weight of the last norm is zero, so that every block
        starts as an identity (arXiv 1706.02677, §5.1), as in Google's hybrids; in timm it is one.
        """
        for module in self.modules():
            if isinstance(module, StdConv2d):
                module.weight.assign(init.kaiming_normal(module.weight.shape, rng, mode="fan_out"))
            elif isinstance(module, Bottleneck):
                module.norm3.weight.assign(0)
            elif isinstance(module, Head) and isinstance(module.fc, nn.Conv2d):
                module.fc.weight.assign(init.normal(module.fc.weight.shape, rng, std=0.01))
                assert module.fc.bias is not None
                module.fc.bias.assign(0)

    def layer_names(self) -> list[tuple[str, ...]]:
        """The modules of each layer, from the image to the head, for `layer_decay` (see `optim.param_groups`)."""
        layers: list[tuple[str, ...]] = [("stem",)]
        for i, stage in enumerate(self.stages):
            layers += [(f"stages.{i}.blocks.{j}",) for j in range(len(stage.blocks))]
        layers[-1] += ("norm",)
        return [*layers, ("head",)]


def _check(config: ResNetV2Config) -> None:
    """Raise ScratchvitError for inconsistent options."""
    stages, narrowest = len(config.channels), 4 * GROUPS
    check_numbers(config)
    if not 1 <= len(config.layers) <= stages or min(config.layers) < 1:
        raise ScratchvitError(f"layers must be one to {stages} numbers of blocks, each at least 1, not {config.layers}")
    if any(channels * config.width_factor % narrowest for channels in config.channels):
        raise ScratchvitError(
            f"the narrow part of a block, a quarter of its channels, is normalised in {GROUPS} groups: channels × "
            f"width_factor must be multiples of {narrowest}, not {config.channels} × {config.width_factor}"
        )
    if config.global_pool not in ("avg", "") or (config.num_classes and not config.global_pool):
        raise ScratchvitError(
            f'global_pool is "avg", or "" with num_classes=0, not {config.global_pool!r} with {config.num_classes}'
        )
    check_out_indices(config)


register(ResNetV2, PRESETS, paper="BiT, arXiv 1912.11370")
