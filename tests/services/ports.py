"""Ports for servers that must be told theirs."""

from __future__ import annotations

import socket


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on just now; held all at once, so that they differ."""
    held = [socket.socket() for _ in range(count)]
    try:
        for some in held:
            some.bind(("127.0.0.1", 0))
        return [int(some.getsockname()[1]) for some in held]
    finally:
        for some in held:
            some.close()
