"""Ports for servers that must be told theirs."""

from __future__ import annotations

import random
import socket

_QUIET = range(23_000, 30_000)


def quiet_port() -> int:
    """A port that nobody listens on, below those that the kernel gives to clients: nobody takes it by chance."""
    while True:
        port = random.SystemRandom().choice(_QUIET)
        with socket.socket() as some:
            try:
                some.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


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
