"""The server of `scratchvit play`: who may ask, how much, and what is answered."""

import http.client
import json
import socket
import threading
import time

import pytest

import scratchvit as sv
from scratchvit import loopback
from scratchvit.play import server
from tests.support.play_server import ask, served


def routes():
    def refuse(question):
        raise sv.ScratchvitError("this cannot be done: do something else")

    return {
        "GET model": lambda question: {"kind": "classifier", "number": question.number("number", 7)},
        "POST length": lambda question: len(question.body), "GET refuse": refuse,
        "GET broken": lambda question: {}["nothing"],
    }


@pytest.fixture(scope="module")
def port():
    with served(routes()) as port:
        yield port


def test_the_page_and_its_files_load_nothing_from_elsewhere(port):
    status, headers, page = ask(port, "/")
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8" and b"<title>scratchvit" in page
    policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["frame-ancestors"] == "'none'"
    assert {word for value in policy.values() for word in value.split()} <= {"'none'", "'self'", "blob:"}
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
    for name in server.page_files():
        status, headers, content = ask(port, f"/{name}")
        assert status == 200 and len(content) > 0, name
        for word in (b"http://", b"https://"):
            rest = content.replace(b"http://www.w3.org/2000/svg", b"")
            assert word not in rest, (name, word)


def test_hosts_and_origins(port):
    here = f"127.0.0.1:{port}"
    for host in (here, f"localhost:{port}", f"[::1]:{port}", "localhost", "LocalHost"):
        assert ask(port, "/api/model", Host=host)[0] == 200, host
    for host in ("example.com", f"example.com:{port}", "localhost.example.com", "127.0.0.1.example.com", "127.0.0.2",
                 "0.0.0.0", "", "[::1", "user@localhost.example.com", f"{here}@example.com"):
        for path in ("/", "/api/model", "/common.js", "/nothing"):
            status, headers, content = ask(port, path, Host=host)
            assert status == 403 and "error" in content and "Content-Security-Policy" in headers, (host, path)
    assert ask(port, "/api/length", b"123", Origin=f"http://{here}", Sec_Fetch_Site="same-origin")[::2] == (200, 3)
    assert ask(port, "/", Sec_Fetch_Site="none")[0] == 200
    for origin in ("http://example.com", "null", "", f"https://{here}", f"http://localhost:{port}", "http://127.0.0.1:1"):
        assert ask(port, "/api/length", b"123", Origin=origin)[0] == 403, origin
    for site in ("cross-site", "same-site"):
        assert ask(port, "/api/model", Sec_Fetch_Site=site)[0] == 403, site


def test_two_hosts_in_a_request_are_refused(port):
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"GET /api/model HTTP/1.1\r\nHost: example.com\r\nHost: localhost\r\n\r\n")
        assert connection.recv(100).split()[1] in (b"400", b"403")


def test_only_the_named_questions_are_answered(port):
    assert ask(port, "/api/nothing")[0] == 404
    assert ask(port, "/api/model", b"x")[0] == 405 and ask(port, "/api/length")[0] == 405
    assert ask(port, "/api/model", method="DELETE")[0] == 405
    for path in ("/../server.py", "/%2e%2e/server.py", "/page/index.html", "/api"):
        assert ask(port, path)[0] == 404, path


def test_a_body_is_bounded_whatever_its_length_says(port, monkeypatch):
    monkeypatch.setattr(server, "LARGEST_BODY", 1 << 20)
    assert ask(port, "/api/length", bytes(1 << 20))[::2] == (200, 1 << 20)
    status, _, answer = ask(port, "/api/length", bytes((1 << 20) + 1))
    assert status == 413 and "1 MiB" in answer["error"]
    pieces = iter([bytes(1 << 16)] * 17)        # chunked: nothing says how long it will be
    assert ask(port, "/api/length", pieces)[0] == 413


def test_errors_become_sentences(port, capfd):
    assert ask(port, "/api/refuse")[::2] == (422, {"error": "this cannot be done: do something else"})
    assert ask(port, "/api/model?number=3")[2]["number"] == 3
    assert ask(port, "/api/model?number=x")[::2] == (422, {"error": "number is a whole number, not 'x'"})
    status, _, answer = ask(port, "/api/broken")
    assert status == 500 and "KeyError" in answer["error"]
    assert "Traceback" in capfd.readouterr().err


def test_one_question_is_answered_at_a_time():
    inside, most = [], []

    def slow(question):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.05)
        inside.pop()

    with served({"GET slow": slow}) as port:
        threads = [threading.Thread(target=ask, args=(port, "/api/slow")) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == [1, 1, 1, 1]


def test_the_server_listens_on_the_loopback_address_and_a_port_in_use_is_an_error():
    with loopback.listen(0) as listening:
        host, port = listening.getsockname()
        assert host == "127.0.0.1"
        with pytest.raises(sv.ScratchvitError, match=rf"port {port} cannot be used \(.*\): choose another --port"):
            loopback.listen(port)


def test_the_usual_port_is_replaced_by_a_free_one_if_it_is_in_use():
    with loopback.listen(None) as first, loopback.listen(None) as second:
        assert first.getsockname() != second.getsockname()


def test_json_has_no_numbers_that_browsers_cannot_read(port):
    with served({"GET model": lambda question: float("nan")}) as port:
        status, _, answer = ask(port, "/api/model")
    assert status == 500 and json.dumps(answer)


def test_a_client_that_leaves_early_disturbs_nobody(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest("POST", "/api/length")
    connection.putheader("Content-Length", "1000")
    connection.endheaders()
    connection.send(b"half")
    connection.close()
    assert ask(port, "/api/length", b"whole")[2] == 5
