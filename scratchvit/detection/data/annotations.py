"""Pictures with boxes: what every format is read into, and the truth that evaluation wants.

`coco`, `voc`, `yolo` and `scenes` each make a `DetectionDataset`; `source.load_detection` finds out which. A box here
is (x0, y0, x1, y1) in the picture's pixels, edges and not pixel centres, so that x1 - x0 is its width.
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

from scratchvit.data.images import open_image
from scratchvit.detection.data.transforms import View
from scratchvit.errors import ScratchvitError

Target = dict[str, Any]


@dataclass(frozen=True)
class Annotations:
    """One picture's objects.

    image_id    of the file, or 1, 2, …
    file_name   as the annotations have it
    size        (H, W) of the picture, upright
    boxes       float64 (n, 4)
    labels      int64 (n,), each in 0 … number of classes - 1
    areas       float64 (n,): what COCO calls small, medium and large goes by the outline's area, where a file has it
    crowd       bool (n,): a crowd or, in VOC, a difficult object. Never trained on; in evaluation, finding it is
                neither right nor wrong
    """

    image_id: int
    file_name: str
    size: tuple[int, int]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    areas: NDArray[np.float64]
    crowd: NDArray[np.bool_]

    def target(self, view: View) -> Target:
        """What a model is to find in that view: {"labels" int64 (k,), "boxes" float32 (k, 4) (cx, cy, w, h) in 0 … 1,
        "image_id", "orig_size" (H, W) of the picture, "size" (H, W) of the view}, without crowds."""
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
    """N pictures with boxes.

    classes         names; a label is a place in them
    category_ids    (number of classes,): what the annotation file calls each of them, for results to be written in
    endless         index may be any number from 0: pictures are made, and `len` is only what an epoch takes of them
    notes           sentences: what was left out that is nobody's fault
    skipped         sentences: bad entries left out, or clipped, because of skip_bad
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
        """(H, W) of a picture, without decoding it."""

    @abstractmethod
    def annotations(self, index: int) -> Annotations: ...

    @abstractmethod
    def picture(self, index: int) -> Image.Image:
        """RGB, upright, at its own size."""

    def example(self, index: int) -> tuple[Image.Image, Annotations]:
        return self.picture(index), self.annotations(index)

    def target(self, index: int) -> Target:
        """What a model is to find in the whole picture; see `Annotations.target`."""
        return self.annotations(index).target(View.whole(self.size(index)))

    def ground_truth(self) -> dict[str, Any]:
        """All annotations in COCO's form, crowds included: what `pycocotools.coco.COCO` holds as its `dataset`.

        Boxes are as in the file that was read, image and category ids too. Annotations are numbered from 1 anew, for
        pycocotools takes a match with annotation 0 for none.
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
    """Picture files and what was read about them; decoded when asked for.

    A picture that does not decode, or is not of the size that its annotations say, raises ScratchvitError from
    `picture`, with its file name; `without_bad` leaves such pictures out.
    """

    def __init__(
        self, name: str, paths: Sequence[Path], objects: Sequence[Annotations], classes: Sequence[str],
        category_ids: Sequence[int], notes: Sequence[str] = (), skipped: Sequence[str] = (),
    ):
        self.name = name
        self.paths = tuple(paths)
        self.classes = tuple(classes)
        self.category_ids = tuple(category_ids)
        self.notes = tuple(notes)
        self.skipped = tuple(skipped)
        self._annotations = tuple(objects)
        if not self.paths:
            raise ScratchvitError(f"{name}: not one picture is left to use ({len(self.skipped)} bad entries left out).")

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
                f"{self.name} says {width} × {height}, so its boxes cannot be trusted; mend one of them, or "
                "--skip-bad to leave such pictures out."
            )
        return picture

    def subset(self, indices: ArrayLike) -> Self:
        """The chosen pictures, in the order given."""
        chosen = np.asarray(indices, np.intp).tolist()
        return type(self)(
            self.name, [self.paths[i] for i in chosen], [self._annotations[i] for i in chosen], self.classes,
            self.category_ids, self.notes, self.skipped,
        )

    def without_bad(self) -> Self:
        """Those pictures that decode, to the size they should have. Decodes them all, in threads."""

        def problem(index: int) -> str | None:
            try:
                self.picture(index)
            except ScratchvitError as error:
                return f"{without_advice(error)}."
            return None

        with ThreadPoolExecutor() as pool:  # Pillow decodes outside the GIL
            problems = list(pool.map(problem, range(len(self))))
        found = [text for text in problems if text]
        good = [index for index, text in enumerate(problems) if not text]
        return type(self)(
            self.name, [self.paths[i] for i in good], [self._annotations[i] for i in good], self.classes,
            self.category_ids, self.notes, (*self.skipped, *found),
        )


def without_advice(error: ScratchvitError) -> str:
    """What is wrong with a picture, of which the error says in its last clause that --skip-bad would leave it out."""
    what, _, then = str(error).rpartition("; ")
    return what if "--skip-bad" in then else str(error).removesuffix(".")


@dataclass(frozen=True)
class DetectionSplits:
    """The three parts of a data set; `drawn` says which of them were drawn from another, and how."""

    train: DetectionDataset
    val: DetectionDataset
    test: DetectionDataset
    drawn: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """How the parts came about, and their notes, each once though two parts may come from one file."""
        return self._each_once(*self.drawn, *self.train.notes, *self.val.notes, *self.test.notes)

    @property
    def skipped(self) -> tuple[str, ...]:
        """The bad entries of all parts, each once."""
        return self._each_once(*self.train.skipped, *self.val.skipped, *self.test.skipped)

    @staticmethod
    def _each_once(*sentences: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(sentences))
