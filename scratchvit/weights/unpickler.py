"""A restricted unpickler: an interpreter of the pickle language that cannot import or execute anything.

A pickle is a program for a small stack machine. Two instructions make Python's own implementation dangerous: GLOBAL
imports whatever it names, and REDUCE calls it. Here GLOBAL looks a name up in a table of the caller, whose values are
inert: records, or `Function`s written for this purpose, which check their arguments. REDUCE can call only these. A file
cannot name any Python object, so no trick with names can reach one. A name that is not in the table becomes an `Inert`,
which only keeps that name: calling it, setting its state and filling it do nothing. So weights can be read although a
path, a date or the options of a training script lie beside them, and whoever needs the value can say what it was.

Only the instructions of pickle protocols 2 to 5 that plain values need are implemented. The machine does not recurse,
however deep the nesting; it executes at most MOST_INSTRUCTIONS; no value is larger than the bytes it was read from, and
functions can copy at most the size of the pickle. So memory stays proportional to the file.

The instructions are described in Lib/pickletools.py of CPython.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchvit.errors import ScratchvitError
from scratchvit.weights.arrays import CUT, DAMAGED

MOST_INSTRUCTIONS = 1 << 20     # ViT-B with the state of AdamW takes 20,460
LONGEST_NAME = 256              # characters of the name of a module or a member
LARGEST_KEY = 1 << 60           # smaller integers are their own hash, so keys cannot be made to collide

WAY_OUT = "with PyTorch, save only the state_dict() of the model, or convert it to safetensors"


@dataclass(frozen=True)
class Function:
    """A function that REDUCE and NEWOBJ can call: `call(*arguments)` checks them and returns an inert value."""

    name: str
    call: Callable[..., Any]


class Record:
    """A value whose state BUILD can set, by calling `set_state`; attributes are never set directly."""

    def set_state(self, state: Any) -> None:
        raise NotImplementedError


class Inert(Record):
    """Stands for an object of a class, or the result of a function, that is not in the table. Nothing of it is made.

    what        the name in the file, "pathlib.PosixPath"
    is_tensor   whether it stands for a tensor of a kind that is not read, such as a sparse one
    """

    def __init__(self, what: str, is_tensor: bool = False):
        self.what, self.is_tensor = what, is_tensor

    def set_state(self, state: Any) -> None:
        """Ignore the state."""


class Unpickler:
    """Reads one pickle that begins at byte `start` of `raw`, uint8 (size,). `end`: the byte after it, once loaded.

    admitted     {(module, name): value that replaces it}
    persistent   function from a persistent id to the value that replaces it

    Raises ScratchvitError (without the path) for a pickle that is damaged, or that uses an instruction of another kind.
    """

    def __init__(
        self,
        raw: np.ndarray,
        admitted: Mapping[tuple[str, str], Any],
        persistent: Callable[[Any], Any],
        start: int = 0,
    ):
        self.raw, self.end = raw, start
        self.admitted, self.persistent = admitted, persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []          # positions in the stack at which collections begin
        self.memo: dict[int, Any] = {}
        self.copied = 0                     # entries and bytes that functions made
        self.inert: dict[tuple[str, str], Inert] = {}

    def load(self) -> Any:
        """Run the program and return its result."""
        for _ in range(MOST_INSTRUCTIONS):
            instruction = self._take(1)
            if instruction == pickle.STOP:
                value = self._pop()
                if self.stack or self.marks:
                    raise ScratchvitError(f"its pickle ends with values left over: {DAMAGED}")
                return value
            self._step(instruction)
        raise ScratchvitError(
            f"its pickle has more than {MOST_INSTRUCTIONS} instructions, too many for weights: {WAY_OUT}"
        )

    def _step(self, instruction: bytes) -> None:
        match instruction:
            # The memo: storing values and using them again. A list can contain itself in this way, which is harmless.
            case pickle.BINPUT:
                self.memo[self._number("<B")] = self._top()
            case pickle.LONG_BINPUT:
                self.memo[self._number("<I")] = self._top()
            case pickle.MEMOIZE:
                self.memo[len(self.memo)] = self._top()
            case pickle.BINGET:
                self._remember(self._number("<B"))
            case pickle.LONG_BINGET:
                self._remember(self._number("<I"))

            # Plain values.
            case pickle.BININT1:
                self.stack.append(self._number("<B"))
            case pickle.BININT2:
                self.stack.append(self._number("<H"))
            case pickle.BININT:
                self.stack.append(self._number("<i"))
            case pickle.LONG1:
                self.stack.append(int.from_bytes(self._take(self._number("<B")), "little", signed=True))
            case pickle.BINFLOAT:
                self.stack.append(self._number(">d"))
            case pickle.NONE:
                self.stack.append(None)
            case pickle.NEWTRUE:
                self.stack.append(True)
            case pickle.NEWFALSE:
                self.stack.append(False)
            case pickle.SHORT_BINUNICODE | pickle.SHORT_BINSTRING:      # …STRING: the text of Python 2
                self.stack.append(self._text(self._number("<B")))
            case pickle.BINUNICODE | pickle.BINSTRING:
                self.stack.append(self._text(self._number("<I")))
            case pickle.BINUNICODE8:
                self.stack.append(self._text(self._number("<Q")))
            case pickle.SHORT_BINBYTES:
                self.stack.append(self._take(self._number("<B")))
            case pickle.BINBYTES:
                self.stack.append(self._take(self._number("<I")))
            case pickle.BINBYTES8 | pickle.BYTEARRAY8:
                self.stack.append(self._take(self._number("<Q")))

            # Containers. A set becomes a list, so that its elements need not be hashed.
            case pickle.MARK:
                self.marks.append(len(self.stack))
            case pickle.EMPTY_TUPLE:
                self.stack.append(())
            case pickle.TUPLE1:
                self.stack.append((self._pop(),))
            case pickle.TUPLE2:
                second, first = self._pop(), self._pop()
                self.stack.append((first, second))
            case pickle.TUPLE3:
                third, second, first = self._pop(), self._pop(), self._pop()
                self.stack.append((first, second, third))
            case pickle.TUPLE:
                self.stack.append(tuple(self._since_mark()))
            case pickle.EMPTY_LIST | pickle.EMPTY_SET:
                self.stack.append([])
            case pickle.APPEND:
                self._extend([self._pop()])
            case pickle.APPENDS | pickle.ADDITEMS:
                self._extend(self._since_mark())
            case pickle.FROZENSET:
                self.stack.append(self._since_mark())
            case pickle.EMPTY_DICT:
                self.stack.append({})
            case pickle.SETITEM:
                value, key = self._pop(), self._pop()
                self._set_items([key, value])
            case pickle.SETITEMS:
                self._set_items(self._since_mark())

            # Names, calls and states: here Python's own unpickler would run code of the file.
            case pickle.GLOBAL:
                module, name = self._line(), self._line()
                self._look_up(module, name)
            case pickle.STACK_GLOBAL:
                name, module = self._pop(), self._pop()
                self._look_up(module, name)
            case pickle.REDUCE | pickle.NEWOBJ:
                arguments, function = self._pop(), self._pop()
                self._call(function, arguments)
            case pickle.NEWOBJ_EX:
                keywords, arguments, function = self._pop(), self._pop(), self._pop()
                if keywords != {} and not isinstance(function, Inert):
                    raise ScratchvitError(f"its pickle calls {function!r} with keywords: {WAY_OUT}")
                self._call(function, arguments)
            case pickle.BUILD:
                state, target = self._pop(), self._top()
                if not isinstance(target, Record):
                    raise ScratchvitError(f"its pickle sets the state of a {type(target).__name__}: {WAY_OUT}")
                target.set_state(state)
            case pickle.BINPERSID:
                self.stack.append(self.persistent(self._pop()))

            case pickle.PROTO:
                if self._number("<B") > pickle.HIGHEST_PROTOCOL:
                    raise ScratchvitError(f"its pickle is of an unknown protocol: {DAMAGED}")
            case pickle.FRAME:
                self._take(8)           # the size of a frame for read-ahead, not needed here
            case _:
                raise ScratchvitError(
                    f"its pickle has the instruction {instruction!r}, which no tensor or container needs: {WAY_OUT}"
                )

    def _take(self, count: int) -> bytes:
        start, self.end = self.end, self.end + count
        if self.end > self.raw.size:
            raise ScratchvitError(f"its pickle is truncated: {CUT}")
        return self.raw[start : self.end].tobytes()

    def _number(self, code: str) -> Any:
        return struct.unpack(code, self._take(struct.calcsize(code)))[0]

    def _text(self, length: int) -> str:
        try:
            return self._take(length).decode(errors="surrogatepass")       # as pickle writes a path that is not UTF-8
        except UnicodeDecodeError as error:
            raise ScratchvitError(f"a string in its pickle is not UTF-8: {DAMAGED}") from error

    def _line(self) -> str:
        length = self.raw[self.end : self.end + LONGEST_NAME].tobytes().find(b"\n")
        if length < 0:
            raise ScratchvitError(f"a name in its pickle has no end: {CUT}")
        return self._text(length + 1)[:-1]

    def _top(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ScratchvitError(f"its pickle takes a value from an empty stack: {DAMAGED}")
        return self.stack[-1]

    def _pop(self) -> Any:
        self._top()
        return self.stack.pop()

    def _since_mark(self) -> list[Any]:
        if not self.marks:
            raise ScratchvitError(f"its pickle ends a collection that was not begun: {DAMAGED}")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def _remember(self, place: int) -> None:
        if place not in self.memo:
            raise ScratchvitError(f"its pickle uses a value that is not in its memo: {DAMAGED}")
        self.stack.append(self.memo[place])

    def _extend(self, values: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Inert):
            return
        if type(target) is not list:
            raise ScratchvitError(f"its pickle appends to a {type(target).__name__}: {DAMAGED}")
        target.extend(values)

    def _set_items(self, values: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, dict | Inert) or len(values) % 2:
            raise ScratchvitError(f"its pickle sets entries of a {type(target).__name__}: {DAMAGED}")
        if isinstance(target, dict):
            set_items(target, zip(values[::2], values[1::2]))

    def _look_up(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ScratchvitError(f"its pickle uses a name that is not a string: {DAMAGED}")
        if (module, name) in self.admitted:
            self.stack.append(self.admitted[module, name])
            return
        if len(module) + len(name) > 2 * LONGEST_NAME:
            raise ScratchvitError(f"a name in its pickle has {len(module) + len(name)} characters: {DAMAGED}")
        is_tensor = module.startswith("torch.") and name.startswith("_rebuild")
        self.stack.append(self.inert.setdefault((module, name), Inert(f"{module}.{name}", is_tensor)))

    def _call(self, function: Any, arguments: Any) -> None:
        if isinstance(function, Inert):
            self.stack.append(function)
            return
        if not isinstance(function, Function):
            raise ScratchvitError(f"its pickle calls a {type(function).__name__}; no code in it was run: {WAY_OUT}")
        if type(arguments) is not tuple:
            raise ScratchvitError(f"its pickle calls {function.name} without a tuple of arguments: {DAMAGED}")
        try:
            value = function.call(*arguments)
        except TypeError as error:      # wrong number of arguments
            what = f"its pickle calls {function.name} with too many or too few arguments"
            raise ScratchvitError(f"{what}: {DAMAGED}") from error
        self.stack.append(value)
        if isinstance(value, (bytes, dict)):
            self.copied += len(value)
            if self.copied > self.raw.size:
                raise ScratchvitError(f"its pickle copies more bytes than it contains: {DAMAGED}")


def set_items(target: dict[Any, Any], items: Iterable[tuple[Any, Any]]) -> None:
    """Set entries of a dictionary whose keys are strings, None, or integers of moderate size.

    Entries under tuples, numbers with a fraction, bytes and records are left out: no weights have such names, and
    hashing a deeply nested tuple would recurse until the interpreter crashes. Raises ScratchvitError for other keys.
    """
    for key, value in items:
        if key is None or isinstance(key, str) or (isinstance(key, int) and abs(key) < LARGEST_KEY):
            target[key] = value
        elif not isinstance(key, tuple | float | bytes | Record):
            raise ScratchvitError(f"its pickle has a {type(key).__name__} as a key, expected names: {WAY_OUT}")
