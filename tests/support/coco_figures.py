"""Random results of a detector, and the figures that pycocotools computes from them."""

import contextlib
import io
import json

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def result(image, category, box, score):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def random_files(folder, seed):
    """A file of annotations and one of results with every kind of detection, written by json alone. Returns both paths.

    Small, medium and large objects, outlines smaller than their boxes, crowds, images without objects, a class without
    any, near and far detections, doubles, wrong classes, equal scores, and more than 100 of a class in one image.
    """
    rng = np.random.default_rng(seed)       # not moved: of seeds 0 to 4, every one of the twelve figures says something
    images, classes = [7, 12, 139, 285, 632, 724, 776, 785], [1, 2, 44, 90]
    annotations, results = [], []

    def some_box():
        x, y, size, aspect = rng.uniform(0, 400), rng.uniform(0, 300), 2 ** rng.uniform(3, 8), 2 ** rng.uniform(-1, 1)
        return np.array([x, y, size * aspect, size / aspect])

    for image in images[:-1]:
        for _ in range(rng.integers(0, 12)):
            box, category = some_box(), int(rng.choice(classes[:-1]))
            crowd = int(rng.random() < 0.15)
            annotations.append({
                "segmentation": [[1.0, 1.0, 2.0, 1.0, 2.0, 2.0]], "area": box[2] * box[3] * rng.uniform(0.5, 1),
                "iscrowd": crowd, "image_id": image, "bbox": box.round(2).tolist(), "category_id": category,
                "id": 1000 + 17 * len(annotations),
            })
            for _ in range(rng.integers(0, 4) + 5 * crowd):
                near = np.abs(box + rng.normal(0, 0.07, 4) * box[[2, 3, 2, 3]])
                said = int(rng.choice(classes)) if rng.random() < 0.2 else category
                results.append(result(image, said, near.round(2).tolist(), round(rng.random(), 2)))
    for image, count in zip(images, (0, 130, 20, 5, 0, 10, 3, 40)):
        for _ in range(count):
            results.append(result(image, 2, some_box().round(2).tolist(), round(rng.random() * 0.7, 2)))
    truth = {
        "images": [{"id": i, "width": 640, "height": 480, "file_name": f"{i}.jpg"} for i in images],
        "annotations": annotations,
        "categories": [{"id": i, "name": f"class {i}", "supercategory": "thing"} for i in classes],
    }
    paths = folder / f"truth{seed}.json", folder / f"results{seed}.json"
    for path, content in zip(paths, (truth, [results[i] for i in rng.permutation(len(results))])):
        path.write_text(json.dumps(content))
    return paths


def by_pycocotools(truth, results):
    """The twelve numbers of its own flow, from files, and its precision (thresholds, recalls, classes)."""
    with contextlib.redirect_stdout(io.StringIO()):
        expected = COCO(str(truth))
        evaluation = COCOeval(expected, expected.loadRes(str(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist(), evaluation.eval["precision"][:, :, :, 0, 2]
