"""The totals that the ledger's rows add up to, beside what stands in the tables.

All inputs of a key are collected before anything is added, in whole numbers of 10^-12.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any

from tests.audit.ids import Findings
from tests.audit.prices import UNIT, cost, scaled
from tests.oracle import Tables, calendars
from tests.oracle.catalogs import Catalog, History, where_of
from tests.oracle.events import Event, Position
from tests.oracle.totals import Input, as_input, billing, selects, zone_of

Key = tuple[Any, ...]
DAY_US = 86_400_000_000


@dataclass
class Quota:
    """One period of one entitlement."""

    entitlement: dict[str, Any]
    catalog: Catalog
    end: int
    meter: str
    used: int = 0
    inputs: int = 0

    @property
    def limit(self) -> int:
        return scaled(self.entitlement["limit"])

    def thresholds(self) -> list[tuple[int, bool]]:
        """As quantities; whether each is the limit itself."""
        fractions = [scaled(fraction) for fraction in self.entitlement.get("thresholds") or []]
        return [(self.limit * fraction // UNIT, fraction == UNIT) for fraction in fractions]

    @property
    def state(self) -> str:
        if self.used >= self.limit:
            return "exceeded"
        return "warning" if any(self.used >= threshold for threshold, _ in self.thresholds()) else "ok"


@dataclass
class Added:
    """What the ledger's rows add up to."""

    quotas: dict[Key, Quota] = field(default_factory=dict)  # subject, plan, feature, period_start
    spent: dict[Key, int] = field(default_factory=dict)  # subject, plan, period_start, period_end
    pricing: dict[Key, Catalog] = field(default_factory=dict)  # the same
    excess: dict[tuple[str, str], int] = field(default_factory=dict)
    """By table and meter, by how many inputs its rows have more than the ledger; less where negative."""


