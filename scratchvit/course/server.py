"""The course in a browser: a list of the chapters, and marimo's pages for them, on the loopback address only."""

from __future__ import annotations

import contextlib
import html
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

from scratchvit import loopback
from scratchvit.course.chapter import marimo
from scratchvit.course.folder import LANGUAGES, title_of

_LIST = Template("""\
<!DOCTYPE html>
<html lang="$lang"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>scratchvit: the course</title><link rel="icon" href="data:,">
<style>
body { font: 1.05rem/1.6 system-ui, sans-serif; max-width: 42rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2rem } ol { list-style: none; padding: 0 }
li { padding: 0.25rem 0 } a { color: #2a5db0 }
</style></head><body><main><h1>scratchvit</h1>$lists</main></body></html>
""")
_HEADINGS = {"en": "The course", "es": "El curso"}


def serve(notebooks: Sequence[Path], opened: Path | None, language: str, port: int | None, browser: bool) -> None:
    """Serve the chapters until Ctrl-C: the list, or the chapter `opened`, at first.

    port: None for any. browser: open it in a browser. Raises ScratchvitError if marimo is missing, or if the port
    cannot be used.
    """
    application = _application(notebooks, language)
    import uvicorn

    with loopback.listen(port) as listening:        # from now on a browser's request waits for the server
        address = f"http://{loopback.HOST}:{listening.getsockname()[1]}/"
        first = address if opened is None else f"{address}{opened.stem}/?lang={language}"
        print(f"the course is at {first}\nCtrl-C ends it", flush=True)
        if browser:
            webbrowser.open_new_tab(first)
        settings = uvicorn.Config(application, log_level="warning", timeout_graceful_shutdown=1)
        with contextlib.suppress(KeyboardInterrupt):        # uvicorn has closed by then, and raises it again
            uvicorn.Server(settings).run([listening])


def list_page(notebooks: Sequence[Path], address: str, first: str = "en") -> str:
    """A page with links to all chapters, a list for each language, that of `first` first.

    address: that of a chapter, with places for {stem} and {language}.
    """
    lists = "".join(
        f'<section lang="{language}"><h2>{_HEADINGS[language]} ({LANGUAGES[language]})</h2><ol>' + "".join(
            f'<li><a href="{address.format(stem=notebook.stem, language=language)}">'
            f"{html.escape(title_of(notebook, language))}</a></li>" for notebook in notebooks
        ) + "</ol></section>"
        for language in sorted(LANGUAGES, key=lambda language: language != first)
    )
    return _LIST.substitute(lang=first, lists=lists)


def _application(notebooks: Sequence[Path], language: str) -> Any:
    """The list at /, and marimo's page of each chapter at /02_pixels/. marimo does not check for updates here."""
    builder = marimo().create_asgi_app(quiet=True, include_code=False)
    for notebook in notebooks:
        builder = builder.with_app(path=f"/{notebook.stem}", root=str(notebook))
    chapters = builder.build()
    from starlette.responses import HTMLResponse, PlainTextResponse

    front = HTMLResponse(list_page(notebooks, "{stem}/?lang={language}", language))

    async def application(scope: Any, receive: Any, send: Any) -> None:
        """marimo answers every site's pages; here they are refused, also on the WebSocket that the controls use."""
        if scope["type"] == "lifespan" or not (why := loopback.refusal(loopback.headers_of(scope))):
            is_front = scope["type"] == "http" and scope["path"] == "/"
            await (front if is_front else chapters)(scope, receive, send)
        elif scope["type"] == "http":
            await PlainTextResponse(why, 403)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": why})

    return application
