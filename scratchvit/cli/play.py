"""`scratchvit play`: a page in the browser on which a model answers while one draws."""

from __future__ import annotations

import webbrowser
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scratchvit import loopback
from scratchvit.cli._options import Parser, add_device, add_page, add_run, option_of, run_of
from scratchvit.cli._weights import add_entry, add_label_order, add_sizes, sizes
from scratchvit.cli.predict import RUN
from scratchvit.errors import ScratchvitError
from scratchvit.models import model_config
from scratchvit.models.interface import detects
from scratchvit.precision import use_device
from scratchvit.training.checkpoint import is_checkpoint, load_checkpoint
from scratchvit.training.classification.classifier import open_classifier
from scratchvit.weights.describe import describe
from scratchvit.weights.pretrained import run_or_trained

DEFAULT = "vit_digits"      # the trained model that is shown if none is named


def play(argv: Sequence[str]) -> int:
    """Serve the page of a model until Ctrl-C."""
    parser = Parser(
        prog="scratchvit play",
        description="Open a page in the browser on which the model answers while you draw: for a classifier, the "
        "patches of a picture, the attention of every layer and head, and the logits; for a detector, its boxes.\n\n"
        "  scratchvit play\n"
        "  scratchvit play runs/NAME\n"
        "  scratchvit play vit/model.safetensors\n\n"
        f"Without RUN, the model is {DEFAULT}, which comes with scratchvit. "
        "Only this machine can open the page. Nothing is uploaded, and nothing is written. Ctrl-C ends it.",
    )
    add_run(parser, f"{RUN} (default: {DEFAULT})")
    parser.usage = "scratchvit play [RUN] [options]"
    parser.add_argument(
        "--model", metavar="NAME", help="name of the model, for third-party weights (default: read from config.json)"
    )
    parser.add_argument(
        "--labels", type=Path, metavar="FILE",
        help="class names: one per line, JSON, or a folder with a subfolder for each class",
    )
    add_label_order(parser)
    add_page(parser)
    add_entry(parser)
    add_sizes(parser, argv)
    add_device(parser)
    given = parser.parse_strictly(argv)
    given.checkpoint = run_of(parser, given) if given.run or given.checkpoint else Path(DEFAULT)

    from scratchvit.play import server  # here, because asyncio takes a while to import

    use_device(given.device, "float32")
    with loopback.listen(given.port) as listening:
        routes = _routes(given)
        address = f"http://{loopback.HOST}:{listening.getsockname()[1]}"

        def ready() -> None:
            print(f"{address}\nCtrl-C ends it", flush=True)
            if not given.no_browser:
                webbrowser.open_new_tab(address)

        server.serve(routes, listening, ready)
    return 0


def _routes(given: Namespace) -> Any:
    """What the page can ask: that of a classifier, or of a detector."""
    path = run_or_trained(given.checkpoint)
    how: dict[str, Any] = {"entry": given.entry, "label_order": given.label_order}
    model = _model_name(path, given.model)
    if model is not None and detects(model_config(model)):
        from scratchvit.detection.detector import open_detector
        from scratchvit.play.detector import detector_routes

        for option in sizes(given):
            raise ScratchvitError(f"{model} is a detector and has sizes of its own: leave out {option_of(option)}")
        return detector_routes(open_detector(path, given.model, given.labels, **how), given.checkpoint.name)
    from scratchvit.play.classifier import ClassifierPage

    classifier = open_classifier(path, given.model, given.labels, **how, **sizes(given))
    return ClassifierPage(classifier, given.checkpoint.name).routes()


def _model_name(path: Path, named: str | None) -> str | None:
    """The name of the model of a run or of weights; None if it is not known, which opening them then says."""
    if is_checkpoint(path):
        return load_checkpoint(path).model_name
    described = describe(path) if named is None and path.exists() else None
    return described.name if described else named
