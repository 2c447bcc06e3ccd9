"""A Redis server that must stay the same process, reached with patience.

Guarantees: a call either is answered by the server process that `meet` met, or raises. Calls that
fail in passing (network, start, failover, full memory) are repeated with growing pauses within a
stated bound, so every command sent through here must bear repetition.
Failure: `ClaimsUnavailable` after the bound, `ClaimsLost` when another process answers, `TallyError`
for a refusal that waiting does not cure. Messages never hold the password.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from hashlib import sha1
from typing import Any, TypeVar
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthorizationError, ClusterDownError, NoScriptError, TryAgainError
from redis.retry import Retry

from domain.ports import ClaimsLost, ClaimsUnavailable, TallyError

T = TypeVar("T")
Argument = str | int | bytes

SOCKET_TIMEOUT_SECONDS_MAX = 10.0
BACKOFF_SECONDS_MIN = 0.02
BACKOFF_SECONDS_MAX = 1.0
_PASSING = re.compile(r"\b(BUSY|LOADING|READONLY|OOM|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|MISCONF)\b")
"""Codes of refusals that pass by themselves or by an operator's hand. Before Redis 7, one met inside
a script stands in the middle of the message."""


class RedisLink:
    """Commands and one script on one server; for any number of threads."""

    def __init__(self, url: str, *, script: bytes, wait_seconds: float) -> None:
        self.address = _address(url)
        self._wait_seconds = wait_seconds
        self._script = script
        self._sha = sha1(script, usedforsecurity=False).hexdigest()
        self._run_id: str | None = None
        timeout_seconds = min(wait_seconds, SOCKET_TIMEOUT_SECONDS_MAX)
        connected: Any = self._connected
        self._redis: Any = redis.Redis.from_url(
            url,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            retry=Retry(NoBackoff(), 0),
            redis_connect_func=connected,
        )

    def meet(self) -> dict[str, Any]:
        """From now on only the server process that answers now will do. Returns its INFO."""
        self._run_id = None
        self._redis.connection_pool.disconnect()
        info: dict[str, Any] = self._retried(self._redis.info)
        self._run_id = str(info["run_id"])
        return info

    def do(self, *command: Argument) -> Any:
        """One command; its reply as redis-py gives it, texts as bytes."""
        return self._retried(lambda: self._redis.execute_command(*command))

    def fields(self, key: str) -> dict[bytes, bytes]:
        """All fields of a hash; empty if there is none."""
        found: dict[bytes, bytes] = self._retried(lambda: self._redis.hgetall(key))
        return found

    def evaluate(self, calls: Sequence[tuple[str, Sequence[Argument]]]) -> list[Any]:
        """Run the script once for each (key, arguments), in one round trip, and return its replies."""
        return self._retried(lambda: self._evaluate(calls))

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        self._redis.close()

    def _evaluate(self, calls: Sequence[tuple[str, Sequence[Argument]]]) -> list[Any]:
        with self._redis.pipeline(transaction=False) as pipe:
            for key, arguments in calls:
                pipe.execute_command("EVALSHA", self._sha, 1, key, *arguments)
            replies: list[Any] = pipe.execute(raise_on_error=False)
        errors = [reply for reply in replies if isinstance(reply, Exception)]
        if any(isinstance(error, NoScriptError) for error in errors):
            self._redis.script_load(self._script)
            return self._evaluate(calls)
        if errors:
            raise errors[0]
        return replies

    def _connected(self, connection: Any) -> None:
        """On each new connection: refuse another server process than the one that was met."""
        connection.on_connect()
        if self._run_id is None:
            return
        connection.send_command("INFO", "server")
        found = re.search(rb"run_id:(\w+)", connection.read_response())
        if found is None or found[1].decode() != self._run_id:
            connection.disconnect()
            raise ClaimsLost(
                f"Redis at {self.address} is another server process than at the start (restarted or failed over) "
                "and may have lost claims: restart, so that they are rebuilt from the ledger"
            )

    def _retried(self, attempt: Callable[[], T]) -> T:
        deadline, pause_seconds = time.monotonic() + self._wait_seconds, BACKOFF_SECONDS_MIN
        while True:
            try:
                return attempt()
            except redis.RedisError as error:
                if not _passes(error):
                    raise TallyError(f"Redis at {self.address} refused ({error}): check TALLY_REDIS_URL") from error
                if time.monotonic() + pause_seconds > deadline:
                    raise ClaimsUnavailable(
                        f"Redis at {self.address} gave no answer for {self._wait_seconds:g} s ({error}): see that it "
                        "runs, is writable, has memory left and can be reached from here, then start again"
                    ) from error
            time.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, BACKOFF_SECONDS_MAX)


def _passes(error: redis.RedisError) -> bool:
    """Whether trying again can help."""
    match error:
        case redis.AuthenticationError() | AuthorizationError():
            return False
        case redis.ConnectionError() | redis.TimeoutError() | redis.ReadOnlyError() | redis.OutOfMemoryError():
            return True
        case ClusterDownError() | TryAgainError():
            return True
        case _:
            return _PASSING.search(str(error)) is not None


def _address(url: str) -> str:
    """The URL without user and password (nor query, which may hold them)."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
