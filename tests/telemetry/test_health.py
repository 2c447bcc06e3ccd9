"""The judgement, with a clock that the test turns."""

from __future__ import annotations

from typing import Any

import pytest

from telemetry.health import Facts, Limits, PartitionFacts, Phase, Work, alive, ready
from telemetry.vitals import Vitals

LIMITS = Limits(stuck_seconds=60, epoch_seconds=5, answer_seconds=30)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def facts(**changes: Any) -> Facts:
    """A flow that is well at 1000."""
    partitions = {3: PartitionFacts(polled_at=999.9, moved_at=990, position=50, waiting=7, waiting_since=980)}
    well: dict[str, Any] = {
        "now": 1_000.0,
        "phase": Phase.RUNNING,
        "phase_since": 500.0,
        "epoch_at": 998.0,
        "partitions": partitions,
        "works": (Work("decode", 999.9),),
        "answers": {"redis": 995.0, "clickhouse": 999.0},
    }
    return Facts(**well | changes)


def partition(**changes: Any) -> dict[int, PartitionFacts]:
    well: dict[str, Any] = {
        "polled_at": 999.0, "moved_at": 999.0, "position": 50, "waiting": 0, "waiting_since": None
    }  # fmt: skip
    return {3: PartitionFacts(**well | changes)}


def test_a_flow_that_gets_on_is_well() -> None:
    assert alive(facts(), LIMITS).well
    assert ready(facts(), LIMITS).well


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"partitions": partition(polled_at=939.0)}, "partition 3 was not polled for 61 s"),
        (
            {"partitions": partition(moved_at=900.0, waiting=7, waiting_since=930.0)},
            "partition 3 stands at offset 50 for 70 s, with 7 messages waiting",
        ),
        (
            {"partitions": partition(moved_at=900.0, position=None, waiting=7, waiting_since=930.0)},
            "partition 3 stands at offset None for 70 s, with 7 messages waiting",
        ),
        ({"works": (Work("decode", 999.0), Work("claim", 900.0))}, "the step claim has been at one batch for 100 s"),
        ({"epoch_at": 929.0}, "no snapshot for 71 s"),
    ],
)
def test_what_is_stuck_is_named(changes: dict[str, Any], reason: str) -> None:
    assert alive(facts(**changes), LIMITS).reasons == (reason,)
    assert ready(facts(**changes), LIMITS).reasons == (reason,)


@pytest.mark.parametrize(
    "changes",
    [
        {"partitions": partition(moved_at=1.0)},  # a quiet topic
        {"partitions": partition(moved_at=1.0, waiting=None)},  # nobody knows
        {"partitions": partition(moved_at=1.0, waiting=7, waiting_since=990.0)},  # the first message after a quiet day
        {"partitions": partition(polled_at=941.0)},
        {"partitions": {}, "epoch_at": 1.0},  # the partitions are another process's
        {"epoch_at": 931.0},  # two epochs more are allowed
        {"works": (Work("barrier", 941.0),)},
    ],
)
def test_what_is_quiet_or_busy_is_not_stuck(changes: dict[str, Any]) -> None:
    assert alive(facts(**changes), LIMITS).well


def test_a_service_that_is_away_makes_the_flow_unready_but_is_no_reason_to_restart_it() -> None:
    away = facts(answers={"redis": 960.0, "clickhouse": None})
    assert alive(away, LIMITS).well
    assert ready(away, LIMITS).reasons == ("clickhouse has not answered yet", "redis has not answered for 40 s")


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.ENDING])
def test_a_flow_that_starts_or_ends_lives_but_is_not_ready(phase: Phase) -> None:
    """However long it takes: claims of a large ledger are rebuilt for minutes."""
    found = facts(phase=phase, epoch_at=0.0, partitions=partition(polled_at=1.0))
    assert alive(found, LIMITS).well
    assert ready(found, LIMITS).reasons == (f"{phase} for 500 s",)


def test_all_reasons_are_given() -> None:
    found = facts(epoch_at=1.0, works=(Work("rate", 1.0),), partitions=partition(polled_at=1.0), answers={"redis": 1.0})
    assert len(ready(found, LIMITS).reasons) == 4


# what the vitals make of what they are told


def test_what_waits_is_counted_from_when_it_was_first_seen() -> None:
    clock = Clock()
    vitals = Vitals(clock)
    vitals.enter(Phase.RUNNING)
    seen = vitals.opened(3)
    seen.position = 50
    vitals.measured([(3, 50), (4, 9)])
    clock.now += 1_000  # a quiet while
    vitals.measured([(3, 50)])
    assert vitals.facts().partitions[3].waiting_since is None
    vitals.measured([(3, 57)])
    clock.now += 61
    vitals.measured([(3, 58)])
    seen.polled_at = vitals.epoch_at = clock.now
    reason = "partition 3 stands at offset 50 for 61 s, with 8 messages waiting"
    assert alive(vitals.facts(), LIMITS).reasons == (reason,)
    seen.position, seen.moved_at = 58, clock.now
    assert alive(vitals.facts(), LIMITS).well


def test_a_step_is_timed_while_it_lasts_and_when_it_fails() -> None:
    clock = Clock()
    vitals = Vitals(clock)
    vitals.enter(Phase.RUNNING)
    inside: list[Facts] = []

    def work(seconds: float) -> float:
        clock.now += seconds
        inside.append(vitals.facts())
        if seconds > 50:
            raise ValueError
        return seconds

    timed = vitals.timed("decode", work)
    assert timed(2.0) == 2.0
    assert inside[0].works == (Work("decode", 1_000.0),)
    assert vitals.facts().works == ()
    with pytest.raises(ValueError, match=r"^$"):
        timed(61.0)
    assert alive(inside[1], LIMITS).reasons == ("the step decode has been at one batch for 61 s",)
    assert vitals.facts().works == () and vitals.seconds() == {"decode": 63.0}


def test_the_last_partition_to_end_ends_the_flow() -> None:
    vitals = Vitals(Clock())
    vitals.enter(Phase.RUNNING)
    vitals.opened(0)
    vitals.opened(1)
    vitals.ended(0)
    assert vitals.facts().phase is Phase.RUNNING
    vitals.ended(1)
    vitals.ended(1)
    assert vitals.facts().phase is Phase.ENDING
