"""When a period is over of which a threshold was crossed, so that what acted upon the crossing can end it.

A period gets one reset iff a threshold of it was crossed and it is over:

- where log times are monotone, once the log time of any partition has reached the period's end, so also if
  the subject sends nothing any more (it may be blocked);
- elsewhere, once an event of the same subject and feature was counted in a period that begins at that end or
  later. There is no other sign of time.

Both conditions, once true, stay so as the log grows, and the reset is due with whichever comes last. So which
resets there are depends on the log alone: not on how it is cut into batches, where the flow stopped, or the
order in which partitions are read. A period whose first crossing comes after its end (by late events) gets
its reset together with the crossing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from heapq import heappop, heappush
from typing import Any, NamedTuple

from domain.catalog import Aggregation
from domain.updates import PeriodKey, QuotaUpdate

Limit = tuple[str, str, int]
"""(plan, feature, pricing version)"""


class Crossed(NamedTuple):
    """A period of which a threshold was crossed. Orders by its end."""

    end_us: int
    start_us: int
    subject: str
    feature: str
    plan: str
    pricing_version: int
    aggregation: Aggregation

    @property
    def key(self) -> PeriodKey:
        return (self.subject, self.start_us, self.end_us)


class Resets:
    """The periods of one shard that will get a reset once they are over.

    Args:
        lowest: Of each limit that has thresholds, the lowest as a quantity. Other limits have no resets.
        by_log_time: Whether log times say that a period is over.
    """

    def __init__(self, lowest: Mapping[Limit, int], by_log_time: bool) -> None:
        self._lowest = lowest
        self._features = frozenset(feature for _, feature, _ in lowest)
        self._by_log_time = by_log_time
        self._log_time_us = 0
        self._due: list[Crossed] = []
        self._by_end: list[Crossed] = []
        """A heap; only by log time."""
        self._by_subject: dict[tuple[str, str], list[Crossed]] = {}
        """By subject and feature; only without log times."""
        self._latest_us: dict[str, dict[str, int]] = {feature: {} for feature in self._features}
        """By feature and subject, the latest start of a period with events; only without log times."""

    def see(self, update: QuotaUpdate, aggregation: Aggregation) -> None:
        """Note what an update crosses, and which periods it shows to be over."""
        feature = update.feature
        if feature not in self._features:
            return
        if not self._by_log_time:
            self.learn(feature, update.keys)
        lowest = self._lowest.get((update.plan, feature, update.pricing_version))
        if lowest is None or max(update.after) < lowest:
            return
        for (subject, start, end), before, after in zip(update.keys, update.before, update.after, strict=True):
            if before < lowest <= after:
                self._add(Crossed(end, start, subject, feature, update.plan, update.pricing_version, aggregation))

    def learn(self, feature: str, keys: Iterable[tuple[Any, ...]]) -> None:
        """Note in which periods there are events."""
        if feature not in self._features:
            return
        latest = self._latest_us[feature]
        for subject, start, *_ in keys:
            if latest.get(subject, -1) < start:
                latest[subject] = start
                waiting = self._by_subject.pop((subject, feature), [])
                for crossed in waiting:
                    self._add(crossed)

    def advance(self, log_time_us: int) -> None:
        """Note a partition's log time."""
        if log_time_us > self._log_time_us:
            self._log_time_us = log_time_us
            while self._by_end and self._by_end[0].end_us <= log_time_us:
                self._due.append(heappop(self._by_end))

    def take(self) -> list[Crossed]:
        """The periods whose reset is due, each once."""
        due, self._due = self._due, []
        return due

    def _add(self, crossed: Crossed) -> None:
        reached_us = self._log_time_us if self._by_log_time else self._latest_us[crossed.feature][crossed.subject]
        if crossed.end_us <= reached_us:
            self._due.append(crossed)
        elif self._by_log_time:
            heappush(self._by_end, crossed)
        else:
            self._by_subject.setdefault((crossed.subject, crossed.feature), []).append(crossed)

    def snapshot(self) -> list[Crossed]:
        """Everything that waits; `learn` and `advance` bring back the rest."""
        return sorted([*self._by_end, *(one for waiting in self._by_subject.values() for one in waiting)])

    def restore(self, waiting: Iterable[Crossed]) -> None:
        """Go on with what `snapshot` gave."""
        for crossed in waiting:
            if crossed.feature in self._features:
                self._add(crossed)
