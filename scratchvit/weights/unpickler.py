"""Pickles read as data: an interpreter of the pickle language in which nothing can be imported and nothing executed.

A pickle is a program for a small stack machine. Two of its instructions make Python's own machine dangerous: GLOBAL
imports whatever it names, REDUCE calls it. Here GLOBAL looks a name up in a table that the caller gives, whose values
are inert: records, or `Function`s written for this purpose, which check their arguments. REDUCE calls nothing else.
No file can name a Python object, so no trick with names reaches one. What the table lacks is refused by its name.

Only what pickle protocols 2 to 5 need for plain values is understood. The machine does not recurse, whatever the
nesting; it does at most MOST_INSTRUCTIONS; no value is larger than the bytes that it was read from, and what functions
copy is limited to the size of the pickle. So memory stays proportional to the file.

The instructions are described in Lib/pickletools.py of CPython.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from scratchvit.errors import ScratchvitError
from scratchvit.weights.arrays import CUT, DAMAGED, short

MOST_INSTRUCTIONS = 1 << 20     # ViT-B with the state of AdamW takes 20,460
LONGEST_NAME = 256              # of a module or of what it holds
LARGEST_KEY = 1 << 60           # integers below are their own hash, so that keys cannot be made to collide

WAY_OUT = "with PyTorch, save the model's state_dict() alone, or convert it to safetensors"


@dataclass(frozen=True)
class Function:
    """What REDUCE and NEWOBJ may call: `call(*arguments)`, which checks them and returns an inert value."""

    name: str
    call: Callable[..., Any]


class Record:
    """A value that BUILD may complete. It sets no attributes: what a state means is the record's own business."""

    def set_state(self, state: Any) -> None:
        raise NotImplementedError


class Unpickler:
    """One pickle that begins at byte `start` of `raw`, uint8 (size,). `end`: the byte after it, once loaded.

    admitted     {(module, name): what it stands for}
    persistent   what a persistent id stands for, given that id

    Raises ScratchvitError (without the path) for anything else than such a pickle.
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
        self.marks: list[int] = []          # the heights of the stack at which collections begin
        self.memo: dict[int, Any] = {}
        self.copied = 0                     # entries and bytes that functions made

    def load(self) -> Any:
        """Run the program. Returns the value it leaves."""
        for _ in range(MOST_INSTRUCTIONS):
            instruction = self._take(1)
            if instruction == pickle.STOP:
                value = self._pop()
                if self.stack or self.marks:
                    raise ScratchvitError(f"its pickle ends with values left over: {DAMAGED}")
                return value
            self._step(instruction)
        raise ScratchvitError(f"its pickle has more than {MOST_INSTRUCTIONS} instructions, as no weights do: {WAY_OUT}")

    def _step(self, instruction: bytes) -> None:
        match instruction:
            # Remembering values, and using them again: a list may so hold itself, which costs nothing.
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
            case pickle.BINBYTES8:
                self.stack.append(self._take(self._number("<Q")))

            # Containers. A set is kept as a list: its elements need not be hashed.
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

            # Names, calls and states: where Python's own machine would run the file's code.
            case pickle.GLOBAL:
                module, name = self._line(), self._line()
                self._look_up(module, name)
            case pickle.STACK_GLOBAL:
                name, module = self._pop(), self._pop()
                self._look_up(module, name)
            case pickle.REDUCE | pickle.NEWOBJ:
                arguments, function = self._pop(), self._pop()
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
                self._take(8)           # the size of a part to be read ahead, of no use here
            case _:
                raise ScratchvitError(
                    f"its pickle has the instruction {instruction!r}, which no tensor or container needs: {WAY_OUT}"
                )

    def _take(self, count: int) -> bytes:
        start, self.end = self.end, self.end + count
        if self.end > self.raw.size:
            raise ScratchvitError(f"its pickle has no end: {CUT}")
        return self.raw[start : self.end].tobytes()

    def _number(self, code: str) -> Any:
        return struct.unpack(code, self._take(struct.calcsize(code)))[0]

    def _text(self, length: int) -> str:
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as error:
            raise ScratchvitError(f"a text in its pickle is not in UTF-8: {DAMAGED}") from error

    def _line(self) -> str:
        length = self.raw[self.end : self.end + LONGEST_NAME].tobytes().find(b"\n")
        if length < 0:
            raise ScratchvitError(f"a name in its pickle has no end: {CUT}")
        return self._text(length + 1)[:-1]

    def _top(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ScratchvitError(f"its pickle uses a value that is not there: {DAMAGED}")
        return self.stack[-1]

    def _pop(self) -> Any:
        self._top()
        return self.stack.pop()

    def _since_mark(self) -> list[Any]:
        if not self.marks:
            raise ScratchvitError(f"its pickle ends a collection that did not begin: {DAMAGED}")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def _remember(self, place: int) -> None:
        if place not in self.memo:
            raise ScratchvitError(f"its pickle uses a value that it does not hold: {DAMAGED}")
        self.stack.append(self.memo[place])

    def _extend(self, values: list[Any]) -> None:
        target = self._top()
        if type(target) is not list:
            raise ScratchvitError(f"its pickle appends to a {type(target).__name__}: {DAMAGED}")
        target.extend(values)

    def _set_items(self, values: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(values) % 2:
            raise ScratchvitError(f"its pickle sets entries of a {type(target).__name__}: {DAMAGED}")
        for key, value in zip(values[::2], values[1::2]):
            target[checked_key(key)] = value

    def _look_up(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ScratchvitError(f"its pickle asks for a name that is no text: {DAMAGED}")
        if (module, name) not in self.admitted:
            raise ScratchvitError(
                f"it asks for {short(f'{module}.{name}')}, and only real dense tensors and plain containers are "
                f"admitted; nothing of it was run: {WAY_OUT}"
            )
        self.stack.append(self.admitted[module, name])

    def _call(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, Function):
            raise ScratchvitError(f"its pickle calls a {type(function).__name__}; nothing of it was run: {WAY_OUT}")
        if type(arguments) is not tuple:
            raise ScratchvitError(f"its pickle calls {function.name} with no tuple of arguments: {DAMAGED}")
        try:
            value = function.call(*arguments)
        except TypeError as error:      # their number
            what = f"its pickle calls {function.name} with too many or too few values"
            raise ScratchvitError(f"{what}: {DAMAGED}") from error
        self.stack.append(value)
        if isinstance(value, (bytes, dict)):
            self.copied += len(value)
            if self.copied > self.raw.size:
                raise ScratchvitError(f"its pickle copies more than it holds: {DAMAGED}")


def checked_key(key: Any) -> Any:
    """A key of a dictionary: a text, None, or an integer of moderate size, which is what checkpoints have."""
    if key is None or isinstance(key, str) or (isinstance(key, int) and abs(key) < LARGEST_KEY):
        return key
    # Not, for one, a deep tuple: hashing it would recurse until the interpreter crashes.
    raise ScratchvitError(f"a {type(key).__name__} is a key in its pickle, where names belong: {WAY_OUT}")
