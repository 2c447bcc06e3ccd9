"""Which subscriptions the events of a batch fall under, where events of the log have made them.

One object serves all workers of a process; a partition is read by one of them. What a partition's
subscriptions were is read once, at its first batch of a run: everything before that batch is durable by then,
because offsets become so only after the rows. From there on they follow the batches.
"""

from __future__ import annotations

from dataclasses import replace

from domain.catalog import History
from domain.ports import SubscriptionLog
from domain.subscriptions import SUBSCRIPTION, Lives, Occasion, applied, judge, segments_of
from domain.values import Batch, Position, Reason, Refusal, Segment, SubscriptionChange

_Live = dict[str, list[tuple[int, tuple[Segment, ...]]]]


class Subscriber:
    """Applies subscription events, and tells what the events after them fall under.

    Args:
        history: The catalogs.
        saved: What accepted subscription events changed in earlier runs.
    """

    def __init__(self, history: History, saved: SubscriptionLog) -> None:
        self._history = history
        self._saved = saved
        self._partitions: dict[int, _Partition] = {}

    def subscribe(self, batch: Batch) -> Batch:
        """The batch with what its events fall under; of its subscription events, those that do not fit are rejects.

        Batches of one partition come in order, without gaps.
        """
        raw, events = batch.raw, batch.events
        partition = self._partitions.get(raw.partition)
        if partition is None:
            partition = self._partitions[raw.partition] = _Partition()
            for change in self._saved.changes(raw.partition, raw.start_offset):
                partition.apply(change)
        else:
            assert raw.start_offset >= partition.next_offset, (raw.partition, raw.start_offset, partition.next_offset)
        partition.next_offset = raw.next_offset
        live: _Live = {}
        if partition.segments:
            touched = partition.segments.keys() & set(events.subjects)
            live = {subject: [(0, partition.segments[subject])] for subject in touched}
        if SUBSCRIPTION in events.types:
            return self._judge_all(batch, partition, live)
        return replace(batch, live=live) if live else batch

    def _judge_all(self, batch: Batch, partition: _Partition, live: _Live) -> Batch:
        """Apply the subscription events of a batch, one after the other."""
        changes: list[SubscriptionChange] = []
        refused: list[int] = []
        for row in [row for row, name in enumerate(batch.events.types) if name == SUBSCRIPTION]:
            outcome = self._judge(batch, row, partition)
            if isinstance(outcome, str):
                assert not batch.raw.settled, f"{outcome}: was accepted at {batch.events.offsets[row]}"
                _reject(batch, row, outcome)
                refused.append(row)
                continue
            partition.apply(outcome)
            changes.append(outcome)
            segments = partition.segments.get(outcome.subject, ())
            live.setdefault(outcome.subject, []).append((row - len(refused), segments))
        return Batch(batch.raw, batch.events.without(refused), batch.rejects, changes, live)

    def _judge(self, batch: Batch, row: int, partition: _Partition) -> SubscriptionChange | str:
        events = batch.events
        at = Occasion(
            events.offsets[row],
            events.indexes[row],
            events.log_times_us[row],
            events.times_us[row],
            events.subjects[row],
        )
        catalog = self._history.get(events.catalog_versions[row]).catalog
        return judge(partition.lives.get(at.subject, ()), catalog, events.data[row], at)


class _Partition:
    """The live subscriptions of one partition's subjects, up to `next_offset`."""

    def __init__(self) -> None:
        self.next_offset = 0
        self.lives: dict[str, Lives] = {}
        self.segments: dict[str, tuple[Segment, ...]] = {}

    def apply(self, change: SubscriptionChange) -> None:
        subject = change.subject
        lives = applied(self.lives.get(subject, ()), change)
        if lives:
            self.lives[subject] = lives
            self.segments[subject] = segments_of(lives)
        else:
            self.lives.pop(subject, None)
            self.segments.pop(subject, None)


def _reject(batch: Batch, row: int, detail: str) -> None:
    """Move an event to the rejects; as first claimer of its key it stands there itself, should claims get lost."""
    events = batch.events
    position = Position(batch.raw.partition, events.offsets[row], events.indexes[row])
    refusal = Refusal(
        Reason.SUBSCRIPTION_INVALID,
        detail,
        events.log_times_us[row],
        events.sources[row],
        events.ids[row],
        events.subjects[row],
    )
    batch.rejects.add(position, events.payloads[row], refusal, position, events.contents[row])
