"""Resets: one for each period of which a threshold was crossed, once it is over, and in the right order."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import pytest

from domain.catalog import Aggregation
from domain.partials import Groups, PricePartial, QuotaPartial, ShardInput
from domain.quota import Signal, Watcher, lowest_thresholds
from domain.rating import RatedUpdates
from domain.totals import ShardTotals
from domain.updates import QuotaReset
from domain.values import DAY_US, QUANTITY_SCALE
from tests.batches import history, us

CATALOG = """
version: 1
timezone: UTC
currency: USD
accept_within: 35d
event_types: {use: {schema: {type: object, properties: {}}}}
meters: {calls: {event_type: use, aggregation: count, window: 1h}}
plans:
  small:
    entitlements:
      - {feature: api, kind: metered, meter: calls, limit: 4, period: month, thresholds: [0.5, 1.0]}
      - {feature: silent, kind: metered, meter: calls, limit: 1, period: month, thresholds: []}
  large:
    entitlements: [{feature: api, kind: metered, meter: calls, limit: 100, period: month, thresholds: [1.0]}]
default_plan: small
"""
HISTORY = history(CATALOG)
MONTHS = [us(f"2026-0{month}-01T00:00:00Z") for month in range(1, 10)]
JANUARY, FEBRUARY, MARCH = range(3)


class Count(NamedTuple):
    """Events of a month."""

    month: int
    events: int
    subject: str = "a"
    plan: str = "small"
    feature: str = "api"


class Shard:
    """A shard and what watches its quotas."""

    def __init__(self, partitions: Collection[int] | None = None) -> None:
        self._partitions = partitions
        self._watcher = Watcher(HISTORY)
        self.totals = self._totals(None)

    def _totals(self, snapshot: bytes | None) -> ShardTotals:
        return ShardTotals(self._partitions, 35 * DAY_US, (), snapshot, lowest_thresholds(HISTORY))

    def restart(self) -> None:
        self.totals = self._totals(self.totals.snapshot())

    def send(self, *counts: Count, log_time: int | None = None, partition: int = 0) -> list[str]:
        """The signals of one batch, short."""
        return [short(signal) for signal in self.signals(*counts, log_time=log_time, partition=partition)]

    def signals(self, *counts: Count, log_time: int | None = None, partition: int = 0) -> list[Signal]:
        partials: list[PricePartial | QuotaPartial] = [
            QuotaPartial(
                c.plan, c.feature, Aggregation.COUNT, 1,
                Groups([(c.subject, MONTHS[c.month], MONTHS[c.month + 1])], [c.events], [0]),
            )
            for c in counts
        ]  # fmt: skip
        updates = self.totals.apply(ShardInput(partition, log_time, [*partials]))
        return self._watcher.watch(RatedUpdates(updates, [], []), 7).signals


def short(signal: Signal) -> str:
    kind = signal.type.removeprefix("quota.").removesuffix("_reached")
    threshold = "" if kind == "reset" else f" {signal.threshold // QUANTITY_SCALE}"
    return f"{signal.subject} {kind}{threshold} {MONTHS.index(signal.period_start_us)}"


def test_the_next_periods_first_event_resets() -> None:
    shard = Shard()
    assert shard.send(Count(JANUARY, 3)) == ["a threshold 2 0"]
    assert shard.send(Count(FEBRUARY, 1)) == ["a reset 0"]
    assert shard.send(Count(FEBRUARY, 1)) == ["a threshold 2 1"]
    assert shard.send(Count(MARCH, 1)) == ["a reset 1"]
    assert shard.send(Count(FEBRUARY, 9)) == ["a exceeded 4 1"]


def test_a_period_without_crossings_has_no_reset() -> None:
    shard = Shard()
    assert shard.send(Count(JANUARY, 1)) == []
    assert shard.send(Count(FEBRUARY, 1)) == []
    assert shard.send(Count(JANUARY, 9, feature="silent")) == []
    assert shard.send(Count(FEBRUARY, 9, feature="silent")) == [], "without thresholds nobody was told of anything"


def test_of_another_subject_or_feature_nothing_is_said() -> None:
    shard = Shard()
    shard.send(Count(JANUARY, 2))
    assert shard.send(Count(FEBRUARY, 1, subject="b"), Count(FEBRUARY, 1, feature="silent")) == []


def test_a_crossing_after_the_period_is_reset_at_once() -> None:
    """Late events: who was blocked by that signal must not wait for the next one."""
    shard = Shard()
    shard.send(Count(FEBRUARY, 1))
    assert shard.send(Count(JANUARY, 2)) == ["a threshold 2 0", "a reset 0"]
    assert shard.send(Count(JANUARY, 2)) == ["a exceeded 4 0"], "a period has one reset"


def test_a_reset_comes_before_what_the_next_period_crosses() -> None:
    """Else who was blocked for the new period would be let through."""
    shard = Shard()
    shard.send(Count(JANUARY, 2))
    assert shard.send(Count(FEBRUARY, 4)) == ["a reset 0", "a threshold 2 1", "a exceeded 4 1"]
    all_at_once = Shard().send(Count(MARCH, 4), Count(JANUARY, 2), Count(FEBRUARY, 1))
    assert all_at_once == ["a threshold 2 0", "a reset 0", "a threshold 2 2", "a exceeded 4 2"]


def test_usage_on_another_plan_resets_too() -> None:
    shard = Shard()
    shard.send(Count(JANUARY, 2))
    assert shard.send(Count(FEBRUARY, 1, plan="large")) == ["a reset 0"]


def test_the_reset_of_each_plan_of_a_period_is_its_own() -> None:
    """A subject that changed plans within a month: two limits were reached."""
    shard = Shard()
    shard.send(Count(JANUARY, 4), Count(JANUARY, 100, plan="large"))
    signals = shard.signals(Count(FEBRUARY, 1, plan="large"))
    assert [(short(s), s.allowance // QUANTITY_SCALE) for s in signals] == [("a reset 0", 4), ("a reset 0", 100)]
    assert len({signal.id for signal in signals}) == 2


def test_a_reset_says_what_is_over() -> None:
    shard = Shard()
    shard.send(Count(JANUARY, 5))
    (signal,) = shard.signals(Count(FEBRUARY, 1))
    assert signal.type == "quota.reset"
    assert (signal.period_start_us, signal.period_end_us) == (MONTHS[0], MONTHS[1])
    assert (signal.threshold, signal.allowance, signal.used) == tuple(n * QUANTITY_SCALE for n in (4, 4, 5))
    assert (signal.meter, signal.at_us, signal.catalog_version) == ("calls", 7, 1)


@pytest.mark.parametrize("partition", [0, 1])
def test_a_subject_that_sends_nothing_any_more_is_reset_by_log_time(partition: int) -> None:
    """By that of any partition: time passes for all."""
    shard = Shard([0, 1])
    assert shard.send(Count(JANUARY, 4), log_time=MONTHS[1] - 1) == ["a threshold 2 0", "a exceeded 4 0"]
    assert shard.send(log_time=MONTHS[1] - 1, partition=partition) == []
    assert shard.send(log_time=MONTHS[1], partition=partition) == ["a reset 0"]
    assert shard.send(log_time=MONTHS[2], partition=partition) == []


def test_by_log_time_no_event_of_the_next_period_is_needed_nor_enough() -> None:
    """An event may be ahead of its log time by 5 minutes; then the period goes on."""
    shard = Shard([0])
    shard.send(Count(JANUARY, 2), log_time=MONTHS[1] - 2)
    assert shard.send(Count(FEBRUARY, 1), log_time=MONTHS[1] - 1) == []
    assert shard.send(Count(JANUARY, 2), log_time=MONTHS[1]) == ["a exceeded 4 0", "a reset 0"]
    assert shard.send(Count(JANUARY, 9), log_time=MONTHS[1]) == []


def test_a_late_crossing_by_log_time_is_reset_at_once() -> None:
    shard = Shard([0])
    shard.send(log_time=MONTHS[1] + 1)
    assert shard.send(Count(JANUARY, 3), log_time=MONTHS[1] + 2) == ["a threshold 2 0", "a reset 0"]


def test_a_long_silence_resets_before_it_forgets() -> None:
    shard = Shard([0])
    shard.send(Count(JANUARY, 2), log_time=MONTHS[0])
    assert shard.send(log_time=MONTHS[5]) == ["a reset 0"]
    assert len(shard.totals) == 0


@pytest.mark.parametrize("partitions", [None, [0]])
def test_what_waits_survives_a_restart_and_is_not_repeated(partitions: list[int] | None) -> None:
    shard = Shard(partitions)
    shard.send(Count(JANUARY, 2), Count(JANUARY, 4, subject="b"), Count(FEBRUARY, 2, subject="c"))
    later = None if partitions is None else MONTHS[1]
    shard.restart()
    found = shard.send(Count(FEBRUARY, 1), Count(FEBRUARY, 1, subject="b"), log_time=later)
    assert found == ["a reset 0", "b reset 0"]
    shard.restart()
    assert shard.send(Count(FEBRUARY, 0), log_time=later) == []
    assert shard.send(Count(JANUARY, 2), log_time=later) == ["a exceeded 4 0"]
    if partitions is None:
        assert shard.send(Count(MARCH, 1, subject="c")) == ["c reset 1"]
        shard.restart()
        assert shard.send(Count(FEBRUARY, 2, subject="c")) == ["c exceeded 4 1"], "it is known to be over"
    else:
        assert shard.send(log_time=MONTHS[2]) == ["c reset 1"]


def test_updates_carry_what_is_over() -> None:
    shard = Shard([0])
    shard.send(Count(JANUARY, 3))
    updates = shard.totals.apply(ShardInput(0, MONTHS[1], []))
    assert updates.resets == [QuotaReset("small", "api", 1, ("a", MONTHS[0], MONTHS[1]), 3 * QUANTITY_SCALE)]
