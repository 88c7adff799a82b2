"""Shared by the commands that open weights: which of those in a file are meant, and the sizes of the model."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scratchvit.cli._options import Parser, add_fields, option_of, size
from scratchvit.errors import ScratchvitError
from scratchvit.models import list_models, model_config
from scratchvit.training.checkpoint import is_checkpoint
from scratchvit.weights.describe import describe
from scratchvit.weights.labels import ORDERS
from scratchvit.weights.pretrained import run_or_trained, trained

PREFIX = "model."                                   # of the model's options in a namespace
USUAL = ("img_size", "patch_size", "window_size")   # options of many models, offered while the model is unknown
FROM_THE_FILE = {"num_classes", "in_chans"}         # no options: the tensors decide


def add_entry(parser: Any) -> None:
    """Add the option --entry."""
    parser.add_argument(
        "--entry", metavar="NAME",
        help="which weights to use if the file has several sets, such as teacher or state_dict.model; for a run, model "
        "or ema (default: chosen automatically, and printed)",
    )


def add_label_order(parser: Any) -> None:
    """Add the option --label-order."""
    parser.add_argument(
        "--label-order", choices=tuple(ORDERS),
        help="if --labels is a folder: the library whose order of class folders the model was trained with "
        "(required if the libraries' orders differ; runs use torchvision's)",
    )


def add_sizes(parser: Parser, argv: Sequence[str]) -> None:
    """Add the options of the model that --model or the config.json beside RUN names, for `sizes`."""
    name, described = _named_in(argv)
    group = parser.add_argument_group(f"sizes of {name or 'the model'}", "for third-party weights; a run has its own")
    if name is None:
        lacking = (option_of(option) for known in list_models() for option in _options_of(model_config(known)))
        parser.elsewhere = dict.fromkeys(
            lacking, "is an option of the model: for third-party weights, name the model too, with --model NAME; a run "
            "has options of its own",
        )
        for option in USUAL:
            group.add_argument(
                option_of(option), type=size, dest=PREFIX + option, metavar="SIZE",
                default=argparse.SUPPRESS, help="default: that of the weights; --model NAME --help lists all options",
            )
        return
    config = model_config(name)
    defaults = vars(config) | described | dict.fromkeys(("img_size", "patch_size"), "that of the weights")
    add_fields(group, type(config), _options_of(config), defaults, prefix=PREFIX)


def _options_of(config: Any) -> list[str]:
    """The fields of a model's configuration that are options of `add_sizes`."""
    return [
        option for option in vars(config)
        if option not in FROM_THE_FILE and "drop" not in option and option != "weight_init"
    ]


def sizes(given: argparse.Namespace) -> dict[str, Any]:
    """The options of the model that were given, by name."""
    return {name.removeprefix(PREFIX): value for name, value in vars(given).items() if name.startswith(PREFIX)}


def _named_in(argv: Sequence[str]) -> tuple[str | None, dict[str, Any]]:
    """(the name of the model, its options) that a command line asks for, as far as it is known before it is parsed."""
    first = Parser(add_help=False)
    first.add_argument("words", nargs="*", type=Path)
    first.add_argument("--checkpoint", type=Path)
    first.add_argument("--model")
    with contextlib.suppress(SystemExit, ScratchvitError):      # the command itself raises them again
        chosen = first.parse_known_args(argv)[0]
        if chosen.model is not None:
            return chosen.model, {}
        # Values of options that are not known yet are among the words.
        names = trained()
        run = chosen.checkpoint or next((word for word in chosen.words if word.exists() or str(word) in names), None)
        if run and not is_checkpoint(run := run_or_trained(run)) and (found := describe(run)):
            return found.name, found.options
    return None, {}
