"""deduplicate, in a dataflow over fake claims: who was first is an event, who repeats it is a reject."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

from bytewax.operators import Stream
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.decode import BatchDecoder
from domain.ports import (
    TICKETS_MAX,
    Claim,
    ClaimRequests,
    Claims,
    ClaimsLost,
    ClaimsUnavailable,
    Fenced,
    TallyError,
    Ticket,
)
from domain.values import Batch, Position, RawBatch, Reason
from operators.deduplicate import STRIDE_ROWS, deduplicate
from tests.batches import history, payload, raw
from tests.fakes.redis import RedisServer
from tests.operators.running import fake_claims, run, stopped_by

CATALOG = """
version: 1
timezone: UTC
currency: USD
event_types: {call: {schema: {type: object, properties: {n: {type: integer}}}}}
"""
HISTORY = history(CATALOG)


def deduplicated(
    batches: Sequence[RawBatch], claims: Claims, at_once: int = 1, stride_rows: int = STRIDE_ROWS
) -> list[Batch]:
    def operator(up: Stream[RawBatch]) -> Stream[Batch]:
        return deduplicate("deduplicate", up, BatchDecoder(HISTORY).decode, claims, stride_rows)

    return run(batches, operator, at_once)


def call(id: str, n: int = 1, subject: str = "a") -> bytes:
    return payload(id=id, subject=subject, data={"n": n})


def test_a_repeat_is_a_duplicate_and_other_content_a_conflict() -> None:
    repeat, other = call("1"), call("1", n=2)
    batches = [raw([call("1"), call("2"), repeat]), raw([other, call("3")], start=3), raw([repeat], partition=1)]
    first, second, third = deduplicated(batches, fake_claims())
    assert (first.events.offsets, second.events.offsets, third.events.offsets) == ([0, 1], [4], [])
    content = first.events.contents[0]
    for batch, offset, reason, kept in (
        (first, 2, Reason.DUPLICATE, b""),
        (second, 3, Reason.CONFLICT, other),
        (third, 0, Reason.DUPLICATE, b""),
    ):
        rejects = batch.rejects
        assert (rejects.offsets, rejects.indexes, rejects.reasons) == ([offset], [0], [reason])
        assert (rejects.payloads, rejects.details) == ([kept], ["first at file/0/0/0"])
        assert (rejects.firsts, rejects.first_contents) == ([Position(0, 0, 0)], [content])
        assert (rejects.sources, rejects.ids, rejects.subjects) == (["s"], ["1"], ["a"])
        assert rejects.log_times_us == first.events.log_times_us[:1]


def test_every_batch_is_split_into_events_and_rejects() -> None:
    batches = [
        raw([payload(id="a"), b"{", payload(id="b")]),
        raw([], start=3),
        raw([b"null"], start=3),
        raw([payload(id="c")], partition=1),
    ]
    out = deduplicated(batches, fake_claims())
    assert [batch.raw for batch in out] == batches
    assert [batch.events.ids for batch in out] == [["a", "b"], [], [], ["c"]]
    assert [batch.rejects.offsets for batch in out] == [[1], [], [3], []]
    assert {reason for batch in out for reason in batch.rejects.reasons} == {Reason.MALFORMED}


def test_a_key_is_the_source_and_the_id() -> None:
    payloads = [payload(id="ab", source="c"), payload(id="b", source="ca"), payload(id="abc", source=" ")]
    (batch,) = deduplicated([raw(payloads)], fake_claims())
    assert batch.events.offsets == [0, 1, 2]


def test_what_decode_refused_claims_nothing() -> None:
    (batch,) = deduplicated([raw([payload(id="1", data={"n": "x"}), call("1"), b"{"])], fake_claims())
    assert batch.events.offsets == [1]
    assert dict(zip(batch.rejects.offsets, batch.rejects.reasons, strict=True)) == {
        0: Reason.SCHEMA_VIOLATION,
        2: Reason.MALFORMED,
    }


def test_a_replay_accepts_its_own_events_again() -> None:
    server = RedisServer()
    batches = [raw([call("1"), call("2"), call("1")]), raw([call("2", n=2), call("3")], start=3)]
    once = deduplicated(batches, fake_claims(server))
    again = deduplicated(batches, fake_claims(server))
    assert [batch.durable() for batch in again] == [batch.durable() for batch in once]


def test_what_the_ledger_holds_is_neither_claimed_nor_refused() -> None:
    """Its claims are restored before; an id of it that is nobody's is the next one's."""
    settled = replace(raw([call("1"), call("1", n=2)]), settled=True)
    first, second = deduplicated([settled, raw([call("1")], partition=1)], fake_claims(), at_once=2)
    assert (first.events.offsets, second.events.offsets) == ([0, 1], [0])
    broken = replace(raw([call("1"), b"{"]), settled=True)
    with stopped_by(TallyError, "file/0/1/0 stands in the ledger as accepted, but is now refused (malformed"):
        deduplicated([broken], fake_claims())


written_calls = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 2)), min_size=1, max_size=10)


@settings(max_examples=30)
@given(written_calls, st.data())
def test_however_the_log_is_cut_and_replayed_the_same_events_are_first(
    written: list[tuple[str, int]], data: st.DataObject
) -> None:
    server = RedisServer()
    first_at: dict[str, int] = {}
    for offset, (key, _) in enumerate(written):
        first_at.setdefault(key, offset)
    reasons = {
        offset: Reason.DUPLICATE if written[first_at[key]][1] == n else Reason.CONFLICT
        for offset, (key, n) in enumerate(written)
        if first_at[key] != offset
    }
    for start in (0, data.draw(st.integers(0, len(written)))):
        edges = sorted({start, len(written), *data.draw(st.lists(st.integers(start, len(written)), max_size=3))})
        batches = [raw([call(*one) for one in written[low:high]], start=low) for low, high in pairwise(edges)]
        out = deduplicated(batches, fake_claims(server), stride_rows=data.draw(st.integers(1, 4)))
        assert [batch.raw for batch in out] == batches
        accepted = [offset for batch in out for offset in batch.events.offsets]
        assert accepted == [offset for offset in sorted(first_at.values()) if offset >= start]
        rejected = {at: why for b in out for at, why in zip(b.rejects.offsets, b.rejects.reasons, strict=True)}
        assert rejected == {offset: reason for offset, reason in reasons.items() if offset >= start}


class Call(NamedTuple):
    partition: int
    start_offset: int
    next_offset: int
    ids: list[str]


class Recorder:
    """Claims that answer nothing, and remember what they were asked; or raise."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[Call] = []
        self._error = error

    def claim(self, partition: int, start_offset: int, next_offset: int, requests: ClaimRequests) -> dict[int, Claim]:
        return self.receive(self.send(partition, start_offset, next_offset, requests))

    def send(self, partition: int, start_offset: int, next_offset: int, requests: ClaimRequests) -> Ticket:
        self.calls.append(Call(partition, start_offset, next_offset, requests.ids))
        return Ticket(len(self.calls))

    def receive(self, ticket: Ticket) -> dict[int, Claim]:
        if self._error is not None and ticket == 2:
            raise self._error
        return {}

    def forget(self, log_time_us: int) -> None:
        raise AssertionError("not the operator's business")


