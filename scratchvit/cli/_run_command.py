"""Shared by `scratchvit train` and `scratchvit detect-train`: options and configuration, printed summaries."""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any, Generic, TypeVar

from scratchvit import backend
from scratchvit.cli._options import Parser, add_fields, command_line, option_of, run_folders, shown
from scratchvit.cli._output import OUTPUT, add_output
from scratchvit.cli._precision import precision_text
from scratchvit.cli._text import filled
from scratchvit.cli._words import completed_by
from scratchvit.errors import ScratchvitError
from scratchvit.files import counted
from scratchvit.models import list_models, model_config
from scratchvit.optim import LOSS_SCALE
from scratchvit.parallel import Communicator, world
from scratchvit.parallel.place import take_cores
from scratchvit.recipes import list_recipes, load_recipe, recipe_for
from scratchvit.threads import cpu_threads
from scratchvit.training import read_config
from scratchvit.training.build import scaled_lr
from scratchvit.training.config import RunConfig
from scratchvit.training.folder import RunFolder
from scratchvit.training.loop import TrainingLoop

MOST_USED = ("data", "model", "epochs")     # with --recipe and --resume, at the beginning of the help

ConfigT = TypeVar("ConfigT", bound=RunConfig)


@dataclass(frozen=True)
class TrainingCommand(Generic[ConfigT]):
    """A command that trains a model.

    kind            the class of its configuration
    description     the description in its help
    groups          {title: fields of the configuration}, in the order of the help. Fields that are not listed are in
                    the group "run". The group "model" also has the options of the model
    suits           called with the name and configuration of a model; raises ScratchvitError if the command cannot
                    train it
    from_the_data   fields of the model that are not options, because they come from the data
    data_sizes      fields of the model whose values in a recipe also apply to other models of its family; img_size
                    applies to all models
    shown           {field of the model: default in the help}, if the recipe does not set it
    refuses         called with a configuration; returns an error message if it is invalid, or None
    from_init       called with the file of --init and --entry, if no --model is named; returns the options of the model
                    that the file determines
    """

    kind: type[ConfigT]
    description: str
    groups: Mapping[str, Sequence[str]]
    suits: Callable[[str, Any], None]
    from_the_data: Collection[str]
    data_sizes: Collection[str] = ()
    shown: Mapping[str, str] = field(default_factory=dict)
    refuses: Callable[[ConfigT], str | None] = lambda config: None
    from_init: Callable[[str, str | None], dict[str, Any]] = lambda path, entry: {}

    def _elsewhere(self, model: str, fields: Collection[str]) -> dict[str, str]:
        """Errors for options of the command's usual model that this one lacks: {option: the rest of the sentence}."""
        usual = self.kind.model
        names = vars(model_config(usual)).keys() - set(fields) - set(self.from_the_data) if usual else ()
        return {
            option_of(name): f"is no option of {model}; name a model that has it, such as --model {usual}"
            for name in names
        }

    @property
    def prog(self) -> str:
        return f"scratchvit {self.kind.command}"

    def parse(self, argv: Sequence[str]) -> tuple[ConfigT, Path, bool]:
        """Parse the options: (configuration, run folder, whether to resume the run in it)."""
        base = self._base(argv)
        model_defaults = model_config(base.model, **base.model_args)
        model_fields = [name for name in vars(model_defaults) if name not in self.from_the_data]
        shown = vars(model_defaults) | {name: base.model_args.get(name, text) for name, text in self.shown.items()}
        grouped = {name for names in self.groups.values() for name in (*names, "model_args")}
        recipes = list_recipes(self.kind)

        parser = Parser(prog=self.prog, usage=f"{self.prog} [options]", description=self.description)
        first = parser.add_argument_group("most used")
        add_fields(first, self.kind, MOST_USED, vars(base))
        first.add_argument(
            "--recipe", metavar="NAME", choices=recipes, default=argparse.SUPPRESS,
            help=f"defaults of all other options: {', '.join(recipes)}",
        )
        resumed = first.add_argument("--resume", metavar="DIR", help="resume the run in DIR; --epochs can be increased")
        completed_by(resumed, run_folders)
        for title, names in self.groups.items():
            group = parser.add_argument_group(title)
            add_fields(group, self.kind, [name for name in names if name not in MOST_USED], vars(base))
            if title == "model":
                add_fields(group, type(model_defaults), model_fields, shown, prefix="model.")
        run = parser.add_argument_group("run")
        add_fields(run, self.kind, [name for name in vars(base) if name not in grouped], vars(base))
        run.add_argument("--out", metavar="DIR", help="folder of the run (default: runs/DATA-MODEL-N, a new one)")
        add_output(run)
        parser.elsewhere = self._elsewhere(base.model, model_fields)

        given = {name: value for name, value in vars(parser.parse_strictly(argv)).items() if name not in OUTPUT}
        out, resume, recipe = given.pop("out"), given.pop("resume"), given.pop("recipe", None)
        if resume and out:
            parser.error("--resume continues in the run's own folder: leave out --out")
        if resume and recipe:
            parser.error("--resume continues with the run's own settings: leave out --recipe")
        model_args = {name: given.pop(f"model.{name}") for name in model_fields if f"model.{name}" in given}
        config = base.replace(**given, model_args={**base.model_args, **model_args})
        if fault := self.refuses(config):
            parser.error(fault)
        return config, Path(resume or out or _new_run_folder(config)), bool(resume)

    def on_ranks(self, argv: Sequence[str]) -> tuple[ConfigT, Path, bool, Communicator]:
        """`parse`, and the processes of the run, each of which is given its share of the machine: it calls this too.

        Raises ScratchvitError if a batch has fewer images than there are ranks.
        """
        ranks = world()
        config, folder, resume = self.parse(argv)
        if 1 <= config.batch_size < ranks.size:
            raise ScratchvitError(
                f"--batch-size {config.batch_size} is the number of images of all ranks together, and each of "
                f"{ranks.size} ranks needs one: use --batch-size {ranks.size} or more, or fewer ranks"
            )
        ranks.timeout = config.rank_timeout
        take_cores(ranks)
        return config, Path(ranks.gather(str(folder))[0]), resume, ranks    # the name of a new folder is rank 0's

    def _base(self, argv: Sequence[str]) -> ConfigT:
        """The defaults of the options: the run to be resumed, the --recipe, or the recipe for --data and --model."""
        first = Parser(prog=self.prog, add_help=False)
        first.add_argument("--recipe")
        first.add_argument("--data", default=self.kind.data)
        first.add_argument("--model")
        first.add_argument("--resume")
        first.add_argument("--init")
        first.add_argument("--entry")
        chosen = first.parse_known_args(argv)[0]
        if chosen.resume:
            return read_config(Path(chosen.resume), self.kind)
        if chosen.recipe:
            recipe = load_recipe(chosen.recipe, self.kind)
        else:
            recipe = recipe_for(chosen.data, self.kind, chosen.model)
        if chosen.model is None:
            decided = self.from_init(chosen.init, chosen.entry) if chosen.init else {}
            args = {**recipe.model_args, **decided}
            wanted = model_config(recipe.model, **args)
            preset = next((name for name in list_models() if decided and model_config(name) == wanted), None)
            return recipe.replace(model=preset, model_args={}) if preset else recipe.replace(model_args=args)
        defaults = model_config(chosen.model)
        self.suits(chosen.model, defaults)      # before the sizes of the recipe cause another error
        same_family = type(defaults) is type(model_config(recipe.model))
        kept = {
            name: value for name, value in recipe.model_args.items()
            if name in self.data_sizes and (same_family or name == "img_size")
        }
        return recipe.replace(model=chosen.model, model_args=kept)

    def command_line(self, config: ConfigT) -> str | None:
        """The inverse of `parse`: the command line for a configuration; None if no options result in it."""
        wanted = config.as_read_back()
        recipes = [name for name in list_recipes(self.kind) if load_recipe(name, self.kind).model == config.model]
        # Without --model, sizes are those of the data's recipe; with it, those of the model's paper.
        for begin in ([], ["--model", config.model], *(["--recipe", name] for name in recipes)):
            words = ["--data", config.data, *begin]
            with contextlib.suppress(SystemExit, ScratchvitError), contextlib.redirect_stderr(io.StringIO()):
                base, _, _ = self.parse(words)
                words += [*_as_options(vars(config), vars(base)), *_as_options(config.model_args, base.model_args)]
                if self.parse(words)[0].as_read_back() == wanted:
                    return command_line(["scratchvit", config.command, *words])
        return None

    def lines(
        self, config: ConfigT, folder: Path, finished: bool, uses: Mapping[str, Sequence[str]]
    ) -> dict[str, str]:
        """The command lines that a report lists: {what it does: command line}.

        uses: what can be done with the trained model, {what it does: words after `scratchvit`}.
        """
        resume = [config.command, "--resume", str(folder)]
        again = self.command_line(config)
        steps = {
            **uses,
            **({f"Train it longer, {2 * config.epochs} epochs instead of {config.epochs}:":
                [*resume, "--epochs", str(2 * config.epochs)]} if finished else {"Continue it:": resume}),
            "Write this page again:": ["report", str(folder)],
        }
        lines = {what: command_line(["scratchvit", *words]) for what, words in steps.items()}
        if (folder / "tensorboard").exists():
            compare = command_line(["tensorboard", "--logdir", str(folder.parent)])
            lines["Compare its curves with those of the runs beside it, in TensorBoard:"] = compare
        return lines | ({"Run it again with the same settings, as a new run:": again} if again else {})


