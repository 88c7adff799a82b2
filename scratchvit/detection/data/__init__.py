"""Pictures with boxes as people have them (COCO, VOC, YOLO), and how they become batches."""
