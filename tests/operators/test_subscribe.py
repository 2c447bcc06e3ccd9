"""subscribe, in a real dataflow."""

from __future__ import annotations

import json

import pytest

from domain.decode import BatchDecoder
from domain.subscriptions import SUBSCRIPTION
from domain.values import Reason
from operators.subscribe import subscribe
from tests.batches import event, history, raw
from tests.fakes.flows import FakeSubscriptions
from tests.operators.running import run

CATALOG = """
version: 1
currency: USD
event_types: {call: {schema: {type: object}}}
plans: {pro: {}}
"""
HISTORY = history(CATALOG)


def line(id: str, **data: str) -> bytes:
    return json.dumps(event(id=id, type=SUBSCRIPTION if data else "call", data=data)).encode()


LOG = [
    line("0", action="create", plan="pro"),
    line("1"),
    line("2", action="create", plan="pro"),
    line("3"),
]


def test_what_does_not_fit_is_rejected_and_the_rest_goes_on() -> None:
    [batch] = run([BatchDecoder(HISTORY).decode(raw(LOG))], lambda up: subscribe("s", up, HISTORY, FakeSubscriptions()))
    assert batch.events.offsets == [0, 1, 3]
    assert batch.rejects.reasons == [Reason.SUBSCRIPTION_INVALID]
    assert [change.offset for change in batch.changes] == [0]
    assert batch.live["a"][0][0] == 0
    assert not batch.durable().live
    assert batch.durable().changes == batch.changes


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_run_goes_on_from_what_was_changed_before_its_first_batch(at: int) -> None:
    """Whatever was written early is judged again."""
    decoder = BatchDecoder(HISTORY)
    first = run([decoder.decode(raw(LOG))], lambda up: subscribe("s", up, HISTORY, FakeSubscriptions()))
    rest = [decoder.decode(raw([*LOG, line("4")][at:], start=at))]
    [batch] = run(rest, lambda up: subscribe("s", up, HISTORY, FakeSubscriptions(first)))
    assert batch.live["a"] == [(0, first[0].live["a"][0][1])]
    assert batch.rejects.offsets == [2][: max(0, 3 - at)]
