"""Limits and signals: each threshold is crossed once, by an id that says what was crossed."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.catalog import Alert, Catalog, CatalogVersion, Entitlement, History, PeriodKind, Plan
from domain.quota import (
    QuotaState,
    QuotaStates,
    Signal,
    SignalType,
    Watch,
    Watcher,
    absolute,
    signal_id,
    spend_crossings,
)
from domain.rating import RatedUpdates, Spend
from domain.updates import QuotaUpdate, Updates
from domain.values import AMOUNT_SCALE, QUANTITY_SCALE

UNIT = QUANTITY_SCALE
LIMITED = Entitlement(
    feature="api",
    kind="metered",
    meter="calls",
    limit=10 * UNIT,
    period=PeriodKind.MONTH,
    thresholds=(Decimal("0.5"), Decimal("0.8"), Decimal(1), Decimal("1.5")),
)
WATCH = Watch(LIMITED)


def update(before: int, after: int, *, subject: str = "a", start: int = 100) -> QuotaUpdate:
    return QuotaUpdate("pro", "api", 3, [(subject, start, start + 100)], [before * UNIT], [after * UNIT], [after])


def crossed(before: int, after: int) -> list[tuple[SignalType, int]]:
    found = WATCH.crossings(update(before, after), 7)
    return [(signal.type, signal.threshold // UNIT) for signal in found]


def states(changed: QuotaUpdate, entitlement: Entitlement = LIMITED) -> QuotaStates:
    """How the periods stand by a catalog with this entitlement."""
    plan = Plan("pro", (), (Entitlement("sso", "boolean", enabled=True), entitlement), ())
    catalog = Catalog("UTC", "USD", 0, {}, {}, {"pro": plan}, {}, None)
    watcher = Watcher(History((CatalogVersion(3, 0, catalog, "", ""),)))
    (found,) = watcher.watch(RatedUpdates(Updates(quotas=[changed]), [], []), 7).quotas
    return found


FIVE = (SignalType.THRESHOLD_REACHED, 5)
EIGHT = (SignalType.THRESHOLD_REACHED, 8)
LIMIT = (SignalType.EXCEEDED, 10)
BEYOND = (SignalType.THRESHOLD_REACHED, 15)


@pytest.mark.parametrize(
    ("before", "after", "signals"),
    [
        (0, 4, []),
        (0, 5, [FIVE]),
        (4, 5, [FIVE]),
        (5, 6, []),
        (5, 5, []),
        (7, 9, [EIGHT]),
        (9, 10, [LIMIT]),
        (10, 14, []),
        (14, 99, [BEYOND]),
        (0, 99, [FIVE, EIGHT, LIMIT, BEYOND]),
    ],
)
def test_a_threshold_is_crossed_when_it_is_reached(before: int, after: int, signals: list[object]) -> None:
    assert crossed(before, after) == signals


@given(st.lists(st.integers(0, 20), min_size=2).map(sorted))
def test_crossings_do_not_depend_on_the_steps(totals: list[int]) -> None:
    stepwise = [signal.id for one, other in pairwise(totals) for signal in WATCH.crossings(update(one, other), 7)]
    assert stepwise == [signal.id for signal in WATCH.crossings(update(totals[0], totals[-1]), 8)]


periods = st.tuples(st.sampled_from("abc"), st.integers(0, 2).map(lambda n: n * 100))
pairs = st.tuples(st.integers(0, 20), st.integers(0, 20)).map(sorted)


@given(st.dictionaries(periods, pairs))
def test_every_period_of_an_update_is_watched_by_itself(changes: dict[tuple[str, int], list[int]]) -> None:
    singles = [update(*change, subject=subject, start=start) for (subject, start), change in changes.items()]
    whole = QuotaUpdate("pro", "api", 3, [], [], [], [])
    for single in singles:
        for name in ("keys", "before", "after", "inputs"):
            getattr(whole, name).extend(getattr(single, name))
    assert WATCH.crossings(whole, 7) == [signal for single in singles for signal in WATCH.crossings(single, 7)]
    found, apart = states(whole), [states(single) for single in singles]
    for name in ("keys", "used", "states", "inputs"):
        assert getattr(found, name) == [value for one in apart for value in getattr(one, name)]


def test_a_signal_says_what_was_crossed_and_what_was_seen() -> None:
    (signal,) = WATCH.crossings(update(4, 6), 7)
    assert signal == Signal(
        id=signal_id("quota.threshold_reached", "a", "api", 100, 5 * UNIT),
        type=SignalType.THRESHOLD_REACHED,
        subject="a",
        feature="api",
        meter="calls",
        period_start_us=100,
        period_end_us=200,
        threshold=5 * UNIT,
        allowance=10 * UNIT,
        used=6 * UNIT,
        at_us=7,
        catalog_version=3,
    )


@pytest.mark.parametrize(
    ("used", "state"),
    [(0, "ok"), (4, "ok"), (5, "warning"), (9, "warning"), (10, "exceeded"), (11, "exceeded"), (99, "exceeded")],
)
def test_state(used: int, state: str) -> None:
    assert WATCH.state(used * UNIT) == state
    assert states(update(0, used)) == QuotaStates(
        plan="pro",
        entitlement=LIMITED,
        catalog_version=3,
        keys=[("a", 100, 200)],
        used=[used * UNIT],
        states=[QuotaState(state)],
        inputs=[used],
    )
    assert (LIMITED.meter, LIMITED.limit) == ("calls", 10 * UNIT), "which the row has from the entitlement"


def test_without_a_threshold_below_the_limit_nothing_warns() -> None:
    for thresholds in ((), (Decimal(1),), (Decimal("1.5"),)):
        entitlement = Entitlement("api", "metered", "calls", 10 * UNIT, PeriodKind.DAY, thresholds)
        assert [Watch(entitlement).state(used * UNIT) for used in (0, 9, 10)] == ["ok", "ok", "exceeded"]


def test_without_thresholds_nothing_is_crossed() -> None:
    entitlement = replace(LIMITED, thresholds=())
    assert Watch(entitlement).crossings(update(0, 99), 7) == []
    assert states(update(0, 99), entitlement).states == [QuotaState.EXCEEDED]


@pytest.mark.parametrize("fraction", ["0.123", "0.000000001", "1", "11", "999.999"])
def test_thresholds_are_exact(fraction: str) -> None:
    limit = 999_999_999_999_999_999 * 10**9
    entitlement = Entitlement("api", "metered", "calls", limit, PeriodKind.DAY, (Decimal(fraction),))
    assert absolute(entitlement, Decimal(fraction)) == limit * Fraction(fraction)
    largest = replace(entitlement, limit=10**27 - 1)
    assert absolute(largest, Decimal(11)) == 11 * (10**27 - 1)


@pytest.mark.parametrize(
    ("before", "after", "is_crossed"), [(0, 9, False), (0, 10, True), (9, 11, True), (10, 11, False), (11, 12, False)]
)
def test_spend(before: int, after: int, is_crossed: bool) -> None:
    money = Spend("pro", 3, ("a", 100, 200), before * AMOUNT_SCALE, after * AMOUNT_SCALE)
    alert = Alert("high", 10 * AMOUNT_SCALE)
    expected = Signal(
        signal_id("spend.threshold_reached", "a", "high", 100, 10 * AMOUNT_SCALE),
        SignalType.SPEND_REACHED, "a", "high", "", 100, 200,
        10 * AMOUNT_SCALE, 10 * AMOUNT_SCALE, after * AMOUNT_SCALE, 7, 3,
    )  # fmt: skip
    assert spend_crossings(money, alert, 7) == ([expected] if is_crossed else [])


def test_an_id_is_the_same_for_ever() -> None:
    """Consumers deduplicate by it: a change of its form would send every signal again."""
    assert signal_id("quota.exceeded", "cust-1", "api", 1_772_323_200_000_000, 10 * UNIT) == (
        "5a710c39c7efb243e5de12d5c443d472"
    )
    assert signal_id(SignalType.EXCEEDED, "é", "api", 0, AMOUNT_SCALE * 10**15) == signal_id(
        "quota.exceeded", "é", "api", 0, AMOUNT_SCALE * 10**15
    )


Fields = tuple[str, str, str, int, int, int]
FIELDS = st.tuples(
    st.sampled_from([str(kind) for kind in SignalType]),
    st.text("abc\0", max_size=4),
    st.text("abc\0", max_size=4),
    st.integers(0, 12),
    st.integers(0, 12) | st.integers(10**39, 10**39 + 3),
    st.integers(0, 2),
)


@given(FIELDS, FIELDS)
def test_ids_differ_iff_anything_does(one: Fields, other: Fields) -> None:
    assert (signal_id(*one) == signal_id(*other)) == (one == other)


def test_no_field_runs_into_the_next() -> None:
    assert signal_id("t", "ab", "c", 0, 1) != signal_id("t", "a", "bc", 0, 1)
    assert signal_id("t", "a", "b", 1, 23) != signal_id("t", "a", "b", 12, 3)
    assert signal_id("t", "a", "b", 1, 2, 34) != signal_id("t", "a", "b", 1, 23, 4)