def test_claims_are_called_for_every_batch_in_order_also_for_an_empty_one() -> None:
    recorder = Recorder()
    deduplicated([raw([call("1")]), raw([b"{", b"{"], start=1), raw([], start=3), raw([call("2")], start=3)], recorder)
    assert recorder.calls == [Call(0, 0, 1, ["1"]), Call(0, 1, 3, []), Call(0, 3, 3, []), Call(0, 3, 4, ["2"])]


def test_a_large_batch_is_claimed_in_strides_that_do_not_part_a_message() -> None:
    batch = raw([call(str(i)) for i in range(9)])
    batch = replace(batch, next_offset=20, offsets=[0, 2, 2, 2, 2, 5, 6, 6, 9], indexes=[0, 0, 1, 2, 3, 0, 0, 1, 0])
    recorder = Recorder()
    (out,) = deduplicated([batch], recorder, stride_rows=3)
    assert recorder.calls == [
        Call(0, 0, 5, ["0", "1", "2", "3", "4"]),
        Call(0, 5, 9, ["5", "6", "7"]),
        Call(0, 9, 20, ["8"]),
    ]
    assert (out.raw, out.events.offsets, out.events.indexes) == (batch, batch.offsets, batch.indexes)


@given(st.lists(st.integers(1, 4), max_size=20), st.integers(1, 5))
def test_strides_are_the_whole_batch(elements: list[int], rows_max: int) -> None:
    offsets = [offset for offset, count in enumerate(elements) for _ in range(count)]
    batch = raw([b"%d" % i for i in range(len(offsets))], attributes=[{"n": str(i)} for i in range(len(offsets))])
    batch = replace(batch, next_offset=len(elements) + 1, offsets=offsets)
    parts = list(batch.strides(rows_max))
    edges = [batch.start_offset, *(part.next_offset for part in parts)]
    assert [part.start_offset for part in parts] == edges[:-1] and edges[-1] == batch.next_offset
    for column in ("offsets", "indexes", "payloads", "attributes"):
        assert [value for part in parts for value in getattr(part, column)] == getattr(batch, column)
    for part in parts:
        assert all(part.start_offset <= offset < part.next_offset for offset in part.offsets)
        assert len(set(part.offsets)) == 1 or len(part.offsets) < rows_max + 4


