"""The oracle is held by rows worked out by hand, each from a handful of literal events."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal as D
from typing import Any

import pytest

from tests.oracle import Tables, calendars, compute, pricing
from tests.oracle.events import instant_us
from tests.oracle.json_text import Malformed, elements, parse
from tests.workload import generate, kitchen_sink_catalog

CATALOG = """
version: 1
timezone: {zone}
currency: USD
accept_within: 35d
event_types:
  call:
    schema:
      type: object
      properties: {{n: {{type: number}}, who: {{type: string}}}}
meters:
  calls: {{event_type: call, aggregation: count, group_by: [who], window: {window}, grace: 1h}}
  last: {{event_type: call, aggregation: latest, value: n, window: 1d, grace: 1h}}
  people: {{event_type: call, aggregation: unique, value: who, window: 1d, grace: 1h}}
plans:
  pro:
    prices:
      - {{key: calls, meter: calls, model: graduated,
         tiers: [{{up_to: 2, unit_amount: "0.5"}}, {{unit_amount: "0.25", flat_amount: "1"}}]}}
      - {{key: who, meter: calls, model: matrix, dimension: who, rates: {{b: 2, a: 1}}}}
    entitlements:
      - {{feature: calls, kind: metered, meter: calls, limit: 4, period: day, thresholds: [0.5, 0.75, 1.0]}}
    alerts: [{{key: high, amount: "2.25"}}, {{key: higher, amount: "100"}}]
subscriptions:
  - {{subject: s, plan: pro, start: 2026-01-31, end: 2026-05-20}}
