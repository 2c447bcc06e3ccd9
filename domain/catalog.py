"""The catalog as the flow uses it: validated, immutable, indexed by name.

`config.catalog` reads the YAML and builds these values; nothing here reads a file or a clock.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from enum import StrEnum

from domain.pricing import PriceModel
from domain.schema import Schema


class Aggregation(StrEnum):
    COUNT = "count"
    SUM = "sum"
    MIN = "min"
    MAX = "max"
    AVG = "avg"
    LATEST = "latest"
    UNIQUE = "unique"


class PeriodKind(StrEnum):
    HOUR = "hour"
    DAY = "day"
    MONTH = "month"
    BILLING = "billing"


Where = Mapping[str, frozenset[str]]
"""Selected values by property path (meters) or group-by label (prices), compared as text."""


@dataclass(frozen=True, slots=True)
class EventType:
    name: str
    schema: Schema
    description: str = ""


@dataclass(frozen=True, slots=True)
class Meter:
    """One aggregation of one event type.

    A property path is a tuple of names (`("request", "bytes")` for `request.bytes`); a label of
    `group_by` is the dotted path as written. An event whose `value` is absent or null is no input.
    """

    name: str
    event_type: str
    aggregation: Aggregation
    value: tuple[str, ...] | None
    group_by: tuple[str, ...]
    where: Where
    window: str
    """One of 1m 5m 10m 15m 30m 1h 2h 3h 4h 6h 12h 1d 1mo."""
    grace_us: int

    def identity(self) -> tuple[object, ...]:
        """What may not change once the meter is used."""
        where = tuple(sorted((k, tuple(sorted(v))) for k, v in self.where.items()))
        return (self.event_type, self.aggregation, self.value, self.group_by, where, self.window)


@dataclass(frozen=True, slots=True)
class Price:
    key: str
    meter: str
    model: PriceModel
    where: Where


@dataclass(frozen=True, slots=True)
class Entitlement:
    """`metered` has meter, limit, period, thresholds; `boolean` has enabled; `static` has config."""

    feature: str
    kind: str
    meter: str = ""
    limit: int = 0
    """In units of 10^-12."""
    period: PeriodKind = PeriodKind.MONTH
    thresholds: tuple[Decimal, ...] = ()
    """Fractions of the limit, ascending."""
    on_exceed: str = "block"
    enabled: bool = False
    config: str = ""
    """JSON text."""


@dataclass(frozen=True, slots=True)
class Alert:
    key: str
    amount: int
    """In units of 10^-24."""


@dataclass(frozen=True, slots=True)
class Plan:
    name: str
    prices: tuple[Price, ...]
    entitlements: tuple[Entitlement, ...]
    alerts: tuple[Alert, ...]


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subject on a plan from the local day `start` until before the local day `end`."""

    subject: str
    plan: str
    start: date
    end: date | None
    timezone: str


@dataclass(frozen=True, slots=True)
class Catalog:
    timezone: str
    currency: str
    accept_within_us: int
    event_types: Mapping[str, EventType]
    meters: Mapping[str, Meter]
    plans: Mapping[str, Plan]
    subscriptions: Mapping[str, tuple[Subscription, ...]]
    """By subject, ascending by start, not overlapping."""
    default_plan: str | None


@dataclass(frozen=True, slots=True)
class CatalogVersion:
    version: int
    effective_from_us: int
    """The log time from which it holds; 0 for version 1."""
    catalog: Catalog
    sha256: str
    yaml: str


@dataclass(frozen=True, slots=True)
class History:
    """Every applied catalog, ascending by version and by `effective_from_us`."""

    versions: tuple[CatalogVersion, ...]

    def at(self, log_time_us: int) -> CatalogVersion:
        """The version in force at a log time (the first version holds from the beginning)."""
        starts = [v.effective_from_us for v in self.versions]
        return self.versions[max(bisect_right(starts, log_time_us) - 1, 0)]

    def pricing(self, plan: str, period_start_us: int) -> CatalogVersion | None:
        """The version by which a period of a plan is priced.

        The one in force at the period's start; if that has no such plan, the first later one.
        """
        first = self.at(period_start_us).version
        for version in self.versions:
            if version.version >= first and plan in version.catalog.plans:
                return version
        return None

    def get(self, version: int) -> CatalogVersion:
        return self.versions[version - self.versions[0].version]
