"""Totals: however the log is cut, ordered, stopped and resumed, the same rows, quotas and signals; and forgetting."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from decimal import Decimal, localcontext
from functools import cache
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.catalog import Aggregation
from domain.decode import BatchDecoder
from domain.inputs import dimensions_key, text_form
from domain.partials import Groups, Partitioner, PricePartial, QuotaPartial, ShardInput, UsagePartial, shard_of
from domain.ports import TallyError
from domain.quota import Watcher, lowest_thresholds
from domain.rating import Rater
from domain.totals import STATE_VERSION, ShardTotals
from domain.updates import OtherTotal, PriceUpdate, QuotaUpdate, Updates
from domain.values import DAY_US, HOUR_US, MINUTE_US, QUANTITY_SCALE, Events
from tests.batches import between, history, payload, raw, timed, us
from tests.books import Books
from tests.oracle import Tables, compute
from tests.tables import differences, expected_tables

CATALOG = """
version: 1
timezone: Europe/Berlin
currency: USD
accept_within: 35d
event_types:
  use:
    schema:
      type: object
      required: [n]
      properties:
        n: {type: integer, minimum: 0}
        x: {type: number}
        who: {type: string}
        region: {type: string}
meters:
  calls: {event_type: use, aggregation: count, group_by: [region], window: 1h, grace: 10m}
  bytes: {event_type: use, aggregation: sum, value: n, group_by: [region], window: 1d, grace: 1h}
  least: {event_type: use, aggregation: min, value: x, window: 6h, grace: 1h}
  most: {event_type: use, aggregation: max, value: n, where: {region: [eu, ""]}, window: 1h, grace: 1h}
  mean: {event_type: use, aggregation: avg, value: x, group_by: [who], window: 1mo, grace: 1h}
  last: {event_type: use, aggregation: latest, value: x, window: 1d, grace: 1h}
  people: {event_type: use, aggregation: unique, value: who, window: 1d, grace: 1h}
plans:
  pro:
    prices:
      - {key: traffic, meter: bytes, model: graduated, tiers: [{up_to: 5, unit_amount: 1}, {unit_amount: "0.5"}]}
      - {key: calls, meter: calls, model: matrix, dimension: region, rates: {eu: "0.1"}, default: "0.2"}
      - {key: people, meter: people, model: per_unit, unit_amount: 2}
    entitlements:
      - {feature: calls, kind: metered, meter: calls, limit: 4, period: day, thresholds: [0.25, 0.75, 1.0]}
      - {feature: bytes, kind: metered, meter: bytes, limit: 20, period: billing, thresholds: [0.1, 0.5, 1.0]}
      - {feature: peak, kind: metered, meter: most, limit: 8, period: hour, thresholds: [0.5, 1.0]}
      - {feature: seats, kind: metered, meter: people, limit: 2, period: month, thresholds: [1.0]}
    alerts: [{key: some, amount: 3}, {key: more, amount: "7.1"}]
  lab:
    prices:
      - {key: mean, meter: mean, model: per_unit, unit_amount: "0.000000000001"}
      - {key: last, meter: last, model: package, size: 3, amount: 1}
      - {key: least, meter: least, model: volume, tiers: [{up_to: 1, unit_amount: 1}, {unit_amount: 2}]}
      - {key: most, meter: most, model: flat, amount: 5}
subscriptions:
  - {subject: a, plan: pro, start: 2026-01-31, timezone: America/New_York}
  - {subject: b, plan: lab, start: 2026-03-11}
  - {subject: c, plan: lab, start: 2026-02-11, end: 2026-03-11}
