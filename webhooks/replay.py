"""Sending signals again: those of a time from the table `signals`, or what was given up.

Under the same webhook-ids, so a receiver that remembers them takes each once. In the order of the
signals, one subject at a time; each gets a few attempts within a minute.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from webhooks.deliverer import DeadLetter, Deliverer
from webhooks.endpoints import Endpoints
from webhooks.lanes import Delivery, Ending
from webhooks.store import Store

PAUSES_SECONDS = (1.0, 5.0, 20.0)
UNDELIVERED_MAX = 1000
MARKED_AT_ONCE_MAX = 500


@dataclass(slots=True)
class Replayed:
    """What came of a replay."""

    delivered: int = 0
    failed: list[Delivery] = field(default_factory=list)
    skipped: int = 0
    """Dead letters of endpoints that are not in the file any more."""


def deliveries(
    endpoints: Endpoints, store: Store, since: datetime, until: datetime, *, endpoint: str | None, dead: bool
) -> Iterator[Delivery]:
    """What is to be sent. Of a dead letter, `place` is its row.

    Raises:
        TallyError: ClickHouse cannot be read.
    """
    wanted = [one for one in endpoints.endpoints if endpoint in (None, one.name)]
    if dead:
        yield from store.dead(since, until, endpoint)
        return
    for signal, body in store.signals(since, until):
        for one in wanted:
            if one.wants(signal.type, signal.subject):
                yield Delivery(one.name, signal.id, signal.type, signal.subject, signal.at_us, body)


def replay(endpoints: Endpoints, store: Store, queued: Iterable[Delivery], stop: threading.Event) -> Replayed:
    """Send them all, or until `stop`; dead letters that are taken now are marked.

    Raises:
        TallyError: ClickHouse cannot be read or written.
    """
    replayed = Replayed()
    marks: list[tuple[Any, ...]] = []
    known = {one.name for one in endpoints.endpoints}

    def ended(delivery: Delivery, ending: Ending | None) -> None:
        if ending is not None:
            replayed.failed.append(delivery)
            return
        replayed.delivered += 1
        if isinstance(delivery.place, tuple):
            marks.append(delivery.place)
            if len(marks) >= MARKED_AT_ONCE_MAX:
                store.mark_replayed(marks)
                marks.clear()

    def keep(_: list[DeadLetter]) -> None:
        """What fails again stays what it was: a dead letter, or a signal in its table."""

    deliverer = Deliverer(
        replace(endpoints, retry_after_seconds=PAUSES_SECONDS),
        store=keep,
        ended=ended,
        undelivered_max=10 * UNDELIVERED_MAX,
    )
    more = iter(queued)
    try:
        while not stop.is_set():
            while len(deliverer) < UNDELIVERED_MAX and (delivery := next(more, None)) is not None:
                if delivery.endpoint in known:
                    deliverer.add(delivery)
                else:
                    replayed.skipped += 1
            due = deliverer.step()
            if not len(deliverer):
                break
            deliverer.wait(0.2 if due is None else min(max(due, 0.001), 0.2))
    finally:
        deliverer.close()
        if marks:
            store.mark_replayed(marks)
    return replayed
