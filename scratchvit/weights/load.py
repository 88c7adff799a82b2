"""Loading third-party weights into a model: read, rename, adapt sizes, check, and only then load, all or nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors

from scratchvit.backend import asarray
from scratchvit.errors import ScratchvitError
from scratchvit.models import create_model, model_config
from scratchvit.models.interface import PixelModel
from scratchvit.nn import Module, init
from scratchvit.weights.configs.fields import Described
from scratchvit.weights.describe import describe, image_size
from scratchvit.weights.files import read_chosen
from scratchvit.weights.fit import LoadReport, fit, positions_in
from scratchvit.weights.misfit import FIRST_KERNELS, HEAD_WEIGHTS, classes_in, looks_like
from scratchvit.weights.names import Renamed, Weights, recognise
from scratchvit.weights.wrappers import Choice

# Options that change what a model computes, but not the shapes of its weights. The file decides on them.
UNSEEN = ("norm_eps", "window_rule")

# Options in which a model may differ from the file's without a note: sizes, to which weights are adapted (this is
# reported anyway), and those that only matter in training.
FREE = {
    "img_size", "patch_size", "in_chans", "num_classes", "num_queries", "weight_init", "zero_init_last", "frozen_bn",
    "aux_loss", "query_groups", "denoising", "box_noise", "label_noise", "dropout", "drop_rate", "drop_path_rate",
    "pos_drop_rate", "proj_drop_rate", "attn_drop_rate",
}


def load_weights(
    model: Module, path: str | Path, *, new_head: bool = False, entry: str | None = None
) -> LoadReport:
    """Load a .safetensors, .npz or .pth file of timm, torchvision, Hugging Face, Google or this program into a model.

    Position tables, patch kernels and input channels are brought to the model's sizes (`weights.fit`). new_head: the
    model's heads stay as they are, for another set of classes. entry: which weights of a file that has several, see
    `files.read_weights`. A DETR takes a ResNet's weights for its backbone, and all else in it stays as it is.
    Returns a report to print, which also says in which options, such as norm_eps, the model differs from the file's.
    Raises ScratchvitError for a file that cannot be read, or with all that does not fit; the model is then unchanged.
    """
    path, renamed = Path(path), _read(path, entry)
    state, report = _fitted(model, renamed, path, _origin(path, renamed, named=True), new_head)
    model.load_state_dict(state)
    return report


def shapes_in(path: str | Path, entry: str | None = None) -> dict[str, tuple[int, ...]]:
    """{our name: shape} of the weights in a file. Raises ScratchvitError as `load_weights` does."""
    return {name: value.shape for name, value in _read(path, entry).weights.items()}


def unseen_options(path: str | Path, name: str, entry: str | None = None) -> dict[str, Any]:
    """The options that a model of this name needs for the weights in a file, and that their shapes do not show.

    {"norm_eps": 1e-12} for Hugging Face's ViTs, {} for timm's. Raises ScratchvitError for a file that cannot be read.
    """
    path, preset = Path(path), vars(model_config(name))
    options = _origin(path, _read(path, entry), named=True).options
    return {
        key: options[key] for key in UNSEEN
        if key in options and key in preset and isinstance(options[key], str) == isinstance(preset[key], str)
    }


class Loaded(NamedTuple):
    """A model in evaluation mode with the weights of a file, its name in `list_models`, and a report of the loading."""

    model: Module
    name: str
    report: LoadReport


def model_from_weights(
    path: str | Path, name: str | None = None, *, entry: str | None = None, **overrides: Any
) -> tuple[Module, str]:
    """(model, name): `open_model` without its report."""
    return open_model(path, name, entry=entry, **overrides)[:2]


def open_model(path: str | Path, name: str | None = None, *, entry: str | None = None, **overrides: Any) -> Loaded:
    """Create the model that the weights in a file belong to, with these weights.

    Without a name, the model is read from the config.json in the same folder: timm's, Hugging Face's, or one written by
    `scratchvit export`. Number of classes, channels, image size and patch size are those of the file, so nothing is
    resized; overrides replace options of the model. entry: which weights of a file that has several, see
    `files.read_weights`.
    Raises ScratchvitError if the model is not known, and as `load_weights` does.
    """
    path = Path(path)
    renamed = _read(path, entry)
    origin = _origin(path, renamed, named=name is not None)
    if name is None:
        if not origin.name:
            like = looks_like({key: value.shape for key, value in renamed.weights.items()})
            raise ScratchvitError(
                f"{path}: there is no config.json that says which model these weights are for; "
                f"name the model: --model {like or 'NAME'}{' (which has the same tensors)' if like else ''}"
            )
        name = origin.name
    preset = vars(model_config(name))
    described = {
        key: value for key, value in origin.options.items()
        if (key in preset if key in UNSEEN else origin.name == name)
    }
    options = described | _sizes_of(preset | described | overrides, renamed.weights) | overrides
    model: Any = _without_weights(path, name, options)
    if "img_size" not in overrides and (img_size := _img_size_of(renamed.weights, model, path)):
        model = _without_weights(path, name, options | {"img_size": img_size})
    state, report = _fitted(model, renamed, path, origin)
    expected: Any = model_config(name, **described | overrides)
    for key in ("img_size", "patch_size"):
        if (size := getattr(model.config, key, None)) != (other := getattr(expected, key, None)):
            report.adapted.append(f"the model, to the file's {key} {size} ({name} has {other})")
    for key in UNSEEN:
        if key not in overrides and (value := getattr(model.config, key, None)) != (usual := preset.get(key)):
            report.adapted.append(f"the model, to the file's {key} {value} ({name} has {usual})")
    for key, tensor in (*model.named_parameters(), *model.named_buffers()):
        with np.errstate(over="ignore"):        # float64 values beyond float32 become infinite
            tensor.data = asarray(np.array(state[key], tensor.dtype, order="C"))
    return Loaded(model.eval(), name, report)


def _origin(path: Path, renamed: Renamed, named: bool) -> Described:
    """What is known of a file's model beside its weights; its name is "" if nothing says it.

    The names of the weights tell whose they are, the checkpoint of a run has its model's options, and a config.json may
    say everything. named: the user has named the model, so that a config.json of something else is no error.
    """
    found, notes = None, tuple[str, ...]()
    try:
        found = describe(path)
    except ScratchvitError as error:
        if not named:
            raise
        notes = (f"config.json is ignored, because the model was named: {error}",)
    options = renamed.options | {key: value for key, value in _args_of_run(path).items() if key in UNSEEN}
    if found is None:
        return Described("", options, notes)
    return Described(found.name, options | found.options, found.notes)


def _differences(model: Module, origin: Described) -> list[str]:
    """What the model computes differently from the file's, although the weights fit, as sentences."""
    config: Any = getattr(model, "config", None)
    theirs = {key: value for key, value in origin.options.items() if key in UNSEEN}
    if origin.name and type(preset := model_config(origin.name)) is type(config):
        theirs |= vars(preset) | {key: value for key, value in origin.options.items() if hasattr(preset, key)}
    return [
        f"{key} is {getattr(config, key)} in this model and {value} in the file's, so their outputs differ: for the "
        f"file's, create the model with {key}={value!r}"
        for key, value in theirs.items()
        if key not in FREE and getattr(config, key, value) != value
    ]


