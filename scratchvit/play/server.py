"""The server of `scratchvit play`: it gives the page to this machine's browser, and answers what the page asks.

    GET  /              page/index.html
    GET  /NAME          the other files of page/
    GET  /api/NAME      answers of the model: a table of functions, one for each question
    POST /api/NAME

Who may ask. The server listens on the loopback address, so no other machine reaches it. A page of another site, open in
the same browser, could: it is refused by its Origin and by Sec-Fetch-Site. A site that lets its own name point to
127.0.0.1 (DNS rebinding) has the right origin, and is refused by its Host. The page itself may load nothing from
elsewhere (Content-Security-Policy). Nothing is written, and a body is at most LARGEST_BODY.

One question is answered at a time, in a thread, because the engine has threads of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import json
import socket
import sys
import traceback
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from scratchvit.errors import ScratchvitError, missing
from scratchvit.loopback import headers_of, refusal

LARGEST_BODY = 32 << 20         # bytes: a picture of a camera
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Question:
    """What the page asks: the body of a request, and the parameters of its address, `?name=value`."""

    body: bytes = b""
    parameters: Mapping[str, str] = field(default_factory=dict)

    def number(self, name: str, default: int) -> int:
        """A parameter as a whole number. Raises ScratchvitError if it is none."""
        try:
            return int(self.parameters.get(name, default))
        except ValueError:
            raise ScratchvitError(f"{name} is a whole number, not {self.parameters[name]!r}") from None


Answer = Callable[[Question], Any]      # → what JSON can hold. A ScratchvitError becomes a sentence on the page.
Routes = Mapping[str, Answer]           # {"GET model": …, "POST see": …}; every model answers "GET model"


def application(routes: Routes) -> Any:
    """The ASGI application (Starlette's) that gives the page and answers by `routes`.

    Raises ScratchvitError if Starlette is not installed.
    """
    try:
        from starlette.applications import Starlette
        from starlette.requests import ClientDisconnect, Request
        from starlette.responses import Response
        from starlette.routing import Route
    except ImportError as error:
        raise not_installed() from error
    one_at_a_time = asyncio.Lock()

    def reply(content: Any, status: int = 200) -> Any:
        return Response(json.dumps(content, allow_nan=False), status, media_type="application/json")

    def endpoint(answer: Answer) -> Callable[[Request], Awaitable[Any]]:
        async def respond(request: Request) -> Any:
            body = bytearray()
            with contextlib.suppress(ClientDisconnect):     # then nobody reads the answer either
                async for part in request.stream():
                    body += part
                    if len(body) > LARGEST_BODY:
                        limit = f"{LARGEST_BODY >> 20} MiB"
                        return reply({"error": f"the file is larger than {limit}: choose a smaller one"}, 413)
            question = Question(bytes(body), dict(request.query_params))
            try:
                async with one_at_a_time:
                    return reply(await asyncio.to_thread(answer, question))
            except ScratchvitError as error:
                return reply({"error": str(error)}, 422)
            except Exception as error:      # a bug: the terminal gets all of it, the page a sentence
                traceback.print_exc(file=sys.stderr)
                return reply({"error": f"{type(error).__name__}: {error} (the terminal has more)"}, 500)

        return respond

    def static(content: bytes, kind: str) -> Callable[[Request], Awaitable[Any]]:
        async def respond(_: Request) -> Any:
            return Response(content, media_type=kind)

        return respond

    rules = [Route(f"/{name}", static(*file), methods=["GET"]) for name, file in page_files().items()]
    for name, answer in routes.items():
        method, _, path = name.partition(" ")
        rules.append(Route(f"/api/{path}", endpoint(answer), methods=[method]))
    return guarded(Starlette(routes=rules))


def page_files() -> dict[str, tuple[bytes, str]]:
    """The files of page/: {name in the address: (content, media type)}; index.html has the name ""."""
    folder = importlib.resources.files("scratchvit.play") / "page"
    return {
        "" if file.name == "index.html" else file.name: (file.read_bytes(), TYPES[file.name[file.name.rindex(".") :]])
        for file in folder.iterdir() if file.name.endswith(tuple(TYPES))
    }


def guarded(app: Any) -> Any:
    """An ASGI application that refuses what `loopback.refusal` names, and adds HEADERS to every response."""
    headers = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]

    async def guard(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":     # a WebSocket: nothing here has one
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        if why := refusal(headers_of(scope)):
            body = json.dumps({"error": why}).encode()
            kind = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send_with_headers({"type": "http.response.start", "status": 403, "headers": kind})
            await send({"type": "http.response.body", "body": body})
        else:
            await app(scope, receive, send_with_headers)

    return guard


def serve(routes: Routes, listening: socket.socket, ready: Callable[[], object]) -> None:
    """Answer on a socket until Ctrl-C. ready: called once, as soon as the server answers.

    Raises ScratchvitError if Starlette or uvicorn is not installed.
    """
    with contextlib.suppress(KeyboardInterrupt):        # uvicorn has closed everything by then, and raises it again
        server_of(routes, ready).run(sockets=[listening])


def server_of(routes: Routes, ready: Callable[[], object]) -> Any:
    """The uvicorn.Server of `application(routes)`, see `serve`."""
    try:
        import uvicorn
    except ImportError as error:
        raise not_installed() from error

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets=sockets)
            ready()

    return Server(uvicorn.Config(
        application(routes), log_level="warning", access_log=False, lifespan="off", ws="none", server_header=False,
        timeout_graceful_shutdown=2,
    ))


def not_installed() -> ScratchvitError:
    """The error for missing packages of the server."""
    return missing("`scratchvit play` needs Starlette and uvicorn", "starlette", "uvicorn")
