"""Rating: what the prices whose totals changed cost, and the period's amount before and after."""

from __future__ import annotations

from copy import deepcopy
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.catalog import Price
from domain.pricing import WHOLE, Graduated, Matrix, Rated, rate
from domain.quota import Watcher
from domain.rating import RatedUpdate, Rater, Spend
from domain.updates import OtherTotal, PeriodKey, PriceUpdate, Total, Updates
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
    alerts: [{key: any, amount: "0.000000000001"}, {key: high, amount: 10}]
  quiet:
    prices: [{key: base, meter: calls, model: flat, amount: 1}]
default_plan: pro
"""
LATER = TEXT.replace("model: flat, amount: 5", "model: flat, amount: 7")
HISTORY = history(TEXT, ("2026-02-01T00:00:00Z", LATER))
RATER = Rater(HISTORY)
START, END = us("2026-01-01T00:00:00Z"), us("2026-02-01T00:00:00Z")
KEY: PeriodKey = ("a", START, END)
UNIT = QUANTITY_SCALE


class Held(NamedTuple):
    """What a price has in a period."""

    total: Total
    inputs: int


NONE = None
"""What it has before its first input."""


def price_of(key: str, plan: str = "pro", version: int = 1) -> Price:
    return next(price for price in HISTORY.get(version).catalog.plans[plan].prices if price.key == key)


def one(quantity: int, inputs: int) -> Held:
    return Held(quantity * UNIT, inputs)


def period(before: dict[str, Held | None], after: dict[str, Held], *, plan: str = "pro", version: int = 1) -> Updates:
    """A period of which the prices in `before` were touched; of every price, what it has after."""
    return Updates(
        prices=[
            PriceUpdate(plan, price, version, [KEY], [old and old.total], [after[price].total], [after[price].inputs])
            for price, old in before.items()
        ],
        others=[
            OtherTotal(plan, version, KEY, price, held.total) for price, held in after.items() if price not in before
        ],
    )


def amounts(updates: Updates) -> list[tuple[str, int]]:
    return [(update.price.key, found.amount) for update in RATER.rate(updates).rated for found in update.rated]


def found_spend(updates: Updates) -> Spend:
    (found,) = RATER.rate(updates).spends
    return found


def test_a_price_whose_total_changed_gives_a_row() -> None:
    update = period({"traffic": NONE}, {"base": one(2, 2), "traffic": one(12, 3)})
    rated = RATER.rate(update)
    assert rated.updates is update
    tiers = ((10 * UNIT, 5 * AMOUNT_SCALE), (2 * UNIT, 15 * AMOUNT_SCALE // 10))
    assert rated.rated == [
        RatedUpdate(
            plan="pro",
            price=price_of("traffic"),
            currency="USD",
            pricing_version=1,
            keys=[KEY],
            quantities=[12 * UNIT],
            rated=[Rated(65 * AMOUNT_SCALE // 10, tiers)],
            inputs=[3],
        )
    ]
    price = rated.rated[0].price
    assert (price.key, price.meter, price.where) == ("traffic", "bytes", {"region": frozenset({"eu", "us"})})
    assert isinstance(price.model, Graduated)


def test_the_quantity_of_a_matrix_is_that_of_its_parts() -> None:
    total = Held({"=eu": 2 * UNIT, "=": UNIT, WHOLE: 4 * UNIT}, 7)
    (update,) = RATER.rate(period({"regions": NONE}, {"regions": total})).rated
    (rated,) = update.rated
    assert (update.quantities, rated.amount, update.inputs) == ([7 * UNIT], (4 + 3 + 4) * AMOUNT_SCALE, [7])
    assert rated.tiers == (
        (2 * UNIT, 4 * AMOUNT_SCALE),
        (UNIT, 3 * AMOUNT_SCALE),
        (4 * UNIT, 4 * AMOUNT_SCALE),
    )
    assert isinstance(update.price.model, Matrix)


def test_of_a_matrix_the_whole_is_what_its_rates_do_not_list() -> None:
    """As long as nothing else occurred, the total is a number as that of any other price."""
    for total in (4 * UNIT, {WHOLE: 4 * UNIT}):
        (update,) = RATER.rate(period({"regions": NONE}, {"regions": Held(total, 4)})).rated
        assert (update.quantities, update.rated[0].amount) == ([4 * UNIT], 4 * AMOUNT_SCALE)


def test_every_period_of_a_price_is_rated_by_itself() -> None:
    keys = [KEY, ("b", START, END), ("a", END, END + 1)]
    update = PriceUpdate("pro", "traffic", 1, keys, [None, UNIT, 0], [UNIT, 12 * UNIT, 0], [1, 9, 2])
    rated = RATER.rate(Updates(prices=[update]))
    (found,) = rated.rated
    assert (found.keys, found.quantities, found.inputs) == (keys, [UNIT, 12 * UNIT, 0], [1, 9, 2])
    assert [row.amount for row in found.rated] == [AMOUNT_SCALE // 2, 65 * AMOUNT_SCALE // 10, 0]
    assert rated.spends == [
        Spend("pro", 1, KEY, 0, AMOUNT_SCALE // 2),
        Spend("pro", 1, ("b", START, END), AMOUNT_SCALE // 2, 65 * AMOUNT_SCALE // 10),
    ]


@pytest.mark.parametrize(("version", "amount"), [(1, 5), (2, 7)])
def test_the_pricing_version_prices(version: int, amount: int) -> None:
    update = period({"base": NONE}, {"base": one(1, 1)}, version=version)
    (row,) = RATER.rate(update).rated
    assert (row.rated[0].amount, row.pricing_version) == (amount * AMOUNT_SCALE, version)
    assert row.price == price_of("base", version=version)
    assert found_spend(update) == Spend("pro", version, KEY, 0, amount * AMOUNT_SCALE)


def test_a_price_that_appears_costs_nothing_before() -> None:
    """Also a flat one, which costs the same for every quantity."""
    update = period({"base": NONE, "traffic": one(4, 1)}, {"base": one(1, 1), "traffic": one(6, 2)})
    assert found_spend(update) == Spend("pro", 1, KEY, 2 * AMOUNT_SCALE, 8 * AMOUNT_SCALE)


def test_what_did_not_change_counts_on_both_sides() -> None:
    update = period({"traffic": one(4, 1)}, {"base": one(1, 1), "traffic": one(6, 2)})
    assert found_spend(update)[-2:] == (7 * AMOUNT_SCALE, 8 * AMOUNT_SCALE)


def test_inputs_without_quantity_are_charged_what_the_model_says() -> None:
    update = period({"base": NONE, "traffic": NONE}, {"base": one(0, 1), "traffic": one(0, 1)})
    assert amounts(update) == [("base", 5 * AMOUNT_SCALE), ("traffic", 0)]
    assert found_spend(update)[-2:] == (0, 5 * AMOUNT_SCALE)


def test_without_alerts_nobody_asks_for_the_sum() -> None:
    update = period({"base": NONE}, {"base": one(1, 1)}, plan="quiet")
    assert RATER.rate(update).spends == []
    assert amounts(update) == [("base", AMOUNT_SCALE)]


def test_below_the_lowest_alert_nobody_asks_either() -> None:
    """No alert can be crossed by a period that has not come as far as the lowest."""
    rater = Rater(history(TEXT.replace('{key: any, amount: "0.000000000001"}', '{key: higher, amount: "10.25"}')))
    for quantity, spends in (
        (25, []),
        (26, [Spend("pro", 1, KEY, 0, 10 * AMOUNT_SCALE)]),
        (27, [Spend("pro", 1, KEY, 0, 1025 * AMOUNT_SCALE // 100)]),
    ):
        rated = rater.rate(period({"traffic": NONE}, {"traffic": one(quantity, 1)}))
        assert rated.spends == spends
        assert [row.amount for row in rated.rated[0].rated] == [6 * AMOUNT_SCALE + (quantity - 10) * AMOUNT_SCALE // 4]


@pytest.mark.parametrize("alerted", [1, 2])
def test_a_version_may_have_alerts_that_another_has_not(alerted: int) -> None:
    """The untouched prices of both are told, for a plan is known by its name."""
    silent = TEXT.replace("    alerts: ", "    # ")
    dated = [silent, silent]
    dated[alerted - 1] = TEXT
    rater = Rater(history(dated[0], ("2026-02-01T00:00:00Z", dated[1])))
    for version in (1, 2):
        update = period({"traffic": one(4, 1)}, {"base": one(1, 1), "traffic": one(6, 2)}, version=version)
        spends = [Spend("pro", version, KEY, 7 * AMOUNT_SCALE, 8 * AMOUNT_SCALE)]
        assert rater.rate(update).spends == (spends if version == alerted else [])


grown = st.dictionaries(st.sampled_from(["base", "traffic"]), st.integers(0, 30), min_size=1)


@given(st.lists(grown, min_size=1, max_size=6))
def test_amounts_follow_from_the_total_not_from_the_steps(steps: list[dict[str, int]]) -> None:
    """The last step's amount is that of one step, and each step begins where the one before ended."""
    totals: dict[str, Held] = {}
    spends = []
    for step in steps:
        before = {key: totals.get(key) for key in step}
        for key, more in step.items():
            total, inputs = totals.get(key, one(0, 0))
            assert isinstance(total, int)
            totals[key] = Held(total + more * UNIT, inputs + 1)
        spends.append(spent(period(before, totals)))
    assert [before for before, _ in spends] == [0, *(after for _, after in spends[:-1])]
    whole = period(dict.fromkeys(totals, NONE), totals)
    assert spent(whole) == (0, spends[-1][1])
    assert spends[-1][1] == sum(rate(price_of(key).model, parts(held.total)).amount for key, held in totals.items())
    assert sum(amount for _, amount in amounts(whole)) == spends[-1][1]


