"""cost_by_window, against the oracle and against sums made by hand."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from clickhouse_connect.driver.client import Client

from domain.catalog import Aggregation
from domain.pricing import Flat, Graduated, Matrix, Package, PerUnit, PriceModel, Tier, Volume, rate
from domain.values import DAY_US, HOUR_US, QUANTITY_SCALE
from tests.oracle.calendars import Span
from tests.oracle.totals import Key
from tests.sinks import samples
from tests.sinks.samples import MARCH, exact_sum, us
from tests.sinks.workload_run import Run

PERIOD = f"subject, plan, price, {us('period_start', 'period_end')}"
APRIL = MARCH + 31 * DAY_US

Share = tuple[Decimal | int, Decimal | int]
"""A window's quantity and amount."""


def costs(client: Client) -> dict[Key, dict[Span, Share]]:
    """By period of a price, the quantity and amount of each window, in the order of event time."""
    sql = f"""
        SELECT {PERIOD}, {us("window_start", "window_end")}, quantity, amount FROM cost_by_window
        ORDER BY window_start, window_end
    """
    found: dict[Key, dict[Span, Share]] = {}
    for *period, start, end, quantity, amount in client.query(sql).result_rows:
        assert (start, end) not in found.setdefault(tuple(period), {})
        found[tuple(period)][start, end] = (quantity, amount)
    return found


def test_windows_sum_exactly_to_their_period(run: Run) -> None:
    found = costs(run.client)
    assert found.keys() == run.shares.keys()
    for period, windows in found.items():
        rated = run.tables.rated_usage[period]
        assert exact_sum(amount for _, amount in windows.values()) == rated["amount"], period
        assert exact_sum(quantity for quantity, _ in windows.values()) == rated["quantity"], period


def test_windows_have_the_quantity_that_counts_in_their_period(run: Run) -> None:
    """All but those that two billing periods share: nobody knows what of them is whose.

    Those are months, and any window of a subject whose subscriptions change while its usage comes in.
    """
    found = costs(run.client)
    moving = {row["subject"] for row in run.tables.subscriptions.values()}
    checked = 0
    for period, shares in run.shares.items():
        if run.tables.rated_usage[period]["meter"] == "beat_values" or period[0] in moving:
            continue
        assert {window: quantity for window, (quantity, _) in found[period].items()} == shares, period
        checked += len(shares)
    assert checked > 400


def priced(
    client: Client, model: PriceModel, quantities: list[int], parts: dict[str, int] | None = None
) -> list[Share]:
    """What hours with these quantities (in units of 10^-12) cost, as (quantity, amount)."""
    total = sum(quantities)
    result = rate(model, parts or {"": total})
    period = samples.rated(amount=0, model=model, selection={}, tiers=result.tiers)._replace(
        quantity=total, amount=result.amount
    )
    hours = [
        samples.usage(window_start_us=MARCH + n * HOUR_US, window_end_us=MARCH + (n + 1) * HOUR_US)._replace(
            value=value
        )
        for n, value in enumerate(quantities)
    ]
    samples.insert(client, ("usage", samples.usage_table(*hours[::-1])), ("rated_usage", samples.rated_table(period)))
    [windows] = costs(client).values()
    assert exact_sum(amount for _, amount in windows.values()) == Decimal(f"{result.amount}E-24")
    return list(windows.values())


def units(*numbers: float) -> list[int]:
    return [int(number * QUANTITY_SCALE) for number in numbers]


def money(text: str) -> int:
    """Per unit, or of 10^-24 in all: the catalog's amounts have at most 12 decimals."""
    return int(Decimal(text).scaleb(12))


def charge(text: str) -> int:
    return int(Decimal(text).scaleb(24))


def test_tier_by_tier(client: Client) -> None:
    """10 free, up to 20 for 0.50 each and 5 once, then 0.25 each: 25 units cost 5 + 5 + 1.25.

    hour       1         2            3             4
    units      8         6            7             4
    so far   0..8      8..14       14..21        21..25
    tier 1   8 × 0     2 × 0
    tier 2             4 × 1        6 × 1                    10 units for 10.00: 5 once and 0.50 each
    tier 3                          1 × 0.25      4 × 0.25
    """
    tiers = (
        Tier(10 * QUANTITY_SCALE, 0, 0),
        Tier(20 * QUANTITY_SCALE, money("0.5"), charge("5")),
        Tier(None, money("0.25"), 0),
    )
    windows = priced(client, Graduated(tiers), units(8, 6, 7, 4))
    assert windows == [(8, 0), (6, 4), (7, Decimal("6.25")), (4, 1)]


