"""Rows for scratchvit/ops/resize.py."""

from scratchvit import ops

from .case import Case


def _row(note, shape=(1, 2, 5, 6), **options):
    theirs = dict(options)
    if not options["mode"].startswith("nearest"):
        theirs.setdefault("align_corners", False)
    return Case(
        "interpolate", (shape,), lambda x: ops.interpolate(x, **options),
        lambda torch, x: torch.nn.functional.interpolate(x, **theirs), note,
    )


CASES = [
    _row("nearest", size=(7, 4), mode="nearest"),
    _row("nearest, twice", scale_factor=2, mode="nearest"),
    _row("nearest, a signal", (2, 3, 5), size=8, mode="nearest"),
    _row("nearest, a clip", (1, 2, 2, 4, 3), size=(3, 2, 6), mode="nearest"),
    _row("nearest-exact", size=(7, 4), mode="nearest-exact"),
    _row("nearest-exact, factors", scale_factor=(0.5, 1.6), mode="nearest-exact"),
    _row("linear", (2, 3, 5), size=8, mode="linear"),
    _row("linear, corners", (2, 3, 5), size=3, mode="linear", align_corners=True),
    _row("trilinear", (1, 2, 2, 4, 3), size=(3, 2, 6), mode="trilinear"),
    _row("trilinear, corners", (1, 2, 2, 4, 3), size=(3, 2, 6), mode="trilinear", align_corners=True),
    _row("trilinear, factor", (1, 2, 2, 4, 3), scale_factor=1.5, mode="trilinear"),
    _row("bilinear", size=(8, 4), mode="bilinear"),
    _row("bilinear, factor, same size", (1, 2, 14, 5), scale_factor=14.1 / 14, mode="bilinear"),
    _row("bilinear, one number", size=7, mode="bilinear"),
    _row("bilinear, corners", size=(8, 4), mode="bilinear", align_corners=True),
    _row("bilinear, corners, to one pixel", size=1, mode="bilinear", align_corners=True),
    _row("bilinear, factor", scale_factor=1.7, mode="bilinear"),
    _row("bilinear, factors", scale_factor=(0.5, 1.3), mode="bilinear"),
    _row("bilinear, factors, corners", scale_factor=(0.5, 1.3), mode="bilinear", align_corners=True),
    _row("bicubic", size=(8, 4), mode="bicubic"),
    _row("bicubic, corners", size=(8, 4), mode="bicubic", align_corners=True),
    _row("bicubic, factor", scale_factor=1.7, mode="bicubic"),
    _row("bicubic, same size", size=(5, 6), mode="bicubic"),
    _row("bilinear, antialias down", (1, 1, 7, 9), size=(3, 4), mode="bilinear", antialias=True),
    _row("bilinear, antialias up", size=(8, 11), mode="bilinear", antialias=True),
    _row("bicubic, antialias down", (1, 1, 9, 8), size=(4, 3), mode="bicubic", antialias=True),
    _row("bicubic, antialias up", size=(8, 11), mode="bicubic", antialias=True),
    _row("bicubic, antialias, corners", (1, 1, 7, 9), size=(3, 12), mode="bicubic", antialias=True, align_corners=True),
    _row("bicubic, antialias, factor", (1, 1, 9, 8), scale_factor=0.4, mode="bicubic", antialias=True),
]
