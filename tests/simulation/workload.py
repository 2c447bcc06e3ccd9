"""What happens to a log in the life of a simulated deployment; the same seed gives the same.

Two or three months in bursts: usage of every type and edge that `tests.workload` knows, its repeats, conflicts and
reused keys, late and too late, out of order and ahead of time, without a time, in batches and in binary mode; bad
messages; subscription events; transactions, committed and taken back; partitions that fall silent; a new catalog.
A subject's messages share a partition, so each id does: which event of an id in two partitions counts depends on the
order of reading, and has tests of its own. Corrections are no events yet.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tests import workload, workload_bad
from tests.fakes.log import LogServer
from tests.simulation.effects import Clock
from tests.workload import ACCEPT_WITHIN_US, DAY_US, HOT, HOUR_US, MINUTE_US, SECOND_US, SKEW_US, START, Event

MESSAGE_BYTES_MAX = 2000
"""Of bad messages; large ones and deeply nested ones have tests of their own."""
SUBJECTS = 14
CHANGES = {
    "meter: requests, limit: 5,": "meter: requests, limit: 4,",
    'meter: api_bytes, unit_amount: "0.000000000001"': 'meter: api_bytes, unit_amount: "0.000000000003"',
    'rates: {b: "0.000000012345", a: "0.02"': 'rates: {b: "0.5", a: "0.02"',
    "meter: run_seconds, limit: 500, period: day": "meter: run_seconds, limit: 400, period: hour",
}


class Workload:
    """Appends to a log, one thing at a time.

    Args:
        seed: What all is drawn from.
        events: Steps, about as many as events.
        partitions: Of the log, at first; one that is added later gets subjects of its own.
    """

    def __init__(self, seed: int, *, events: int, partitions: int) -> None:
        self._draw = random.Random(f"{seed} log")
        self._rest = events
        self._changes_after = self._draw.randrange(events // 4, events)
        names = [*workload.SUBJECTS, *(f"cust-{n}" for n in range(SUBJECTS))][: SUBJECTS + 8]
        self._draw.shuffle(names)
        subjects = [names[number::partitions] for number in range(partitions)]
        self._writers = [Writer(self._draw, number, some) for number, some in enumerate(subjects)]
        self._active: Sequence[Writer] = self._writers
        self._bad = [recipe for recipe in workload_bad.recipes() if _is_small(recipe)]
        self.begin_us = START + self._draw.randrange(30 * DAY_US)
        self._texts = [workload.kitchen_sink_catalog(), changed_catalog()]

    @property
    def exhausted(self) -> bool:
        return self._rest <= 0

    def catalog(self) -> str:
        """What the operator gives to the next start."""
        return self._texts[self._rest < self._changes_after]

    def step(self, log: LogServer, clock: Clock) -> None:
        """The next thing that happens, some time later; at last transactions end, and each partition gets an event."""
        self._rest -= 1
        for number in range(len(self._writers), len(log.partitions)):
            self._writers.append(Writer(self._draw, number, [f"late-{number}-{n}" for n in range(3)]))
        clock.advance(self._pause())
        writer = self._draw.choice(self._active)
        partition, kind = writer.number, self._draw.random()
        if kind < 0.03:
            log.transact(partition, [writer.next(clock.now_us) for _ in range(self._draw.randrange(4))])
        elif kind < 0.07:
            log.end(partition, commit=self._draw.random() < 0.6)
        elif kind < 0.12:
            log.append(partition, self._draw.choice(self._bad)(writer.good_at(clock.now_us)))
        elif kind < 0.16:
            log.append(partition, *writer.binary(clock.now_us))
        elif kind < 0.20:
            log.append(partition, writer.subscription(clock.now_us))
        elif kind < 0.205:
            log.append(partition, None)
        else:
            log.append(partition, writer.next(clock.now_us))
        if self.exhausted:
            for number in range(len(log.partitions)):
                log.end(number, commit=True)
                log.append(number, self._writers[number].next(clock.now_us))

    def _pause(self) -> float:
        """Seconds until the next thing. Between bursts, which take turns among partitions, days may pass."""
        kind = self._draw.random()
        if kind < 0.75:
            return self._draw.random() * 20
        if kind < 0.93:
            return self._draw.random() * 1200
        self._active = self._draw.sample(self._writers, self._draw.randint(1, len(self._writers)))
        return self._draw.random() * (6 * 3600 if kind < 0.985 else 5 * 86400)


class Writer(workload._Writer):
    """Writes one partition's messages, whose log time is known as they are written, but for delays."""

    zones = tuple(zone for zone in workload.ZONES if zone != "UTC")
    """In London, the catalog's, March begins with UTC's and ends before it: two periods would share a key."""

    def next(self, now: int) -> bytes:
        """An event, a repeat in some disguise, or a batch."""
        self.step(now)
        return self.lines.pop()

    def subscription(self, now: int) -> bytes:
        self.subscribe(self.rng, now)
        return self.lines.pop()

    def binary(self, now: int) -> tuple[bytes, list[tuple[str, bytes]]]:
        """An event whose attributes are headers."""
        event = self._event(now)
        attributes = workload._attributes(event, self._timestamp)
        data = workload._json(attributes.pop("data")).encode()
        return data, [("content-type", b"application/json"), *((f"ce_{k}", v.encode()) for k, v in attributes.items())]

    def good_at(self, now: int) -> workload_bad.Good:
        def good(changes: dict[str, str | None]) -> bytes:
            own = f"svc-{self.number}"  # some of the ids are the same in every partition
            event = replace(self._event(now), source=own, type="api.request", data=self._api_request(), time=now)
            attributes: dict[str, Any] = workload._attributes(event, workload._zulu)
            texts: dict[str, str | None] = {name: workload._json(value) for name, value in attributes.items()}
            return workload._object(texts | changes).encode()

        return good

    def _event(self, now: int) -> Event:
        event = super()._event(now)
        return replace(event, time=None) if self.rng.random() < 0.03 else event

    def _time(self, now: int) -> int:
        """When an event happened that is logged now: every rule's limit is met exactly, and passed by the least."""
        rng, kind = self.rng, self.rng.random()
        if kind < 0.65:
            return now - rng.randrange(120 * SECOND_US)
        if kind < 0.80:
            return now - rng.randrange(rng.choice((HOUR_US, 8 * HOUR_US, 20 * DAY_US)))
        if kind < 0.88:
            near = [edge for edge in HOT if now - ACCEPT_WITHIN_US < edge <= now] or [now]
            return rng.choice(near) + rng.choice((0, -1, 1, 30 * MINUTE_US, -rng.randrange(HOUR_US)))
        width = rng.choice((5 * MINUTE_US, HOUR_US, DAY_US))
        exact = now // 1000 * 1000  # as the log will stamp it
        return rng.choice(
            (
                now - now % width - rng.choice((0, 1)),
                exact - ACCEPT_WITHIN_US - rng.choice((0, 1, rng.randrange(9 * DAY_US))),
                exact + SKEW_US + rng.choice((0, 1, rng.randrange(DAY_US))),
                exact + rng.randrange(SKEW_US),
                exact - exact % HOUR_US - HOUR_US + rng.choice((0, -1)),  # on a window's end, and graces are hours
            )
        )

    def _log_time(self, time: int) -> int | None:
        return None

    def _reused(self, event: Event) -> Event:
        """The same key now: it counts as new if the first is long ago."""
        return replace(event, time=self.now) if event.time is not None else event

    def step(self, now: int) -> None:
        self.now = now
        super().step(now)


def changed_catalog() -> str:
    """The kitchen sink's next version: other limits and prices, for periods that begin later."""
    text = workload.kitchen_sink_catalog()
    for old, new in CHANGES.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def _is_small(recipe: workload_bad.Recipe) -> bool:
    return len(recipe(lambda changes: b"".join((text or "").encode() for text in changes.values()))) < MESSAGE_BYTES_MAX
