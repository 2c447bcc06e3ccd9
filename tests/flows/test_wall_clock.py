"""A clock that is set back ends the run; one that is set forward, or a little off, does not."""

from __future__ import annotations

import threading
import time

import pytest

from domain.ports import TallyError
from flows.wall_clock import BACK_SECONDS_MAX, watching


@pytest.mark.parametrize(
    ("step_seconds", "ends"),
    [(-7200.0, True), (-BACK_SECONDS_MAX - 1, True), (-BACK_SECONDS_MAX + 1, False), (0, False), (7200.0, False)],
)
def test_only_a_clock_set_back_ends_the_run(step_seconds: float, ends: bool) -> None:
    ahead, looks = [1e9], [0]
    said: list[TallyError] = []
    looked = threading.Event()

    def wall() -> float:
        looks[0] += 1
        if looks[0] == 3:
            ahead[0] += step_seconds
        if looks[0] >= 5:
            looked.set()
        return time.monotonic() + ahead[0]

    def lost(error: TallyError) -> None:
        said.append(error)
        looked.set()

    with watching(lost, wall, every_seconds=0.001):
        assert looked.wait(10)
    assert [f"set back by {-step_seconds:.0f} s" in str(error) for error in said] == [True] * ends
