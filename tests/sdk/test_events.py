"""What the SDK puts into an event, and what it refuses."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from enum import IntEnum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tallyflow import events
from tallyflow.events import DEPTH_MAX, UsageEvent, encode, new_id

from domain.values import EVENT_BYTES_MAX, QUANTITY_DECIMALS

_NOW = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)


class Code(IntEnum):
    TEAPOT = 418


def _event(data: dict[str, Any], **given: Any) -> UsageEvent:
    return encode(**{"type": "t", "subject": "s", "data": data, "source": "/test", "id": "1", "time": _NOW, **given})


def _text(value: object) -> str:
    """The JSON text of a value in an event's data."""
    body = _event({"x": value}).body.decode()
    return body.partition('"data":{"x":')[2][:-2]


def test_the_limits_are_tallyflows() -> None:
    assert (events.EVENT_BYTES_MAX, events.DECIMALS_MAX) == (EVENT_BYTES_MAX, QUANTITY_DECIMALS)


def test_an_event_is_a_structured_cloudevent() -> None:
    event = _event({"bytes": 5, "region": "eu"}, type="api.request", subject="cust-1")
    assert json.loads(event.body) == {
        "specversion": "1.0",
        "id": "1",
        "source": "/test",
        "type": "api.request",
        "subject": "cust-1",
        "time": "2026-03-01T09:30:00Z",
        "datacontenttype": "application/json",
        "data": {"bytes": 5, "region": "eu"},
    }
    assert b"\n" not in _event({"text": "a\nb"}).body, "an event is one line"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        (-(10**30), "-1" + "0" * 30),
        (True, "true"),
        (None, "null"),
        (Code.TEAPOT, "418"),
        (Decimal("0.1"), "0.1"),
        (Decimal("1.50"), "1.50"),
        (Decimal("1E+3"), "1000"),
        (Decimal("1E-12"), "0.000000000001"),
        (Decimal("0.0000000000010000"), "0.000000000001"),
        (Decimal("2.000000000000000"), "2"),
        (Decimal("123456789012345.123456789012"), "123456789012345.123456789012"),
        (0.1, "0.1"),
        (0.1 + 0.2 - 0.3 + 1e-12, None),
        (1e-07, "0.0000001"),
        (5.0, "5.0"),
        ("ü\u2028", '"ü\u2028"'),
        (datetime(2026, 1, 1, 1, tzinfo=timezone(timedelta(hours=2))), '"2025-12-31T23:00:00Z"'),
        (UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        ((1, [Decimal("2.5"), {"y": 3}]), '[1,[2.5,{"y":3}]]'),
        (OrderedDict(a=1), '{"a":1}'),
    ],
)
def test_values_are_written_exactly(value: object, text: str | None) -> None:
    if text is None:
        with pytest.raises(ValueError, match=r"data\.x: .* decimals; round it"):
            _text(value)
    else:
        assert _text(value) == text


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**15) + 1, max_value=10**15 - 1, places=12))
def test_every_decimal_is_read_back_as_it_was(value: Decimal) -> None:
    assert Decimal(_text(value)) == value


@given(st.integers())
def test_every_integer_is_read_back_as_it_was(value: int) -> None:
    assert int(_text(value)) == value


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_is_sent_as_repr_shows_it_or_refused(value: float) -> None:
    shown = Decimal(repr(value))
    exponent = shown.normalize().as_tuple().exponent
    if abs(shown) < 10**15 and isinstance(exponent, int) and exponent >= -QUANTITY_DECIMALS:
        assert Decimal(_text(value)) == shown
    else:
        with pytest.raises(ValueError, match=r"decimals; round it|too large"):
            _text(value)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"data": {"a": {"b": [1, math.nan]}}}, r"data\.a\.b\[1\]: NaN is no JSON number"),
        ({"data": {"x": -math.inf}}, r"data\.x: -Infinity is no JSON number"),
        ({"data": {"x": Decimal("sNaN")}}, "sNaN is no JSON number"),
        ({"data": {"x": Decimal("1E-13")}}, "has 13 decimals; round it to at most 12"),
        ({"data": {"x": Decimal("1E+15")}}, "too large"),
        ({"data": {"x": object()}}, "a object has no JSON form"),
        ({"data": {"x": b"bytes"}}, "a bytes has no JSON form"),
        ({"data": {"x": {1, 2}}}, "a set has no JSON form"),
        ({"data": {"x": datetime(2026, 1, 1)}}, r"data\.x: 2026-01-01T00:00:00 has no time zone"),  # noqa: DTZ001
        ({"data": {1: 2}}, "data: the key 1 is no text"),
        ({"data": {"x": "\ud800"}}, "the event is no JSON"),
        ({"data": [1]}, "data has to be a mapping, not a list"),
        ({"data": {"x": "y" * EVENT_BYTES_MAX}}, r"the event has 1,048,\d+ bytes; at most 1,048,576"),
        ({"data": {}, "subject": ""}, "subject has to be a text that is not empty, not ''"),
        ({"data": {}, "id": ""}, "id has to be a text that is not empty"),
        ({"data": {}, "id": 7}, "id has to be a text that is not empty, not 7"),
        ({"data": {}, "type": None}, "type has to be a text"),
        ({"data": {}, "time": datetime(2026, 1, 1)}, "time: 2026-01-01T00:00:00 has no time zone"),  # noqa: DTZ001
        ({"data": {}, "time": "2026-01-01T00:00:00Z"}, "time has to be a datetime, not a str"),
        ({"data": {}, "time": datetime.max.replace(tzinfo=UTC)}, "is not between the years 2000 and 2100"),
        ({"data": {}, "time": datetime.min.replace(tzinfo=UTC)}, "is not between the years 2000 and 2100"),
    ],
)
def test_what_cannot_be_sent_says_why(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        _event(**given)


def test_nesting_is_bounded() -> None:
    deep: Any = 1
    for _ in range(DEPTH_MAX):
        deep = [deep]
    with pytest.raises(ValueError, match=f"nested deeper than {DEPTH_MAX}"):
        _event({"x": deep})
    assert _event({"x": deep[0]}).body.count(b"[") == DEPTH_MAX - 1


def test_an_event_of_the_largest_size_is_taken() -> None:
    room = EVENT_BYTES_MAX - len(_event({"x": ""}).body)
    assert len(_event({"x": "y" * room}).body) == EVENT_BYTES_MAX


def test_new_ids_are_uuids_of_version_7_in_order() -> None:
    before = datetime.now(UTC)
    made = [UUID(new_id()) for _ in range(1000)]
    after = datetime.now(UTC)
    assert {(one.version, one.variant) for one in made} == {(7, "specified in RFC 4122")}
    assert len(set(made)) == len(made)
    stamps = [one.int >> 80 for one in made]
    assert stamps == sorted(stamps)
    assert int(before.timestamp() * 1000) <= stamps[0] <= stamps[-1] <= after.timestamp() * 1000