def test_the_store_works_while_the_next_batch_is_decoded() -> None:
    done: list[str] = []

    class Slow(Recorder):
        def send(self, partition: int, start_offset: int, next_offset: int, requests: ClaimRequests) -> Ticket:
            done.append(f"send {start_offset}")
            return super().send(partition, start_offset, next_offset, requests)

        def receive(self, ticket: Ticket) -> dict[int, Claim]:
            done.append(f"receive {ticket - 1}")
            return {}

    def decode(batch: RawBatch) -> Batch:
        done.append(f"decode {batch.start_offset}")
        return BatchDecoder(HISTORY).decode(batch)

    batches = [raw([call(str(i))], start=i) for i in range(TICKETS_MAX + 2)]
    out = run(batches, lambda up: deduplicate("deduplicate", up, decode, Slow()), at_once=len(batches))
    assert [batch.raw.start_offset for batch in out] == list(range(len(batches)))
    sent = [step for i in range(TICKETS_MAX) for step in (f"decode {i}", f"send {i}")]
    full = [f"decode {TICKETS_MAX}", "receive 0", f"send {TICKETS_MAX}"]
    full += [f"decode {TICKETS_MAX + 1}", "receive 1", f"send {TICKETS_MAX + 1}"]
    assert done == sent + full + [f"receive {i}" for i in range(2, len(batches))]


def test_repeats_among_batches_under_way_are_found() -> None:
    batches = [raw([call("1"), call(str(i))], start=2 * (i - 2)) for i in range(2, 12)]
    out = deduplicated(batches, fake_claims(), at_once=10)
    assert [batch.events.ids for batch in out] == [["1", "2"], *([str(i)] for i in range(3, 12))]


def test_what_claims_raise_stops_the_flow() -> None:
    for error in (ClaimsLost("gone"), Fenced("too old"), ClaimsUnavailable("no answer")):
        recorder = Recorder(error)
        batches = [raw([call(str(i))], start=i) for i in range(4)]
        with stopped_by(type(error), str(error)):
            deduplicated(batches, recorder)
        assert len(recorder.calls) == 2


def test_lost_claims_stop_the_flow_before_anything_passes() -> None:
    server = RedisServer()
    claims = fake_claims(server)
    deduplicated([raw([call("1")])], claims)
    server.flush()
    with stopped_by(ClaimsLost, "restart"):
        deduplicated([raw([call("1")], start=1)], claims)


def test_a_batch_is_durable_without_decoded_data() -> None:
    batch = BatchDecoder(HISTORY).decode(raw([call("1"), b"{"]))
    durable = batch.durable()
    assert (durable.events.data, durable.events.ids, durable.rejects) == ([], ["1"], batch.rejects)
    assert len(batch.events.data) == 1
