"""Puts TLS before a server that speaks none."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

CA = Path(__file__).with_name("ca.pem")
SERVER = Path(__file__).with_name("server.pem")
CLIENT = Path(__file__).with_name("client.pem")
_PIECE_BYTES = 65536
_SHAKE_SECONDS_MAX = 10


class TlsProxy:
    """Listens on a loopback port with the certificate of `server.pem`; a context manager.

    Args:
        url: Of the server behind it: any scheme with host and port, or `unix://` and a path.
        asks: Refuse clients without a certificate of the tests' authority.
    """

    def __init__(self, url: str, *, asks: bool = False) -> None:
        self._behind = urlsplit(url)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(SERVER)
        if asks:
            self._context.verify_mode = ssl.CERT_REQUIRED
            self._context.load_verify_locations(CA)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])

    def __enter__(self) -> TlsProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """One exchange at a time, in both directions on one thread: an SSL socket is not for two."""
        with client, suppress(OSError):
            client.settimeout(_SHAKE_SECONDS_MAX)
            with self._context.wrap_socket(client, server_side=True) as shaken, self._connect() as server:
                shaken.settimeout(0.01)
                server.settimeout(0.01)
                while _pass(shaken, server) and _pass(server, shaken):
                    pass

    def _connect(self) -> socket.socket:
        if self._behind.scheme == "unix":
            server = socket.socket(socket.AF_UNIX)
            server.connect(unquote(self._behind.path))
            return server
        return socket.create_connection((self._behind.hostname or "127.0.0.1", self._behind.port or 0))


def _pass(giver: socket.socket, taker: socket.socket) -> bool:
    """Pass on what there is; False once the giver has ended."""
    try:
        data = giver.recv(_PIECE_BYTES)
    except TimeoutError:
        return True
    taker.settimeout(_SHAKE_SECONDS_MAX)
    taker.sendall(data)
    taker.settimeout(0.01)
    return bool(data)
