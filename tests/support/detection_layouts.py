"""Folders of pictures with boxes as tools export them.

A layout is a function that writes a folder: those of WHOLE have no parts, those of IN_PARTS have the parts of PARTS.
"""

import csv
import json

from tests.support.detection_pictures import (
    ALL,
    COUNT,
    PARTS,
    TEST,
    VAL,
    H,
    W,
    boxes_of,
    json_of,
    pictures,
    put,
    texts,
    xmls,
)

# --- one part, which is split by seed -------------------------------------------------------------------------------


def labelimg_voc(root):
    pictures(root, ALL)
    xmls(root, ALL)


def kangaroo(root):
    pictures(root / "images", ALL)
    xmls(root / "annots", ALL)


def raccoon(root):
    pictures(root / "images", ALL, ".JPG")
    xmls(root / "annotations", ALL)
    put(root / "LICENSE", "MIT")


def deep_voc(root):
    for place, numbers in (("a", range(6)), ("b", range(6, COUNT))):
        pictures(root / "data" / "JPEGImages" / place, numbers, ".png")
        xmls(root / "data" / "Annotations" / place, numbers)


def cvat_voc(root):
    pictures(root / "JPEGImages", ALL)
    xmls(root / "Annotations", ALL)
    put(root / "ImageSets" / "Main" / "default.txt", "".join(f"{i}\n" for i in ALL))
    put(root / "labelmap.txt", "# label:color_rgb:parts:actions\nant:::\n")


def voc_trainval(root):
    cvat_voc(root)
    (root / "ImageSets" / "Main" / "default.txt").rename(root / "ImageSets" / "Main" / "trainval.txt")
    put(root / "ImageSets" / "Main" / "cat_trainval.txt", "0 1\n")


def cvat_coco(root):
    pictures(root / "images" / "default", ALL)
    put(root / "annotations" / "instances_default.json", json_of(ALL))


def label_studio_coco(root):
    pictures(root / "images", ALL)
    put(root / "result.json", json_of(ALL, "images\\{}.jpg", first=0))


def label_studio_upload(root):
    pictures(root / "images", ALL)
    put(root / "result.json", json_of(ALL, "..\\..\\media\\upload\\4\\{}.jpg", first=0))


def fiftyone(root):
    pictures(root / "data", ALL)
    put(root / "labels.json", json_of(ALL, "/home/ann/fiftyone/{}.jpg"))


def roboflow_coco_single(root):
    pictures(root / "export", ALL)
    put(root / "export" / "_annotations.coco.json", json_of(ALL))
    put(root / "README.roboflow.txt", "12 images")


def label_studio_yolo(root):
    pictures(root / "images", ALL)
    texts(root / "labels", ALL)
    put(root / "classes.txt", "ant\ncat")
    put(root / "notes.json", json.dumps({"categories": [{"id": 0, "name": "ant"}, {"id": 1, "name": "cat"}]}))


def label_studio_notes(root):
    label_studio_yolo(root)
    (root / "classes.txt").unlink()


def labelimg_yolo(root):
    pictures(root, ALL)
    texts(root, ALL)
    put(root / "classes.txt", "ant\ncat\n")


def cvat_yolo(root):
    pictures(root / "obj_train_data", ALL)
    texts(root / "obj_train_data", ALL)
    put(root / "obj.names", "ant\ncat\n")
    put(root / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    put(root / "train.txt", "".join(f"data/obj_train_data/{i}.jpg\n" for i in ALL))


def cvat_ultralytics(root):
    pictures(root / "images" / "train", ALL)
    texts(root / "labels" / "train", ALL)
    put(root / "data.yaml", "names:\n  0: ant\n  1: cat\npath: .\ntrain: train.txt\n")
    put(root / "train.txt", "".join(f"data/images/train/{i}.jpg\n" for i in ALL))


def wrapped_yolo(root):
    label_studio_yolo(root / "project-1-at-2024")


def via(root, shapes=False):
    pictures(root, ALL)
    with (root / "via_project_csv.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["filename", "file_size", "file_attributes", "region_count", "region_id",
                        "region_shape_attributes", "region_attributes"])
        for number in ALL:
            for place, (name, (x0, y0, x1, y1)) in enumerate(boxes_of(number)):
                shape = {"name": "rect", "x": x0, "y": y0, "width": x1 - x0, "height": y1 - y0}
                if shapes and place == 0:
                    shape = {"name": "polygon", "all_points_x": [x0, x1, x1 - 1], "all_points_y": [y0, y1 - 1, y1]}
                about = {"type": {name: True, "other": False}} if number % 3 else {"name": name}
                table.writerow([f"{number}.jpg", 99, "{}", 2, place, json.dumps(shape), json.dumps(about)])


