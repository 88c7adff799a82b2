"""Adapting weights to a model of another size, as timm does.

    positional embeddings   bicubic, antialiased; the rows of class and distillation token are not changed
    relative positions      Swin's tables of offsets: linear interpolation on a grid that is dense near 0 and wide
                            further out (Swin V2 computes its bias, for any window)
    distances               MViTv2's relative positions, and positions in time: linear
    patch kernels           same output for an enlarged patch as before for the patch (FlexiViT)
    input channels          summed to one, or repeated and scaled so that the sum stays the same
    heads                   as they are, or left randomly initialised; never cut
    query groups            the first groups of a DETR's run that had more than the model
    classifiers             a ResNet's weights become the backbone of a DETR (backbone.py)

Everything else must have the shape in the model. Nothing here changes the model: `fit` returns the state to be loaded,
or raises an error that names everything that does not fit.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from scratchvit.models.interface import PatchModel, PositionedModel
from scratchvit.nn import Module, Parameter
from scratchvit.ops.resize import resize_matrix
from scratchvit.weights.backbone import BODY, as_backbone, has_backbone, is_resnet
from scratchvit.weights.misfit import FIRST_KERNELS, HEAD, complain, in_short
from scratchvit.weights.names import Renamed, Weights

# Names of stages that a backbone does not build if their feature maps are not used, and of the final norm.
_DEEP = re.compile(r"layer\d\.|stages\.\d\.|norm\.")


@dataclass
class LoadReport:
    """A report of loading a file; printed, it has a few lines.

    owner       library or project whose names the file had
    entry       which of the sets of weights in the file was loaded, as text; "" if there is only one
    adapted     what was adapted to the size of the model, as text
    left_out    tensors of the file that the model does not need
    as_drawn    tensors of the model that the file did not set, such as a new head
    notes       sentences about what was ignored
    """

    owner: str
    adapted: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    as_drawn: list[str] = field(default_factory=list)
    entry: str = ""
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"names: {self.owner}", *filter(None, [self.entry]), *(f"adapted: {what}" for what in self.adapted)]
        if self.left_out:
            lines.append(f"not used: {', '.join(in_short(self.left_out))}")
        if self.as_drawn:
            lines.append(f"not loaded, as initialised: {', '.join(in_short(self.as_drawn))}")
        return "\n".join([*lines, *self.notes])


def fit(
    model: Module, renamed: Renamed, new_head: bool = False, img_size: tuple[int, int] | None = None,
    query_groups: int = 1,
) -> tuple[Weights, LoadReport]:
    """Adapt weights to a model: (the complete state for `model.load_state_dict`, a report).

    new_head: keep the heads of the model, whatever the file has.
    img_size: (height, width) of the images of the file's model, if known: it decides whether 36 positions are 6×6 or
    4×9. Without it, a table of the same length as the model's has the same grid, and any other is square.
    query_groups: number of query groups in the file, if it is a DETR.
    Raises ScratchvitError, with all missing, unexpected and mis-shaped tensors, if the weights do not fit the model.
    """
    own: dict[str, Any] = dict(model.named_parameters()) | dict(model.named_buffers())
    fresh: list[str] = []
    if is_resnet(renamed.weights) and has_backbone(own):
        renamed = as_backbone(renamed, own)
        fresh = [name for name in own if not name.startswith(BODY)]
    weights = dict(renamed.weights)
    report = LoadReport(renamed.owner, left_out=list(renamed.left_out), entry=renamed.entry)
    if renamed.note and not new_head:       # notes are about the head
        report.adapted.append(renamed.note)

    heads = [name for name in own if HEAD.fullmatch(name) and name not in fresh]
    if fresh:
        report.as_drawn += fresh
        report.adapted.append("the weights of a classifier, to the backbone")
    for name in [name for name in weights if HEAD.fullmatch(name) and (new_head or not heads)]:
        del weights[name]
        report.left_out.append(name)
    if new_head:
        report.as_drawn += heads
    _fit_counters(own, weights)
    if "palette" in own and "palette" not in weights:
        report.as_drawn.append("palette")       # an iGPT's colours, which others store in a separate file
    if getattr(getattr(model, "config", None), "features_only", False):
        for name in [name for name in weights if name not in own and _DEEP.match(name)]:
            del weights[name]
            report.left_out.append(name)

    _fit_channels(own, weights, report)
    found = positions_in(weights, model, img_size)      # before the patches are resized
    _fit_patches(model, weights, report)
    _fit_positions(model, weights, report, found)
    _fit_offsets(model, weights, report)
    _fit_separable(model, weights, report, img_size)
    _fit_distances(own, weights, report)
    _fit_queries(model, weights, report, query_groups)
    complain(model, own, weights, renamed, as_drawn=report.as_drawn)
    state = {name: weights[name] if name in weights else own[name].numpy() for name in own}
    return state, report


def _fit_counters(own: dict[str, Any], weights: Weights) -> None:
    """Add or remove batch norm's counters: they are not used, old files lack them, and a frozen norm has none."""
    for name in own.keys() | weights.keys():
        if name.endswith(".num_batches_tracked"):
            if name not in own:
                del weights[name]
            else:
                weights.setdefault(name, np.zeros((), np.int64))


