"""What a billing period costs: prices applied to period totals. Pure: no rounding, no memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from domain.catalog import History, Price
from domain.pricing import rate
from domain.totals import PeriodUpdate, PriceTotal, Updates


class RatedRow(NamedTuple):
    """One price of a billing period of a subject: a row of `rated_usage`."""

    subject: str
    plan: str
    price: str
    period_start_us: int
    period_end_us: int
    meter: str
    quantity: int
    """Scaled by 10^12."""
    amount: int
    """Scaled by 10^24."""
    model: str
    selection: dict[str, list[str]]
    """The price's `where`."""
    currency: str
    tiers: tuple[tuple[int, int], ...]
    """(quantity, amount) of each tier charged."""
    inputs: int
    catalog_version: int


class Spend(NamedTuple):
    """A billing period's whole amount over all prices, before and after an update; scaled by 10^24."""

    subject: str
    plan: str
    period_start_us: int
    period_end_us: int
    pricing_version: int
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Rated:
    """What one batch changed in one shard, and what that costs."""

    updates: Updates
    rows: list[RatedRow]
    spends: list[Spend]


def rated_rows(update: PeriodUpdate, history: History) -> list[RatedRow]:
    """A row for each price whose total changed."""
    catalog = history.get(update.pricing_version).catalog
    rows = []
    for price in catalog.plans[update.plan].prices:
        if price.key not in update.before:
            continue
        total = update.after[price.key]
        rated = rate(price.model, total.parts)
        rows.append(
            RatedRow(
                update.subject,
                update.plan,
                price.key,
                update.period_start_us,
                update.period_end_us,
                price.meter,
                sum(total.parts.values()),
                rated.amount,
                type(price.model).__name__.lower(),
                {label: sorted(values) for label, values in price.where.items()},
                catalog.currency,
                rated.tiers,
                total.inputs,
                update.pricing_version,
            )
        )
    return rows


def spend(update: PeriodUpdate, history: History) -> Spend | None:
    """The period's amount before and after; None where the plan has no alert to hold against it."""
    plan = history.get(update.pricing_version).catalog.plans[update.plan]
    if not plan.alerts:
        return None
    old = {**update.after, **update.before}
    before = sum(_amount(price, old) for price in plan.prices)
    after = sum(_amount(price, update.after) for price in plan.prices)
    return Spend(
        update.subject,
        update.plan,
        update.period_start_us,
        update.period_end_us,
        update.pricing_version,
        before,
        after,
    )


def _amount(price: Price, totals: dict[str, PriceTotal]) -> int:
    """A price's amount; nothing is charged for a price without inputs."""
    total = totals.get(price.key)
    return rate(price.model, total.parts).amount if total is not None and total.inputs else 0
