"""DETR: end-to-end object detection with Transformers (Carion et al., ECCV 2020, arXiv 2005.12872).

Earlier detectors classify about a hundred thousand candidate boxes (anchor boxes), placed by hand on a grid, and remove
duplicates afterwards by non-maximum suppression (NMS). What changes: DETR predicts the objects of an image as a *set*.
N outputs, computed in parallel, each give one class and one box, or "no object". In training every true object is
assigned to exactly one of them (detection/matcher.py), and all others learn "no object" (detection/criterion.py), so
that there are no duplicates to remove.

    images → ResNet → 1×1 convolution → encoder → decoder → classes and boxes
                          sine positions ↗          ↖ object queries, which are learned

    paper      here                       shape at ResNet-50, 800×1066
    x_img      images                     (B, 3, 800, 1066)
    f          features of the backbone   (B, C, H, W) = (B, 2048, 25, 34)
    z_0        input_proj(f), flattened   (B, HW, D) = (B, 850, 256)
    P          sine_positions             (B, HW, D): one per image, because each is padded differently
               query_embed                (N, D): the object queries
               output of a decoder layer  (B, N, D)
    p̂(c)       pred_logits, class_embed   (B, N, num_classes + 1); the last is ∅, "no object"
    b̂          pred_boxes, bbox_embed     (B, N, 4): centre x, y, width, height, in 0 … 1 of the image without padding

Symbols of all files about DETR, which are detr.py, detr_transformer.py, detr_queries.py, detr_extended.py, dab_detr.py,
and in detection/ matcher.py, criterion.py and postprocess.py:

    B          images in a batch                        N    object queries of an image: num_queries
    H0, W0     height and width of an image             K    groups of N queries: query_groups (1 in the paper)
    H, W, C    height, width, channels of its map       M    noised objects of an image (0 in the paper)
    D          width of a token: hidden_dim (paper: d)  Q    all queries of the decoder: M + K·N (N in the paper)
    F          hidden width of MLPs: dim_feedforward    S    keys of an attention: HW, or Q
    L          layers of the decoder: dec_layers        T, n objects in a batch, in one image
    c, ∅       a class; "no object"                     P    matched pairs of a query and an object
    b, b̂       true and predicted box                   p̂    predicted probability

The same heads read the output of every decoder layer, and each is trained (auxiliary losses, §3.2).

DC5: the last stage of the ResNet dilates its kernels instead of halving the map, for small objects. That makes 4 times
as many tokens, and the encoder's attention 16 times as large.

Names of parameters and options are those of the authors' code. Exceptions are the options that choose the ResNet
(layers, bottleneck, channels, stages; there, `backbone` names it), and `num_classes`: here the number of real classes.
The authors also freeze conv1 and layer1 of a pretrained backbone and train the rest of it with a tenth of the learning
rate; these are settings of the training. Options that are not the paper's are in detr_extended.py, which registers the
presets. `scratchvit inspect RUN` draws the attention of a trained model.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from scratchvit import backend, nn, ops
from scratchvit.backend import Array, array_module, asarray, is_array
from scratchvit.errors import ScratchvitError
from scratchvit.models.checks import check_numbers
from scratchvit.models.detr_transformer import Transformer
from scratchvit.models.resnet import ResNet, ResNetConfig
from scratchvit.nn import init
from scratchvit.options import option
from scratchvit.random import Generator
from scratchvit.tensor import Tensor


@dataclass(frozen=True)
class DETRConfig:
    """The sizes of a DETR."""

    detects = True      # not a field: the model predicts boxes
    focal = False       # not a field: classes are predicted by a softmax with ∅, not by sigmoids

    img_size: int | tuple[int, int] = option(
        (800, 1066), "image size for `scratchvit cost`, as (height, width); the model takes images of any size"
    )
    in_chans: int = option(3, "channels of the images")
    num_classes: int = option(
        91, "number of classes, without \"no object\"; 91 in the authors' COCO weights, as ids go up to 90"
    )
    layers: tuple[int, ...] = option((3, 4, 6, 3), "ResNet: blocks in each stage")
    bottleneck: bool = option(
        True, "ResNet: blocks of 1×1, 3×3 and 1×1 convolutions; no: blocks of two 3×3 convolutions"
    )
    channels: tuple[int, ...] = option(
        (64, 128, 256, 512), "ResNet: channels of the 3×3 convolutions in each stage"
    )
    stages: int = option(4, "ResNet: number of stages, 4 (a map of stride 32) or 3 (stride 16)")
    dilation: bool = option(False, "DC5: dilated convolutions in the last stage, which halves the stride of its map")
    frozen_bn: bool = option(True, "freeze batch norm, for a pretrained backbone; turn off to train from scratch")
    num_queries: int = option(100, "number of object queries: the maximum number of detected objects")
    hidden_dim: int = option(256, "channels (width) of a token")
    nheads: int = option(8, "attention heads; must divide hidden_dim")
    enc_layers: int = option(6, "number of encoder layers")
    dec_layers: int = option(6, "number of decoder layers")
    dim_feedforward: int = option(2048, "hidden width of the MLPs")
    dropout: float = option(0.1, "dropout rate of attention probabilities, in the MLPs, and before residual sums")
    normalize_before: bool = option(False, "pre-norm: layer norm before attention and MLP, instead of after the sum")
    aux_loss: bool = option(True, "return the predictions of all decoder layers, for auxiliary losses")

    @property
    def num_logits(self) -> int:
        """The number of logits of a query: num_classes, and one for "no object"."""
        return self.num_classes + 1

    def check(self) -> None:
        """Raise ScratchvitError for options that are out of range or do not fit together."""
        check_numbers(self)
        for name in ("num_classes", "num_queries", "hidden_dim", "nheads", "dec_layers", "dim_feedforward"):
            if getattr(self, name) < 1:
                raise ScratchvitError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.enc_layers < 0:
            raise ScratchvitError(f"enc_layers must be at least 0, 0 for no encoder, not {self.enc_layers}")
        if not 0 <= self.dropout < 1:
            raise ScratchvitError(f"dropout is a probability and must be in [0, 1), not {self.dropout}")
        if self.hidden_dim % 4:
            raise ScratchvitError(
                f"hidden_dim must be a multiple of 4, for sines and cosines of y and x, not {self.hidden_dim}"
            )
        if self.hidden_dim % self.nheads:
            raise ScratchvitError(
                f"hidden_dim {self.hidden_dim} is not divisible by {self.nheads} heads: choose a multiple"
            )
        if self.stages not in (3, 4):
            raise ScratchvitError(f"stages must be 4 or 3, the number of stages of the ResNet, not {self.stages}")


# Not in the paper: for training from scratch on pictures of about 96×96, with a map of stride 8.
TINY = DETRConfig(
    img_size=96, layers=(1, 1, 1, 1), bottleneck=False, channels=(32, 64, 128, 256), stages=3, dilation=True,
    frozen_bn=False, num_queries=25, hidden_dim=128, enc_layers=1, dec_layers=3, dim_feedforward=256, dropout=0.0,
)

#                                    conv2_x … conv5_x                                     Table 1: AP   GFLOPs
PRESETS = {
    "detr_tiny":          TINY,
    "detr_resnet18":      DETRConfig(layers=(2, 2,  2, 2), bottleneck=False),
    "detr_resnet34":      DETRConfig(layers=(3, 4,  6, 3), bottleneck=False),
    "detr_resnet50":      DETRConfig(layers=(3, 4,  6, 3)),                                 # 42.0       86
    "detr_resnet50_dc5":  DETRConfig(layers=(3, 4,  6, 3), dilation=True),                  # 43.3      187
    "detr_resnet101":     DETRConfig(layers=(3, 4, 23, 3)),                                 # 43.5      152
    "detr_resnet101_dc5": DETRConfig(layers=(3, 4, 23, 3), dilation=True),                  # 44.9      253
}


class Backbone(nn.Module):
    """A ResNet up to its last feature map: images (B, in_chans, H0, W0) → (f (B, C, H, W), visible).

    mask: padding mask, bool (B, H0, W0), True on padding; None: no padding.
    visible: bool (B, H, W), False on padding; None without a mask.
    """

    def __init__(self, config: DETRConfig, seed: int):
        stride = 2 ** (config.stages + 1)
        self.body = ResNet(
            ResNetConfig(
                layers=config.layers, bottleneck=config.bottleneck, channels=config.channels, in_chans=config.in_chans,
                output_stride=stride // 2 if config.dilation else stride, frozen_bn=config.frozen_bn,
                features_only=True, out_indices=(config.stages,),
            ),
            seed,
        )
        self.num_channels = self.body.feature_channels[0]

    def forward(self, x: Tensor | Array, mask: Any = None) -> tuple[Tensor, Array | None]:
        (features,) = self.body(x)
        return features, None if mask is None else visible_features(mask, x.shape, features.shape)


def visible_features(mask: Any, images: tuple[int, ...], features: tuple[int, ...]) -> Array:
    """Resize a padding mask, bool (B, H0, W0), True on padding, to the feature map: bool (B, H, W), False on padding.

    Each feature takes the value of the nearest pixel, as in the authors' code.
    images, features: the shapes (B, C, height, width) of the images and of the feature map.
    Raises ScratchvitError for a mask that is not bool or has another shape, and for an image that is all padding (only
    if the mask is on the host: a check on the device would wait for it).
    """
    padding = mask.data if isinstance(mask, Tensor) else mask if is_array(mask) else np.asarray(mask)
    expected = (images[0], *images[2:])
    if padding.shape != expected or padding.dtype != bool:
        raise ScratchvitError(
            f"the padding mask of these images must be bool of shape {expected}, True on padding (the opposite of "
            f"Hugging Face's pixel_mask), not {padding.dtype} of shape {padding.shape}"
        )
    nearest = ops.interpolate(padding[:, None].astype(np.float32), size=features[2:])       # (B, 1, H, W)
    visible = nearest.data[:, 0] < 0.5
    if isinstance(visible, np.ndarray) and not (shown := visible.any(axis=(1, 2))).all():
        raise ScratchvitError(
            f"image {np.argmin(shown)} of the batch is padding in all of its {features[2]}×{features[3]} features: its "
            "mask must be False on the image itself; leave out an empty image, or enlarge a tiny one"
        )
    return asarray(visible)


def coordinates(visible: Array, dtype: Any) -> tuple[Array, Array]:
    """The coordinates y and x of each feature, (B, H, W) each, for visible bool (B, H, W), False on padding.

    y is 1, 2, 3, … up to the height of the image without its padding; x likewise.
    """
    xp = array_module(visible)
    return xp.cumsum(visible, axis=1, dtype=dtype), xp.cumsum(visible, axis=2, dtype=dtype)


def sine_positions(visible: Array, dim: int, dtype: Any, temperature: float = 10_000) -> Array:
    """Positional embedding of each feature (§A.4): visible bool (B, H, W), False on padding → (B, HW, dim).

    The first half encodes y, the second x; both are normalised to 0 … 1 by the size of the image. See `sine_embedding`.
    """
    y, x = coordinates(visible, dtype)
    parts = Tensor(y / (y[:, -1:] + 1e-6)), Tensor(x / (x[:, :, -1:] + 1e-6))               # (B, H, W) each
    waves = sine_embedding(ops.stack(parts, -1), dim // 2, temperature)                     # (B, H, W, 2, dim / 2)
    return waves.reshape(len(visible), -1, dim).data                                        # (B, HW, dim)


def sine_embedding(x: Tensor, dim: int, temperature: float = 10_000) -> Tensor:
    """Numbers in 0 … 1 (…) → (…, dim): sines and cosines, interleaved, of dim / 2 frequencies.

    The first frequency has one period from 0 to 1; the last is nearly 1 / temperature of the first.
    """
    xp = array_module(x.data)
    omega = 2 * math.pi * temperature ** (-xp.arange(dim // 2, dtype=x.dtype) / (dim // 2))
    angles = x[..., None] * omega                                                           # (…, dim / 2)
    return ops.stack([ops.sin(angles), ops.cos(angles)], -1).reshape(*x.shape, dim)         # (…, dim / 2, 2) → (…, dim)


class MLP(nn.Module):
    """The box head: linear layers with ReLU between them. (…, in) → (…, out)."""

    def __init__(self, in_features: int, hidden_features: int, out_features: int, depth: int):
        sizes = [in_features, *[hidden_features] * (depth - 1), out_features]
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in itertools.pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.layers
        x = first(x)
        for layer in others:
            x = layer(ops.relu(x))
        return x


def init_linear(layer: nn.Linear | nn.Conv2d, rng: np.random.Generator) -> None:
    """Draw weights and biases uniformly in ± 1 / √(number of inputs), as in PyTorch's layers."""
    assert layer.bias is not None
    bound = init.fans(layer.weight.shape)[0] ** -0.5
    layer.weight.assign(init.uniform(layer.weight.shape, rng, bound))
    layer.bias.assign(init.uniform(layer.bias.shape, rng, bound))


