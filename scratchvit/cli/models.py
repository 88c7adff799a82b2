"""`scratchvit models`: lists the models with their size and cost."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from scratchvit import backend
from scratchvit.cli._options import Parser, size
from scratchvit.cli._text import table
from scratchvit.costs.counting import configured_shape, cost, readable_bytes
from scratchvit.errors import ScratchvitError
from scratchvit.models import create_model, list_models, model_paper
from scratchvit.nn import init
from scratchvit.weights.pretrained import card_of, trained
from scratchvit.weights.pretrained import list_models as list_pretrained

ABSENT = "–"        # in the columns of attention, for a model without it


def models(argv: Sequence[str]) -> int:
    """Print the models that match a pattern, with their cost for one image."""
    parser = Parser(
        prog="scratchvit models", usage="scratchvit models [PATTERN] [options]",
        description="List the models that `scratchvit train --model NAME` knows, with their cost for one image.\n\n"
        '  scratchvit models\n  scratchvit models "vit_tiny*"\n  scratchvit models "*base*" --img-size 448\n\n'
        "GMACs: billions of multiply-adds in matrix products and convolutions. image: side or shape in pixels; for a\n"
        "clip, frames first. tokens: length of the sequence. attention: memory of the attention matrices in float32,\n"
        "over all layers and heads; with images of twice the side, a ViT has 4 times the tokens, and its attention\n"
        "matrices are 16 times as large. `scratchvit cost NAME` shows one model layer by layer.\n\n"
        "  scratchvit models --trained\n\n"
        "The trained models of the package, with their accuracy on the test pictures (for detectors, AP). Commands\n"
        "take their names in place of the folder of a run: scratchvit eval NAME.",
    )
    parser.add_argument(
        "pattern", nargs="?", default="*", metavar="PATTERN", help="a shell pattern, in quotes (default: all models)"
    )
    parser.add_argument(
        "--img-size", type=size, metavar="SIZE",
        help="image size: 384, or 384x288 (height x width) (default: each model's own)",
    )
    parser.add_argument("--trained", action="store_true", help="list the trained models of the package")
    given = parser.parse_strictly(argv)
    if given.trained:
        if given.img_size is not None:
            parser.error("--img-size is not for --trained: a trained model has the size of its training pictures")
        print(_trained(given.pattern))
        return 0
    names = list_models(given.pattern)
    if not names:
        wider = f"*{given.pattern}*"
        hint = f"; did you mean \"{wider}\"?" if list_models(wider) else "; `scratchvit models` lists them all"
        if list_pretrained(given.pattern, pretrained=True):
            hint = "; that is a trained model, which --trained lists"
        raise ScratchvitError(f"no model matches {given.pattern!r}{hint}")
    backend.use("cpu")                          # the weights are placeholders: NumPy arrays of stride 0
    rows: list[tuple[str, ...]] = []
    left_out: list[str] = []
    for name in names:
        try:
            rows.append(_row(name, {} if given.img_size is None else {"img_size": given.img_size}))
        except ScratchvitError as error:        # patches of 14 do not divide every size
            left_out.append(f"{name}: {error}")
    if not rows:
        raise ScratchvitError(left_out[0])
    papers = [f"  {model_paper(row[0])}" for row in rows]
    header = ("name", "parameters", "GMACs", "image", "tokens", "attention")
    for line, paper in zip(table([header, *rows]).splitlines(), ["  paper", *papers]):
        print(line + paper)
    for reason in left_out:
        print(f"left out: {reason}", file=sys.stderr)
    return 0


def _trained(pattern: str) -> str:
    """The trained models of the package as a table. Raises ScratchvitError if none matches the pattern."""
    cards = [card_of(name) for name in list_pretrained(pattern, pretrained=True)]
    if not cards:
        raise ScratchvitError(f"no trained model matches {pattern!r}; there are {', '.join(trained())}")
    rows = [("name", "task", "parameters", "on test", "data", "KiB", "trained")]
    rows += [
        (
            card.name, card.task, f"{card.parameters / 1e6:.2f} M", card.quality, card.data["name"],
            f"{card.bytes / 1024:,.0f}", card.date,
        )
        for card in cards
    ]
    return table(rows)


def _row(name: str, options: dict[str, Any]) -> tuple[str, ...]:
    with init.without_weights():
        model: Any = create_model(name, **options)
    found, (_, *sides) = cost(model), configured_shape(model)
    return (
        name,
        f"{found.parameters / 1e6:.2f} M",
        f"{found.macs / 1e9:.3f}",
        str(sides[0]) if len(sides) == 2 and sides[0] == sides[1] else "×".join(map(str, sides)),
        f"{found.tokens:,}" if found.tokens else ABSENT,
        readable_bytes(found.attention_bytes) if found.tokens else ABSENT,
    )
