"""A socket for the pages of `scratchvit play` and `scratchvit course`, which no other machine reaches."""

from __future__ import annotations

import socket
import sys

from scratchvit.errors import ScratchvitError

HOST = "127.0.0.1"
USUAL = 8765        # the port that is tried first, so that the address is the same every day


def listen(port: int | None) -> socket.socket:
    """A socket that listens on the loopback address.

    port: None for USUAL or, if that is in use, any free one. Raises ScratchvitError if it is in use or not allowed.
    """
    for number in (USUAL, 0) if port is None else (port,):
        listening = socket.socket()
        if sys.platform != "win32":     # where this would share a port that is in use
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, number))
            listening.listen()
            return listening
        except OSError as error:
            listening.close()
            why = error.strerror
    raise ScratchvitError(f"port {port} cannot be used ({why}): choose another --port, or leave it out for a free one")
