"""Which delivery is due: pure, with the time as an argument.

A lane is what goes to one endpoint about one subject. It delivers in order, one at a time; a delivery
that fails holds back what is behind it in its lane and nothing else. Lanes of an endpoint share its
`concurrency` and its Retry-After, so an endpoint that hangs or is overloaded slows down itself only.

Every delivery comes to an end within the bound: delivered, or given up after the last pause of the
schedule. What has waited for longer than the schedule behind one that was given up gets one attempt.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count

from webhooks.endpoints import Endpoint

JITTER = 0.1
"""Pauses are longer by up to this fraction, so that what failed together does not come back together."""
GONE = 410


class Ending(StrEnum):
    """Why a delivery was given up: `reason` in the dead letters."""

    EXHAUSTED = "exhausted"
    GONE = "gone"
    OVERFLOW = "overflow"


@dataclass(frozen=True, slots=True)
class Answer:
    """What an attempt came to."""

    status: int
    """HTTP's; 0 if there was no answer."""
    error: str = ""
    retry_after_seconds: float = 0.0

    @property
    def delivered(self) -> bool:
        return 200 <= self.status < 300


@dataclass(slots=True, eq=False)
class Delivery:
    """One signal on its way to one endpoint."""

    endpoint: str
    id: str
    type: str
    subject: str
    at_us: int
    body: bytes
    place: object = None
    """Whose it is: the caller's business."""
    queued_at: float = 0.0
    attempts: int = 0
    first_attempt_at: float = 0.0
    last_status: int = 0
    last_error: str = ""


@dataclass(slots=True, eq=False)
class _Lane:
    waiting: deque[Delivery] = field(default_factory=deque)
    due_at: float = 0.0
    in_flight: bool = False
    failing_since: float | None = None
    given_up: bool = False
    """A delivery was given up, and none was taken since."""


@dataclass(slots=True)
class _State:
    """An endpoint's."""

    endpoint: Endpoint
    lanes: dict[str, _Lane] = field(default_factory=dict)
    due: list[tuple[float, int, str]] = field(default_factory=list)
    """A heap of lanes that wait; one that is out of date is skipped."""
    in_flight: int = 0
    hold_until: float = 0.0
    gone: bool = False


