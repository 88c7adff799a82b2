"""An epoch in which everything is random, by several processes and by one: augmentation, dropout, stochastic depth."""

import dataclasses

import numpy as np
import pytest

from scratchvit import ops, optim
from scratchvit.data import Loader
from scratchvit.models import create_model, model_config
from scratchvit.parallel.communicator import ALONE
from scratchvit.parallel.share import share_of
from scratchvit.random import Generator, part_of_batch
from tests.support.data_samples import random_dataset
from tests.support.ranks import run_ranks
from tests.support.seeds import moved
from tests.support.worker_samples import HEAVY

MODELS = {
    "vit_tiny_patch16_224": {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3},
    "swin_tiny_patch4_window7_224": {
        "patch_size": 2, "window_size": 3, "embed_dim": 12, "depths": (2,), "num_heads": (2,),
    },
}


def epoch(ranks, name, drops=0.2):
    """The weights after an epoch of batches of 8 images, the last of 2."""
    rates = {field.name: drops for field in dataclasses.fields(model_config(name)) if "drop" in field.name}
    model = create_model(name, img_size=12, num_classes=5, seed=moved(0), **{**rates, **MODELS[name]})
    model.set_generator(Generator(moved(1)))
    optimizer = optim.SGD(model.parameters(), lr=0.02)
    loader = Loader(random_dataset(26), 8, HEAVY, shuffle=True, seed=3, share=(ranks.rank, ranks.size))
    model.train()
    for batch in loader:
        optimizer.zero_grad()
        with part_of_batch(share_of(loader.whole, ranks.rank, ranks.size), loader.whole):
            loss = ops.cross_entropy(model(batch.images), batch.labels)
            (loss * (len(batch.labels) / loader.whole)).backward()
        for parameter in model.parameters():
            ranks.sum(parameter.grad)
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("name", MODELS)
def test_processes_learn_what_one_learns(name):
    before = create_model(name, img_size=12, num_classes=5, seed=moved(0), **MODELS[name]).state_dict()
    expected = epoch(ALONE, name)
    for found in run_ranks(2, lambda ranks: epoch(ranks, name)):
        for key, array in expected.items():
            moved_by = np.abs(array - before[key]).max()
            np.testing.assert_allclose(found[key], array, atol=1e-4 * moved_by + 1e-7, rtol=0, err_msg=key)
    without = epoch(ALONE, name, drops=0.0)     # what is dropped is more than what is allowed to differ
    for key, array in expected.items():
        assert np.abs(without[key] - array).max() > 1e-2 * np.abs(array - before[key]).max(), key
