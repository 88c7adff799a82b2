"""`scratchvit inspect`: drawings of the inside of a model, a Swin's windows or the attention of a ViT or a DETR."""

from __future__ import annotations

import difflib
import re
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from scratchvit import backend
from scratchvit.cli._options import Parser, size
from scratchvit.cli._pictures import open_the_picture
from scratchvit.cli._text import filled, table
from scratchvit.cli._weights import add_entry
from scratchvit.detection.detector import open_detector
from scratchvit.errors import ScratchvitError
from scratchvit.files import printable
from scratchvit.inspect import attention_maps, class_attention, draw_attention, shows_attention
from scratchvit.inspect.attention import attention_distance
from scratchvit.inspect.attention_pictures import as_seen as as_picture
from scratchvit.inspect.attention_pictures import draw_heads
from scratchvit.inspect.detection import as_seen, cross_attention, encoder_attention
from scratchvit.inspect.detection_pictures import (
    POINTS,
    THRESHOLD,
    Seen,
    cross_attention_panels,
    draw_panels,
    encoder_attention_panels,
)
from scratchvit.inspect.figures import make_folder
from scratchvit.inspect.swin import bias_table, merged_into, reach_after_every_block, window_blocks
from scratchvit.inspect.swin_pictures import PICTURES, Scene, by, in_words
from scratchvit.models import create_model, list_models
from scratchvit.models.detr import DETR
from scratchvit.models.swin import SwinTransformer
from scratchvit.models.vit import VisionTransformer
from scratchvit.training.checkpoint import is_checkpoint, model_from_checkpoint
from scratchvit.training.classification.classifier import open_classifier
from scratchvit.weights.load import load_weights, open_model
from scratchvit.weights.pretrained import run_or_trained

OPTIONS = ("img_size", "patch_size", "window_size")     # fields of the model that the command can change


def inspect(argv: Sequence[str]) -> int:
    """Draw a model's windows or attention into a folder, and print them as a table."""
    parser = Parser(
        prog="scratchvit inspect", usage="scratchvit inspect RUN|MODEL [options]",
        description="Draw the inside of a model. For a Swin or Swin V2, four pictures and a table of its blocks:\n\n"
        "  windows.png    the windows of every stage, regular and shifted\n"
        "  masks.png      the attention masks of shifted windows\n"
        "  bias.png       the relative position bias of every block and head\n"
        "  receptive.png  the receptive field of a token, block by block\n\n"
        "For a trained ViT, its attention to a picture, and how far its heads look:\n\n"
        "  attention.png  the last layer's attention, and the rollout over all layers\n"
        "  heads.png      the attention of every head in every layer\n\n"
        "For a trained DETR, its detections in a picture, and two drawings (`scratchvit report` has more, on the data\n"
        "of the run):\n\n"
        "  cross_attention.png    the decoder's cross-attention for each detection\n"
        "  encoder_attention.png  the encoder's self-attention, layer by layer\n\n"
        "  scratchvit inspect vit_digits --image digit.png\n"
        "  scratchvit inspect swin_digits\n"
        "  scratchvit inspect swin_tiny_patch4_window7_224\n"
        "  scratchvit inspect swinv2_tiny_window8_256 --weights model.safetensors\n"
        "  scratchvit inspect runs/NAME --image cat.jpg",
    )
    parser.add_argument(
        "model", metavar="RUN|MODEL",
        help="a run folder of `scratchvit train` or `detect-train`, a checkpoint, the name of a trained model (see "
        "`scratchvit models --trained`), or that of a model (see `scratchvit models`)",
    )
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="third-party weights for MODEL (default: random initial weights)"
    )
    parser.add_argument(
        "--img-size", type=size, metavar="SIZE", help="image size: 384, or 384x288 (default: the model's own)"
    )
    parser.add_argument(
        "--patch-size", type=size, metavar="SIZE", help="patch size in pixels (default: the model's own)"
    )
    parser.add_argument(
        "--window-size", type=size, metavar="SIZE", help="window size in tokens (default: the model's own)"
    )
    parser.add_argument(
        "--image", type=Path, metavar="FILE",
        help="the picture that a ViT or DETR looks at; for a Swin, the background of the maps (default: white)",
    )
    parser.add_argument(
        "--token", type=_token, metavar="Y,X",
        help="row and column, from 0, of a token: for a Swin, that of stage 1 whose receptive field is drawn (default: "
        "the middle); for a ViT, the patch whose attention heads.png shows (default: that of the classifier's input)",
    )
    parser.add_argument(
        "--point", type=_point, action="append", metavar="X,Y", dest="points",
        help="DETR: a point of the picture, 0,0 (upper left) to 1,1; can be repeated (default: the centres of objects)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("inspect"), metavar="DIR",
        help="output folder; created if it does not exist (default: inspect)",
    )
    add_entry(parser)
    given = parser.parse_strictly(argv)

    backend.use("cpu")
    model, name, loaded = _read(given.model, given.weights, given.entry, _options(given))
    draw = next((draw for family, draw in FAMILIES.items() if isinstance(model, family)), None)
    if draw is None:
        raise ScratchvitError(
            f"{name} is a {type(model).__name__}, which `scratchvit inspect` cannot draw: use a Swin or Swin V2 "
            '(`scratchvit models "swin*"`), a ViT or a DETR'
        )
    for line in loaded:
        print(filled(line))
    for path in draw(model, name, given):
        print(f"wrote {path}")
    return 0


