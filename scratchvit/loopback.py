"""The pages of `scratchvit play` and `scratchvit course`: a socket that no other machine reaches, and who may ask."""

from __future__ import annotations

import socket
import sys
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from scratchvit.errors import ScratchvitError

HOST = "127.0.0.1"
HOSTS = ("localhost", HOST, "::1")      # names of this machine in a request
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


def headers_of(scope: Mapping[str, Any]) -> dict[str, str]:
    """The headers of a request to an ASGI application, with lower-case names."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def refusal(headers: Mapping[str, str]) -> str | None:
    """Why a request with these headers (lower-case names) is refused; None if it is not."""
    host = headers.get("host", "")
    if _host_name(f"//{host}") not in HOSTS:
        return f"this page is at http://localhost, and not at {host!r}"
    origin = headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        return f"a page of {origin!r} may not ask this server"
    site = headers.get("sec-fetch-site", "same-origin")
    if site not in ("same-origin", "none"):     # none: the user typed the address
        return f"a {site} page may not ask this server: type its address"
    return None


def _host_name(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:      # "[::1" and the like
        return None
