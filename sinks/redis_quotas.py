"""Quota hashes and channels on one Redis server or a Redis Cluster, reached with patience.

Calls that fail in passing (network, start, failover, full memory, slots that move) are repeated with growing
pauses for a bounded time; every call bears repetition. Then, and for a refusal that waiting does not cure, a
`TallyError` says what to do. Messages never hold the password.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import sha1
from importlib.resources import files
from itertools import islice
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec
import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import AskError, AuthorizationError, ClusterDownError, NoScriptError, TryAgainError
from redis.retry import Retry

from domain.ports import TallyError
from domain.signals_json import QuotaField, instant_text, quota_key, quota_value
from domain.values import DAY_US

T = TypeVar("T")

KEEP_US = 7 * DAY_US
"""A subject's hash is kept this long after the last of its periods: readers take such a quota as unused anyway."""

SOCKET_TIMEOUT_SECONDS_MAX = 5.0
_PAUSE_SECONDS_MIN = 0.02
_PAUSE_SECONDS_MAX = 1.0
_PASSING = re.compile(r"\b(BUSY|LOADING|READONLY|OOM|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|MISCONF)\b")

_SCRIPT = files(__package__).joinpath("quota.lua").read_bytes()
_SHA = sha1(_SCRIPT, usedforsecurity=False).hexdigest()
_MARKS = "tallyflow:quotas"
"""A hash: the ledger that all quotas are of, and the server process that was given them all."""

_SCAN_KEYS = 1000
_pack = msgspec.msgpack.Encoder().encode