def _fit_channels(own: dict[str, Any], weights: Weights, report: LoadReport) -> None:
    name = next((name for name in FIRST_KERNELS if name in own), None)
    if name is None or name not in weights or weights[name].ndim != 4 or not weights[name].size:
        return
    before, after = weights[name].shape[1], own[name].shape[1]
    if before != after:
        weights[name] = adapt_channels(weights[name], after)
        report.adapted.append(f"{name}: {before} → {after} input channels")


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Adapt the first kernel (out, in, h, w) to another number of input channels.

    To one: the sum over the channels, which gives the same output for a grey picture. To n: the channels are repeated
    in turn and multiplied by in / n, so that the sum stays the same.
    """
    kernel = kernel.astype(np.float32)
    before = kernel.shape[1]
    if channels == 1:
        return kernel.sum(axis=1, keepdims=True)
    repeated = np.tile(kernel, (1, math.ceil(channels / before), 1, 1))[:, :channels]
    return repeated * np.float32(before / channels)


def _fit_patches(model: Any, weights: Weights, report: LoadReport) -> None:
    name = "patch_embed.proj.weight"
    embedding = getattr(model.patch_embed, "proj", None) if isinstance(model, PatchModel) else None
    if name not in weights or embedding is None:
        return
    size = embedding.weight.shape[2:]
    if weights[name].ndim == 2 and weights[name].size == embedding.weight.size:     # a plain matrix: timm, before 0.4
        weights[name] = weights[name].reshape(embedding.weight.shape)
    stride = embedding.stride
    if weights[name].ndim != 4 or len(size) != 2 or size != ((stride, stride) if isinstance(stride, int) else stride):
        return      # not for overlapping patches
    before = weights[name].shape[2:]
    if before != size and weights[name].size:
        weights[name] = resize_patches(weights[name], size)
        report.adapted.append(f"{name}: patches of {_by(before)} → {_by(size)}")


def resize_patches(kernel: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a patch embedding (D, C, P, Q) to another patch size (FlexiViT, arXiv 2212.08013, §3.4).

    With B the matrix that resizes a patch, the new kernel ŵ should give the same output for B x as w for x:
    ŵᵀ B x = wᵀ x, solved by the pseudo-inverse, ŵ = (Bᵀ)⁺ w. B resizes rows and columns separately, and so does its
    inverse.
    """
    rows, columns = (
        np.linalg.pinv(resize_matrix(before, after, None, "bicubic", False, True))     # (P, P')
        for before, after in zip(kernel.shape[2:], size)
    )
    return (rows.T @ kernel.astype(np.float64) @ columns).astype(np.float32)


class Positions(NamedTuple):
    """The layout of a positional embedding: `prefix` rows for other tokens, then those of the patches on a grid."""

    prefix: int
    grid: tuple[int, int]


