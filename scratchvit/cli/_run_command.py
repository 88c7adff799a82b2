"""What `scratchvit train` and `scratchvit detect-train` share: options ↔ configuration, and what they print."""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from scratchvit import backend
from scratchvit.cli._options import Parser, add_fields, command_line
from scratchvit.errors import ScratchvitError
from scratchvit.models import list_models, model_config
from scratchvit.recipes import list_recipes, load_recipe, recipe_for
from scratchvit.training import read_config
from scratchvit.training.config import RunConfig
from scratchvit.training.folder import RunFolder

ConfigT = TypeVar("ConfigT", bound=RunConfig)


@dataclass(frozen=True)
class TrainingCommand(Generic[ConfigT]):
    """A command that trains.

    kind            of configuration
    description     of the help
    groups          {title: fields of the configuration}, in the order of the help; a field that is not there stands
                    with the run. The group "model" has the options of the model too
    suits           raises ScratchvitError for a model (its name, its configuration) that is not for this command
    from_the_data   fields of the model that are no options, since the data decide
    data_sizes      fields of the model of which a recipe's values hold for other models of its family too; of them
                    img_size for all models
    shown           what the help says of fields of the model, where the recipe says nothing
    refuses         what is wrong with a configuration that the options alone do not show: a sentence, or None
    from_init       (the file of --init, --entry) → options of the model that the file decides, if no --model is named
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

    @property
    def prog(self) -> str:
        return f"scratchvit {self.kind.command}"

    def parse(self, argv: Sequence[str]) -> tuple[ConfigT, Path, bool]:
        """What the options ask for: the configuration, the run's folder, and whether the run there goes on."""
        base = self._base(argv)
        model_defaults = model_config(base.model, **base.model_args)
        model_fields = [name for name in vars(model_defaults) if name not in self.from_the_data]
        shown = vars(model_defaults) | {name: base.model_args.get(name, text) for name, text in self.shown.items()}
        grouped = {name for names in self.groups.values() for name in (*names, "model_args")}
        recipes = list_recipes(self.kind)

        parser = Parser(prog=self.prog, usage=f"{self.prog} [options]", description=self.description)
        parser.add_argument(
            "--recipe", metavar="NAME", choices=recipes, default=argparse.SUPPRESS,
            help=f"defaults of all other options: {', '.join(recipes)}",
        )
        for title, names in self.groups.items():
            group = parser.add_argument_group(title)
            add_fields(group, self.kind, names, vars(base))
            if title == "model":
                add_fields(group, type(model_defaults), model_fields, shown, prefix="model.")
        run = parser.add_argument_group("run")
        add_fields(run, self.kind, [name for name in vars(base) if name not in grouped], vars(base))
        run.add_argument("--out", metavar="DIR", help="folder of the run (default: runs/DATA-MODEL-N, a new one)")
        run.add_argument("--resume", metavar="DIR", help="resume the run in DIR; --epochs can be increased")

        given = vars(parser.parse_strictly(argv))
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

    def _base(self, argv: Sequence[str]) -> ConfigT:
        """Where no option says otherwise: the run to be resumed, --recipe, or what is for --data and --model."""
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
        recipe = load_recipe(chosen.recipe, self.kind) if chosen.recipe else recipe_for(chosen.data, self.kind)
        if chosen.model is None:
            decided = self.from_init(chosen.init, chosen.entry) if chosen.init else {}
            args = {**recipe.model_args, **decided}
            wanted = model_config(recipe.model, **args)
            preset = next((name for name in list_models() if decided and model_config(name) == wanted), None)
            return recipe.replace(model=preset, model_args={}) if preset else recipe.replace(model_args=args)
        defaults = model_config(chosen.model)
        self.suits(chosen.model, defaults)      # before it fails on the recipe's sizes
        same_family = type(defaults) is type(model_config(recipe.model))
        kept = {
            name: value for name, value in recipe.model_args.items()
            if name in self.data_sizes and (same_family or name == "img_size")
        }
        return recipe.replace(model=chosen.model, model_args=kept)

    def command_line(self, config: ConfigT) -> str | None:
        """The inverse of `parse`: what to type for this configuration; None for one that only Python can ask for."""
        wanted = config.as_read_back()
        recipes = [name for name in list_recipes(self.kind) if load_recipe(name, self.kind).model == config.model]
        # A model that is not named has the sizes of the data's recipe, one that is named those of its paper.
        for begin in ([], ["--model", config.model], *(["--recipe", name] for name in recipes)):
            words = ["--data", config.data, *begin]
            with contextlib.suppress(SystemExit, ScratchvitError), contextlib.redirect_stderr(io.StringIO()):
                base, _, _ = self.parse(words)
                words += [*_as_options(vars(config), vars(base)), *_as_options(config.model_args, base.model_args)]
                if self.parse(words)[0].as_read_back() == wanted:
                    return command_line(["scratchvit", config.command, *words])
        return None

    def lines(self, config: ConfigT, folder: Path) -> dict[str, str]:
        """The command lines that a report lists: {what it does: command line}."""
        again = self.command_line(config)
        return ({"Run it again:": again} if again else {}) | {
            "Resume it, or train longer (--epochs):": command_line([*self.prog.split(), "--resume", str(folder)]),
            "Write this page again:": command_line(["scratchvit", "report", str(folder)]),
        }


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


def told(rows: Sequence[tuple[str, str | None]]) -> str:
    """(label, text) as lines; labels without a text are left out."""
    return "\n".join(f"{name:<8}  {text}" for name, text in rows if text)


def steps(config: RunConfig, batches: int) -> str:
    """Epochs and optimiser of a run, in words."""
    return (
        f"{config.epochs} epochs of {batches}, {config.batch_size} images each; {config.optimizer}, lr {config.lr:g}, "
        f"{config.schedule}"
    )


def place(config: RunConfig) -> str:
    """The device of a run, in words."""
    return config.device + (f", {backend.cpu_threads()} threads" if config.device == "cpu" else "")


def differing(config: RunConfig, names: Sequence[str]) -> str:
    """The named settings that differ from their defaults, in words."""
    plain = type(config)()
    chosen = {name: getattr(config, name) for name in names if getattr(config, name) != getattr(plain, name)}
    return ", ".join(name if value is True else f"{name} {value}" for name, value in chosen.items())


def files_and_commands(folder: RunFolder, measured: str, files: Mapping[str, str], commands: Sequence[str]) -> str:
    """The end of a run: where everything is, and what to try next.

    measured: what metrics.csv and TensorBoard have. files: {name in the folder: what it is}, beside those of every run.
    """
    there = {
        folder.best.name: "the weights that did best on the validation pictures",
        folder.last.name: "all that --resume goes on from",
        folder.metrics.name: f"{measured} of every epoch",
        folder.config.name: "every setting",
        **files,
    }
    if (folder.path / "tensorboard").exists():
        there["tensorboard"] = f"{measured} again: tensorboard --logdir {folder.path.parent}"
    return "\n".join([
        f"\n{folder.path} holds",
        *(f"  {name:<18}{what}" for name, what in there.items()),
        "\ntry next",
        *(f"  {command}" for command in commands if command),
    ])
