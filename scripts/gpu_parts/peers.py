"""The models of cases.py in PyTorch's own layers, under the same names of parameters, for timing beside ours.

They need neither timm nor torchvision. Attention is PyTorch's scaled_dot_product_attention, with which a user's model
runs; `plain_attention` writes it out, as `softmax(q kᵀ / √d + bias) v`. Nothing is dropped. Masks, relative positions
and the positional embedding of DETR are computed once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from scratchvit.models import windows
from scratchvit.models.detr import sine_positions
from scratchvit.models.vit import pair
from tests.support import detr_in_torch

_attention: Callable[..., Any] = F.scaled_dot_product_attention


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Attention from two products and a softmax, for all models of this file."""
    global _attention

    def plain(q: Any, k: Any, v: Any, attn_mask: Any = None) -> Any:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        return (scores if attn_mask is None else scores + attn_mask).softmax(-1) @ v

    before, _attention = _attention, plain
    try:
        yield
    finally:
        _attention = before


class Attention(nn.Module):
    """Self-attention of (B, N, D), with a mask that is added to the scores."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Any, mask: Any = None) -> Any:
        B, N, D = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(B, N, D))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Any) -> Any:
        return self.fc2(F.gelu(self.fc1(x)))


class PatchEmbed(nn.Module):
    """(B, C, H, W) → (B, N, D)."""

    def __init__(self, config: Any):
        super().__init__()
        patch = pair(config.patch_size)
        self.proj = nn.Conv2d(config.in_chans, config.embed_dim, patch, stride=patch)

    def forward(self, x: Any) -> Any:
        return self.proj(x).flatten(2).transpose(1, 2)


# --- ViT ------------------------------------------------------------------------------------------------------------


class ViTBlock(nn.Module):
    def __init__(self, config: Any):
        super().__init__()
        D = config.embed_dim
        self.norm1, self.norm2 = (nn.LayerNorm(D, config.norm_eps) for _ in range(2))
        self.attn, self.mlp = Attention(D, config.num_heads), Mlp(D, int(D * config.mlp_ratio))

    def forward(self, x: Any) -> Any:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self, config: Any):
        super().__init__()
        D, (H, W), (P, Q) = config.embed_dim, pair(config.img_size), pair(config.patch_size)
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, D))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (H // P) * (W // Q), D))
        self.blocks = nn.Sequential(*(ViTBlock(config) for _ in range(config.depth)))
        self.norm, self.head = nn.LayerNorm(D, config.norm_eps), nn.Linear(D, config.num_classes)

    def forward(self, x: Any) -> Any:
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


# --- Swin -----------------------------------------------------------------------------------------------------------


class SwinEmbed(PatchEmbed):
    def __init__(self, config: Any):
        super().__init__(config)
        self.norm = nn.LayerNorm(config.embed_dim, 1e-5)
        self.grid = [side // patch for side, patch in zip(pair(config.img_size), pair(config.patch_size))]

    def forward(self, x: Any) -> Any:
        return self.norm(super().forward(x)).reshape(len(x), *self.grid, -1)


class WindowAttention(Attention):
    def __init__(self, dim: int, heads: int, window: tuple[int, int]):
        super().__init__(dim, heads)
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * window[0] - 1) * (2 * window[1] - 1), heads)
        )
        index = torch.tensor(windows.relative_position_index(window))
        self.register_buffer("index", index, persistent=False)

    def bias(self) -> Any:
        """(heads, N, N)"""
        N = len(self.index)
        return self.relative_position_bias_table[self.index.reshape(-1)].reshape(N, N, -1).permute(2, 0, 1)


class SwinBlock(nn.Module):
    """timm's windows: the map is padded after the roll, and padding is attended to like other tokens."""

    def __init__(self, config: Any, stage: int, size: tuple[int, int], shifted: bool):
        super().__init__()
        D, heads = config.embed_dim * 2**stage, config.num_heads[stage]
        self.window, self.shift = windows.window_and_shift(size, pair(config.window_size), shifted, config.window_rule)
        self.padding = windows.padding_of(size, self.window)
        self.norm1, self.norm2 = (nn.LayerNorm(D, config.norm_eps) for _ in range(2))
        self.attn, self.mlp = WindowAttention(D, heads, self.window), Mlp(D, int(D * config.mlp_ratio))
        mask = None
        if any(self.shift):
            regions = windows.shifted_regions(size, self.window, self.shift).numpy()             # (nW, N)
            apart = regions[:, :, None] != regions[:, None, :]
            mask = torch.from_numpy(np.where(apart, -np.inf, 0).astype(np.float32))[:, None]    # (nW, 1, N, N)
        self.register_buffer("mask", mask, persistent=False)

    def attend(self, x: Any) -> Any:
        B, h, w, D = x.shape
        (M, K), (below, right) = self.window, self.padding
        if any(self.shift):
            x = torch.roll(x, (-self.shift[0], -self.shift[1]), (1, 2))
        x = F.pad(x, (0, 0, 0, right, 0, below))
        H, W = h + below, w + right
        x = x.reshape(B, H // M, M, W // K, K, D).transpose(2, 3).reshape(-1, M * K, D)
        added = self.attn.bias()[None]
        if self.mask is not None:
            added = (added + self.mask)[None].expand(B, -1, -1, -1, -1).flatten(0, 1)           # (B nW, heads, N, N)
        x = self.attn(x, added.to(x.dtype))
        x = x.reshape(B, H // M, W // K, M, K, D).transpose(2, 3).reshape(B, H, W, D)[:, :h, :w]
        return torch.roll(x, self.shift, (1, 2)) if any(self.shift) else x

    def forward(self, x: Any) -> Any:
        x = x + self.attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * dim, 1e-5), nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Any) -> Any:
        B, h, w, D = x.shape
        x = F.pad(x, (0, 0, 0, w % 2, 0, h % 2))
        h, w = (h + 1) // 2, (w + 1) // 2
        x = x.reshape(B, h, 2, w, 2, D).permute(0, 1, 3, 4, 2, 5).reshape(B, h, w, 4 * D)
        return self.reduction(self.norm(x))


