"""Weights of one size brought to a model of another, as timm does it.

    position tables     bicubic, antialiased, the rows of class and distillation token left alone
    tables of offsets   Swin's relative positions: linear between offsets that stay where they are near 0 and move apart
                        further out (Swin V2 computes its own, for any window)
    distances           MViTv2's relative positions, and positions in time: linear
    patch kernels       the kernel that answers to an enlarged patch as the old one did to the patch (FlexiViT)
    input channels      summed to one, or repeated and scaled so that the sum stays
    heads               as they are, or left as the model drew them, never cut
    query groups        of a DETR's run that had more than the model, the first

Everything else must have the model's shape. Nothing here changes the model: `fit` gives the state that it is to load,
or raises with all that does not fit.
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
from scratchvit.weights.misfit import FIRST_KERNELS, HEAD, complain, grouped
from scratchvit.weights.names import Renamed, Weights

# Of stages that a backbone does not build when nobody asks for their maps, and of what comes after the last.
_DEEP = re.compile(r"layer\d\.|stages\.\d\.|norm\.")


@dataclass
class LoadReport:
    """What came of loading a file; printed, a few lines.

    owner       whose names it had
    adapted     what was brought to the model's size, in words
    left_out    the file's tensors that the model has no use for
    as_drawn    the model's own that the file does not set: a new head
    """

    owner: str
    adapted: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    as_drawn: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"names: {self.owner}", *(f"adapted: {what}" for what in self.adapted)]
        if self.left_out:
            lines.append(f"not used: {', '.join(grouped(self.left_out))}")
        if self.as_drawn:
            lines.append(f"left as drawn: {', '.join(grouped(self.as_drawn))}")
        return "\n".join(lines)


def fit(
    model: Module, renamed: Renamed, new_head: bool = False, img_size: tuple[int, int] | None = None,
    query_groups: int = 1,
) -> tuple[Weights, LoadReport]:
    """(the whole state for `model.load_state_dict`, what was done).

    new_head: the model's heads stay as they are, whatever the file has.
    img_size: (height, width) of the pictures that the file's model takes, where that is known: it says whether 36
    positions are 6×6 or 4×9. Otherwise a table as long as the model's has its grid, and any other is square.
    query_groups: of the file's model, if it is a DETR.
    Raises ScratchvitError, with all that is missing, unexpected and mis-shaped, if the weights are not this model's.
    """
    own: dict[str, Any] = dict(model.named_parameters()) | dict(model.named_buffers())
    weights = dict(renamed.weights)
    report = LoadReport(renamed.owner, left_out=list(renamed.left_out))
    if renamed.note and not new_head:       # it is about the head
        report.adapted.append(renamed.note)

    heads = [name for name in own if HEAD.fullmatch(name)]
    for name in [name for name in weights if HEAD.fullmatch(name) and (new_head or not heads)]:
        del weights[name]
        report.left_out.append(name)
    if new_head:
        report.as_drawn += heads
    _fit_counters(own, weights)
    if "palette" in own and "palette" not in weights:
        report.as_drawn.append("palette")       # an iGPT's colours, which others keep in a file beside the weights
    if getattr(getattr(model, "config", None), "features_only", False):
        for name in [name for name in weights if name not in own and _DEEP.match(name)]:
            del weights[name]
            report.left_out.append(name)

    _fit_channels(own, weights, report)
    found = positions_in(weights, model, img_size)      # by the patches as they are in the file
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
    """Batch norm's counters: nothing is computed with them, older files lack them, and a frozen norm has none."""
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
    """A first kernel (out, in, h, w) for another number of input channels.

    To one: their sum, which is the same answer to a grey picture. To n: in turn, times in / n, so that the sum stays.
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
        return      # patches that overlap are no matrix on a cut picture
    before = weights[name].shape[2:]
    if before != size and weights[name].size:
        weights[name] = resize_patches(weights[name], size)
        report.adapted.append(f"{name}: patches of {_by(before)} → {_by(size)}")


def resize_patches(kernel: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A patch embedding (D, C, P, Q) for patches of another size (FlexiViT, arXiv 2212.08013, §3.4).

    With B the matrix that resizes a patch, the new kernel ŵ is to answer to B x as w did to x: ŵᵀ B x = wᵀ x, solved by
    the pseudo-inverse, ŵ = (Bᵀ)⁺ w. B resizes rows and columns apart, so its inverse does too.
    """
    rows, columns = (
        np.linalg.pinv(resize_matrix(before, after, None, "bicubic", False, True))     # (P, P')
        for before, after in zip(kernel.shape[2:], size)
    )
    return (rows.T @ kernel.astype(np.float64) @ columns).astype(np.float32)


