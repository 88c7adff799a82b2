"""Chapter 9: what Swin V2 and MViTv2 change, measured on small models."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scratchvit import nn, ops
from scratchvit.course.folder import folder
from scratchvit.errors import ScratchvitError
from scratchvit.models import mvit_v2, swin, swin_v2
from scratchvit.optim import AdamW
from scratchvit.recording import no_grad
from scratchvit.tensor import Tensor

Floats = NDArray[np.float32]

DEPTH = 24              # blocks of the models whose amplitudes are drawn
STEPS = 400             # of the training of G
HALF = 8.0              # 16 σ(0)


def amplitudes(successor: bool, scale: float, weight: float, images: Floats) -> list[float]:
    """The standard deviation of the tokens before the first block, and after each of DEPTH untrained blocks.

    successor: blocks of Swin V2, else of Swin. scale: multiplies all matrices of the blocks; weight: that of the norms
    at the end of Swin V2's branches. images float32 (B, 1, 16, 16).
    """
    sizes: dict[str, Any] = {
        "img_size": 16, "patch_size": 2, "in_chans": 1, "embed_dim": 32, "depths": (DEPTH,), "num_heads": (2,),
        "window_size": 4, "mlp_ratio": 2.0, "weight_init": "xavier",
    }
    model: Any = swin_v2.SwinTransformerV2(swin_v2.SwinV2Config(**sizes)) if successor else (
        swin.SwinTransformer(swin.SwinConfig(**sizes)))
    model.eval()
    blocks = list(model.layers[0].blocks)
    for block in blocks:
        for linear in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2):
            linear.weight.assign(scale * linear.weight.numpy())
        if successor:
            block.norm1.weight.assign(weight)
            block.norm2.weight.assign(weight)
    with no_grad():
        x = model.patch_embed(Tensor(images))
        return amplitudes_along(x, blocks)


def amplitudes_along(x: Tensor, layers: Sequence[nn.Module]) -> list[float]:
    """The standard deviation of x, and of the output of each layer, which is the input of the next."""
    found = [float(x.numpy().std())]
    with no_grad():
        for layer in layers:
            x = layer(x)
            found.append(float(x.numpy().std()))
    return found


def keys_and_query(model: swin.SwinTransformer, image: Floats, query: int) -> tuple[Floats, Floats]:
    """A query (d,) and all keys (N, d) of the first block of a trained Swin, in the middle of an image (1, H, W)."""
    block = model.layers[0].blocks[0]
    with no_grad():
        x = block.norm1(model.patch_embed(Tensor(image[None])))
        windows = ops.window_partition(x, block.window)                         # (nW, N, D)
        qkv = block.attn.qkv(windows).numpy()
    q, k, _ = np.split(qkv, 3, axis=-1)
    d = q.shape[-1] // block.attn.num_heads
    return q[0, query, :d], k[0, :, :d]


def probabilities(q: Floats, k: Floats, cosine: bool) -> Floats:
    """The attention of a query (d,) to the keys (N, d): by dot products over √d, or by cosines over τ = 1/10."""
    query, keys = Tensor(q[None, None, None]), Tensor(k[None, None])
    values = Tensor(np.eye(len(k), dtype=np.float32)[None, None])               # so that the output is P itself
    if cosine:
        query = query * (swin_v2.inverse_length(query) * swin_v2.EARLIEST_SCALE)
        keys = keys * swin_v2.inverse_length(keys)
    return ops.attention(query, keys, values, scale=1.0 if cosine else None).numpy()[0, 0, 0]


def imitation(table: Floats) -> swin_v2.WindowAttention:
    """An attention layer of Swin V2 whose G has learned a bias table of Swin, (heads, 2M-1, 2M-1).

    Softmax does not change if a constant is added to all scores, so G learns the table around 16 σ(0).
    """
    M = (table.shape[1] + 1) // 2
    attention = _attention(len(table), M, M)
    target = Tensor(table.reshape(len(table), -1).T.astype(np.float32) + np.float32(HALF))      # (offsets, heads)
    optimizer = AdamW(list(attention.cpb_mlp.parameters()), lr=5e-3, weight_decay=0.0)
    for _ in range(STEPS):
        optimizer.zero_grad()
        missed = 16 * attention.cpb_mlp(attention.offsets).sigmoid() - target
        (missed * missed).mean().backward()
        optimizer.step()
    return attention


def at_window(attention: swin_v2.WindowAttention, window: int, trained: int) -> Floats:
    """The table (heads, 2M-1, 2M-1) that G of an attention layer, trained in another window, gives in this one."""
    larger = _attention(attention.num_heads, window, trained)
    larger.cpb_mlp.load_state_dict(attention.cpb_mlp.state_dict())
    with no_grad():
        table = 16 * larger.cpb_mlp(larger.offsets).sigmoid() - HALF            # (offsets, heads)
    return table.numpy().T.reshape(-1, 2 * window - 1, 2 * window - 1)


def _attention(heads: int, window: int, trained: int) -> swin_v2.WindowAttention:
    config = swin_v2.SwinV2Config(
        embed_dim=8 * heads, depths=(1,), num_heads=(heads,), window_size=window, pretrained_window_sizes=(trained,)
    )
    attention = swin_v2.WindowAttention(config, 0, (window, window))
    rng = np.random.default_rng(0)
    first, _, last = attention.cpb_mlp
    first.weight.assign(rng.normal(0, 0.5, first.weight.shape).astype(np.float32))
    first.bias.assign(rng.normal(0, 0.5, first.bias.shape).astype(np.float32))
    last.weight.assign(rng.normal(0, 0.01, last.weight.shape).astype(np.float32))
    return attention


def extrapolation(trained: int, window: int) -> tuple[float, float]:
    """By how much the largest offset exceeds the trained range: on a linear scale, and on the paper's, log(1 + |Δ|)."""
    return (window - 1) / (trained - 1) - 1, float(np.log(window) / np.log(trained)) - 1


def two_ways(n: int, k: int, d: int = 16) -> tuple[Floats, Floats]:
    """The scores of n×n queries and k×k keys with decomposed positions, (n², k²), in two ways.

    First q·k + q·R^h + q·R^w for every pair, as eq. 4 has it; then as one product of longer vectors, as the model.
    """
    rng = np.random.default_rng(0)
    q, keys = (rng.standard_normal((side * side, d)).astype(np.float32) for side in (n, k))
    tables = [rng.standard_normal((2 * max(n, k) - 1, d)).astype(np.float32) for _ in range(2)]
    offsets = mvit_v2.relative_offsets(n, k)
    rows, columns = (offsets[np.ix_(at_q, at_k)] for at_q, at_k in zip(np.indices((n, n)).reshape(2, -1),
                                                                    np.indices((k, k)).reshape(2, -1)))
    by_pairs = q @ keys.T + sum(
        np.einsum("id,ijd->ij", q, table[offset]) for table, offset in zip(tables, (rows, columns))
    )
    scores = mvit_v2.relative_scores(
        Tensor(q[None, None]), (n, n), [Tensor(table) for table in tables], [Tensor(offsets)] * 2
    ).numpy()[0, 0]
    places = mvit_v2.key_places((k, k), 0)
    return by_pairs, np.concatenate([q, scores], axis=1) @ np.concatenate([keys, places], axis=1).T


def measured_models() -> list[dict[str, str]]:
    """The rows of docs/figures/throughput_accuracy.csv. Raises ScratchvitError if the file is missing."""
    path = Path(folder()).parent / "figures" / "throughput_accuracy.csv"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise ScratchvitError(f"{path} cannot be read ({error.strerror}): it belongs to the repository") from error
