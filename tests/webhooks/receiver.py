"""A receiver of webhooks on loopback, which checks signatures with the reference library."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from standardwebhooks.webhooks import Webhook

SECRET = "whsec_" + base64.b64encode(b"tallyflow webhooks test ").decode()


@dataclass
class Received:
    """One request."""

    path: str
    id: str
    event: dict[str, Any]
    headers: dict[str, str]
    at: float
    status: int


@dataclass
class Reply:
    """What to answer."""

    status: int = 204
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    after_seconds: float = 0


class Receiver:
    """Answers as `reply` says, which is asked with each verified request; 204 at first. A bad signature gets 400."""

    def __init__(self) -> None:
        self.requests: list[Received] = []
        self.reply: Callable[[Received], Reply] = lambda _: Reply()
        self._lock = threading.Lock()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                reply = receiver._received(self.path, headers, body)
                time.sleep(reply.after_seconds)
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)

            def log_message(self, format: str, *arguments: object) -> None:
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request: object, client_address: object) -> None:
                """A client that has gone away is no fault."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def ids(self, status: int | None = None) -> list[str]:
        """Of the requests so far, in order; only those that got this status."""
        with self._lock:
            return [one.id for one in self.requests if status in (None, one.status)]

    def wait_for(self, count: int, seconds_max: float = 30) -> None:
        """Until so many requests came."""
        deadline = time.monotonic() + seconds_max
        while len(self.requests) < count:
            assert time.monotonic() < deadline, f"{len(self.requests)} of {count} requests: {self.requests}"
            time.sleep(0.01)

    def _received(self, path: str, headers: dict[str, str], body: bytes) -> Reply:
        try:
            Webhook(SECRET).verify(body, headers)
        except Exception as error:
            return Reply(400, body=repr(error).encode())
        with self._lock:
            received = Received(path, headers["webhook-id"], json.loads(body), headers, time.monotonic(), 0)
            reply = self.reply(received)
            received.status = reply.status
            self.requests.append(received)
            return reply
