"""The models of timm, torchvision and Hugging Face that bench.py compares with."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from scratchvit.errors import ScratchvitError
from scratchvit.models.igpt import even_palette
from scratchvit.models.vit import pair


def peer_of(name: str, config: Any, changed: dict[str, int]) -> Callable[[], Any]:
    """A function that makes the PyTorch model of that name, from images or clips to logits, that drops nothing.

    changed: fields of the configuration that timm has under the same name.
    Raises ScratchvitError if nobody has it, or not of that size.
    """
    from tests.support.peers import import_timm, import_torchvision

    timm, video = import_timm(), import_torchvision().models.video
    if timm.is_model(name):
        takes_a_size = hasattr(config, "patch_size") or hasattr(config, "patch_kernel")    # a ConvNet takes any
        size = {"img_size": config.img_size} if takes_a_size else {}
        return functools.partial(timm.create_model, name, drop_path_rate=0.0, **size, **changed)
    if name.startswith("pixel_transformer"):
        return functools.partial(
            timm.models.vision_transformer.VisionTransformer, config.img_size, patch_size=1,
            num_classes=config.num_classes, embed_dim=config.embed_dim, depth=config.depth, num_heads=config.num_heads,
        )
    if name.startswith("igpt"):
        return functools.partial(_image_gpt, config)
    if name.startswith("detr"):
        return functools.partial(_detr, config)
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


def _detr(config: Any) -> Any:
    """Hugging Face's, with timm's ResNet, and with its loss, in which the matcher is SciPy's too."""
    import torch

    from tests.support.peers import import_transformers

    transformers = import_transformers()

    kind = f"resnet{2 + (3 if config.bottleneck else 2) * sum(config.layers)}"
    sizes = {"d_model": config.hidden_dim, "num_queries": config.num_queries, "dropout": 0.0, "auxiliary_loss": True}
    for part, layers in (("encoder", config.enc_layers), ("decoder", config.dec_layers)):
        sizes |= {f"{part}_layers": layers, f"{part}_attention_heads": config.nheads,
                  f"{part}_ffn_dim": config.dim_feedforward}
    peer = transformers.DetrForObjectDetection(transformers.DetrConfig(
        use_timm_backbone=True, backbone=kind, use_pretrained_backbone=False, num_labels=config.num_classes, **sizes,
    )).requires_grad_()

    def loss_of(images: Any, targets: list[dict[str, Any]]) -> Any:
        labels = [{"class_labels": torch.from_numpy(one["labels"]), "boxes": torch.from_numpy(one["boxes"])}
                  for one in targets]
        return peer(images, labels=labels).loss

    peer.loss_of = loss_of
    return peer
