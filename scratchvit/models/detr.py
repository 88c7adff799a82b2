"""DETR: end-to-end object detection with Transformers (Carion et al., ECCV 2020, arXiv 2005.12872).

A detector used to be asked about a hundred thousand candidate boxes, laid over the image by hand, and what it said
twice was struck out afterwards. What changes: the objects of an image are a *set*, and a set is what comes out. N slots
are filled at once; each gives one box and one class, or says that it holds no object. In training every true object is
assigned to one slot (detection/matcher.py), all others must say "none" (criterion.py), so that nothing is said twice.

A CNN sees, an encoder relates what was seen, a decoder asks. Each slot has a learned vector, its *object query*, which
in time comes to ask for objects of certain places and sizes. The Transformer stands in detr_transformer.py.

    paper      here                       shape at ResNet-50, 800×1066
    x_img      images                     (B, 3, 800, 1066)
    f          features of the backbone   (B, C, H, W) = (B, 2048, 25, 34)
    d          hidden_dim                 256: D in the code
    z_0        input_proj(f), flattened   (B, HW, D) = (B, 850, 256)
    P          sine_positions             (B, HW, D), as the image's padding is its own
    N          num_queries                100
               query_embed                (N, D), the object queries
               what a decoder layer gives (B, N, D)
    p̂(c)       pred_logits, class_embed   (B, N, classes + 1); no object, ∅, is the last
    b̂          pred_boxes, bbox_embed     (B, N, 4): centre x, y, width, height, in 0 … 1 of the image without padding

Every decoder layer is asked for boxes by the same heads, and each of these answers is trained (auxiliary losses, §3.2).

DC5: the last stage of the ResNet dilates its kernels instead of halving the map, for small objects: 4 times the tokens,
16 times the attention of the encoder. Names of parameters are those of the authors' code, options too, but for what
says which ResNet it is (layers, bottleneck, channels, stages: its class there), and for `num_classes`: here the number
of real classes. The authors also keep conv1 and layer1 of a pretrained backbone as they are and let the rest of it
learn ten times slower, which is left to the training.

Five options are not the paper's, and without them this is its model. `focal` tells classes by sigmoids, without ∅. The
others give training more queries, and are told in detr_queries.py: `query_groups`; `denoising`, of which `box_noise`
and `label_noise` say how much. (Queries that are boxes are another model: dab_detr.py.)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from scratchvit import backend, nn, ops
from scratchvit.backend import Array, array_module, asarray, is_array
from scratchvit.errors import ScratchvitError
from scratchvit.models.checks import check_numbers
from scratchvit.models.detr_queries import NoisedObjects, noised_objects, split_outputs, who_sees_whom
from scratchvit.models.detr_transformer import Transformer
from scratchvit.models.registry import register
from scratchvit.models.resnet import ResNet, ResNetConfig
from scratchvit.nn import init
from scratchvit.random import Generator
from scratchvit.tensor import Tensor


@dataclass(frozen=True)
class DETRConfig:
    """The sizes of a DETR."""

    detects = True      # no field: boxes come out, where other models tell the class of a picture

    img_size: int | tuple[int, int] = (800, 1066)   # what its cost is told for; the model takes images of any size
    in_chans: int = 3
    num_classes: int = 91           # real ones. 91: COCO's ids go up to 90, and the authors' head has a place for each
    layers: tuple[int, ...] = (3, 4, 6, 3)          # of the ResNet: blocks of each stage
    bottleneck: bool = True         # of the ResNet: blocks of 1×1, 3×3, 1×1 convolutions; False: of two 3×3
    channels: tuple[int, ...] = (64, 128, 256, 512)     # of the ResNet: of the 3×3 convolutions of each stage
    stages: int = 4                 # of the ResNet: 4, or the first 3, whose map has stride 16 instead of 32
    dilation: bool = False          # DC5: the last stage dilates its kernels, and the map has half the stride
    frozen_bn: bool = True          # whether batch norm never changes, for a trained backbone; from scratch: False
    num_queries: int = 100          # N: the most objects that can be found in an image
    hidden_dim: int = 256           # d: the numbers in a token
    nheads: int = 8                 # M: heads of every attention
    enc_layers: int = 6             # layers of the encoder
    dec_layers: int = 6             # layers of the decoder
    dim_feedforward: int = 2048     # the MLPs' hidden layer
    dropout: float = 0.1            # of attention probabilities, in the MLPs, and before every residual sum
    normalize_before: bool = False  # whether norms stand before attention and MLP, as in a ViT, or after the sum
    aux_loss: bool = True           # whether all decoder layers give boxes, not the last alone

    # Not of the paper: each lets it converge sooner (focal: arXiv 1708.02002; the others: detr_queries.py).
    focal: bool = False             # classes told by sigmoids, and learned by focal loss, instead of a softmax with ∅
    query_groups: int = 1           # K of Group DETR: sets of queries in training, of which the first is used later
    denoising: int = 0              # of DN-DETR: copies of the true objects, with noise, to be restored in training
    box_noise: float = 0.4          # of DN-DETR: by what share of its size a box is moved and resized at most
    label_noise: float = 0.2        # of DN-DETR: share of the classes that are drawn anew


# Not of the paper: for training from scratch on pictures of about 96×96, with a map of stride 8.
TINY = DETRConfig(
    img_size=96, layers=(1, 1, 1, 1), bottleneck=False, channels=(32, 64, 128, 256), stages=3, dilation=True,
    frozen_bn=False, num_queries=25, hidden_dim=128, enc_layers=1, dec_layers=3, dim_feedforward=256, dropout=0.0,
)  # fmt: skip

#                                    conv2_x … conv5_x                                     Table 1: AP   GFLOPs
PRESETS = {
    "detr_tiny":          TINY,
    "detr_resnet18":      DETRConfig(layers=(2, 2,  2, 2), bottleneck=False),
    "detr_resnet34":      DETRConfig(layers=(3, 4,  6, 3), bottleneck=False),
    "detr_resnet50":      DETRConfig(layers=(3, 4,  6, 3)),                                 # 42.0       86
    "detr_resnet50_dc5":  DETRConfig(layers=(3, 4,  6, 3), dilation=True),                  # 43.3      187
    "detr_resnet101":     DETRConfig(layers=(3, 4, 23, 3)),                                 # 43.5      152
    "detr_resnet101_dc5": DETRConfig(layers=(3, 4, 23, 3), dilation=True),                  # 44.9      253
}  # fmt: skip


Answer: TypeAlias = dict[str, Tensor]

RARE = -math.log((1 - 0.01) / 0.01)     # where logits begin with focal: at a probability of 0.01 (1708.02002, §4.1)


class Backbone(nn.Module):
    """A ResNet up to its last map. images (B, in_chans, H0, W0) → (f (B, C, H, W), where f shows the images).

    mask: bool (B, H0, W0), True where an image is padding; None: nowhere. The second is bool (B, H, W), True where f
    shows an image, or None.
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
        )  # fmt: skip
        self.num_channels = self.body.feature_channels[0]

    def forward(self, x: Tensor | Array, mask: Any = None) -> tuple[Tensor, Array | None]:
        (features,) = self.body(x)
        return features, None if mask is None else visible_features(mask, x.shape, features.shape)


