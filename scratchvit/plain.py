"""Plain or fast: an op that has a kernel also has a plain form, which is its definition.

    SCRATCHVIT_PLAIN=1 scratchvit train         # everything by the definitions
    with sv.plain_forms(): ...

The plain form stands in the op's file, the fast one in `kernels/`. Both give the same up to rounding; the plain one
takes more time and memory.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextvars import ContextVar

from scratchvit.recording import setting

_plain = ContextVar("plain", default=os.environ.get("SCRATCHVIT_PLAIN", "0") not in ("", "0"))


def is_plain() -> bool:
    """Whether ops use their plain forms in this thread."""
    return _plain.get()


@contextlib.contextmanager
def plain_forms(plain: bool = True) -> Iterator[None]:
    """Context manager in which ops use their plain forms, or with plain=False their kernels."""
    with setting(_plain, plain):
        yield
