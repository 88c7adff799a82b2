"""Commands on several ranks: processes that mpiexec, mpirun or srun has started together.

Only rank 0 prints. An error that all ranks have is printed once, by rank 0; one of a single rank is printed with its
number and host, and ends all of them.
"""

from __future__ import annotations

import contextlib
import io
import re
import time
import traceback
from collections.abc import Callable, Iterator

from scratchvit import progress
from scratchvit.cli._output import Ending
from scratchvit.errors import ScratchvitError
from scratchvit.parallel import Communicator, world
from scratchvit.parallel.mpi import MpiRanks
from scratchvit.parallel.world import Launch

COMMANDS = ("train", "detect-train")    # those that several processes run together
BUG = 70                                # exit status: EX_SOFTWARE of sysexits.h
GRACE = 1.0                             # seconds


def run_on_ranks(started: Launch, command: str, run: Callable[[], Ending]) -> Ending:
    """Run a command on this rank, and end together with the others. Texts have been printed when it returns."""
    try:
        if command not in COMMANDS:
            raise ScratchvitError(
                f"scratchvit {command} runs in one process, and {started.by} has started "
                f"{started.size or 'several'}: start it by itself ({' and '.join(COMMANDS)} run on several)"
            )
        ranks = world()
    except ScratchvitError as error:
        if started.rank == 0:
            return Ending(1, f"scratchvit: {error}")
        time.sleep(GRACE)       # mpiexec may end all others after the first; rank 0 is to print its sentence before
        return Ending(1)
    if not isinstance(ranks, MpiRanks):
        return run()
    try:
        with _prints_on_rank_0(ranks) as unprinted:
            ending = run()
    except Exception as error:          # with SCRATCHVIT_DEBUG
        traceback.print_exc()
        ranks.waiting.stopped_by(f"{type(error).__name__}: {error}", repr(error), BUG)
        return Ending(BUG)
    if ending.status == 0:
        ranks.close()
        return ending
    # Ranks name different files for the traceback of the same error; what argparse says, rank 0 has printed.
    key = re.sub(r"\S*traceback\.txt", "", ending.text) or f"exit status {ending.status}"
    text = (ending.text or unprinted.getvalue()).strip().removeprefix("scratchvit: ")
    ranks.waiting.stopped_by(text, key, ending.status)
    return Ending(ending.status)


@contextlib.contextmanager
def _prints_on_rank_0(ranks: Communicator) -> Iterator[io.StringIO]:
    """On the other ranks, nothing is printed in this block. Gives what argparse would have printed to stderr."""
    unprinted = io.StringIO()
    with contextlib.ExitStack() as stack:
        if ranks.rank:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(contextlib.redirect_stderr(unprinted))
            stack.enter_context(progress.hidden())
        yield unprinted
