"""A TCP proxy before a Redis, which can spoil what passes through."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from urllib.parse import unquote, urlsplit


class Proxy:
    """Listens on a loopback port; a context manager.

    Args:
        url: of the Redis behind it, `unix://` or `redis://`.
        replace: bytes of the server's answers to be replaced by others of the same length.
    """

    def __init__(self, url: str, *, replace: tuple[bytes, bytes] = (b"", b"")) -> None:
        self._behind = urlsplit(url)
        self._replace = replace
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self.cut_next_answer = threading.Event()
        """Set: the next answer is not passed on, and its connection is closed."""
        self.cuts = 0
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}?{self._behind.query}"

    def lead_to(self, url: str) -> None:
        """From now on the same address is another server: what is open breaks."""
        self._behind = urlsplit(url)
        sockets, self._sockets = self._sockets, []
        for each in sockets:
            _close(each)

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in [self._listener, *self._sockets]:
            _close(each)

    def fail_over(self, url: str) -> None:
        """From now on another Redis is behind the address; connections are cut."""
        self._behind = urlsplit(url)
        cut, self._sockets = self._sockets, []
        for each in cut:
            _close(each)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = self._connect()
                self._sockets += [client, server]
                threading.Thread(target=self._requests, args=(client, server), daemon=True).start()
                threading.Thread(target=self._answers, args=(server, client), daemon=True).start()

    def _connect(self) -> socket.socket:
        if self._behind.scheme == "unix":
            server = socket.socket(socket.AF_UNIX)
            server.connect(unquote(self._behind.path))
            return server
        return socket.create_connection((self._behind.hostname or "127.0.0.1", self._behind.port or 6379))

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)
        _close(server)

    def _answers(self, server: socket.socket, client: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                if self.cut_next_answer.is_set():
                    self.cut_next_answer.clear()
                    self.cuts += 1
                    break
                client.sendall(data.replace(*self._replace) if self._replace[0] else data)
        _close(client)
        _close(server)


def _close(each: socket.socket) -> None:
    with suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)
    each.close()
