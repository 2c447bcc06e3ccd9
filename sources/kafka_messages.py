"""Kafka messages as events: what each message of a fetch becomes, by the CloudEvents Kafka binding 1.0.

| content-type header | ce_ headers | the message is |
| --- | --- | --- |
| `application/cloudevents...` | any | structured: one JSON object, or a JSON array of them (a batch) |
| another, or none | some | binary: attributes from the headers (UTF-8, not percent-encoded), data is the value |
| another, or none | none | structured |

Every message is at least one event, and nothing here judges one: a message without a value, or with
headers that are not UTF-8, comes out as an event that `decode` rejects. Of a repeated header the last
counts, as of repeated JSON keys; a header without a value is absent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, Final

from domain.envelope import BATCH_STARTS, split
from domain.ports import TallyError
from sources.kafka_records import BAD_NAME

_PREFIX: Final = "ce_"
_STRUCTURED: Final = b"application/cloudevents"
_UNWRITABLE: Final = "\udcff"
"""Has no UTF-8, so an event with this in an attribute is rejected as malformed."""
_LOG_APPEND_TIME: Final = 1

Header = tuple[str, bytes | None]
Message = Any
"""A `ConsumerRecord` of kafka-python, which is not typed."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """The messages of one partition between two offsets, as columns of events; there may be none."""

    start_offset: int
    next_offset: int
    """Behind the last message and whatever else is there: markers, aborted transactions."""
    messages: int
    offsets: list[int]
    indexes: list[int]
    payloads: list[bytes]
    attributes: list[dict[str, str] | None] | None
    log_times_us: list[int]
    log_time_us: int
    """The greatest; 0 without messages."""


def fetched(start_offset: int, next_offset: int, messages: Sequence[Message]) -> Fetched:
    """Columns of what a poll brought.

    Args:
        start_offset: Where the poll began.
        next_offset: The consumer's position after it.
        messages: In order of offset, within these bounds.

    Raises:
        TallyError: a message has no log-append time.
    """
    for message in messages:
        if message.timestamp_type != _LOG_APPEND_TIME:
            raise _no_log_time(message)
    offsets = [message.offset for message in messages]
    payloads = [message.value or b"" for message in messages]
    log_times_us = [message.timestamp * 1000 for message in messages]
    attributes = [attributes_of(message.headers) for message in messages] if any(m.headers for m in messages) else None
    count, latest = len(messages), max(log_times_us, default=0)
    indexes = [0] * count
    if attributes is not None and not any(attributes):
        attributes = None
    if not BATCH_STARTS.isdisjoint({payload[:1] for payload in payloads}):
        places, indexes, payloads = _divided(payloads, attributes)
        offsets = [offsets[i] for i in places]
        log_times_us = [log_times_us[i] for i in places]
        attributes = None if attributes is None else [attributes[i] for i in places]
    return Fetched(start_offset, next_offset, count, offsets, indexes, payloads, attributes, log_times_us, latest)


def joined(pieces: Sequence[Fetched]) -> Fetched:
    """Neighbours as one; at least one."""
    if len(pieces) == 1:
        return pieces[0]
    for before, after in pairwise(pieces):
        assert before.next_offset == after.start_offset, f"{after.start_offset} does not follow {before.next_offset}"
    plain = all(piece.attributes is None for piece in pieces)
    return Fetched(
        pieces[0].start_offset,
        pieces[-1].next_offset,
        sum(piece.messages for piece in pieces),
        [*chain.from_iterable(piece.offsets for piece in pieces)],
        [*chain.from_iterable(piece.indexes for piece in pieces)],
        [*chain.from_iterable(piece.payloads for piece in pieces)],
        None if plain else [*chain.from_iterable(map(_padded, pieces))],
        [*chain.from_iterable(piece.log_times_us for piece in pieces)],
        max(piece.log_time_us for piece in pieces),
    )


def attributes_of(headers: Iterable[Header]) -> dict[str, str] | None:
    """The CloudEvents attributes of a message in binary mode; None if it is in structured mode."""
    found: dict[str, str] = {}
    content_type: bytes | None = None
    for name, value in headers:
        if name.startswith(_PREFIX):
            if BAD_NAME in name:
                found[name] = _UNWRITABLE
            elif value is None:
                found.pop(name[len(_PREFIX) :], None)
            else:
                found[name[len(_PREFIX) :]] = value.decode("utf-8", "surrogateescape")
        elif name.lower() == "content-type":
            content_type = value
    if not found or (content_type is not None and content_type.strip().lower().startswith(_STRUCTURED)):
        return None
    if content_type is not None:
        found["datacontenttype"] = content_type.decode("utf-8", "surrogateescape")
    return found


def _divided(
    payloads: list[bytes], attributes: list[dict[str, str] | None] | None
) -> tuple[list[int], list[int], list[bytes]]:
    """Of each event: the place of its message, its index in it, its bytes. Binary data is never divided."""
    places: list[int] = []
    indexes: list[int] = []
    events: list[bytes] = []
    for place, payload in enumerate(payloads):
        whole = attributes is not None and attributes[place] is not None
        elements = [payload] if whole else split(payload)
        places += [place] * len(elements)
        indexes += range(len(elements))
        events += elements
    return places, indexes, events


def _padded(piece: Fetched) -> list[dict[str, str] | None]:
    return [None] * len(piece.offsets) if piece.attributes is None else piece.attributes


def _no_log_time(message: Message) -> TallyError:
    return TallyError(
        f"{message.topic}/{message.partition}: the message at offset {message.offset} bears its producer's time, so it "
        "was written before the topic was set to message.timestamp.type=LogAppendTime. What is counted depends on the "
        f"broker's time. Delete the messages up to and including {message.offset} (kafka-delete-records), or use a new "
        "topic."
    )
