"""Data sets for detection (COCO, VOC, YOLO, generated scenes), their transforms and batches."""
