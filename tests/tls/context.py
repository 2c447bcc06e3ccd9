"""The tests' certificates, and a server that shows one."""

from __future__ import annotations

import ssl
from pathlib import Path

CA = Path(__file__).with_name("ca.pem")
SERVER = Path(__file__).with_name("server.pem")
CLIENT = Path(__file__).with_name("client.pem")


def server_context(*, asks: bool = False) -> ssl.SSLContext:
    """For a server with the certificate of `server.pem`; `asks` refuses clients without one of the tests' authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(SERVER)
    if asks:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(CA)
    return context
