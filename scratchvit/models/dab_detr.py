"""DAB-DETR: object queries that are boxes (Liu et al., ICLR 2022, arXiv 2201.12329).

DETR's object queries are learned vectors without a defined meaning, and it takes hundreds of epochs until each attends
to a certain region. What changes: a query is a box, its *anchor* A_q = (x, y, w, h). Symbols are those of detr.py.

- The query's positional embedding is that of the anchor's centre, PE(x, y), computed as for the features. So their dot
  product is large if the two are close, from the first training step on (§4.2, eq. 4).
- In cross-attention, content and position are concatenated instead of added, so that there are no dot products between
  content and position (Conditional DETR, arXiv 2108.06152).
- Attention depends on the shape of the anchor: the dot product over x is multiplied by w_ref / w and that over y by
  h_ref / h, so that wide boxes attend to wide regions. w_ref and h_ref are predicted from the content (§4.4, eq. 6, 7).
- Every decoder layer updates the anchor by the output of the box head, for the next layer (§4.3).

    paper       here                            shape
    A_q         anchors, boxes                  (B, Q, 4): centre x, y, width, height, in 0 … 1
    P_q         query_pos                       (B, Q, D): added in self-attention, ref_point_head(PE(A_q)), eq. 1
    PE(x, y)    query_sine                      (B, Q, D): of the anchor's centre
    MLP(csq)    query_scale                     (B, Q, D): scales the positions by the content, eq. 4
    w_ref, h_ref    ref_anchor_head             (B, Q, 2)
    C_q         x                               (B, Q, D): content, initially zero

With two_stage the anchors are not parameters: every feature of the encoder predicts an object, and the boxes with the
highest scores are the decoder's initial anchors (Deformable DETR, arXiv 2010.04159). This helps most when training from
scratch, because the backbone then learns from every position of the image, not only from those that queries attend to.

Names of parameters and sizes are those of the authors' code, which also has PReLU in the MLPs, scales the encoder's
positions by its features, uses the temperature 20 for the positions of features (§4.5; 10,000 for those of anchors),
and predicts classes by sigmoids with focal loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from scratchvit import nn, ops
from scratchvit.backend import Array, array_module, asarray
from scratchvit.errors import ScratchvitError
from scratchvit.models.detr import MLP, Answer, Memory, coordinates, init_linear
from scratchvit.models.detr_extended import ExtendedDETR, ExtendedDETRConfig, box_embedding
from scratchvit.models.detr_queries import NoisedObjects
from scratchvit.models.detr_transformer import EPS, EncoderLayer, Layer, MultiheadAttention
from scratchvit.models.registry import register
from scratchvit.nn import init
from scratchvit.options import option
from scratchvit.tensor import Tensor


@dataclass(frozen=True)
class DABDETRConfig(ExtendedDETRConfig):
    """The sizes of a DAB-DETR."""

    num_queries: int = option(300, "number of object queries: the maximum number of detected objects")
    focal: bool = option(True, "predict classes by sigmoids with focal loss, not by a softmax with \"no object\"")
    two_stage: bool = option(False, "Deformable DETR: use the encoder's best boxes as anchors, instead of learned ones")

    def check(self) -> None:
        super().check()
        if self.normalize_before:
            raise ScratchvitError(
                "DAB-DETR has no pre-norm version: leave out normalize_before, which is only for DETR"
            )
        if self.two_stage and self.query_groups > 1:
            raise ScratchvitError(
                "two_stage gives all groups of queries the same anchors: use query_groups=1, or leave out two_stage"
            )


# Not in the paper: with the sizes of detr_tiny.
TINY = DABDETRConfig(
    img_size=96, layers=(1, 1, 1, 1), bottleneck=False, channels=(32, 64, 128, 256), stages=3, dilation=True,
    frozen_bn=False, num_queries=25, hidden_dim=128, enc_layers=1, dec_layers=3, dim_feedforward=256, dropout=0.0,
)

#                                                                             Table 2: AP, 50 epochs
PRESETS = {
    "dab_detr_tiny":          TINY,
    "dab_detr_resnet50":      DABDETRConfig(),                                          # 42.2
    "dab_detr_resnet50_dc5":  DABDETRConfig(dilation=True),                             # 44.5
    "dab_detr_resnet101":     DABDETRConfig(layers=(3, 4, 23, 3)),                      # 43.5
    "dab_detr_resnet101_dc5": DABDETRConfig(layers=(3, 4, 23, 3), dilation=True),       # 45.8
}


class Attention(nn.Module):
    """Attention softmax(q kᵀ / √d) v on inputs that are already projected: q (B, Q, E), k (B, S, E), v (B, S, D).

    Returns (B, Q, D). E: D in self-attention, 2 D in cross-attention. visible: see detr_transformer.MultiheadAttention.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float):
        self.num_heads = num_heads
        self.out_proj = nn.Linear(dim, dim)
        self.attn_drop = nn.Dropout(dropout)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, visible: Array | None) -> Tensor:
        x = ops.attention(
            self.split(q), self.split(k), self.split(v), mask=visible,
            dropout=self.attn_drop.p if self.training else 0.0, generator=self.attn_drop.generator,
        )
        return self.out_proj(x.transpose(1, 2).reshape(*q.shape[:2], -1))       # (B, heads, Q, D / heads) → (B, Q, D)

    def split(self, x: Tensor) -> Tensor:
        """(B, Q, E) → (B, heads, Q, E / heads)."""
        return x.reshape(*x.shape[:2], self.num_heads, -1).transpose(1, 2)

    def side_by_side(self, x: Tensor, y: Tensor) -> Tensor:
        """Concatenate x and y, (B, Q, D) each, head by head: (B, Q, 2D)."""
        parts = [each.reshape(*each.shape[:2], self.num_heads, -1) for each in (x, y)]      # (B, Q, heads, D / heads)
        return ops.concatenate(parts, -1).reshape(*x.shape[:2], -1)                         # (B, Q, 2D)


