"""What time it is at the brokers, as far as the log tells: this machine's wall clock is never asked.

That clock may be hours off, or be set while a flow runs. A log time that were taken from it would close windows, and
end periods, for which messages still come.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class LogClock:
    """A clock that is never ahead of the brokers': the newest log time seen, and what has passed since.

    It stands still while no flow runs, until the next message. For any number of threads.

    Args:
        monotonic_us: What passes the time.
    """

    def __init__(self, monotonic_us: Callable[[], int] = lambda: time.monotonic_ns() // 1000) -> None:
        self._monotonic_us = monotonic_us
        self._seen = (0, 0)
        """The newest log time, and when it was seen."""

    def see(self, log_time_us: int) -> None:
        """Learn a log time that a broker gave to a message, or that this clock showed before."""
        if log_time_us > self._seen[0]:
            self._seen = (log_time_us, self._monotonic_us())

    def now_us(self) -> int:
        """It is at least so late; 0 before anything was seen."""
        log_time_us, seen_us = self._seen
        return log_time_us + self._monotonic_us() - seen_us if log_time_us else 0
