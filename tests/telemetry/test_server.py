"""The status pages over HTTP."""

from __future__ import annotations

import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress

import pytest

from domain.ports import TallyError
from telemetry.health import Verdict
from telemetry.server import CLIENTS_MAX, StatusServer


def get(server: StatusServer, path: str) -> tuple[int, str, bytes]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read()


def serving(
    alive: Callable[[], Verdict] = Verdict, ready: Callable[[], Verdict] = Verdict, port: int = 0
) -> StatusServer:
    return StatusServer("127.0.0.1", port, metrics=lambda: b"a 1\n", alive=alive, ready=ready)


def test_the_pages() -> None:
    with serving(ready=lambda: Verdict(("redis has not answered for 40 s",))) as server:
        assert get(server, "/metrics") == (200, "text/plain; version=0.0.4; charset=utf-8", b"a 1\n")
        status, kind, body = get(server, "/healthz")
        assert (status, kind, json.loads(body)) == (200, "application/json", {"status": "ok", "reasons": []})
        status, _, body = get(server, "/readyz?verbose")
        assert (status, json.loads(body)) == (
            503, {"status": "failed", "reasons": ["redis has not answered for 40 s"]}
        )  # fmt: skip
        assert get(server, "/etc/passwd")[0] == 404


def test_a_page_that_fails_says_so_and_the_next_answers() -> None:
    def broken() -> Verdict:
        raise RuntimeError("a fault with s3cret inside")

    with serving(alive=broken) as server:
        status, _, body = get(server, "/healthz")
        assert status == 500 and b"s3cret" not in body
        assert get(server, "/readyz")[0] == 200


def test_silent_clients_do_not_shut_others_out() -> None:
    with serving() as server:
        silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(CLIENTS_MAX - 1)]
        assert get(server, "/healthz")[0] == 200
        for each in silent:
            each.close()


def test_an_address_in_use_is_named() -> None:
    with serving() as server, pytest.raises(TallyError, match=r"cannot listen on 127.0.0.1:\d+ .*TALLY_METRICS_PORT"):
        serving(port=server.port).start()
    for host in ("256.0.0.1", "no.such.host.invalid"):
        with pytest.raises(TallyError, match="cannot listen on"):
            StatusServer(host, 0, metrics=lambda: b"", alive=Verdict, ready=Verdict).start()


def test_clients_that_send_a_byte_now_and_then_do_not_shut_others_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("telemetry.server.CLIENT_SECONDS_MAX", 0.5)
    with serving() as server:
        slow = [socket.create_connection(("127.0.0.1", server.port), 10) for _ in range(CLIENTS_MAX)]
        for each in slow:
            each.sendall(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            for each in slow:
                with suppress(OSError):
                    each.sendall(b"x")
            with suppress(OSError, urllib.error.URLError):
                assert get(server, "/healthz")[0] == 200
                break
            time.sleep(0.1)
        else:
            pytest.fail("the page is not served")
        for each in slow:
            each.close()
