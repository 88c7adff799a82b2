"""The models of timm, torchvision and Hugging Face that bench.py compares with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from scratchvit.errors import ScratchvitError
from scratchvit.models.igpt import even_palette
from scratchvit.models.vit import pair


def peer_of(name: str, config: Any) -> Callable[[], Any]:
    """A function that makes the PyTorch model of that name, from images or clips to logits, that drops nothing.

    Raises ScratchvitError if nobody has it, or not of that size.
    """
    from tests.support.peers import import_timm, import_torchvision

    timm, video = import_timm(), import_torchvision().models.video
    if timm.is_model(name):
        takes_a_size = hasattr(config, "patch_size") or hasattr(config, "patch_kernel")    # a ConvNet takes any
        size = {"img_size": config.img_size} if takes_a_size else {}
        return functools.partial(timm.create_model, name, drop_path_rate=0.0, **size)
    if name.startswith("pixel_transformer"):
        return functools.partial(
            timm.models.vision_transformer.VisionTransformer, config.img_size, patch_size=1,
            num_classes=config.num_classes, embed_dim=config.embed_dim, depth=config.depth, num_heads=config.num_heads,
        )
    if name.startswith("igpt"):
        return functools.partial(_image_gpt, config)
    if hasattr(video, name):
        return _torchvisions(name, config)
    raise ScratchvitError(f"neither timm, torchvision nor transformers has a model {name!r} to compare with")


def _torchvisions(name: str, config: Any) -> Callable[[], Any]:
    import pytest

    from tests.support.mvit_samples import torchvisions

    stride = config.patch_stride[-1] * 2 ** (len(config.depths) - 1)
    if any(side % stride for side in pair(config.img_size)):
        raise ScratchvitError(f"torchvision's {name} takes frames whose sides {stride} divides, not {config.img_size}")
    return torchvisions(
        pytest.MonkeyPatch, name, spatial_size=pair(config.img_size), temporal_size=config.num_frames, dropout=0.0,
        stochastic_depth_prob=0.0,
    )


def _image_gpt(config: Any) -> Any:
    """Hugging Face's, given images instead of colours: it then looks up the nearest ones itself, as ours does."""
    import torch

    from tests.support.peers import import_transformers

    transformers = import_transformers()
    K, (H, W) = config.num_colors, pair(config.img_size)
    palette = torch.from_numpy(even_palette(K, config.in_chans))

    class OfImages(transformers.ImageGPTForCausalImageModeling):
        def forward(self, images: Any) -> Any:
            pixels = images.flatten(2).transpose(1, 2)                                  # (B, N, C)
            tokens = torch.cdist(pixels, palette).argmin(dim=2)
            start = torch.full_like(tokens[:, :1], K)
            return super().forward(torch.cat([start, tokens[:, :-1]], dim=1)).logits.transpose(1, 2)

    return OfImages(transformers.ImageGPTConfig(
        vocab_size=K + 1, n_positions=H * W, n_embd=config.embed_dim, n_layer=config.depth, n_head=config.num_heads,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, use_cache=False,
    ))
