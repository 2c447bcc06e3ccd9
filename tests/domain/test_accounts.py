"""Accounts: plan, zone and periods of each event, against the oracle's calendars."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.accounts import NO_PLAN, Accounts, Int64s, Spans, on_plan_since, pricing_versions, seed_segments, stays
from domain.catalog import Catalog, CatalogVersion, History, PeriodKind, Plan
from domain.instants import to_text
from domain.values import FOREVER_US, HOUR_US, Segment
from tests.batches import history, us
from tests.oracle import calendars
from tests.oracle.catalogs import Catalog as OracleCatalog
from tests.oracle.catalogs import load

TEXT = """
version: 1
timezone: Europe/Berlin
currency: USD
event_types: {call: {schema: {type: object}}}
meters: {calls: {event_type: call, aggregation: count, window: 1h}}
plans: {pro: {}, lab: {}, free: {}}
subscriptions:
  - {subject: ny, plan: pro, start: 2026-01-31, timezone: America/New_York}
  - {subject: ends, plan: pro, start: 2026-02-10, end: 2026-03-10}
  - {subject: moves, plan: pro, start: 2026-01-30, end: 2026-03-08, timezone: America/Havana}
  - {subject: moves, plan: lab, start: 2026-03-08, end: 2026-05-31, timezone: Asia/Kathmandu}
  - {subject: pauses, plan: lab, start: 2026-02-28, end: 2026-03-02, timezone: Africa/Casablanca}
  - {subject: pauses, plan: lab, start: 2026-03-28, timezone: Africa/Casablanca}
"""
DEFAULTED = TEXT + "default_plan: free\n"
SUBJECTS = ["ny", "ends", "moves", "pauses", "nobody"]
EDGES = [
    us(text)
    for text in (
        "2026-01-31T05:00:00Z", "2026-02-28T05:00:00Z", "2026-03-31T04:00:00Z",  # periods of ny
        "2026-02-09T23:00:00Z", "2026-03-09T23:00:00Z",  # ends
        "2026-03-08T05:00:00Z", "2026-03-07T18:15:00Z", "2026-05-30T18:15:00Z",  # moves
        "2026-02-27T23:00:00Z", "2026-03-02T00:00:00Z", "2026-03-28T00:00:00Z",  # pauses
        "2026-03-31T22:00:00Z", "2026-03-29T01:00:00Z",  # Berlin's month and summer time
    )
]  # fmt: skip
times = st.one_of(
    st.builds(lambda edge, near: edge + near, st.sampled_from(EDGES), st.sampled_from([-HOUR_US, -1, 0, 1, HOUR_US])),
    st.integers(us("2026-01-01T00:00:00Z"), us("2026-07-01T00:00:00Z")),
)
rows = st.lists(st.tuples(st.sampled_from(SUBJECTS), times), max_size=12)


def only(text: str) -> Catalog:
    return history(text).versions[0].catalog


CATALOGS = {text: (only(text), load(1, 0, text)) for text in (TEXT, DEFAULTED)}


def accounts_of(catalog: Catalog, subjects: list[str], times_us: Int64s) -> Accounts:
    """Of events without subscriptions but the catalog's."""
    seeds, accounts = seed_segments(catalog), list(dict.fromkeys(subjects))
    places = np.array([accounts.index(subject) for subject in subjects], np.int64)
    return Accounts(catalog, [seeds.get(subject, ()) for subject in accounts], places, times_us)


@settings(max_examples=150)
@given(st.sampled_from([TEXT, DEFAULTED]), rows)
def test_plan_zone_and_periods_are_those_of_the_oracle(text: str, events: list[tuple[str, int]]) -> None:
    found, oracle = CATALOGS[text]
    instants = np.array([time for _, time in events], np.int64)
    accounts = accounts_of(found, [subject for subject, _ in events], instants)
    plans = [None if place == NO_PLAN else accounts.plans[place] for place in accounts.plan_of.tolist()]
    assert plans == [_plan(oracle, *event) for event in events]
    for window in ("5m", "2h", "1d", "1mo"):
        expected = [calendars.window(_zone(oracle, *event), window, event[1]) for event in events]
        assert _pairs(accounts.windows(window)) == expected
    for kind in (PeriodKind.HOUR, PeriodKind.DAY, PeriodKind.MONTH):
        expected = [calendars.window(_zone(oracle, *event), kind.value, event[1]) for event in events]
        assert _pairs(accounts.periods(kind)) == expected
    assert _pairs(accounts.periods(PeriodKind.BILLING)) == [_billing(oracle, *event) for event in events]
    assert _pairs(accounts.windows("1mo")) == [
        calendars.window(_zone(oracle, *event), "1mo", event[1]) for event in events
    ], "billing periods must not be written over the months"


