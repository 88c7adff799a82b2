"""Boxes: formats, areas, intersection over union (IoU) and generalised IoU.

    format    the four numbers                               used by
    cxcywh    centre, width and height                       DETR's outputs and targets, relative to the image, 0 … 1
    xyxy      left, top, right, bottom                       functions of overlap; Pascal VOC
    xywh      left, top, width and height                    COCO's files

Boxes are arrays (…, 4) on either device, or Tensors. Functions return Tensors, with gradients, if an argument is a
Tensor, and otherwise arrays. An empty set of boxes is an array (0, 4). Nothing here synchronises with the GPU.

With a ∩ b the intersection, a ∪ b the union, and C the smallest box around both:

    IoU(a, b)  = |a ∩ b| / |a ∪ b|                                              0 … 1
    GIoU(a, b) = IoU - (|C| - |a ∪ b|) / |C|                                   -1 … 1

GIoU (Rezatofighi et al., CVPR 2019, arXiv 1902.09630, algorithm 1) also measures how far apart two disjoint boxes are,
where IoU is 0 and has no gradient.

Degenerate boxes: a box without width or height, or with reversed sides, has area 0 and intersects nothing; a quotient
0 / 0, as for two points, is 0. So results are NaN only if the boxes are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

from scratchvit import ops
from scratchvit.backend import Array
from scratchvit.errors import WrongValue
from scratchvit.tensor import Tensor

Boxes: TypeAlias = Tensor | Array


def _arrays_or_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: check shapes, and return arrays instead of Tensors unless an argument is a Tensor."""

    @functools.wraps(function)
    def apply(*boxes: Boxes) -> Any:
        for each in boxes:
            if each.shape[-1:] != (4,):
                raise WrongValue(
                    f"{function.__name__}: boxes must have shape (…, 4), not {each.shape}; an empty set is (0, 4)"
                )
        result = function(*boxes)
        if any(isinstance(each, Tensor) for each in boxes):
            return result
        return tuple(part.data for part in result) if isinstance(result, tuple) else result.data

    return apply


# --- formats --------------------------------------------------------------------------------------------------------


@_arrays_or_tensors
def box_cxcywh_to_xyxy(boxes: Boxes) -> Any:
    """Convert (…, 4) from (centre x, centre y, width, height) to (left, top, right, bottom)."""
    centre, half = boxes[..., :2], boxes[..., 2:] * 0.5
    return ops.concatenate([centre - half, centre + half], -1)


@_arrays_or_tensors
def box_xyxy_to_cxcywh(boxes: Boxes) -> Any:
    """Convert (…, 4) from (left, top, right, bottom) to (centre x, centre y, width, height)."""
    left_top, right_bottom = boxes[..., :2], boxes[..., 2:]
    return ops.concatenate([(left_top + right_bottom) * 0.5, right_bottom - left_top], -1)


@_arrays_or_tensors
def box_xywh_to_xyxy(boxes: Boxes) -> Any:
    """Convert (…, 4) from (left, top, width, height) to (left, top, right, bottom)."""
    left_top, size = boxes[..., :2], boxes[..., 2:]
    return ops.concatenate([left_top, left_top + size], -1)


# --- overlap, of boxes as (left, top, right, bottom) ----------------------------------------------------------------


@_arrays_or_tensors
def box_area(boxes: Boxes) -> Any:
    """Areas (…) of boxes (…, 4), xyxy."""
    return _area(boxes[..., :2], boxes[..., 2:])


@_arrays_or_tensors
def box_iou(a: Boxes, b: Boxes) -> Any:
    """IoU (n, m) and area of the union (n, m) of all pairs of boxes from a (n, 4) and b (m, 4), both xyxy.

    Raises ValueError for other shapes.
    """
    intersection, union = _intersection_and_union(a[:, None], b[None])
    return _ratio(intersection, union), union


@_arrays_or_tensors
def generalized_box_iou(a: Boxes, b: Boxes) -> Any:
    """GIoU (n, m) of all pairs of boxes from a (n, 4) and b (m, 4), both xyxy. Raises ValueError for other shapes."""
    return _generalized_iou(a[:, None], b[None])


@_arrays_or_tensors
def paired_generalized_box_iou(a: Boxes, b: Boxes) -> Any:
    """GIoU (…) of corresponding boxes in a and b (…, 4), both xyxy, with broadcasting."""
    return _generalized_iou(a, b)


def _generalized_iou(a: Boxes, b: Boxes) -> Tensor:
    intersection, union = _intersection_and_union(a, b)
    around = _area(ops.minimum(a[..., :2], b[..., :2]), ops.maximum(a[..., 2:], b[..., 2:]))
    return _ratio(intersection, union) - _ratio(around - union, around)


def _intersection_and_union(a: Boxes, b: Boxes) -> tuple[Tensor, Tensor]:
    """|a ∩ b| and |a ∪ b| (…), with broadcasting."""
    area_a, area_b = _area(a[..., :2], a[..., 2:]), _area(b[..., :2], b[..., 2:])
    intersection = _area(ops.maximum(a[..., :2], b[..., :2]), ops.minimum(a[..., 2:], b[..., 2:]))
    return intersection, area_a + area_b - intersection


def _area(left_top: Boxes, right_bottom: Boxes) -> Tensor:
    sides = ops.clip(right_bottom - left_top, min=0)
    return sides[..., 0] * sides[..., 1]


def _ratio(x: Tensor, y: Tensor) -> Tensor:
    """x / y, with 0 / 0 = 0."""
    return x / (y + (y.data == 0))
