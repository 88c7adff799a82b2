"""Boxes: their formats, areas, and how far two of them overlap.

    format    the four numbers                               used by
    cxcywh    centre, width and height                       DETR's outputs and targets, in 0 … 1 of the image
    xyxy      left, top, right, bottom                       whatever overlaps; Pascal VOC
    xywh      left, top, width and height                    COCO's files

Boxes are arrays (…, 4) of either device, or Tensors: a function gives what it was given, and gradients flow through
Tensors. No boxes are an array (0, 4). Nothing here waits for the GPU.

With a ∩ b the common part, a ∪ b the union, and C the smallest box around both:

    IoU(a, b)  = |a ∩ b| / |a ∪ b|                                              0 … 1
    GIoU(a, b) = IoU - (|C| - |a ∪ b|) / |C|                                   -1 … 1

GIoU (Rezatofighi et al., CVPR 2019, arXiv 1902.09630, algorithm 1) also tells how far apart two boxes are that have no
common part, where IoU is 0 and has no slope.

Degenerate boxes. A box of no width or height, or with its sides reversed, has area 0 and no common part with anything;
a quotient 0 / 0, as of two points, counts 0. So nothing here is NaN unless the boxes are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

from scratchvit import ops
from scratchvit.backend import Array
from scratchvit.tensor import Tensor

Boxes: TypeAlias = Tensor | Array


def _gives_what_it_is_given(function: Callable[..., Any]) -> Callable[..., Any]:
    """Ops, of which the functions here are made, give Tensors: turn them into arrays when no box came in a Tensor."""

    @functools.wraps(function)
    def apply(*boxes: Boxes) -> Any:
        for each in boxes:
            if each.shape[-1:] != (4,):
                raise ValueError(
                    f"{function.__name__}: boxes have the shape (…, 4), not {each.shape}; no boxes are an array (0, 4)"
                )
        result = function(*boxes)
        if any(isinstance(each, Tensor) for each in boxes):
            return result
        return tuple(part.data for part in result) if isinstance(result, tuple) else result.data

    return apply


# --- formats --------------------------------------------------------------------------------------------------------


@_gives_what_it_is_given
def box_cxcywh_to_xyxy(boxes: Boxes) -> Any:
    """(…, 4) as (centre x, centre y, width, height) → (…, 4) as (left, top, right, bottom)."""
    centre, half = boxes[..., :2], boxes[..., 2:] * 0.5
    return ops.concatenate([centre - half, centre + half], -1)


@_gives_what_it_is_given
def box_xyxy_to_cxcywh(boxes: Boxes) -> Any:
    """(…, 4) as (left, top, right, bottom) → (…, 4) as (centre x, centre y, width, height)."""
    left_top, right_bottom = boxes[..., :2], boxes[..., 2:]
    return ops.concatenate([(left_top + right_bottom) * 0.5, right_bottom - left_top], -1)


@_gives_what_it_is_given
def box_xywh_to_xyxy(boxes: Boxes) -> Any:
    """(…, 4) as (left, top, width, height) → (…, 4) as (left, top, right, bottom)."""
    left_top, size = boxes[..., :2], boxes[..., 2:]
    return ops.concatenate([left_top, left_top + size], -1)


# --- overlap, of boxes as (left, top, right, bottom) ----------------------------------------------------------------


@_gives_what_it_is_given
def box_area(boxes: Boxes) -> Any:
    """(…, 4) as xyxy → their areas (…)."""
    return _area(boxes[..., :2], boxes[..., 2:])


@_gives_what_it_is_given
def box_iou(a: Boxes, b: Boxes) -> Any:
    """Every box of a (n, 4) with every box of b (m, 4), both xyxy → (IoU (n, m), |a ∪ b| (n, m))."""
    intersection, union = _intersection_and_union(a[:, None], b[None])
    return _ratio(intersection, union), union


@_gives_what_it_is_given
def generalized_box_iou(a: Boxes, b: Boxes) -> Any:
    """Every box of a (n, 4) with every box of b (m, 4), both xyxy → GIoU (n, m)."""
    return _generalized_iou(a[:, None], b[None])


@_gives_what_it_is_given
def paired_generalized_box_iou(a: Boxes, b: Boxes) -> Any:
    """Each box of a (…, 4) with its counterpart in b (…, 4), both xyxy, with broadcasting → GIoU (…)."""
    return _generalized_iou(a, b)


def _generalized_iou(a: Boxes, b: Boxes) -> Tensor:
    intersection, union = _intersection_and_union(a, b)
    around = _area(ops.minimum(a[..., :2], b[..., :2]), ops.maximum(a[..., 2:], b[..., 2:]))
    return _ratio(intersection, union) - _ratio(around - union, around)


def _intersection_and_union(a: Boxes, b: Boxes) -> tuple[Tensor, Tensor]:
    """|a ∩ b| and |a ∪ b| (…) of boxes that are broadcast against each other."""
    area_a, area_b = _area(a[..., :2], a[..., 2:]), _area(b[..., :2], b[..., 2:])
    intersection = _area(ops.maximum(a[..., :2], b[..., :2]), ops.minimum(a[..., 2:], b[..., 2:]))
    return intersection, area_a + area_b - intersection


def _area(left_top: Boxes, right_bottom: Boxes) -> Tensor:
    sides = ops.clip(right_bottom - left_top, min=0)
    return sides[..., 0] * sides[..., 1]


def _ratio(x: Tensor, y: Tensor) -> Tensor:
    """x / y, where 0 / 0 counts 0."""
    return x / (y + (y.data == 0))
