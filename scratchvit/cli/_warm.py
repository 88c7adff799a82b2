"""Compiling the kernels of training on a GPU in advance, for `scratchvit doctor --warm`.

A run of one step on random pictures is trained, validated, saved and tested, in a folder that is deleted afterwards. So
whatever a run calls is compiled, down to the check of the weights that are saved. Our own kernels come first, with a
bar, as the number of their modules is known. CuPy's are compiled as they are called, and counted (compiling.py).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scratchvit import compiling, progress
from scratchvit.data import ArrayDataset, Splits
from scratchvit.detection.config import DetectConfig
from scratchvit.detection.data.annotations import Annotations, DetectionDataset, DetectionSplits
from scratchvit.detection.data.reading import AnnotationList
from scratchvit.detection.detector import Sizes
from scratchvit.detection.run_data import DetectionData
from scratchvit.detection.task import DetectionTask
from scratchvit.files import counted
from scratchvit.kernels.cuda import modules
from scratchvit.models import model_config
from scratchvit.models.interface import detects
from scratchvit.models.vit import pair
from scratchvit.training import ClassificationTask, TrainConfig, TrainingLoop
from scratchvit.training.classification.data import TrainingData
from scratchvit.training.task import Batches

BATCH = 8                   # images of a step
DETECTED_SIDE = 256         # of the pictures for a detector, at most: its kernels are the same for larger ones
CLASSES = ("one", "two")


def warm(model: str, device: str) -> str:
    """Compile what training this model on a GPU calls. Returns a sentence: how many kernels, how long, and where.

    Raises ScratchvitError for a model that does not exist, without a GPU, and if its memory is too small.
    """
    config = (DetectConfig if detects(model_config(model)) else TrainConfig)(
        model=model, device=device, epochs=1, warmup_epochs=0, ema_decay=0.9, batch_size=BATCH
    )
    task: Any = _DetectNoise(config) if isinstance(config, DetectConfig) else _ClassifyNoise(config)
    kernels, seconds = compiling.COUNT.kernels, compiling.COUNT.seconds
    with tempfile.TemporaryDirectory() as folder:
        loop = TrainingLoop(task, config, Path(folder) / "run", log=lambda line: None)
        with loop.folder:
            loop.run()
    kernels, seconds = compiling.COUNT.kernels - kernels, compiling.COUNT.seconds - seconds
    kept = f"they are kept in {compiling.folder()}" if compiling.folder() else "they are not kept: CUPY_CACHE_IN_MEMORY"
    if not kernels:
        return f"all kernels for training {model} were compiled before; {kept}"
    return f"{counted(kernels, 'kernel')} for training {model} compiled in {progress.duration(seconds)}; {kept}"


def compile_ours() -> None:
    """Compile our own kernels that compute in float32, with a bar on a terminal."""
    called = [name for name in modules.MODULES if name not in modules.FLASH]    # those are for TF32 and 16 bits
    with progress.bar(len(called), "our kernels", unit="module") as bar:
        for name in called:
            modules.compile_module(name, np.float32)
            bar.update()


class _ClassifyNoise(ClassificationTask):
    """The task of a classifier, with a batch of random pictures as data."""

    def before_training(self, batches: Batches) -> None:
        compile_ours()

    def load_data(self, init: str | Path | None) -> TrainingData:
        preset, rng = model_config(self.config.model), np.random.default_rng(0)
        pixels = rng.integers(0, 256, (BATCH, *pair(preset.img_size), preset.in_chans), np.uint8)
        pictures = ArrayDataset(pixels, np.arange(BATCH) % len(CLASSES), CLASSES, "noise")
        mean, std = ((number,) * preset.in_chans for number in (0.5, 0.25))
        self.data = TrainingData(Splits(pictures, pictures, pictures), mean, std)
        return self.data


class _DetectNoise(DetectionTask):
    """The task of a detector, with two batches of random pictures as data, of which one needs padding."""

    def before_training(self, batches: Batches) -> None:
        compile_ours()

    def load_data(self, init: str | Path | None) -> DetectionData:
        height, width = (min(side, DETECTED_SIDE) for side in pair(model_config(self.config.model).img_size))
        pictures = _Noise(height, width)
        self.data = DetectionData(
            DetectionSplits(pictures, pictures, pictures), Sizes(), (0.5,) * 3, (0.25,) * 3, {"noise": 0}
        )
        return self.data


class _Noise(DetectionDataset):
    """Random pictures with 0 … 3 boxes. A quarter of them is narrower: sorted by shape, half a batch."""

    name, classes, category_ids = "noise", CLASSES, (1, 2)

    def __init__(self, height: int, width: int):
        self.height, self.width = height, width

    def __len__(self) -> int:
        return 2 * BATCH

    def size(self, index: int) -> tuple[int, int]:
        return self.height, self.width - (index % 4 == 0)

    def annotations(self, index: int) -> Annotations:
        found = AnnotationList()
        for number in range(index % 4):
            found.add((4.0 * number, 2.0, self.width / 2, self.height / 2), number % len(CLASSES))
        return found.annotations(index + 1, f"{index}.png", self.size(index))

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng(index).integers(0, 256, (*self.size(index), 3), np.uint8))