"""


def us(text: str) -> int:
    found = instant_us(text)
    assert found is not None
    return found


def event(id_: str, time: str, log_time: str = "", subject: str = "s", **data: Any) -> bytes:
    attributes = {"specversion": "1.0", "id": id_, "source": "x", "type": "call", "subject": subject, "time": time}
    if log_time:
        attributes["logtime"] = log_time
    return json.dumps({**attributes, "data": data}).encode()


def run(*lines: bytes, zone: str = "UTC", window: str = "1h") -> Tables:
    return compute([(0, CATALOG.format(zone=zone, window=window))], [(0, b"".join(line + b"\n" for line in lines))])


def span(start: str, end: str) -> tuple[int, int]:
    return us(start), us(end)


@pytest.mark.parametrize(
    ("zone", "name", "instant", "start", "end"),
    [
        # 02:00 EST becomes 03:00 EDT: a day of 23 hours.
        ("America/New_York", "1d", "2026-03-08T12:00:00Z", "2026-03-08T05:00:00Z", "2026-03-09T04:00:00Z"),
        # 02:00 EDT becomes 01:00 EST: two windows 01:00, but one of three hours from 00:00 to 02:00.
        ("America/New_York", "1h", "2026-11-01T05:30:00Z", "2026-11-01T05:00:00Z", "2026-11-01T06:00:00Z"),
        ("America/New_York", "1h", "2026-11-01T06:30:00Z", "2026-11-01T06:00:00Z", "2026-11-01T07:00:00Z"),
        ("America/New_York", "2h", "2026-11-01T06:30:00Z", "2026-11-01T04:00:00Z", "2026-11-01T07:00:00Z"),
        # 03:00 CEST becomes 02:00 CET, a multiple of two hours: the window is cut.
        ("Europe/Berlin", "2h", "2026-10-25T00:30:00Z", "2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z"),
        ("Europe/Berlin", "2h", "2026-10-25T02:30:00Z", "2026-10-25T01:00:00Z", "2026-10-25T03:00:00Z"),
        # 00:00 becomes 01:00: the day, and its first hour, start at 01:00.
        ("America/Havana", "1d", "2026-03-08T05:00:00Z", "2026-03-08T05:00:00Z", "2026-03-09T04:00:00Z"),
        ("America/Havana", "1d", "2026-03-08T04:59:59Z", "2026-03-07T05:00:00Z", "2026-03-08T05:00:00Z"),
        # 01:00 becomes 00:00: the day starts at the first midnight and has two hours 00:00.
        ("America/Havana", "1d", "2025-11-02T05:30:00Z", "2025-11-02T04:00:00Z", "2025-11-03T05:00:00Z"),
        ("America/Havana", "1h", "2025-11-02T05:30:00Z", "2025-11-02T05:00:00Z", "2025-11-02T06:00:00Z"),
        # 24:00 becomes 23:00 of the day before.
        ("America/Santiago", "1d", "2026-04-05T03:30:00Z", "2026-04-04T03:00:00Z", "2026-04-05T04:00:00Z"),
        # 02:00 becomes 01:30.
        ("Australia/Lord_Howe", "1h", "2026-04-04T15:10:00Z", "2026-04-04T14:00:00Z", "2026-04-04T15:30:00Z"),
        ("Australia/Lord_Howe", "30m", "2026-04-04T15:10:00Z", "2026-04-04T15:00:00Z", "2026-04-04T15:30:00Z"),
        ("Asia/Kathmandu", "12h", "2026-03-31T18:20:00Z", "2026-03-31T18:15:00Z", "2026-04-01T06:15:00Z"),
        ("Asia/Kathmandu", "1mo", "2026-03-31T18:15:00Z", "2026-03-31T18:15:00Z", "2026-04-30T18:15:00Z"),
        ("Asia/Kathmandu", "5m", "2026-03-31T18:14:59.999999Z", "2026-03-31T18:10:00Z", "2026-03-31T18:15:00Z"),
    ],
)
def test_window(zone: str, name: str, instant: str, start: str, end: str) -> None:
    assert calendars.window(zone, name, us(instant)) == span(start, end)


@pytest.mark.parametrize("zone", ["America/Havana", "Australia/Lord_Howe", "America/Santiago", "Africa/Casablanca"])
@pytest.mark.parametrize("name", ["1m", "5m", "1h", "3h", "12h", "1d", "1mo"])
def test_windows_leave_no_gap(zone: str, name: str) -> None:
    for instant in range(us("2026-04-03T00:00:00Z"), us("2026-04-07T00:00:00Z"), 1_234_567_890):
        start, end = calendars.window(zone, name, instant)
        assert start <= instant < end
        assert calendars.window(zone, name, end - 1) == (start, end)
        assert calendars.window(zone, name, end)[0] == end


@pytest.mark.parametrize(
    ("instant", "start", "end"),
    [
        ("2026-01-31T00:00:00Z", "2026-01-31T00:00:00Z", "2026-02-28T00:00:00Z"),
        ("2026-02-28T00:00:00Z", "2026-02-28T00:00:00Z", "2026-03-31T00:00:00Z"),
        ("2026-04-29T23:59:59Z", "2026-03-31T00:00:00Z", "2026-04-30T00:00:00Z"),
        ("2026-05-19T23:00:00Z", "2026-04-30T00:00:00Z", "2026-05-20T00:00:00Z"),  # cut at the subscription's end
    ],
)
def test_billing_period_on_the_31st(instant: str, start: str, end: str) -> None:
    tables = run(event("1", instant))
    assert [key[3:] for key in tables.rated_usage] == [span(start, end)] * 2


def test_without_a_plan_usage_is_kept_but_not_rated() -> None:
    tables = run(event("1", "2026-05-20T00:00:00Z"))
    assert len(tables.usage) == 1
    assert not tables.rated_usage and not tables.quotas and not tables.signals


def test_one_subject_in_every_table() -> None:
    tables = run(
        event("1", "2026-03-08T12:00:00Z", n=1, who="a"),
        event("2", "2026-03-08T12:30:00Z", n=2),
        event("3", "2026-03-08T11:59:00Z", "2026-03-08T12:40:00Z", n=3, who="a"),
        zone="America/New_York",
    )
    day, noon = (
        span("2026-03-08T05:00:00Z", "2026-03-09T04:00:00Z"),
        span("2026-03-08T12:00:00Z", "2026-03-08T13:00:00Z"),
    )
    on_time = date(1970, 1, 1)
    nowhere = {"latest_time": 0, "latest_position": ("", 0, 0, 0)}
    one = {"inputs": 1, "era": 0, "version": 1, "catalog_version": 1}
    two, three = one | {"inputs": 2, "version": 2}, one | {"inputs": 3, "version": 3}
    a, none = {"dimensions": {"who": "a"}}, {"dimensions": {"who": ""}}
    count = {"aggregation": "count", "value": D(1), "count": 1, **nowhere, **one}
    eleven = (us("2026-03-08T11:00:00Z"), noon[0])
    latest = {"latest_time": us("2026-03-08T12:30:00Z"), "latest_position": ("file", 0, 1, 0)}
    assert tables.usage == {
        ("calls", "s", *noon, '["a"]', on_time): a | count,
        ("calls", "s", *noon, '[""]', on_time): none | count,
        ("calls", "s", *eleven, '["a"]', on_time): a | count,
        ("last", "s", *day, "", on_time): {"dimensions": {}, "aggregation": "latest", "value": D(2), "count": 3}
        | latest
        | three,
        ("people", "s", *day, "", on_time): {"dimensions": {}, "aggregation": "unique", "value": D(1), "count": 2}
        | nowhere
        | two,
    }
    assert tables.usage_members == {("people", "s", *day, "", "a")}
    period = span("2026-02-28T05:00:00Z", "2026-03-31T04:00:00Z")
    rated = {"meter": "calls", "quantity": D(3), "currency": "USD", **three}
    assert tables.rated_usage == {
        ("s", "pro", "calls", *period): rated | {"amount": D("2.25"), "tiers": [(D(2), D(1)), (D(1), D("1.25"))]},
        ("s", "pro", "who", *period): rated | {"amount": D(2), "tiers": [(D(2), D(2)), (D(1), D(0))]},
    }
    quota = {"period_end": day[1], "meter": "calls", "used": D(3), "allowance": D(4), "state": "warning", **three}
    assert tables.quotas == {("s", "pro", "calls", day[0]): quota}
    in_day = {"period_end": day[1], "allowance": D(4)}
    assert tables.signals == {
        ("quota.threshold_reached", "s", "calls", day[0], D(2)): in_day,
        ("quota.threshold_reached", "s", "calls", day[0], D(3)): in_day,
        ("spend.threshold_reached", "s", "high", period[0], D("2.25")): {
            "period_end": period[1],
            "allowance": D("2.25"),
        },
    }
    assert tables.progress == {("file", 0): {"next_offset": 3, "messages": 3, "events": 3, "log_time": 0}}


def test_exceeded_at_the_limit() -> None:
    tables = run(*(event(str(n), "2026-03-08T12:00:00Z") for n in range(4)))
    assert [row["state"] for row in tables.quotas.values()] == ["exceeded"]
    assert Counter(key[0] for key in tables.signals if key[2] == "calls") == {
        "quota.threshold_reached": 2,
        "quota.exceeded": 1,
    }


def test_a_period_that_is_over_and_was_noticed_is_reset() -> None:
    """By the first event of a later period; where log times are monotone, by them."""
    used = [event(str(n), "2026-03-08T12:00:00Z") for n in range(2)]
    later = event("9", "2026-03-09T12:00:00Z", "2026-03-09T12:00:00Z")
    catalogs = [(0, CATALOG.format(zone="UTC", window="1h"))]
    day = span("2026-03-08T00:00:00Z", "2026-03-09T00:00:00Z")

    def resets(events: list[bytes], log_time_reached: int | None = None) -> list[tuple[Any, ...]]:
        tables = compute(catalogs, [(0, b"".join(line + b"\n" for line in events))], log_time_reached)
        return [key for key in tables.signals if key[0] == "quota.reset"]

    found = [("quota.reset", "s", "calls", day[0], D(4))]
    assert resets(used) == []
    assert resets([*used, later]) == resets([later, *used]) == found
    assert resets([used[0], later]) == [], "no threshold was reached"
    assert resets([*used, later], day[1] - 1) == []
    assert resets(used, day[1]) == found


def test_late_is_booked_on_its_log_date() -> None:
    """The window [12:00, 13:00) closes with its grace at 14:00."""
    tables = run(
        event("1", "2026-03-08T12:00:00Z", "2026-03-08T13:59:59.999999Z"),
        event("2", "2026-03-08T12:00:00Z", "2026-03-08T14:00:00Z"),
        event("3", "2026-03-08T12:00:00Z", "2026-03-08T23:59:59.999999Z"),
        event("4", "2026-03-08T12:00:00Z", "2026-03-09T00:00:00Z"),
    )
    booked = {key[5]: row["count"] for key, row in tables.usage.items() if key[0] == "calls"}
    assert booked == {date(1970, 1, 1): 1, date(2026, 3, 8): 2, date(2026, 3, 9): 1}
    assert {row["quantity"] for row in tables.rated_usage.values()} == {D(4)}


def test_latest_ties_go_to_the_greater_position() -> None:
    tables = run(*(event(str(n), "2026-03-08T12:00:00Z", n=n) for n in (7, 5)))
    (row,) = (row for key, row in tables.usage.items() if key[0] == "last")
    assert (row["value"], row["latest_position"]) == (D(5), ("file", 0, 1, 0))


def test_duplicate_or_conflict() -> None:
    first = event("1", "2026-03-08T12:00:00.0000019Z", n=1.5)
    again = first.replace(b'"data": ', b'"more": 1, "data":').replace(b"1.5}", b' 15e-1, "undeclared": 7}')
    shifted = again.replace(b"T12:00:00.0000019Z", b"T13:00:00.000001+01:00")
    other = first.replace(b"1.5}", b"1.50000000001}")
    tables = run(first, first, shifted, other, other)
    assert list(tables.events) == [("file", 0, 0, 0)]
    reasons = [(row["reason"], row["first_position"], row["payload"]) for row in tables.rejects.values()]
    origin = ("file", 0, 0, 0)
    repeats = [("duplicate", origin, b"")] * 2
    assert reasons == [*repeats, ("conflict", origin, other), ("conflict", origin, other)]


def test_a_claim_is_found_in_neighbouring_generations_only() -> None:
    """A generation is 35 days and 5 minutes of log time, counted from 1970."""
    generation = timedelta(days=35, minutes=5)
    begin = datetime(1970, 1, 1, tzinfo=UTC) + 586 * generation

    def at(generations: int, seconds: int) -> bytes:
        moment = begin + generations * generation + timedelta(seconds=seconds)
        return event("1", moment.strftime("%Y-%m-%dT%H:%M:%SZ"))

    last, next_to = at(0, 35 * 86400), at(1, 0)
    beyond, between = at(2, 0), at(1, 1)
    tables = run(last, next_to, beyond, between)
    assert list(tables.events) == [("file", 0, 0, 0), ("file", 0, 2, 0)]
    assert {key[2]: row["first_position"][2] for key, row in tables.rejects.items()} == {1: 0, 3: 0}


def test_age_limits() -> None:
    time = "2026-03-05T00:00:00Z"
    tables = run(
        event("1", time, "2026-04-09T00:00:00Z"),
        event("2", time, "2026-04-09T00:00:00.000001Z"),
        event("3", time, "2026-03-04T23:55:00Z"),
        event("4", time, "2026-03-04T23:54:59.999999Z"),
    )
    assert [key[2] for key in tables.events] == [0, 2]
    assert [row["reason"] for row in tables.rejects.values()] == ["too_late", "time_in_future"]
    assert all(row["id"] and row["log_time"] for row in tables.rejects.values())


def test_lines_and_batches() -> None:
    good = event("1", "2026-03-08T12:00:00Z")
    content = b"\n".join([b"", b" [ " + good + b' , 7 ,{"a":"\\ud800"}] ', b"[" + good + b",]", b"[]", b"\xff", good])
    tables = compute([(0, CATALOG.format(zone="UTC", window="1h"))], [(3, content), (5, good[:-1]), (6, b"nul")])
    assert {key: row["payload"] for key, row in tables.events.items()} == {("file", 3, 1, 0): good}
    assert {key[2:]: (row["reason"], row["payload"]) for key, row in tables.rejects.items()} == {
        (0, 0): ("malformed", b""),
        (1, 1): ("not_cloudevent", b"7"),
        (1, 2): ("malformed", b'{"a":"\\ud800"}'),
        (2, 0): ("malformed", b"[" + good + b",]"),
        (3, 0): ("malformed", b"[]"),
        (4, 0): ("malformed", b"\xff"),
        (5, 0): ("duplicate", b""),
    }
    assert tables.progress == {("file", 3): {"next_offset": 6, "messages": 6, "events": 8, "log_time": 0}}


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2026-03-01T10:00:00.1234569+05:45", "2026-03-01T04:15:00.123456Z"),
        ("2000-01-01t00:00:00z", "2000-01-01T00:00:00Z"),
        ("2100-12-31T23:59:59.9999999-00:00", "2100-12-31T23:59:59.999999Z"),
    ],
)
def test_times(text: str, instant: str) -> None:
    assert instant_us(text) == us(instant)
    moment = datetime.fromisoformat(instant) - datetime(1970, 1, 1, tzinfo=UTC)
    assert us(instant) == moment // timedelta(microseconds=1)


@pytest.mark.parametrize(
    "text", ["1999-12-31T23:59:59Z", "2101-01-01T00:00:00Z", "2026-02-29T00:00:00Z", "2026-03-01T00:00:60Z",
             "2026-03-01T24:00:00Z", "2026-03-01T00:00:00", "2026-03-01T00:00:00.Z", "2026-03-01T00:00:00Z\n", 7, None],
)  # fmt: skip
def test_not_times(text: object) -> None:
    assert instant_us(text) is None


@pytest.mark.parametrize(
    "raw", [b"NaN", b"01", b'"\\ud800"', b'"\\udc00\\ud800"', b'{"\\ud800":1,"\\ud800":1}', b"\xef\xbb\xbf1", b'"\x01"',
            b"[" * 501 + b"]" * 501, b"[" * 99999, b'"\xed\xa0\x80"', b"", b" ", b"1 2", b"[1,]"],
)  # fmt: skip
def test_malformed(raw: bytes) -> None:
    with pytest.raises(Malformed):
        parse(raw)


def test_not_malformed() -> None:
    parse(b"[" * 500 + b"]" * 500)
    assert parse(b'"\\\\ud800 \\ud83d\\ude42 [[["') == "\\ud800 🙂 [[["
    assert elements(' [ {"a":"],["} ,2, "\\"," ] ') == ['{"a":"],["}', "2", '"\\","']


TIERS = [{"up_to": 10, "unit_amount": "1"}, {"up_to": 20, "flat_amount": "5"}, {"unit_amount": "0.1", "flat_amount": 1}]


@pytest.mark.parametrize(
    ("model", "quantity", "entries"),
    [
        ({"model": "graduated", "tiers": TIERS}, "-1", []),
        ({"model": "graduated", "tiers": TIERS}, "0", []),
        ({"model": "graduated", "tiers": TIERS}, "10", [("10", "10")]),
        ({"model": "graduated", "tiers": TIERS}, "10.000000000001", [("10", "10"), ("0.000000000001", "5")]),
        ({"model": "graduated", "tiers": TIERS}, "20", [("10", "10"), ("10", "5")]),
        ({"model": "graduated", "tiers": TIERS}, "21", [("10", "10"), ("10", "5"), ("1", "1.1")]),
        ({"model": "volume", "tiers": TIERS}, "0", []),
        ({"model": "volume", "tiers": TIERS}, "10", [("10", "10")]),
        ({"model": "volume", "tiers": TIERS}, "11", [("11", "5")]),
        ({"model": "volume", "tiers": TIERS}, "30", [("30", "4")]),
        ({"model": "package", "size": 7, "amount": "2"}, "-3", []),
        ({"model": "package", "size": 7, "amount": "2"}, "7", [("1", "2")]),
        ({"model": "package", "size": 7, "amount": "2"}, "7.000000000001", [("2", "4")]),
        ({"model": "flat", "amount": "3"}, "0", [("0", "3")]),
        ({"model": "per_unit", "unit_amount": "0.000000000001"}, "-3", [("-3", "-0.000000000003")]),
    ],
)
def test_prices(model: dict[str, Any], quantity: str, entries: list[tuple[str, str]]) -> None:
    found = pricing.price(model, D(quantity), lambda _: D(0))
    assert found == [(D(q), D(amount)) for q, amount in entries]


def test_schema_edges_and_precedence() -> None:
    good = event("1", "2026-03-08T12:00:00Z", n=0)
    numbers = [
        "999999999999999.999999999999",
        "1e15",
        "1e-12",
        "1e-13",
        "1e999",
        '"1"',
        "1e99999999999999999999",
        "null",
    ]
    tables = run(*(good.replace(b'"n": 0', b'"n": ' + number.encode()) for number in numbers))
    assert [key[2] for key in tables.events] == [0]
    reasons = [row["reason"] for row in tables.rejects.values()]
    violation = "schema_violation"
    assert reasons == [violation, "conflict", violation, violation, violation, violation, violation]


def test_a_second_catalog_version_holds_from_its_log_time() -> None:
    first = CATALOG.format(zone="UTC", window="1h")
    second = first.replace('unit_amount: "0.5"', 'unit_amount: "7"').replace("  last:", "  final:")
    content = event("1", "2026-03-08T12:00:00Z", n=1) + b"\n" + event("2", "2026-04-08T12:00:00Z", n=1) + b"\n"
    tables = compute([(0, first), (us("2026-03-10T00:00:00Z"), second)], [(0, content)])
    assert {(key[0], row["catalog_version"]) for key, row in tables.usage.items()} == {
        ("calls", 1), ("last", 1), ("calls", 2), ("final", 2),
    }  # fmt: skip
    amounts = {(row["amount"], row["catalog_version"]) for key, row in tables.rated_usage.items() if key[2] == "calls"}
    assert amounts == {(D("0.5"), 1), (D(7), 2)}


def test_the_workload_reaches_every_corner() -> None:
    files = generate(1, 1500, 24, 3)
    assert files == generate(1, 1500, 24, 3)
    tables = compute([(0, kitchen_sink_catalog())], list(enumerate(files)))
    assert {row["reason"] for row in tables.rejects.values()} == {
        "malformed", "oversized", "not_cloudevent", "unknown_type", "schema_violation", "time_in_future", "too_late",
        "conflict", "duplicate", "subscription_invalid",
    }  # fmt: skip
    assert sum(row["events"] for row in tables.progress.values()) == len(tables.events) + len(tables.rejects)
    assert tables.events.keys().isdisjoint(tables.rejects)
    assert len({key[0] for key in tables.usage}) == 19 and any(key[5] > date(1970, 1, 1) for key in tables.usage)
    assert {row["state"] for row in tables.quotas.values()} == {"ok", "warning", "exceeded"}
    assert {key[0] for key in tables.signals} == {
        "quota.threshold_reached",
        "quota.exceeded",
        "quota.reset",
        "spend.threshold_reached",
    }
    claimed = [row for row in tables.rejects.items() if row[1]["reason"] in ("duplicate", "conflict")]
    home: dict[object, int] = {}
    for key, row in [*tables.events.items(), *claimed]:
        assert home.setdefault(row["subject"], key[1]) == key[1]
        assert home.setdefault((row["source"], row["id"]), key[1]) == key[1]
