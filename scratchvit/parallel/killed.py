"""Says which rank was killed: by `kill -9`, by the system because memory was full, by a crash in a library.

Such a process says nothing itself. The others could, but mpiexec of MPICH (Hydra) kills them at once, as soon as the
connection closes that each rank has to it and finds as PMI_FD. It sends SIGKILL, and no SIGTERM before it. Its own
message has the number of a process, but that may be one of those that it has killed itself.

So each rank starts a shell, which waits until a pipe from the rank closes, and looks for the signal that ended the rank
in /proc. If there is one, it prints a sentence. It holds PMI_FD open until then: meanwhile mpiexec knows nothing, and
the other ranks are still there. When mpiexec kills these, it kills their process groups, and with them their shells, so
that only the rank that was lost first is named.

Other launchers have no such connection, and name the rank themselves (mpirun of Open MPI, srun).
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping

SHELL = "/bin/sh"
# $1: the process; $2: how it is named. /proc/…/stat ends with the exit status as wait() has it, of which seven bits are
# the signal. If mpiexec has killed the rank, it kills this shell during its first sleep, which is 0.3 s for a busy
# machine; in the second, mpiexec passes the sentence on, before it learns of the end.
SCRIPT = """
read -r line
read -r line < /proc/$1/stat || exit
signal=$((${line##* } & 127))
case $signal in
    0) exit ;;
    9) how="was killed (signal 9), by somebody or because memory was full, which dmesg on that host shows" ;;
    *) how="was ended by signal $signal" ;;
esac
sleep 0.3
echo "scratchvit: $2 $how; the job ends, and --resume continues from the last checkpoint" >&2
sleep 0.1
"""


def say_if_killed(rank: str, environment: Mapping[str, str] = os.environ) -> None:
    """From now on, a sentence on stderr names this process if a signal ends it. Call it before MPI is initialised.

    rank: how the sentence names it. Does nothing if the launcher is another one than Hydra, or the system not Linux.
    """
    if not environment.get("PMI_FD", "").isdecimal() or sys.platform != "linux":
        return
    reads, _ = os.pipe()        # the other end closes when this process ends, however it does
    process = str(os.getpid())
    with contextlib.suppress(OSError):      # no shell, or no more processes: the rank can do without
        os.posix_spawn(
            SHELL, [SHELL, "-c", SCRIPT, SHELL, process, f"{rank} (process {process})"], environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, reads, 0), (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
        )       # PMI_FD is inherited, as this process has inherited it
    os.close(reads)
