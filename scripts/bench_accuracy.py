"""How good are the recipes, and how much CPU time do they take? Trains them and writes docs/benchmarks.md.

    python scripts/bench_accuracy.py --recipes swin_digits mvit_digits --seeds 0 1 2
    python scripts/bench_accuracy.py --recipes vit_digits --seeds 0 1 2 --precision bf16
    python scripts/bench_accuracy.py --recipes vit_fashion -- --data-dir FOLDER     # after --, options of scratchvit
    python scripts/bench_accuracy.py --from FOLDER                                  # only read a run of this script

Every run is a process of `scratchvit train` or `detect-train` of its own, with one thread, so that its time is CPU time
which other work on the machine hardly changes. Run folders are kept (build/accuracy/COMMIT/RECIPE-SEED), each with a
process.json once its process has ended well: started again, the script reads those and repeats the others (all, if the
code has changes that are not committed). The figures are those of the best weights in the folder on the test split,
evaluated here by the code of the command.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scratchvit.backend import asnumpy  # noqa: E402
from scratchvit.data.palette import histogram_bits  # noqa: E402
from scratchvit.detection.config import DetectConfig  # noqa: E402
from scratchvit.detection.task import prepare_detector  # noqa: E402
from scratchvit.errors import ScratchvitError  # noqa: E402
from scratchvit.files import write_atomically  # noqa: E402
from scratchvit.models.interface import generates  # noqa: E402
from scratchvit.precision import OF_A_RUN  # noqa: E402
from scratchvit.recipes import list_recipes, load_recipe  # noqa: E402
from scratchvit.training import TrainConfig, prepare, read_config  # noqa: E402
from scratchvit.training.folder import command_of  # noqa: E402
from scripts import records  # noqa: E402

PROCESS = "process.json"
PROGRAM = [sys.executable, "-c", "import sys; from scratchvit.cli import main; sys.exit(main())"]
ENDING = 2000       # characters of a failed run's output that are shown


def main() -> None:
    """Train what is asked for, and add each run to the records."""
    words = sys.argv[1:]
    own, options = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    parser.add_argument("--precision", choices=OF_A_RUN, default="float32", help="of the runs (default: float32)")
    parser.add_argument("--runs", type=Path, default=ROOT / "build" / "accuracy", help="where the run folders are kept")
    parser.add_argument("--from", type=Path, nargs="+", default=[], dest="folders", metavar="FOLDER")
    args = parser.parse_args(own)
    if not args.recipes and not args.folders:
        parser.error("name recipes with --recipes, or folders of finished runs with --from")
    if not hasattr(os, "wait4"):
        parser.error("this system does not tell the CPU time of a process that has ended (it has no wait4)")
    try:
        commands = {recipe: command(recipe) for recipe in args.recipes}     # finds an unknown name before hours of work
        for recipe, name in commands.items():
            for seed in args.seeds:
                words = ["scratchvit", name, "--recipe", recipe, *options]
                folder = args.runs / records.commit() / f"{recipe}-{seed}"
                if args.precision != "float32":
                    words += ["--precision", args.precision]
                    folder = folder.with_name(f"{folder.name}-{args.precision}")
                if not is_done(folder, words):
                    train(words, seed, folder)
                take_in(folder)
        for folder in args.folders:
            take_in(folder)
    except ScratchvitError as error:
        raise SystemExit(str(error)) from None


def command(recipe: str) -> str:
    """The command of scratchvit that a recipe is for. Raises ScratchvitError if there is no such recipe."""
    kind = DetectConfig if recipe in list_recipes(DetectConfig) else TrainConfig
    load_recipe(recipe, kind)
    return kind.command


def is_done(folder: Path, words: Sequence[str]) -> bool:
    """Whether the folder has a finished run of this command and of code that is committed."""
    if not (folder / PROCESS).exists():
        return False
    found = json.loads((folder / PROCESS).read_text("utf-8"))
    return found["command"] == shown(words) and not found["commit"].endswith("+")


def shown(words: Sequence[str]) -> str:
    """A command as it is recorded, without its seed."""
    return f"OMP_NUM_THREADS=1 {shlex.join(records.without_places(words))}"


def train(words: Sequence[str], seed: int, folder: Path) -> None:
    """Train in a process, whose output goes to a file beside the folder, and write process.json into the folder.

    A folder in which a process was interrupted is removed. Raises ScratchvitError if the process fails.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.with_name(f"{folder.name}.log")
    origin = records.origin(shown(words))
    begun = time.perf_counter()
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [*PROGRAM, *words[1:], "--seed", str(seed), "--out", str(folder)],
            stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        )
        _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise ScratchvitError(f"{shown(words)} failed; {log} ends with\n{log.read_text('utf-8')[-ENDING:]}")
    found = {
        "recipe": words[words.index("--recipe") + 1], "seed": seed, **origin,
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1), "seconds": round(time.perf_counter() - begun, 1),
    }
    write_atomically(folder / PROCESS, json.dumps(found, indent=1).encode())


def take_in(folder: Path) -> None:
    """Add the run in a folder to the records. Raises ScratchvitError if this script did not finish a run in it."""
    if not (folder / PROCESS).exists():
        raise ScratchvitError(f"{folder} has no {PROCESS}: name the folder of a run that bench_accuracy.py finished")
    run = json.loads((folder / PROCESS).read_text("utf-8"))
    run["figures"] = figures(folder)
    records.add("precision" if "--precision" in shlex.split(run["command"]) else "runs", run)
    print(f"{run['recipe']}, seed {run['seed']}: {run['figures']}, {run['cpu_seconds']:.0f} s of CPU time", flush=True)


def figures(folder: Path) -> dict[str, float]:
    """What the best weights of a finished run give on its test split."""
    if command_of(folder) == DetectConfig.command:
        detector = prepare_detector(read_config(folder, DetectConfig), folder, resume=True)
        with detector.folder:
            found = detector.run().test
        return {name: round(getattr(found, name), 4) for name in ("AP", "AP50", "AP75")}
    loop = prepare(read_config(folder), folder, resume=True)
    with loop.folder:
        result = loop.run()
    if not generates(loop.model):
        return {"accuracy": round(result.test_accuracy, 4)}
    splits = loop.task.data.splits
    baseline = histogram_bits(splits.train, splits.test, asnumpy(loop.model.palette.data))
    return {"bits_per_pixel": round(result.test_loss / math.log(2), 4), "baseline": round(baseline, 4)}


if __name__ == "__main__":
    main()
