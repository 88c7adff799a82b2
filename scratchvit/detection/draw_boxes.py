"""Drawing detections and ground truth into pictures.

Detections have solid lines in the colour of their class, with name and score above. Ground truth, if it is known, has
dashed lines in white and black, with the name below. Where two boxes coincide, both are visible through the gaps.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from scratchvit.data.glyphs import font_for
from scratchvit.detection.data.annotations import Annotations
from scratchvit.files import write_atomically

# By label, modulo their number; distinguishable with colour blindness (P. Tol's "bright", without its grey).
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
BLACK, WHITE, INK = "#000000", "#ffffff", "#555555"
CAPTION = "solid: detections with scores        dashed: ground truth"

Found = Mapping[str, np.ndarray]    # from `postprocess`: "scores" (n,), "labels" (n,), "boxes" (n, 4), "queries" (n,)
Edges = tuple[int, int, int, int]   # the first and the last pixel inside: left, top, right, bottom


def draw_boxes(
    picture: Image.Image, classes: Sequence[str], found: Found | None = None, truth: Annotations | None = None,
    *, threshold: float = 0.5, side: int | None = None,
) -> Image.Image:
    """A copy of an RGB picture with boxes drawn on it.

    found       detections {"scores", "labels", "boxes"}, boxes as (left, top, right, bottom) in pixels of the picture
    truth       the annotations; crowds are marked as ignored, as in evaluation
    threshold   the lowest score that is drawn. If no detection reaches it, the picture says so, with the best score
    side        first resize the longer side to about this many pixels; small pictures are enlarged by an integer

    The outer border of a line is the edge of its box. Boxes are clipped to the picture.
    """
    drawn, factor = _resized(picture, side)
    draw = ImageDraw.Draw(drawn)
    width = max(2, round(max(drawn.size) / 320))
    font_size = min(max(12, max(drawn.size) / 40), 26)

    chosen: list[tuple[Edges, int, str]] = []       # box, label, text
    if found is not None:
        weakest_first = np.argsort(found["scores"], kind="stable")
        for i in weakest_first[found["scores"][weakest_first] >= threshold].tolist():
            label, edges = int(found["labels"][i]), _edges(found["boxes"][i], factor, drawn.size)
            if edges:
                chosen.append((edges, label, f"{classes[label]}: {found['scores'][i]:.2f}"))
    there: list[tuple[Edges, str]] = []
    if truth is not None:
        for box, label, crowd in zip(truth.boxes, truth.labels.tolist(), truth.crowd.tolist()):
            edges = _edges(box, factor, drawn.size)
            if edges:
                there.append((edges, f"{classes[label]} (ignored)" if crowd else classes[label]))

    for edges, label, _ in chosen:
        draw.rectangle(edges, outline=_colour(label), width=width)
    for edges, _ in there:
        _dashed_rectangle(draw, edges, width)
    for (left, _, _, bottom), name in there:
        _tag(drawn, name, (left, bottom + 1), font_size, WHITE, below=True)
    for (left, top, _, _), label, text in chosen:
        _tag(drawn, text, (left, top), font_size, _colour(label))
    if found is not None and not (found["scores"] >= threshold).any():
        best = f", best {found['scores'].max():.2f}" if len(found["scores"]) else ""
        _tag(drawn, f"nothing scores {threshold:.2f}{best}", (0, 0), font_size, WHITE)
    return drawn


def sheet(pictures: Sequence[Image.Image], columns: int = 4, caption: str = "") -> Image.Image:
    """Arrange pictures on white in rows of `columns`, with a line of text below."""
    gap = 8
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    widths = [max(each.width for each in pictures[column::columns]) for column in range(min(columns, len(pictures)))]
    heights = [max(each.height for each in row) for row in rows]
    font = ImageFont.load_default(14)
    foot = 14 + 2 * gap if caption else gap
    size = sum(widths) + gap * (len(widths) + 1), sum(heights) + gap * len(heights) + foot
    whole = Image.new("RGB", size, WHITE)
    for r, row in enumerate(rows):
        for c, each in enumerate(row):
            whole.paste(each, (sum(widths[:c]) + gap * (c + 1), sum(heights[:r]) + gap * (r + 1)))
    ImageDraw.Draw(whole).text((gap, size[1] - foot + gap // 2), caption, INK, font)
    return whole


def write_predictions(
    path: str | Path, examples: Sequence[tuple[Image.Image, Annotations | None]], found: Sequence[Found],
    classes: Sequence[str], *, threshold: float = 0.5, side: int = 360, columns: int = 4,
) -> None:
    """Write a PNG of several pictures with detections and ground truth; see `draw_boxes`.

    examples: (picture, annotations) as from `DetectionDataset.example`; annotations None if the truth is not known.
    Raises ScratchvitError if the file cannot be written.
    """
    drawn = [
        draw_boxes(picture, classes, boxes, truth, threshold=threshold, side=side)
        for (picture, truth), boxes in zip(examples, found, strict=True)
    ]
    caption = CAPTION if any(truth is not None for _, truth in examples) else ""
    png = io.BytesIO()
    sheet(drawn, columns, caption).save(png, format="PNG")
    write_atomically(Path(path), png.getvalue())


def _resized(picture: Image.Image, side: int | None) -> tuple[Image.Image, float]:
    """(resized copy, its pixels per pixel of the picture)."""
    factor = side / max(picture.size) if side else 1.0
    if factor < 1:
        width, height = (max(1, round(length * factor)) for length in picture.size)
        return picture.resize((width, height), Image.Resampling.BICUBIC), factor
    whole = int(factor)
    return picture.resize((picture.width * whole, picture.height * whole), Image.Resampling.NEAREST), float(whole)


def _edges(box: np.ndarray, factor: float, size: tuple[int, int]) -> Edges | None:
    """The pixels of a box in a picture of size (width, height), at least one; None if the box lies outside."""
    limits = np.array([*size, *size])
    scaled = np.asarray(box, np.float64) * factor
    if not np.isfinite(scaled).all() or (scaled[2:] <= 0).any() or (scaled[:2] >= limits[:2]).any():
        return None
    left, top, right, bottom = scaled.clip(0, limits).round().astype(int).tolist()
    left, top = min(left, size[0] - 1), min(top, size[1] - 1)       # rounding may reach the border
    return left, top, max(left, right - 1), max(top, bottom - 1)


def _dashed_rectangle(draw: ImageDraw.ImageDraw, edges: Edges, width: int) -> None:
    """Draw dashes along each side: white, black, and a gap of two; visible on any background."""
    left, top, right, bottom = edges
    dash = 2 * width
    across = min(width, right - left + 1) - 1, min(width, bottom - top + 1) - 1     # line width minus 1
    for colour, offset in ((WHITE, 0), (BLACK, dash)):
        for x in range(left + offset, right + 1, 4 * dash):
            end = min(x + dash - 1, right)
            draw.rectangle((x, top, end, top + across[1]), fill=colour)
            draw.rectangle((x, bottom - across[1], end, bottom), fill=colour)
        for y in range(top + offset, bottom + 1, 4 * dash):
            end = min(y + dash - 1, bottom)
            draw.rectangle((left, y, left + across[0], end), fill=colour)
            draw.rectangle((right - across[0], y, right, end), fill=colour)


def _tag(
    picture: Image.Image, text: str, corner: tuple[int, int], font_size: float, ground: str, below: bool = False
) -> None:
    """Draw text on a coloured background above (or below) a corner, moved so that it is inside the picture.

    A text that is wider than the picture is shortened in the middle, so that its beginning and the score remain.
    """
    draw, size = ImageDraw.Draw(picture), picture.size
    font, text = font_for(text, font_size)
    whole, kept = text, len(text)
    while kept > 2 and draw.textlength(text, font) > size[0] - 6:
        kept -= 1
        end = min(8, kept // 2)
        text = f"{whole[: kept - end]}…{whole[-end:]}"
    left, top, right, bottom = draw.textbbox((0, 0), text, font)
    width, height = int(right - left) + 6, int(bottom - top) + 6
    x = max(0, min(corner[0], size[0] - width))
    y = max(0, min(corner[1] if below else corner[1] - height, size[1] - height))
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=ground)
    draw.text((x + 3 - left, y + 3 - top), text, _readable_on(ground), font)


def _colour(label: int) -> str:
    return COLOURS[label % len(COLOURS)]


def _readable_on(ground: str) -> str:
    """Black or white, whichever has more contrast with the background (brightness by ITU-R BT.601, as in Pillow)."""
    red, green, blue = (int(ground[i : i + 2], 16) for i in (1, 3, 5))
    return BLACK if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else WHITE
