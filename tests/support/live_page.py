"""A page in the machine's own Chromium, driven by Playwright: what it says on its console, and what it asks for."""

import contextlib
import random
import shutil
from urllib.parse import urlsplit

import pytest

from tests.support.browser import NAMES

LOCAL = ("127.0.0.1", "localhost")


@contextlib.contextmanager
def page(width=1200, height=900):
    """Context manager that gives a Playwright page. At the end there must be no error on its console, no exception in
    its scripts and no request beyond this machine. Skips the test where Playwright or a Chromium is absent.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    wrong, state = [], random.getstate()        # Playwright draws names from Python's random numbers

    def hear(message):
        if message.type == "error":
            wrong.append(f"console: {message.text} ({message.location.get('url', '')})")

    def see(request):
        url = urlsplit(request.url)
        if url.scheme not in ("data", "blob", "about") and url.hostname not in LOCAL:
            wrong.append(f"a request beyond this machine: {request.url}")

    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            opened = browser.new_page(viewport={"width": width, "height": height})
            opened.on("console", hear)
            opened.on("pageerror", lambda error: wrong.append(f"exception: {error}"))
            opened.on("request", see)
            yield opened
        finally:
            browser.close()
            random.setstate(state)
    assert not wrong, "\n".join(wrong)
