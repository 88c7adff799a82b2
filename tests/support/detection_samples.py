"""Small folders of pictures with boxes, in the formats that scratchvit.detection reads."""

import json

import numpy as np

from tests.support.data_samples import write_picture

SIZE = (40, 30)     # of every picture: width, height


def coco(count=2, **changes):
    """Annotations of that many pictures with two boxes each, categories 3 and 7; `changes` replace whole lists."""
    content = {
        "images": [{"id": 10 + i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(count)],
        "annotations": [
            {"id": 100 + 2 * i + j, "image_id": 10 + i, "category_id": category, "bbox": box, "area": 5.5, "iscrowd": 0}
            for i in range(count)
            for j, (category, box) in enumerate([(7, [4, 6, 10, 12]), (3, [20.5, 3, 19.5, 8])])
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "ant"}],
    }
    return content | changes


def write_coco(root, part="train", content=None):
    """root/annotations/instances_<part>.json and root/<part>/*.png. Returns the JSON's path."""
    content = content or coco()
    for entry in content["images"]:
        write_picture(root / part / entry["file_name"], SIZE)
    path = root / "annotations" / f"instances_{part}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def voc_object(name="cat", box=(5, 7, 14, 18), difficult=0):
    keys = ("xmin", "ymin", "xmax", "ymax")
    numbers = "".join(f"<{key}>{number}</{key}>" for key, number in zip(keys, box))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{numbers}</bndbox></object>"


def voc_xml(*objects, size=SIZE):
    return (
        f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
        f"{''.join(objects)}</annotation>"
    )


def write_voc(root, part="train", **xml):
    """The pictures name.jpg with annotations xml[name], listed for that part."""
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, text in xml.items():
        write_picture(root / "JPEGImages" / f"{name}.jpg", SIZE)
        (root / "Annotations" / f"{name}.xml").write_text(text)
    (root / "ImageSets" / "Main" / f"{part}.txt").write_text("".join(f"{name}\n" for name in xml))
    return root


def write_yolo(root, part="train", names="names: [ant, cat]", **texts):
    """The pictures name.png with text files of texts[name]; None writes no text file."""
    (root / "labels" / part).mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_picture(root / "images" / part / f"{name}.png", SIZE)
        if text is not None:
            (root / "labels" / part / f"{name}.txt").write_text(text)
    (root / "data.yaml").write_text(names)
    return root


def mask_of(box, height, width):
    """uint8 (height, width): 255 where the pixel's centre is in the box, which is given in pixels."""
    x0, y0, x1, y1 = box
    rows, columns = np.arange(height)[:, None] + 0.5, np.arange(width) + 0.5
    return np.where((rows > y0) & (rows < y1) & (columns > x0) & (columns < x1), 255, 0).astype(np.uint8)


def tight_box(inked):
    """(x0, y0, x1, y1) around the nonzero pixels of (H, W)."""
    rows, columns = np.flatnonzero(inked.any(axis=1)), np.flatnonzero(inked.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