class Positions(NamedTuple):
    """How a position table is laid out: the rows of other tokens, then those of the patches on a grid."""

    prefix: int
    grid: tuple[int, int]


def positions_in(weights: Weights, model: Any, img_size: tuple[int, int] | None = None) -> Positions | None:
    """The layout of a file's position table for such a model; None if it has no table that could be one's.

    img_size: (height, width) of the pictures that the file's model takes, where that is known.
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
        # Computed: a file that carries the same one says nothing new.
        if table.shape == own.shape and np.allclose(table, own.numpy(), atol=1e-5):
            report.left_out.append("pos_embed")
            del weights["pos_embed"]
        return
    if table is None or found is None:
        return
    (rows_before, before), prefix, after = found, model.num_prefix_tokens, model.patch_embed.grid_size
    if rows_before < prefix:        # a table of the patches alone: the tokens before them have no position
        table = np.concatenate([np.zeros((1, prefix, table.shape[2]), table.dtype), table], axis=1)
        report.adapted.append("pos_embed: zeros for the class token, which had no position")
    if before != after:
        table = resize_positions(table, before, after, prefix)
        report.adapted.append(f"pos_embed: a grid of {_by(before)} → {_by(after)}")
    weights["pos_embed"] = table


def _grid_of(
    patches: int, model_grid: tuple[int, int], aspect: tuple[float, float] | None
) -> tuple[int, int] | None:
    """The grid of so many patches: of that aspect, or the model's own, or square; None if none has as many."""
    if patches < 1:
        return None
    rows = math.sqrt(patches * aspect[0] / aspect[1]) if aspect else 0.0
    side = math.isqrt(patches)
    grids = [(round(rows), patches // round(rows))] if rows >= 0.5 else []
    return next((grid for grid in [*grids, model_grid, (side, side)] if math.prod(grid) == patches), None)


def resize_positions(table: np.ndarray, before: tuple[int, int], after: tuple[int, int], prefix: int) -> np.ndarray:
    """A position table (1, prefix + H·W, D) → (1, prefix + H'·W', D); the first `prefix` rows stay."""
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
    """A table of relative positions ((2M-1)·(2M'-1), heads) for windows of another size, as timm and BEiT do it.

    Near offsets matter most and mean the same in every window, so 0 and ±1 keep their entries. From there on the old
    offsets are set at growing distances, 1, q, q², …, such that the last comes to the last new one; entries between
    them are a linear mean of their neighbours.
    """
    rows, columns = (_offset_matrix(old, new) for old, new in zip(before, after))   # (2M_new - 1, 2M_old - 1)
    places = table.astype(np.float64).reshape(rows.shape[1], columns.shape[1], table.shape[1])
    places = np.einsum("iy,yxh,jx->ijh", rows, places, columns, optimize=True)
    return places.reshape(len(rows) * len(columns), table.shape[1]).astype(np.float32)


def _offset_matrix(before: int, after: int) -> np.ndarray:
    """(2 after - 1, 2 before - 1): the new offsets as means of the old. In a smaller window q is about 1: a cut."""
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
    """MViT's tables: of the places in a frame, and of the frames."""
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
    """A table (n, D) of what lies along one axis → (length, D), each entry between its two nearest, as timm does it."""
    matrix = resize_matrix(len(table), length, None, "bilinear", False, False)          # (length, n)
    return (matrix @ table.astype(np.float64)).astype(np.float32)


def _fit_queries(model: Any, weights: Weights, report: LoadReport, groups: int) -> None:
    """A DETR's queries, `groups` sets of them in a row, each trained to do without the others: those the model has."""
    config = getattr(model, "config", None)
    queries, kept = getattr(config, "num_queries", 0), getattr(config, "query_groups", groups)
    for name in ("query_embed.weight", "refpoint_embed.weight"):
        table = weights.get(name)
        if kept < groups and table is not None and table.ndim == 2 and len(table) == groups * queries:
            weights[name] = table[: kept * queries]
            report.adapted.append(f"{name}: the first {kept} of {groups} query groups")


def _by(size: tuple[int, ...]) -> str:
    return "×".join(map(str, size))