def test_a_tier_that_does_not_divide_leaves_the_rest_to_the_next(client: Client) -> None:
    """3 units for 1.00 once: a third each, cut at 24 decimals; the last window makes up for it."""
    windows = priced(client, Graduated((Tier(None, 0, charge("1")),)), units(1, 1, 1))
    third = Decimal("0." + "3" * 24)
    assert windows == [(1, third), (1, third), (1, third + Decimal("1E-24"))]


def test_credits_give_back_what_the_tier_had_cost(client: Client) -> None:
    """Up to 5 for 1 each, then for 3. The total goes 6, 12, 9, 10; what was above 10 never cost anything."""
    tiers = (Tier(5 * QUANTITY_SCALE, money("1"), 0), Tier(None, money("3"), 0))
    windows = priced(client, Graduated(tiers), units(6, 6, -3, 1))
    assert windows == [(6, 8), (6, 12), (-3, -3), (1, 3)]


@pytest.mark.parametrize(
    ("model", "quantities", "amounts"),
    [
        (PerUnit(money("0.000000000001")), units(1, 0, 2.5), ["1E-12", "0", "2.5E-12"]),
        (PerUnit(money("2")), units(100, -99, 1), ["200", "-198", "2"]),
        (PerUnit(money("-2")), units(1, 2), ["-2", "-4"]),
        (Flat(charge("12")), units(1, 2, 3), ["2", "4", "6"]),
        (Flat(charge("12")), units(0, 0), ["0", "12"]),
        (Flat(charge("12")), units(5, -5), ["0", "12"]),
        (Package(3 * QUANTITY_SCALE, charge("4")), units(1, 3, 4), ["1.5", "4.5", "6"]),
        (Volume((Tier(5 * QUANTITY_SCALE, money("1"), 0), Tier(None, money("0.5"), charge("3")))), units(4, 4),
         ["3.5", "3.5"]),
        (Volume((Tier(None, money("1"), 0),)), units(-4, 1), ["0", "0"]),
        (Graduated((Tier(None, money("1"), 0),)), units(-4, 1), ["0", "0"]),
        (Graduated((Tier(None, money("1"), charge("5")),)), units(0), ["0"]),
    ],
)  # fmt: skip
def test_other_models_spread_in_proportion(
    client: Client, model: PriceModel, quantities: list[int], amounts: list[str]
) -> None:
    assert [amount for _, amount in priced(client, model, quantities)] == [Decimal(amount) for amount in amounts]


def test_a_matrix_spreads_in_proportion(client: Client) -> None:
    """3 units of a for 1.00, 1 of others for 5.00: 2.00 a unit, whichever it is."""
    model = Matrix("zone", {"a": money("1")}, money("5"))
    windows = priced(client, model, units(3, 1), parts={"=a": units(3)[0], "": units(1)[0]})
    assert windows == [(3, 6), (1, 2)]


def test_large_quantities_and_amounts(client: Client) -> None:
    """An exabyte a window, and a bill of 10^13."""
    huge = 10**18 * QUANTITY_SCALE
    windows = priced(client, PerUnit(money("0.000005")), [huge, huge + 1])
    assert windows[0] == (Decimal(10**18), Decimal(5 * 10**12))


def test_a_price_counts_what_it_selects(client: Client) -> None:
    regions = {"eu": 1, "us": 10, "": 100, "é": 1000}
    hours = [
        samples.usage(value, labels=("region",), dimensions_key=f'["{name}"]', booked_on_day=late)
        for name, value in regions.items()
        for late in (0, 20_513)
    ]
    prices = [
        samples.rated(2 * q, 1, price=str(n), selection=selection)
        for n, (selection, q) in enumerate(
            (
                ({"region": ["eu", "us"]}, 11),
                ({"region": ["", "é", "x"]}, 1100),
                ({}, 1111),
                ({"region": ["x"]}, 0),
            )
        )
    ]
    samples.insert(client, ("usage", samples.usage_table(*hours)), ("rated_usage", samples.rated_table(*prices)))
    found = {period[2]: list(windows.values()) for period, windows in costs(client).items()}
    assert found == {"0": [(22, 1)], "1": [(2200, 1)], "2": [(2222, 1)]}