class DecoderLayer(Layer):
    """Self-attention over the queries, cross-attention to the image near their anchors, and an MLP.

    x, query_pos, query_sine (B, Q, D) → (B, Q, D). Masks: see detr_transformer.DecoderLayer.
    """

    def __init__(self, dim: int, num_heads: int, dim_feedforward: int, dropout: float, is_first: bool):
        self.sa_qcontent_proj, self.sa_qpos_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.sa_kcontent_proj, self.sa_kpos_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.sa_v_proj = nn.Linear(dim, dim)
        self.self_attn = Attention(dim, num_heads, dropout)
        self.ca_qcontent_proj, self.ca_kcontent_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.ca_qpos_proj = nn.Linear(dim, dim) if is_first else None
        self.ca_kpos_proj, self.ca_qpos_sine_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.ca_v_proj = nn.Linear(dim, dim)
        self.cross_attn = Attention(dim, num_heads, dropout)
        super().__init__(dim, dim_feedforward, dropout, normalize_before=False)
        self.activation = nn.PReLU()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(dim, EPS) for _ in range(3))

    def forward(
        self, x: Tensor, query_pos: Tensor, query_sine: Tensor, memory: Tensor, pos: Tensor, visible: Array | None,
        self_mask: Array | None,
    ) -> Tensor:
        def self_attention(x: Tensor) -> Tensor:
            q = self.sa_qcontent_proj(x) + self.sa_qpos_proj(query_pos)                 # eq. 3
            k = self.sa_kcontent_proj(x) + self.sa_kpos_proj(query_pos)
            return self.self_attn(q, k, self.sa_v_proj(x), self_mask)

        def cross_attention(x: Tensor) -> Tensor:
            q, k, k_pos = self.ca_qcontent_proj(x), self.ca_kcontent_proj(memory), self.ca_kpos_proj(pos)
            if self.ca_qpos_proj is not None:       # only the first layer, where the content is zero, adds positions
                q, k = q + self.ca_qpos_proj(query_pos), k + k_pos
            attend = self.cross_attn
            q = attend.side_by_side(q, self.ca_qpos_sine_proj(query_sine))              # eq. 4
            k = attend.side_by_side(k, k_pos.expand(k.shape))
            return attend(q, k, self.ca_v_proj(memory), visible)

        x = self.residual(x, self.norm1, self_attention)
        x = self.residual(x, self.norm2, cross_attention)
        return self.residual(x, self.norm3, self.feed_forward)


class Encoder(nn.Module):
    """DETR's encoder with positions scaled by the features. x (B, HW, D), pos (B or 1, HW, D) → memory (B, HW, D)."""

    def __init__(self, config: DABDETRConfig):
        D = config.hidden_dim
        self.layers = nn.ModuleList(
            EncoderLayer(D, config.nheads, config.dim_feedforward, config.dropout, normalize_before=False)
            for _ in range(config.enc_layers)
        )
        for layer in self.layers:
            layer.activation = nn.PReLU()
        self.query_scale = MLP(D, D, D, depth=2)

    def forward(self, x: Tensor, pos: Tensor, visible: Array | None) -> Tensor:
        for layer in self.layers:
            x = layer(x, pos * self.query_scale(x), visible)
        return x