class Adding:
    """Sorts the ledger's events into the keys of each table, and compares."""

    def __init__(self, history: History, tables: Tables, findings: Findings) -> None:
        self._history, self._tables, self._findings = history, tables, findings
        self._usage: dict[Key, list[Input]] = {}
        self._rated: dict[Key, list[Input]] = {}
        self._prices: dict[Key, tuple[dict[str, Any], Catalog]] = {}
        self._quotas: dict[Key, list[Input]] = {}
        self._added = Added()

    def add_up(self, ledger: Mapping[Position, Event]) -> Added:
        for position, event in ledger.items():
            for meter in event.catalog.meters:
                if meter.event_type == event.type:
                    one = as_input(meter, event, position)
                    if one is not None:
                        self._sort(one)
        self._check_usage()
        self._check_rated()
        self._check_quotas()
        return self._added

    def _sort(self, one: Input) -> None:
        event, meter = one.event, one.meter
        start, end = calendars.window(zone_of(event), meter.window, event.time)
        labels = [one.labels[label] for label in meter.group_by]
        dimensions = json.dumps(labels, ensure_ascii=False, separators=(",", ":")) if labels else ""
        days = event.log_time // DAY_US if event.log_time >= end + meter.grace_us else 0
        booked_on = date(1970, 1, 1) + timedelta(days=days)
        self._usage.setdefault((meter.name, event.subject, start, end, dimensions, booked_on), []).append(one)
        plan, period = billing(event)
        if plan is None:
            return
        catalog = self._history.pricing(plan, period[0])
        for price in catalog.plans[plan].get("prices") or [] if catalog else []:
            if price["meter"] == meter.name and selects(where_of(price), one.labels):
                key = (event.subject, plan, price["key"], *period)
                assert catalog is not None
                self._prices[key] = (price, catalog)
                self._rated.setdefault(key, []).append(one)
        for catalog in self._history.catalogs:
            for entitlement in catalog.plans.get(plan, {}).get("entitlements") or []:
                if entitlement["kind"] == "metered" and entitlement["meter"] == meter.name:
                    self._entitle(one, plan, period, entitlement, catalog)

    def _entitle(self, one: Input, plan: str, billed: Key, entitlement: dict[str, Any], catalog: Catalog) -> None:
        name = entitlement["period"]
        start, end = billed if name == "billing" else calendars.window(zone_of(one.event), name, one.event.time)
        if self._history.pricing(plan, start) is catalog:
            key = (one.event.subject, plan, entitlement["feature"], start)
            self._added.quotas.setdefault(key, Quota(entitlement, catalog, end, one.meter.name))
            self._quotas.setdefault(key, []).append(one)

    def _check_usage(self) -> None:
        wanted = {}
        members = set()
        for key, inputs in self._usage.items():
            meter = inputs[0].meter
            latest = max(((i.event.time, i.position) for i in inputs), default=(0, ("", 0, 0, 0)))
            is_latest = meter.aggregation == "latest"
            wanted[key] = {
                "dimensions": inputs[0].labels,
                "aggregation": meter.aggregation,
                "value": sum(map(_number, inputs)) if meter.aggregation == "avg" else aggregate(inputs),
                "count": len(inputs),
                "latest_time": latest[0] if is_latest else 0,
                "latest_position": latest[1] if is_latest else ("", 0, 0, 0),
                **_versions(inputs, max(i.event.catalog.version for i in inputs)),
            }
            if meter.aggregation == "unique":
                members |= {(*key[:5], one.value) for one in inputs}
        self._compare("usage", wanted, lambda key, row: str(key[0]))
        for key in sorted(self._tables.usage_members ^ members, key=repr):
            which = "is not in the ledger" if key in self._tables.usage_members else "is missing"
            self._findings.say(f"usage_members: {key} {which}")

    def _check_rated(self) -> None:
        wanted = {}
        for key, inputs in self._rated.items():
            price, catalog = self._prices[key]
            quantity = aggregate(inputs)
            amount = cost(price, quantity, _parts(price, inputs))
            subject, plan, _, start, end = key
            account = (subject, plan, start, end)
            self._added.spent[account] = self._added.spent.get(account, 0) + amount
            self._added.pricing[account] = catalog
            wanted[key] = {
                "meter": inputs[0].meter.name,
                "quantity": quantity,
                "amount": amount,
                "currency": catalog.currency,
                **_versions(inputs, catalog.version),
            }
        self._compare("rated_usage", wanted, lambda key, row: f"{row['meter']}/{key[2]}")
        for key, row in self._tables.rated_usage.items():
            if key in self._prices:
                price, found = self._prices[key][0], scaled(row["quantity"])
                parts = _parts(price, self._rated[key])
                if price["model"] != "matrix" and cost(price, found, parts) != scaled(row["amount"], UNIT**2):
                    self._findings.say(f"rated_usage: {key}: {row['amount']} is not the price of {row['quantity']}")
            if sum(scaled(amount, UNIT**2) for _, amount in row["tiers"]) != scaled(row["amount"], UNIT**2):
                self._findings.say(f"rated_usage: {key}: the tiers do not add up to {row['amount']}")

    def _check_quotas(self) -> None:
        wanted = {}
        for key, inputs in self._quotas.items():
            quota = self._added.quotas[key]
            quota.used, quota.inputs = aggregate(inputs), len(inputs)
            wanted[key] = {
                "period_end": quota.end,
                "meter": quota.meter,
                "used": quota.used,
                "allowance": quota.limit,
                "state": quota.state,
                **_versions(inputs, quota.catalog.version),
            }
        self._compare("quotas", wanted, lambda key, row: f"{row['meter']}/{key[1]}/{key[2]}")

    def _compare(self, table: str, wanted: Mapping[Key, dict[str, Any]], meter_of: Any) -> None:
        """Name each row that is missing, not of the ledger, or says something else."""
        found: Mapping[Key, dict[str, Any]] = getattr(self._tables, table)
        for key in sorted(wanted.keys() | found.keys(), key=repr):
            have, want = found.get(key), wanted.get(key)
            if have is None or want is None:
                which = "is missing" if have is None else "does not come from the ledger"
                self._findings.say(f"{table}: {key} {which}: {want or have}")
            else:
                for name, value in want.items():
                    if _plain(have[name], name) != value:
                        self._findings.say(f"{table}: {key}: {name} is {have[name]}, the ledger gives {value}")
            meter = table, meter_of(key, have or want)
            more = (have or {}).get("inputs", 0) - (want or {}).get("inputs", 0)
            self._added.excess[meter] = self._added.excess.get(meter, 0) + more


def _plain(value: Any, name: str) -> Any:
    if name in ("value", "quantity", "used", "allowance"):
        return scaled(value)
    return scaled(value, UNIT**2) if name == "amount" else value


def _versions(inputs: list[Input], catalog_version: int) -> dict[str, int]:
    """`era` is never raised by a run."""
    return {"inputs": len(inputs), "era": 0, "version": len(inputs), "catalog_version": catalog_version}


def _number(one: Input) -> int:
    return scaled(one.value)


def aggregate(inputs: list[Input]) -> int:
    """What inputs of one meter come to, as it is priced: of an average the mean, rounded half-even."""
    match inputs[0].meter.aggregation if inputs else "none":
        case "none":
            return 0
        case "count":
            return len(inputs) * UNIT
        case "sum":
            return sum(map(_number, inputs))
        case "avg":
            total, count = sum(map(_number, inputs)), len(inputs)
            mean, rest = divmod(total, count)
            return mean + (2 * rest > count or (2 * rest == count and mean % 2 == 1))
        case "min":
            return min(map(_number, inputs))
        case "max":
            return max(map(_number, inputs))
        case "latest":
            return _number(max(inputs, key=lambda one: (one.event.time, one.position)))
        case "unique":
            return len({one.value for one in inputs}) * UNIT
    raise AssertionError(f"no such aggregation: {inputs[0].meter.aggregation}")


def _parts(price: dict[str, Any], inputs: list[Input]) -> dict[str, int]:
    """Of a matrix, what each value of its dimension comes to."""
    if price["model"] != "matrix":
        return {}
    split: dict[str, list[Input]] = {}
    for one in inputs:
        split.setdefault(one.labels[price["dimension"]], []).append(one)
    return {value: aggregate(part) for value, part in split.items()}