class Lanes:
    """Every delivery that is neither delivered nor given up. For one thread."""

    def __init__(
        self, endpoints: Sequence[Endpoint], pauses_seconds: Sequence[float], jitter: Callable[[], float]
    ) -> None:
        self._states = {endpoint.name: _State(endpoint) for endpoint in endpoints}
        self._pauses = tuple(pauses_seconds)
        self._patience = sum(pauses_seconds) * (1 + JITTER)
        self._jitter = jitter
        self._order = count()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def in_flight(self) -> int:
        return sum(state.in_flight for state in self._states.values())

    def gone(self) -> list[str]:
        """Endpoints that answered 410, to which nothing is sent any more."""
        return [name for name, state in self._states.items() if state.gone]

    def waiting(self) -> dict[str, int]:
        """How many deliveries each endpoint has."""
        return {name: sum(len(lane.waiting) for lane in state.lanes.values()) for name, state in self._states.items()}

    def failing_seconds(self, now: float) -> dict[str, float]:
        """For how long the lane of each endpoint that has failed longest has done so; 0 if none fails."""
        return {
            name: max(
                (now - lane.failing_since for lane in state.lanes.values() if lane.failing_since is not None),
                default=0.0,
            )
            for name, state in self._states.items()
        }

    def add(self, delivery: Delivery, now: float) -> None:
        """Queue a delivery behind those of its lane."""
        state = self._states[delivery.endpoint]
        lane = state.lanes.setdefault(delivery.subject, _Lane())
        delivery.queued_at = now
        lane.waiting.append(delivery)
        self._size += 1
        if len(lane.waiting) == 1:
            self._schedule(state, delivery.subject, lane, now)

    def start(self, now: float) -> list[Delivery]:
        """Deliveries to attempt now; each has to be finished."""
        found = []
        for state in self._states.values():
            while state.due and state.due[0][0] <= now and self._may_send(state, now):
                due_at, _, subject = heapq.heappop(state.due)
                lane = state.lanes.get(subject)
                if lane is None or lane.in_flight or lane.due_at != due_at:
                    continue
                lane.in_flight = True
                state.in_flight += 1
                found.append(lane.waiting[0])
        return found

    def next_due(self) -> float | None:
        """When `start` may have something; None: when something is added or finished."""
        times = [
            max(state.due[0][0], state.hold_until)
            for state in self._states.values()
            if state.due and state.in_flight < state.endpoint.concurrency
        ]
        return min(times, default=None)

    def finish(self, delivery: Delivery, answer: Answer, now: float, *, still_running: bool = False) -> Ending | None:
        """Note what an attempt came to. None: delivered, or to be attempted again.

        `still_running`: the attempt was given up but has not returned; it counts against `concurrency` until `release`.
        """
        state = self._states[delivery.endpoint]
        lane = state.lanes[delivery.subject]
        assert lane.in_flight and lane.waiting[0] is delivery, "finish what was started"
        state.in_flight -= not still_running
        lane.in_flight = False
        delivery.attempts += 1
        delivery.first_attempt_at = delivery.first_attempt_at or now
        delivery.last_status, delivery.last_error = answer.status, answer.error
        if answer.delivered:
            lane.failing_since, lane.given_up = None, False
            self._pop(state, delivery.subject, lane, now)
            return None
        if lane.failing_since is None:
            lane.failing_since = now
        if answer.status == GONE:
            state.gone = True
            self._pop(state, delivery.subject, lane, now)
            return Ending.GONE
        if answer.retry_after_seconds:
            state.hold_until = max(state.hold_until, now + answer.retry_after_seconds)
        waited_for_others = lane.given_up and now - delivery.queued_at > self._patience
        if delivery.attempts > len(self._pauses) or waited_for_others:
            lane.given_up = True
            self._pop(state, delivery.subject, lane, now)
            return Ending.EXHAUSTED
        pause = self._pauses[delivery.attempts - 1] * (1 + JITTER * self._jitter())
        self._schedule(state, delivery.subject, lane, now + pause)
        return None

    def release(self, endpoint: str) -> None:
        """An attempt that was finished while still running has returned."""
        self._states[endpoint].in_flight -= 1

    def take_gone(self) -> Iterator[Delivery]:
        """Take out what waits for endpoints that are gone."""
        for state in self._states.values():
            if state.gone:
                yield from self._take(state, lambda _: True)

    def take_overflow(self, size_max: int, now: float, failing_seconds_min: float) -> Iterator[Delivery]:
        """Take out deliveries until at most `size_max` are left, but only from lanes that have failed for so long.

        Of those, the one that has failed longest first, and in it the oldest first.
        """
        failing = [
            (lane.failing_since, name, subject)
            for name, state in self._states.items()
            for subject, lane in state.lanes.items()
            if lane.failing_since is not None and now - lane.failing_since >= failing_seconds_min
        ]
        for _, name, subject in sorted(failing):
            state = self._states[name]
            lane = state.lanes[subject]
            while self._size > size_max and lane.waiting and not lane.in_flight:
                delivery = lane.waiting[0]
                self._pop(state, subject, lane, now)
                yield delivery

    def take(self, unwanted: Callable[[Delivery], bool]) -> list[Delivery]:
        """Take out deliveries that are not in flight."""
        return [one for state in self._states.values() for one in self._take(state, unwanted)]

    def _take(self, state: _State, unwanted: Callable[[Delivery], bool]) -> Iterator[Delivery]:
        for subject, lane in list(state.lanes.items()):
            held = [lane.waiting.popleft()] if lane.in_flight else []
            out = [one for one in lane.waiting if unwanted(one)]
            lane.waiting = deque([*held, *(one for one in lane.waiting if not unwanted(one))])
            self._size -= len(out)
            if not lane.waiting:
                del state.lanes[subject]
            yield from out

    def _may_send(self, state: _State, now: float) -> bool:
        return not state.gone and state.in_flight < state.endpoint.concurrency and state.hold_until <= now

    def _schedule(self, state: _State, subject: str, lane: _Lane, due_at: float) -> None:
        lane.due_at = due_at
        heapq.heappush(state.due, (due_at, next(self._order), subject))

    def _pop(self, state: _State, subject: str, lane: _Lane, now: float) -> None:
        """Take the first delivery out; the next one may go at once."""
        lane.waiting.popleft()
        self._size -= 1
        if lane.waiting:
            self._schedule(state, subject, lane, now)
        else:
            del state.lanes[subject]
