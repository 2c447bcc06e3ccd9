"""Subscription events: what they may say, what they change, and that cuts and restarts never show."""

from __future__ import annotations

import json
from datetime import date
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.accounts import NO_PLAN, Accounts, assign, seed_segments
from domain.catalog import PeriodKind
from domain.decode import BatchDecoder
from domain.subscriber import Subscriber
from domain.subscriptions import SUBSCRIPTION, Lives, applied, check_catalog
from domain.values import Batch, Reason, SubscriptionChange
from tests.batches import NOON, event, history, raw, us
from tests.oracle import Tables, calendars, compute
from tests.oracle.catalogs import History as OracleHistory
from tests.oracle.catalogs import load
from tests.oracle.totals import accepted, billing, zone_of

CATALOG = """
version: 1
timezone: Europe/Berlin
currency: USD
event_types: {call: {schema: {type: object}}}
meters: {calls: {event_type: call, aggregation: count, window: 1h}}
plans: {free: {}, pro: {}, team: {}}
subscriptions: [{subject: seeded, plan: team, start: 2026-03-01, end: 2026-03-20}]
default_plan: free
"""
HISTORY = history(CATALOG)
DECODER = BatchDecoder(HISTORY)
SEEDS = seed_segments(HISTORY.versions[0].catalog)
ORACLE = OracleHistory([load(1, 0, CATALOG)])


