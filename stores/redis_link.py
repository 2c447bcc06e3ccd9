"""A Redis server that must stay the same process, reached with patience.

Guarantees: a call either is answered by the server process that `meet` met, or raises. Calls that
fail in passing (network, start, failover, full memory) are repeated with growing pauses within a
stated bound, so every command sent through here must bear repetition.
Failure: `ClaimsUnavailable` after the bound, `ClaimsLost` when another process answers, `TallyError`
for a refusal that waiting does not cure. Messages never hold the password.
"""

from __future__ import annotations

import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha1
from typing import Any, TypeVar
from urllib.parse import urlsplit

import redis
from redis.exceptions import AuthorizationError, ClusterDownError, NoScriptError, TryAgainError
from redis.maint_notifications import MaintNotificationsConfig

from domain.ports import ClaimsLost, ClaimsUnavailable, TallyError
from stores.pipe import Argument, Connection, Pipe

T = TypeVar("T")

SOCKET_TIMEOUT_SECONDS_MAX = 10.0
BACKOFF_SECONDS_MIN = 0.02
BACKOFF_SECONDS_MAX = 1.0
_PASSING = re.compile(r"\b(BUSY|LOADING|READONLY|OOM|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|MISCONF)\b")
"""Codes of refusals that pass by themselves or by an operator's hand. Before Redis 7, one met inside
a script stands in the middle of the message."""
_SERVER = None
"""What a pipe calls the one server."""


