"""ClickHouse's HTTP interface on loopback, over the embedded engine of the running flow.

chDB admits one process, so the flow offers its engine to other commands, to curl and to every
ClickHouse client here. Address and password stand in the data directory's `front.json`, readable
by the owner only, from `start()` to `close()`; the password is made anew at each start.

Known differences from a server: no sessions (a SET or a temporary table ends with its request), no
compressed answers, no external data, and no columns in an empty result in the format Native.
An error in the middle of a streamed answer is reported as ClickHouse does (exception tag), and the
connection is closed.
"""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import socket
import sys
import threading
import time
from base64 import b64decode
from binascii import Error as Base64Error
from contextlib import closing, nullcontext, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Self, cast
from urllib.parse import parse_qsl, urlsplit
from uuid import uuid4

from domain.ports import TallyError
from engines.clickhouse import EmbeddedClickHouse
from engines.data_directory import DataDirectory
from engines.front_query import Answer, Refused, Request, Stream, answer, failure_mark, new_mark
from engines.http_body import BadBody, Body

USER = "default"
BODY_BYTES_MAX = 1024**3
PARAMETERS_MAX = 1000
CONNECTIONS_MAX = 64
QUERIES_MAX = 8
QUERY_WAIT_SECONDS_MAX = 30
IDLE_SECONDS_MAX = 30
TRANSFER_SECONDS_MAX = 300
"""A client may pause this long in the middle of sending or receiving."""
CLOSE_SECONDS_MAX = 10
_UNAUTHORISED_BODY_BYTES = 1024 * 1024

logger = logging.getLogger(__name__)


class ClickHouseFront:
    """Serves one embedded engine; close it before the engine.

    Args:
        read_only: refuse everything that changes data or writes files (`readonly = 2`: a query may
            still bring settings). GET requests are always read-only, as in ClickHouse.
        queries_max: more than this wait their turn, up to `QUERY_WAIT_SECONDS_MAX`.
        port: 0 for any that is free.
        password: made anew if none is given.
    """

    def __init__(
        self,
        engine: EmbeddedClickHouse,
        directory: DataDirectory,
        *,
        read_only: bool = True,
        queries_max: int = QUERIES_MAX,
        port: int = 0,
        password: str | None = None,
    ) -> None:
        self.engine = engine
        self.read_only = read_only
        self.password = password or secrets.token_urlsafe(32)
        self._port = port
        self.tag = f"tallyflow-front-{secrets.token_hex(8)}"
        self.turns = threading.BoundedSemaphore(queries_max)
        self.timezone = ""
        self._directory = directory
        self._server: _Server | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> str:
        """Listen, and write `front.json`.

        Returns:
            The URL with user and password, as `connect()` takes it.

        Raises:
            TallyError: no port, or the record cannot be written.
        """
        assert self._server is None, "start() once"
        with closing(self.engine.connection()) as connection:
            self.timezone = connection.query("SELECT timezone()", "TSVRaw").bytes().decode().strip()
        try:
            self._server = _Server(("127.0.0.1", self._port), _Handler)
        except OSError as error:
            raise TallyError(f"cannot listen on 127.0.0.1:{self._port}: {error}") from error
        self._server.front = self
        host, port = "127.0.0.1", self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="clickhouse-front", daemon=True).start()
        record = {"host": host, "port": port, "user": USER, "password": self.password, "pid": os.getpid()}
        try:
            self._directory.write("front", record)
        except TallyError:
            self.close()
            raise
        return f"http://{USER}:{self.password}@{host}:{port}"

    def close(self) -> None:
        """Remove `front.json`, let running queries end (for a while, then they are killed), stop listening."""
        server, self._server = self._server, None
        if server is None:
            return
        with suppress(TallyError):
            record = self._directory.read("front")
            if record is not None and record.get("password") == self.password:
                self._directory.remove("front")
        server.shutdown()
        server.server_close()
        if not server.finish(socket.SHUT_RD, CLOSE_SECONDS_MAX):
            self._kill_queries()
            if not server.finish(socket.SHUT_RD, CLOSE_SECONDS_MAX):  # their clients are told
                server.finish(socket.SHUT_RDWR, CLOSE_SECONDS_MAX)

    def admits(self, user: str, password: str) -> bool:
        """Compared in constant time, so that answers' timing says nothing about the password."""
        same_user = hmac.compare_digest(user.encode("utf-8", "replace"), USER.encode())
        return hmac.compare_digest(password.encode("utf-8", "replace"), self.password.encode()) and same_user

    def _kill_queries(self) -> None:
        with closing(self.engine.connection()) as connection, suppress(RuntimeError):
            connection.query(f"KILL QUERY WHERE Settings['log_comment'] = '{self.tag}' ASYNC")


