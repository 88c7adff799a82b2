"""The command line: `scratchvit train` and all that can be done with what it trained; HELP lists the commands."""

from __future__ import annotations

import difflib
import errno
import importlib
import io
import sys
from collections.abc import Callable, Sequence

from scratchvit.errors import ScratchvitError
from scratchvit.training.interrupt import Interrupted

HELP = """\
scratchvit: vision Transformers from scratch, on NumPy and CuPy.

  scratchvit train                              a ViT on handwritten digits, in a minute, into runs/
  scratchvit train --data fashion-mnist         other data, with its own recipe
  scratchvit train --data photos --img-size 96  your pictures: photos/train/<class>/*.jpg
  scratchvit eval --checkpoint FILE             how good is it on the test pictures?
  scratchvit predict a.jpg b.png --checkpoint FILE
  scratchvit models "vit_*"                     names, sizes, and what they cost
  scratchvit cost MODEL --img-size 384          layer by layer: parameters, multiply-adds, attention, memory
  scratchvit inspect MODEL|CHECKPOINT           a Swin's windows, masks and biases, or where a DETR looks
  scratchvit export CHECKPOINT --out DIR        for timm: model.safetensors and config.json
  scratchvit show-augment photo.jpg             a sheet: the picture under every kind of augmentation
  scratchvit detect-train                       a DETR on scenes of handwritten digits; --data FOLDER: on your boxes
  scratchvit detect-eval --checkpoint FILE      COCO's average precision, and class by class
  scratchvit detect a.jpg --checkpoint FILE     boxes drawn into pictures, listed, and as JSON
  scratchvit report runs/NAME                   a run on one page, to open in a browser
  scratchvit complete CHECKPOINT                a sheet of pictures, as an iGPT goes on from their upper halves
  scratchvit probe CHECKPOINT                   which layer of an iGPT tells classes apart best?
  scratchvit doctor                             what this machine has, what is missing, how fast it is

`scratchvit COMMAND --help` explains a command and every option of it.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, or 1 for bad input, 2 for bad usage, 130 after Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    _escape_what_cannot_be_encoded()
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0 if argv else 2
    try:
        return _command(argv[0])(argv[1:])
    except ScratchvitError as error:
        print(f"scratchvit: {error}", file=sys.stderr)
        return error.exit_status if isinstance(error, Interrupted) else 1
    except KeyboardInterrupt:
        print("\nscratchvit: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:         # `scratchvit models | head`
        sys.stderr.close()
        return 0
    except OSError as error:        # the same on Windows, which has no error of its own for it
        if error.errno != errno.EINVAL or not _output_is_closed():
            raise
        sys.stderr.close()
        return 0
    except SystemExit as stop:      # argparse, after --help or a usage error
        return int(stop.code or 0)


def _escape_what_cannot_be_encoded() -> None:
    """In a code page of Windows, or in the C locale, there is no → for a pipe or a file: print it as \\u2192."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="backslashreplace")


def _output_is_closed() -> bool:
    try:
        sys.stdout.flush()
    except OSError:
        return True
    return False


def _command(name: str) -> Callable[[Sequence[str]], int]:
    known = {       # module, function
        "train": ("train", "train"),
        "eval": ("eval", "evaluate"),
        "predict": ("predict", "predict"),
        "models": ("models", "models"),
        "cost": ("cost", "cost_table"),
        "inspect": ("inspect", "inspect"),
        "export": ("export", "export"),
        "show-augment": ("show_augment", "show_augment"),
        "detect-train": ("detect_train", "detect_train"),
        "detect-eval": ("detect_eval", "detect_eval"),
        "detect": ("detect", "detect"),
        "report": ("report", "report"),
        "complete": ("complete", "complete"),
        "probe": ("probe", "probe"),
        "doctor": ("doctor", "doctor"),
    }
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(known)}"
        print(f"scratchvit: there is no command {name!r}{hint}", file=sys.stderr)
        raise SystemExit(2)
    module, function = known[name]
    # Imported when chosen, so that no command waits for what only another one needs.
    return getattr(importlib.import_module(f"scratchvit.cli.{module}"), function)