def _pairs(spans: Spans) -> list[tuple[int, int]]:
    pairs = list(zip(spans.starts.tolist(), spans.ends.tolist(), strict=True))
    numbers = spans.numbers.tolist()
    assert all(0 <= number < spans.count for number in numbers)
    assert len(set(zip(pairs, numbers, strict=True))) == len(set(pairs)) == len(set(numbers))
    return pairs


def _plan(oracle: OracleCatalog, subject: str, time: int) -> str | None:
    subscription = oracle.subscription(subject, time)
    return subscription.plan if subscription else oracle.default_plan


def _zone(oracle: OracleCatalog, subject: str, time: int) -> str:
    subscription = oracle.subscription(subject, time)
    return subscription.zone if subscription else oracle.zone


def _billing(oracle: OracleCatalog, subject: str, time: int) -> tuple[int, int]:
    subscription = oracle.subscription(subject, time)
    if subscription is None:
        return calendars.window(oracle.zone, "month", time)
    return calendars.billing_period(subscription.zone, subscription.start, subscription.end, time)


@pytest.mark.parametrize(
    ("subject", "time", "plan", "start", "end"),
    [
        # the month's last day stands in for the 31st
        ("ny", "2026-03-30T12:00:00Z", "pro", "2026-02-28T05:00:00Z", "2026-03-31T04:00:00Z"),
        ("ny", "2026-01-31T04:59:59.999999Z", "free", "2025-12-31T23:00:00Z", "2026-01-31T23:00:00Z"),
        ("ny", "2026-01-31T05:00:00Z", "pro", "2026-01-31T05:00:00Z", "2026-02-28T05:00:00Z"),
        ("ends", "2026-03-09T22:59:59.999999Z", "pro", "2026-02-09T23:00:00Z", "2026-03-09T23:00:00Z"),
        ("ends", "2026-03-09T23:00:00Z", "free", "2026-02-28T23:00:00Z", "2026-03-31T22:00:00Z"),
        # cut at the end, which is a day that begins at 01:00 in Havana
        ("moves", "2026-03-07T12:00:00Z", "pro", "2026-02-28T05:00:00Z", "2026-03-08T05:00:00Z"),
        ("moves", "2026-03-08T05:00:00Z", "lab", "2026-03-07T18:15:00Z", "2026-04-07T18:15:00Z"),
        ("pauses", "2026-03-15T00:00:00Z", "free", "2026-02-28T23:00:00Z", "2026-03-31T22:00:00Z"),
        ("nobody", "2026-03-15T00:00:00Z", "free", "2026-02-28T23:00:00Z", "2026-03-31T22:00:00Z"),
    ],
)
def test_billing(subject: str, time: str, plan: str, start: str, end: str) -> None:
    accounts = accounts_of(only(DEFAULTED), [subject], np.array([us(time)], np.int64))
    assert accounts.plans[accounts.plan_of[0]] == plan
    (found,) = _pairs(accounts.periods(PeriodKind.BILLING))
    assert (to_text(found[0]), to_text(found[1])) == (start, end)


def test_without_a_default_plan_others_have_none() -> None:
    accounts = accounts_of(only(TEXT), ["nobody", "ny"], np.array([us("2026-03-15T00:00:00Z")] * 2, np.int64))
    assert accounts.plan_of.tolist() == [NO_PLAN, 0]
    assert accounts.plans == ["pro"]


def test_one_subscription_ends_where_the_next_one_begins() -> None:
    """Where their zones disagree about the moment, the earlier one holds until its own end."""
    moments = {
        "2026-03-07T18:15:00Z": "pro",
        "2026-03-08T04:59:59.999999Z": "pro",
        "2026-03-08T05:00:00Z": "lab",
        "2026-05-30T18:14:59.999999Z": "lab",
        "2026-05-30T18:15:00Z": "free",
    }
    times_us = np.array([us(moment) for moment in moments], np.int64)
    accounts = accounts_of(only(DEFAULTED), ["moves"] * len(moments), times_us)
    assert [accounts.plans[place] for place in accounts.plan_of.tolist()] == list(moments.values())


