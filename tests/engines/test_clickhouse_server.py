"""Reaching a server: credentials, TLS, which database, and that no fault shows the password."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from domain.ports import TallyError
from engines.clickhouse import EmbeddedClickHouse
from engines.clickhouse_server import connect, database_of
from engines.front import ClickHouseFront
from tests.services.proxy import Proxy
from tests.tls.context import CA, CLIENT, SERVER, server_context


@pytest.fixture
def plain(front: ClickHouseFront) -> str:
    assert front._server is not None
    return f"http://127.0.0.1:{front._server.server_address[1]}"


def login(front: ClickHouseFront) -> dict[str, Any]:
    return {"user": "default", "password": front.password}


def test_without_a_database_it_is_tallyflow(front: ClickHouseFront, plain: str) -> None:
    with closing(connect(plain, **login(front))) as client:
        assert client.command("SELECT currentDatabase()") == "tallyflow"
    assert [database_of(f"http://h{path}") for path in ("", "/", "/usage", "/a%20b")] == [
        "tallyflow", "tallyflow", "usage", "a b",
    ]  # fmt: skip


def test_a_wrong_password_is_named_and_not_shown(plain: str) -> None:
    with pytest.raises(TallyError, match=r"refuses the user or the password: check TALLY_CLICKHOUSE_URL, or") as caught:
        connect(plain, user="default", password="s3cret")
    assert "s3cret" not in str(caught.value)


def test_tls_with_the_right_authority(front: ClickHouseFront, plain: str) -> None:
    with Proxy(plain, tls=server_context()) as proxy:
        for host in ("127.0.0.1", "localhost"):
            with closing(connect(f"https://{host}:{proxy.port}", ca_file=CA, **login(front))) as client:
                assert client.command("SELECT 7") == 7


def test_tls_faults_have_remedies(front: ClickHouseFront, plain: str) -> None:
    with Proxy(plain, tls=server_context()) as proxy:
        secure = f"https://127.0.0.1:{proxy.port}"
        with pytest.raises(TallyError, match=r"its certificate does not hold .*TALLY_CLICKHOUSE_CA_FILE"):
            connect(secure, **login(front))
        with pytest.raises(TallyError, match=r"certificate does not hold"):
            connect(secure, ca_file=CLIENT, **login(front))
        with pytest.raises(TallyError, match="cannot be used"):
            connect(f"http://127.0.0.1:{proxy.port}", **login(front))
    with pytest.raises(TallyError, match=r"Does this port speak TLS\?"):
        connect(plain.replace("http:", "https:"), ca_file=CA, **login(front))


def test_a_client_certificate(front: ClickHouseFront, plain: str, tmp_path: Any) -> None:
    with Proxy(plain, tls=server_context(asks=True)) as proxy:
        secure = f"https://127.0.0.1:{proxy.port}"
        with closing(connect(secure, ca_file=CA, certificate_file=CLIENT, **login(front))) as client:
            assert client.command("SELECT 7") == 7
        certificate, key = tmp_path / "only.crt", tmp_path / "only.key"
        text = CLIENT.read_text()
        cut = text.index("-----BEGIN EC PRIVATE KEY")
        certificate.write_text(text[:cut])
        key.write_text(text[cut:])
        with closing(connect(secure, ca_file=CA, certificate_file=certificate, key_file=key, **login(front))) as client:
            assert client.command("SELECT 7") == 7
        with pytest.raises(TallyError, match="TALLY_CLICKHOUSE_CERTIFICATE_FILE"):
            connect(secure, ca_file=CA, **login(front))
        with pytest.raises(TallyError, match="TALLY_CLICKHOUSE_CERTIFICATE_FILE"):
            connect(secure, ca_file=CA, certificate_file=certificate, key_file=SERVER, **login(front))


@contextmanager
def answering(answer: bytes) -> Iterator[str]:
    """A server that gives every request one answer; without one, it is silent."""
    listener = socket.create_server(("127.0.0.1", 0))
    kept: list[socket.socket] = []

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            kept.append(client)
            client.recv(65536)
            if answer:
                client.sendall(answer)
                client.close()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        for each in [listener, *kept]:
            each.close()


def test_something_else_is_said_to_be_no_clickhouse() -> None:
    page = b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
    with answering(page) as url, pytest.raises(TallyError, match="Something answers there, but not ClickHouse"):
        connect(url)


def test_a_silent_server_is_not_waited_for_without_end() -> None:
    with answering(b"") as url, pytest.raises(TallyError, match=r"timed out.*Is it running"):
        connect(url, timeout_seconds=1)


def test_clients_of_replicated_tables_write_to_a_quorum(
    front: ClickHouseFront, plain: str, engine: EmbeddedClickHouse
) -> None:
    with closing(connect(plain, cluster="main", timeout_seconds=20, **login(front))) as client:
        names = ("insert_quorum", "insert_quorum_parallel", "insert_quorum_timeout")
        sql = f"SELECT {', '.join(f'getSetting({name!r})' for name in names)}"
        quorum, parallel, timeout = client.query(sql).result_rows[0]
        assert (str(quorum), bool(parallel), int(timeout)) == ("auto", True, 20_000)
