"""One attempt against a real receiver: what is sent, and what each answer comes to."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from urllib.parse import urlsplit

import pytest

from domain.signals_json import CONTENT_TYPE
from tests.services.proxy import Proxy
from tests.tls.context import CA, server_context
from tests.webhooks.receiver import SECRET, Receiver, Reply
from webhooks.endpoints import Endpoint
from webhooks.lanes import Answer
from webhooks.sending import RETRY_AFTER_SECONDS_MAX, Sender
from webhooks.signing import read_secret

_BODY = b'{"type": "quota.exceeded", "subject": "\xc3\xbc"}'


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        yield made


def sender(url: str, *, internal: bool = True, timeout_seconds: float = 5) -> Sender:
    secrets = (b"another secret, of yesterday", read_secret(SECRET))
    return Sender(Endpoint("e", url, secrets, internal=internal, timeout_seconds=timeout_seconds))


def test_a_message_is_signed_and_whole(receiver: Receiver) -> None:
    to = sender(f"{receiver.url}/hook?token=t")
    assert to.post("id-1", _BODY) == Answer(204)
    assert to.post("id-2", _BODY) == Answer(204)
    first = receiver.requests[0]
    assert (first.path, first.id, first.event["subject"]) == ("/hook?token=t", "id-1", "ü")
    assert first.headers["content-type"] == CONTENT_TYPE
    assert first.headers["host"] == urlsplit(receiver.url).netloc
    assert first.headers["webhook-signature"].count("v1,") == 2
    assert abs(int(first.headers["webhook-timestamp"]) - time.time()) < 5


@pytest.mark.parametrize("status", [199 + 1, 202, 299])
def test_any_2xx_is_delivered(receiver: Receiver, status: int) -> None:
    receiver.reply = lambda _: Reply(status, body=b"x" * 10_000)
    assert sender(receiver.url).post("1", _BODY).delivered


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(receiver: Receiver, status: int) -> None:
    receiver.reply = lambda _: Reply(status, {"location": f"{receiver.url}/elsewhere"})
    answer = sender(receiver.url).post("1", _BODY)
    assert (answer.delivered, answer.status) == (False, status)
    assert [one.path for one in receiver.requests] == ["/"]


def test_retry_after(receiver: Receiver) -> None:
    headers = {"retry-after": "17"}
    receiver.reply = lambda _: Reply(503, headers)
    to = sender(receiver.url)
    assert to.post("1", _BODY) == Answer(503, "answered 503 Service Unavailable", 17)
    headers["retry-after"] = formatdate(time.time() + 100, usegmt=True)
    assert 90 < to.post("1", _BODY).retry_after_seconds <= 100
    for text, seconds in (("9" * 30, RETRY_AFTER_SECONDS_MAX), ("soon", 0), ("-5", 0), (formatdate(0), 0), ("", 0)):
        headers["retry-after"] = text
        assert to.post("1", _BODY).retry_after_seconds == seconds


def test_a_slow_receiver(receiver: Receiver) -> None:
    receiver.reply = lambda _: Reply(204, after_seconds=5)
    started = time.monotonic()
    answer = sender(receiver.url, timeout_seconds=0.2).post("1", _BODY)
    assert time.monotonic() - started < 4
    assert (answer.status, "gave no answer within 0.2 s" in answer.error) == (0, True)


def test_an_answer_that_is_not_http_or_breaks_off() -> None:
    for said in (b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 2"):
        with socket.create_server(("127.0.0.1", 0)) as server:

            def answer(server: socket.socket = server, said: bytes = said) -> None:
                client, _ = server.accept()
                with client:
                    client.recv(65536)
                    client.sendall(said)

            threading.Thread(target=answer, daemon=True).start()
            found = sender(f"http://127.0.0.1:{server.getsockname()[1]}/secret-path").post("1", _BODY)
        assert found.status == 0
        assert "broke the connection off" in found.error
        assert "secret-path" not in found.error


def test_nobody_is_there() -> None:
    assert "cannot be reached" in sender("http://127.0.0.1:1").post("1", _BODY).error
    assert "no-such-host.invalid" in sender("http://no-such-host.invalid").post("1", _BODY).error


def test_a_private_address_is_refused_before_anything_is_sent(receiver: Receiver) -> None:
    port = urlsplit(receiver.url).port
    for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "2130706433"):
        answer = sender(f"https://{host}:{port}", internal=False).post("1", _BODY)
        assert "no public address" in answer.error, answer
    assert receiver.requests == []


def test_certificates_are_checked_against_the_name(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection goes to an address; the certificate is that of the host name."""
    with Proxy(receiver.url, tls=server_context()) as proxy:
        unknown = sender(f"https://localhost:{proxy.port}").post("1", _BODY)
        assert (unknown.status, "TLS with localhost" in unknown.error) == (0, True)
        trusting = ssl.create_default_context(cafile=str(CA))
        monkeypatch.setattr(ssl, "create_default_context", lambda: trusting)
        assert sender(f"https://localhost:{proxy.port}").post("1", _BODY) == Answer(204)
        monkeypatch.setattr("webhooks.sending.resolve", lambda host, port, internal: "127.0.0.1")
        wrong = sender(f"https://other.example:{proxy.port}").post("2", _BODY)
        assert (wrong.status, "TLS with other.example" in wrong.error) == (0, True)
    assert receiver.ids() == ["1"]