def spent(updates: Updates) -> tuple[int, int]:
    """A period's amount before and after; below the least alert that is nothing."""
    spends = RATER.rate(updates).spends
    if spends:
        return spends[0].before, spends[0].after
    untouched = [rate(price_of(other.price).model, parts(other.total)).amount for other in updates.others]
    assert not any([*(amount for _, amount in amounts(updates)), *untouched])
    return 0, 0


def parts(total: Total) -> dict[str, int]:
    return {WHOLE: total} if isinstance(total, int) else total


# Against rating everything --------------------------------------------------------------------------------------

WATCHED = """
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
      - {key: base, meter: calls, model: flat, amount: 3}
      - {key: traffic, meter: bytes, model: graduated,
         tiers: [{up_to: 2, unit_amount: 1}, {unit_amount: "0.5", flat_amount: 1}]}
      - {key: regions, meter: calls, model: matrix, dimension: region, rates: {eu: 2, us: 0}, default: 1}
      - {key: zones, meter: calls, model: matrix, dimension: region, rates: {eu: "0.25"}, default: "0.5"}
      - {key: blocks, meter: bytes, model: package, size: 3, amount: 1}
      - {key: steps, meter: bytes, model: volume, tiers: [{up_to: 2, unit_amount: 0}, {unit_amount: 1}]}
    alerts: [{key: high, amount: 12}, {key: low, amount: 3}, {key: middle, amount: "7.5"}, {key: same, amount: "7.5"}]
  quiet:
    prices:
      - {key: base, meter: calls, model: per_unit, unit_amount: 1}
      - {key: traffic, meter: bytes, model: per_unit, unit_amount: 1}
default_plan: pro
"""
CHANGES = {
    "model: flat, amount: 3": "model: per_unit, unit_amount: 1",
    "{key: low, amount: 3}, ": "",
    "rates: {eu: 2, us: 0}": "rates: {us: 3}",
    "      - {key: steps,": "      # {key: steps,",
    "default_plan": "    alerts: [{key: one, amount: 1}, {key: four, amount: 4}]\ndefault_plan",
}


