"""Data sets for detection (COCO, VOC, YOLO, CSV, generated scenes), their transforms and batches."""
