"""Finding the weights in a training checkpoint, and the prefix under which the names of the model lie.

A checkpoint can have several sets of weights: a student and its teacher, a model and its moving average, a network
beside the network of a loss. They lie in dictionaries ({"model": …, "teacher": …}), or in one dictionary under
different prefixes ("model.blocks.0…", "criterion.vgg.0…"). Both are *entries* here, named by the path to them:
"state_dict.teacher". Which one is taken follows from these names; `Choice` says which it was.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from scratchvit.errors import ScratchvitError
from scratchvit.weights.arrays import readable, short
from scratchvit.weights.misfit import FIRST_KERNELS, at_most
from scratchvit.weights.names import LAYOUTS, TIMM, own
from scratchvit.weights.unpickler import WAY_OUT, Inert

# Usual names of averaged weights, and of the weights themselves; of each, the first that is there is taken.
EMA_KEYS = ("state_dict_ema", "model_ema")                      # timm; DeiT
PLAIN_KEYS = (
    "state_dict", "model", "model_state_dict",                  # timm, Lightning; DeiT, DETR, Swin, MAE; PyTorch
    "module", "net", "network", "model_state", "weights", "params",     # DeepSpeed; many small repositories
)
AVERAGED = {"ema", "swa", "averaged", "average"}        # a word of a name that says so: ema_model, swa_model
TEACHER, STUDENT = {"teacher"}, {"student"}

# Authors report results with averaged weights, so these come first. DINO has only a teacher and a student, and its
# teacher is the average of the student; but beside another network, that network is the student.
WITH_EMA = ("averaged", "plain", "model", "teacher", "student", "unknown")
WITHOUT_EMA = ("plain", "model", "student", "teacher", "averaged", "unknown")

DEEPEST = 4             # of dictionaries in dictionaries
MOST_ENTRIES = 1000     # dictionaries that are looked at
MOST_PREFIXES = 100     # of models in one dictionary
LONGEST_NAME = 1000     # characters of a name that is looked at; longer ones are no names of weights
MOST_NAMED = 12         # entries that are listed in a message

# What PyTorch puts into names, anywhere: torch.compile, FSDP, activation checkpointing, Lightning Fabric.
_INSERTED = re.compile(
    r"(?<![^.])(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.)+"
)
# DistributedDataParallel; torch.compile; modules that hold the network in an attribute: removed from all names.
PREFIXES = ("module.", "_orig_mod.", "model.")

# A tensor that every model of a family has, at the root of its names: its place tells the prefix.
_ROOT = re.compile(
    r"(?<![^.])(?:"
    + "|".join(
        [f"(?:{layout.prefix})?(?:{layout.mark})" for layout in LAYOUTS if layout not in (TIMM, own.CHECKPOINT)]
        + [re.escape(name) for name in FIRST_KERNELS]
    )
    + r")\Z"
)
_FIRST_BLOCK = {"conv1.weight": "layer1.0.conv1.weight"}    # the blocks of a ResNet have a conv1 too

Value = TypeVar("Value")


class _Entry(NamedTuple):
    """A set of weights: the keys of dictionaries that lead to it, the prefix of its names; None if that is unknown."""

    path: tuple[str, ...]
    prefix: str | None

    @property
    def parts(self) -> list[str]:
        return [*self.path, *(self.prefix or "").split(".")[:-1]]

    @property
    def name(self) -> str:
        return ".".join(self.parts)

    @property
    def role(self) -> str:
        """What the name says: teacher, student, averaged, plain; else "model" for one of a known family, or unknown."""
        roles = {_role(part) for part in self.parts} or {"plain"}
        for role in ("teacher", "student", "averaged", "plain"):
            if role in roles:
                return role
        return "unknown" if self.prefix is None else "model"

    @property
    def unknown(self) -> int:
        """Number of parts of the name that do not say what they are."""
        return sum(_role(part) == "unknown" for part in self.parts)

    def answers_to(self, name: str) -> bool:
        return f".{name}." in f".{self.name}."


def _role(part: str) -> str:
    words = set(re.split(r"[^a-z]+", part.lower()))
    for role, known in (("teacher", TEACHER), ("student", STUDENT), ("averaged", AVERAGED)):
        if words & known:
            return role
    return "plain" if part in PLAIN_KEYS else "unknown"


@dataclass
class Choice:
    """Which of the sets of weights in a file is wanted; after reading, which one was taken.

    entry     the one that is wanted: its name, or a part of it such as "teacher". None: the usual one
    use_ema   whether averaged weights are preferred to plain ones
    taken     name of the entry that was taken; "" if the file itself is the state dict
    others    names of the other entries
    unused    names of the tensors that belong to none of the entries
    path      keys of the dictionaries that lead to `taken`
    """

    entry: str | None = None
    use_ema: bool = True
    taken: str = ""
    others: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    path: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.taken and not self.others:
            return ""
        named = readable(self.taken) or "the names without a prefix"
        if not self.others:
            return f"entry: {named}"
        return f"entry: {named} (also in the file: {_listed(self.others)}; --entry NAME, entry=NAME, takes another)"

    def state_dict(self, saved: Any, is_array: Callable[[Any], bool]) -> dict[str, Any]:
        """The state dict {name: array} that is wanted, in a saved object. Values that are no arrays are left out.

        Raises ScratchvitError (without the path) if there are no arrays, if several sets of weights are equally
        likely, and if the entry that is wanted is not there or has tensors of a kind that is not read.
        """
        if isinstance(saved, Inert):
            raise ScratchvitError(f"it contains a {short(saved.what)}, which is not loaded: {WAY_OUT}")
        if not isinstance(saved, dict):
            raise ScratchvitError(f"it contains a {type(saved).__name__}, not a dictionary of weights: {WAY_OUT}")
        dictionaries = dict(_dictionaries(saved))
        arrays = {
            path: {name: value for name, value in entries.items() if is_array(value) or _is_refused_tensor(value)}
            for path, entries in dictionaries.items()
        }
        arrays = {path: found for path, found in arrays.items() if found}
        named = {
            path: _without_insertions(found) for path, found in arrays.items()
            if all(isinstance(name, str) for name in found)
        }
        objects = [                     # whole models, which are not made
            (_Entry((*path, key), None), value.what)
            for path, entries in dictionaries.items() for key, value in entries.items()
            if isinstance(key, str) and isinstance(value, Inert) and not value.is_tensor
            and not _Entry((*path, key), None).unknown
        ]
        asked = [(entry, what) for entry, what in objects if self.entry is not None and entry.answers_to(self.entry)]
        if not named or asked:
            _complain(saved, bool(arrays), asked or objects)
        chosen = self._choose([entry for path, found in named.items() for entry in _entries(path, found)])
        if self.entry is None and objects and chosen.role not in ("averaged", "plain"):
            _complain(saved, False, objects)
        self.path = chosen.path
        start = chosen.prefix or ""
        found = named[chosen.path]
        for name, value in found.items():
            if isinstance(value, Inert) and name.startswith(start):
                raise ScratchvitError(
                    f"{short(name)} is of a kind that is not read, {short(value.what)}, but only real dense tensors "
                    f"are; no code in it was run: {WAY_OUT}"
                )
        return {name: value for name, value in found.items() if is_array(value)}

    def without_prefix(self, weights: Mapping[str, Value]) -> dict[str, Value]:
        """The weights of the entry that is wanted, out of a state dict, under names without its prefix."""
        weights = _without_insertions(weights)
        prefixes = _prefixes(weights)
        if self.entry is None and own.CHECKPOINT.recognises(weights) and _is_our_checkpoint(weights, prefixes):
            return weights                          # its layout takes the averaged weights
        chosen = self._choose(_entries(self.path, weights))
        if chosen.prefix is None:
            self.taken = ".".join(self.path)
            return without_prefix(weights)
        elsewhere = [prefix for prefix in prefixes if prefix != chosen.prefix and prefix.startswith(chosen.prefix)]
        model: dict[str, Value] = {}
        for name, value in weights.items():
            if name.startswith(chosen.prefix) and not any(map(name.startswith, elsewhere)):
                model[name[len(chosen.prefix) :]] = value
            elif not any(name.startswith(prefix) for prefix in prefixes if prefix != chosen.prefix):
                self.unused.append(name)
        if self.path or self.unused or self.others:     # and not only a prefix of all names
            self.taken = chosen.name
        return model

    def _choose(self, entries: Sequence[_Entry]) -> _Entry:
        """The entry that is wanted, of at least one. Fills `others`, unless the same choice was made before."""
        wanted = entries
        if self.entry is not None:
            wanted = [entry for entry in entries if entry.answers_to(self.entry)]
            if not wanted:
                has = _listed([entry.name for entry in entries if entry.name]) or "no entries with a name"
                raise ScratchvitError(f"it has no entry {short(self.entry)}; it has {has}: choose one of these")
        elif any(entry.prefix is not None for entry in entries):
            # Numbers beside the weights, such as n_averaged, are not what is wanted.
            wanted = [entry for entry in entries if entry.path or entry.prefix is not None]
        roles = WITH_EMA if self.use_ema else WITHOUT_EMA
        keys = (*EMA_KEYS, *PLAIN_KEYS)

        def rank(entry: _Entry) -> tuple[int, ...]:
            if entry.unknown:
                return roles.index(entry.role), 1, entry.prefix is None, entry.unknown
            order = [keys.index(part) if part in keys else len(keys) for part in entry.parts]
            return roles.index(entry.role), 0, entry.prefix is None, *(order or [len(keys)])

        best, *more = sorted(wanted, key=rank)
        if best.unknown and more and rank(more[0]) == rank(best):
            several = _listed([entry.name for entry in wanted if rank(entry) == rank(best)])
            raise ScratchvitError(
                f"it has several sets of weights, {several}: choose one with --entry NAME (entry=NAME)"
            )
        for entry in entries:
            is_model = entry.prefix is not None or best.prefix is None or entry.role not in ("plain", "unknown")
            if is_model and entry.name not in ("", best.name, *self.others):
                self.others.append(entry.name)
        return best


def without_prefix(weights: Mapping[str, Value]) -> dict[str, Value]:
    """The values under names from which `PREFIXES` are removed, as long as all names begin with the same one."""
    # Names are cut only once, at the end: in a hostile file a prefix may be repeated a million times.
    start, shortest = 0, min(map(len, weights), default=0)

    def is_common(prefix: str) -> bool:
        return start + len(prefix) < shortest and all(name.startswith(prefix, start) for name in weights)

    while prefix := next(filter(is_common, PREFIXES), ""):
        start += len(prefix)
    return {name[start:]: value for name, value in weights.items()}


def _dictionaries(saved: dict[Any, Any]) -> Iterator[tuple[tuple[str, ...], dict[Any, Any]]]:
    """(path, dictionary) of the saved dictionary and those in it, each once, without those of optimisers."""
    waiting: list[tuple[tuple[str, ...], dict[Any, Any]]] = [((), saved)]
    seen: set[int] = set()
    while waiting and len(seen) < MOST_ENTRIES:
        path, entries = waiting.pop(0)
        if id(entries) in seen:         # a dictionary can contain itself
            continue
        seen.add(id(entries))
        yield path, entries
        if len(path) < DEEPEST:
            waiting += [
                ((*path, key), value) for key, value in entries.items()
                if isinstance(key, str) and isinstance(value, dict) and not key.lower().startswith("optim")
            ]


def _entries(path: tuple[str, ...], weights: Mapping[str, Any]) -> list[_Entry]:
    """The entries in a state dict: those under its prefixes, or else all of it."""
    return [_Entry(path, prefix) for prefix in _prefixes(weights)] or [_Entry(path, None)]


def _prefixes(weights: Mapping[str, Any]) -> list[str]:
    """The prefixes under which models of known families lie. A model in a model, such as a backbone, is part of it."""
    found: dict[str, None] = {}
    for name in weights:
        if len(name) <= LONGEST_NAME and (match := _ROOT.search(name)):
            prefix, block = name[: match.start()], _FIRST_BLOCK.get(match[0])
            if block is None or prefix + block in weights:
                found[prefix] = None
    if len(found) > MOST_PREFIXES:
        raise ScratchvitError(f"it has {len(found):,} models, more than any known checkpoint: do not trust this file")
    prefixes = [prefix for prefix in found if not prefix.lower().startswith("optim")]

    def is_part(prefix: str) -> bool:
        outer = (other for other in prefixes if other != prefix and prefix.startswith(other))
        return any(_Entry((), prefix[len(other) :]).role in ("plain", "model") for other in outer)

    return [prefix for prefix in prefixes if not is_part(prefix)]


def _without_insertions(weights: Mapping[str, Value]) -> dict[str, Value]:
    plain: dict[str, Value] = {}
    for name, value in weights.items():
        short_name = _INSERTED.sub("", name) or name
        if short_name in plain:
            raise ScratchvitError(f"{readable(short_name)} is there with and without _orig_mod: use another file")
        plain[short_name] = value
    return plain


def _is_our_checkpoint(weights: Mapping[str, Any], prefixes: Sequence[str]) -> bool:
    parts = ("model.", "ema.", "optimizer.")
    return all(name.startswith(parts) for name in weights) and set(prefixes) <= set(parts)


def _is_refused_tensor(value: Any) -> bool:
    return isinstance(value, Inert) and value.is_tensor


def _complain(saved: dict[Any, Any], numbered: bool, objects: Sequence[tuple[_Entry, str]]) -> None:
    """Raise ScratchvitError: there are no weights."""
    if objects:
        entry, what = objects[0]
        raise ScratchvitError(f"its {short(entry.name)} is a {short(what)}, which is not loaded: {WAY_OUT}")
    if numbered:
        raise ScratchvitError(f"its arrays have numbers instead of names, as in the state of an optimiser: {WAY_OUT}")
    names = short(", ".join(name for name in saved if isinstance(name, str)))
    kinds = dict.fromkeys(value.what for value in saved.values() if isinstance(value, Inert))
    of_kinds = f", of which some are {_listed(list(kinds))}, which is not loaded" if kinds else ""
    raise ScratchvitError(
        f"it contains no arrays where weights are expected; its entries are {names}{of_kinds}: {WAY_OUT}"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(at_most([readable(name) for name in names], MOST_NAMED))