def changed() -> str:
    """Other prices and alerts; a plan that had no alert has some."""
    text = WATCHED
    for old, new in CHANGES.items():
        assert old in text
        text = text.replace(old, new)
    return text


TWO = history(WATCHED, ("2026-02-01T00:00:00Z", changed()))
TWO_RATER, TWO_WATCHER = Rater(TWO), Watcher(TWO)
Account = tuple[str, int, PeriodKey]
ACCOUNTS: list[Account] = [
    (plan, version, (subject, version * 100, version * 100 + 100))
    for plan in ("pro", "quiet")
    for version in (1, 2)
    for subject in "ab"
]
PRICES = {(plan, v.version): v.catalog.plans[plan].prices for plan in ("pro", "quiet") for v in TWO.versions}
State = dict[Account, dict[str, dict[str, int]]]
"""What each price has of each part."""


@st.composite
def touches(draw: st.DrawFn) -> tuple[Account, str, dict[str, int]]:
    """A price of a period, and what is added to its parts."""
    account = draw(st.sampled_from(ACCOUNTS))
    price = draw(st.sampled_from(PRICES[account[:2]]))
    names = [WHOLE]
    if isinstance(price.model, Matrix):
        names += [f"={value}" for value in price.model.rates]
    more = st.integers(0, 6).map(lambda units: units * UNIT // 2)
    return account, price.key, draw(st.dictionaries(st.sampled_from(names), more, min_size=1))


def naive(state: State, account: Account) -> int:
    """A period's amount, every price of its plan rated."""
    held = state.get(account, {})
    return sum(rate(price.model, held[price.key]).amount for price in PRICES[account[:2]] if price.key in held)


def written(state: State, account: Account, price: str) -> Total | None:
    """A total as the aggregate tells it."""
    found = state.get(account, {}).get(price)
    if found is None:
        return None
    return found[WHOLE] if found.keys() == {WHOLE} else dict(found)


def updates_of(before: State, after: State, touched: set[tuple[Account, str]]) -> Updates:
    """What the aggregate says: touched prices as columns, and the others of their periods."""
    columns: dict[tuple[str, str, int], list[PeriodKey]] = {}
    for (plan, version, key), price in sorted(touched):
        columns.setdefault((plan, price, version), []).append(key)
    updates = Updates()
    for (plan, price, version), keys in columns.items():
        accounts = [(plan, version, key) for key in keys]
        old = [written(before, account, price) for account in accounts]
        new = [total for account in accounts if (total := written(after, account, price)) is not None]
        updates.prices.append(PriceUpdate(plan, price, version, keys, old, new, [1] * len(keys)))
    for account in {account for account, _ in touched}:
        for price in after[account]:
            total = written(after, account, price)
            if (account, price) not in touched and total is not None:
                plan, version, key = account
                updates.others.append(OtherTotal(plan, version, key, price, total))
    return updates


@settings(max_examples=200)
@given(st.lists(st.lists(touches(), min_size=1, max_size=6), min_size=1, max_size=6))
def test_alerts_are_crossed_as_if_everything_was_rated_before_and_after(
    batches: list[list[tuple[Account, str, dict[str, int]]]],
) -> None:
    state: State = {}
    sent: list[str] = []
    for batch in batches:
        before = deepcopy(state)
        for account, price, more in batch:
            held = state.setdefault(account, {}).setdefault(price, {})
            for part, units in more.items():
                held[part] = held.get(part, 0) + units
        touched = {(account, price) for account, price, _ in batch}
        rated = TWO_RATER.rate(updates_of(before, state, touched))
        spends = {}
        crossed = set()
        for account in {account for account, _ in touched}:
            plan, version, key = account
            old, new = naive(before, account), naive(state, account)
            alerts = TWO.get(version).catalog.plans[plan].alerts
            if alerts and new >= min(alert.amount for alert in alerts):
                spends[account] = Spend(plan, version, key, old, new)
            crossed |= {(version, key, a.key, a.amount, new) for a in alerts if old < a.amount <= new}
        assert len(rated.spends) == len(spends)
        assert {spend[:3]: spend for spend in rated.spends} == spends
        signals = TWO_WATCHER.watch(rated, 0).signals
        assert len(signals) == len(crossed)
        assert crossed == {
            (s.catalog_version, (s.subject, s.period_start_us, s.period_end_us), s.feature, s.threshold, s.used)
            for s in signals
        }
        sent += [signal.id for signal in signals]
        assert [row.amount for update in rated.rated for row in update.rated] == [
            rate(update.price.model, state[update.plan, update.pricing_version, key][update.price.key]).amount
            for update in rated.rated
            for key in update.keys
        ]
    assert len({*sent}) == len(sent), "an alert was crossed twice"
