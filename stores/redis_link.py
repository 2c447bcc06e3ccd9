"""Commands and one script on a Redis server or a Redis Cluster, reached with patience.

Guarantees: after `meet`, a call either is answered by a server process that `meet` met, or raises. Calls
that fail in passing (network, start, failover, full memory) are repeated with growing pauses within a
stated bound, so every command sent through here must bear repetition.
Failure: `ClaimsUnavailable` after the bound, `ClaimsLost` when another process answers or a key moved,
`TallyError` for a refusal that waiting does not cure. Messages never hold the password.
"""

from __future__ import annotations

import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha1
from typing import Any, TypeVar

import redis
from redis.exceptions import AskError, AuthorizationError, ClusterDownError, NoScriptError, TryAgainError

from domain.ports import ClaimsUnavailable, TallyError
from stores.pipe import Argument, Connection, Pipe
from stores.servers import Address, Server, Servers

T = TypeVar("T")

SOCKET_TIMEOUT_SECONDS_MAX = 10.0
BACKOFF_SECONDS_MIN = 0.02
BACKOFF_SECONDS_MAX = 1.0
SCAN_KEYS = 500
_PASSING = re.compile(r"\b(BUSY|LOADING|READONLY|OOM|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|MISCONF|non local key)\b")
"""Codes of refusals that pass by themselves or by an operator's hand. Before Redis 7, one met inside
a script stands in the middle of the message. A script finds a non local key while its slot migrates."""


