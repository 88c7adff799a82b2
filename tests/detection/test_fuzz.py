"""Folders of annotated pictures with random damage: reading them ends in a result or in a ScratchvitError."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchvit.detection.data.source import load_detection
from tests.support import detection_layouts
from tests.support.detection_samples import voc_object, voc_xml, write_coco, write_voc, write_yolo
from tests.support.fuzz import assert_ends_well, damaged, fuzzed, tree

pytestmark = pytest.mark.slow


def coco_folder(root):
    for part in ("train", "val"):
        write_coco(root, part)


def voc_folder(root):
    write_voc(root, "train", a=voc_xml(voc_object()), b=voc_xml(voc_object("ant"), voc_object()), c=voc_xml())
    write_voc(root, "val", d=voc_xml(voc_object()))


def yolo_folder(root):
    write_yolo(root, "train", a="0 0.5 0.5 0.2 0.2\n1 0.25 0.25 0.1 0.1\n", b="1 0.5 0.5 1 1\n", c="")
    listing = "path: .\ntrain: images/train\nval: images/val\nnc: 2\nnames: [ant, cat]\n"
    write_yolo(root, "val", names=listing, d="0 0.5 0.5 0.2 0.2\n")


def read_all(root, skip_bad):
    splits = load_detection(root, skip_bad=skip_bad)
    for part in (splits.train, splits.val, splits.test):
        for index in range(len(part)):
            picture, annotations = part.example(index)
            height, width = annotations.size
            assert picture.size == (width, height)
            assert np.isfinite(annotations.boxes).all() and (annotations.boxes[:, 2:] >= annotations.boxes[:, :2]).all()
            assert ((annotations.labels >= 0) & (annotations.labels < len(part.classes))).all()


EXPORTS = (
    "labelimg_voc", "roboflow_voc", "cvat_coco", "label_studio_upload", "cvat_yolo", "several_folders", "table",
    "retinanet", "via_polygons",
)


@pytest.mark.parametrize(
    "write", [coco_folder, voc_folder, yolo_folder, *(getattr(detection_layouts, name) for name in EXPORTS)]
)
def test_damaged_folders_of_annotations(write, tmp_path_factory):
    root = tmp_path_factory.mktemp("sound")
    write(root)
    sound = tree(root)
    read_all(root, skip_bad=False)

    @fuzzed
    @given(damaged(sound), st.booleans())
    def check(folder, skip_bad):
        assert_ends_well(folder, lambda root: read_all(root, skip_bad))

    check()