class Saved:
    """A subscription log in memory: what was written, however early."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int, int], SubscriptionChange] = {}

    def add(self, batch: Batch) -> None:
        for change in batch.changes:
            assert self.rows.setdefault((batch.raw.partition, *change[:2]), change) == change

    def changes(self, partition: int, before_offset: int) -> list[SubscriptionChange]:
        return [row for (of, offset, _), row in sorted(self.rows.items()) if of == partition and offset < before_offset]


def line(id: object, subject: str = "a", time: str = NOON, **data: Any) -> bytes:
    """A subscription event, or a call if there is no data."""
    type_ = SUBSCRIPTION if data else "call"
    return json.dumps(event(id=str(id), type=type_, subject=subject, time=time, data=data)).encode()


def subscribed(*lines: bytes) -> Batch:
    return Subscriber(HISTORY, Saved()).subscribe(DECODER.decode(raw(lines)))


Found = dict[int, tuple[str | None, str, int, int]]
"""By offset of a call: plan, start of its day (which tells the zone), and billing period."""


def found_in(batch: Batch) -> Found:
    events = batch.events
    if not len(events):
        return {}
    subjects = list(dict.fromkeys(events.subjects))
    subject_of = np.array([subjects.index(subject) for subject in events.subjects], np.int64)
    segments, account_of = assign(subjects, subject_of, np.arange(len(events)), SEEDS, batch.live)
    accounts = Accounts(HISTORY.versions[0].catalog, segments, account_of, np.array(events.times_us, np.int64))
    days, billed = accounts.windows("1d"), accounts.periods(PeriodKind.BILLING)
    return {
        offset: (
            None if accounts.plan_of[row] == NO_PLAN else accounts.plans[accounts.plan_of[row]],
            to_day(int(days.starts[row])),
            int(billed.starts[row]),
            int(billed.ends[row]),
        )
        for row, offset in enumerate(events.offsets)
        if events.types[row] != SUBSCRIPTION
    }


def to_day(instant: int) -> str:
    return str(np.datetime64(instant, "us"))


def span(batch: Batch, offset: int) -> tuple[str | None, str, str]:
    """Plan and billing period of a call, to the minute."""
    plan, _, start, end = found_in(batch)[offset]
    return plan, to_day(start)[:16], to_day(end)[:16]


def refusals(batch: Batch) -> list[tuple[int, str]]:
    assert {*batch.rejects.reasons} <= {Reason.SUBSCRIPTION_INVALID}
    return list(zip(batch.rejects.offsets, batch.rejects.details, strict=True))


# what an event may say


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        ({}, "data.action: is missing"),
        ({"action": "create"}, "data.plan: is missing"),
        ({"action": "create", "plan": "gold"}, "data.plan: 'gold' is not in the catalog"),
        ({"action": "change", "plan": "pro", "start": "2026-03-01"}, "data.start: has no place in change"),
        ({"action": "end", "plan": "pro"}, "data.plan: has no place in end"),
        ({"action": "end", "end": "2026-02-29"}, "data.end: expected a day such as 2026-01-15"),
        ({"action": "end", "end": "1999-12-31"}, "data.end: expected a day"),
        ({"action": "end", "end": "2026-3-1"}, "data.end: expected a day"),
        ({"action": "create", "plan": "pro", "timezone": "Berlin"}, "data.timezone: 'Berlin' is no time zone"),
        (
            {"action": "create", "plan": "pro", "start": "2026-03-02", "end": "2026-03-02"},
            "data.end: 2026-03-02 is not after the start 2026-03-02",
        ),
        ({"action": "create", "plan": "pro", "seats": 3}, "data.seats: is not a declared property"),
    ],
)
def test_what_cannot_be_meant_violates_the_schema(data: dict[str, Any], detail: str) -> None:
    wrong = json.dumps(event(type=SUBSCRIPTION, data=data)).encode()
    batch = DECODER.decode(raw([line("1"), wrong, line("3")]))
    assert batch.rejects.reasons == [Reason.SCHEMA_VIOLATION]
    assert batch.rejects.details[0].startswith(detail), batch.rejects.details
    assert batch.events.offsets == [0, 2]


# what it changes


def test_an_event_counts_for_what_comes_after_it() -> None:
    batch = subscribed(
        line(0),
        line(1, action="create", plan="pro", start="2026-03-05"),
        line(2),
        line(3, time="2026-03-05T00:00:00+01:00"),
        line(4, time="2026-03-04T23:59:59.999999+01:00"),
        line(5, subject="b"),
    )
    march = ("2026-02-28T23:00", "2026-03-31T22:00")
    assert span(batch, 0) == ("free", *march)
    assert span(batch, 2) == span(batch, 3) == ("pro", "2026-03-04T23:00", "2026-04-04T22:00")
    assert span(batch, 4) == span(batch, 5) == ("free", *march)
    assert refusals(batch) == []


def test_a_change_waits_for_the_next_period() -> None:
    lines = [
        line(0, action="create", plan="pro", start="2026-01-31", timezone="America/New_York"),
        line(1, action="change", plan="team", time="2026-03-10T12:00:00Z"),
        line(2, time="2026-03-31T03:59:59.999999Z"),
        line(3, time="2026-03-31T04:00:00Z"),
    ]
    lines[2:] = [text.replace(b'"time"', b'"logtime": "2026-04-01T00:00:00Z", "time"') for text in lines[2:]]
    batch = subscribed(*lines)
    assert span(batch, 2) == ("pro", "2026-02-28T05:00", "2026-03-31T04:00")
    assert span(batch, 3) == ("team", "2026-03-31T04:00", "2026-04-30T04:00")
    [_, change] = batch.changes
    assert (change.plan, to_day(change.effective_from_us)[:16]) == ("team", "2026-03-31T04:00")


def test_the_later_word_replaces_what_was_planned() -> None:
    batch = subscribed(
        line(0, action="create", plan="pro", start="2026-03-01"),
        line(1, action="change", plan="team"),
        line(2, action="change", plan="free"),
        line(3, time="2026-04-02T00:00:00Z"),
        line(4, action="change", plan="pro"),
        line(5, time="2026-04-02T00:00:00Z"),
    )
    assert (span(batch, 3)[0], span(batch, 5)[0]) == ("free", "pro")


def test_an_end_lets_no_more_usage_in_but_leaves_the_period_its_length() -> None:
    batch = subscribed(
        line(0, action="create", plan="pro", start="2026-03-05"),
        line(1),
        line(2, action="end", end="2026-03-11"),
        line(3),
        line(4, time="2026-03-10T23:00:00Z"),
    )
    assert span(batch, 1) == span(batch, 3) == ("pro", "2026-03-04T23:00", "2026-04-04T22:00")
    assert span(batch, 4) == ("free", "2026-02-28T23:00", "2026-03-31T22:00")


def test_an_end_without_a_day_waits_for_the_next_period() -> None:
    batch = subscribed(line(0, action="create", plan="pro", start="2026-03-05"), line(1, action="end"))
    assert batch.changes[1].end == date(2026, 4, 5)
    sooner = subscribed(
        line(0, action="create", plan="pro", start="2026-03-05", end="2026-03-20"), line(1, action="end")
    )
    assert sooner.changes[1].end == date(2026, 3, 20)


def test_before_it_begins_a_subscription_is_changed_from_its_start_or_taken_back() -> None:
    batch = subscribed(
        line(0, action="create", plan="pro", start="2026-03-12"),
        line(1, action="change", plan="team"),
        line(2, time="2026-03-12T00:00:00Z"),
        line(3, action="end"),
        line(4, time="2026-03-12T00:00:00Z"),
        line(5, action="end"),
        line(6, action="create", plan="pro", start="2026-03-12"),
        line(7, time="2026-03-12T00:00:00Z"),
    )
    assert [span(batch, n)[0] for n in (2, 4, 7)] == ["team", "free", "pro"]
    assert [offset for offset, _ in refusals(batch)] == [5]


def test_where_an_event_leaves_room_the_catalogs_subscription_holds() -> None:
    batch = subscribed(
        line(0, subject="seeded"),
        line(1, subject="seeded", action="create", plan="pro", start="2026-03-20"),
        line(2, subject="seeded"),
        line(3, subject="seeded", time="2026-03-20T00:00:00+01:00"),
    )
    assert span(batch, 0) == span(batch, 2) == ("team", "2026-02-28T23:00", "2026-03-19T23:00")
    assert span(batch, 3) == ("pro", "2026-03-19T23:00", "2026-04-19T22:00")


@pytest.mark.parametrize(
    ("before", "data", "detail"),
    [
        ([], {"action": "change", "plan": "pro"}, "no subscription that events made covers"),
        ([], {"action": "end"}, "no subscription that events made covers"),
        ([], {"action": "create", "plan": "pro", "end": "2026-03-10"}, "the end 2026-03-10 is not after the start"),
        (
            [{"action": "create", "plan": "pro", "start": "2026-05-01"}],
            {"action": "create", "plan": "team"},
            "overlaps the subscription from 2026-05-01 until further notice",
        ),
        (
            [{"action": "create", "plan": "pro", "end": "2026-04-01"}],
            {"action": "change", "plan": "team"},
            "the subscription ends on 2026-04-01, before another billing period begins",
        ),
        (
            [{"action": "create", "plan": "pro", "start": "2026-03-01"}],
            {"action": "end", "end": "2026-03-09"},
            "or before the day of the event",
        ),
        (
            [
                {"action": "create", "plan": "pro", "end": "2026-04-01"},
                {"action": "create", "plan": "pro", "start": "2026-04-01"},
            ],
            {"action": "end", "end": "2026-04-02"},
            "until 2026-04-02 it would overlap the subscription from 2026-04-01",
        ),
    ],
)
def test_what_does_not_fit_is_refused(before: list[dict[str, str]], data: dict[str, str], detail: str) -> None:
    events = [line(n, **some) for n, some in enumerate([*before, data])]
    batch = subscribed(*events, line("after"))
    [(offset, found)] = refusals(batch)
    assert offset == len(before)
    assert detail in found
    assert batch.events.offsets == [*range(len(before)), len(before) + 1]
    assert batch.rejects.firsts == [(0, offset, 0)], "should claims get lost, its own is found here"


def test_a_seed_is_in_the_way_of_a_create() -> None:
    [(_, detail)] = refusals(subscribed(line(0, subject="seeded", action="create", plan="pro")))
    assert detail.startswith("overlaps the catalog's subscription from 2026-03-01 until 2026-03-20")


def test_a_batch_without_live_subscriptions_is_passed_on_as_it_is() -> None:
    subscriber = Subscriber(HISTORY, Saved())
    first = DECODER.decode(raw([line(0), line(1, subject="b")]))
    assert subscriber.subscribe(first) is first
    subscriber.subscribe(DECODER.decode(raw([line(2, action="create", plan="pro")], start=2)))
    other = DECODER.decode(raw([line(3, subject="b")], start=3))
    assert subscriber.subscribe(other) is other


def test_partitions_do_not_know_each_other() -> None:
    subscriber = Subscriber(HISTORY, Saved())
    subscriber.subscribe(DECODER.decode(raw([line(0, action="create", plan="pro")])))
    other = subscriber.subscribe(DECODER.decode(raw([line(1)], partition=1)))
    assert span(other, 0)[0] == "free"


# cuts and restarts

days = st.sampled_from(["2026-02-20", "2026-03-09", "2026-03-10", "2026-03-11", "2026-03-29", "2026-04-10"])
zones = st.sampled_from(["Europe/Berlin", "America/New_York", "Pacific/Kiritimati"])
times = st.sampled_from([f"2026-03-{day:02}T{hour:02}:30:00Z" for day in (8, 9, 10, 11, 12) for hour in (4, 12, 23)])
plans = st.sampled_from(["free", "pro", "team"])
actions: st.SearchStrategy[dict[str, str]] = st.one_of(
    st.fixed_dictionaries(
        {"action": st.just("create"), "plan": plans}, optional={"start": days, "end": days, "timezone": zones}
    ),
    st.fixed_dictionaries({"action": st.just("change"), "plan": plans}),
    st.fixed_dictionaries({"action": st.just("end")}, optional={"end": days}),
    st.just({}),
    st.just({}),
)


@st.composite
def logs(draw: st.DrawFn) -> list[bytes]:
    return [
        line(n, subject=draw(st.sampled_from(["a", "b", "seeded"])), time=draw(times), **draw(actions))
        for n in range(draw(st.integers(1, 25)))
    ]


@settings(max_examples=200)
@given(
    logs(), st.lists(st.integers(0, 25), max_size=8), st.lists(st.tuples(st.integers(0, 25), st.booleans()), max_size=3)
)
def test_any_cut_into_batches_and_runs_gives_the_same_outcome(
    log: list[bytes], cuts: list[int], kills: list[tuple[int, bool]]
) -> None:
    """A run is killed somewhere, the next begins at a barrier before that; rows may have been written early."""
    saved, found, reasons = Saved(), Found(), dict[int, Reason]()
    begin = 0
    for kill, early in [*kills, (len(log), False)]:
        edges = sorted({begin, *(cut for cut in cuts if begin < cut < len(log)), len(log)})
        subscriber = Subscriber(HISTORY, saved)
        for start, end in pairwise(edges):
            batch = subscriber.subscribe(DECODER.decode(raw(log[start:end], start=start)))
            for offset, terms in found_in(batch).items():
                assert found.setdefault(offset, terms) == terms, "a replay fell under something else"
            for offset, reason in zip(batch.rejects.offsets, batch.rejects.reasons, strict=True):
                assert reasons.setdefault(offset, reason) == reason
            killed = end > kill
            if not killed or early:
                saved.add(batch)
            if killed:
                break
            begin = end
    tables = truth(log)
    assert reasons == {position[2]: row["reason"] for position, row in tables.rejects.items()}
    assert found == expected(tables)
    assert {key[1:]: row_of(change) for key, change in saved.rows.items()} == {
        position[2:]: row for position, row in tables.subscriptions.items()
    }


def truth(log: list[bytes]) -> Tables:
    return compute([(0, CATALOG)], [(0, b"".join(text + b"\n" for text in log))])


def expected(tables: Tables) -> Found:
    out: Found = {}
    for position, one in accepted(tables, ORACLE):
        if one.type != SUBSCRIPTION:
            plan, period = billing(one)
            out[position[2]] = (plan, to_day(calendars.window(zone_of(one), "1d", one.time)[0]), *period)
    return out


def row_of(change: SubscriptionChange) -> dict[str, Any]:
    return {
        "log_time": change.log_time_us,
        "subject": change.subject,
        "action": change.action,
        "plan": change.plan,
        "start": change.start,
        "end": change.end,
        "timezone": change.timezone,
        "effective_from": change.effective_from_us,
    }


# the next catalog


def subscriptions_of(*lines: bytes) -> dict[str, list[Lives]]:
    found: dict[str, Lives] = {}
    for change in subscribed(*lines).changes:
        found[change.subject] = applied(found.get(change.subject, ()), change)
    return {subject: [lives] for subject, lives in found.items()}


@pytest.mark.parametrize(
    ("old", "new", "faults"),
    [
        ("", "", []),
        ("default_plan: free", "default_plan: team", []),
        ("pro: {}, ", "", ["plans.pro: is gone, but events subscribed 2 subjects to it, such as 'a'"]),
        ("team: {}", "gold: {}", ["plans.team: is gone, but events subscribed 1 subject to it, such as 'b'"]),
        ("free: {}, ", "", []),
        ("end: 2026-03-20}", "end: 2026-03-20}, {subject: a, plan: free, start: 2026-02-01, end: 2026-03-01}", []),
        (
            "end: 2026-03-20}",
            "end: 2026-03-20}, {subject: a, plan: free, start: 2026-02-01}",
            ["subscriptions (a from 2026-02-01): overlaps the subscription from 2026-03-01 until further notice"],
        ),
    ],
)
def test_what_events_forbid_the_next_catalog(old: str, new: str, faults: list[str]) -> None:
    """a is on pro, b on pro until April and then on team, c was on free until the day before."""
    assert old in CATALOG
    before = HISTORY.versions[0].catalog
    text = CATALOG.replace(old, new, 1)
    for plan in ("team", "free"):
        if f"{plan}: {{}}" not in text:
            text = text.replace(f"plan: {plan}", "plan: pro")
    after = history(text)
    known = subscriptions_of(
        line(0, action="create", plan="pro", start="2026-03-01"),
        line(1, subject="b", action="create", plan="pro", start="2026-03-01"),
        line(2, subject="b", action="change", plan="team"),
        line(3, subject="c", action="create", plan="free", start="2026-03-01", end="2026-03-09"),
    )
    found = [str(fault) for fault in check_catalog(known, before, after.versions[0].catalog, us(NOON))]
    assert len(found) == len(faults)
    assert all(text.startswith(fault) for text, fault in zip(found, faults, strict=True)), found
