"""The error for weights that do not fit a model: the likely cause first, then every tensor that does not fit."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from scratchvit.errors import ScratchvitError
from scratchvit.models import create_model, list_models
from scratchvit.nn import Module, init
from scratchvit.weights.arrays import readable
from scratchvit.weights.backbone import BODY, FIRST, options_of_resnet
from scratchvit.weights.names import Renamed

MOST_TOLD = 12          # names, or groups of names, in a line of a report
MOST_NAMED = 1000       # names in one list of an error; no model has as many after blocks are grouped
HEAD = re.compile(
    r"(?:head|head_dist|head\.fc|head\.1|fc|lm_head|score|class_embed|proposals\.class_embed|label_enc)\.(?:weight|bias)"
)
#  heads of ViTs, Swins, MViT, ResNets, iGPT, DETR with two stages and denoising
HEAD_WEIGHTS = ("head.weight", "head.fc.weight", "head.1.weight", "fc.weight", "score.weight", "class_embed.weight")

# The first kernels of hybrids (with stages, and of a stem alone), ViTs, BiT, ResNets, DETR.
FIRST_KERNELS = (
    "patch_embed.backbone.stem.conv.weight", "patch_embed.backbone.conv.weight", "patch_embed.proj.weight",
    "stem.conv.weight", "conv1.weight", "backbone.0.body.conv1.weight",
)

Shapes = Mapping[str, tuple[int, ...]]


class Misfit(NamedTuple):
    """Shapes by name: of the model, of the adapted weights that it is given, and of the weights in the file."""

    ours: Shapes
    theirs: Shapes
    file: Shapes


def complain(
    model: Module,
    own: Mapping[str, Any],
    weights: Mapping[str, np.ndarray],
    renamed: Renamed,
    as_drawn: Collection[str] = (),
) -> None:
    """Raise ScratchvitError unless the weights are exactly those of the model, except for the names `as_drawn`.

    own: {name: parameter or buffer} of the model.  weights: those to be loaded.
    """
    hidden = [name for name in renamed.left_out if "pre_logits" in name]
    if hidden and "head.weight" not in as_drawn and np.any(weights.get("head.weight", 0)):
        raise ScratchvitError(
            f"the head of this file follows a hidden layer ({', '.join(hidden)}) that no model here has, so the logits "
            "would be wrong: load everything else and train a new head (new_head=True, --new-head)"
        )
    ours = {name: tuple(tensor.shape) for name, tensor in own.items() if name not in as_drawn}
    theirs = {name: value.shape for name, value in weights.items()}
    file = {name: value.shape for name, value in renamed.weights.items()}
    misshaped = (
        f"{name} (file {file.get(name, theirs[name])} → model {shape})"
        for name, shape in ours.items()
        if theirs.get(name, shape) != shape
    )
    lists = {
        "missing": grouped(name for name in ours if name not in theirs),
        "unexpected": grouped(name for name in theirs if name not in ours),
        "mis-shaped": grouped(misshaped),
    }
    if any(lists.values()):
        cause = next((text for find in _CAUSES if (text := find(Misfit(ours, theirs, file)))), "")
        raise ScratchvitError(
            f"the weights (names of {renamed.owner}) do not fit {type(model).__name__}, and nothing was loaded"
            f"{': ' + cause if cause else ''}"
            + "".join(f"\n  {what}: {', '.join(names)}" for what, names in lists.items() if names)
            + (f"\n  not used: {', '.join(in_short(renamed.left_out))}" if renamed.left_out else "")
            + (f"\n  {renamed.entry}" if renamed.entry else "")
        )


def classes_in(name: str, shape: Sequence[int], focal: bool) -> int:
    """The number of classes of a head, from the name (one of HEAD_WEIGHTS) and the shape of its weight.

    The last row of a DETR's head is for "no object", unless it uses sigmoids (focal), as a DAB-DETR does.
    """
    rows = shape[0] if shape else 0
    return max(rows - 1, 0) if name == "class_embed.weight" and not focal else rows


def grouped(names: Iterable[str]) -> list[str]:
    """Names for an error message; names that differ only in their first number are merged: blocks.2…11.norm1.bias."""
    groups: dict[tuple[str, str], set[int]] = {}
    for name in names:
        before, number, after = _NUMBERED.fullmatch(name).groups()  # type: ignore[union-attr]  # it matches any text
        groups.setdefault((before or "", after), set()).add(int(number or 0))
    texts = []
    for (before, after), found in groups.items():
        numbers = sorted(found)
        whole = 1 < len(numbers) == numbers[-1] - numbers[0] + 1
        which = f"{numbers[0]}…{numbers[-1]}" if whole else ",".join(map(str, numbers))
        texts.append(f"{readable(before)}{which}{readable(after)}" if before else readable(after))
    return at_most(texts, MOST_NAMED)


def in_short(names: Sequence[str]) -> list[str]:
    """Names for a line: `grouped`, or if that is long, each part of the model as decoder.… (26 tensors)."""
    if len(texts := grouped(names)) <= MOST_TOLD:
        return texts
    parts: dict[str, list[str]] = {}
    for name in names:
        parts.setdefault(name.partition(".")[0], []).append(name)
    told = [
        f"{readable(part)}.… ({len(of_part)} tensors)" if len(of_part) > 1 else readable(of_part[0])
        for part, of_part in parts.items()
    ]
    return at_most(told, MOST_TOLD)


def at_most(texts: list[str], most: int) -> list[str]:
    """The first texts of a list, and how many more there are: ["a", "b", "and 7 more"]."""
    more = len(texts) - most
    return texts if more <= 0 else [*texts[:most], f"and {more:,} more"]


_NUMBERED = re.compile(r"(?:(.*?\.)(\d{1,9})(?=\.))?(.*)", re.DOTALL)      # a longer number cannot be that of a block


def looks_like(shapes: Shapes) -> str | None:
    """The name of the model with exactly these tensors, whatever its image size, channels and classes, or None."""
    expected = _of_the_body(shapes)
    return next((name for name in list_models() if _body_of_preset(name) == expected), None)


@functools.cache
def _body_of_preset(model_name: str) -> dict[str, tuple[int, ...]]:
    with init.without_weights():
        model = create_model(model_name)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return _of_the_body({name: tensor.shape for name, tensor in tensors})


def _of_the_body(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """The shapes that do not depend on the task: without head, positional embedding and number of input channels."""
    body = {}
    for name, shape in shapes.items():
        if not HEAD.fullmatch(name) and name != "pos_embed" and not name.endswith(".num_batches_tracked"):
            body[name] = (shape[0], *shape[2:]) if name in FIRST_KERNELS and shape else tuple(shape)
    return body


# --- the likely causes: each function returns a sentence, or "" if it does not apply ---


def _other_backbone(found: Misfit) -> str:
    """Of a classifier whose weights should become a detector's backbone."""
    if not all(name.startswith(BODY) for name in found.file):
        return ""
    file = {name.removeprefix(BODY): shape for name, shape in found.file.items()}
    kernel, own_kernel = (
        "×".join(map(str, shapes.get(f"{BODY}{FIRST}", ())[2:])) for shapes in (found.file, found.ours)
    )
    if kernel != own_kernel:
        return f"its first kernel is {kernel}, that of a backbone {own_kernel}: use a classifier without small_stem"
    sizes = options_of_resnet(file)
    if not sizes:
        return ""
    options = ", ".join(f"{name}={sizes[name]}" for name in ("layers", "bottleneck", "channels"))
    like = looks_like(file)
    what = f"this file looks like {like}" if like else "this file is from a ResNet of another size"
    return f"{what}, the model has another backbone: create the model with {options}"


