"""Is the flow stuck, and is it of use? A pure judgement over what was seen and when; no clock, no server.

`alive` is for whoever restarts the process: false only where a restart is the remedy. A service that is away is not:
the flow waits for it, and stops by itself when its patience ends. `ready` is for whoever waits for the flow or looks
after it: false while it starts or ends, and while a service does not answer.

Instants are seconds of one monotone clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

ANSWER_SECONDS_MAX = 30.0
"""A service that was silent for longer is away."""


class Phase(StrEnum):
    STARTING = "starting"
    """Services are opened, claims are rebuilt: nothing is read yet."""
    RUNNING = "running"
    ENDING = "ending"
    """The input has ended, or the flow was told to stop."""


@dataclass(frozen=True, slots=True)
class PartitionFacts:
    """What was seen of one partition that this process reads."""

    polled_at: float
    """When it was last asked for a batch, or was opened."""
    moved_at: float
    """When its position last changed, or it was opened."""
    position: int | None = None
    waiting: int | None = None
    """Messages between the position and the end of the log; None where nobody knows."""
    waiting_since: float | None = None
    """Since when there was always something waiting; None if there is nothing, or nobody knows."""


@dataclass(frozen=True, slots=True)
class Work:
    """A thread that is in a step of the flow."""

    step: str
    since: float


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything a judgement rests on."""

    now: float
    phase: Phase
    phase_since: float
    epoch_at: float = 0.0
    """When an epoch last closed, or running began."""
    partitions: Mapping[int, PartitionFacts] = field(default_factory=dict)
    """Those that have not ended."""
    works: tuple[Work, ...] = ()
    answers: Mapping[str, float | None] = field(default_factory=dict)
    """By service, when it last answered; None: never."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long is too long."""

    stuck_seconds: float
    epoch_seconds: float
    """How often an epoch is to close; twice that and `stuck_seconds` is too long."""
    answer_seconds: float = ANSWER_SECONDS_MAX


@dataclass(frozen=True, slots=True)
class Verdict:
    """Well, or why not."""

    reasons: tuple[str, ...] = ()

    @property
    def well(self) -> bool:
        return not self.reasons


def alive(facts: Facts, limits: Limits) -> Verdict:
    """Whether the flow gets on; if not, a restart is the remedy, and resumes at the last snapshot."""
    if facts.phase is not Phase.RUNNING:
        return Verdict()
    return Verdict((*_works(facts, limits), *_partitions(facts, limits), *_epochs(facts, limits)))


def ready(facts: Facts, limits: Limits) -> Verdict:
    """Whether events are being counted now: it runs, gets on, and every service answers."""
    if facts.phase is not Phase.RUNNING:
        return Verdict((f"{facts.phase} for {facts.now - facts.phase_since:.0f} s",))
    silent = []
    for service, at in sorted(facts.answers.items()):
        if at is None:
            silent.append(f"{service} has not answered yet")
        elif facts.now - at > limits.answer_seconds:
            silent.append(f"{service} has not answered for {facts.now - at:.0f} s")
    return Verdict((*silent, *alive(facts, limits).reasons))


def _works(facts: Facts, limits: Limits) -> list[str]:
    """A step that does not come back: it holds up everything behind it."""
    late = [work for work in facts.works if facts.now - work.since > limits.stuck_seconds]
    return [f"the step {work.step} has been at one batch for {facts.now - work.since:.0f} s" for work in late]


def _partitions(facts: Facts, limits: Limits) -> list[str]:
    """A source that nobody asks, and one that is asked but gives nothing although there is something."""
    reasons = []
    for number, seen in sorted(facts.partitions.items()):
        unpolled = facts.now - seen.polled_at
        unmoved = facts.now - max(seen.moved_at, seen.waiting_since or 0.0)
        if unpolled > limits.stuck_seconds:
            reasons.append(f"partition {number} was not polled for {unpolled:.0f} s")
        elif seen.waiting and seen.waiting_since is not None and unmoved > limits.stuck_seconds:
            reasons.append(
                f"partition {number} stands at offset {seen.position} for {unmoved:.0f} s, with {seen.waiting} "
                "messages waiting"
            )
    return reasons


def _epochs(facts: Facts, limits: Limits) -> list[str]:
    """Snapshots that fail to come: what a restart has to read again grows without bound."""
    since = facts.now - facts.epoch_at
    if facts.partitions and since > limits.stuck_seconds + 2 * limits.epoch_seconds:
        return [f"no snapshot for {since:.0f} s"]
    return []
