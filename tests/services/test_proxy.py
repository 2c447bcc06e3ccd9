"""The proxy does to connections what it is told."""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.services.proxy import Proxy
from tests.services.redis_cluster import wait_until


class Echo:
    """Answers each piece with itself, and keeps what it was sent."""

    def __init__(self, prefix: bytes = b"") -> None:
        self.received: list[bytes] = []
        self._prefix = prefix
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            while data := client.recv(65536):
                self.received.append(data)
                client.sendall(self._prefix + data)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy(echo.address, seed=7) as proxy:
        yield proxy


def connected(proxy: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=10)


def asked(client: socket.socket, question: bytes) -> bytes:
    client.sendall(question)
    return client.recv(65536)


def read_all(client: socket.socket) -> tuple[bytes, int]:
    """What comes until the end, and the error by which it ended, if any."""
    found = b""
    try:
        while data := client.recv(65536):
            found += data
    except OSError as error:
        return found, error.errno or 0
    return found, 0


def test_undisturbed_everything_passes(proxy: Proxy) -> None:
    with connected(proxy) as one, connected(proxy) as other:
        assert (asked(one, b"a"), asked(other, b"b"), asked(one, b"c")) == (b"a", b"b", b"c")


def test_a_reset_breaks_what_is_open_and_nothing_else(proxy: Proxy) -> None:
    with connected(proxy) as client:
        assert asked(client, b"a") == b"a"
        proxy.reset()
        assert read_all(client) == (b"", errno.ECONNRESET)
    with connected(proxy) as client:
        assert asked(client, b"b") == b"b"


@pytest.mark.parametrize("way", ["requests", "answers"])
def test_what_is_held_comes_when_the_way_is_open_again(proxy: Proxy, echo: Echo, way: str) -> None:
    getattr(proxy, way).held = True
    with connected(proxy) as client:
        client.sendall(b"late")
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(10)
        assert echo.received == ([] if way == "requests" else [b"late"])
        proxy.clear()
        client.settimeout(10)
        assert client.recv(10) == b"late"


def test_latency_and_jitter(proxy: Proxy) -> None:
    proxy.requests.latency_seconds = proxy.answers.latency_seconds = 0.1
    proxy.answers.jitter_seconds = 0.1
    with connected(proxy) as client:
        begun = time.monotonic()
        assert asked(client, b"a") == b"a"
        assert time.monotonic() - begun >= 0.2
        proxy.clear()
        assert asked(client, b"b") == b"b"


def test_answers_are_cut(proxy: Proxy) -> None:
    proxy.answers.cut_bytes = range(10, 11)
    for _ in range(3):
        with connected(proxy) as client:
            assert asked(client, b"123456") == b"123456"
            client.sendall(b"123456")
            assert read_all(client) == (b"1234", errno.ECONNRESET)


def test_requests_are_cut(proxy: Proxy, echo: Echo) -> None:
    proxy.requests.cut_bytes = range(4, 5)
    with connected(proxy) as client:
        client.sendall(b"123456")
        assert read_all(client)[1] == errno.ECONNRESET
    wait_until(lambda: b"".join(echo.received) == b"1234", "what was sent before the cut")


def test_only_an_answer_is_dropped(proxy: Proxy, echo: Echo) -> None:
    with connected(proxy) as other, connected(proxy) as client:
        proxy.drop_answers(to=lambda request: request.startswith(b"INSERT"))
        assert asked(client, b"SELECT") == b"SELECT"
        client.sendall(b"INSERT")
        assert read_all(client)[0] == b""
        assert asked(other, b"INSERT") == b"INSERT", "only one was to be dropped"
    assert echo.received == [b"SELECT", b"INSERT", b"INSERT"]
    assert proxy.dropped == 1


def test_refused_connections(proxy: Proxy) -> None:
    with connected(proxy) as client:
        assert asked(client, b"0") == b"0"
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            connected(proxy)
        assert asked(client, b"a") == b"a", "what is open stays"
    proxy.refuse(False)
    with connected(proxy) as client:
        assert asked(client, b"b") == b"b"


def test_the_same_address_leads_to_another_server(proxy: Proxy) -> None:
    other = Echo(b"other: ")
    with connected(proxy) as client:
        assert asked(client, b"a") == b"a"
        proxy.lead_to(other.address)
        assert read_all(client)[0] == b""
    with connected(proxy) as client:
        assert asked(client, b"a") == b"other: a"
    other.close()


@pytest.mark.parametrize(
    ("url", "proxied"),
    [
        ("unix:///run/redis.sock?db=3", "redis://127.0.0.1:{}?db=3"),
        ("redis://user:secret@127.0.0.1:6379/2", "redis://user:secret@127.0.0.1:{}/2"),
        ("http://user:secret@127.0.0.1:8123/tallyflow", "http://user:secret@127.0.0.1:{}/tallyflow"),
    ],
)
def test_its_url_is_that_of_the_server(url: str, proxied: str) -> None:
    with Proxy(url) as proxy:
        assert proxy.url == proxied.format(proxy.port)