def _as_options(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[str]:
    """Options for the values that differ from the defaults."""
    for name, value in values.items():
        if name == "model_args" or value is None or value == defaults.get(name):
            continue
        option = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{option}" if value else f"--no-{option}"
        else:
            yield f"--{option}"
            yield ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _new_run_folder(config: RunConfig) -> Path:
    name = f"{Path(config.data).resolve().name}-{config.model}"
    return next(path for n in itertools.count(1) if not (path := Path("runs", f"{name}-{n}")).exists())


def describe_resuming(loop: TrainingLoop[Any]) -> str:
    """Where a resumed run continues, or that it had already ended; "" for a new one."""
    done, epochs = len(loop.history), loop.config.epochs
    if done == epochs:
        return (
            f"training had ended, after {counted(epochs, 'epoch')}; the best weights are evaluated again (to train "
            f"longer: --epochs {2 * epochs})"
        )
    return f"after {done} of {counted(epochs, 'epoch')}, at step {loop.step}" if loop.step else ""


def describe_steps(config: RunConfig, steps_per_epoch: int) -> str:
    """The epochs, steps, optimiser and schedule of a run, as text."""
    parts = f" in {config.accumulate} parts" if config.accumulate > 1 else ""
    return (
        f"{counted(config.epochs, 'epoch')} of {counted(steps_per_epoch, 'step')}, "
        f"{counted(config.batch_size, 'image')} per step{parts}; {config.optimizer}, {describe_lr(config)}, "
        f"{config.schedule} schedule"
    )


def describe_lr(config: RunConfig) -> str:
    """The learning rate after the warm-up and, if it was scaled, from which one, as text."""
    text = f"lr {scaled_lr(config):g}"
    if config.lr_scaling == "none":
        return text
    return f"{text} ({config.lr:g} for {counted(config.lr_base_batch, 'image')}, {config.lr_scaling} scaling)"


def describe_device(config: RunConfig) -> str:
    """The device of a run, as text."""
    if config.device != "cpu":
        return config.device
    return f"cpu, {counted(cpu_threads(), 'thread')}"


def describe_ranks(config: RunConfig, ranks: Communicator) -> list[tuple[str, str]]:
    """The ranks of a run, where they run, and what of a machine each has, as labelled texts; [] for one process.

    All ranks have to call it. The numbers of the processes are for the system's log: if a rank is killed, mpiexec ends
    the others at once, and says on which host it was, but not reliably which process.
    """
    if ranks.size == 1:
        return []
    own = cpu_threads() if config.device == "cpu" else backend.current().name
    found = ranks.gather([ranks.host, os.getpid(), own])
    if config.device != "cpu":
        each = ", ".join(device for _, _, device in found)
    else:
        fewest, most = min(found, key=itemgetter(2))[2], max(found, key=itemgetter(2))[2]
        each = f"with {counted(most, 'CPU thread')} each" if fewest == most else f"with {fewest} to {most} CPU threads"
    hosts: dict[str, list[str]] = {}
    for rank, (host, process, _) in enumerate(found):
        hosts.setdefault(host, []).append(f"rank {rank} is process {process}")
    lines = [f"on {host}, {', '.join(here)}" for host, here in hosts.items()]
    return [("ranks", f"{ranks.size}, {each}"), *(("", line) for line in lines)]


def describe_precision(config: RunConfig) -> str:
    """The precision of a run that is not float32, as text."""
    scaling = f"; loss scaling from {config.loss_scale or LOSS_SCALE:,.0f} on"
    return precision_text(config.precision, config.device, scaling)


def changed_settings(config: RunConfig, names: Sequence[str]) -> str:
    """The named settings that differ from their defaults, as text."""
    defaults = type(config)()
    return describe_settings(
        {name: getattr(config, name) for name in names if getattr(config, name) != getattr(defaults, name)}
    )


def describe_settings(values: Mapping[str, Any]) -> str:
    """Settings or options of a model, as text."""
    return ", ".join(f"{name} {shown(value)}" for name, value in values.items())


def files_and_commands(folder: RunFolder, metrics: str, files: Mapping[str, str], commands: Sequence[str]) -> str:
    """The summary at the end of a run: its files, and commands to try next.

    metrics: what metrics.csv and TensorBoard contain. files: {name: description} of files that not every run has.
    A long command stays on one line, which the terminal wraps: so it can be copied.
    """
    descriptions = {
        folder.best.name: "the weights of the best epoch on the validation pictures",
        folder.last.name: "the checkpoint that --resume continues from",
        folder.metrics.name: f"{metrics} of every epoch",
        folder.config.name: "all settings",
        **files,
    }
    if (folder.path / "tensorboard").exists():
        descriptions["tensorboard"] = f"{metrics} for TensorBoard: tensorboard --logdir {folder.path.parent}"
    if folder.timeline.exists():
        descriptions[folder.timeline.name] = "one step of every process, for https://ui.perfetto.dev"
    return "\n".join([
        f"\n{folder.path} contains",
        *(filled(f"  {name:<16}  {description}", 20) for name, description in descriptions.items()),
        "\ntry next",
        *(f"  {command}" for command in commands if command),
    ])