def _options(given: Namespace) -> dict[str, Any]:
    """The options of the model that were given, by name."""
    return {name: value for name in OPTIONS if (value := getattr(given, name)) is not None}


def _read(
    named: str, weights: Path | None, entry: str | None, options: dict[str, Any]
) -> tuple[Any, str, list[str]]:
    """(model in evaluation mode, its name for titles, lines about its weights)."""
    if named in list_models():
        if weights is None:
            said = f"{named} with random weights; --weights loads others"
            return create_model(named, **options).eval(), f"{named} before training", [said]
        model, name, report = open_model(weights, named, entry=entry, **options)
        return model, name, [f"{name} from {weights}", *str(report).splitlines()]
    path = run_or_trained(named)
    if weights is not None or not path.exists():
        close = difflib.get_close_matches(named, list_models(), n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]}?" if close else ", see `scratchvit models`"
        what = "not the name of a model, which --weights needs" if weights is not None else "neither a model nor a file"
        raise ScratchvitError(f"{named} is {what}{hint}")
    if not is_checkpoint(path):     # third-party weights with a config.json; other files raise an error here
        model, name, report = open_model(path, entry=entry, **options)
        return model, name, [f"{name} from {named}", *str(report).splitlines()]
    model, checkpoint = model_from_checkpoint(path, entry=entry)
    lines = [f"{checkpoint.model_name} from {named}"]
    if options:
        model = create_model(checkpoint.model_name, **checkpoint.model_args | options).eval()
        lines += str(load_weights(model, path, entry=entry)).splitlines()
    return model, checkpoint.model_name, lines


