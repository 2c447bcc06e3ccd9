"""Whatever arrives on a socket: it is answered or closed, and the next client is served."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

from uvicorn import Server

from api.catalogs import Catalogs
from api.counts import IngestCounts
from api.ingest import Ingest, Limits
from api.keys import ApiKey, KeyRing, new_key
from api.publisher import Fault, Message
from api.server import Serving, _config, _listener
from config.catalog import sample_text
from engines.data_directory import DataDirectory
from engines.front import ClickHouseFront
from telemetry.health import Verdict
from telemetry.server import StatusServer
from tests.batches import NOON, history, us

_KEY, _DIGEST = new_key()
_SECONDS_MAX = 20
"""Longer than any server here waits for a client that owes it something."""


def status(data: bytes) -> None:
    """The metrics and health pages."""
    _exchange(_status(), data, b"GET /healthz HTTP/1.0\r\n\r\n")


def front(data: bytes) -> None:
    """The ClickHouse front; `KEY` stands for its password."""
    port, password = _front()
    _exchange(port, data.replace(b"KEY", password), b"GET /ping HTTP/1.0\r\n\r\n")


def ingest(data: bytes) -> None:
    """The ingest; `KEY` stands for an API key."""
    counts, port = _ingest()
    data = data.replace(b"KEY", _KEY.encode())
    _exchange(port, data, b"GET /healthz HTTP/1.0\r\n\r\n")
    assert 500 not in counts.requests
    _eventually(lambda: counts.inflight_bytes == 0)


def _exchange(port: int, data: bytes, probe: bytes) -> None:
    _FAULTS.seen.clear()
    _ask(port, data)
    assert not _FAULTS.seen, _FAULTS.seen
    assert _ask(port, probe).split(b"\r\n")[0].endswith(b" 200 OK")


def _ask(port: int, data: bytes) -> bytes:
    """Send everything, say that it is all, and read until the server closes."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), _SECONDS_MAX) as client, suppress(ConnectionError):
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        while piece := client.recv(65536):
            answer += piece
    return answer


_CLIENTS = ("clickhouse_connect", "kafka", "urllib3")
"""Other tests may have left theirs running."""


class _Faults(logging.Handler):
    """What is logged with a traceback: nobody expected it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        logging.getLogger().addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and not record.name.startswith(_CLIENTS):
            self.seen.append(logging.Formatter().format(record))


_FAULTS = _Faults()


@cache
def _status() -> int:
    server = StatusServer("127.0.0.1", 0, metrics=lambda: b"a 1\n", alive=Verdict, ready=Verdict)
    server.start()
    return server.port


@cache
def _front() -> tuple[int, bytes]:
    """Over an engine that answers everything alike: what is tried is what comes before it."""
    folder = TemporaryDirectory(prefix="tally-fuzz-")
    made = ClickHouseFront(_Engine(), DataDirectory(Path(folder.name)))  # type: ignore[arg-type]
    url = made.start()
    setattr(made, "folder", folder)  # noqa: B010 # removed with it
    return int(url.rpartition(":")[2]), made.password.encode()


class _Engine:
    def connection(self) -> _Engine:
        return self

    def query(self, sql: Any, _format: str = "CSV") -> _Engine:
        if isinstance(sql, bytes) and b"fail" in sql:
            raise RuntimeError("Code: 62. DB::Exception: no")
        return self

    def bytes(self) -> bytes:
        return b"UTC"

    def rows_read(self) -> int:
        return 1

    bytes_read = rows_read

    def send_query(self, sql: Any, _format: str = "CSV") -> Any:
        return (each for each in [self.query(sql), None])

    def send_insert(self, sql: Any, _format: str = "CSV") -> Any:
        self.query(sql)
        result = SimpleNamespace(rows_written=0, bytes_written=0)
        return SimpleNamespace(append=lambda piece: None, finish=lambda: result, close=lambda: None)

    def close(self) -> None:
        pass


class _Stores:
    """A publisher that has stored whatever it is given."""

    fault = ""

    async def store(self, messages: Sequence[Message], released: Callable[[], None]) -> list[Fault | None]:
        released()
        return [None] * len(messages)


@cache
def _ingest() -> tuple[IngestCounts, int]:
    counts = IngestCounts()
    catalogs = Catalogs(lambda: history(sample_text("api")))
    catalogs.refresh()
    ring = KeyRing((ApiKey("all", bytes.fromhex(_DIGEST)),))
    app = Ingest(
        publisher=_Stores(),  # type: ignore[arg-type]
        catalogs=catalogs,
        keys=lambda: ring,
        limits=Limits(body_bytes_max=64 * 1024, inflight_bytes_max=1024 * 1024, read_seconds_max=5),
        counts=counts,
        now_us=lambda: us(NOON),
    )
    listener = _listener("127.0.0.1", 0)
    server = Server(_config(Serving("127.0.0.1", 0, 5, 100, 60, 1), app))
    threading.Thread(target=lambda: asyncio.run(server.serve([listener])), name="ingest", daemon=True).start()
    return counts, int(listener.getsockname()[1])


def _eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _SECONDS_MAX
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)
