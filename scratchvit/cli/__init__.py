"""The command line: `scratchvit train` and the commands that use a trained model; HELP lists them."""

from __future__ import annotations

import difflib
import errno
import functools
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence

from scratchvit.cli._bugs import bugs_reported, version
from scratchvit.cli._output import Ending, output
from scratchvit.cli._words import COMPLETING, complete_words
from scratchvit.errors import ScratchvitError
from scratchvit.files import printable
from scratchvit.parallel.world import launch

HELP = """\
scratchvit: vision Transformers from scratch, on NumPy and CuPy.

  scratchvit train                 train a ViT on handwritten digits in a minute
  scratchvit train --data photos   on your own pictures: photos/<class>/*.jpg
  scratchvit eval RUN              accuracy and loss on the test pictures
  scratchvit predict RUN a.jpg     classify pictures
  scratchvit report RUN            the whole run on one HTML page
  scratchvit play [RUN]            draw a digit in the browser, see attention
  scratchvit inspect RUN           draw a Swin's windows, or a DETR's attention
  scratchvit export RUN --out DIR  write model.safetensors for timm

  scratchvit detect-train          train a DETR on digits, or on --data DIR
  scratchvit detect-eval RUN       average precision (AP) on the test pictures
  scratchvit detect RUN a.jpg      find objects: drawn, as a table, as JSON

  scratchvit models "vit_*"        list models with their size and cost
  scratchvit models --trained      list small models that are trained already
  scratchvit cost MODEL            parameters, multiply-adds and memory by layer
  scratchvit profile MODEL         time of each op, and at best on this machine
  scratchvit show-augment a.jpg    a picture under every kind of augmentation
  scratchvit complete RUN          complete the upper halves of pictures (iGPT)
  scratchvit probe RUN             a linear classifier on each layer (iGPT)
  scratchvit course                the course: notebooks in your browser
  scratchvit doctor                what is installed, and this machine's speed

RUN is the folder of a run, a checkpoint, weights of other libraries, or the
name of a trained model of this package, such as vit_digits.
`scratchvit COMMAND --help` explains a command and all its options.
`scratchvit --version` prints the version. Tab completion in bash and zsh:
  pip install argcomplete && eval "$(register-python-argcomplete scratchvit)"
"""

# {command: (module, function)}
COMMANDS = {
    "train": ("train", "train"),
    "eval": ("eval", "evaluate"),
    "predict": ("predict", "predict"),
    "models": ("models", "models"),
    "cost": ("cost", "cost_table"),
    "profile": ("profile", "profile_table"),
    "play": ("play", "play"),
    "inspect": ("inspect", "inspect"),
    "export": ("export", "export"),
    "show-augment": ("show_augment", "show_augment"),
    "detect-train": ("detect_train", "detect_train"),
    "detect-eval": ("detect_eval", "detect_eval"),
    "detect": ("detect", "detect"),
    "report": ("report", "report"),
    "complete": ("complete", "complete"),
    "probe": ("probe", "probe"),
    "course": ("course", "course"),
    "doctor": ("doctor", "doctor"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0; 1 for bad input, 2 for bad usage, 70 for a bug, 130 after Ctrl-C."""
    argv = list(sys.argv[1:] if argv is None else argv)
    _escape_what_cannot_be_encoded()
    if COMPLETING in os.environ:
        return complete_words(COMMANDS, _command)
    if argv[:1] == ["help"]:        # help, help train
        argv = [*argv[1:2], "--help"]
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0 if argv else 2
    if argv[0] in ("-V", "--version", "version"):
        print(version())
        return 0
    run = functools.partial(_run, argv)
    started = launch()
    if started.size == 1 or argv[0] not in COMMANDS:
        ending = run()
    else:
        from scratchvit.cli._ranks import run_on_ranks  # here, because most runs have one process

        ending = run_on_ranks(started, argv[0], run)
    if ending.text:
        print(ending.text, file=sys.stderr)
    return ending.status


def _run(argv: Sequence[str]) -> Ending:
    """Run a command, and return how it ended."""
    try:
        with bugs_reported(argv=argv), output():
            return Ending(_command(argv[0])(argv[1:]))
    except ScratchvitError as error:
        # Lists of names stand on indented lines of their own. Line breaks in names are escaped.
        message = "\n  ".join(printable(line) for line in str(error).split("\n  "))
        return Ending(getattr(error, "exit_status", 1), f"scratchvit: {message}")
    except KeyboardInterrupt:
        return Ending(130, "\nscratchvit: stopped")
    except BrokenPipeError:         # `scratchvit models | head`
        sys.stderr.close()
        return Ending(0)
    except OSError as error:        # on Windows a closed pipe is EINVAL, not BrokenPipeError
        if error.errno != errno.EINVAL or not _output_is_closed():
            raise
        sys.stderr.close()
        return Ending(0)
    except SystemExit as stop:      # argparse, after --help or a usage error, which it has printed
        return Ending(int(stop.code or 0))


def _escape_what_cannot_be_encoded() -> None:
    """Print characters that stdout cannot encode as escapes: → as \\u2192 in a Windows code page or the C locale."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="backslashreplace")


def _output_is_closed() -> bool:
    try:
        sys.stdout.flush()
    except OSError:
        return True
    return False


def _command(name: str) -> Callable[[Sequence[str]], int]:
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(COMMANDS)}"
        print(f"scratchvit: there is no command {name!r}{hint}", file=sys.stderr)
        raise SystemExit(2)
    module, function = COMMANDS[name]
    # Imported on demand, so that no command loads the modules of another.
    return getattr(importlib.import_module(f"scratchvit.cli.{module}"), function)
