"""A TCP proxy that stands before a server and spoils what passes, as networks do; switched while it runs.

Everything happens in the event loop of one thread. What a test sets holds for the next piece that passes.
"""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import SplitResult, unquote, urlsplit

_PIECE_BYTES = 65536
_HELD_SECONDS = 0.01
_APPLIED_SECONDS = 0.2
"""How long a server whose answer is dropped goes on being heard, so that it has applied what it was sent."""


@dataclass
class Way:
    """What befalls the bytes that go in one direction."""

    held: bool = False
    """Nothing passes, nothing is closed. What was sent meanwhile arrives when it ends, as after a lost route."""
    latency_seconds: float = 0.0
    jitter_seconds: float = 0.0
    """Up to so much more, drawn for each piece."""
    cut_bytes: range | None = None
    """After a number of bytes drawn from here, each connection is reset."""
    replace: tuple[bytes, bytes] = (b"", b"")
    """Bytes and others of the same length that take their place."""

    def clear(self) -> None:
        """From now on everything passes as it comes."""
        vars(self).update(vars(Way()))


@dataclass(eq=False)
class _Connection:
    writers: list[asyncio.StreamWriter]
    drops: bool = False
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class Proxy:
    """Listens on a loopback port; a context manager.

    Args:
        url: Of the server behind it: any scheme with host and port, `unix://` and a path, or just host and port.
        port: To listen on; 0 for any.
        tls: Clients have to speak TLS with this; the server behind it does not.
        seed: Of what is drawn.
    """

    def __init__(self, url: str, *, port: int = 0, tls: ssl.SSLContext | None = None, seed: int = 0) -> None:
        self.requests, self.answers = Way(), Way()
        self.dropped = 0
        """Answers that were not passed on."""
        self._behind = _split(url)
        self._tls = tls
        self._draw = random.Random(seed)
        self._drop: tuple[int, Callable[[bytes], bool] | None] = (0, None)
        self._connections: set[_Connection] = set()
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        try:
            self.port = port
            self.refuse(False)
        except BaseException:
            self._end()
            raise
        login, at, _ = self._behind.netloc.rpartition("@")
        front = self._behind._replace(netloc=f"{login}{at}{self.address}")
        self.url = (front._replace(scheme="redis", path="") if front.scheme == "unix" else front).geturl()

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def reset(self) -> None:
        """Reset every open connection on both sides (RST, as from a host or a firewall that forgot it)."""
        self._do(self._reset())

    def refuse(self, on: bool = True) -> None:
        """Refuse new connections, or take them again."""
        self._do(self._refuse() if on else self._accept())

    def lead_to(self, url: str) -> None:
        """From now on the same address is another server: what is open breaks."""
        self._behind = _split(url)
        self.reset()

    def drop_answers(self, count: int = 1, to: Callable[[bytes], bool] | None = None) -> None:
        """Let the server apply the next requests, but swallow its answers and close their connections.

        Args:
            to: Says of what a client sent in one piece whether its answer is meant; by default any answer is.
        """
        self._drop = (count, to)

    def clear(self) -> None:
        """From now on everything passes; what was reset stays so."""
        self.requests.clear()
        self.answers.clear()
        self._drop = (0, None)
        self.refuse(False)

    def _do(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result()

    def _end(self) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _accept(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._tls)
            self.port = int(self._server.sockets[0].getsockname()[1])

    async def _refuse(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()

    async def _reset(self) -> None:
        tasks = [task for each in self._connections for task in each.tasks]
        for each in list(self._connections):
            _reset(each)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _close(self) -> None:
        await self._refuse()
        await self._reset()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection([writer])
        try:
            behind_reader, behind = await self._connect()
        except OSError:
            _reset(connection)
            return
        connection.writers.append(behind)
        self._connections.add(connection)
        connection.tasks = [
            asyncio.create_task(self._pass_requests(connection, reader, behind)),
            asyncio.create_task(self._pass_answers(connection, behind_reader, writer)),
        ]
        await asyncio.wait(connection.tasks)
        self._connections.discard(connection)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._behind.scheme == "unix":
            return await asyncio.open_unix_connection(unquote(self._behind.path))
        return await asyncio.open_connection(self._behind.hostname or "127.0.0.1", self._behind.port)

    async def _pass_requests(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        left: int | None = None
        with suppress(OSError):
            while data := await reader.read(_PIECE_BYTES):
                count, to = self._drop
                if count and to is not None and to(data):
                    self._drop = (count - 1, to)
                    connection.drops = True
                left = await self._send(connection, self.requests, data, writer, left)
        writer.close()

    async def _pass_answers(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        left: int | None = None
        with suppress(OSError):
            while data := await reader.read(_PIECE_BYTES):
                count, to = self._drop
                if count and to is None:
                    self._drop = (count - 1, to)
                    connection.drops = True
                if connection.drops:
                    self.dropped += 1
                    await asyncio.sleep(_APPLIED_SECONDS)
                    break
                left = await self._send(connection, self.answers, data, writer, left)
        for each in connection.writers:
            each.close()

    async def _send(
        self, connection: _Connection, way: Way, data: bytes, writer: asyncio.StreamWriter, left: int | None
    ) -> int | None:
        """Pass one piece on; takes and returns how many bytes the connection has left, if it is to be cut."""
        if seconds := way.latency_seconds + self._draw.uniform(0, way.jitter_seconds):
            await asyncio.sleep(seconds)
        while way.held:
            await asyncio.sleep(_HELD_SECONDS)
        if way.cut_bytes is None:
            left = None
        else:
            left = self._draw.choice(way.cut_bytes) if left is None else left
            data, left = data[:left], left - len(data)
        writer.write(data.replace(*way.replace) if way.replace[0] else data)
        await writer.drain()
        if left is not None and left <= 0:
            await asyncio.sleep(0)
            _reset(connection)
        return left


def _split(url: str) -> SplitResult:
    return urlsplit(url if "//" in url else f"//{url}")


def _reset(connection: _Connection) -> None:
    for writer in connection.writers:
        raw = None
        with suppress(AttributeError):  # what Python raises for a TLS connection that has ended
            raw = writer.get_extra_info("socket")
        if raw is not None and raw.family == socket.AF_INET:
            with suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