Answer: TypeAlias = dict[str, Tensor]
"""{"pred_logits" (B, Q, num_logits), "pred_boxes" (B, Q, 4)} of one decoder layer, for all Q queries."""


class Memory(NamedTuple):
    """The encoder's output, with its positional embedding and masks, for the decoder."""

    features: Tensor            # (B, HW, D)
    pos: Tensor                 # positional embedding (B or 1, HW, D)
    visible: Array              # bool (B or 1, H, W), False on padding
    keys: Array | None          # the same as a mask of keys, bool (B, 1, 1, HW); None: no padding


class DETR(nn.Module):
    """images (B, in_chans, H0, W0), an array or a Tensor → {"pred_logits", "pred_boxes", "aux_outputs"}.

    mask: padding mask, bool (B, H0, W0), True on padding; None: no padding.
    targets, most: not used by the paper's model (see detr_extended.py).
    pred_logits: (B, N, num_classes + 1), the last class being "no object".
    pred_boxes: (B, N, 4), centre x and y, width and height, in 0 … 1 of the image without its padding.
    aux_outputs: a list of dictionaries of these two for all decoder layers except the last, in order (empty with
        aux_loss=False).

    `ops.record_attention` collects the maps in this order: (B, heads, HW, HW) of every encoder layer, then of every
    decoder layer (B, heads, N, N) and (B, heads, N, HW).
    Raises ScratchvitError if sizes do not fit together, or if images or mask do not fit the model.
    """

    transformer: Any
    temperature = 10_000.0      # of the positional embedding

    def __init__(self, config: DETRConfig, seed: int = 0):
        config.check()
        self.config = config
        # A list, for the authors' names (backbone.0…); their backbone.1 computes positions and has no weights.
        self.backbone = nn.ModuleList([Backbone(config, seed)])
        self.input_proj = nn.Conv2d(self.backbone[0].num_channels, config.hidden_dim, 1)
        self.add_heads()
        self.add_transformer()
        self.init_weights(np.random.default_rng(seed))
        self.set_generator(Generator(seed))

    def add_heads(self) -> None:
        D = self.config.hidden_dim
        self.class_embed = nn.Linear(D, self.config.num_logits)
        self.bbox_embed = MLP(D, D, 4, depth=3)

    def add_transformer(self) -> None:
        config, D = self.config, self.config.hidden_dim
        self.transformer = Transformer(
            D, config.nheads, config.enc_layers, config.dec_layers, config.dim_feedforward, config.dropout,
            config.normalize_before,
        )
        self.query_embed = nn.Embedding(config.num_queries, D)

    def forward(self, x: Tensor | Array, mask: Any = None, targets: Any = None, most: Any = None) -> dict[str, Any]:
        features, visible = self.backbone[0](x, mask)                       # (B, C, H, W); bool (B, H, W), or None
        memory = self.encode(features, visible)                             # its features (B, HW, D)
        queries = self.query_embed.weight                                   # (N, D)
        content = self.zeros(len(features), len(queries))                   # (B, N, D)
        states = self.transformer.decoder(content, queries, memory.features, memory.pos, memory.keys)   # (L, B, N, D)
        layers = self.predict(states)
        *earlier, last = layers if self.config.aux_loss else layers[-1:]
        return {**last, "aux_outputs": earlier}

    def predict(self, states: Tensor) -> list[Answer]:
        """The outputs of the decoder's layers (L, B, Q, D) → classes and boxes of each, by the same heads, in float32.
        """
        logits, boxes = ops.to_float32(self.class_embed(states)), ops.to_float32(self.bbox_embed(states)).sigmoid()
        return [{"pred_logits": of_classes, "pred_boxes": of_boxes}
                for of_classes, of_boxes in zip(logits.unbind(0), boxes.unbind(0))]

    def encode(self, features: Tensor, visible: Array | None) -> Memory:
        """features (B, C, H, W), visible bool (B, H, W) or None → the encoder's output."""
        B, _, H, W = features.shape
        keys = None if visible is None else visible.reshape(B, 1, 1, H * W)         # (B, H, W) → (B, 1, 1, HW)
        if visible is None:
            visible = backend.current().xp.ones((1, H, W), bool)
        pos = Tensor(sine_positions(visible, self.config.hidden_dim, self.class_embed.weight.dtype, self.temperature))
        src = self.input_proj(features).flatten(2).transpose(1, 2)                  # (B, D, H, W) → (B, HW, D)
        return Memory(self.transformer.encoder(src, pos, keys), pos, visible, keys)

    def zeros(self, images: int, queries: int) -> Tensor:
        """The decoder's initial content, (images, queries, D)."""
        shape = images, queries, self.config.hidden_dim
        return Tensor(backend.current().xp.zeros(shape, self.class_embed.weight.dtype))

    def init_weights(self, rng: np.random.Generator) -> None:
        """Draw all weights except the backbone's, which initialises itself."""
        init_linear(self.input_proj, rng)
        self.init_heads(rng)
        self.init_transformer(rng)

    def init_heads(self, rng: np.random.Generator) -> None:
        for layer in (self.class_embed, *self.bbox_embed.layers):
            init_linear(layer, rng)

    def init_transformer(self, rng: np.random.Generator) -> None:
        """Draw the queries from a standard normal distribution, then the weights of the Transformer."""
        self.query_embed.weight.assign(init.normal(self.query_embed.weight.shape, rng, 1.0))
        self.transformer.init_weights(rng)

    def no_weight_decay(self) -> set[str]:
        """Parameters that are not weight matrices, so that weight decay is not applied to them."""
        return {"query_embed.weight"}

    def layer_names(self) -> list[tuple[str, ...]]:
        """The modules of each layer, from the image to the heads, for `layer_decay` (see `optim.param_groups`)."""
        *body, _ = self.backbone[0].body.layer_names()              # without its head
        layers: list[tuple[str, ...]] = [tuple(f"backbone.0.body.{name}" for name in names) for names in body]
        layers.append(("input_proj",))
        layers += [(f"transformer.encoder.layers.{i}",) for i in range(self.config.enc_layers)]
        layers[-1] += ("transformer.encoder.norm", "query_embed")
        layers += [(f"transformer.decoder.layers.{i}",) for i in range(self.config.dec_layers)]
        layers[-1] += ("transformer.decoder.norm",)
        return [*layers, ("class_embed", "bbox_embed")]
