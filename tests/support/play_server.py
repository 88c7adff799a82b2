"""A server of `scratchvit play` in a thread, and requests to it with headers of one's own."""

import contextlib
import http.client
import json
import threading

import pytest

from scratchvit import loopback


@contextlib.contextmanager
def served(routes):
    """Context manager that answers by these routes on a free port, and gives the port. Skips without Starlette."""
    for package in ("starlette", "uvicorn"):
        pytest.importorskip(package)
    from scratchvit.play import server

    ready = threading.Event()
    with loopback.listen(0) as listening:
        running = server.server_of(routes, ready.set)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            assert ready.wait(30)
            yield listening.getsockname()[1]
        finally:
            running.should_exit = True
            thread.join(30)
    assert not thread.is_alive()


def ask(port, path, body=None, method=None, **headers):
    """(status, headers, content) of a request; content that is JSON is read. A header's _ stands for -."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, body, named)
        response = connection.getresponse()
        content = response.read()
    finally:
        connection.close()
    is_json = response.headers.get_content_type() == "application/json"
    return response.status, response.headers, json.loads(content) if is_json else content
