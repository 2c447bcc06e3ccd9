"""Addresses as callers write them."""

from __future__ import annotations

from collections.abc import Iterable


def broker_list(brokers: str | Iterable[str]) -> list[str]:
    """Kafka brokers, from text or a list.

    Raises:
        ValueError: says which is no `host:port`.
    """
    names = [name.strip() for name in (brokers.split(",") if isinstance(brokers, str) else brokers)]
    for name in names:
        host, colon, port = name.rpartition(":")
        if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise ValueError(f"brokers: {name!r} has no host and port; write host:port")
    if not names:
        raise ValueError("brokers is empty; write host:port")
    return names
