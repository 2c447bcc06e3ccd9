"""What products read: CloudEvents that say exactly what the signal says, and quota fields."""

from __future__ import annotations

import json
import re
from datetime import datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.instants import END_US, MIN_US, parse
from domain.quota import QuotaState, Signal, SignalType
from domain.signals_json import QuotaField, decimal_text, quota_key, quota_value, signal_event

PLAIN = re.compile(r"-?(0|[1-9]\d*)(\.\d*[1-9])?")
instants = st.integers(MIN_US, END_US - 1)
scaled = st.integers(0, 10**76 - 1) | st.integers(0, 30).map(lambda n: 10**n)
texts = st.text(st.characters(exclude_categories=["Cs"]))
signals = st.builds(
    Signal,
    id=st.text("0123456789abcdef", min_size=32, max_size=32),
    type=st.sampled_from(SignalType),
    subject=texts,
    feature=texts,
    meter=texts,
    period_start_us=instants,
    period_end_us=instants,
    threshold=scaled,
    allowance=scaled,
    used=scaled,
    at_us=instants,
    catalog_version=st.integers(1, 2**31),
)


def number(text: str, signal_type: SignalType) -> int:
    """A decimal string as the signal holds it; exact or an error."""
    assert PLAIN.fullmatch(text), text
    sign, digits, exponent = Decimal(text).as_tuple()
    assert not sign
    assert isinstance(exponent, int)
    decimals = 24 if signal_type == "spend.threshold_reached" else 12
    assert exponent + decimals >= 0
    return int("".join(map(str, digits))) * int(10 ** (exponent + decimals))


def read(text: str) -> int:
    found = parse(text)
    assert found is not None, text
    return found


@given(signals)
def test_a_signal_can_be_read_back_whole(signal: Signal) -> None:
    event = json.loads(signal_event(signal))
    data = event.pop("data")
    assert event == {
        "specversion": "1.0",
        "source": "tallyflow",
        "datacontenttype": "application/json",
        "id": signal.id,
        "type": signal.type.value,
        "subject": signal.subject,
        "time": event["time"],
    }
    assert datetime.fromisoformat(event["time"]).utcoffset() is not None
    back = Signal(
        event["id"],
        SignalType(event["type"]),
        event["subject"],
        data["feature"],
        data["meter"],
        read(data["period_start"]),
        read(data["period_end"]),
        number(data["threshold"], signal.type),
        number(data["allowance"], signal.type),
        number(data["used"], signal.type),
        read(event["time"]),
        data["catalog_version"],
    )
    assert back == signal
    assert set(data) == {
        "feature", "meter", "period_start", "period_end", "threshold", "allowance", "used", "catalog_version",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (0, 12, "0"),
        (1, 12, "0.000000000001"),
        (1, 24, "0.000000000000000000000001"),
        (123_500_000_000_000, 12, "123.5"),
        (100 * 10**12, 12, "100"),
        (10**27 * 10**12, 12, "1" + "0" * 27),
        (10**76 - 1, 24, "9" * 52 + "." + "9" * 24),
        (-1_500_000_000_000, 12, "-1.5"),
        (-(10**12), 12, "-1"),
        (7, 0, "7"),
    ],
)
def test_numbers_are_plain_decimals(value: int, decimals: int, text: str) -> None:
    assert decimal_text(value, decimals) == text


def test_a_signal_looks_like_this() -> None:
    signal = Signal(
        "0123", SignalType.EXCEEDED, "cust-1", "api", "calls", read("2026-01-01T00:00:00Z"),
        read("2026-02-01T00:00:00Z"), 10**15, 10**15, 10**15 + 5 * 10**11, read("2026-01-17T09:30:00.25Z"), 3,
    )  # fmt: skip
    assert signal_event(signal).decode() == (
        '{"specversion":"1.0","id":"0123","source":"tallyflow","type":"quota.exceeded","subject":"cust-1",'
        '"time":"2026-01-17T09:30:00.250000Z","datacontenttype":"application/json","data":{"feature":"api",'
        '"meter":"calls","period_start":"2026-01-01T00:00:00Z","period_end":"2026-02-01T00:00:00Z",'
        '"threshold":"1000","allowance":"1000","used":"1000.5","catalog_version":3}}'
    )


def test_a_quota_looks_like_this() -> None:
    field = QuotaField(
        "cust-1", "api", 1235 * 10**11, 10**15, QuotaState.OK,
        read("2026-01-01T00:00:00Z"), read("2026-02-01T00:00:00Z"), 17, 0, 'the "pro" plan', "allow",
    )  # fmt: skip
    assert quota_value(field) == (
        '{"used":"123.5","limit":"1000","state":"ok","period_start":"2026-01-01T00:00:00Z",'
        '"period_end":"2026-02-01T00:00:00Z","inputs":17,"era":0,"plan":"the \\"pro\\" plan","on_exceed":"allow"}'
    )
    assert json.loads(quota_value(field))["plan"] == field.plan
    assert quota_key("cust-1") == "quota:{cust-1}"