class SwinStage(nn.Module):
    def __init__(self, config: Any, stage: int, size: tuple[int, int]):
        super().__init__()
        self.downsample = PatchMerging(config.embed_dim * 2 ** (stage - 1)) if stage else nn.Identity()
        depth = config.depths[stage]
        self.blocks = nn.Sequential(*(SwinBlock(config, stage, size, i % 2 == 1) for i in range(depth)))

    def forward(self, x: Any) -> Any:
        return self.blocks(self.downsample(x))


class Swin(nn.Module):
    def __init__(self, config: Any):
        super().__init__()
        self.patch_embed = SwinEmbed(config)
        h, w = self.patch_embed.grid
        stages = []
        for stage in range(len(config.depths)):
            stages.append(SwinStage(config, stage, (h, w)))
            h, w = (h + 1) // 2, (w + 1) // 2
        D = config.embed_dim * 2 ** (len(stages) - 1)
        self.layers, self.norm = nn.Sequential(*stages), nn.LayerNorm(D, config.norm_eps)
        self.head = nn.ModuleDict({"fc": nn.Linear(D, config.num_classes)})

    def forward(self, x: Any) -> Any:
        return self.head["fc"](self.norm(self.layers(self.patch_embed(x))).mean((1, 2)))


# --- ResNet ---------------------------------------------------------------------------------------------------------


class FrozenBatchNorm(nn.Module):
    """y = x scale + shift, from statistics that never change."""

    def __init__(self, channels: int):
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Any) -> Any:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale[:, None, None] + (self.bias - self.running_mean * scale)[:, None, None]


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int, norm: Any):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1, self.bn2, self.downsample = norm(width), norm(width), None
        if stride > 1 or inputs != width:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, width, 1, stride=stride, bias=False), norm(width))

    def forward(self, x: Any) -> Any:
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + shortcut)


class ResNet(nn.Module):
    """Of basic blocks. With a head it gives logits, without one {"map": the last map}."""

    def __init__(self, config: Any, norm: Any = nn.BatchNorm2d, head: bool = True):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(config.in_chans, 64, 7, stride=2, padding=3, bias=False), norm(64)
        before = 64
        for stage, (depth, width) in enumerate(zip(config.layers, config.channels)):
            first = BasicBlock(before, width, 2 if stage else 1, norm)
            rest = (BasicBlock(width, width, 1, norm) for _ in range(depth - 1))
            setattr(self, f"layer{stage + 1}", nn.Sequential(first, *rest))
            before = width
        if head:
            self.fc = nn.Linear(before, config.num_classes)

    def forward(self, x: Any) -> Any:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.fc(x.mean((2, 3))) if hasattr(self, "fc") else {"map": x}