class Quotas:
    """Writes of one thread. `give_up` may be called by another.

    Args:
        url: redis://, rediss:// or unix://; of a cluster, any of its nodes.
        wait_seconds: How long a call that fails in passing is repeated.
        now_us: The clock that expiry goes by.
        options: More for redis-py's `from_url`: who to be, and TLS. May hold a password.
    """

    def __init__(
        self,
        url: str,
        *,
        wait_seconds: float,
        now_us: Callable[[], int],
        options: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self._url = url
        timeout = min(wait_seconds, SOCKET_TIMEOUT_SECONDS_MAX)
        self._options = {"socket_timeout": timeout, "socket_connect_timeout": timeout, **options}
        self._wait_seconds = wait_seconds
        self._now_us = now_us
        self._given_up = threading.Event()
        self._client: Any = None
        self._is_cluster = False

    def write(self, fields: Sequence[QuotaField], *, live: bool) -> int:
        """Write the fields that are not older than what is there; returns how many.

        Args:
            fields: Of many subjects; those of a period that ended long ago are left out.
            live: Whether they come from the running flow, in order; else a change of plans is left as it is.
        """
        now_us = self._now_us()
        kept = [f for f in fields if f.period_end_us + KEEP_US > now_us]

        def write() -> int:
            written = 0
            for server, groups in self._by_server(kept):
                calls = [_call(group, now_us, live) for group in groups]
                written += sum(_evaluate(server, calls))
            return written

        return self._retried(write) if kept else 0

    def publish(self, channel: str, messages: Sequence[bytes]) -> None:
        """Publish messages, in order. When some of them fail, all are sent again."""
        # Of a cluster always by the same node, else they would arrive in another order.
        commands = [("PUBLISH", channel, message) for message in messages]
        self._retried(lambda: _pipelined(self._server_of(channel), commands))

    def adopt(self, ledger: str) -> int:
        """Drop every quota, unless they are known to be of this ledger; returns how many hashes were dropped.

        Totals of another ledger may be higher, and would never be replaced. To be called before the flow runs.
        """
        if self._retried(lambda: self._is_of(ledger)):
            return 0
        dropped = self._retried(lambda: self._drop(ledger))
        self._retried(lambda: self._marks().delete(_MARKS))
        self._retried(lambda: self._marks().hset(_MARKS, "ledger", ledger))
        return dropped

    def was_restored(self) -> bool:
        """Whether this very server process was given everything before, and was not flushed since.

        Of a cluster this is not known: one of its nodes may have lost its part.
        """
        run_id = self._retried(self._run_id)
        return run_id is not None and self._retried(lambda: self._marks().hget(_MARKS, "restored")) == run_id

    def note_restored(self) -> None:
        """Record that this server process was given everything."""
        run_id = self._retried(self._run_id)
        if run_id is not None:
            self._retried(lambda: self._marks().hset(_MARKS, "restored", run_id))

    def give_up(self) -> None:
        """Let a call under way fail soon, and every later one at once."""
        self._given_up.set()

    def rest(self, seconds: float) -> None:
        """Do nothing for a while, unless told to give up."""
        self._given_up.wait(seconds)

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()

    def _by_server(self, fields: Sequence[QuotaField]) -> Iterator[tuple[Any, list[list[QuotaField]]]]:
        """Each server with its fields, in groups that one call may take: of a cluster, those of one subject."""
        client = self._redis()
        if not self._is_cluster:
            yield client, [list(fields)]
            return
        by_subject: dict[str, list[QuotaField]] = {}
        for field in fields:
            by_subject.setdefault(field.subject, []).append(field)
        by_server: dict[Any, list[list[QuotaField]]] = {}
        for subject, group in by_subject.items():
            by_server.setdefault(self._server_of(quota_key(subject)), []).append(group)
        yield from by_server.items()

    def _marks(self) -> Any:
        return self._server_of(_MARKS)

    def _is_of(self, ledger: str) -> bool:
        return bool(self._marks().hget(_MARKS, "ledger") == ledger.encode())

    def _drop(self, ledger: str) -> int:
        client, dropped = self._redis(), 0
        nodes = client.get_primaries() if self._is_cluster else []
        for server in [client.get_redis_connection(node) for node in nodes] or [client]:
            keys = server.scan_iter(match=quota_key("*"), count=_SCAN_KEYS)
            while chunk := list(islice(keys, _SCAN_KEYS)):
                if self._is_of(ledger):
                    return dropped  # this start slept meanwhile, and its successor has begun to write
                _pipelined(server, [("UNLINK", key) for key in chunk])  # one by one: they are of many slots
                dropped += len(chunk)
        return dropped

    def _server_of(self, key: str) -> Any:
        """A plain client of the server that has a key: redis-py's own routing costs ten times as much a command."""
        client = self._redis()
        if not self._is_cluster:
            return client
        return client.get_redis_connection(client.nodes_manager.get_node_from_slot(key_slot(key.encode())))

    def _redis(self) -> Any:
        """The client; of a cluster if the server says so."""
        if self._client is None:
            client = redis.Redis.from_url(self._url, retry=Retry(NoBackoff(), 0), **self._options)
            self._is_cluster = bool(client.info("cluster").get("cluster_enabled"))
            if self._is_cluster:
                client.close()
                self._client = redis.RedisCluster.from_url(self._url, **self._options)
            else:
                self._client = client
        return self._client

    def _run_id(self) -> bytes | None:
        client = self._redis()
        return None if self._is_cluster else str(client.info("server")["run_id"]).encode()

    def _retried(self, attempt: Callable[[], T]) -> T:
        give_up, pause = time.monotonic() + self._wait_seconds, _PAUSE_SECONDS_MIN
        while True:
            try:
                return attempt()
            except (redis.RedisError, redis.RedisClusterException) as error:
                if not _passes(error):
                    raise TallyError(
                        f"Redis at {_address(self._url)} refused to take signals or quotas ({error}): "
                        "check TALLY_REDIS_URL and what its user may do"
                    ) from error
                if time.monotonic() + pause > give_up or self._given_up.is_set():
                    raise TallyError(
                        f"Redis at {_address(self._url)} did not take signals and quotas in {self._wait_seconds:g} s "
                        f"({error}). Nothing is lost: the flow resumes at its last snapshot once Redis answers."
                    ) from error
                self._rediscover()
            self._given_up.wait(pause)
            pause = min(2 * pause, _PAUSE_SECONDS_MAX)

    def _rediscover(self) -> None:
        """Ask a cluster anew who has which slots."""
        if self._client is not None and self._is_cluster:
            with suppress(redis.RedisError, redis.RedisClusterException):
                self._client.nodes_manager.initialize()


def _call(fields: Sequence[QuotaField], now_us: int, live: bool) -> tuple[Any, ...]:
    entries = [
        (
            f.feature,
            (f.period_end_us + KEEP_US) // 1000,
            f.era,
            instant_text(f.period_start_us),
            instant_text(f.period_end_us),
            f.inputs,
            f.plan,
            instant_text(f.since_us) if f.since_us else "",
            quota_value(f),
        )
        for f in fields
    ]
    keys = [quota_key(f.subject) for f in fields]
    return ("EVALSHA", _SHA, len(keys), *keys, _pack((now_us // 1000, instant_text(now_us), live, entries)))


def _evaluate(server: Any, calls: list[tuple[Any, ...]]) -> list[Any]:
    try:
        return _pipelined(server, calls)
    except NoScriptError:
        server.script_load(_SCRIPT)
        return _pipelined(server, calls)


def _pipelined(server: Any, commands: list[tuple[Any, ...]]) -> list[Any]:
    with server.pipeline(transaction=False) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        replies: list[Any] = pipe.execute(raise_on_error=False)
    errors = [reply for reply in replies if isinstance(reply, Exception)]
    if errors:
        raise errors[0]
    return replies


def _passes(error: Exception) -> bool:
    """Whether trying again can help."""
    match error:
        case redis.AuthenticationError() | AuthorizationError():
            return False
        case redis.ConnectionError() | redis.TimeoutError() | redis.ReadOnlyError() | redis.OutOfMemoryError():
            return True
        case ClusterDownError() | TryAgainError() | AskError():  # MOVED is one too
            return True
        case redis.RedisClusterException():
            return True
        case _:
            return _PASSING.search(str(error)) is not None


def _address(url: str) -> str:
    """The URL without user and password (nor query, which may hold them)."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
