"""Detection as set prediction: data, boxes, matching, losses, evaluation. Symbols: see models/detr.py."""

from scratchvit.detection.boxes import (
    box_area,
    box_cxcywh_to_xyxy,
    box_iou,
    box_xywh_to_xyxy,
    box_xyxy_to_cxcywh,
    generalized_box_iou,
    paired_generalized_box_iou,
)
from scratchvit.detection.criterion import FocalCriterion, SetCriterion
from scratchvit.detection.data.batches import DetectionLoader
from scratchvit.detection.data.source import load_detection
from scratchvit.detection.losses import Output, from_columns, to_columns
from scratchvit.detection.matcher import HungarianMatcher
from scratchvit.detection.postprocess import postprocess
