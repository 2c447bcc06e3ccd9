"""A wall clock that is set back while a flow runs ends the run.

Bytewax goes by that clock: set back by two hours, it polls no idle source and closes no epoch for two hours, so that
nothing becomes durable. No number depends on it, and a new run knows nothing of the old time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from domain.ports import TallyError

BACK_SECONDS_MAX = 5.0
"""A flow may stand still for so long."""
EVERY_SECONDS = 1.0


@contextmanager
def watching(
    lost: Callable[[TallyError], None],
    wall: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
    every_seconds: float = EVERY_SECONDS,
) -> Iterator[None]:
    """Watch the clock on a thread while the block runs.

    Args:
        lost: Called from that thread, at most once: what it does must end the process.
        wall: The clock that may be set.
        monotonic: One that may not.
        every_seconds: Between two looks.
    """
    ended = threading.Event()

    def watch() -> None:
        ahead = wall() - monotonic()
        while not ended.wait(every_seconds):
            before, ahead = ahead, wall() - monotonic()
            if ahead < before - BACK_SECONDS_MAX:
                lost(
                    TallyError(
                        f"the clock of this machine was set back by {before - ahead:.0f} s: the flow would stand still "
                        "for as long, so it ends. Nothing is lost: start it again, it goes on at its last snapshot."
                    )
                )
                return

    thread = threading.Thread(target=watch, name="wall-clock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