# --- DETR -----------------------------------------------------------------------------------------------------------


class DETR(detr_in_torch.DETR):
    """For images without padding: the positional embedding is computed once for each size."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.known: dict[tuple[int, ...], Any] = {}

    @staticmethod
    def body(config: Any) -> tuple[Any, int]:
        norm = FrozenBatchNorm if config.frozen_bn else nn.BatchNorm2d
        return ResNet(config, norm, head=False), config.channels[-1]

    def forward(self, x: Any) -> Any:
        features = self.backbone[0].body(x)["map"]
        B, _, h, w = features.shape
        if (B, h, w) not in self.known:
            table = sine_positions(np.ones((B, h, w), bool), self.input_proj.out_channels, np.float64)  # (B, h w, D)
            self.known[B, h, w] = torch.from_numpy(table).transpose(0, 1).to(x)
        return self.decode(features, self.known[B, h, w], None)


def set_loss(answers: list[Any], targets: list[dict[str, np.ndarray]], eos_coef: float = 0.1) -> Any:
    """DETR's loss over all decoder layers, with the weights of its authors. One copy to the host, for SciPy's matching.

    answers: logits (B, Q, K + 1) and boxes (B, Q, 4) of every layer in turn. targets: labels and boxes of each image.
    """
    from scipy.optimize import linear_sum_assignment

    logits, boxes = (
        each.to(torch.promote_types(each.dtype, torch.float32))         # from bfloat16
        for each in (torch.stack(answers[::2]), torch.stack(answers[1::2]))
    )
    L, B, Q, none = *logits.shape[:3], logits.shape[3] - 1
    counts = [len(each["labels"]) for each in targets]
    labels = torch.from_numpy(np.concatenate([each["labels"] for each in targets])).to(logits.device)
    true = torch.from_numpy(np.concatenate([each["boxes"] for each in targets])).to(boxes)
    with torch.no_grad():
        flat = boxes.flatten(0, 2)
        cost = 5 * torch.cdist(flat, true, p=1) - logits.flatten(0, 2).softmax(-1)[:, labels]
        cost -= 2 * _giou(_corners(flat)[:, None], _corners(true)[None])
        host = cost.reshape(L, B, Q, -1).cpu().numpy()
    ends = np.cumsum([0, *counts])
    queries, objects = [], []
    for layer in range(L):
        for image in range(B):
            chosen, which = linear_sum_assignment(host[layer, image, :, ends[image]:ends[image + 1]])
            queries.append(chosen + (layer * B + image) * Q)
            objects.append(which + ends[image])
    at, which = (torch.from_numpy(np.concatenate(each)).to(logits.device) for each in (queries, objects))
    classes = torch.full((L * B * Q,), none, device=logits.device)
    classes[at] = labels[which]
    weight = torch.ones(none + 1, device=logits.device, dtype=logits.dtype)
    weight[none] = eos_coef
    of_class = sum(F.cross_entropy(x.flatten(0, 1), c, weight) for x, c in zip(logits, classes.reshape(L, -1)))
    found, wanted = boxes.flatten(0, 2)[at], true[which]
    giou = _giou(_corners(found), _corners(wanted))
    return of_class + (5 * (found - wanted).abs().sum() + 2 * (1 - giou).sum()) / max(1, len(labels))


def _corners(boxes: Any) -> Any:
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], -1)


def _giou(a: Any, b: Any) -> Any:
    """The generalised IoU of boxes by their corners, with axes that broadcast."""
    area_a, area_b = ((x[..., 2:] - x[..., :2]).prod(-1) for x in (a, b))
    both = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    around = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    either = area_a + area_b - both
    return both / either - (around - either) / around


PEERS = {"vit": ViT, "swin": Swin, "resnet": ResNet, "detr": DETR}


def peer_of(model: str, config: Any) -> Any:
    """The model in PyTorch for our name and configuration."""
    return PEERS[model.partition("_")[0].rstrip("0123456789")](config)