def positions_in(weights: Weights, model: Any, img_size: tuple[int, int] | None = None) -> Positions | None:
    """The layout of the positional embedding in a file, for a model of this kind; None without a usable one.

    img_size: (height, width) of the images of the file's model, if known.
    """
    table = weights.get("pos_embed")
    if table is None or table.ndim != 3 or len(table) != 1 or not isinstance(model, PositionedModel):
        return None
    kernel = weights.get("patch_embed.proj.weight")
    cuts = kernel.shape[2:] if kernel is not None and kernel.ndim == 4 and kernel.size else (1, 1)
    aspect = (img_size[0] / cuts[0], img_size[1] / cuts[1]) if img_size else None
    for prefix in dict.fromkeys((model.num_prefix_tokens, 0)):
        if grid := _grid_of(table.shape[1] - prefix, model.patch_embed.grid_size, aspect):
            return Positions(prefix, grid)
    return None


def _fit_positions(model: Any, weights: Weights, report: LoadReport, found: Positions | None) -> None:
    table, own = weights.get("pos_embed"), getattr(model, "pos_embed", None)
    if table is not None and own is not None and not isinstance(own, Parameter):
        # The model computes it: an equal table in the file is redundant.
        if table.shape == own.shape and np.allclose(table, own.numpy(), atol=1e-5):
            report.left_out.append("pos_embed")
            del weights["pos_embed"]
        return
    if table is None or found is None:
        return
    (rows_before, before), prefix, after = found, model.num_prefix_tokens, model.patch_embed.grid_size
    if rows_before < prefix:        # a table without rows for the tokens before the patches
        table = np.concatenate([np.zeros((1, prefix, table.shape[2]), table.dtype), table], axis=1)
        report.adapted.append("pos_embed: zeros for the class token, which had no position")
    if before != after:
        table = resize_positions(table, before, after, prefix)
        report.adapted.append(f"pos_embed: a grid of {_by(before)} → {_by(after)}")
    weights["pos_embed"] = table