def visible_features(mask: Any, images: tuple[int, ...], features: tuple[int, ...]) -> Array:
    """A mask (B, H0, W0), True on padding → bool (B, H, W), True where a feature shows the image.

    A feature shows what the nearest pixel shows, as for the authors. images, features: shapes (B, C, height, width).
    Raises ScratchvitError for a mask that is not bool or of another shape, and for an image that is padding everywhere
    (looked at on the host only: a mask that is on the device is believed, as asking would wait for it).
    """
    padding = mask.data if isinstance(mask, Tensor) else mask if is_array(mask) else np.asarray(mask)
    expected = (images[0], *images[2:])
    if padding.shape != expected or padding.dtype != bool:
        raise ScratchvitError(
            f"the mask of these images is bool of shape {expected}, True where there is padding (Hugging Face's "
            f"pixel_mask is the opposite); it was given {padding.dtype} of shape {padding.shape}"
        )
    nearest = ops.interpolate(padding[:, None].astype(np.float32), size=features[2:])       # (B, 1, H, W)
    visible = nearest.data[:, 0] < 0.5
    if isinstance(visible, np.ndarray) and not (shown := visible.any(axis=(1, 2))).all():
        raise ScratchvitError(
            f"image {np.argmin(shown)} of the batch is padding in all of its {features[2]}×{features[3]} features: its "
            "mask is to be False on the image itself; leave out an image of no size, or make a tiny one larger"
        )
    return asarray(visible)


