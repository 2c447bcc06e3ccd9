"""The Redis sink: signals on a channel, and what each subject has used of its quotas, for products to read.

A thread sends what the flow hands it: signals at once, preceded by the quotas that they are about; quotas
gathered, at most a few times a second, of each field only the newest state. The flow never waits for Redis but
at the barrier, where everything handed over so far must have been acknowledged.

Guarantees: at a barrier every signal was published at least once (readers know a repeat by its id), and every
quota touched is as new as the ledger. A write never turns a field back (`quota.lua`), so replays, an instance
that was replaced, and the restore beside the running flow change nothing.
Failure: calls that fail in passing are repeated for a bounded time, then the flow stops with a `TallyError`
and resumes at its last snapshot. A subscriber that is not connected misses signals; the Kafka topic keeps them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from typing_extensions import override

from domain.quota import QuotaState, QuotaStates, Signal, Watched
from domain.signals_json import QuotaField, signal_event
from domain.updates import PeriodKey
from sinks.partitions import SharedSink
from sinks.redis_quotas import Quotas
from sinks.rows import ERA

CHUNK_FIELDS = 500
"""Fields in one round trip: a bound on how long Redis is busy with them, and a signal waits behind them."""

PAUSE_SECONDS_MIN = 0.05
PAUSE_SHARE = 4
"""Quotas rest for at least this many times as long as sending them took: they must not slow the flow."""

SIGNALS_MAX = 100_000
"""A flow that finds more signals than this unsent waits."""

_Held = dict[PeriodKey, tuple[int, QuotaState, int, int]]
"""used, state, inputs and since by period."""


@dataclass(slots=True)
class Waiting:
    """What is not sent yet; of a period only the newest state."""

    signals: list[Signal] = field(default_factory=list)
    quotas: dict[tuple[str, str, int], tuple[QuotaStates, _Held]] = field(default_factory=dict)

    def add(self, item: Watched) -> None:
        self.signals += item.signals
        for states in item.quotas:
            family = (states.plan, states.entitlement.feature, states.catalog_version)
            _, held = self.quotas.setdefault(family, (states, {}))
            since = states.since or [0] * len(states.keys)
            rows = zip(states.used, states.states, states.inputs, since, strict=True)
            held.update(zip(states.keys, rows, strict=True))

    def urgent(self) -> list[QuotaField]:
        """Take out the quotas that the signals are about."""
        found = []
        for signal in self.signals:
            key = (signal.subject, signal.period_start_us, signal.period_end_us)
            for (_, feature, version), (states, held) in self.quotas.items():
                if feature == signal.feature and version == signal.catalog_version and key in held:
                    found.append(_field(states, key, *held.pop(key)))
        return found

    def fields(self) -> Iterator[QuotaField]:
        for states, held in self.quotas.values():
            for key, row in held.items():
                yield _field(states, key, *row)

    def __bool__(self) -> bool:
        return bool(self.signals or self.quotas)


def _field(states: QuotaStates, key: PeriodKey, used: int, state: QuotaState, inputs: int, since_us: int) -> QuotaField:
    subject, start, end = key
    entitlement = states.entitlement
    feature, limit, on_exceed = entitlement.feature, entitlement.limit, entitlement.on_exceed
    return QuotaField(subject, feature, used, limit, state, start, end, inputs, ERA, states.plan, on_exceed, since_us)


class Urgent(NamedTuple):
    """Signals, and the quotas that they are about."""

    signals: list[Signal]
    quotas: list[QuotaField]


class QuotaStore(Protocol):
    """What `sinks.redis_quotas.Quotas` does."""

    def write(self, fields: Sequence[QuotaField], *, live: bool) -> int: ...
    def publish(self, channel: str, messages: Sequence[bytes]) -> None: ...
    def was_restored(self) -> bool: ...
    def note_restored(self) -> None: ...
    def give_up(self) -> None: ...
    def rest(self, seconds: float) -> None: ...
    def close(self) -> None: ...


class Sender:
    """Sends what waits, by one thread at a time.

    Args:
        quotas: The way to Redis.
        channel: Where signals are published.
        told: Called with each signal that was published.
    """

    def __init__(self, quotas: QuotaStore, channel: str, told: Callable[[Signal], None] = lambda signal: None) -> None:
        self._quotas = quotas
        self._channel = channel
        self._told = told

    def send(self, waiting: Waiting, meanwhile: Callable[[], Urgent | None] = lambda: None) -> None:
        """Signals after the quotas they are about, so that who is told to look finds it.

        Args:
            waiting: What to send.
            meanwhile: Asked between two round trips for signals that came since: they do not wait for many quotas.
        """
        if waiting.signals:
            self._send_signals(Urgent(waiting.signals, waiting.urgent()))
        fields = waiting.fields()
        while chunk := list(islice(fields, CHUNK_FIELDS)):
            self._quotas.write(chunk, live=True)
            newer = meanwhile()
            if newer is not None:
                self._send_signals(newer)

    def _send_signals(self, urgent: Urgent) -> None:
        self._quotas.write(urgent.quotas, live=True)
        self._quotas.publish(self._channel, list(map(signal_event, urgent.signals)))
        for signal in urgent.signals:
            self._told(signal)

    def give_up(self) -> None:
        """Let a call under way fail soon, and every later one at once; may be called by another thread."""
        self._quotas.give_up()

    def close(self) -> None:
        self._quotas.close()


class RedisOutlet:
    """Gathers what the flow watches, and sends it on a thread of its own. For any number of threads.

    Args:
        sender: The way to Redis; closed at the end.
        check: Called at each barrier; may raise.
    """

    def __init__(self, sender: Sender, check: Callable[[], None] = lambda: None) -> None:
        self._sender = sender
        self._check = check
        self._changed = threading.Condition()
        self._waiting = Waiting()
        self._taken = 0
        self._sent = 0
        self._barriers = 0
        self._error: BaseException | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="redis-signals", daemon=True)
        self._thread.start()

    def write(self, items: list[Watched]) -> None:
        """Take items. Waits only while very many signals are unsent."""
        with self._changed:
            if len(self._waiting.signals) >= SIGNALS_MAX:
                self._changed.wait_for(lambda: self._error or not self._waiting.signals)
            self._raise()
            was_idle = not self._waiting
            for item in items:
                self._waiting.add(item)
            self._taken += 1
            if self._waiting.signals or (was_idle and self._waiting):
                self._changed.notify_all()

    def flush(self) -> None:
        """Return once Redis has acknowledged all that was taken before; raises what failed."""
        with self._changed:
            target = self._taken
            self._barriers += 1
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._error or self._sent >= target)
            self._barriers -= 1
            self._raise()
        self._check()

    def abandon(self) -> None:
        """End without sending what waits; raises nothing, may be called again."""
        self._sender.give_up()
        with self._changed:
            self._ended.set()
            self._changed.notify_all()
        self._thread.join()
        self._sender.close()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        pause = PAUSE_SECONDS_MIN
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._is_urgent())
                    self._changed.wait_for(self._is_urgent, pause)
                    if self._ended.is_set():
                        return
                    waiting, self._waiting = self._waiting, Waiting()
                    taken = self._taken
                begun = time.monotonic()
                if waiting:
                    self._sender.send(waiting, self._newer)
                with self._changed:
                    self._sent = taken
                    self._changed.notify_all()
                pause = max(PAUSE_SECONDS_MIN, PAUSE_SHARE * (time.monotonic() - begun))
        except BaseException as error:  # kept for the flow's own threads, which raise it
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _is_urgent(self) -> bool:
        return self._ended.is_set() or bool(self._waiting.signals) or (self._barriers > 0 and self._sent < self._taken)

    def _newer(self) -> Urgent | None:
        """Take out the signals that came just now, with their quotas."""
        with self._changed:
            if not self._waiting.signals:
                return None
            newer = Urgent(self._waiting.signals, self._waiting.urgent())
            self._waiting.signals = []
            return newer


class RedisSink(SharedSink[Watched]):
    """Publishes signals and keeps quota hashes.

    Args:
        url: redis://, rediss:// or unix://; of a cluster, any of its nodes.
        channel: Where signals are published.
        wait_seconds: How long an unreachable Redis is waited for.
        now_us: The clock that expiry goes by.
        options: More for redis-py's `from_url`: who to be, and TLS.
        told: Called with each signal that was published, by another thread; quick, and raises nothing.
    """

    def __init__(
        self,
        url: str,
        *,
        channel: str,
        wait_seconds: float,
        now_us: Callable[[], int],
        options: Mapping[str, Any] = MappingProxyType({}),
        told: Callable[[Signal], None] = lambda signal: None,
    ) -> None:
        self._quotas: Callable[[], Quotas] = lambda: Quotas(
            url, wait_seconds=wait_seconds, now_us=now_us, options=options
        )
        self._restoring: tuple[Quotas, threading.Thread] | None = None
        self._failure: BaseException | None = None
        super().__init__(lambda: RedisOutlet(Sender(self._quotas(), channel, told), self._raise))

    def restore(self, ledger: str, fields: Callable[[], Iterable[QuotaField]]) -> None:
        """Write all open quotas beside the flow that is about to run, unless this Redis was given them before.

        Args:
            ledger: Whose quotas they are; those of another are dropped before this returns.
            fields: Reads them; called on another thread, if at all. What it raises stops the flow at a barrier.
        """
        quotas = self._quotas()
        quotas.adopt(ledger)
        thread = threading.Thread(target=self._restore, args=(quotas, fields), name="quota-restore", daemon=True)
        self._restoring = (quotas, thread)
        thread.start()

    def wait_restored(self) -> None:
        """Return once the restore has ended; raises what it failed with."""
        if self._restoring is not None:
            self._restoring[1].join()
        self._raise()

    @override
    def close(self) -> None:
        """End what the flow leaves behind, the restore too."""
        super().close()
        if self._restoring is not None:
            quotas, thread = self._restoring
            quotas.give_up()
            thread.join()
            quotas.close()

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _restore(self, quotas: Quotas, read: Callable[[], Iterable[QuotaField]]) -> None:
        try:
            restore(quotas, read)
        except BaseException as error:  # kept for the flow's own threads, which raise it
            self._failure = error


def restore(quotas: QuotaStore, read: Callable[[], Iterable[QuotaField]]) -> None:
    """Write all open quotas, unless this Redis was given them before."""
    if quotas.was_restored():
        return
    fields = iter(read())
    while chunk := list(islice(fields, CHUNK_FIELDS)):
        begun = time.monotonic()
        quotas.write(chunk, live=False)
        quotas.rest(time.monotonic() - begun)
    quotas.note_restored()
