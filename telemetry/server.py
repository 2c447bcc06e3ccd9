"""The status of a process over HTTP: `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever runs it.

Answers from threads of its own, so also while the flow is stuck. It tells nothing of events, and asks for no password:
listen where only the operator's network reaches. A client that is slow or silent is dropped after
`CLIENT_SECONDS_MAX`; at most `CLIENTS_MAX` are served at a time.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Self, cast

from domain.ports import TallyError
from telemetry.health import Verdict
from telemetry.recorder import CONTENT_TYPE

logger = logging.getLogger(__name__)

CLIENT_SECONDS_MAX = 10
CLIENTS_MAX = 16


class StatusServer:
    """Listens from `start()` (or the beginning of its block) to `close()`.

    Args:
        host, port: Where to listen; port 0 is any that is free.
        metrics: Everything in Prometheus's text format.
        alive, ready: Judge the process now.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        metrics: Callable[[], bytes],
        alive: Callable[[], Verdict],
        ready: Callable[[], Verdict],
    ) -> None:
        self.host = host
        self.port = port
        self._metrics = metrics
        self._judges = {"/healthz": alive, "/readyz": ready}
        self._server: _Server | None = None

    def start(self) -> None:
        """Listen.

        Raises:
            TallyError: the address cannot be used.
        """
        try:
            server = _Server(self.host, self.port, self._answer)
        except OSError as error:
            raise TallyError(
                f"cannot listen on {self.host}:{self.port} for metrics ({error.strerror or error}): set "
                "TALLY_METRICS_HOST and TALLY_METRICS_PORT to an address of this machine that is free; every process "
                "needs one of its own"
            ) from error
        self._server = server
        self.port = int(server.server_address[1])
        threading.Thread(target=server.serve_forever, args=(0.1,), name="status", daemon=True).start()

    def close(self) -> None:
        """Stop listening; may be called again."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, path: str) -> tuple[int, str, bytes]:
        if path == "/metrics":
            return 200, CONTENT_TYPE, self._metrics()
        judge = self._judges.get(path)
        if judge is None:
            return 404, "text/plain; charset=utf-8", b"There is /metrics, /healthz and /readyz.\n"
        verdict = judge()
        body = {"status": "ok" if verdict.well else "failed", "reasons": list(verdict.reasons)}
        return 200 if verdict.well else 503, "application/json", json.dumps(body).encode() + b"\n"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, answer: Callable[[str], tuple[int, str, bytes]]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.answer = answer
        self._turns = threading.BoundedSemaphore(CLIENTS_MAX)
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Without HTTPServer's reverse lookup of the address, which may wait for a name server."""
        TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._turns.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one client, for so long and no longer: one that sends a byte now and then is never silent."""
        overdue = threading.Timer(CLIENT_SECONDS_MAX, _shut, (request,))
        overdue.daemon = True
        overdue.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            overdue.cancel()
            self._turns.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a client that went away is no news."""


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = CLIENT_SECONDS_MAX

    def do_GET(self) -> None:
        try:
            status, kind, body = cast(_Server, self.server).answer(self.path.partition("?")[0])
        except Exception:
            logger.exception("the status page %s failed", self.path[:100])
            status, kind, body = 500, "text/plain; charset=utf-8", b"This page failed; see the log.\n"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.close_connection = True
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def version_string(self) -> str:
        return "tallyflow"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: probes come every few seconds."""