def _windows(model: SwinTransformer, name: str, given: Namespace) -> list[Path]:
    """Draw a Swin and print a table of its blocks. Returns the files."""
    if given.points:
        raise ScratchvitError(f"--point is only for a DETR, {name} is a Swin: name a token with --token Y,X")
    blocks, (H, W) = window_blocks(model), model.patch_embed.img_size
    h, w = blocks[0].size
    token = (h // 2, w // 2) if given.token is None else given.token
    if token[0] >= h or token[1] >= w:
        raise ScratchvitError(
            f"there is no token in row {token[0]}, column {token[1]}: stage 1 has rows 0 … {h - 1} and columns "
            f"0 … {w - 1}"
        )
    picture = None
    if given.image is not None:
        picture = np.asarray(ImageOps.fit(open_the_picture(given.image), (W, H), Image.Resampling.BICUBIC))
    reached, tables = reach_after_every_block(blocks, token), [bias_table(block) for block in blocks]
    scene = Scene(name, blocks, token, reached, model.patch_embed.patch_size, tables, picture)

    print(filled(f"image {H}×{W} pixels; receptive field of the stage 1 token in row {token[0]}, column {token[1]}"))
    print()
    header = ("stage", "block", "map", "windows", "shift", "padding", "attends to", "receptive field", "of the image")
    rows = [header]
    for block, patches in zip(blocks, reached):
        here = merged_into(token, block.stage)
        seen, padding = block.tokens_looked_at(here)
        rows.append((
            str(block.stage), str(block.number), by(block.size), by(block.window),
            by(block.shift) if any(block.shift) else "–", by(block.padding) if any(block.padding) else "–",
            f"{seen} tokens" + (f" + {padding} of padding" if padding else ""),
            in_words(patches, scene.patch_size), f"{patches.mean():.1%}",
        ))
    print(f"{table(rows)}\n")
    paths = []
    for file, draw in PICTURES.items():
        draw(scene, path := given.out / file)
        paths.append(path)
    return paths


def _detections(model: DETR, name: str, given: Namespace) -> list[Path]:
    """Draw the attention of a DETR in a picture and print its detections as a table. Returns the files."""
    if given.token is not None:
        raise ScratchvitError(f"--token is only for a Swin, {name} is a DETR: name points with --point X,Y")
    source = given.weights or run_or_trained(given.model)
    if not source.exists():
        raise ScratchvitError(f"{name}: an untrained DETR has no detections to draw; name a run, or --weights")
    if given.image is None:
        raise ScratchvitError(f"{name} needs a picture: name one with --image")
    detector = open_detector(source, given.model if given.weights else None, entry=given.entry)
    picture, image = as_seen(detector, open_the_picture(given.image))
    (found,) = detector.in_pictures([Image.fromarray(picture)])

    height, width = picture.shape[:2]
    best = np.argsort(-found["scores"], kind="stable")
    best = best[: max(1, int((found["scores"] >= THRESHOLD).sum()))].tolist()
    print(filled(f"image {height}×{width} pixels; detections with a score of at least {THRESHOLD}, or the best one"))
    print()
    rows = [("query", "class", "score", "left", "top", "right", "bottom")]
    for place in best:
        edges = (f"{edge:.1f}" for edge in found["boxes"][place])
        class_name = printable(detector.classes[found["labels"][place]])
        query, score = str(found["queries"][place]), f"{found['scores'][place]:.3f}"
        rows.append((query, class_name, score, *edges))    # type: ignore[arg-type]
    print(f"{table(rows)}\n")

    make_folder(given.out)
    paths = [given.out / "cross_attention.png"]
    seen = Seen(picture, found, cross_attention(model, image).mean(axis=0))
    draw_panels([cross_attention_panels(seen, detector.classes)], paths[0])
    if model.config.enc_layers:
        boxes = found["boxes"][best[:POINTS]] / [width, height, width, height]
        middles = ((boxes[:, :2] + boxes[:, 2:]) / 2).clip(0, 1).tolist()
        points = given.points or [(x, y) for x, y in middles]
        maps = np.stack([encoder_attention(model, image, point).mean(axis=1) for point in points])
        paths.append(given.out / "encoder_attention.png")
        draw_panels(encoder_attention_panels(picture, points, maps), paths[-1])
    return paths


def _attention(model: VisionTransformer, name: str, given: Namespace) -> list[Path]:
    """Draw the attention of a ViT to a picture and print how far its heads look. Returns the files."""
    if given.points:
        raise ScratchvitError(f"--point is only for a DETR, {name} is a ViT: name a patch with --token Y,X")
    source = given.weights or run_or_trained(given.model)
    if not source.exists():
        raise ScratchvitError(
            f"{name}: its weights are random, so its attention says nothing; name a run, a trained model such as "
            "vit_digits, or --weights"
        )
    if given.image is None:
        raise ScratchvitError(f"{name} needs a picture: name one with --image")
    if not shows_attention(model):
        raise ScratchvitError(f"{name} has {model.num_tokens:,} tokens, too many to draw: use a smaller --img-size")
    classifier = open_classifier(source, given.model if given.weights else None, entry=given.entry, **_options(given))
    model, grid, prefix = classifier.model, classifier.model.patch_embed.grid_size, classifier.model.num_prefix_tokens
    token = given.token
    if token is not None and (token[0] >= grid[0] or token[1] >= grid[1]):
        raise ScratchvitError(
            f"there is no patch in row {token[0]}, column {token[1]}: there are rows 0 … {grid[0] - 1} and columns "
            f"0 … {grid[1] - 1}"
        )
    image = classifier.prepare(open_the_picture(given.image, model.config.in_chans))
    chances, maps = classifier.probabilities(image[None])[0], attention_maps(model, image[None])
    (H, W), best = image.shape[1:], int(chances.argmax())

    print(filled(f"{given.image}: {printable(classifier.classes[best])}, with a probability of {chances[best]:.1%}"))
    print(filled(f"image {H}×{W} pixels, patches of {by((H // grid[0], W // grid[1]))}; mean distance of attention in "
                 "pixels"))
    print()
    far = attention_distance(maps, prefix, grid, (H / grid[0], W / grid[1]))
    rows: list[tuple[str, ...]] = [("layer", "nearest head", "all heads", "farthest head")]
    rows += [
        (str(layer), *(f"{value:.1f}" for value in (heads.min(), heads.mean(), heads.max())))
        for layer, heads in enumerate(far)
    ]
    print(f"{table(rows)}\n")

    make_folder(given.out)
    paths, picture = [given.out / "attention.png", given.out / "heads.png"], as_picture(image)
    draw_attention(model, picture[None], lambda _: image[None], [best], classifier.classes, paths[0])
    if token is None:
        of_heads = np.stack([class_attention(of_layer[0], prefix, grid) for of_layer in maps])
        of_what = "class token" if prefix else "mean over all patches"
    else:
        row = prefix + token[0] * grid[1] + token[1]
        of_heads = maps[:, 0, :, row, prefix:].reshape(*maps.shape[:1], maps.shape[2], *grid)
        of_what = f"patch in row {token[0]}, column {token[1]}"
    draw_heads(picture, of_heads, f"attention: {of_what}", paths[1], token)
    return paths


# For each family of models, the function that draws, prints the table, and returns the files.
FAMILIES: dict[type, Callable[[Any, str, Namespace], list[Path]]] = {
    SwinTransformer: _windows, DETR: _detections, VisionTransformer: _attention,
}


def _token(text: str) -> tuple[int, int]:
    """Parse a token such as `14,3`: row and column."""
    if not re.fullmatch(r"\d+,\d+", text):
        raise ArgumentTypeError(f"expected a token such as 14,3 (row, column), not {text!r}")
    y, x = map(int, text.split(","))
    return y, x


def _point(text: str) -> tuple[float, float]:
    """Parse a point such as `0.4,0.6`: x and y, both from 0 to 1."""
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise ArgumentTypeError(f"expected a point such as 0.4,0.6 (x, y), not {text!r}") from None
    if not (0 <= x <= 1 and 0 <= y <= 1):
        raise ArgumentTypeError(f"the point {text} is outside the picture: x and y go from 0 (left, top) to 1")
    return x, y
