"""What billing periods cost: prices applied to period totals. Pure: no rounding, no memory."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple

from domain.catalog import History, Plan, Price
from domain.pricing import WHOLE, Rated, rate
from domain.updates import PeriodKey, PriceUpdate, Total, Updates

Account = tuple[str, int, PeriodKey]
"""(plan, pricing_version, billing period)"""


@dataclass(frozen=True, slots=True)
class RatedUpdate:
    """Billing periods of one price and what they cost, as parallel lists: rows of `rated_usage`."""

    plan: str
    price: Price
    currency: str
    pricing_version: int
    keys: list[PeriodKey]
    quantities: list[int]
    """Scaled by 10^12; of a matrix, over all its parts."""
    rated: list[Rated]
    inputs: list[int]


class Spend(NamedTuple):
    """A billing period's whole amount over all prices, before and after a batch; scaled by 10^24."""

    plan: str
    pricing_version: int
    key: PeriodKey
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class RatedUpdates:
    """What one batch changed in one shard, and what that costs."""

    updates: Updates
    rated: list[RatedUpdate]
    spends: list[Spend]
    """Of the periods that have come as far as an alert of their plan."""


class Rater:
    """Prices updates by the catalog version in force at a period's start."""

    def __init__(self, history: History) -> None:
        self._plans: dict[tuple[int, str], Plan] = {}
        self._prices: dict[tuple[int, str, str], Price] = {}
        self._currencies = {v.version: v.catalog.currency for v in history.versions}
        for version in history.versions:
            for plan in version.catalog.plans.values():
                self._plans[version.version, plan.name] = plan
                for price in plan.prices:
                    self._prices[version.version, plan.name, price.key] = price

    def rate(self, updates: Updates) -> RatedUpdates:
        rated = [self._rate(update) for update in updates.prices]
        return RatedUpdates(updates, rated, self._spends(updates, rated))

    def _rate(self, update: PriceUpdate) -> RatedUpdate:
        version = update.pricing_version
        price = self._prices[version, update.plan, update.price]
        return RatedUpdate(
            update.plan,
            price,
            self._currencies[version],
            version,
            update.keys,
            [total if isinstance(total, int) else sum(total.values()) for total in update.after],
            [_apply(price, total) for total in update.after],
            update.inputs,
        )

    def _spends(self, updates: Updates, rated: list[RatedUpdate]) -> list[Spend]:
        """What the periods of plans with alerts amount to, where that reaches an alert.

        Amounts before are only worked out where the amount after reaches the lowest alert: no other
        period can cross one.
        """
        after: dict[Account, int] = {}
        for priced in rated:
            if self._plans[priced.pricing_version, priced.plan].alerts:
                for key, found in zip(priced.keys, priced.rated, strict=True):
                    account = (priced.plan, priced.pricing_version, key)
                    after[account] = after.get(account, 0) + found.amount
        for other in updates.others:
            account = (other.plan, other.pricing_version, other.key)
            price = self._prices.get((other.pricing_version, other.plan, other.price))
            if price is not None and account in after:
                after[account] += _apply(price, other.total).amount
        reached = {account: amount for account, amount in after.items() if amount >= self._lowest_alert(account)}
        grown = self._growth(reached.keys(), updates)
        return [Spend(*account, amount - grown[account], amount) for account, amount in reached.items()]

    def _lowest_alert(self, account: Account) -> int:
        plan, version, _ = account
        return min(alert.amount for alert in self._plans[version, plan].alerts)

    def _growth(self, accounts: Collection[Account], updates: Updates) -> dict[Account, int]:
        """By how much the amounts of periods changed."""
        grown = dict.fromkeys(accounts, 0)
        if not grown:
            return grown
        for update in updates.prices:
            price = self._prices[update.pricing_version, update.plan, update.price]
            for key, before, total in zip(update.keys, update.before, update.after, strict=True):
                account = (update.plan, update.pricing_version, key)
                if account in grown:
                    grown[account] += _apply(price, total).amount
                    grown[account] -= 0 if before is None else _apply(price, before).amount
        return grown


def _apply(price: Price, total: Total) -> Rated:
    return rate(price.model, {WHOLE: total} if isinstance(total, int) else total)