default_plan: pro
"""
CHANGED_AT = "2026-03-10T22:50:00Z"
"""Ten minutes before midnight in Berlin, where new days and a new billing period begin."""
CHANGES = {
    "limit: 4": "limit: 3",
    "meter: most, limit: 8": "meter: calls, limit: 6",
    "size: 3": "size: 2",
    "rates: {eu: ": "rates: {us: 1, eu: ",
    "key: mean, meter: mean": "key: mean, meter: last",
    "key: last, meter: last": "key: last, meter: bytes",
}


def changed() -> str:
    """The next catalog: other limits and prices, some of other meters, and a meter less."""
    lines = [line for line in CATALOG.splitlines() if "least" not in line]
    text = "\n".join(lines)
    for old, new in CHANGES.items():
        assert old in text
        text = text.replace(old, new)
    return text


CHANGED = changed()
START = us("2026-03-10T22:00:00Z")
SHARDS = 4
ALERTING = {"pro"}


class Log(NamedTuple):
    """A log, and how it is counted: one catalog version or two."""

    catalogs: tuple[tuple[str, str], ...]
    partitions: tuple[tuple[bytes, ...], ...]


class Pipeline:
    """The flow's pure functions, wired as the operators wire them."""

    def __init__(self, log: Log, partitions: Collection[int] | None = None) -> None:
        found = history(*log.catalogs)
        self.partitioner = Partitioner(found, SHARDS)
        self.rater, self.watcher = Rater(found), Watcher(found)
        self.lowest = lowest_thresholds(found)
        self.books = Books()
        self.partitions = partitions
        self.shards = [self.shard(None) for _ in range(SHARDS)]

    def shard(self, snapshot: bytes | None) -> ShardTotals:
        return ShardTotals(self.partitions, 35 * DAY_US, ALERTING, snapshot, self.lowest)

    def apply(self, events: Events, partition: int, log_time_us: int | None = None) -> None:
        *earlier, last = self.partitioner.partials(events, {}) or [{}]
        for partials in earlier:
            for number, found in partials.items():
                self.put(self.shards[number].apply(ShardInput(partition, None, found)))
        for number, shard in enumerate(self.shards):
            self.put(shard.apply(ShardInput(partition, log_time_us, last.get(number, []))))

    def put(self, updates: Updates) -> None:
        rated = self.rater.rate(updates)
        self.books.add(rated)
        self.books.add(self.watcher.watch(rated, 0))

    def restart(self) -> None:
        """Every shard from its snapshot."""
        self.shards = [self.shard(shard.snapshot()) for shard in self.shards]

    def __len__(self) -> int:
        return sum(map(len, self.shards))


numbers = st.integers(0, 9) | st.just(10**15 - 1)
decimals = st.sampled_from(["0", "-1.5", "0.000000000001", "2.000000000005", "999999999999999.999999999999", "7"])


@st.composite
def data_texts(draw: st.DrawFn) -> str:
    members = [f'"n":{draw(numbers)}']
    if draw(st.booleans()):
        members.append(f'"x":{draw(decimals)}')
    members += [f'"{k}":"{draw(st.sampled_from(["eu", "us", ""]))}"' for k in ("who", "region") if draw(st.booleans())]
    return "{" + ",".join(members) + "}"


@st.composite
def logs(draw: st.DrawFn) -> Log:
    """Up to three partitions; event times within two days, often late, in no order."""
    partitions = []
    for partition in range(draw(st.integers(1, 3))):
        written = []
        for offset in range(draw(st.integers(1, 9))):
            time = START + draw(st.integers(0, 8)) * 20 * MINUTE_US
            late = draw(st.sampled_from([0, 0, 0, MINUTE_US, 70 * MINUTE_US, 3 * HOUR_US, 30 * HOUR_US]))
            subject = draw(st.sampled_from("abc"))
            whole = payload(
                id=f"{partition}-{offset}", type="use", subject=subject, data="%", **timed(time, time + late)
            )
            written.append(whole.replace(b'"%"', draw(data_texts()).encode()))
        partitions.append(tuple(written))
    versions = draw(st.sampled_from([(("", CATALOG),), (("", CATALOG), (CHANGED_AT, CHANGED))]))
    return Log(versions, tuple(partitions))


