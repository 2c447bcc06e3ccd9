"""The catalog versions, straight from their YAML: no validation, plain values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import lru_cache
from typing import Any

import yaml

from tests.oracle.calendars import day_start

UNITS_US = {"s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}


def duration_us(text: str) -> int:
    """`35d`, `1h`, `10m`, `30s` in microseconds."""
    return int(text[:-1]) * UNITS_US[text[-1]]


def exact(value: int | float | str) -> Decimal:
    """A YAML number or string as it was written (a short float's repr is what was written)."""
    return Decimal(str(value))


def text_form(value: object) -> str:
    """A YAML value of a `where` list as text, the form that properties are compared in."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


@dataclass(frozen=True)
class Meter:
    name: str
    event_type: str
    aggregation: str
    value: str
    group_by: tuple[str, ...]
    where: dict[str, set[str]]
    window: str
    grace_us: int


@dataclass(frozen=True)
class Subscription:
    plan: str
    start: date
    end: date | None
    zone: str

    def covers(self, instant: int) -> bool:
        if instant < day_start(self.zone, self.start):
            return False
        return self.end is None or instant < day_start(self.zone, self.end)


@dataclass(frozen=True)
class Catalog:
    version: int
    effective_from: int
    zone: str
    currency: str
    accept_within: int
    schemas: dict[str, dict[str, Any]]
    meters: list[Meter]
    plans: dict[str, dict[str, Any]]
    subscriptions: dict[str, list[Subscription]]
    default_plan: str | None

    def subscription(self, subject: str, instant: int) -> Subscription | None:
        """The subscription of the subject that covers an instant."""
        for subscription in self.subscriptions.get(subject, []):
            if subscription.covers(instant):
                return subscription
        return None


def where_of(raw: dict[str, Any]) -> dict[str, set[str]]:
    return {path: {text_form(v) for v in values} for path, values in (raw.get("where") or {}).items()}


def _meter(name: str, raw: dict[str, Any]) -> Meter:
    return Meter(
        name=name,
        event_type=raw["event_type"],
        aggregation=raw["aggregation"],
        value=raw.get("value") or "",
        group_by=tuple(raw.get("group_by") or ()),
        where=where_of(raw),
        window=raw["window"],
        grace_us=duration_us(raw.get("grace") or "0s"),
    )


@lru_cache(maxsize=100)
def _read(text: str) -> dict[str, Any]:
    """Read once, and changed by nobody."""
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def load(version: int, effective_from: int, text: str) -> Catalog:
    raw = _read(text)
    zone = raw.get("timezone") or "UTC"
    subscriptions: dict[str, list[Subscription]] = {}
    for seed in raw.get("subscriptions") or []:
        subscription = Subscription(seed["plan"], seed["start"], seed.get("end"), seed.get("timezone") or zone)
        subscriptions.setdefault(seed["subject"], []).append(subscription)
    return Catalog(
        version=version,
        effective_from=effective_from,
        zone=zone,
        currency=raw["currency"],
        accept_within=duration_us(raw.get("accept_within") or "35d"),
        schemas={name: event_type["schema"] for name, event_type in raw["event_types"].items()},
        meters=[_meter(name, meter) for name, meter in (raw.get("meters") or {}).items()],
        plans=raw.get("plans") or {},
        subscriptions=subscriptions,
        default_plan=raw.get("default_plan"),
    )


@dataclass(frozen=True)
class History:
    catalogs: list[Catalog]

    def at(self, log_time: int) -> Catalog:
        """The version in force at a log time; the first holds from the beginning."""
        found = self.catalogs[0]
        for catalog in self.catalogs:
            if catalog.effective_from <= log_time:
                found = catalog
        return found

    def pricing(self, plan: str, period_start: int) -> Catalog | None:
        """The version by which a period is priced: in force at its start, or the next that has the plan."""
        first = self.at(period_start).version
        for catalog in self.catalogs:
            if catalog.version >= first and plan in catalog.plans:
                return catalog
        return None
