"""Names of losses in metrics.csv: those of runs of before, and back again."""

import pytest

from scratchvit.detection.losses import Output, from_columns, layers_of, to_columns

KINDS = ("ce", "bbox", "giou")
COLUMNS = [     # of a run of before: three decoder layers, denoising, two stages
    *(f"loss_{kind}{suffix}" for kind in KINDS for suffix in ("", "_0", "_1")),
    *(f"cardinality_error{suffix}" for suffix in ("", "_0", "_1")),
    *(f"dn_loss_{kind}{suffix}" for kind in KINDS for suffix in ("", "_0", "_1")),
    *(f"enc_loss_{kind}" for kind in KINDS), "class_error",
]


def test_old_columns_are_read_and_written_again():
    row = {f"train_{name}": number for number, name in enumerate(COLUMNS)}
    others = {"epoch": 1, "train_loss": 9.0, "val_loss_ce": -1, "AP": 0.1, "train_loss_cell": -1, "train_loss_ce_x": -1}
    losses = from_columns(row | others, "train_")
    assert list(losses) == [
        *(Output("decoder", layer) for layer in range(3)), *(Output("denoising", layer) for layer in range(3)),
        Output("encoder", 0),
    ]
    assert losses[Output("decoder", 1)] == {
        kind: row[f"train_{name}_1"]
        for kind, name in (*((kind, f"loss_{kind}") for kind in KINDS), ("cardinality_error", "cardinality_error"))
    }
    assert losses[Output("decoder", 2)]["class_error"] == row["train_class_error"]
    assert losses[Output("denoising", 2)]["giou"] == row["train_dn_loss_giou"]
    assert losses[Output("encoder", 0)]["ce"] == row["train_enc_loss_ce"]
    assert {f"train_{name}": value for name, value in to_columns(losses).items()} == row


@pytest.mark.parametrize("depth", [1, 2, 12])
def test_the_last_layer_has_no_suffix(depth):
    losses = {Output("decoder", layer): {"ce": layer} for layer in (depth - 1, *range(depth - 1))}
    columns = to_columns(losses)
    assert columns == {"loss_ce": depth - 1} | {f"loss_ce_{layer}": layer for layer in range(depth - 1)}
    assert from_columns(columns) == losses
    assert layers_of(from_columns(columns), "decoder") == [{"ce": layer} for layer in range(depth)]
    assert layers_of(losses, "encoder") == []
