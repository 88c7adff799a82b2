"""Data sets of pictures with boxes: the common form of all formats, and the ground truth for evaluation.

`coco`, `voc`, `yolo`, `tables` and `scenes` each make a `DetectionDataset`; `source.load_detection` chooses one. A box
here is (x0, y0, x1, y1) in pixels of the picture. Coordinates are edges, not pixel centres, so x1 - x0 is the width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from scratchvit.data.images import open_image, without_advice
from scratchvit.detection.data.transforms import View
from scratchvit.errors import ScratchvitError
from scratchvit.files import counted

Target = dict[str, Any]


@dataclass(frozen=True)
class Annotations:
    """The objects of one picture.

    image_id    id in the annotation file, or 1, 2, …
    file_name   as written in the annotations
    size        (H, W) of the picture, with its EXIF orientation applied
    boxes       float64 (n, 4)
    labels      int64 (n,), each in 0 … number of classes - 1
    areas       float64 (n,): area of the segmentation if the file has it, otherwise of the box. COCO's small, medium
                and large objects are defined by it
    crowd       bool (n,): a crowd or, in VOC, a difficult object. Not used in training; ignored in evaluation (finding
                it is neither right nor wrong)
    """

    image_id: int
    file_name: str
    size: tuple[int, int]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]

    def target(self, view: View) -> Target:
        """The target for a model that is shown this view, without crowds.

        {"labels" int64 (k,), "boxes" float32 (k, 4) (cx, cy, w, h) in 0 … 1, "image_id", "orig_size" (H, W) of the
        picture, "size" (H, W) of the view}
        """
        single = ~self.crowd
        boxes, kept = view.of_boxes(self.boxes[single])
        return {
            "labels": self.labels[single][kept],
            "boxes": boxes,
            "image_id": self.image_id,
            "orig_size": self.size,
            "size": view.size,
        }


class DetectionDataset(ABC):
    """A data set of N pictures with boxes.

    classes         class names; a label is an index into them
    category_ids    (number of classes,): the category id of each class in the annotation file, used in results
    endless         any index from 0 is valid: pictures are generated, and `len` is the number of them in an epoch
    notes           sentences about entries that were left out but are not errors
    skipped         sentences about bad entries that were left out or clipped because of skip_bad
    """

    name: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    endless: bool = False
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def size(self, index: int) -> tuple[int, int]:
        """The size (H, W) of a picture, without decoding it."""

    @abstractmethod
    def annotations(self, index: int) -> Annotations: ...

    @abstractmethod
    def picture(self, index: int) -> Image.Image:
        """The picture in RGB at its own size, with its EXIF orientation applied."""

    def example(self, index: int) -> tuple[Image.Image, Annotations]:
        return self.picture(index), self.annotations(index)

    def target(self, index: int) -> Target:
        """The target for a model that is shown the whole picture; see `Annotations.target`."""
        return self.annotations(index).target(View.whole(self.size(index)))

    def ground_truth(self) -> dict[str, Any]:
        """All annotations in COCO's format, including crowds: the `dataset` of a `pycocotools.coco.COCO`.

        Boxes, image ids and category ids are those of the file. Annotations get new ids from 1, because pycocotools
        treats a match with annotation 0 as no match.
        """
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(len(self)):
            one = self.annotations(index)
            height, width = one.size
            images.append({"id": one.image_id, "file_name": one.file_name, "width": width, "height": height})
            for (x0, y0, x1, y1), label, area, crowd in zip(
                one.boxes.tolist(), one.labels.tolist(), one.areas.tolist(), one.crowd.tolist()
            ):
                annotations.append({
                    "id": len(annotations) + 1, "image_id": one.image_id, "category_id": self.category_ids[label],
                    "bbox": [x0, y0, x1 - x0, y1 - y0], "area": area, "iscrowd": int(crowd),
                })
        categories = [{"id": number, "name": name} for number, name in zip(self.category_ids, self.classes)]
        return {"info": {"description": self.name}, "images": images, "annotations": annotations,
                "categories": categories}


class AnnotatedPictures(DetectionDataset):
    """A data set of picture files, decoded on access, and their annotations.

    sources     the files that the annotations were read from
    unusable    pictures that were left out because of skip_bad

    `picture` raises ScratchvitError, with the file name, if a picture cannot be decoded or its size differs from that
    in the annotations; `without_bad` leaves such pictures out.
    """

    def __init__(
        self, name: str, paths: Sequence[Path], objects: Sequence[Annotations], classes: Sequence[str],
        category_ids: Sequence[int], notes: Sequence[str] = (), skipped: Sequence[str] = (), *,
        sources: Sequence[Path] = (), unusable: Sequence[Path] = (),
    ):
        self.name = name
        self.paths = tuple(paths)
        self.classes = tuple(classes)
        self.category_ids = tuple(category_ids)
        self.notes = tuple(notes)
        self.skipped = tuple(skipped)
        self.sources = tuple(sources)
        self.unusable = tuple(unusable)
        self._annotations = tuple(objects)
        if not self.paths:
            bad = counted(len(self.skipped), "bad entry", "bad entries")
            raise ScratchvitError(f"{name}: no usable picture is left ({bad} left out)")

    def __len__(self) -> int:
        return len(self.paths)

    def size(self, index: int) -> tuple[int, int]:
        return self._annotations[index].size

    def annotations(self, index: int) -> Annotations:
        return self._annotations[index]

    def picture(self, index: int) -> Image.Image:
        picture = open_image(self.paths[index])
        height, width = self.size(index)
        if picture.size != (width, height):
            raise ScratchvitError(
                f"{self.paths[index]}: this picture is {picture.width} × {picture.height} when upright, but "
                f"{self.name} says {width} × {height}, so its boxes cannot be trusted; correct one of them, or use "
                "--skip-bad to leave such pictures out"
            )
        return picture

    def subset(self, indices: ArrayLike) -> Self:
        """A data set with the chosen pictures, in the order of indices (n,)."""
        return self._with(np.asarray(indices, np.intp).tolist(), self.skipped, self.unusable)

    def without_bad(self) -> Self:
        """A data set without the pictures that cannot be decoded or have another size. Decodes all, in threads."""

        def problem(index: int) -> str | None:
            try:
                self.picture(index)
            except ScratchvitError as error:
                return without_advice(error)
            return None

        with ThreadPoolExecutor() as pool:  # Pillow decodes outside the GIL
            problems = list(pool.map(problem, range(len(self))))
        found = [text for text in problems if text]
        bad = [path for path, text in zip(self.paths, problems) if text]
        good = [index for index, text in enumerate(problems) if not text]
        return self._with(good, (*self.skipped, *found), (*self.unusable, *bad))

    def _with(self, chosen: Sequence[int], skipped: Sequence[str], unusable: Sequence[Path]) -> Self:
        return type(self)(
            self.name, [self.paths[i] for i in chosen], [self._annotations[i] for i in chosen], self.classes,
            self.category_ids, self.notes, skipped, sources=self.sources, unusable=unusable,
        )


@dataclass(frozen=True)
class DetectionSplits:
    """The train, validation and test split.

    drawn: which splits were drawn from another, and how. files: what became of every file of the data folder, as the
    lines of a table (`Inventory.lines`); empty where there is no folder.
    """

    train: DetectionDataset
    val: DetectionDataset
    test: DetectionDataset
    drawn: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """How the splits were made, and their notes, without duplicates (two splits may come from one file)."""
        return self._each_once(*self.drawn, *self.train.notes, *self.val.notes, *self.test.notes)

    @property
    def skipped(self) -> tuple[str, ...]:
        """The bad entries of all splits, without duplicates."""
        return self._each_once(*self.train.skipped, *self.val.skipped, *self.test.skipped)

    @staticmethod
    def _each_once(*sentences: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(sentences))