def _other_names(found: Misfit) -> str:
    common = found.file.keys() & found.ours.keys()
    if any(name.split(".")[0] not in ("norm", "head") for name in common):      # every family has these two
        return ""
    if like := looks_like(found.file):
        return f"this file looks like {like}"
    some = ", ".join(map(readable, list(found.file)[:3])) or "no tensors"
    none = "only the names of norm and head match" if common else "no name matches"
    return f"{none} the model's; the file has {some}{', …' if len(found.file) > 3 else ''}"


_DAB = "transformer.decoder.ref_point_head.layers.0.weight"      # every DAB-DETR has this, and no other model

#  a tensor that only some models have, what it is, and advice
_KINDS = (
    ("dist_token", "a distillation token", "deit_…_distilled_… has one, vit_… and deit_… have none"),
    ("cls_token", "a class token", "create the model with class_token={}"),
    ("blocks.0.attn.qkv.bias", "biases of q, k and v", "create the model with qkv_bias={}"),
    (_DAB, "anchors as queries", "dab_detr_… has them, detr_… has none"),
    ("proposals.enc_output.weight", "encoder proposals", "create the model with two_stage={}"),
)


# Names in which models of a kind may differ; later functions say how.
_OPTIONAL = re.compile(
    rf"{HEAD.pattern}|cls_token|dist_token|pos_embed|palette|(?:fc_)?norm\..+|blocks\.N\.attn\.qkv\.bias"
    r"|.*\.num_batches_tracked"
)


def _other_parts(found: Misfit) -> str:
    """What only one of the two has, whatever the number of blocks. The later functions are about other differences."""
    if all("transformer.decoder.norm.weight" in shapes for shapes in (found.theirs, found.ours)):
        return ""

    def parts(shapes: Shapes) -> dict[str, None]:
        names = (re.sub(r"(?<![^.])\d+(?=\.)", "N", name) for name in shapes)
        return dict.fromkeys(name for name in names if not _OPTIONAL.fullmatch(name))

    theirs, ours = parts(found.theirs), parts(found.ours)
    has, lacks = [name for name in theirs if name not in ours], [name for name in ours if name not in theirs]
    if not has and not lacks:
        return ""
    if like := looks_like(found.file):
        return f"this file looks like {like}"
    said = [
        text.format(", ".join(map(readable, names[:3])) + (", …" if len(names) > 3 else ""))
        for text, names in (("has {}, which the model lacks", has), ("lacks {}", lacks)) if names
    ]
    return f"this file is from another kind of model: it {', and '.join(said)}"