def _without_weights(path: Path, name: str, options: dict[str, Any]) -> Module:
    """A model of shapes only: no random weights, and no memory for a model that does not fit the file."""
    try:
        with init.without_weights():
            return create_model(name, **options)
    except (TypeError, ValueError, LookupError, ArithmeticError, MemoryError) as error:
        raise ScratchvitError(f"{path}: cannot create {name} with {options} ({error})") from error


def _read(path: str | Path, entry: str | None = None) -> Renamed:
    choice = Choice(entry)
    weights = read_chosen(path, choice)
    renamed = recognise(weights).rename(weights)
    renamed.entry = str(choice)
    renamed.left_out += choice.unused
    return renamed


def _fitted(
    model: Module, renamed: Renamed, path: Path, origin: Described, new_head: bool = False
) -> tuple[Weights, LoadReport]:
    if isinstance(model, PixelModel) and "palette" not in renamed.weights:
        renamed.weights |= _palette_beside(path)
    groups = _args_of_run(path).get("query_groups")
    try:
        state, report = fit(model, renamed, new_head, image_size(path), groups if isinstance(groups, int) else 1)
    except ScratchvitError as error:
        raise ScratchvitError(f"{path}: {error}") from error
    report.notes += (*origin.notes, *_differences(model, origin))
    return state, report


def _args_of_run(path: Path) -> dict[str, Any]:
    """The options of the model in the checkpoint of a run; {} for any other file."""
    path = path / "best.safetensors" if path.is_dir() else path
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return dict(json.loads(file.metadata()["scratchvit"])["model_args"])
    except (safetensors.SafetensorError, OSError, LookupError, TypeError, ValueError):
        return {}


def _palette_beside(path: Path) -> Weights:
    """{"palette": colours (K, C) in -1 … 1} of an iGPT, from Hugging Face's preprocessor_config.json; {} without one.

    Raises ScratchvitError if its clusters are not a table.
    """
    from scratchvit.weights.preprocess import folder_of, read_config  # needs Pillow, which `import scratchvit` must not

    file = folder_of(path) / "preprocessor_config.json"
    clusters = (read_config(file) or {}).get("clusters")
    try:
        return {} if clusters is None else {"palette": np.array(clusters, np.float32)}
    except (TypeError, ValueError, OverflowError) as error:
        raise ScratchvitError(f"{file}: its clusters are not a table of colours ({error})") from error


def _sizes_of(options: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    """The numbers of classes, input channels and object queries and the patch size, from the shapes of the tensors.

    options: the other options of the model.
    """
    head = next((key for key in HEAD_WEIGHTS if key in weights), None)
    focal = options.get("focal", False)
    sizes: dict[str, Any] = {"num_classes": classes_in(head, weights[head].shape, focal) if head else 0}
    queries = weights.get("query_embed.weight", weights.get("refpoint_embed.weight"))
    if queries is not None and queries.ndim == 2 and "num_queries" in options:
        sizes["num_queries"] = len(queries) // max(1, options["query_groups"])
    first = next((weights[key] for key in FIRST_KERNELS if key in weights), None)
    if first is not None and first.ndim == 4:
        sizes["in_chans"] = first.shape[1]
    patches = weights.get("patch_embed.proj.weight")
    if patches is not None and patches.ndim == 4 and patches.size and "patch_size" in options:
        P, Q = patches.shape[2:]
        sizes["patch_size"] = P if P == Q else (P, Q)
    return sizes


def _img_size_of(weights: Weights, model: Any, path: Path) -> int | tuple[int, int] | None:
    """The image size at which the model has as many positions as the file; None if it is the model's own size."""
    found = positions_in(weights, model, image_size(path))
    if found is None or found.grid == model.patch_embed.grid_size:
        return None
    cells = zip(model.patch_embed.img_size, model.patch_embed.grid_size, found.grid)
    H, W = (side // before * after for side, before, after in cells)
    return H if H == W else (H, W)