def _grid_of(
    patches: int, model_grid: tuple[int, int], aspect: tuple[float, float] | None
) -> tuple[int, int] | None:
    """The grid of a number of patches: with the given aspect ratio, the model's own, or square; None if none fits."""
    if patches < 1:
        return None
    rows = math.sqrt(patches * aspect[0] / aspect[1]) if aspect else 0.0
    side = math.isqrt(patches)
    grids = [(round(rows), patches // round(rows))] if rows >= 0.5 else []
    return next((grid for grid in [*grids, model_grid, (side, side)] if math.prod(grid) == patches), None)


def resize_positions(table: np.ndarray, before: tuple[int, int], after: tuple[int, int], prefix: int) -> np.ndarray:
    """Resize a positional embedding (1, prefix + H·W, D) to (1, prefix + H'·W', D); `prefix` rows are not changed."""
    rows, columns = (resize_matrix(old, new, None, "bicubic", False, True) for old, new in zip(before, after))
    places = table[0, prefix:].astype(np.float64).reshape(*before, table.shape[2])  # (H, W, D)
    places = np.einsum("ih,hwd,jw->ijd", rows, places, columns, optimize=True)      # (H', W', D)
    places = places.reshape(1, math.prod(after), table.shape[2]).astype(np.float32)
    return np.concatenate([table[:, :prefix].astype(np.float32), places], axis=1)


def _fit_offsets(model: Module, weights: Weights, report: LoadReport) -> None:
    for path, module in model.named_modules():
        name = f"{path}.relative_position_bias_table"
        own, table = getattr(module, "relative_position_bias_table", None), weights.get(name)
        if own is None or table is None or table.ndim != 2 or len(table) == len(own):
            continue
        side = math.isqrt(len(table))           # of a square window's table: 2M - 1
        if side % 2 and side * side == len(table):
            before, after = ((side + 1) // 2, (side + 1) // 2), module.window   # type: ignore[attr-defined]
            weights[name] = resize_offsets(table, before, after)
            report.adapted.append(f"{name}: a window of {_by(before)} → {_by(after)}")


def resize_offsets(table: np.ndarray, before: tuple[int, int], after: tuple[int, int]) -> np.ndarray:
    """Resize a table of relative positions ((2M-1)·(2M'-1), heads) to another window size, as in timm and BEiT.

    Small offsets matter most and mean the same in every window, so 0 and ±1 keep their entries. The old offsets are
    placed at growing distances, 1, q, q², …, such that the last one falls on the last new offset; between them the
    entries are interpolated linearly.
    """
    rows, columns = (_offset_matrix(old, new) for old, new in zip(before, after))   # (2M_new - 1, 2M_old - 1)
    places = table.astype(np.float64).reshape(rows.shape[1], columns.shape[1], table.shape[1])
    places = np.einsum("iy,yxh,jx->ijh", rows, places, columns, optimize=True)
    return places.reshape(len(rows) * len(columns), table.shape[1]).astype(np.float32)


def _offset_matrix(before: int, after: int) -> np.ndarray:
    """The interpolation matrix (2 after - 1, 2 before - 1). For a smaller window q is about 1: the table is cropped."""
    smallest, largest = 1.01, 1.5               # of q
    while largest - smallest > 1e-6:
        q = (smallest + largest) / 2
        if sum(q**i for i in range(before - 1)) > after - 1:
            largest = q
        else:
            smallest = q
    out = np.cumsum(q ** np.arange(before - 1))
    return np.stack([
        np.interp(np.arange(1 - after, after), np.concatenate([-out[::-1], [0], out]), entry)
        for entry in np.eye(2 * before - 1)
    ], axis=1)


def _fit_separable(model: Any, weights: Weights, report: LoadReport, img_size: tuple[int, int] | None) -> None:
    """Resize MViT's two positional embeddings, of the positions in a frame and of the frames."""
    space, time = weights.get("pos_encoding.spatial_pos"), weights.get("pos_encoding.temporal_pos")
    if not hasattr(model, "pos_encoding") or space is None or time is None or not space.ndim == time.ndim == 2:
        return
    frames, *after = model.grid_size
    before = _grid_of(len(space), (after[0], after[1]), img_size)
    if before and before != (after[0], after[1]):
        weights["pos_encoding.spatial_pos"] = resize_positions(space[None], before, (after[0], after[1]), 0)[0]
        report.adapted.append(f"pos_encoding.spatial_pos: a grid of {_by(before)} → {_by(tuple(after))}")
    if len(time) and len(time) != frames:
        weights["pos_encoding.temporal_pos"] = resize_distances(time, frames)
        report.adapted.append(f"pos_encoding.temporal_pos: {len(time)} → {frames} frames")


def _fit_distances(own: dict[str, Any], weights: Weights, report: LoadReport) -> None:
    names = [
        name for name, table in weights.items()
        if ".rel_pos_" in name and name in own and table.ndim == 2 and len(table) and len(table) != len(own[name])
    ]
    for name in names:
        weights[name] = resize_distances(weights[name], len(own[name]))
    if names:
        report.adapted.append(f"{len(names)} tables of relative positions: to the distances in the model's grids")


def resize_distances(table: np.ndarray, length: int) -> np.ndarray:
    """Resize a table (n, D) along its first axis to (length, D), by linear interpolation, as in timm."""
    matrix = resize_matrix(len(table), length, None, "bilinear", False, False)          # (length, n)
    return (matrix @ table.astype(np.float64)).astype(np.float32)


def _fit_queries(model: Any, weights: Weights, report: LoadReport, groups: int) -> None:
    """Keep the query groups that the model has: a file has `groups` sets of queries, each trained independently."""
    config = getattr(model, "config", None)
    queries, kept = getattr(config, "num_queries", 0), getattr(config, "query_groups", groups)
    for name in ("query_embed.weight", "refpoint_embed.weight"):
        table = weights.get(name)
        if kept < groups and table is not None and table.ndim == 2 and len(table) == groups * queries:
            weights[name] = table[: kept * queries]
            report.adapted.append(f"{name}: the first {kept} of {groups} query groups")


def _by(size: tuple[int, ...]) -> str:
    return "×".join(map(str, size))
