"""`UsageEmitter`: reports usage without getting in the way of what is being used."""

from __future__ import annotations

import logging
import re
import time as clock
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime
from typing import Any, Literal, get_args

from tallyflow import _lifetime
from tallyflow._delivery import BufferFull, Delivery, EmitterStats, OnFull, Reason, Undelivered
from tallyflow._names import broker_list
from tallyflow._producer import KAFKA_OPTIONS, OWN_OPTIONS, Options
from tallyflow.events import UsageEvent, encode

log = logging.getLogger("tallyflow")

DROP_LOG_SECONDS = 10.0
"""Dropped events are logged at most so often; all of them are counted and given to `on_error`."""
SUBSCRIPTION_TYPE = "tallyflow.subscription"
_SUBSCRIPTION_KEYS = {
    "create": frozenset({"plan", "start", "end", "timezone"}),
    "change": frozenset({"plan"}),
    "end": frozenset({"end"}),
}
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")


class UsageEmitter:
    """Sends usage events to tallyflow's Kafka topic, in the background.

    `emit` checks and encodes the event, puts it into a buffer and returns. Connecting, batching,
    sending and retrying are the business of a background thread, so the caller never waits for a
    broker; safe from any number of threads, and from asyncio as it is (except with
    `on_full="block"`, which may hold up the event loop for `block_seconds_max`).

    An event is sent until the broker has acknowledged it (all in-sync replicas), for at most
    `delivery_seconds_max`. It keeps its id, so what is sent twice counts once. Events that could not
    be delivered are counted, logged, and given to `on_error`. What is in the buffer is lost if the
    process is killed; at a normal exit it is flushed, for at most `exit_seconds_max`.

    Args:
        brokers: `host:port`, several separated by commas or in a list.
        topic: where tallyflow reads; it has to exist.
        source: who reports, for instance `/services/gateway`. With the event's id it is the idempotency key,
            so instances of one service share it.
        on_full: what `emit` does when the buffer is full. `raise`: `BufferFull`. `drop`: the event goes to
            `on_error` and `emit` returns. `block`: wait for `block_seconds_max`, then raise.
        on_error: called with events that were not delivered: by the background thread, for a dropped event
            by the thread that emitted it, and by `close`. It should be quick; what it raises is logged.
        linger_seconds: how long an event may wait for others to share a batch with.
        buffer_events_max, buffer_bytes_max: bounds of the buffer, unacknowledged events included. Kafka's
            client keeps a copy, so the process may need about twice the bytes.
        kafka_options: more options for kafka-python's producer: `security_protocol`, `sasl_mechanism`,
            `sasl_plain_username`, `sasl_plain_password`, `ssl_cafile`, `compression_type` ...

    Raises:
        ValueError: an argument is no use; says which.
    """

    def __init__(
        self,
        brokers: str | Iterable[str],
        topic: str = "usage.events",
        *,
        source: str,
        on_full: OnFull = "raise",
        on_error: Callable[[Undelivered], None] | None = None,
        linger_seconds: float = 0.02,
        buffer_events_max: int = 100_000,
        buffer_bytes_max: int = 64 * 1024 * 1024,
        block_seconds_max: float = 0.05,
        delivery_seconds_max: float = 300.0,
        exit_seconds_max: float = 5.0,
        kafka_options: Mapping[str, Any] | None = None,
    ) -> None:
        options = dict(kafka_options or {})
        _check_options(options)
        if not _TOPIC.fullmatch(topic):
            raise ValueError(f"topic {topic!r} is no topic name: use letters, digits and ._- (at most 249)")
        if not source:
            raise ValueError("source is empty: name the service that reports, for instance /services/gateway")
        if on_full not in get_args(OnFull):
            raise ValueError(f"on_full is {on_full!r}: use raise, drop or block")
        for name, value, least in (
            ("linger_seconds", linger_seconds, 0),
            ("buffer_events_max", buffer_events_max, 1),
            ("buffer_bytes_max", buffer_bytes_max, 2 * 1024 * 1024),
            ("block_seconds_max", block_seconds_max, 0),
            ("delivery_seconds_max", delivery_seconds_max, linger_seconds + 1),
            ("exit_seconds_max", exit_seconds_max, 0),
        ):
            if not least <= value < float("inf"):
                raise ValueError(f"{name} is {value}: use {least} or more")
        self._on_full: OnFull = on_full
        self._on_error = on_error
        self._quiet_until = 0.0
        self._options = Options(
            ",".join(broker_list(brokers)),
            topic,
            source,
            linger_seconds,
            buffer_events_max,
            buffer_bytes_max,
            block_seconds_max,
            delivery_seconds_max,
            exit_seconds_max,
            options,
        )
        self._delivery = Delivery(self._options, self._report)
        _lifetime.register(self)

    def emit(
        self,
        type: str,
        subject: str,
        data: Mapping[str, Any],
        *,
        id: str | None = None,
        time: datetime | None = None,
    ) -> str:
        """Report one event of usage; returns its id.

        Args:
            type: the event type, as the catalog names it.
            subject: who is billed. A subject's events keep to one partition.
            data: what the catalog's schema for the type asks for. Integers and `Decimal` are exact. A float
                stands for the number that `repr` shows.
            id: the idempotency key, if the caller has one (a request id): emitted again, even by another process,
                the event counts once. Else a new one is made.
            time: when it happened, with a time zone; else now.

        Raises:
            ValueError: the event cannot be sent as it is; a programming error.
            BufferFull: see `on_full`.
            EmitterClosed: after `close`.
        """
        event = encode(type, subject, data, source=self._options.source, id=id, time=time)
        self.resend(event)
        return event.id

    def subscription(
        self,
        subject: str,
        action: Literal["create", "change", "end"],
        *,
        plan: str | None = None,
        start: date | None = None,
        end: date | None = None,
        timezone: str | None = None,
        id: str | None = None,
        time: datetime | None = None,
    ) -> str:
        """Put a subject on a plan (`create`), change its plan from the next billing period on (`change`), or end it.

        It is an event like any other, and holds for usage that is emitted after it. tallyflow judges it: one that does
        not fit (an unknown plan, overlapping subscriptions) is in its table `rejects`. Returns the event's id.

        Args:
            plan: for `create` and `change`.
            start: for `create`: the first local day; without it, today.
            end: for `create` and `end`: the first local day that is no longer covered.
            timezone: for `create`: where days and billing periods are cut, such as `Europe/Berlin`.

        Raises:
            ValueError, BufferFull, EmitterClosed: as `emit`.
        """
        given = {"plan": plan, "start": start, "end": end, "timezone": timezone}
        data: dict[str, str] = {}
        for name, value in given.items():
            if value is not None:
                data[name] = value if isinstance(value, str) else value.strftime("%Y-%m-%d")
        takes = _SUBSCRIPTION_KEYS.get(action)
        if takes is None:
            raise ValueError(f"action is {action!r}: use create, change or end")
        wrong = sorted(data.keys() - takes)
        if wrong:
            raise ValueError(f"{action} takes no {', '.join(wrong)}")
        if "plan" in takes and plan is None:
            raise ValueError(f"{action} needs a plan")
        return self.emit(SUBSCRIPTION_TYPE, subject, {"action": action, **data}, id=id, time=time)

    def resend(self, event: UsageEvent) -> None:
        """Send an event that came back as undelivered once more, as it was: under the same id, so it counts once.

        Raises:
            BufferFull: see `on_full`.
            EmitterClosed: after `close`.
        """
        delivery = self._delivery
        first = not delivery.started
        taken = delivery.put(event, self._on_full)
        if first and delivery.started:
            _lifetime.begin(delivery)
        if taken:
            return
        if self._on_full != "drop":
            raise BufferFull(
                f"the buffer of usage events is full ({delivery.stats().pending_events:,} events wait): "
                f"{delivery.stats().last_error or 'the broker is slower than the events come'}"
            )
        self._report(Undelivered((event,), "buffer_full", delivery.stats().last_error))

    def flush(self, timeout_seconds: float = 10.0) -> bool:
        """Wait until every event emitted so far is acknowledged or was reported. False: not within this time."""
        return self._delivery.flush(timeout_seconds)

    def close(self, timeout_seconds: float = 10.0) -> bool:
        """Flush, then end. Events that are left after the time go to `on_error`, and False is returned.

        It may take a second longer than the time given, to close connections.
        """
        done = self._delivery.close(timeout_seconds)
        _lifetime.end(self._delivery)
        return done

    def stats(self) -> EmitterStats:
        """Counters of this process, for your metrics."""
        return self._delivery.stats()

    def __enter__(self) -> UsageEmitter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"UsageEmitter({self._options.brokers!r}, {self._options.topic!r}, source={self._options.source!r})"

    def _renew(self) -> Delivery:
        """In a forked child: begin with an empty buffer. Returns the parent's."""
        old, self._delivery = self._delivery, Delivery(self._options, self._report)
        return old

    def _report(self, undelivered: Undelivered) -> None:
        events, reason = undelivered.events, undelivered.reason
        now = clock.monotonic()
        if reason != "buffer_full" or now >= self._quiet_until:  # a full buffer refuses thousands a second
            self._quiet_until = now + DROP_LOG_SECONDS if reason == "buffer_full" else self._quiet_until
            log.error(
                "%d usage events not delivered (%s; first id %s): %s",
                len(events),
                _REASONS[reason],
                events[0].id,
                undelivered.error or "no error was met",
            )
        if self._on_error is not None:
            try:
                self._on_error(undelivered)
            except Exception:
                log.exception("on_error failed; %d usage events are lost", len(events))


_REASONS: dict[Reason, str] = {
    "buffer_full": "the buffer is full",
    "timed_out": "not acknowledged in time",
    "refused": "refused by the broker",
    "closed": "the emitter was closed first",
}


def _check_options(options: Mapping[str, Any]) -> None:
    own = sorted(OWN_OPTIONS & options.keys())
    if own:
        raise ValueError(f"kafka_options: {', '.join(own)} belong to the emitter and cannot be set")
    unknown = sorted(options.keys() - KAFKA_OPTIONS)
    if unknown:
        raise ValueError(f"kafka_options: kafka-python's producer has no option {', '.join(unknown)}")