class Decoder(nn.Module):
    """Content x (B, Q, D), anchors (B, Q, 4) → for every layer (normalised output (B, Q, D), anchors (B, Q, 4)).

    box_head: the model's bbox_embed, which predicts the update of the anchors from a layer's output.
    """

    def __init__(self, config: DABDETRConfig):
        D = config.hidden_dim
        self.layers = nn.ModuleList(
            DecoderLayer(D, config.nheads, config.dim_feedforward, config.dropout, is_first=i == 0)
            for i in range(config.dec_layers)
        )
        self.norm = nn.LayerNorm(D, EPS)
        self.query_scale = MLP(D, D, D, depth=2)
        self.ref_point_head = MLP(2 * D, D, D, depth=2)
        self.ref_anchor_head = MLP(D, D, 2, depth=2)

    def forward(
        self, x: Tensor, anchors: Tensor, memory: Tensor, pos: Tensor, visible: Array | None,
        self_mask: Array | None, box_head: MLP,
    ) -> list[tuple[Tensor, Tensor]]:
        outputs, D = [], x.shape[-1]
        boxes = anchors                                                                 # (B, Q, 4)
        for number, layer in enumerate(self.layers):
            waves = box_embedding(boxes, D)                                             # (B, Q, 2D): of y, x, w, h
            query_sine = waves[..., :D]                                                 # PE(x, y)
            if number:      # eq. 4; not before the first layer, where the content is zero
                query_sine = query_sine * self.query_scale(x)
            size = self.ref_anchor_head(x).sigmoid()                                    # (B, Q, 2), eq. 7
            wide, high = (size / boxes[..., 2:]).split(1, -1)                           # (B, Q, 1) each
            y_waves, x_waves = query_sine.split(D // 2, -1)                             # (B, Q, D / 2) each
            query_sine = ops.concatenate([y_waves * high, x_waves * wide], -1)          # eq. 6
            query_pos = self.ref_point_head(waves)                                      # eq. 1
            x = layer(x, query_pos, query_sine, memory, pos, visible, self_mask)
            outputs.append((self.norm(x), anchors))
            if number + 1 < len(self.layers):
                anchors = moved(boxes, box_head(x))
                boxes = anchors.detach()    # stop the gradient: the next layer's loss does not train this layer's boxes
        return outputs


def moved(boxes: Tensor, by: Tensor) -> Tensor:
    """Boxes in 0 … 1 (…, 4) and offsets (…, 4), which are added before the sigmoid (§4.3) → boxes (…, 4)."""
    return (unsigmoid(boxes) + ops.to_float32(by)).sigmoid()


def unsigmoid(x: Tensor) -> Tensor:
    """The inverse of the sigmoid, clipped to -11.5 … 11.5."""
    return ops.log(x.clip(1e-5) / (1 - x).clip(1e-5))


class Transformer(nn.Module):
    """Encoder and decoder of the same width, heads, MLPs and dropout."""

    def __init__(self, config: DABDETRConfig):
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def init_weights(self, rng: np.random.Generator) -> None:
        """Weights by Glorot & Bengio (2010); biases as in PyTorch's layers, those of attention's output zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                init_linear(module, rng)
        for module in self.modules():
            if isinstance(module, Attention | MultiheadAttention):
                assert module.out_proj.bias is not None
                module.out_proj.bias.assign(0)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                parameter.assign(init.xavier_uniform(parameter.shape, rng))


WIDEST = 0.9        # maximum side of the encoder's initial boxes: near 1 the gradient of the sigmoid vanishes


class Proposals(nn.Module):
    """Predictions of the encoder: a class and a box for every feature (arXiv 2010.04159, §4.2, §A.4).

    memory → {"pred_logits" (B, HW, num_logits), "pred_boxes" (B, HW, 4)}, with the same loss as a decoder layer's.
    A box is initially centred on its feature, four features wide and high (in the paper: a twentieth of the image).
    Classes are predicted, as in DINO (arXiv 2203.03605), not only whether there is an object. On padding, the
    prediction is "no object".
    """

    def __init__(self, config: DABDETRConfig):
        D = config.hidden_dim
        self.enc_output, self.enc_output_norm = nn.Linear(D, D), nn.LayerNorm(D, EPS)
        self.class_embed = nn.Linear(D, config.num_logits)
        self.bbox_embed = MLP(D, D, 4, depth=3)
        self.num_classes = config.num_classes

    def forward(self, memory: Memory) -> Answer:
        x = self.enc_output_norm(self.enc_output(memory.features))
        logits, xp = ops.to_float32(self.class_embed(x)), array_module(memory.visible)
        if memory.keys is not None:
            nothing = xp.where(xp.arange(logits.shape[-1]) < self.num_classes, -100, 0).astype(logits.dtype)
            logits = ops.where(memory.visible.reshape(len(x), -1, 1), logits, nothing)
        row, column = coordinates(memory.visible, self.class_embed.weight.dtype)                # (B or 1, H, W)
        height, width = (each.max(axis=(1, 2), keepdims=True) for each in (row, column))        # (B or 1, 1, 1)
        sides = (xp.broadcast_to(xp.minimum(4 / side, WIDEST), row.shape) for side in (width, height))
        first = xp.stack([(column - 0.5) / width, (row - 0.5) / height, *sides], axis=-1)       # (B or 1, H, W, 4)
        boxes = moved(Tensor(first.reshape(len(first), -1, 4)), self.bbox_embed(x))             # (B, HW, 4)
        return {"pred_logits": logits, "pred_boxes": boxes}

    def best(self, answer: Answer, count: int) -> Tensor:
        """The boxes of the features with the highest scores (B, count, 4), without gradients."""
        logits, boxes = answer["pred_logits"].data, answer["pred_boxes"].data
        xp = array_module(logits)
        object_, none = logits[..., : self.num_classes], logits[..., self.num_classes :]        # none: 1 number, or 0
        chosen = xp.argsort(none.sum(axis=-1) - object_.max(axis=-1), axis=1)[:, :count]        # (B, count)
        return Tensor(boxes[xp.arange(len(boxes))[:, None], chosen])


class DABDETR(ExtendedDETR):
    """images (B, in_chans, H0, W0) → {"pred_logits", "pred_boxes", "aux_outputs"}, as `DETR` and `ExtendedDETR`.

    With two_stage also "proposals", {"pred_logits" (B, HW, num_logits), "pred_boxes" (B, HW, 4)}: the encoder's
    predictions.
    """

    config: DABDETRConfig
    transformer: Transformer        # not DETR's
    temperature = 20.0              # of the features' positional embedding

    def add_transformer(self) -> None:
        config = self.config
        self.transformer = Transformer(config)
        if config.two_stage:
            self.proposals = Proposals(config)
        else:
            self.refpoint_embed = nn.Embedding(config.num_queries * config.query_groups, 4)

    def queries_for(self, memory: Memory) -> int:
        """The number of queries N; with two_stage at most the number of features, since each query has its own."""
        N = self.config.num_queries
        return min(N, memory.features.shape[1]) if self.config.two_stage else N

    def decode(
        self, content: Tensor, noised: NoisedObjects | None, memory: Memory, self_mask: Array | None
    ) -> tuple[list[Answer], dict[str, Answer]]:
        M = 0 if noised is None else noised.objects.shape[1]
        B, queries = len(content), content.shape[1] - M                                             # K·N
        others = {"proposals": self.proposals(memory)} if self.config.two_stage else {}
        anchors = self.anchors(B, queries, others)                                                  # (B, K·N, 4)
        if noised is not None:
            anchors = ops.concatenate([Tensor(asarray(noised.boxes)), anchors], 1)                  # (B, Q, 4)
        states = self.transformer.decoder(
            content, anchors, memory.features, memory.pos, memory.keys, self_mask, self.bbox_embed
        )
        answers = [
            {"pred_logits": ops.to_float32(self.class_embed(z)), "pred_boxes": moved(boxes, self.bbox_embed(z))}
            for z, boxes in states
        ]
        return answers, others

    def anchors(self, images: int, queries: int, outputs: Mapping[str, Answer]) -> Tensor:
        """The decoder's initial anchors, (images, queries, 4): with two_stage the best of outputs["proposals"]."""
        if self.config.two_stage:
            return self.proposals.best(outputs["proposals"], queries)
        return self.refpoint_embed.weight[:queries].sigmoid().expand((images, queries, 4))

    def init_transformer(self, rng: np.random.Generator) -> None:
        """Draw anchors, before the sigmoid, from a standard normal; box heads are zero, so anchors do not move yet."""
        self.transformer.init_weights(rng)
        box_heads = [self.bbox_embed]
        if self.config.two_stage:
            self.proposals.class_embed.load_state_dict(self.class_embed.state_dict())
            for layer in (self.proposals.enc_output, *self.proposals.bbox_embed.layers):
                init_linear(layer, rng)
            box_heads.append(self.proposals.bbox_embed)
        else:
            self.refpoint_embed.weight.assign(init.normal(self.refpoint_embed.weight.shape, rng, 1.0))
        for head in box_heads:
            head.layers[-1].weight.assign(0)
            head.layers[-1].bias.assign(0)

    def layer_names(self) -> list[tuple[str, ...]]:
        """The layers of DETR, with the additional modules of this Transformer."""
        *before, heads = super().layer_names()
        shared = ("query_scale", "ref_point_head", "ref_anchor_head")
        before[-1] += tuple(f"transformer.decoder.{name}" for name in shared)
        before[-1 - self.config.dec_layers] += ("transformer.encoder.query_scale", "refpoint_embed", "proposals")
        return [*before, heads]

    def no_weight_decay(self) -> set[str]:
        """Parameters that are not weight matrices, so that weight decay is not applied to them."""
        return {"refpoint_embed.weight", "label_enc.weight"}


register(DABDETR, PRESETS, paper="DAB-DETR, arXiv 2201.12329")