class _Server(ThreadingHTTPServer):
    """A thread a connection, of which there is a bounded number."""

    daemon_threads = True
    request_queue_size = 128
    front: ClickHouseFront

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self._open: set[socket.socket] = set()
        self._changed = threading.Condition()
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Without HTTPServer's reverse lookup of the address, which may wait for a name server."""
        TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changed:
            full = len(self._open) >= CONNECTIONS_MAX
            if not full:
                self._open.add(request)
        if not full:
            super().process_request(request, client_address)
            return
        with suppress(OSError):
            request.settimeout(1)
            request.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._changed:
                self._open.discard(request)
                self._changed.notify_all()

    def finish(self, how: int, seconds_max: float) -> bool:
        """Shut the connections' sockets down and wait for their threads; whether all have ended."""
        deadline = time.monotonic() + seconds_max
        with self._changed:
            for request in self._open:
                with suppress(OSError):
                    request.shutdown(how)
            return self._changed.wait_for(lambda: not self._open, deadline - time.monotonic())

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a client that went away is nothing to tell
            logger.exception("the ClickHouse front failed on a request")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS_MAX
    disable_nagle_algorithm = True
    wbufsize = 64 * 1024

    def do_GET(self) -> None:
        self._serve(reads_only=True)

    def do_POST(self) -> None:
        self._serve(reads_only=self._front.read_only)

    def version_string(self) -> str:
        return "tallyflow"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: requests may hold data; their errors go to the client."""

    @property
    def _front(self) -> ClickHouseFront:
        return cast(_Server, self.server).front

    def _serve(self, reads_only: bool) -> None:
        self.connection.settimeout(TRANSFER_SECONDS_MAX)
        self._begun = False
        self._query_id = ""
        body = Body(self.rfile, self.headers, BODY_BYTES_MAX)
        try:
            self._dispatch(body, reads_only)
        except Refused as error:
            self._fail(body, error)
        except BadBody as error:
            self._fail(body, Refused(1000, str(error), error.status))
        except TallyError as error:
            self._fail(body, Refused(210, str(error), 503))
        self.wfile.flush()
        self.connection.settimeout(IDLE_SECONDS_MAX)

    def _dispatch(self, body: Body, reads_only: bool) -> None:
        try:
            url = urlsplit(self.path)
        except ValueError as error:
            raise Refused(1000, f"the request's target is no URL: {error}", 400) from None
        alive = url.path == "/ping" or (url.path == "/" and self.command == "GET" and not url.query)
        if alive or url.path != "/":
            body.drain(_UNAUTHORISED_BODY_BYTES)
            self._send(Answer(b"Ok.\n" if alive else b"There is nothing here.\n"), 200 if alive else 404, body)
            return
        parameters = self._parameters(url.query)
        self._authenticate(parameters, body)
        self._query_id = parameters.get("query_id") or str(uuid4())
        request = Request(
            parameters,
            body,
            content_type=self.headers.get("Content-Type", ""),
            database=self.headers.get("X-ClickHouse-Database", ""),
            format=self.headers.get("X-ClickHouse-Format", ""),
            reads_only=reads_only,
        )
        front = self._front
        if not front.turns.acquire(timeout=QUERY_WAIT_SECONDS_MAX):
            raise Refused(202, "Too many simultaneous queries. (TOO_MANY_SIMULTANEOUS_QUERIES)", 503)
        try:
            with closing(front.engine.connection()) as connection:
                self._send(answer(connection, request, front.tag), 200, body)
        finally:
            front.turns.release()

    def _parameters(self, query: str) -> dict[str, str]:
        try:
            pairs = parse_qsl(query, keep_blank_values=True, errors="surrogateescape", max_num_fields=PARAMETERS_MAX)
        except ValueError:
            raise Refused(36, f"more than {PARAMETERS_MAX} URL parameters. (BAD_ARGUMENTS)") from None
        return dict(pairs)

    def _authenticate(self, parameters: dict[str, str], body: Body) -> None:
        scheme, _, credentials = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "basic":
            try:
                user, _, password = b64decode(credentials, validate=True).decode().partition(":")
            except (Base64Error, ValueError):
                user = password = ""
        else:
            user = self.headers.get("X-ClickHouse-User") or parameters.get("user") or USER
            password = self.headers.get("X-ClickHouse-Key") or parameters.get("password") or ""
        if not self._front.admits(user, password):
            body.drain(_UNAUTHORISED_BODY_BYTES)
            text = "Authentication failed: password is incorrect, or there is no user with such name."
            raise Refused(516, f"{text} (AUTHENTICATION_FAILED)")

    def _send(self, result: Answer, status: int, body: Body, headers: dict[str, str] | None = None) -> None:
        """Send the head, then the content, or the stream in chunks until it ends or fails."""
        stream = result.stream
        chunked = stream is not None and self.request_version >= "HTTP/1.1"
        with closing(stream) if stream is not None else nullcontext():
            body.drain(BODY_BYTES_MAX if status == 200 else _UNAUTHORISED_BODY_BYTES)
            if not body.exhausted or (stream is not None and not chunked):
                self.close_connection = True
            mark = new_mark()
            self._begun = True
            self.send_response(status)
            self._send_headers(result.headers | (headers or {}), mark)
            if chunked:
                self.send_header("Transfer-Encoding", "chunked")
            elif stream is None:
                self.send_header("Content-Length", str(len(result.content)))
            self.end_headers()
            self._write(result.content, False)
            if stream is not None:
                self._send_blocks(stream, chunked, mark)

    def _send_blocks(self, stream: Stream, chunked: bool, mark: str) -> None:
        try:
            for block in stream:
                self._write(block, chunked)
        except Refused as error:
            self._write(failure_mark(error, mark), chunked)
            self.close_connection = True  # without the last chunk: whoever knows no marks sees it cut off
            return
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _send_headers(self, headers: dict[str, str], mark: str) -> None:
        if self.close_connection:
            self.send_header("Connection", "close")
        defaults = {
            "Content-Type": "text/plain; charset=UTF-8",
            "X-ClickHouse-Server-Display-Name": "tallyflow",
            "X-ClickHouse-Timezone": self._front.timezone,
            "X-ClickHouse-Exception-Tag": mark,
            "X-ClickHouse-Query-Id": "".join(c for c in self._query_id if " " <= c <= "~"),
        }
        for name, value in (defaults | headers).items():
            if value:
                self.send_header(name, value)

    def _write(self, piece: bytes, chunked: bool) -> None:
        if piece:
            self.wfile.write(b"%x\r\n" % len(piece) + piece + b"\r\n" if chunked else piece)

    def _fail(self, body: Body, error: Refused) -> None:
        if self._begun:
            self.close_connection = True
            return
        if error.code != 516:
            body.drain(BODY_BYTES_MAX)
        headers = {"X-ClickHouse-Exception-Code": str(error.code)}
        self._send(Answer(str(error).encode("utf-8", "replace") + b"\n"), error.status, body, headers)