def via_polygons(root):
    via(root, shapes=True)


def write_table(path, numbers, header="filename,width,height,class,xmin,ymin,xmax,ymax", name="{}.jpg", mark=","):
    rows = [
        mark.join(map(str, (name.format(number), W, H, kind, *box)))
        for number in numbers for kind, box in boxes_of(number)
    ]
    put(path, "\n".join([header.replace(",", mark), *rows, ""]))


def table(root):
    pictures(root / "images", ALL)
    write_table(root / "labels.csv", ALL)


def excel(root):
    pictures(root / "photos" / "summer", ALL)
    write_table(
        root / "labels.csv", ALL, "\ufeffImage Path,Width,Height,Label,x_min,Y_Min,x_max,y_max",
        "C:\\Users\\ann\\photos\\{}.jpg", ";",
    )


def retinanet(root):
    pictures(root / "images", ALL)
    objects = ((number, kind, box) for number in ALL for kind, box in boxes_of(number))
    rows = [f"images/{number}.jpg,{','.join(map(str, box))},{kind}\n" for number, kind, box in objects]
    put(root / "annotations.csv", "".join(rows))
    put(root / "classes.csv", "ant,0\ncat,1\n")


def tabs(root):
    pictures(root / "images", ALL)
    write_table(root / "labels.tsv", ALL, "image_id,width,filename,class,xmin,ymin,xmax,ymax", mark="\t")
    text = (root / "labels.tsv").read_text().replace(f".jpg\t{W}\t{H}\t", ".jpg\t40\tNAME\t")
    lines = [line.replace("NAME", line.split("\t")[0]).replace(".jpg", "", 1) for line in text.splitlines()]
    put(root / "labels.tsv", "\n".join(lines))


def percent_encoded(root):
    pictures(root / "images", ALL)
    for path in (root / "images").iterdir():
        path.rename(path.with_name(f"my photo {path.name}"))
    put(root / "result.json", json_of(ALL, "/data/local-files/?d=export/my%20photo%20{}.jpg"))


WHOLE = [
    labelimg_voc, kangaroo, raccoon, deep_voc, cvat_voc, voc_trainval, cvat_coco, label_studio_coco,
    label_studio_upload, fiftyone, roboflow_coco_single, label_studio_yolo, label_studio_notes, labelimg_yolo,
    cvat_yolo, cvat_ultralytics, wrapped_yolo, via, via_polygons, table, excel, retinanet,
    tabs, percent_encoded,
]


# --- with parts -----------------------------------------------------------------------------------------------------


def roboflow_voc(root, names=("train", "valid", "test")):
    for name, numbers in zip(names, PARTS.values()):
        pictures(root / name, numbers)
        xmls(root / name, numbers)


def voc_devkits(root):
    for name, year, numbers in (("a", "VOC2007", (0, 1, 2, 7)), ("b", "VOC2012", (3, 4, 5, 6, 8, 9))):
        at = root / f"VOCtrainval_{name}" / "VOCdevkit" / year
        pictures(at / "JPEGImages", numbers)
        xmls(at / "Annotations", numbers)
        for part in ("train", "val"):
            put(at / "ImageSets" / "Main" / f"{part}.txt", "".join(f"{i}\n" for i in numbers if i in PARTS[part]))
    at = root / "VOCtest" / "VOCdevkit" / "VOC2007"
    pictures(at / "JPEGImages", TEST)
    xmls(at / "Annotations", TEST)
    put(at / "ImageSets" / "Main" / "test.txt", "".join(f"{i}\n" for i in TEST))


def voc_in_parts(root):
    for name, numbers in PARTS.items():
        pictures(root / name / "images", numbers)
        xmls(root / name / "annotations", numbers)


def voc_parts_of_pictures(root):
    xmls(root / "annotations", ALL)
    for name, numbers in zip(("Training", "Validation", "Testing"), PARTS.values()):
        pictures(root / "images" / name, numbers)


def cvat_voc_subsets(root):
    cvat_voc(root)
    (root / "ImageSets" / "Main" / "default.txt").unlink()
    for name, numbers in zip(("Train", "Validation", "Test"), PARTS.values()):
        put(root / "ImageSets" / "Main" / f"{name}.txt", "".join(f"{i}.jpg\n" for i in numbers))