def _other_kind(found: Misfit) -> str:
    for name, what, advice in _KINDS:
        in_file, in_model = name in found.theirs, name in found.ours
        if in_file != in_model:
            has, lacks = ("the file", "the model") if in_file else ("the model", "the file")
            return f"{has} has {what}, {lacks} has none: {advice.format(in_file)}"
    for norm, other, pool in (("norm.weight", "fc_norm.weight", "token"), ("fc_norm.weight", "norm.weight", "avg")):
        if norm in found.theirs and other in found.ours and norm not in found.ours:
            return f'the file is from a model with global_pool="{pool}": create this model with it too'
    return ""


def _other_size(found: Misfit) -> str:
    def sizes(shapes: Shapes) -> tuple[int, int]:
        widths = (shapes.get(name) for name in ("cls_token", "norm.weight", "fc_norm.weight"))
        depth = len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})
        return next(filter(None, widths), (0,))[-1], depth

    def stages(shapes: Shapes) -> dict[str, tuple[int, ...]]:
        return {name: shape for name, shape in shapes.items() if _STAGE.match(name)}

    (dim, depth), (own_dim, own_depth) = sizes(found.theirs), sizes(found.ours)
    if (dim, depth) == (own_dim, own_depth) and stages(found.theirs) == stages(found.ours):
        return ""
    like = looks_like(found.file)
    text = f"this file looks like {like}" if like else "this file is from a model of another size"
    if dim != own_dim:
        return f"{text}: D = {dim}, the model has D = {own_dim}"
    return f"{text}: {depth} blocks, the model has {own_depth}" if depth != own_depth else text


_STAGE = re.compile(r"(?:patch_embed\.backbone\.)?(?:layer\d|stages\.\d|layers\.\d)\.(?!.*num_batches_tracked)")


def _other_detector(found: Misfit) -> str:
    """The options in which two DETRs differ."""

    def sizes(shapes: Shapes) -> dict[str, int | tuple[int, ...]]:
        def rows(name: str) -> int:
            return next(iter(shapes.get(name, ())), 0)

        def layers(part: str) -> int:
            return len({name.split(".")[3] for name in shapes if name.startswith(f"transformer.{part}.layers.")})

        return {
            "queries": rows("query_embed.weight") or rows("refpoint_embed.weight"),
            "hidden_dim": rows("input_proj.weight"),
            "enc_layers": layers("encoder"),
            "dec_layers": layers("decoder"),
            "dim_feedforward": rows("transformer.decoder.layers.0.linear1.weight"),
            "channels": tuple(filter(None, (rows(f"backbone.0.body.layer{n}.0.conv2.weight") for n in range(1, 5)))),
        }

    if not all("transformer.decoder.norm.weight" in shapes for shapes in (found.theirs, found.ours)):
        return ""
    theirs, ours = sizes(found.theirs), sizes(found.ours)
    differ = [name for name in theirs if theirs[name] != ours[name]]
    if not differ:
        return ""
    like = looks_like(found.file)
    has, lacks = (", ".join(f"{name} {each[name]}" for name in differ) for each in (theirs, ours))
    what = f"looks like {like}" if like else "is from a model of another size"
    return f"this file {what}: it has {has}, the model has {lacks}"


def _other_positions(found: Misfit) -> str:
    if "pos_embed" in found.theirs and "pos_embed" not in found.ours:
        return 'the file has a learned positional embedding, the model a fixed one: create it with pos_embed="learn"'
    if "pos_embed" in found.ours and "pos_embed" not in found.theirs:
        return 'the file has no positional embedding: if it was trained with a fixed one, use pos_embed="sincos"'
    return ""


def _other_head(found: Misfit) -> str:
    for name in HEAD_WEIGHTS:
        if name not in found.ours:
            continue
        if name not in found.theirs:
            return "the file has no head: new_head=True (--new-head) keeps the randomly initialised one of the model"
        known, wanted = (
            classes_in(name, shapes[name], _DAB in shapes) for shapes in (found.theirs, found.ours)
        )
        if known != wanted:
            return (
                f"its head has {known} classes, the model's {wanted}: create the model with num_classes={known}, "
                "or keep the randomly initialised head of the model (new_head=True, --new-head)"
            )
    return ""


_CAUSES: tuple[Callable[[Misfit], str], ...] = (
    _other_backbone, _other_names, _other_parts, _other_kind, _other_size, _other_detector, _other_positions,
    _other_head,
)