class RedisLink:
    """Commands and one script on one server; for any number of threads, each with a connection of its own.

    `options` is what redis-py takes beside the address (user, password, TLS).
    """

    def __init__(
        self, url: str, *, script: bytes, wait_seconds: float, options: Mapping[str, Any] | None = None
    ) -> None:
        self.address = _address(url)
        self._wait_seconds = wait_seconds
        self._script = script
        self._sha = sha1(script, usedforsecurity=False).hexdigest()
        self._run_id: str | None = None
        timeout_seconds = min(wait_seconds, SOCKET_TIMEOUT_SECONDS_MAX)
        pool = redis.ConnectionPool.from_url(
            url,
            socket_timeout=timeout_seconds,
            socket_connect_timeout=timeout_seconds,
            protocol=2,
            driver_info=None,
            maint_notifications_config=MaintNotificationsConfig(enabled=False),
            **(options or {}),
        )
        self._new_connection: Callable[[], Any] = lambda: pool.connection_class(**pool.connection_kwargs)
        self._own = threading.local()
        self._pipes: list[Pipe] = []
        self._pipes_lock = threading.Lock()

    def meet(self) -> Mapping[str, str]:
        """From now on only the server process that answers now will do. Returns its INFO."""
        self._run_id = None
        self.close()
        info = _parsed(self.do("INFO"))
        self._run_id = info["run_id"]
        return info

    @property
    def servers(self) -> list[str]:
        """The server processes that `meet` met."""
        assert self._run_id is not None, "servers before meet()"
        return [self._run_id]

    def do(self, *command: Argument) -> Any:
        """One command; its reply, texts as bytes. Not while rounds of this thread are under way."""
        return self._now([command])[0]

    def fields(self, key: str) -> dict[bytes, bytes]:
        """All fields of a hash; empty if there is none."""
        found = self.do("HGETALL", key)
        return dict(zip(found[::2], found[1::2], strict=True))

    def evaluate(self, calls: Sequence[tuple[str, Sequence[Argument]]]) -> list[Any]:
        """Run the script once for each (key, arguments), in one round trip, and return its replies."""
        self.send(calls)
        assert self.under_way == 1, "not while rounds of this thread are under way"
        return self.receive()

    def send(self, calls: Sequence[tuple[str, Sequence[Argument]]]) -> None:
        """Let the script run once for each (key, arguments); `receive` has the replies.

        Raises:
            ClaimsLost, TallyError: of a new connection. What fails in passing is left to `receive`.
        """
        pipe = self._pipe()
        self._guarded(pipe, lambda: pipe.send([(_SERVER, self._eval(*call)) for call in calls]))

    def receive(self) -> list[Any]:
        """Wait for the replies to the oldest round that this thread sent.

        Raises:
            ClaimsLost, ClaimsUnavailable, TallyError: this thread's rounds are then forgotten.
        """
        pipe = self._pipe()
        return self._guarded(pipe, lambda: self._retried(pipe.collect)).replies

    @property
    def under_way(self) -> int:
        """How many rounds this thread has sent and not received."""
        return len(self._pipe().rounds)

    def abandon(self) -> None:
        """Forget what this thread has under way."""
        self._pipe().abandon()

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        with self._pipes_lock:
            for pipe in self._pipes:
                pipe.disconnect()

    def _eval(self, key: str, arguments: Sequence[Argument]) -> Sequence[Argument]:
        return ("EVALSHA", self._sha, 1, key, *arguments)

    def _now(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        pipe = self._pipe()
        assert not pipe.rounds, "not while rounds of this thread are under way"
        self._guarded(pipe, lambda: pipe.send([(_SERVER, command) for command in commands]))
        return self.receive()

    def _pipe(self) -> Pipe:
        pipe: Pipe | None = getattr(self._own, "pipe", None)
        if pipe is None:
            pipe = self._own.pipe = Pipe(self._connect)
            with self._pipes_lock:
                self._pipes.append(pipe)
        return pipe

    @staticmethod
    def _guarded(pipe: Pipe, act: Callable[[], T]) -> T:
        """After an error nothing of a pipe is under way any more."""
        try:
            return act()
        except BaseException:
            pipe.abandon()
            raise

    def _connect(self, server: None) -> Connection:
        """A connection to the server process that was met, which knows the script."""
        connection = self._new_connection()
        try:
            connection.connect()
            self._recognise(connection)
            connection.send_command("SCRIPT", "LOAD", self._script)
            connection.read_response()
        except BaseException:
            connection.disconnect()
            raise
        found: Connection = connection
        return found

    def _recognise(self, connection: Any) -> None:
        if self._run_id is None:
            return
        connection.send_command("INFO", "server")
        if _parsed(connection.read_response()).get("run_id") != self._run_id:
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
                    raise TallyError(f"Redis at {self.address} refused ({error}): {_remedy(error)}") from error
                if time.monotonic() + pause_seconds > deadline:
                    raise ClaimsUnavailable(
                        f"Redis at {self.address} gave no answer for {self._wait_seconds:g} s ({error}): see that it "
                        "runs, is writable, has memory left and can be reached from here, then start again"
                    ) from error
            time.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, BACKOFF_SECONDS_MAX)


def _passes(error: redis.RedisError) -> bool:
    """Whether trying again, on a new connection that loads the script, can help."""
    match error:
        case redis.AuthenticationError() | AuthorizationError():
            return False
        case redis.ConnectionError() if isinstance(error.__context__, ssl.SSLCertVerificationError):
            return False
        case redis.ConnectionError() | redis.TimeoutError() | redis.ReadOnlyError() | redis.OutOfMemoryError():
            return True
        case ClusterDownError() | TryAgainError() | NoScriptError():
            return True
        case _:
            return _PASSING.search(str(error)) is not None


def _remedy(error: redis.RedisError) -> str:
    if isinstance(error.__context__, ssl.SSLCertVerificationError):
        return "is the host name right? A certificate of your own authority needs TALLY_REDIS_CA_FILE"
    return "check TALLY_REDIS_URL, or TALLY_REDIS_USERNAME and TALLY_REDIS_PASSWORD"


def _parsed(info: bytes) -> dict[str, str]:
    """The fields of a reply to INFO."""
    lines = (line.partition(":") for line in info.decode().splitlines())
    return {name: value for name, colon, value in lines if colon}


def _address(url: str) -> str:
    """The URL without user and password (nor query, which may hold them)."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
