"""Delivers what is queued: attempts on threads, dead letters, and the end of each delivery, told once.

Guarantees: `ended` is called exactly once for each delivery that was added and not taken back: after a
2xx, or after its dead letter is stored. Attempts of an endpoint are at most its `concurrency` at once,
each on a thread of its own, so an endpoint that hangs holds up nobody else. An attempt that does not
return within a multiple of the timeout counts as failed; until its thread returns it takes its place.
Failure: dead letters that cannot be stored wait and are tried again; they count in `len`, by which the
caller stops adding.
"""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from domain.ports import TallyError
from webhooks.endpoints import Endpoint, Endpoints
from webhooks.lanes import Answer, Delivery, Ending, Lanes
from webhooks.sending import Sender

log = logging.getLogger("tally.webhooks")

STUCK_TIMEOUTS = 3
"""An attempt that takes so many times its timeout is given up."""
OVERFLOW_FAILING_SECONDS = 60.0
STORE_PAUSE_SECONDS = 1.0
STORED_AT_ONCE_MAX = 1000


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A delivery that was given up."""

    delivery: Delivery
    ending: Ending
    first_attempt_us: int
    """0: it was never attempted."""
    dead_us: int


@dataclass(slots=True)
class Counts:
    """What happened so far."""

    delivered: int = 0
    failed_attempts: int = 0
    dead_letters: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """How an endpoint stood when it was last looked at."""

    delivered: int
    failed_attempts: int
    dead_letters: int
    waiting: int
    failing_seconds: float


@dataclass(slots=True)
class _Attempt:
    number: int
    started_at: float


class Deliverer:
    """Takes deliveries and brings each to its end. For one thread, which calls `step` again and again.

    Args:
        store: Stores dead letters; may raise TallyError, and is then called again.
        ended: Told of each delivery that is done; with None if it was delivered.
        undelivered_max: From so many on, what has failed for a minute is given up at once.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        *,
        store: Callable[[list[DeadLetter]], None],
        ended: Callable[[Delivery, Ending | None], None],
        undelivered_max: int,
        senders: Mapping[str, Sender] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._endpoints = {endpoint.name: endpoint for endpoint in endpoints.endpoints}
        self._senders = senders or {endpoint.name: Sender(endpoint) for endpoint in endpoints.endpoints}
        self._lanes = Lanes(endpoints.endpoints, endpoints.retry_after_seconds, random.random)
        self._store = store
        self._ended = ended
        self._undelivered_max = undelivered_max
        self._clock = clock
        self._answers: queue.SimpleQueue[tuple[Delivery, int, Answer]] = queue.SimpleQueue()
        self._attempts: dict[Delivery, _Attempt] = {}
        self._number = 0
        self._dead: list[tuple[Delivery, Ending]] = []
        self._store_at = 0.0
        self._gone: set[str] = set()
        self.counts = {endpoint.name: Counts() for endpoint in endpoints.endpoints}

    def __len__(self) -> int:
        """Deliveries that have not come to their end."""
        return len(self._lanes) + len(self._dead)

    @property
    def in_flight(self) -> int:
        return len(self._attempts)

    @property
    def total(self) -> Counts:
        """Of all endpoints."""
        counts = self.counts.values()
        return Counts(
            sum(one.delivered for one in counts),
            sum(one.failed_attempts for one in counts),
            sum(one.dead_letters for one in counts),
        )

    def standing(self) -> dict[str, Standing]:
        """Of each endpoint, now."""
        waiting, failing = self._lanes.waiting(), self._lanes.failing_seconds(self._clock())
        return {
            name: Standing(one.delivered, one.failed_attempts, one.dead_letters, waiting[name], failing[name])
            for name, one in self.counts.items()
        }

    def wanted(self, type: str, subject: str) -> list[Endpoint]:
        """The endpoints that a signal goes to."""
        return [endpoint for endpoint in self._endpoints.values() if endpoint.wants(type, subject)]

    def add(self, delivery: Delivery) -> None:
        self._lanes.add(delivery, self._clock())

    def take_back(self, unwanted: Callable[[Delivery], bool]) -> None:
        """Forget deliveries that somebody else will make; what is in flight is finished."""
        self._lanes.take(unwanted)
        self._dead = [one for one in self._dead if not unwanted(one[0])]

    def step(self, *, start: bool = True) -> float | None:
        """Do what is to be done now, without waiting. Returns in how many seconds more is due, if that is known."""
        now = self._clock()
        self._collect(now)
        self._give_up_stuck(now)
        self._dead.extend((one, Ending.GONE) for one in self._lanes.take_gone())
        room = max(0, self._undelivered_max - len(self._dead) - 1)
        overflow = self._lanes.take_overflow(room, now, OVERFLOW_FAILING_SECONDS)
        self._dead.extend((one, Ending.OVERFLOW) for one in overflow)
        self._store_dead(now)
        if start:
            for delivery in self._lanes.start(now):
                self._start(delivery, now)
        due = self._lanes.next_due()
        return None if due is None else max(0.0, due - now)

    def wait(self, seconds_max: float) -> None:
        """Wait until an attempt returns, or for so long."""
        try:
            self._answers.put(self._answers.get(timeout=seconds_max))
        except queue.Empty:
            return

    def close(self) -> None:
        for sender in self._senders.values():
            sender.close()

    def _start(self, delivery: Delivery, now: float) -> None:
        self._number += 1
        self._attempts[delivery] = _Attempt(self._number, now)
        thread = threading.Thread(target=self._attempt, args=(delivery, self._number), name="webhook", daemon=True)
        thread.start()

    def _attempt(self, delivery: Delivery, number: int) -> None:
        """On a thread of its own."""
        try:
            answer = self._senders[delivery.endpoint].post(delivery.id, delivery.body)
        except Exception as error:
            log.exception("endpoint %s: an attempt failed for a reason of our own", delivery.endpoint)
            answer = Answer(0, f"internal error: {error!r}")
        self._answers.put((delivery, number, answer))

    def _collect(self, now: float) -> None:
        while True:
            try:
                delivery, number, answer = self._answers.get_nowait()
            except queue.Empty:
                return
            attempt = self._attempts.get(delivery)
            if attempt is not None and attempt.number == number:
                self._finish(delivery, answer, now)
            else:
                self._lanes.release(delivery.endpoint)

    def _give_up_stuck(self, now: float) -> None:
        for delivery, attempt in list(self._attempts.items()):
            bound = STUCK_TIMEOUTS * self._endpoints[delivery.endpoint].timeout_seconds
            if now - attempt.started_at > bound:
                self._finish(delivery, Answer(0, f"the answer did not end within {bound:g} s"), now, still_running=True)

    def _finish(self, delivery: Delivery, answer: Answer, now: float, *, still_running: bool = False) -> None:
        del self._attempts[delivery]
        ending = self._lanes.finish(delivery, answer, now, still_running=still_running)
        if answer.delivered:
            self.counts[delivery.endpoint].delivered += 1
            self._ended(delivery, None)
            return
        self.counts[delivery.endpoint].failed_attempts += 1
        log.warning(
            "endpoint %s: signal %s, attempt %d failed: %s",
            delivery.endpoint,
            delivery.id,
            delivery.attempts,
            answer.error,
        )
        if ending is Ending.GONE and delivery.endpoint not in self._gone:
            self._gone.add(delivery.endpoint)
            log.error(
                "endpoint %s answered 410 Gone: nothing more is sent to it until the next start; its signals go to "
                "webhook_dead_letters. Take it out of the file, or correct its url, then replay them.",
                delivery.endpoint,
            )
        if ending is not None:
            self._dead.append((delivery, ending))

    def _store_dead(self, now: float) -> None:
        if not self._dead or now < self._store_at:
            return
        batch = self._dead[:STORED_AT_ONCE_MAX]
        wall_us = time.time_ns() // 1000
        letters = [
            DeadLetter(
                delivery,
                ending,
                wall_us - int((now - delivery.first_attempt_at) * 1e6) if delivery.attempts else 0,
                wall_us,
            )
            for delivery, ending in batch
        ]
        try:
            self._store(letters)
        except TallyError as error:
            self._store_at = now + STORE_PAUSE_SECONDS
            log.error("%d dead letters wait: %s", len(self._dead), error)
            return
        del self._dead[: len(batch)]
        for delivery, ending in batch:
            self.counts[delivery.endpoint].dead_letters += 1
            log.error(
                "endpoint %s: signal %s given up (%s): %s",
                delivery.endpoint,
                delivery.id,
                ending,
                delivery.last_error or "not attempted",
            )
            self._ended(delivery, ending)
