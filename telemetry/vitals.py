"""What is seen of a running flow: who was polled when, how far each partition is, which threads are at work.

Written by the flow's threads without locks (each writes its own cells, and a torn read costs nothing), read by
whoever judges or scrapes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from telemetry.health import Facts, PartitionFacts, Phase, Work

P = ParamSpec("P")
R = TypeVar("R")
Clock = Callable[[], float]


@dataclass(slots=True)
class PartitionVitals:
    """One partition that this process reads. `name` is the source's, a number."""

    name: int
    polled_at: float
    moved_at: float
    position: int | None = None
    messages: int = 0
    end: int | None = None
    """Where the log ended when it was last asked for."""
    waiting_since: float | None = None

    @property
    def waiting(self) -> int | None:
        """Messages that are there and not read yet; None where nobody knows."""
        if self.end is None or self.position is None:
            return None
        return max(0, self.end - self.position)


@dataclass(slots=True, eq=False)
class _Cell:
    """What one thread does in one step."""

    step: str
    seconds: float = 0.0
    since: float | None = None


@dataclass
class Vitals:
    """Of one process. `clock` is monotone and in seconds."""

    clock: Clock = time.monotonic
    phase: Phase = Phase.STARTING
    partitions: dict[int, PartitionVitals] = field(default_factory=dict)
    """Those that are open."""
    answers: dict[str, float | None] = field(default_factory=dict)
    epoch_at: float = 0.0

    def __post_init__(self) -> None:
        self._phase_since = self.clock()
        self._cells: list[_Cell] = []
        self._locals: dict[str, threading.local] = {}

    def enter(self, phase: Phase) -> None:
        """Note that the flow has come so far."""
        self.phase, self._phase_since = phase, self.clock()
        self.epoch_at = self._phase_since

    def timed(self, step: str, work: Callable[P, R]) -> Callable[P, R]:
        """The same function, with the time it takes noted under a step; costs less than a microsecond a call."""
        local = self._locals.setdefault(step, threading.local())
        clock = self.clock

        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                cell: _Cell = local.cell
            except AttributeError:
                cell = local.cell = _Cell(step)
                self._cells.append(cell)
            begun = cell.since = clock()
            try:
                return work(*args, **kwargs)
            finally:
                cell.since = None
                cell.seconds += clock() - begun

        return run

    def seconds(self) -> Mapping[str, float]:
        """By step, the time that all threads have spent there, those that are still in it included."""
        found: dict[str, float] = {}
        for cell in list(self._cells):
            since = cell.since
            busy = 0.0 if since is None else max(0.0, self.clock() - since)
            found[cell.step] = found.get(cell.step, 0.0) + cell.seconds + busy
        return found

    def opened(self, name: int) -> PartitionVitals:
        """Begin to watch a partition."""
        now = self.clock()
        found = self.partitions[name] = PartitionVitals(name, now, now)
        return found

    def ended(self, name: int) -> None:
        """A partition is read to its end, or closed; with the last one the flow is about to end."""
        if self.partitions.pop(name, None) is not None and not self.partitions:
            self.enter(Phase.ENDING)

    def answered(self, service: str) -> None:
        """A service gave an answer just now."""
        self.answers[service] = self.clock()

    def measured(self, ends: Iterable[tuple[int, int]]) -> None:
        """Note where partitions end: pairs of a name and the offset after the last message that can be read."""
        now = self.clock()
        for name, end in ends:
            seen = self.partitions.get(name)
            if seen is None:
                continue
            seen.end = end
            if not seen.waiting:
                seen.waiting_since = None
            elif seen.waiting_since is None:
                seen.waiting_since = now

    def facts(self) -> Facts:
        """Everything that a judgement rests on, as of now."""
        cells = [(cell.step, cell.since) for cell in list(self._cells)]
        return Facts(
            now=self.clock(),
            phase=self.phase,
            phase_since=self._phase_since,
            epoch_at=self.epoch_at,
            partitions={
                seen.name: PartitionFacts(
                    seen.polled_at, seen.moved_at, seen.position, seen.waiting, seen.waiting_since
                )
                for seen in list(self.partitions.values())
            },
            works=tuple(Work(step, since) for step, since in cells if since is not None),
            answers=dict(self.answers),
        )