def spread(client: Client, windows: list[tuple[int, int, int]], *periods: tuple[int, int, int, str]) -> Any:
    """Windows and periods as (first day, day after, units) from March 1; gives the units by period and window."""
    found = [
        samples.usage(value, window_start_us=MARCH + a * DAY_US, window_end_us=MARCH + b * DAY_US)
        for a, b, value in windows
    ]
    rated = [
        samples.rated(
            value,
            value * 2,
            plan=plan,
            selection={},
            period_start_us=MARCH + a * DAY_US,
            period_end_us=MARCH + b * DAY_US,
        )
        for a, b, value, plan in periods
    ]
    samples.insert(
        client, ("usage", samples.usage_table(*found)), ("rated_usage", samples.rated_table(*rated))
    )  # fmt: skip
    out = {}
    for (_, plan, _, start, _), shares in costs(client).items():
        quantities = {(a - MARCH) // DAY_US: quantity for (a, _), (quantity, _) in shares.items()}
        assert [amount for _, amount in shares.values()] == [2 * quantity for quantity in quantities.values()]
        out[plan, (start - MARCH) // DAY_US] = quantities
    return out


def test_a_month_that_two_billing_periods_share(client: Client) -> None:
    """Months of 10, 20 and 5; billing on the 15th, with 4, 21 and 10. What is left is shared by size:
    the middle period's 21 are split 10 : 20."""
    found = spread(
        client, [(0, 31, 10), (31, 61, 20), (61, 92, 5)], (-14, 14, 4, "p"), (14, 45, 21, "p"), (45, 75, 10, "p")
    )
    assert found == {("p", -14): {0: 4}, ("p", 14): {0: 7, 31: 14}, ("p", 45): {31: 8, 61: 2}}


def test_a_subscription_that_begins_in_mid_month(client: Client) -> None:
    """Until the 10th on the default plan, which is billed by calendar month."""
    days = [(n, n + 1, 1) for n in range(31)]
    found = spread(client, days, (0, 31, 9, "default"), (9, 40, 22, "pro"))
    assert found["default", 0] == dict.fromkeys(range(9), 1)
    assert found["pro", 9] == dict.fromkeys(range(9, 31), 1)


def test_a_subscription_that_ends_in_mid_month(client: Client) -> None:
    days = [(n, n + 1, n + 1) for n in range(31)]
    found = spread(client, days, (-20, 8, 36, "pro"), (0, 31, 460, "default"))
    assert found["pro", -20] == {n: n + 1 for n in range(8)}
    assert found["default", 0] == {n: n + 1 for n in range(8, 31)}


def test_periods_that_end_differently_in_two_catalogs(client: Client) -> None:
    """The second version ended the subscription, so the period's later events have a shorter one. Days of 3 each,
    20 in the long period, 10 in the short one; nobody knows which, so both have their part of each day."""
    days = [(n, n + 1, 3) for n in range(10)]
    found = spread(client, days, (0, 31, 20, "long"), (0, 10, 10, "short"))
    assert found == {("long", 0): dict.fromkeys(range(10), 2), ("short", 0): dict.fromkeys(range(10), 1)}


def test_usage_that_is_newer_than_its_price_keeps_the_price_exact(client: Client) -> None:
    """A reader may come between two inserts."""
    assert spread(client, [(0, 1, 6), (1, 2, 6)], (0, 31, 6, "p")) == {("p", 0): {0: 3, 1: 3}}


def test_other_subjects_meters_and_aggregations_are_not_mixed_in(client: Client) -> None:
    others = [
        samples.usage(5, subject="cust-2"), samples.usage(5, meter="other"), samples.usage(5, inputs=0),
        samples.usage(5, window_start_us=APRIL, window_end_us=APRIL + HOUR_US),
        samples.usage(5, window_start_us=MARCH - HOUR_US, window_end_us=MARCH),
    ]  # fmt: skip
    peak = samples.usage(5, meter="peak", aggregation=Aggregation.MAX)
    prices = [
        samples.rated(1, 3, selection={}), samples.rated(5, 3, price="peak", meter="peak"),
        samples.rated(5, 3, price="gone", inputs=0),
    ]  # fmt: skip
    samples.insert(
        client,
        ("usage", samples.usage_table(*others, peak, samples.usage(1))),
        ("rated_usage", samples.rated_table(*prices)),
    )
    assert {period[2]: list(windows.values()) for period, windows in costs(client).items()} == {"traffic": [(1, 3)]}
