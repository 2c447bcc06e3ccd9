"""What goes wrong in a simulated run, and when: drawn from the seed, at any boundary of any effect."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from enum import StrEnum
from random import Random
from typing import NamedTuple

from tests.simulation.effects import SERVICES, Clock, Crash, Effects, Error

TRAIL = 60
"""How many boundaries before a failure are shown."""
DUE_MAX = 30
"""Each service has had a fault by its so many-th boundary."""
SLOW_SECONDS_MAX = 30.0
OUTAGE_CALLS_MAX = 12
LOST_STEPS_MAX = 60

Lose = Callable[[int | None], None]
"""Makes Redis lose its last acknowledged steps by a failover; None: everything, by a flush."""


class Kind(StrEnum):
    REFUSED = "refused"
    """An error, and nothing was done."""
    ANSWER_LOST = "answer lost"
    """An error, and it was done."""
    SLOW = "slow"
    OUTAGE = "outage"
    """Errors for some calls on end, so that patience may run out."""
    FAILOVER = "failover"
    """Acknowledged writes are lost."""
    FLUSH = "flush"


class Aim(NamedTuple):
    """A crash that is to come."""

    after: int
    """At the so many-th boundary, from 1."""
    name: str | None = None
    """Of those of this effect; None for any."""


class Trouble(Effects):
    """Crashes and faults of one simulated run.

    Args:
        clock: Virtual time, which passes where something is slow.
        rng: Decides.
        rate: How likely a fault is at each boundary.
    """

    def __init__(self, clock: Clock, rng: Random, rate: float) -> None:
        super().__init__(clock)
        self._rng = rng
        self._rate = rate
        self._due = {service: rng.randint(1, DUE_MAX) for service in SERVICES}
        self._outages: Counter[str] = Counter()
        self._met: Counter[str] = Counter()
        self.aim: Aim | None = None
        self.is_calm = False
        """Whether everything goes well from now on."""
        self.lose: Lose = lambda steps: None
        self.on_boundary: Callable[[str], None] = lambda name: None
        """Called before anything goes wrong at a boundary: what goes on in the world meanwhile."""
        self.crashes = 0
        self.faults: Counter[tuple[str, Kind]] = Counter()
        self.names: Counter[str] = Counter()
        self.trail: deque[str] = deque(maxlen=TRAIL)

    def before(self, name: str, error: Error | None = None) -> None:
        self._note(name, "before")
        self.on_boundary(name)
        if not self.is_calm:
            self._crash(name)
            if error is not None:
                self._fail(name, error, (Kind.REFUSED, Kind.REFUSED, Kind.SLOW, Kind.OUTAGE))

    def after(self, name: str, error: Error | None = None) -> None:
        self._note(name, "after")
        if not self.is_calm:
            self._crash(name)
            if error is not None:
                lost = (Kind.FAILOVER, Kind.FLUSH) if name.startswith("redis.") else ()
                self._fail(name, error, (Kind.ANSWER_LOST, Kind.ANSWER_LOST, Kind.ANSWER_LOST, Kind.SLOW, *lost))

    def owes(self) -> bool:
        """Whether some service has not had its fault yet."""
        return bool(self._due)

    def _note(self, name: str, side: str) -> None:
        self.names[name] += 1
        self.trail.append(f"{side} {name}")

    def _crash(self, name: str) -> None:
        if self.aim is None or self.aim.name not in (None, name):
            return
        self.aim = self.aim._replace(after=self.aim.after - 1)
        if self.aim.after <= 0:
            self.aim = None
            self.crashes += 1
            self.trail.append("*** crash")
            raise Crash(name)

    def _fail(self, name: str, error: Error, kinds: tuple[Kind, ...]) -> None:
        service = name.partition(".")[0]
        self._met[service] += 1
        if self._outages[service] > 0:
            self._outages[service] -= 1
            raise error(f"simulated: {name} is away")
        if service in self._due and self._met[service] >= self._due[service]:
            del self._due[service]
            kind = kinds[0]
        elif self._rng.random() < self._rate:
            kind = self._rng.choice(kinds)
        else:
            return
        self.faults[service, kind] += 1
        self.trail.append(f"*** {kind}")
        match kind:
            case Kind.SLOW:
                self.clock.advance(self._rng.random() * SLOW_SECONDS_MAX)
                return
            case Kind.FAILOVER:
                self.lose(self._rng.randint(0, LOST_STEPS_MAX))
                return
            case Kind.FLUSH:
                self.lose(None)
                return
            case Kind.OUTAGE:
                self._outages[service] = self._rng.randint(1, OUTAGE_CALLS_MAX)
        raise error(f"simulated: {name}, {kind}")