@cache
def decoders(catalogs: tuple[tuple[str, str], ...]) -> BatchDecoder:
    return BatchDecoder(history(*catalogs))


def events_of(log: Log) -> list[Events]:
    batches = [decoders(log.catalogs).decode(raw(p, partition=n)) for n, p in enumerate(log.partitions)]
    assert not any(len(batch.rejects) for batch in batches)
    return [batch.events for batch in batches]


def truth(log: Log, log_time_reached: int | None = None) -> Tables:
    catalogs = [(us(since) if since else 0, text) for since, text in log.catalogs]
    files = [(n, b"".join(line + b"\n" for line in lines)) for n, lines in enumerate(log.partitions)]
    return ledgerless(expected_tables(compute(catalogs, files, log_time_reached)))


def ledgerless(tables: Tables) -> Tables:
    """Without what the aggregate has no part in."""
    return replace(tables, events={}, rejects={}, progress={})


@st.composite
def cuts(draw: st.DrawFn, lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """Batches (partition, low, high) that cover every partition in order, interleaved somehow."""
    places = [0] * len(lengths)
    out = []
    while open_ := [p for p, length in enumerate(lengths) if places[p] < length]:
        p = draw(st.sampled_from(open_))
        low, places[p] = places[p], places[p] + draw(st.integers(1, 5))
        out.append((p, low, min(places[p], lengths[p])))
    return out


@settings(max_examples=40)
@given(logs(), st.data())
def test_every_cut_of_the_log_gives_the_rows_of_the_oracle(log: Log, data: st.DataObject) -> None:
    """Also when shards stop and resume anywhere, and batches come in any order."""
    events = events_of(log)
    batches = data.draw(cuts([len(e) for e in events]))
    if data.draw(st.booleans()):
        batches = data.draw(st.permutations(batches))
    restarts = data.draw(st.sets(st.integers(0, len(batches))))
    pipeline = Pipeline(log)
    for number, (partition, low, high) in enumerate(batches):
        if number in restarts:
            pipeline.restart()
        pipeline.apply(between(events[partition], low, high), partition)
    assert differences(ledgerless(pipeline.books.tables), truth(log)) == []
    assert len(pipeline.books.signals) == len(pipeline.books.tables.signals), "a threshold was crossed twice"


@settings(max_examples=20)
@given(logs(), st.data())
def test_a_replay_repeats_rows_and_signals(log: Log, data: st.DataObject) -> None:
    """Back to a snapshot, then another cut of what came after it: nothing differs, nothing is new."""
    events = events_of(log)
    first, *rest = events
    half = data.draw(st.integers(0, len(first)))
    pipeline = Pipeline(log)
    pipeline.apply(between(first, 0, half), 0)
    saved = [shard.snapshot() for shard in pipeline.shards]
    pipeline.apply(between(first, half, len(first)), 0)
    for partition, one in enumerate(rest, start=1):
        pipeline.apply(one, partition)
    once = {signal.id for signal in pipeline.books.signals}
    pipeline.shards = [pipeline.shard(snapshot) for snapshot in saved]
    for partition, low, high in data.draw(cuts([len(first) - half, *map(len, rest)])):
        shift = half if partition == 0 else 0
        pipeline.apply(between(events[partition], low + shift, high + shift), partition)
    assert {signal.id for signal in pipeline.books.signals} == once
    assert differences(ledgerless(pipeline.books.tables), truth(log)) == []


@settings(max_examples=40)
@given(logs(), st.data())
def test_where_log_times_are_monotone_they_say_which_periods_are_over(log: Log, data: st.DataObject) -> None:
    """Every cut gives the same resets, each once, also when shards stop and resume anywhere."""
    events = events_of(log)
    pipeline = Pipeline(log, range(len(events)))
    restarts = data.draw(st.sets(st.integers(0, 30)))
    for number, (partition, low, high) in enumerate(data.draw(cuts([len(e) for e in events]))):
        if number in restarts:
            pipeline.restart()
        reached = max(events[partition].log_times_us[:high])
        pipeline.apply(between(events[partition], low, high), partition, reached)
    last = max(max(e.log_times_us) for e in events)
    assert differences(ledgerless(pipeline.books.tables), truth(log, last)) == []
    assert len(pipeline.books.signals) == len(pipeline.books.tables.signals), "something was sent twice"


def test_snapshots_are_immutable_and_deterministic() -> None:
    log = Log((("", CATALOG),), ((payload(type="use", data={"n": 1, "x": 1.5, "who": "w"}),),))
    pipeline = Pipeline(log)
    empty = pipeline.shards[0].snapshot()
    pipeline.apply(events_of(log)[0], 0)
    shard = pipeline.shards[shard_of("a", SHARDS)]
    saved = shard.snapshot()
    assert isinstance(saved, bytes)
    assert pipeline.shard(saved).snapshot() == saved
    pipeline.apply(between(events_of(log)[0], 0, 1), 1)
    assert shard.snapshot() != saved
    assert len(ShardTotals(None, 0, ALERTING, empty)) == 0
    assert len(ShardTotals(None, 0, ALERTING, saved)) == len(shard) > 7


def test_a_snapshot_of_another_form_is_refused() -> None:
    saved = ShardTotals(None, 0, ALERTING, None).snapshot()
    assert saved[1] == STATE_VERSION
    with pytest.raises(TallyError, match="form 99, this version reads form 2"):
        ShardTotals(None, 0, ALERTING, saved[:1] + b"\x63" + saved[2:])


# What is emitted ------------------------------------------------------------------------------------------------

SPAN = ("s", 0, 100)
LATER = ("s", 100, 200)


def priced(
    price: str, count: int, span: tuple[str, int, int] = SPAN, part: str = "", plan: str = "pro"
) -> PricePartial:
    return PricePartial(plan, price, Aggregation.COUNT, 1, Groups([(*span, part)], [count], [0]))


def applied(totals: ShardTotals, *partials: PricePartial | QuotaPartial) -> Updates:
    return totals.apply(ShardInput(0, None, list(partials)))


def units(count: int) -> int:
    return count * QUANTITY_SCALE


def test_a_partial_is_one_update_with_what_was_before_and_is_after() -> None:
    totals = ShardTotals(None, 0, (), None)
    applied(totals, priced("p", 2))
    both = Groups([(*LATER, ""), (*SPAN, "")], [1, 3], [0, 0])
    updates = applied(totals, PricePartial("pro", "p", Aggregation.COUNT, 1, both))
    assert updates == Updates(
        prices=[PriceUpdate("pro", "p", 1, [LATER, SPAN], [None, units(2)], [units(1), units(5)], [1, 5])]
    )
    limited = QuotaPartial("pro", "f", Aggregation.MAX, 1, Groups([SPAN], [2], [7]))
    assert applied(totals, limited) == Updates(quotas=[QuotaUpdate("pro", "f", 1, [SPAN], [0], [7], [2])])
    limited = QuotaPartial("pro", "f", Aggregation.MAX, 1, Groups([SPAN, LATER], [1, 1], [9, -3]))
    assert applied(totals, limited) == Updates(
        quotas=[QuotaUpdate("pro", "f", 1, [SPAN, LATER], [7, 0], [9, -3], [3, 1])]
    )


def test_the_parts_of_a_matrix_are_one_total() -> None:
    totals = ShardTotals(None, 0, (), None)
    first = applied(totals, priced("p", 2)).prices[0]
    assert (first.before, first.after, first.inputs) == ([None], [units(2)], [2])
    groups = Groups([(*SPAN, "=eu"), (*LATER, "=eu"), (*SPAN, "=us")], [1, 4, 3], [0, 0, 0])
    for again in (ShardTotals(None, 0, (), totals.snapshot()), totals):
        (update,) = applied(again, PricePartial("pro", "p", Aggregation.COUNT, 1, groups)).prices
        assert update.keys == [SPAN, LATER]
        assert update.before == [{"": units(2)}, None]
        assert update.after == [{"": units(2), "=eu": units(1), "=us": units(3)}, {"=eu": units(4)}]
        assert update.inputs == [6, 4]


def test_of_plans_with_alerts_the_untouched_prices_of_touched_periods_are_told() -> None:
    totals = ShardTotals(None, 0, ALERTING, None)
    for plan in ("pro", "lab"):
        assert not applied(totals, priced("a", 1, plan=plan)).others, "there is no other price yet"
    assert applied(totals, priced("b", 2, LATER), priced("b", 2, part="=x")).others == [
        OtherTotal("pro", 1, SPAN, "a", units(1))
    ]
    for again in (ShardTotals(None, 0, ALERTING, totals.snapshot()), totals):
        assert applied(again, priced("a", 1)).others == [OtherTotal("pro", 1, SPAN, "b", {"=x": units(2)})]
        assert not applied(again, priced("a", 1, ("t", 0, 100))).others, "another subject"
        assert not applied(again, priced("a", 1, plan="lab"), priced("b", 1, plan="lab")).others
        assert not applied(again, priced("a", 1), priced("b", 1)).others, "all are touched"
        both = applied(again, priced("b", 1), priced("b", 1, plan="lab"))
        assert [other.plan for other in both.others] == ["pro"]
    assert not applied(ShardTotals(None, 0, (), totals.snapshot()), priced("a", 1)).others


def test_a_price_or_limit_may_move_to_another_meter() -> None:
    """What a period counts is that of its own version, in one shard and after a restart."""
    texts = [
        MOVING.replace("A", one).replace("B", other).replace("THRESHOLD", str(limit))
        for one, other, limit in (("calls", "bytes", 5), ("bytes", "people", 6), ("people", "calls", 7))
    ]
    log = Log(
        (("", texts[0]), ("2026-02-01T00:00:00Z", texts[1]), ("2026-03-01T00:00:00Z", texts[2])),
        (tuple(MOVED),),
    )
    for step in (1, len(MOVED)):
        pipeline = Pipeline(log)
        for low in range(0, len(MOVED), step):
            pipeline.restart()
            pipeline.apply(between(events_of(log)[0], low, low + step), 0)
        tables = pipeline.books.tables
        assert differences(ledgerless(tables), truth(log)) == []
        quantities = {(key[2], key[3]): row["quantity"] for key, row in tables.rated_usage.items()}
        assert quantities == {
            (price, us(f"2026-0{month}-01T00:00:00Z")): found
            for month, pair in ((1, (3, 12)), (2, (12, 2)), (3, (2, 3)))
            for price, found in zip("ab", pair, strict=True)
        }
        assert sorted(row["used"] for row in tables.quotas.values()) == [2, 3, 12]


MOVING = """
version: 1
timezone: UTC
currency: USD
accept_within: 35d
event_types:
  use: {schema: {type: object, required: [n], properties: {n: {type: integer, minimum: 0}, who: {type: string}}}}
meters:
  calls: {event_type: use, aggregation: count, window: 1h}
  bytes: {event_type: use, aggregation: sum, value: n, window: 1h}
  people: {event_type: use, aggregation: unique, value: who, window: 1h}
plans:
  pro:
    prices:
      - {key: a, meter: A, model: per_unit, unit_amount: 1}
      - {key: b, meter: B, model: per_unit, unit_amount: 10}
    entitlements: [{feature: f, kind: metered, meter: A, limit: THRESHOLD, period: month, thresholds: [1.0]}]
    alerts: [{key: some, amount: 20}]
default_plan: pro
"""
MOVED = [
    payload(id=f"{month}-{n}", type="use", time=f"2026-0{month}-05T0{n}:00:00Z", data={"n": 3 + n, "who": "xyx"[n]})
    for month in (1, 2, 3)
    for n in range(3)
]


def test_partials_come_by_catalog_version() -> None:
    """What one version says of a batch is merged before what the next one says."""
    times = ["2026-03-10T22:49:59Z", CHANGED_AT, "2026-03-10T22:49:58Z"]
    written = [payload(id=t, type="use", time=t, subject=s, data={"n": 1}) for s in "abc" for t in times]
    log = Log((("", CATALOG), (CHANGED_AT, CHANGED)), (tuple(written),))
    (events,) = events_of(log)
    found = Partitioner(history(*log.catalogs), SHARDS).partials(events, {})
    shards = {shard_of(subject, SHARDS) for subject in "abc"}
    assert len(found) == 2
    for version, partials in enumerate(found, start=1):
        assert partials.keys() == shards
        usage = [part for parts in partials.values() for part in parts if isinstance(part, UsagePartial)]
        assert {part.catalog_version for part in usage} == {version}
        counted = [part.groups for part in usage if part.meter == "calls"]
        assert sum(sum(groups.inputs) for groups in counted) == (6 if version == 1 else 3)
        assert {key[0] for groups in counted for key in groups.keys} == {*"abc"}
    assert Partitioner(history(*log.catalogs), SHARDS).partials(Events(), {}) == []


# Large numbers --------------------------------------------------------------------------------------------------


def counted(data: Sequence[str]) -> dict[str, Decimal]:
    """The value of each meter's only row, of events at one time with these data."""
    written = [payload(id=str(i), type="use", data="%").replace(b'"%"', d.encode()) for i, d in enumerate(data)]
    log = Log((("", CATALOG),), (tuple(written),))
    pipeline = Pipeline(log)
    pipeline.apply(events_of(log)[0], 0)
    return {key[0]: row["value"] for key, row in pipeline.books.tables.usage.items()}


@pytest.mark.parametrize("x", ["9223372.036854775807", "9223372.036854775808", "4611686.018427387904"])
@pytest.mark.parametrize("sign", ["", "-"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_sums_around_the_largest_int64(x: str, sign: str, count: int) -> None:
    values = counted([f'{{"n":1,"x":{sign}{x}}}'] * count + ['{"n":1,"x":1}'])
    assert values["mean"] == Decimal(sign + x) * count + 1
    assert {values["least"], Decimal(1)} == {min(Decimal(sign + x), Decimal(1)), Decimal(1)}


@pytest.mark.parametrize("sign", ["", "-"])
def test_many_of_the_largest_numbers(sign: str) -> None:
    """10,000 integers near 10^15 exceed Int64; numbers with 12 decimals exceed it at once."""
    largest = Decimal("999999999999999.999999999999")
    values = counted([f'{{"n":999999999999999,"x":{sign}{largest}}}'] * 10_000)
    with localcontext(prec=60):
        assert values["bytes"] == Decimal(999_999_999_999_999) * 10_000
        assert values["mean"] == Decimal(f"{sign}{largest}") * 10_000
    assert values["most"] == 999_999_999_999_999
    assert values["last"] == values["least"] == Decimal(f"{sign}{largest}")


# Forgetting -----------------------------------------------------------------------------------------------------

ACCEPT_US = 3 * HOUR_US
SWEEP_US = HOUR_US
SKEW_US = 5 * MINUTE_US


def window_input(partition: int, log_time_us: int | None, time_us: int) -> ShardInput:
    """One event of subject `s` at a time, in its window of an hour."""
    start = time_us - time_us % HOUR_US
    groups = Groups([("s", start, start + HOUR_US, 0, "")], [1], [0])
    return ShardInput(partition, log_time_us, [UsagePartial("m", Aggregation.COUNT, (), 1, groups)])


steps = st.tuples(
    st.integers(0, 2),  # partition
    st.sampled_from([0, 1, 10 * MINUTE_US, HOUR_US, 5 * HOUR_US]),  # how far its log time moves
    st.sampled_from([-SKEW_US, 0, MINUTE_US, HOUR_US, ACCEPT_US - 1, ACCEPT_US]),  # how old the event is
)


@given(st.lists(steps, max_size=30))
def test_forgetting_changes_nothing_and_waits_for_the_slowest_partition(moves: list[tuple[int, int, int]]) -> None:
    forgetful, mindful = ShardTotals({0, 1, 2}, ACCEPT_US, (), None), ShardTotals(None, ACCEPT_US, (), None)
    log_times = dict.fromkeys(range(3), START)
    told: set[int] = set()
    ends: set[int] = set()
    for partition, move, age in moves:
        log_times[partition] += move
        told.add(partition)
        time = log_times[partition] - age
        ends.add(time - time % HOUR_US + HOUR_US)
        batch = window_input(partition, log_times[partition], time)
        assert forgetful.apply(batch) == mindful.apply(batch)
        if move % 2:  # now and then from a snapshot
            forgetful = ShardTotals({0, 1, 2}, ACCEPT_US, (), forgetful.snapshot())
        slowest = min(log_times.values()) if len(told) == 3 else 0
        reachable = {end for end in ends if end + ACCEPT_US > slowest}
        about_to_go = {end for end in ends if end + ACCEPT_US > slowest - SWEEP_US}
        assert len(reachable) <= len(forgetful) <= len(about_to_go)
        assert len(mindful) == len(ends)


def test_an_event_that_would_reopen_a_forgotten_window_stops_the_flow() -> None:
    totals = ShardTotals({0}, ACCEPT_US, (), None)
    totals.apply(window_input(0, START, START))
    totals.apply(ShardInput(0, START + HOUR_US + ACCEPT_US, []))
    assert len(totals) == 0
    for again in (totals, ShardTotals({0}, ACCEPT_US, (), totals.snapshot())):
        for partial in (
            window_input(0, None, START).partials[0],
            PricePartial("pro", "p", Aggregation.COUNT, 1, Groups([("s", 0, START, "")], [1], [0])),
            QuotaPartial("pro", "f", Aggregation.COUNT, 1, Groups([("s", 0, START + HOUR_US)], [1], [0])),
        ):
            with pytest.raises(TallyError, match="'s' belongs to a window that ended at"):
                again.apply(ShardInput(0, None, [partial]))
        again.apply(window_input(0, None, START + HOUR_US))


def test_a_window_still_held_takes_events_until_it_is_swept() -> None:
    totals = ShardTotals({0}, ACCEPT_US, (), None)
    totals.apply(ShardInput(0, START + ACCEPT_US, []))
    totals.apply(window_input(0, None, START))
    totals.apply(ShardInput(0, START + HOUR_US + ACCEPT_US - 1, []))
    assert totals.apply(window_input(0, None, START)).usage[0].inputs == [2]
    totals.apply(ShardInput(0, START + HOUR_US + ACCEPT_US, []))
    assert len(totals) == 0


# Smaller parts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "shards", "shard"), [("cust-1", 64, 18), ("cust-1", 7, 3), ("", 64, 2), ("顧客", 64, 33), ("x", 1, 0)]
)
def test_a_subject_has_the_same_shard_for_ever(subject: str, shards: int, shard: int) -> None:
    """State is saved by shard: another hash would orphan it."""
    assert shard_of(subject, shards) == shard


@given(st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
def test_dimension_keys_do_not_collide(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (dimensions_key(one) == dimensions_key(other)) == (one == other)
    assert dimensions_key(()) == ""


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), ("", ""), ("x", "x"), (True, "true"), (False, "false"), (0, "0"), (-7, "-7")]
)
def test_text_form(value: object, text: str) -> None:
    assert text_form(value) == text
