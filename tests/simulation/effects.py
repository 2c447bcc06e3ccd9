"""Where a simulated run can go wrong: around every effect that a fake has on what outlives the flow.

A fake brackets each effect: `before(name, error)`, the effect, `after(name, error)`. Whoever stands behind decides
there whether to go on, to be slow, to raise the adapter's own passing error (before: nothing was done; after: it was
done, and the answer is lost), or to raise `Crash`: the process is gone.

A name is `SERVICE.WHAT`, as in `redis.claim`; the services that have faults of their own are `SERVICES`.
"""

from __future__ import annotations

from collections.abc import Callable

from domain.values import SECOND_US

SERVICES = ("log", "redis", "clickhouse")

Error = Callable[[str], Exception]
"""Makes the error that the adapter of an effect takes for a passing one, from a text."""


class Crash(BaseException):
    """The process was killed here: nothing that would run in it may run any more."""


class Clock:
    """Virtual time: it passes when somebody says so.

    Args:
        now_us: What it shows at the beginning.
    """

    def __init__(self, now_us: int) -> None:
        self.now_us = now_us

    def advance(self, seconds: float) -> None:
        assert seconds >= 0, "log times and epochs only go forward"
        self.now_us += int(seconds * SECOND_US)

    def monotonic(self) -> float:
        """In place of `time.monotonic`."""
        return self.now_us / SECOND_US


class Effects:
    """Undisturbed: every effect happens, at once. The scheduler of a simulation overrides `before` and `after`."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def before(self, name: str, error: Error | None = None) -> None:
        """An effect is about to happen. Without `error` it can be crashed, and cannot fail."""

    def after(self, name: str, error: Error | None = None) -> None:
        """An effect has happened, and its answer is about to be received."""
