"""Shared by the commands that evaluate a trained classifier: the data that it was trained on."""

from __future__ import annotations

import dataclasses

from scratchvit import data
from scratchvit.data import Splits
from scratchvit.models import model_config
from scratchvit.models.checks import check_classifies
from scratchvit.training.checkpoint import Checkpoint
from scratchvit.training.classification.data import had_test_split
from scratchvit.training.folder import data_of_run


def splits_of(
    checkpoint: Checkpoint, name: str | None = None, data_dir: str | None = None, skip_bad: bool = False
) -> Splits:
    """The train, validation and test splits of a checkpoint's run, or those of other data at its image size.

    name: other data; by default the run's own.
    skip_bad: leave out pictures that cannot be decoded (for the run's own data, the default is the run's choice).
    Raises ScratchvitError for a detector's checkpoint, and whatever `data.load` raises.
    """
    check_classifies(checkpoint.model_name, model_config(checkpoint.model_name))
    config = checkpoint.config
    with data_of_run(name):
        splits = data.load(
            name or config["data"],
            data_dir=data_dir or config["data_dir"],
            img_size=checkpoint.data["image_shape"][0],
            val_fraction=config["val_fraction"],
            seed=config["seed"],
            skip_bad=skip_bad or (name is None and config["skip_bad"]),
            test_from_train=name is None and had_test_split(checkpoint),
        )
    fraction = config.get("train_fraction", 1.0) if name is None else 1.0       # older runs used all
    return dataclasses.replace(splits, train=data.stratified_share(splits.train, fraction, config["seed"]))
