"""DETR with options from later papers: additional queries in training, and focal loss.

DETR needs hundreds of epochs; each of these options makes it converge in fewer. The additional queries change nothing
at inference; `focal` changes the meaning of the scores. Without options, `create_model("detr_…")` creates the paper's
model, `detr.DETR`. Symbols are those of detr.py.

    focal           focal loss (Lin et al., ICCV 2017, arXiv 1708.02002): classes are predicted by sigmoids, without ∅
    query_groups    Group DETR: K groups of N queries in training, see detr_queries.py
    denoising       DN-DETR: noised true objects as additional queries, see detr_queries.py

dab_detr.py is a further model with these options, whose queries are boxes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchvit import nn, ops
from scratchvit.backend import Array, asarray
from scratchvit.errors import ScratchvitError
from scratchvit.models import detr
from scratchvit.models.detr import DETR, MLP, Answer, DETRConfig, Memory, init_linear, sine_embedding
from scratchvit.models.detr_queries import NoisedObjects, noised_objects, self_attention_mask, split_outputs
from scratchvit.models.registry import register
from scratchvit.nn import init
from scratchvit.options import option
from scratchvit.random import Generator
from scratchvit.tensor import Tensor


@dataclass(frozen=True)
class ExtendedDETRConfig(DETRConfig):
    """The sizes of a DETR, and options that are not in its paper."""

    focal: bool = option(False, "predict classes by sigmoids with focal loss, not by a softmax with \"no object\"")
    query_groups: int = option(1, "Group DETR: groups of queries in training; only the first is used at inference")
    denoising: int = option(0, "DN-DETR: number of noised copies of the true objects in training")
    box_noise: float = option(0.4, "DN-DETR: maximum shift and change of size of a noised box, relative to its size")
    label_noise: float = option(0.2, "DN-DETR: fraction of the noised classes that are drawn at random")

    @property
    def num_logits(self) -> int:
        return self.num_classes if self.focal else self.num_classes + 1

    @property
    def is_extended(self) -> bool:
        return self.focal or self.query_groups > 1 or self.denoising > 0

    def check(self) -> None:
        super().check()
        if self.query_groups < 1:
            raise ScratchvitError(f"query_groups must be at least 1, not {self.query_groups}")
        if self.denoising < 0:
            raise ScratchvitError(f"denoising must be at least 0, 0 for none, not {self.denoising}")
        for name in ("box_noise", "label_noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ScratchvitError(f"{name} is a fraction and must be in [0, 1], not {getattr(self, name)}")


RARE = -math.log((1 - 0.01) / 0.01)     # initial logit with focal: a probability of 0.01 (1708.02002, §4.1)


def box_embedding(boxes: Tensor, dim: int) -> Tensor:
    """cxcywh in 0 … 1 (B, Q, 4) → (B, Q, 2 dim): sine embeddings of y, x, width and height, dim / 2 channels each."""
    x, y, width, height = boxes.split(1, -1)                                                    # (B, Q, 1) each
    waves = sine_embedding(ops.concatenate([y, x, width, height], -1), dim // 2)                # (B, Q, 4, dim / 2)
    return waves.reshape(*boxes.shape[:-1], 2 * dim)                                            # (B, Q, 2 dim)


class ExtendedDETR(DETR):
    """images (B, in_chans, H0, W0) → {"pred_logits", "pred_boxes", "aux_outputs"}, as `DETR`.

    mask: as for `DETR`.
    targets: the true objects of each image (see detection/matcher.py); only used for denoising in training.
    most: if the images are a part of a batch, the largest number of objects in an image of the batch.
    With focal, pred_logits are (B, N, num_classes). With query_groups or denoising there are more outputs in training:
    see `detr_queries.split_outputs`.
    Raises ScratchvitError if sizes do not fit together, or if images or mask do not fit the model.
    """

    config: ExtendedDETRConfig

    def __init__(self, config: ExtendedDETRConfig, seed: int = 0):
        self.generator = Generator(seed)        # for noise; `set_generator` replaces it together with that of dropout
        super().__init__(config, seed)

    def add_heads(self) -> None:
        super().add_heads()
        if self.config.denoising:               # the last row is for queries that are not noised objects
            self.label_enc = nn.Embedding(self.config.num_classes + 1, self.config.hidden_dim - 1)

    def add_transformer(self) -> None:
        super().add_transformer()
        config, D = self.config, self.config.hidden_dim
        if config.query_groups > 1:
            self.query_embed = nn.Embedding(config.num_queries * config.query_groups, D)
        if config.denoising:
            self.place_enc = MLP(2 * D, D, D, depth=2)      # positional embedding of a noised object, from its box

    def forward(
        self, x: Tensor | Array, mask: Any = None, targets: Sequence[Mapping[str, Any]] | None = None,
        most: int | None = None,
    ) -> dict[str, Any]:
        memory = self.encode(*self.backbone[0](x, mask))
        noised = self.draw_noise(targets, most)
        N, K = self.queries_for(memory), self.config.query_groups if self.training else 1
        content = self.content(len(memory.features), K * N, noised)                                 # (B, Q, D)
        layers, others = self.decode(content, noised, memory, self_attention_mask(noised, N, K))
        return split_outputs(layers if self.config.aux_loss else layers[-1:], noised, N) | others

    def queries_for(self, memory: Memory) -> int:
        """The number of queries N."""
        return self.config.num_queries

    def draw_noise(self, targets: Sequence[Mapping[str, Any]] | None, most: int | None) -> NoisedObjects | None:
        """The noised objects of a batch; None without denoising, in evaluation, and without targets."""
        config = self.config
        if not (config.denoising and self.training and targets is not None):
            return None
        return noised_objects(
            targets, config.denoising, config.num_classes, config.box_noise, config.label_noise,
            self.generator.of_images(len(targets)), most,
        )

    def content(self, images: int, queries: int, noised: NoisedObjects | None) -> Tensor:
        """The decoder's initial content, (images, Q, D): zeros, or with denoising class embeddings (DN-DETR, §4.5).

        With denoising, the last channel is 1 for noised objects and 0 for the other K·N queries, of unknown class.
        """
        if not self.config.denoising:
            return self.zeros(images, queries)
        unknown = np.full((images, queries), self.config.num_classes)
        labels = unknown if noised is None else np.concatenate([noised.labels, unknown], axis=1)    # (B, Q)
        known = asarray((labels != self.config.num_classes)[..., None], dtype=self.class_embed.weight.dtype)
        return ops.concatenate([self.label_enc(labels), known], -1)                                 # (B, Q, D)

    def decode(
        self, content: Tensor, noised: NoisedObjects | None, memory: Memory, self_mask: Array | None
    ) -> tuple[list[Answer], dict[str, Answer]]:
        """content (B, Q, D) → the predictions of every decoder layer, and additional outputs by name (none here)."""
        M = 0 if noised is None else noised.objects.shape[1]
        queries = self.query_embed.weight[: content.shape[1] - M]                                   # (K·N, D)
        if noised is not None:
            at = self.place_enc(box_embedding(Tensor(asarray(noised.boxes)), self.config.hidden_dim))       # (B, M, D)
            queries = ops.concatenate([at, queries.expand((len(content), *queries.shape))], 1)      # (B, Q, D)
        states = self.transformer.decoder(content, queries, memory.features, memory.pos, memory.keys, self_mask)
        return self.predict(states), {}

    def init_heads(self, rng: np.random.Generator) -> None:
        super().init_heads(rng)
        if self.config.focal:
            assert self.class_embed.bias is not None
            self.class_embed.bias.assign(RARE)
        if self.config.denoising:
            self.label_enc.weight.assign(init.normal(self.label_enc.weight.shape, rng, 1.0))

    def init_transformer(self, rng: np.random.Generator) -> None:
        super().init_transformer(rng)
        if self.config.denoising:
            for layer in self.place_enc.layers:
                init_linear(layer, rng)

    def no_weight_decay(self) -> set[str]:
        return super().no_weight_decay() | {"label_enc.weight"}

    def layer_names(self) -> list[tuple[str, ...]]:
        names = super().layer_names()
        names[-2 - self.config.dec_layers] += ("label_enc", "place_enc")        # with the queries
        return names


def build(config: ExtendedDETRConfig, seed: int = 0) -> DETR:
    """An ExtendedDETR if the configuration uses options that are not in the paper, otherwise a DETR.

    Raises ScratchvitError if sizes do not fit together.
    """
    return ExtendedDETR(config, seed) if config.is_extended else DETR(config, seed)


PRESETS = {name: ExtendedDETRConfig(**vars(config)) for name, config in detr.PRESETS.items()}

register(build, PRESETS, paper="DETR, arXiv 2005.12872")
