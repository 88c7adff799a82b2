"""The trained models of the package, the *zoo*: their cards, their files, and `sv.create_model(name, pretrained=True)`.

    sv.list_models(pretrained=True)                         # ["vit_digits", …]
    model = sv.create_model("vit_digits", pretrained=True)  # in evaluation mode

Each is the checkpoint of a run, with its weights in float16, and a card in JSON beside it: what it was trained on, by
which command, and how good the stored weights are. `scripts/make_zoo.py` writes both. They lie in `scratchvit/zoo/`,
whose `load` also has the classes and prepares pictures.
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scratchvit import models
from scratchvit.errors import ScratchvitError
from scratchvit.nn import Module
from scratchvit.weights.load import FREE, load_weights

FOLDER = Path(__file__).parent.parent / "zoo"
_WEIGHTS, _CARD = ".safetensors", ".json"


@dataclass(frozen=True)
class Card:
    """What is known of a trained model.

    name            in the zoo
    task            "classification" or "detection"
    model, options  the arguments of `create_model` for the same model with drawn weights
    parameters      their number
    data            {"name", "classes", "about", "origin", "license"} of the pictures it was trained on
    command         that trained it; commit: of the program that ran; machine: that it ran on; date: when it ended, ISO
    seconds         that the epochs took on that machine
    versions        of scratchvit, NumPy and Python in training
    figures         {"split", "images", then accuracy and loss, or AP, AP50 and AP75}, of the weights as stored
    in_float32      those of the weights before they were stored in float16, as far as they differ
    bytes, sha256   of the file of the weights
    """

    name: str
    task: str
    model: str
    options: dict[str, Any]
    parameters: int
    data: dict[str, Any]
    command: str
    commit: str
    machine: str
    date: str
    seconds: float
    versions: dict[str, str]
    figures: dict[str, Any]
    in_float32: dict[str, float]
    bytes: int
    sha256: str

    @property
    def path(self) -> Path:
        """The file of the weights, a checkpoint of a run."""
        return FOLDER / f"{self.name}{_WEIGHTS}"

    @property
    def quality(self) -> str:
        """The figures of the stored weights in a few words, such as "98.3 %" or "AP 0.771, AP50 0.965"."""
        if "accuracy" in self.figures:
            return f"{self.figures['accuracy']:.1%}".replace("%", " %")
        return ", ".join(f"{name} {self.figures[name]:.3f}" for name in ("AP", "AP50"))


def trained() -> list[str]:
    """The names of the trained models of the package, in the order of `list_models`."""
    order = {name: place for place, name in enumerate(models.list_models())}
    cards = [_read(path) for path in sorted(FOLDER.glob(f"*{_CARD}"))]
    return [card.name for card in sorted(cards, key=lambda card: order[card.model])]


def card_of(name: str) -> Card:
    """The card of a trained model. Raises ScratchvitError for a name that none has, with the most similar one."""
    names = trained()
    if name not in names:
        hint = _nearest(name, names)
        raise ScratchvitError(f"the package has no trained model {name!r}{hint}; it has {', '.join(names)}")
    return _read(FOLDER / f"{name}{_CARD}")


def checked_file(name: str) -> Path:
    """The checkpoint of a trained model, after a comparison with the SHA-256 on its card.

    Raises ScratchvitError for a name that no trained model has, and for a file that is missing or was changed.
    """
    card = card_of(name)
    way_out = "install scratchvit again, or check the file out again"
    try:
        found = hashlib.sha256(card.path.read_bytes()).hexdigest()
    except OSError as error:
        raise ScratchvitError(f"{card.path} cannot be read ({error.strerror}): {way_out}") from error
    if found != card.sha256:
        raise ScratchvitError(
            f"{card.path} is not the file that its card describes (SHA-256 {found[:12]}… instead of "
            f"{card.sha256[:12]}…): {way_out}"
        )
    return card.path


def run_or_trained(named: str | Path) -> Path:
    """The file or folder that a user names as RUN: the path or, if nothing is there, that of a trained model.

    Raises ScratchvitError if nothing is there and the name is similar to that of a trained model, and for the file of a
    trained model that was changed.
    """
    path, names = Path(named), trained()
    if path.exists():
        return path
    if str(named) in names:
        return checked_file(str(named))
    if hint := _nearest(str(named), names):
        raise ScratchvitError(f"there is no file, folder or trained model {named}{hint}")
    return path         # whoever opens it says what is missing


def create_model(name: str, *, pretrained: bool = False, seed: int = 0, **overrides: Any) -> Module:
    """Create a model by name, with weights drawn from the seed. Overrides replace fields of its configuration.

    name: one of `list_models()`, or of the trained models of the package, `list_models(pretrained=True)`. pretrained:
    load the weights of that trained model, and put it into evaluation mode; then overrides can only be sizes to which
    weights are adapted, as `load_weights` does it (with another num_classes, the head is as drawn), and rates that
    matter in training.

    Raises ScratchvitError for a name or an option that does not exist, for sizes that do not fit together and, if
    pretrained, for a model without trained weights in the package and for options that these weights do not allow.
    """
    if name not in (names := trained()):
        if name not in models.list_models() and (hint := _nearest(name, names)):
            raise ScratchvitError(f"there is no model {name!r}{hint}; `scratchvit models --trained` lists trained ones")
        if not pretrained:
            return models.create_model(name, seed=seed, **overrides)
        models.model_config(name, **overrides)      # is there such a model?
        raise ScratchvitError(
            f"the package has no trained weights for {name}, only for {', '.join(names)}: for weights in a file, "
            "create the model without pretrained, then load_weights(model, FILE)"
        )
    card = card_of(name)
    model = models.create_model(card.model, seed=seed, **card.options | overrides)
    if not pretrained:
        return model
    usual = vars(models.model_config(card.model, **card.options))
    config = vars(models.model_config(card.model, **card.options | overrides))
    fixed = [option for option in overrides if option not in FREE and config[option] != usual[option]]
    if fixed:
        raise ScratchvitError(
            f"{name} was trained with {', '.join(f'{option}={usual[option]!r}' for option in fixed)}, which its "
            f"weights need: leave out {', '.join(fixed)}, or pretrained"
        )
    load_weights(model, checked_file(name), new_head=config["num_classes"] != usual["num_classes"])
    return model.eval()


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """The names of models that match a shell pattern, family by family.

    pretrained: those of the trained models of the package instead.
    """
    if not pretrained:
        return models.list_models(pattern)
    return [name for name in trained() if fnmatch.fnmatch(name, pattern)]


def _read(path: Path) -> Card:
    return Card(**json.loads(path.read_text("utf-8")))


def _nearest(name: str, names: list[str]) -> str:
    """A hint at the trained model with the most similar name; "" if none is similar."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    return f" (did you mean {close[0]!r}?)" if close else ""
