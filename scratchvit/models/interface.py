"""What the rest of the package may ask of a model, beside calling it.

Any `nn.Module` can be trained, saved and inspected. What only some models can answer stands here, once: a Protocol for
each ability, which `isinstance` asks for, and what a configuration may say beside its sizes. A new model gains an
ability by having the attributes; nothing is registered.

    ability             who asks                                        who has it
    Configured          costs (image size), checkpoints, weights        every model of `create_model`
    LayeredModel        optim: layer-wise learning rates                all families
    ExemptsFromDecay    optim: weight decay                             models with tokens, position tables, …
    PatchModel          weights (resizing), training (too few patches)  ViT, hybrids, DeiT, Swin, MViT
    TokenModel          the tokens that a run prints                    ViT, hybrids, DeiT, iGPT
    PositionedModel     weights: position tables of another size        ViT, hybrids, DeiT, MViTv2
    PixelModel          training on pixels, completion, linear probe    iGPT
    DistillableModel    distillation: a second head                     DeiT
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from scratchvit.backend import Array
from scratchvit.nn import Buffer
from scratchvit.tensor import Tensor


@runtime_checkable
class Configured(Protocol):
    """config: a frozen dataclass with the fields img_size, in_chans and num_classes, and the family's own."""

    config: Any


@runtime_checkable
class LayeredModel(Protocol):
    """Says which parameters belong to which layer."""

    def layer_names(self) -> list[tuple[str, ...]]:
        """For each layer, from the image to the head, the paths of its modules and parameters."""


@runtime_checkable
class ExemptsFromDecay(Protocol):
    """Has parameters of two or more axes to which weight decay is not applied."""

    def no_weight_decay(self) -> set[str]:
        """The names of these parameters."""


@runtime_checkable
class PatchModel(Configured, Protocol):
    """patch_embed: has img_size, grid_size (rows and columns of patches), and often proj, a convolution."""

    patch_embed: Any


@runtime_checkable
class TokenModel(Protocol):
    """num_tokens: length of the sequence, class and distillation tokens included."""

    num_tokens: int


@runtime_checkable
class PositionedModel(PatchModel, Protocol):
    """num_prefix_tokens: class and distillation tokens, which stand before the patches in the position table."""

    num_prefix_tokens: int


@runtime_checkable
class PixelModel(Protocol):
    """A model of the pixels themselves. generative: it predicts the next pixel; False: it classifies."""

    generative: bool
    palette: Buffer

    def tokens(self, images: Tensor | Array) -> Array:
        """images (B, C, H, W) → the index in the palette of every pixel, int64 (B, H·W)."""

    def layer_features(self, images: Tensor | Array) -> list[Tensor]:
        """images (B, C, H, W) → the features of every layer, (B, D) each."""


@runtime_checkable
class DistillableModel(Protocol):
    """distilled_training: whether a forward in training mode gives the logits of both heads, (classes, teacher's)."""

    distilled_training: bool


def generates(model: Any) -> bool:
    """Whether the targets of this model are the tokens of the images themselves, instead of labels."""
    return isinstance(model, PixelModel) and model.generative


def config_of(model: Any) -> Any:
    """A model's configuration; None for a module that has none."""
    return model.config if isinstance(model, Configured) else None


def detects(config: Any) -> bool:
    """Whether a model of this configuration gives boxes, instead of one class for an image; False for None."""
    return getattr(config, "detects", False)


def own_normalisation(config: Any) -> tuple[float, float] | None:
    """(mean, standard deviation) that a model of this configuration needs its pixels normalised by; None for most."""
    return getattr(config, "normalisation", None)


def frames_of(config: Any) -> int:
    """Frames in a clip that a model of this configuration takes; 1 for a model of images."""
    return getattr(config, "num_frames", 1)
