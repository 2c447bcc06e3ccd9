"""Rating: rows of the prices whose totals changed, and the period's amount before and after."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.pricing import WHOLE, rate
from domain.rating import RatedRow, Spend, rated_rows, spend
from domain.totals import PeriodUpdate, PriceTotal
from domain.values import AMOUNT_SCALE, QUANTITY_SCALE
from tests.batches import history, us

TEXT = """
version: 1
timezone: UTC
currency: USD
event_types:
  call:
    schema: {type: object, properties: {n: {type: integer, minimum: 0}, region: {type: string}}}
meters:
  calls: {event_type: call, aggregation: count, group_by: [region], window: 1h}
  bytes: {event_type: call, aggregation: sum, value: n, group_by: [region], window: 1h}
plans:
  pro:
    prices:
      - {key: base, meter: calls, model: flat, amount: 5}
      - {key: traffic, meter: bytes, model: graduated, where: {region: [us, eu]},
         tiers: [{up_to: 10, unit_amount: "0.5"}, {unit_amount: "0.25", flat_amount: 1}]}
      - {key: regions, meter: calls, model: matrix, dimension: region, rates: {eu: 2, "": 3}, default: 1}
    alerts: [{key: high, amount: 10}]
  quiet:
    prices: [{key: base, meter: calls, model: flat, amount: 1}]
default_plan: pro
"""
LATER = TEXT.replace("model: flat, amount: 5", "model: flat, amount: 7")
HISTORY = history(TEXT, ("2026-02-01T00:00:00Z", LATER))
START, END = us("2026-01-01T00:00:00Z"), us("2026-02-01T00:00:00Z")
UNIT = QUANTITY_SCALE
NONE = PriceTotal({}, 0)


def one(quantity: int, inputs: int) -> PriceTotal:
    return PriceTotal({WHOLE: quantity * UNIT}, inputs)


def period(
    before: dict[str, PriceTotal], after: dict[str, PriceTotal], *, plan: str = "pro", version: int = 1
) -> PeriodUpdate:
    return PeriodUpdate("a", plan, START, END, version, before, after)


def found_spend(update: PeriodUpdate) -> Spend:
    found = spend(update, HISTORY)
    assert found is not None
    return found


def test_a_price_whose_total_changed_gives_a_row() -> None:
    update = period({"traffic": NONE}, {"base": one(2, 2), "traffic": one(12, 3)})
    assert rated_rows(update, HISTORY) == [
        RatedRow(
            subject="a",
            plan="pro",
            price="traffic",
            period_start_us=START,
            period_end_us=END,
            meter="bytes",
            quantity=12 * UNIT,
            amount=65 * AMOUNT_SCALE // 10,
            model="graduated",
            selection={"region": ["eu", "us"]},
            currency="USD",
            tiers=((10 * UNIT, 5 * AMOUNT_SCALE), (2 * UNIT, 15 * AMOUNT_SCALE // 10)),
            inputs=3,
            catalog_version=1,
        )
    ]


def test_the_quantity_of_a_matrix_is_that_of_its_parts() -> None:
    total = PriceTotal({"=eu": 2 * UNIT, "=": UNIT, WHOLE: 4 * UNIT}, 7)
    (row,) = rated_rows(period({"regions": NONE}, {"regions": total}), HISTORY)
    assert (row.quantity, row.amount, row.inputs) == (7 * UNIT, (4 + 3 + 4) * AMOUNT_SCALE, 7)
    assert row.tiers == (
        (2 * UNIT, 4 * AMOUNT_SCALE),
        (UNIT, 3 * AMOUNT_SCALE),
        (4 * UNIT, 4 * AMOUNT_SCALE),
    )
    assert row.model == "matrix"


@pytest.mark.parametrize(("version", "amount"), [(1, 5), (2, 7)])
def test_the_pricing_version_prices(version: int, amount: int) -> None:
    update = period({"base": NONE}, {"base": one(1, 1)}, version=version)
    (row,) = rated_rows(update, HISTORY)
    assert (row.amount, row.catalog_version) == (amount * AMOUNT_SCALE, version)
    assert found_spend(update)[-3:] == (version, 0, amount * AMOUNT_SCALE)


def test_a_price_that_appears_costs_nothing_before() -> None:
    """Also a flat one, which costs the same for every quantity."""
    update = period({"base": NONE, "traffic": one(4, 1)}, {"base": one(1, 1), "traffic": one(6, 2)})
    assert found_spend(update) == Spend("a", "pro", START, END, 1, 2 * AMOUNT_SCALE, 8 * AMOUNT_SCALE)


def test_what_did_not_change_counts_on_both_sides() -> None:
    update = period({"traffic": one(4, 1)}, {"base": one(1, 1), "traffic": one(6, 2)})
    assert found_spend(update)[-2:] == (7 * AMOUNT_SCALE, 8 * AMOUNT_SCALE)


def test_inputs_without_quantity_are_charged_what_the_model_says() -> None:
    update = period({"base": NONE, "traffic": NONE}, {"base": one(0, 1), "traffic": one(0, 1)})
    assert [(row.price, row.amount) for row in rated_rows(update, HISTORY)] == [
        ("base", 5 * AMOUNT_SCALE),
        ("traffic", 0),
    ]
    assert found_spend(update)[-2:] == (0, 5 * AMOUNT_SCALE)


def test_without_alerts_nobody_asks_for_the_sum() -> None:
    update = period({"base": NONE}, {"base": one(1, 1)}, plan="quiet")
    assert spend(update, HISTORY) is None
    assert [row.amount for row in rated_rows(update, HISTORY)] == [AMOUNT_SCALE]


grown = st.dictionaries(st.sampled_from(["base", "traffic"]), st.integers(0, 30), min_size=1)


@given(st.lists(grown, min_size=1, max_size=6))
def test_amounts_follow_from_the_total_not_from_the_steps(steps: list[dict[str, int]]) -> None:
    """The last step's amount is that of one step, and each step begins where the one before ended."""
    totals: dict[str, PriceTotal] = {}
    spends = []
    for step in steps:
        before = {key: totals.get(key, NONE) for key in step}
        for key, more in step.items():
            old = totals.get(key, one(0, 0))
            totals[key] = PriceTotal({WHOLE: old.parts[WHOLE] + more * UNIT}, old.inputs + 1)
        spends.append(found_spend(period(before, dict(totals))))
    assert [s.before for s in spends] == [0, *(s.after for s in spends[:-1])]
    whole = period(dict.fromkeys(totals, NONE), totals)
    assert found_spend(whole)[-2:] == (0, spends[-1].after)
    models = {price.key: price.model for price in HISTORY.get(1).catalog.plans["pro"].prices}
    assert spends[-1].after == sum(rate(models[key], total.parts).amount for key, total in totals.items())
    assert sum(row.amount for row in rated_rows(whole, HISTORY)) == spends[-1].after
