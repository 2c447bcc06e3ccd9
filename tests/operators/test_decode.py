"""decode, in a dataflow: one batch out for each batch in, nothing dropped."""

from __future__ import annotations

from domain.values import Reason
from operators.decode import decode
from tests.batches import history, payload, raw
from tests.operators.running import run

CATALOG = """
version: 1
timezone: UTC
currency: USD
event_types: {call: {schema: {type: object, properties: {n: {type: integer}}}}}
"""


def test_every_batch_is_split_into_events_and_rejects() -> None:
    batches = [
        raw([payload(id="a"), b"{", payload(id="b")]),
        raw([], start=3),
        raw([b"null"], start=3),
        raw([payload(id="c")], partition=1),
    ]
    out = run(batches, lambda up: decode("decode", up, history(CATALOG)))
    assert [batch.raw for batch in out] == batches
    assert [batch.events.ids for batch in out] == [["a", "b"], [], [], ["c"]]
    assert [batch.rejects.offsets for batch in out] == [[1], [], [3], []]
    assert {reason for batch in out for reason in batch.rejects.reasons} == {Reason.MALFORMED}
