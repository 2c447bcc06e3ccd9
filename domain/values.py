"""The values that travel through the flow: raw batches, decoded events, rejects.

Batches are the items of every stream: one object holds thousands of events as parallel lists
("columns"), so an operator makes one Python-level call a batch. Every list of one object has the
same length. Instants are `int` microseconds since 1970-01-01 UTC (names end in `_us`); quantities
are `int` in units of 10^-12 (`QUANTITY_SCALE`), amounts `int` in units of 10^-24 (`AMOUNT_SCALE`):
exact, and never a float.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import date
from enum import StrEnum
from itertools import compress
from typing import Any, NamedTuple

QUANTITY_DECIMALS = 12
QUANTITY_SCALE: int = 10**QUANTITY_DECIMALS
AMOUNT_DECIMALS = 24
AMOUNT_SCALE: int = 10**AMOUNT_DECIMALS

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US

FOREVER_US = 2**62
"""The end of what has none."""

FUTURE_SKEW_US = 5 * MINUTE_US
"""An event may be this much ahead of its log time (producers' clocks differ)."""

EVENT_BYTES_MAX = 1024 * 1024
"""A larger event is rejected as `oversized`; of a batch, each element is measured."""

JSON_DEPTH_MAX = 500
"""An event nested deeper is `malformed`: parsers give up at depths that depend on their stack."""


DETAIL_CHARS_MAX = 500
"""A reject's detail is cut to this length."""


class Reason(StrEnum):
    """Why an event was not accepted, in order of precedence: the first that applies is given."""

    MALFORMED = "malformed"
    OVERSIZED = "oversized"
    NOT_CLOUDEVENT = "not_cloudevent"
    UNKNOWN_TYPE = "unknown_type"
    SCHEMA_VIOLATION = "schema_violation"
    TIME_IN_FUTURE = "time_in_future"
    TOO_LATE = "too_late"
    CONFLICT = "conflict"
    DUPLICATE = "duplicate"
    SUBSCRIPTION_INVALID = "subscription_invalid"


class Position(NamedTuple):
    """Where an event stands in its log topic. Orders as the log does."""

    partition: int
    offset: int
    element: int = 0
    """Its place in a CloudEvents batch: `log_index`."""


@dataclass(frozen=True, slots=True)
class RawBatch:
    """What a source emits: the events of the messages `[start_offset, next_offset)` of a partition.

    A message that is a CloudEvents batch (a JSON array) is split by the source into its elements,
    with `indexes` 0, 1, ...; every other message is one event with index 0.
    """

    topic: str
    partition: int
    start_offset: int
    next_offset: int
    offsets: list[int]
    indexes: list[int]
    payloads: list[bytes]
    """The exact bytes received; of a batch, the element's."""
    messages: int
    """Messages of this partition up to `next_offset`, cumulative from its beginning."""
    events: int
    """Events of this partition up to `next_offset`, cumulative from its beginning."""
    attributes: list[dict[str, str] | None] | None = None
    """CloudEvents attributes from `ce_` headers (binary mode); None where there are none at all."""
    log_times_us: list[int] | None = None
    """Log times given by the broker. None (files): the event's `logtime`, else its own `time`."""
    log_time_us: int | None = None
    """Running maximum of the partition's log time; None where log times are not monotone."""
    settled: bool = False
    """The events were accepted before and stand in the ledger: not to be claimed, judged or written again."""

    def strides(self, rows_max: int) -> Iterator[RawBatch]:
        """The same events in parts of at most so many, but that a message stays whole."""
        start, start_offset = 0, self.start_offset
        while (end := self._message_end(start + rows_max)) < len(self.offsets):
            yield self._part(start, end, start_offset, self.offsets[end])
            start, start_offset = end, self.offsets[end]
        yield self if start == 0 else self._part(start, len(self.offsets), start_offset, self.next_offset)

    def _message_end(self, place: int) -> int:
        """The first place from the given one on where a message begins, or the end."""
        while place < len(self.offsets) and self.offsets[place] == self.offsets[place - 1]:
            place += 1
        return min(place, len(self.offsets))

    def _part(self, start: int, end: int, start_offset: int, next_offset: int) -> RawBatch:
        def cut(column: list[Any] | None) -> Any:
            return None if column is None else column[start:end]

        return replace(
            self,
            start_offset=start_offset,
            next_offset=next_offset,
            offsets=cut(self.offsets),
            indexes=cut(self.indexes),
            payloads=cut(self.payloads),
            attributes=cut(self.attributes),
            log_times_us=cut(self.log_times_us),
        )


class Refusal(NamedTuple):
    """Why one event was not accepted, and what is known of it ("" and 0 where it cannot be trusted)."""

    reason: Reason
    detail: str
    log_time_us: int = 0
    source: str = ""
    id: str = ""
    subject: str = ""


@dataclass(slots=True)
class Rejects:
    """Events that were not accepted, as columns."""

    offsets: list[int] = field(default_factory=list)
    indexes: list[int] = field(default_factory=list)
    log_times_us: list[int] = field(default_factory=list)
    """0 where the log time is not known (a file's event that could not be read)."""
    reasons: list[Reason] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    """Empty for plain duplicates."""
    firsts: list[Position | None] = field(default_factory=list)
    """Of duplicates, conflicts and refused subscription events (their own): the position that claimed the key first."""
    first_contents: list[int] = field(default_factory=list)
    """Of the same: the content hash of that first claim; else 0."""

    def __len__(self) -> int:
        return len(self.offsets)

    def extend(self, others: Rejects) -> None:
        """Append rejects."""
        for f in fields(self):
            column = getattr(self, f.name)
            column += getattr(others, f.name)

    def add(
        self,
        position: Position,
        payload: bytes,
        refusal: Refusal,
        first: Position | None = None,
        first_content: int = 0,
    ) -> None:
        """Record one event as refused; `first` and `first_content` say what it repeats."""
        self.offsets.append(position.offset)
        self.indexes.append(position.element)
        self.payloads.append(payload)
        self.log_times_us.append(refusal.log_time_us)
        self.reasons.append(refusal.reason)
        self.details.append(refusal.detail[:DETAIL_CHARS_MAX])
        self.sources.append(refusal.source)
        self.ids.append(refusal.id)
        self.subjects.append(refusal.subject)
        self.firsts.append(first)
        self.first_contents.append(first_content)


@dataclass(slots=True)
class Events:
    """Events in order of their position, as columns."""

    offsets: list[int] = field(default_factory=list)
    indexes: list[int] = field(default_factory=list)
    log_times_us: list[int] = field(default_factory=list)
    times_us: list[int] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    attributes: list[dict[str, str] | None] | None = None
    data: list[Any] = field(default_factory=list)
    """The decoded `data` of each event: a msgspec struct of its event type (domain.schema)."""
    contents: list[int] = field(default_factory=list)
    """64-bit hash of what can be billed: type, subject, time and declared properties."""
    catalog_versions: list[int] = field(default_factory=list)
    """The catalog version in force at the event's log time."""

    def __len__(self) -> int:
        return len(self.offsets)

    def extend(self, others: Events) -> None:
        """Append events that come after these."""
        for f in fields(self):
            column = getattr(self, f.name)
            if column is not None:
                column += getattr(others, f.name)

    def without(self, drop: Collection[int]) -> Events:
        """The events but those at the given places."""
        if not drop:
            return self
        keep = [True] * len(self)
        for i in drop:
            keep[i] = False
        columns: dict[str, Any] = {
            f.name: None if (column := getattr(self, f.name)) is None else list(compress(column, keep))
            for f in fields(self)
        }
        return Events(**columns)


class SubscriptionAction(StrEnum):
    CREATE = "create"
    CHANGE = "change"
    END = "end"


class SubscriptionChange(NamedTuple):
    """What an accepted subscription event did: a row of `subscriptions`."""

    offset: int
    element: int
    log_time_us: int
    subject: str
    action: SubscriptionAction
    plan: str
    """Empty for `end`."""
    start: date
    """With the zone, which of the subject's subscriptions it is."""
    end: date | None
    """As the event has left it."""
    timezone: str
    effective_from_us: int


class Segment(NamedTuple):
    """A span in which a subject is on one plan."""

    start_us: int
    end_us: int
    """`FOREVER_US` for an open end; of billing periods too."""
    plan: str
    timezone: str
    billing_day: int
    """The day of the month on which billing periods begin, clamped to the month's end."""
    billing_until_us: int
    """Where the last billing period is cut."""


Live = Mapping[str, Sequence[tuple[int, tuple[Segment, ...]]]]
"""By subject, ascending: from which place in a batch's events on which segments hold."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch on its way: what it came from, what is still accepted, what was rejected."""

    raw: RawBatch
    events: Events
    rejects: Rejects
    changes: list[SubscriptionChange] = field(default_factory=list)
    """What its subscription events changed."""
    live: Live = field(default_factory=dict)
    """Of those of its subjects that events have subscribed; others have the catalog's subscriptions only."""

    def durable(self) -> Batch:
        """The batch without what the ledger does not hold (decoded data, whose classes no other process knows)."""
        return Batch(self.raw, replace(self.events, data=[]), self.rejects, self.changes)