def past(*versions: tuple[int, set[str]]) -> History:
    """Versions that hold from a time on and have some plans."""
    found = []
    for number, (since, names) in enumerate(versions, start=1):
        plans = {name: Plan(name, (), (), ()) for name in names}
        found.append(CatalogVersion(number, since, Catalog("UTC", "USD", 0, {}, {}, plans, {}, None), "", ""))
    return History(tuple(found))


@given(
    st.lists(st.sets(st.sampled_from(["pro", "lab"])), min_size=1, max_size=5),
    st.lists(st.integers(-1, 60), max_size=6),
)
def test_pricing_versions_are_those_of_the_history(plans: list[set[str]], starts: list[int]) -> None:
    versions = past(*((number * 10, names) for number, names in enumerate(plans)))
    for plan in ("pro", "lab"):
        expected = [found.version if (found := versions.pricing(plan, start)) else 0 for start in starts]
        assert pricing_versions(versions, plan, np.array(starts, np.int64)).tolist() == expected


@pytest.mark.parametrize(
    ("plan", "start", "version"),
    [("pro", 0, 1), ("pro", 9, 1), ("pro", 10, 2), ("pro", 20, 3), ("lab", 0, 2), ("lab", 19, 2), ("lab", 20, 0)],
)
def test_a_period_is_priced_by_the_version_at_its_start_or_the_next_that_has_the_plan(
    plan: str, start: int, version: int
) -> None:
    versions = past((0, {"pro"}), (10, {"pro", "lab"}), (20, {"pro"}))
    assert pricing_versions(versions, plan, np.array([start], np.int64)).tolist() == [version]


@pytest.mark.parametrize(
    ("plan", "now", "since"),
    [
        ("pro", "2026-03-18T00:00:00Z", "2026-03-15T00:00:00Z"),
        ("pro", "2026-03-28T00:00:00Z", "2026-03-15T00:00:00Z"),
        ("free", "2026-03-18T00:00:00Z", ""),  # that it will end is known, but not there yet
        ("free", "2026-03-28T00:00:00Z", "2026-03-25T00:00:00Z"),
        ("lab", "2026-03-28T00:00:00Z", ""),  # not in this month
        ("lab", "2026-04-28T00:00:00Z", ""),
    ],
)
def test_since_when_a_subject_is_on_a_plan(plan: str, now: str, since: str) -> None:
    """On pro from the 15th to the 25th, on lab from April 10th, else on the default plan: which is March's newest?"""
    segments = [
        Segment(us("2026-04-10T00:00:00Z"), FOREVER_US, "lab", "UTC", 10, FOREVER_US),
        Segment(us("2026-03-15T00:00:00Z"), us("2026-03-25T00:00:00Z"), "pro", "UTC", 15, FOREVER_US),
    ]
    march = us("2026-03-01T00:00:00Z"), us("2026-04-01T00:00:00Z")
    found = on_plan_since(stays(segments, "free"), plan, *march, us(now))
    assert found == (us(since) if since else 0)


def test_of_events_around_a_sign_up_the_plan_says_since_when() -> None:
    segments = [seed_segments(only(DEFAULTED))["ends"], ()]
    times_us = np.array([us(t) for t in ("2026-02-01T00:00:00Z", "2026-02-15T00:00:00Z", "2026-03-10T00:00:00Z")])
    accounts = Accounts(only(DEFAULTED), segments, np.array([0, 0, 0]), times_us)
    starts, ends = [us("2026-01-31T23:00:00Z")] * 2, [us("2026-02-28T23:00:00Z")] * 2
    assert accounts.since("free", np.array([0]), times_us[:1], starts[:1], ends[:1]) == [0]
    assert accounts.since("pro", np.array([1]), times_us[1:2], starts[1:], ends[1:]) == [us("2026-02-09T23:00:00Z")]
    later = [us("2026-02-28T23:00:00Z")], [us("2026-03-31T22:00:00Z")]
    assert accounts.since("free", np.array([2]), times_us[2:], *later) == [us("2026-03-09T23:00:00Z")]
    nobody = Accounts(only(DEFAULTED), segments, np.array([1]), times_us[:1])
    assert nobody.since("free", np.array([0]), times_us[:1], starts[:1], ends[:1]) == [0]
