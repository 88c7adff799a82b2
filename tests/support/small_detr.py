"""Small DETRs with the options of its successors."""

import numpy as np

import scratchvit as sv
from tests.support.seeds import seeded

CLASSES, N = 5, 4


def small(name, **options):
    """A detector without dropout, whose norms are frozen: trained or not, it is the same function."""
    return sv.create_model(name, **{
        "layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16), "hidden_dim": 32, "nheads": 4, "enc_layers": 1,
        "dec_layers": 3, "dim_feedforward": 48, "num_queries": N, "num_classes": CLASSES, "dropout": 0.0,
        "frozen_bn": True, **options,
    })


def random_head(model, seed=0):
    """The same, with a box head that moves boxes, also of a DAB-DETR."""
    last = model.bbox_embed.layers[-1]
    last.weight.assign(seeded(seed).standard_normal(last.weight.shape, dtype=np.float32) * 0.1)
    return model