def coco_by_year(root):
    for name, numbers in PARTS.items():
        pictures(root / f"{name}2017", numbers)
        put(root / "annotations" / f"custom_{name}.json", json_of(numbers))


def coco_in_root(root):
    pictures(root / "images", ALL)
    for name, numbers in PARTS.items():
        put(root / f"{name}_annotations.coco.json", json_of(numbers, "..\\images\\{}.jpg"))


def coco_in_parts(root):
    for name, numbers in PARTS.items():
        pictures(root / name / "images", numbers)
        put(root / name / "labels.json", json_of(numbers, "D:/fruit/{}.jpg"))


def yolo_by_year(root):
    for name, numbers in PARTS.items():
        pictures(root / "images" / f"{name}2017", numbers)
        texts(root / "labels" / f"{name}2017", numbers)
    put(root / "classes.txt", "ant\ncat\n")


def roboflow_yolo(root):
    for name, numbers in zip(("train", "valid", "test"), PARTS.values()):
        pictures(root / name / "images", numbers)
        texts(root / name / "labels", numbers)
    put(root / "data.yaml", "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\n"
        "names: ['ant', 'cat']\n\nroboflow:\n  version: 1\n")


def roboflow_darknet(root):
    for name, numbers in zip(("train", "valid", "test"), PARTS.values()):
        pictures(root / name, numbers)
        texts(root / name, numbers)
        put(root / name / "_darknet.labels", "ant\ncat")


def colab(root):
    roboflow_yolo(root)
    put(root / "data.yaml", "path: /content/drive/fruit\ntrain: /content/drive/fruit/train/images\n"
        "val: C:\\Users\\ann\\fruit\\valid\\images\ntest: [test/images]\nnames: {0: ant, 1: cat}\n")


def lists(root):
    pictures(root / "images", ALL)
    texts(root / "labels", ALL)
    for name, numbers in PARTS.items():
        put(root / "lists" / f"{name}.txt", "".join(f"/root/fruit/images/{i}.jpg\n" for i in numbers))
    put(root / "fruit.yaml", "train: lists/train.txt\nval: [lists/val.txt]\ntest: ./lists/test.txt\n"
        "names: [ant, cat]\n")


def lists_alone(root):
    lists(root)
    put(root / "fruit.yaml", "names: [ant, cat]\n")


def several_folders(root):
    for name, numbers in (("a", range(3)), ("b", range(3, 7)), ("c", VAL), ("d", TEST)):
        pictures(root / name / "images", numbers)
        texts(root / name / "labels", numbers)
    put(root / "data.yaml", "train:\n- a/images\n- b\nval: c\ntest: d/images\nnames: [ant, cat]\nnc: 2\n")


def other_endings(root):
    for (name, numbers), suffix in zip(PARTS.items(), (".jfif", ".JPE", ".jfif")):
        pictures(root / "images" / name, numbers, suffix)
        texts(root / "labels" / name, numbers)
    put(root / "data.yaml", "names: [ant, cat]")


def nested_yolo(root):
    for name, numbers in PARTS.items():
        for number in numbers:
            pictures(root / "images" / name / f"day{number % 2}", [number])
            texts(root / "labels" / name / f"day{number % 2}", [number])
    put(root / "data.yaml", "names: [ant, cat]")


def flat_labels(root):
    for name, numbers in PARTS.items():
        for number in numbers:
            pictures(root / "images" / name / f"day{number % 2}", [number])
        texts(root / "labels" / name, numbers)
    put(root / "data.yaml", "names: [ant, cat]")


def tables(root):
    pictures(root / "images", ALL)
    for name, numbers in PARTS.items():
        write_table(root / "data" / f"{name}_labels.csv", numbers)


def roboflow_tables(root):
    for name, numbers in zip(("train", "valid", "test"), PARTS.values()):
        pictures(root / name, numbers)
        write_table(root / name / "_annotations.csv", numbers)


IN_PARTS = [
    roboflow_voc, voc_devkits, voc_in_parts, voc_parts_of_pictures, cvat_voc_subsets, coco_by_year, coco_in_root,
    coco_in_parts, yolo_by_year, roboflow_yolo, roboflow_darknet, colab, lists, lists_alone, several_folders,
    other_endings, nested_yolo, flat_labels, tables, roboflow_tables,
]
