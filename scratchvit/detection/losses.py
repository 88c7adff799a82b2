"""The losses of a detector: the output of the model that each belongs to, and its name in metrics.csv.

Every decoder layer has its own output and its own losses. In metrics.csv, those of the last layer have no suffix, and
those of earlier layers have the number of the layer, from 0. Noised objects and the encoder have a prefix:

    Output("decoder", 2)      loss_ce       loss_bbox       loss_giou       cardinality_error       class_error
    Output("decoder", 0)      loss_ce_0     loss_bbox_0     loss_giou_0     cardinality_error_0
    Output("denoising", 2)    dn_loss_ce    dn_loss_bbox    dn_loss_giou
    Output("encoder", 0)      enc_loss_ce   enc_loss_bbox   enc_loss_giou
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from scratchvit.tensor import Tensor

Value = TypeVar("Value")


class Output(NamedTuple):
    """An output of a model, which has its own matching and losses.

    source      "decoder" (object queries), "denoising" (noised objects) or "encoder" (its proposals)
    layer       number of the decoder layer, from 0; always 0 for the encoder
    """

    source: str
    layer: int


KINDS = ("ce", "bbox", "giou")      # of losses, in the order of the rows of a table


class Losses(dict[Output, dict[str, Any]]):
    """{output: {kind: Tensor ()}}. Kinds are KINDS and, for the decoder, the errors in `NAMES`, which are arrays ().

    tables: the same losses as they were computed, {source: Tensor (3, L)}, a row for each of KINDS.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, Tensor] = {}

    def add(self, source: str, table: Tensor) -> None:
        """Add the losses of a source: a Tensor (3, L). The last layer's come first."""
        self.tables[source] = table
        L = table.shape[1]
        for layer in (L - 1, *range(L - 1)):
            self[Output(source, layer)] = {kind: table[row, layer] for row, kind in enumerate(KINDS)}


PREFIXES = {"decoder": "", "denoising": "dn_", "encoder": "enc_"}

NAMES = {
    "ce": "loss_ce", "bbox": "loss_bbox", "giou": "loss_giou",
    "cardinality_error": "cardinality_error", "class_error": "class_error",
}


def to_columns(losses: Mapping[Output, Mapping[str, Value]]) -> dict[str, Value]:
    """Convert losses to {column of metrics.csv, without train_ or val_: number}.

    >>> to_columns({Output("decoder", 1): {"ce": 0.5, "bbox": 0.1}, Output("decoder", 0): {"ce": 0.7, "bbox": 0.2}})
    {'loss_ce': 0.5, 'loss_ce_0': 0.7, 'loss_bbox': 0.1, 'loss_bbox_0': 0.2}
    """
    last = {output.source: output.layer for output in sorted(losses)}
    return {
        PREFIXES[source] + name + ("" if layer == last[source] else f"_{layer}"): of_output[kind]
        for kind, name in NAMES.items() for (source, layer), of_output in losses.items() if kind in of_output
    }


def from_columns(row: Mapping[str, Value], split: str = "") -> dict[Output, dict[str, Value]]:
    """The inverse of `to_columns` for the columns that begin with `split` ("train_" or "val_"). Others are ignored.

    Outputs are sorted by layer, the first layer first.

    >>> from_columns({"epoch": 1, "val_loss_ce": 0.5, "val_loss_ce_0": 0.7, "val_loss": 1.2}, "val_")
    {Output(source='decoder', layer=0): {'ce': 0.7}, Output(source='decoder', layer=1): {'ce': 0.5}}
    """
    sources, kinds = ({name: key for key, name in names.items()} for names in (PREFIXES, NAMES))
    pattern = re.compile(rf"{split}({'|'.join(sources)})({'|'.join(kinds)})(?:_(\d+))?")
    found = [(match.groups(), value) for column, value in row.items() if (match := pattern.fullmatch(column))]
    last = dict.fromkeys(PREFIXES.values(), 0)      # the number of the layer without a suffix
    for (prefix, _, suffix), _ in found:
        if suffix is not None:
            last[prefix] = max(last[prefix], int(suffix) + 1)
    losses: dict[Output, dict[str, Value]] = {}
    for (prefix, name, suffix), value in found:
        output = Output(sources[prefix], last[prefix] if suffix is None else int(suffix))
        losses.setdefault(output, {})[kinds[name]] = value
    return dict(sorted(losses.items()))


def layers_of(losses: Mapping[Output, Value], source: str) -> list[Value]:
    """The losses of each layer of a source, the first layer's first."""
    return [value for output, value in sorted(losses.items()) if output.source == source]
