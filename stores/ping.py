"""Does a Redis answer? For whoever looks after the flow, beside the claims and their retries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

PING_SECONDS_MAX = 5.0


def ping(url: str, options: Mapping[str, Any] | None = None) -> None:
    """Ask once, on a connection of its own; of a cluster, the node of the address. Raises `redis.RedisError` if not.

    Args:
        url: Of the server.
        options: What redis-py takes beside the address: user, password, TLS files.
    """
    with redis.Redis.from_url(
        url,
        socket_timeout=PING_SECONDS_MAX,
        socket_connect_timeout=PING_SECONDS_MAX,
        retry=Retry(NoBackoff(), 0),
        **(options or {}),
    ) as client:
        client.ping()