def places(visible: Array, dtype: Any) -> tuple[Array, Array]:
    """Where each feature is in its image: visible bool (B, H, W) → y and x (B, H, W).

    y counts 1, 2, 3, … up to the height of the image without its padding, x likewise.
    """
    xp = array_module(visible)
    y, x = xp.cumsum(visible, axis=1, dtype=dtype), xp.cumsum(visible, axis=2, dtype=dtype)
    return y, x


def sine_positions(visible: Array, dim: int, dtype: Any, temperature: float = 10_000) -> Array:
    """What tells where each feature is (§A.4): visible bool (B, H, W) → (B, HW, dim).

    The first half of the numbers is of y, the second of x. Both go from 0 to 1 across the image, whatever its size; see
    `sine_embedding`.
    """
    y, x = places(visible, dtype)
    parts = Tensor(y / (y[:, -1:] + 1e-6)), Tensor(x / (x[:, :, -1:] + 1e-6))
    waves = [sine_embedding(part, dim // 2, temperature) for part in parts]                     # (B, H, W, dim / 2)
    return ops.concatenate(waves, -1).reshape(len(visible), -1, dim).data


def sine_embedding(place: Tensor, dim: int, temperature: float = 10_000) -> Tensor:
    """Numbers in 0 … 1 (…) → (…, dim): sines and cosines, in turn, at dim / 2 frequencies.

    The first goes round once from 0 to 1, the last almost 1/temperature of that.
    """
    xp = array_module(place.data)
    omega = 2 * math.pi * temperature ** (-xp.arange(dim // 2, dtype=place.dtype) / (dim // 2))
    angles = place[..., None] * omega                                                           # (…, dim / 2)
    return ops.stack([ops.sin(angles), ops.cos(angles)], -1).reshape(*place.shape, dim)


def box_embedding(boxes: Tensor, dim: int) -> Tensor:
    """cxcywh in 0 … 1 (B, M, 4) → (B, M, 2 dim): of y, x, width and height, dim / 2 numbers each."""
    x, y, width, height = boxes.split(1, -1)
    waves = sine_embedding(ops.concatenate([y, x, width, height], -1), dim // 2)                # (B, M, 4, dim / 2)
    return waves.reshape(*boxes.shape[:-1], 2 * dim)


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
    """Weights and biases uniform by the layer's inputs, as PyTorch's own."""
    assert layer.bias is not None
    bound = init.fans(layer.weight.shape)[0] ** -0.5
    layer.weight.assign(init.uniform(layer.weight.shape, rng, bound))
    layer.bias.assign(init.uniform(layer.bias.shape, rng, bound))


class Memory(NamedTuple):
    """What the encoder makes of images, for the decoder to ask."""

    features: Tensor            # (B, HW, D)
    pos: Tensor                 # (B or 1, HW, D)
    visible: Array              # bool (B or 1, H, W), False on padding
    keys: Array | None          # the same as attention wants it, (B, 1, 1, HW); None where there is no padding


class DETR(nn.Module):
    """images (B, C, H, W), an array or a Tensor → {"pred_logits", "pred_boxes", "aux_outputs"}.

    mask: bool (B, H, W), True where an image is padding; None: nowhere. targets: what there is to find in each image
    (see detection/matcher.py), of which only a model with denoising, while it trains, makes use.
    pred_logits (B, N, num_classes + 1), no object being the last; pred_boxes (B, N, 4), centre x and y, width and
    height, in 0 … 1 of the image without its padding; aux_outputs: a dictionary of the two for every decoder layer but
    the last, the first layer's first (none with aux_loss=False). With focal, pred_logits are (B, N, num_classes).
    While they train, models with query_groups or denoising give more: see `detr_queries.split_outputs`.

    Attentions are called in this order (see `ops.record_attention`): (B, heads, HW, HW) of every encoder layer, then
    of every decoder layer (B, heads, N, N) and (B, heads, N, HW).
    Raises ScratchvitError when sizes do not fit together, or images or mask do not fit the model.
    """

    transformer: Any
    temperature = 10_000.0      # of the features' positions

    def __init__(self, config: DETRConfig, seed: int = 0):
        _check(config)
        self.config = config
        D = config.hidden_dim
        # The authors' backbone.1 computes positions, and has no weights.
        self.backbone = nn.ModuleList([Backbone(config, seed)])
        self.input_proj = nn.Conv2d(self.backbone[0].num_channels, D, 1)
        self.class_embed = nn.Linear(D, config.num_classes + (not config.focal))
        self.bbox_embed = MLP(D, D, 4, depth=3)
        if config.denoising:
            self.label_enc = nn.Embedding(config.num_classes + 1, D - 1)    # the last: unknown, for all other queries
        self.add_transformer()

        self.generator = Generator(seed)        # of noise
        self.init_weights(np.random.default_rng(seed))
        self.set_generator(self.generator)

    def add_transformer(self) -> None:
        """The Transformer, and where its queries look."""
        config, D = self.config, self.config.hidden_dim
        self.transformer = Transformer(
            D, config.nheads, config.enc_layers, config.dec_layers, config.dim_feedforward, config.dropout,
            config.normalize_before,
        )  # fmt: skip
        self.query_embed = nn.Embedding(config.num_queries * config.query_groups, D)
        if config.denoising:
            self.place_enc = MLP(2 * D, D, D, depth=2)      # of a noised object, which has a place of its own

    def forward(
        self, x: Tensor | Array, mask: Any = None, targets: Sequence[Mapping[str, Any]] | None = None
    ) -> dict[str, Any]:
        memory = self.forward_encoder(x, mask)
        noised = self.forward_noise(targets)
        N, groups = self.queries_for(memory), self.config.query_groups if self.training else 1
        content = self.forward_content(len(memory.features), N * groups, noised)
        layers, others = self.forward_decoder(content, noised, memory, who_sees_whom(noised, N, groups))
        return split_outputs(layers if self.config.aux_loss else layers[-1:], noised, N) | others

    def queries_for(self, memory: Memory) -> int:
        """N, of each group."""
        return self.config.num_queries

    def forward_encoder(self, x: Tensor | Array, mask: Any = None) -> Memory:
        features, visible = self.backbone[0](x, mask)               # (B, C, H, W), (B, H, W)
        B, _, H, W = features.shape
        keys = None if visible is None else visible.reshape(B, 1, 1, H * W)
        if visible is None:
            visible = backend.current().xp.ones((1, H, W), bool)
        pos = Tensor(sine_positions(visible, self.config.hidden_dim, self.class_embed.weight.dtype, self.temperature))
        src = self.input_proj(features).flatten(2).transpose(1, 2)  # (B, D, H, W) → (B, HW, D)
        return Memory(self.transformer.encoder(src, pos, keys), pos, visible, keys)

    def forward_noise(self, targets: Sequence[Mapping[str, Any]] | None) -> NoisedObjects | None:
        """The denoising queries of a batch, if there are to be any."""
        if not (self.config.denoising and self.training and targets is not None):
            return None
        config = self.config
        return noised_objects(
            targets, config.denoising, config.num_classes, config.box_noise, config.label_noise, self.generator.numpy()
        )

    def forward_content(self, batch: int, queries: int, noised: NoisedObjects | None) -> Tensor:
        """What the decoder begins with, (B, Q, D): zeros; in DN-DETR (§4.5) a class, or unknown, and which of these."""
        D, dtype = self.config.hidden_dim, self.class_embed.weight.dtype
        if not self.config.denoising:
            return Tensor(backend.current().xp.zeros((batch, queries, D), dtype))
        unknown = np.full((batch, queries), self.config.num_classes)
        labels = unknown if noised is None else np.concatenate([noised.labels, unknown], axis=1)    # (B, Q)
        known = asarray((labels != self.config.num_classes)[..., None], dtype=dtype)
        return ops.concatenate([self.label_enc(labels), known], -1)

    def forward_decoder(
        self, content: Tensor, noised: NoisedObjects | None, memory: Memory, sees: Array | None
    ) -> tuple[list[Answer], dict[str, Answer]]:
        """content (B, Q, D) → {"pred_logits" (B, Q, classes), "pred_boxes" (B, Q, 4)} of every decoder layer.

        And what else a model has to say by name; this one has nothing.
        """
        known = 0 if noised is None else noised.objects.shape[1]
        queries = self.query_embed.weight[: content.shape[1] - known]                               # (N or K·N, D)
        if noised is not None:
            at = self.place_enc(box_embedding(Tensor(asarray(noised.boxes)), self.config.hidden_dim))       # (B, M, D)
            queries = ops.concatenate([at, queries.expand((len(content), *queries.shape))], 1)      # (B, Q, D)
        states = self.transformer.decoder(content, queries, memory.features, memory.pos, memory.keys, sees)
        answers = [{"pred_logits": self.class_embed(x), "pred_boxes": self.bbox_embed(x).sigmoid()} for x in states]
        return answers, {}

    def init_weights(self, rng: np.random.Generator) -> None:
        """Heads and projection as PyTorch's layers, queries normal, the Transformer. (The backbone draws its own.)"""
        for layer in (self.input_proj, self.class_embed, *self.bbox_embed.layers):
            init_linear(layer, rng)
        if self.config.focal:
            assert self.class_embed.bias is not None
            self.class_embed.bias.assign(RARE)
        if self.config.denoising:
            self.label_enc.weight.assign(init.normal(self.label_enc.weight.shape, rng, 1.0))
        self.init_transformer(rng)

    def init_transformer(self, rng: np.random.Generator) -> None:
        self.query_embed.weight.assign(init.normal(self.query_embed.weight.shape, rng, 1.0))
        self.transformer.init_weights(rng)
        if self.config.denoising:
            for layer in self.place_enc.layers:
                init_linear(layer, rng)

    def no_weight_decay(self) -> set[str]:
        """Parameters that are not matrices of a layer: decay has no business with them."""
        return {"query_embed.weight", "label_enc.weight"}

    def layer_names(self) -> list[tuple[str, ...]]:
        """What each layer is made of, from the image to the head, for `layer_decay` (see `optim.param_groups`)."""
        *body, _ = self.backbone[0].body.layer_names()              # without its head
        layers: list[tuple[str, ...]] = [tuple(f"backbone.0.body.{name}" for name in names) for names in body]
        layers.append(("input_proj",))
        layers += [(f"transformer.encoder.layers.{i}",) for i in range(self.config.enc_layers)]
        layers[-1] += ("transformer.encoder.norm", "query_embed", "label_enc", "place_enc")
        layers += [(f"transformer.decoder.layers.{i}",) for i in range(self.config.dec_layers)]
        layers[-1] += ("transformer.decoder.norm",)
        return [*layers, ("class_embed", "bbox_embed")]


def _check(config: DETRConfig) -> None:
    """Raise ScratchvitError for options that do not fit together."""
    check_numbers(config)
    for name in (
        "num_classes", "num_queries", "hidden_dim", "nheads", "dec_layers", "dim_feedforward", "query_groups"
    ):  # fmt: skip
        if getattr(config, name) < 1:
            raise ScratchvitError(f"{name} is at least 1, not {getattr(config, name)}")
    for name in ("enc_layers", "denoising"):
        if getattr(config, name) < 0:
            raise ScratchvitError(f"{name} is 0, for none, or more, not {getattr(config, name)}")
    for name in ("box_noise", "label_noise"):
        if not 0 <= getattr(config, name) <= 1:
            raise ScratchvitError(f"{name} is a share, 0 … 1, not {getattr(config, name)}")
    if not 0 <= config.dropout < 1:
        raise ScratchvitError(f"dropout is a probability, from 0 up to but not 1, not {config.dropout}")
    if config.hidden_dim % 4:
        raise ScratchvitError(f"hidden_dim is a multiple of 4, for sines and cosines of y, x, not {config.hidden_dim}")
    if config.hidden_dim % config.nheads:
        raise ScratchvitError(
            f"hidden_dim {config.hidden_dim} cannot be shared by {config.nheads} heads: choose a multiple"
        )
    if config.stages not in (3, 4):
        raise ScratchvitError(f"stages of the ResNet are 4 or 3, not {config.stages}")


register(DETR, PRESETS, paper="DETR, arXiv 2005.12872")
