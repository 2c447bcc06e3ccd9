"""What passes between the reader and a worker: every message once, in batches of a stated size, within bounds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sources.kafka_feed import FEED_BYTES_MAX, FEED_PIECES_MAX, Ends, Feed, Lag
from sources.kafka_messages import Fetched


def fetched(start: int, messages: int, markers: int = 0, binary: bool = False, size: int = 1) -> Fetched:
    offsets = list(range(start, start + messages))
    return Fetched(
        start,
        start + messages + markers,
        messages,
        offsets,
        [0] * messages,
        [b"x" * size] * messages,
        [{"id": str(offset)} for offset in offsets] if binary else None,
        [offset * 1000 for offset in offsets],
        max(offsets, default=0) * 1000,
    )


def feed(rows_max: int = 10) -> Feed:
    return Feed(0, rows_max, position=0, taken=0)


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 2), st.booleans(), st.booleans())))
def test_however_it_is_cut_every_message_comes_once_and_in_order(steps: list[tuple[int, int, bool, bool]]) -> None:
    some, taken, put = feed(), [], 0
    for messages, markers, binary, take in steps:
        some.put(fetched(some.position, messages, markers, binary))
        put += messages
        if take:
            taken.append(some.take())
    while (piece := some.take()) is not None:
        taken.append(piece)
    pieces = [piece for piece in taken if piece is not None]
    position = 0
    for piece in pieces:
        assert piece.start_offset == position and piece.messages == len(piece.offsets) <= 10
        assert piece.attributes is None or [a and a["id"] for a in piece.attributes if a] == [
            str(offset) for offset, a in zip(piece.offsets, piece.attributes, strict=True) if a
        ]
        position = piece.next_offset
    assert position == some.position and sum(piece.messages for piece in pieces) == put
    assert not some.waits and not some.full


def test_a_feed_is_full_by_messages_by_bytes_and_by_pieces() -> None:
    many, large, empty = feed(), feed(), feed()
    many.put(fetched(0, 9))
    assert not many.full
    many.put(fetched(9, 1))
    assert many.full
    large.put(fetched(0, 1, size=FEED_BYTES_MAX))
    assert large.full
    for _ in range(FEED_PIECES_MAX):
        assert not empty.full
        empty.put(fetched(empty.position, 0, markers=1))
    assert empty.full
    for some in (many, large, empty):
        some.take()
        assert not some.full


def test_lag_is_what_waits_and_since_when() -> None:
    some = feed()
    assert some.lag(9_000_000) == Lag(0, 0.0), "nothing is known yet"
    some.ends = Ends(5_000_000, 12, 12)
    some.taken, some.log_time_us = 12, 4_000_000
    assert some.lag(9_000_000) == Lag(0, 0.0)
    some.ends = Ends(8_000_000, 20, 15)
    assert some.lag(9_000_000) == Lag(8, 5.0), "an open transaction waits too"
    some.caught_up_us = 7_000_000
    assert some.lag(9_000_000) == Lag(8, 2.0), "it was idle until then"
