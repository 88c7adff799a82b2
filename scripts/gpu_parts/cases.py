"""The models that are timed, on random data that is on the device already."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import scratchvit as sv
from scratchvit import backend, optim
from scratchvit.backend import Array
from scratchvit.detection.config import DetectConfig
from scratchvit.detection.criterion import Matched
from scratchvit.detection.matcher import Objects
from scratchvit.detection.task import make_criterion
from scratchvit.models import model_config
from scratchvit.models.vit import pair
from scratchvit.replay import Replay
from scripts.bench import is_detector, random_objects

OF_ADAMW = {"lr": 1e-4, "weight_decay": 0.05}
CLASSES = {"num_classes": 10}


@dataclass(frozen=True)
class Case:
    """A model, its options and its batch. `small`: its options in a rehearsal, where the batch is 2."""

    model: str
    batch: int
    options: dict[str, Any] = field(default_factory=dict)
    small: dict[str, Any] = field(default_factory=dict)

    def config(self, small: bool) -> Any:
        """The model's configuration, without dropout and stochastic depth, as on PyTorch's side."""
        options = {**self.options, **(self.small if small else {})}
        fields = vars(model_config(self.model))
        off = {name: 0.0 for name in fields if name.endswith("_rate") or name == "dropout"}
        return model_config(self.model, **off, **options)

    def data(self, small: bool) -> tuple[np.ndarray, Any]:
        """Images (B, 3, H, W) and labels (B,); of a detector, objects for each image."""
        rng, config, batch = np.random.default_rng(0), self.config(small), 2 if small else self.batch
        images = rng.standard_normal((batch, config.in_chans, *pair(config.img_size)), dtype=np.float32)
        if hasattr(config, "num_queries"):
            return images, random_objects(rng, batch, config.num_classes)
        return images, rng.integers(0, config.num_classes, batch)


VIT = {"img_size": 32, "patch_size": 16, "depth": 1, **CLASSES}
CASES = {
    "ViT D192 L6, 32²": Case(
        "vit_tiny_patch16_224", 128, {"img_size": 32, "patch_size": 4, "depth": 6, **CLASSES}, {"depth": 1}
    ),
    "ViT-Ti/16, 224²": Case("vit_tiny_patch16_224", 128, {}, VIT),
    "ViT-B/16, 224²": Case("vit_base_patch16_224", 64, {}, {**VIT, "embed_dim": 96, "num_heads": 3}),
    "Swin-T, 224²": Case(
        "swin_tiny_patch4_window7_224", 64, {}, {"img_size": 64, "depths": (2, 1), "num_heads": (3, 6), **CLASSES}
    ),
    "DETR-R18, 256²": Case(
        "detr_resnet18", 16, {"img_size": 256},
        {"img_size": 64, "layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16), "enc_layers": 1, "dec_layers": 2,
         "hidden_dim": 32, "nheads": 4, "dim_feedforward": 48, "num_queries": 6, "num_classes": 5},
    ),
    "ResNet-18, 224²": Case(
        "resnet18", 128, {}, {"img_size": 64, "layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16), **CLASSES}
    ),
}


def our_model(case: Case, small: bool) -> Any:
    """The model on the device in use."""
    return sv.create_model(case.model, **vars(case.config(small)))


def our_step(
    case: Case, small: bool, replayed: Callable[[Exception], None] | None = None
) -> Callable[[], sv.Tensor]:
    """A training step: zero_grad, forward, backward, AdamW. It gives the loss, and waits for the device only if it is a
    detector's, which matches on the host.

    replayed: the step is captured and replayed (replay.py), or this is called with what prevents it.
    """
    model = our_model(case, small)
    optimizer = optim.AdamW(model.parameters(), **OF_ADAMW)

    def learn(loss: sv.Tensor) -> sv.Tensor:
        loss.backward()
        optimizer.step()
        return loss

    if is_detector(model):
        return detector_step(case, small, model, optimizer.zero_grad, learn, replayed)
    loss_of, arrays = our_loss(case, small, model)

    def step(*arrays: Array) -> sv.Tensor:
        optimizer.zero_grad()
        return learn(loss_of(*arrays))

    return functools.partial(step if replayed is None else Replay(step, replayed), *arrays)


def our_loss(case: Case, small: bool, model: Any) -> tuple[Callable[..., sv.Tensor], tuple[Array, ...]]:
    """The loss of a model of this case as a function of arrays, and the arrays, which are put on the device once."""
    images, labels = case.data(small)
    x = backend.asarray(images)
    if is_detector(model):
        criterion = make_criterion(DetectConfig(), model)
        return lambda x: criterion.total(criterion(model(x), labels)), (x,)
    return lambda x, y: sv.ops.cross_entropy(model(x), y), (x, backend.asarray(labels))


def detector_step(
    case: Case, small: bool, model: Any, zero_grad: Callable[[], None], learn: Callable[[sv.Tensor], sv.Tensor],
    replayed: Callable[[Exception], None] | None,
) -> Callable[[], sv.Tensor]:
    """`our_step` of a detector, in two halves with the matching between them: see detection/task.py."""
    images, targets = case.data(small)
    x, criterion = backend.asarray(images), make_criterion(DetectConfig(), model)
    objects = Objects.of(targets, criterion.num_classes)
    arrays = objects.arrays(x.dtype)
    kept: list[Any] = []            # the predictions of this step

    def forward(x: Array) -> tuple[Any, Array]:
        zero_grad()
        predictions = criterion.predictions([model(x)])
        return predictions, criterion.costs(predictions, arrays)

    def rest(*matched: Array) -> sv.Tensor:
        return learn(criterion.total(criterion.decoder_losses(kept[0], arrays, Matched(*matched))))

    first: Callable[..., tuple[Any, Array]] = forward
    second: Callable[..., sv.Tensor] = rest
    if replayed is not None:
        first = Replay(forward, replayed)
        second = Replay(rest, replayed, beside=first)
        second.after = first

    def step() -> sv.Tensor:
        predictions, costs = first(x)
        kept[:] = [predictions]
        try:
            return second(*criterion.matched(backend.asnumpy(costs), objects))
        finally:
            kept.clear()

    return step