class RedisLink:
    """For any number of threads, each with connections of its own.

    `options` is what redis-py takes beside the address (user, password, TLS), `known` as in `Servers`.
    """

    def __init__(
        self,
        url: str,
        *,
        script: bytes,
        wait_seconds: float,
        options: Mapping[str, Any] | None = None,
        known: list[Address] | None = None,
    ) -> None:
        self._servers = Servers(url, min(wait_seconds, SOCKET_TIMEOUT_SECONDS_MAX), options or {}, known)
        self.address = self._servers.address
        self._wait_seconds = wait_seconds
        self._script = script
        self._sha = sha1(script, usedforsecurity=False).hexdigest()
        self._own = threading.local()
        self._pipes: list[Pipe] = []
        self._pipes_lock = threading.Lock()

    def meet(self, keys: Sequence[str]) -> list[Server]:
        """From now on only the masters that answer now will do, and keys may not move between them."""
        self.close()
        return self._retried(lambda: self._servers.meet(keys), look_again=False)

    def identity(self, key: str) -> str:
        """Which server process, as it was met, holds a key."""
        return self._servers.identity(key)

    def name(self, server: Address) -> str:
        """For messages: an address without secrets."""
        return self._servers.name(server)

    def do(self, command: str, key: str, *arguments: Argument) -> Any:
        """One command; its reply, texts as bytes. Not while rounds of this thread are under way."""
        return self._now(lambda: [(self._servers.home(key), (command, key, *arguments))])[0]

    def fields(self, key: str) -> dict[bytes, bytes]:
        """All fields of a hash; empty if there is none."""
        found = self.do("HGETALL", key)
        return dict(zip(found[::2], found[1::2], strict=True))

    def scan(self, pattern: str) -> Iterator[list[str]]:
        """Every key that matches, of every master that was met; some may come twice."""
        for master in self._servers.masters:
            yield from self._scan(master, pattern)

    def _scan(self, master: Address, pattern: str) -> Iterator[list[str]]:
        cursor = b"0"
        while True:
            command: Sequence[Argument] = ("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_KEYS)
            cursor, keys = self._now(lambda command=command: [(master, command)])[0]  # type: ignore[misc]
            if keys:
                yield [key.decode() for key in keys]
            if int(cursor) == 0:
                return

    def evaluate(self, calls: Sequence[tuple[str, Sequence[Argument]]]) -> list[Any]:
        """Run the script once for each (key, arguments), in one round trip, and return its replies."""
        return self._now(lambda: self._evals(calls))

    def send(self, calls: Sequence[tuple[str, Sequence[Argument]]]) -> None:
        """Let the script run once for each (key, arguments); `receive` has the replies. After `meet` only.

        Raises:
            ClaimsLost, TallyError: of a new connection. What fails in passing is left to `receive`.
        """
        pipe = self._pipe()
        self._guarded(pipe, lambda: pipe.send(self._evals(calls)))

    def receive(self) -> list[Any]:
        """Wait for the replies to the oldest round that this thread sent.

        Raises:
            ClaimsLost, ClaimsUnavailable, TallyError: this thread's rounds are then forgotten.
        """
        pipe = self._pipe()
        return self._guarded(pipe, lambda: self._retried(pipe.collect)).replies

    def abandon(self) -> None:
        """Forget what this thread has under way."""
        self._pipe().abandon()

    def close(self) -> None:
        """Close the connections; a later call opens new ones."""
        with self._pipes_lock:
            for pipe in self._pipes:
                pipe.disconnect()

    def _evals(self, calls: Sequence[tuple[str, Sequence[Argument]]]) -> list[tuple[Address, Sequence[Argument]]]:
        return [(self._servers.home(key), ("EVALSHA", self._sha, 1, key, *arguments)) for key, arguments in calls]

    def _now(self, calls: Callable[[], list[tuple[Address, Sequence[Argument]]]]) -> list[Any]:
        """One round, begun anew after each failure: a key may be at home elsewhere by then."""
        pipe = self._pipe()
        assert not pipe.rounds, "not while rounds of this thread are under way"

        def attempt() -> list[Any]:
            pipe.send(calls())
            try:
                return pipe.collect().replies
            except BaseException:
                pipe.abandon()
                raise

        return self._guarded(pipe, lambda: self._retried(attempt))

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

    def _connect(self, server: Address) -> Connection:
        """A connection to a server that was met, which knows the script."""
        connection = self._servers.connect(server)
        try:
            connection.send_command("SCRIPT", "LOAD", self._script)
            connection.read_response()
        except BaseException:
            connection.disconnect()
            raise
        found: Connection = connection
        return found

    def _retried(self, attempt: Callable[[], T], look_again: bool = True) -> T:
        deadline, pause_seconds = time.monotonic() + self._wait_seconds, BACKOFF_SECONDS_MIN
        again = False
        while True:
            try:
                if again and look_again:
                    self._servers.look_again()
                return attempt()
            except redis.RedisError as error:
                if not _passes(error):
                    raise TallyError(f"Redis at {self.address} refused ({_said(error)}): {_remedy(error)}") from error
                if time.monotonic() + pause_seconds > deadline:
                    raise ClaimsUnavailable(
                        f"Redis at {self.address} gave no answer for {self._wait_seconds:g} s ({_said(error)}): see "
                        "that it runs, is writable, has memory left and can be reached from here, then start again"
                    ) from error
            time.sleep(pause_seconds)
            pause_seconds = min(2 * pause_seconds, BACKOFF_SECONDS_MAX)
            again = True


def _said(error: redis.RedisError) -> str:
    """What the server answered, with the code that redis-py cuts off."""
    text, code = str(error), getattr(error, "status_code", None) or ""
    return text if text.startswith(code) else f"{code} {text}"


def _passes(error: redis.RedisError) -> bool:
    """Whether trying again, on a new connection that loads the script, can help."""
    match error:
        case redis.AuthenticationError() | AuthorizationError():
            return False
        case redis.ConnectionError() if isinstance(error.__context__, ssl.SSLCertVerificationError):
            return False
        case redis.ConnectionError() | redis.TimeoutError() | redis.ReadOnlyError() | redis.OutOfMemoryError():
            return True
        case ClusterDownError() | TryAgainError() | NoScriptError() | AskError():
            return True
        case _:
            return _PASSING.search(str(error)) is not None


def _remedy(error: redis.RedisError) -> str:
    if isinstance(error.__context__, ssl.SSLCertVerificationError):
        return "is the host name right? A certificate of your own authority needs TALLY_REDIS_CA_FILE"
    return "check TALLY_REDIS_URL, or TALLY_REDIS_USERNAME and TALLY_REDIS_PASSWORD"
