"""What the flow tells whoever watches it. Nothing that it computes depends on the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ParamSpec, Protocol, TypeVar

from domain.quota import Signal
from domain.values import Batch

P = ParamSpec("P")
R = TypeVar("R")


class Probe(Protocol):
    """Called by several threads; quick, and raises nothing."""

    def timed(self, step: str, work: Callable[P, R]) -> Callable[P, R]:
        """The same function, with the time that it takes noted."""
        ...

    def judged(self, batch: Batch) -> None:
        """Every event of a batch is accepted or rejected for good."""
        ...

    def signalled(self, log_time_us: int | None, signals: Sequence[Signal]) -> None:
        """Signals were made, by a batch whose newest log time this is (None: no clock gave it)."""
        ...

    def kept(self, shard: object, totals: int, size_bytes: int) -> None:
        """A shard's state as of a snapshot."""
        ...


class Unobserved:
    """Watches nothing."""

    def timed(self, step: str, work: Callable[P, R]) -> Callable[P, R]:
        return work

    def judged(self, batch: Batch) -> None:
        pass

    def signalled(self, log_time_us: int | None, signals: Sequence[Signal]) -> None:
        pass

    def kept(self, shard: object, totals: int, size_bytes: int) -> None:
        pass


UNOBSERVED: Probe = Unobserved()
