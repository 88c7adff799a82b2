"""DETR told again in PyTorch's own layers, under the authors' names: what ours must equal.

PyTorch's nn.MultiheadAttention, torchvision's ResNet with its frozen norm, tokens before images (L, B, D). Parity tests
import this file, and scripts/gpu_parts/peers.py, which has a backbone of its own.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


class Layer(nn.Module):
    def __init__(self, dim, heads, hidden, pre_norm, cross):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, heads)
        if cross:
            self.multihead_attn = nn.MultiheadAttention(dim, heads)
            self.norm3 = nn.LayerNorm(dim)
        self.linear1, self.linear2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.pre_norm = pre_norm

    def run(self, x, steps):
        for norm, branch in steps:
            x = x + branch(norm(x)) if self.pre_norm else norm(x + branch(x))
        return x

    def mlp(self, x):
        return self.linear2(F.relu(self.linear1(x)))


class EncoderLayer(Layer):
    def forward(self, x, pos, padding):
        def attend(y):
            return self.self_attn(y + pos, y + pos, y, key_padding_mask=padding, need_weights=False)[0]

        return self.run(x, [(self.norm1, attend), (self.norm2, self.mlp)])


class DecoderLayer(Layer):
    def forward(self, x, query_pos, memory, pos, padding):
        def among_themselves(y):
            return self.self_attn(y + query_pos, y + query_pos, y, need_weights=False)[0]

        def at_the_image(y):
            return self.multihead_attn(
                y + query_pos, memory + pos, memory, key_padding_mask=padding, need_weights=False
            )[0]

        return self.run(x, [(self.norm1, among_themselves), (self.norm2, at_the_image), (self.norm3, self.mlp)])


def stack(kind, depth, norm):
    part = nn.Module()
    part.layers = nn.ModuleList(kind() for _ in range(depth))
    if norm is not None:
        part.norm = norm
    return part


def positions(shown, dim):
    """shown bool (B, H, W) → (HW, B, D), each number by its formula."""
    B, H, W = shown.shape
    table = torch.zeros(B, dim, H, W, dtype=torch.float64)
    count_y, count_x = shown.double().cumsum(1), shown.double().cumsum(2)
    for half, place in ((0, count_y / (count_y[:, -1:, :] + 1e-6)), (1, count_x / (count_x[:, :, -1:] + 1e-6))):
        for i in range(dim // 2):
            angle = 2 * math.pi * place / 10_000 ** (2 * (i // 2) / (dim // 2))
            table[:, half * (dim // 2) + i] = angle.cos() if i % 2 else angle.sin()
    return table.flatten(2).permute(2, 0, 1)


def torchvisions_body(config):
    """torchvision's ResNet without its head, and the channels of its map."""
    from tests.support.peers import import_torchvision

    torchvision = import_torchvision()
    resnet = {(2, False): "resnet18", (3, True): "resnet50", (3, False): "resnet34"}
    body = getattr(torchvision.models, resnet[config.layers[0], config.bottleneck])(
        norm_layer=torchvision.ops.misc.FrozenBatchNorm2d if config.frozen_bn else nn.BatchNorm2d,
        replace_stride_with_dilation=[False, False, config.dilation],
    )
    return torchvision.models._utils.IntermediateLayerGetter(body, {"layer4": "map"}), body.fc.in_features


class DETR(nn.Module):
    """config: of ours. It gives (logits, boxes) of every decoder layer, the last one's last."""

    def __init__(self, config):
        super().__init__()
        joined = nn.Module()
        joined.body, channels = self.body(config)
        self.backbone = nn.ModuleList([joined])
        D = config.hidden_dim
        self.input_proj = nn.Conv2d(channels, D, 1)
        sizes = (D, config.nheads, config.dim_feedforward, config.normalize_before)
        encoder_norm = nn.LayerNorm(D) if config.normalize_before else None
        self.transformer = nn.Module()
        self.transformer.encoder = stack(lambda: EncoderLayer(*sizes, cross=False), config.enc_layers, encoder_norm)
        self.transformer.decoder = stack(lambda: DecoderLayer(*sizes, cross=True), config.dec_layers, nn.LayerNorm(D))
        self.query_embed = nn.Embedding(config.num_queries, D)
        self.class_embed = nn.Linear(D, config.num_classes + 1)
        self.bbox_embed = nn.Module()
        self.bbox_embed.layers = nn.ModuleList([nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, 4)])

    body = staticmethod(torchvisions_body)

    def forward(self, x, mask):
        features = self.backbone[0].body(x)["map"]
        padding = F.interpolate(mask[None].float(), size=features.shape[-2:]).bool()[0]
        pos = positions(~padding, self.input_proj.out_channels).to(x.dtype)
        return self.decode(features, pos, padding.flatten(1))

    def decode(self, features, pos, padding):
        """The answers from a map of features (B, C, h, w); padding (B, h w) or None."""
        memory = self.input_proj(features).flatten(2).permute(2, 0, 1)
        for layer in self.transformer.encoder.layers:
            memory = layer(memory, pos, padding)
        if hasattr(self.transformer.encoder, "norm"):
            memory = self.transformer.encoder.norm(memory)
        query_pos = self.query_embed.weight[:, None].repeat(1, len(features), 1)
        state, answers = torch.zeros_like(query_pos), []
        first, second, third = self.bbox_embed.layers
        for layer in self.transformer.decoder.layers:
            state = layer(state, query_pos, memory, pos, padding)
            given = self.transformer.decoder.norm(state).transpose(0, 1)
            answers += [self.class_embed(given), third(F.relu(second(F.relu(first(given))))).sigmoid()]
        return answers
