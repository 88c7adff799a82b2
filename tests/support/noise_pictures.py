"""Detection data whose pictures are noise, of any sizes."""

import dataclasses

import numpy as np
from PIL import Image

from scratchvit.data import Normalize
from scratchvit.detection.data.annotations import DetectionDataset
from scratchvit.detection.data.reading import AnnotationList
from tests.support.seeds import seeded

NORMALIZE = Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


class Plain(DetectionDataset):
    """Pictures of noise, of these sizes, with one box each."""

    name, classes, category_ids = "plain", ("a", "b"), (1, 2)

    def __init__(self, sizes):
        self.sizes = [tuple(size) for size in sizes]

    def __len__(self):
        return len(self.sizes)

    def size(self, index):
        return self.sizes[index]

    def picture(self, index):
        return Image.fromarray(seeded(index).integers(0, 256, (*self.size(index), 3), np.uint8))

    def annotations(self, index):
        found = AnnotationList()
        height, width = self.size(index)
        found.add((1, 2, width - 3, height - 4), index % 2)
        return found.annotations(index, str(index), (height, width))


def mixed(count=50, seed=0):
    """Upright and lying, large and small."""
    rng = seeded(seed)
    short, ratio = rng.integers(20, 41, count), rng.choice([1, 4 / 3, 1.5], count)
    sizes = np.stack([short, np.rint(short * ratio)], axis=1).astype(int)
    upright = rng.random(count) < 0.4
    sizes[upright] = sizes[upright, ::-1]
    return Plain(sizes.tolist())


class Several(Plain):
    """Pictures with a large object, every second with two small ones besides."""

    def annotations(self, index):
        one = super().annotations(index)
        if index % 2:
            return one
        return dataclasses.replace(
            one, boxes=np.concatenate([one.boxes, [[1, 1, 6, 9], [9, 4, 15, 9]]]),
            labels=np.append(one.labels, [0, 1]), areas=np.append(one.areas, [40, 30]),
            crowd=np.append(one.crowd, [False, False]),
        )

    @classmethod
    def mixed(cls, count, seed=0):
        return cls(mixed(count, seed).sizes)
