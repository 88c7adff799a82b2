"""The interfaces of models that other parts of the package rely on.

Any `nn.Module` can be trained, saved and inspected. Features that only some models have are defined here: a Protocol
for each of them, to be tested with `isinstance`, and functions for the optional fields of a configuration. A model has
a feature if it has the attributes of its Protocol; nothing is registered.

    Protocol            used for                                        implemented by
    Configured          costs (image size), checkpoints, weights        every model of `create_model`
    LayeredModel        optim: layer-wise learning rates                all families
    ExemptsFromDecay    optim: weight decay                             models with learned tokens or embeddings
    PatchModel          weights (resizing), training (too few patches)  ViT, hybrids, DeiT, Swin, MViT
    TokenModel          the number of tokens that a run prints          ViT, hybrids, DeiT, iGPT
    PositionedModel     weights: resizing positional embeddings         ViT, hybrids, DeiT, MViTv2
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
    """config: a frozen dataclass with the fields img_size, in_chans and num_classes, and those of the family."""

    config: Any


@runtime_checkable
class LayeredModel(Protocol):
    """A model that says which parameters belong to which layer."""

    def layer_names(self) -> list[tuple[str, ...]]:
        """The paths of the modules and parameters of each layer, from the image to the head."""


@runtime_checkable
class ExemptsFromDecay(Protocol):
    """A model with parameters of two or more axes to which weight decay is not applied."""

    def no_weight_decay(self) -> set[str]:
        """The names of these parameters."""


@runtime_checkable
class PatchModel(Configured, Protocol):
    """patch_embed: a module with img_size, grid_size (rows and columns of patches), and often proj, a convolution."""

    patch_embed: Any


@runtime_checkable
class TokenModel(Protocol):
    """num_tokens: the length of the sequence, including class and distillation tokens."""

    num_tokens: int


@runtime_checkable
class PositionedModel(PatchModel, Protocol):
    """num_prefix_tokens: the number of class and distillation tokens, which come before the patches."""

    num_prefix_tokens: int


@runtime_checkable
class PixelModel(Protocol):
    """A model whose tokens are pixels. generative: whether it predicts the next pixel; otherwise it is a classifier."""

    generative: bool
    palette: Buffer

    def tokens(self, images: Tensor | Array) -> Array:
        """images (B, C, H, W) → the palette index of every pixel, int64 (B, H·W)."""

    def layer_features(self, images: Tensor | Array) -> list[Tensor]:
        """images (B, C, H, W) → the features of every layer, (B, D) each."""


@runtime_checkable
class DistillableModel(Protocol):
    """distilled_training: whether forward returns (class logits, distillation logits) in training mode."""

    distilled_training: bool


def generates(model: Any) -> bool:
    """Whether the model is generative: its targets are the tokens of the images, not labels."""
    return isinstance(model, PixelModel) and model.generative


def config_of(model: Any) -> Any:
    """The configuration of a model; None for a module without one."""
    return model.config if isinstance(model, Configured) else None


def detects(config: Any) -> bool:
    """Whether a configuration is that of a detector, which predicts boxes; False for None."""
    return getattr(config, "detects", False)


def own_normalisation(config: Any) -> tuple[float, float] | None:
    """The (mean, standard deviation) by which pixels must be normalised for this model; None for most models."""
    return getattr(config, "normalisation", None)


def frames_of(config: Any) -> int:
    """The number of frames of the model's clips; 1 for a model of images."""
    return getattr(config, "num_frames", 1)
