"""Pictures with boxes that are told apart by their numbers, in every format, and how they are compared."""

import json

import numpy as np

from scratchvit.detection.data.source import load_detection
from tests.support.data_samples import write_picture
from tests.support.detection_samples import SIZE, voc_object, voc_xml

W, H = SIZE
CLASSES = ("ant", "cat")
COUNT = 12


def boxes_of(number):
    """(class, (x0, y0, x1, y1)) of the objects in a picture, whose positions tell the pictures apart."""
    return [("cat", (number, 2, number + 10, 12)), ("ant", (4, number, 30, number + 9))][: 1 + number % 2]


def xml_of(number):
    return voc_xml(*(voc_object(name, (x0 + 1, y0 + 1, x1, y1)) for name, (x0, y0, x1, y1) in boxes_of(number)))


def text_of(number):
    shares = [
        (CLASSES.index(name), (x0 + x1) / 2 / W, (y0 + y1) / 2 / H, (x1 - x0) / W, (y1 - y0) / H)
        for name, (x0, y0, x1, y1) in boxes_of(number)
    ]
    return "".join(" ".join(f"{value:.8g}" for value in line) + "\n" for line in shares)


def json_of(numbers, name="{}.jpg", first=1):
    annotations = [
        {"image_id": number, "category_id": first + CLASSES.index(kind), "bbox": [x0, y0, x1 - x0, y1 - y0],
         "area": (x1 - x0) * (y1 - y0), "iscrowd": 0}
        for number in numbers for kind, (x0, y0, x1, y1) in boxes_of(number)
    ]
    return json.dumps({
        "images": [{"id": i, "file_name": name.format(i), "width": W, "height": H} for i in numbers],
        "annotations": [{"id": place + 1} | one for place, one in enumerate(annotations)],
        "categories": [{"id": first + place, "name": name} for place, name in enumerate(CLASSES)],
    })


def put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def pictures(folder, numbers, suffix=".jpg"):
    for number in numbers:
        write_picture(folder / f"{number}{suffix}", SIZE)


def xmls(folder, numbers):
    for number in numbers:
        put(folder / f"{number}.xml", xml_of(number))


def texts(folder, numbers):
    for number in numbers:
        put(folder / f"{number}.txt", text_of(number))


ALL, TRAIN, VAL, TEST = range(COUNT), range(7), range(7, 10), range(10, 12)
PARTS = {"train": TRAIN, "val": VAL, "test": TEST}


def found_in(part):
    """{number of the picture: its objects}."""
    return {
        int(part.paths[index].stem.split()[-1]): [
            (part.classes[label], tuple(np.round(box, 4).tolist()))
            for label, box in zip(part.annotations(index).labels, part.annotations(index).boxes)
        ]
        for index in range(len(part))
    }


def expected(numbers):
    return {number: boxes_of(number) for number in numbers}


def assert_whole(root):
    """All pictures are found, split by seed, and every file is accounted for."""
    splits = load_detection(root, val_fraction=0.2, seed=1)
    assert splits.train.classes == CLASSES
    parts = [splits.train, splits.val, splits.test]
    assert [len(part) for part in parts] == [8, 2, 2]
    assert {**found_in(parts[0]), **found_in(parts[1]), **found_in(parts[2])} == expected(ALL)
    assert sum("drawn from" in note for note in splits.notes) == 2
    again = load_detection(root, val_fraction=0.2, seed=1)
    assert again.test.paths == splits.test.paths
    assert_adds_up(splits, root)
    return splits


def assert_parts(root, parts=PARTS):
    splits = load_detection(root)
    assert splits.train.classes == CLASSES
    for name, numbers in parts.items():
        assert found_in(getattr(splits, name)) == expected(numbers), name
    assert_adds_up(splits, root)
    return splits


def assert_adds_up(splits, root):
    counts = [int(line.split()[0].replace(",", "")) for line in splits.files]
    assert counts[0] == sum(counts[1:]) == sum(not path.is_dir() for path in root.rglob("*"))
