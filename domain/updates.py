"""What a batch changed, as columns: the aggregate emits it, `rate` prices it, `watch_quotas` watches it.

Every number is an absolute total, so emitting an update twice, or only the last of several, changes
nothing downstream. Quantities are scaled by 10^12.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from domain.catalog import Aggregation

WindowKey = tuple[str, int, int, int, str]
"""(subject, window_start_us, window_end_us, booked_on_day, dimensions_key)"""

PeriodKey = tuple[str, int, int]
"""(subject, period_start_us, period_end_us)"""

Total = int | dict[str, int]
"""What a price applies to: a quantity, or of a matrix the quantity of each part."""


@dataclass(frozen=True, slots=True)
class UsageUpdate:
    """Windows of one meter, as parallel lists."""

    meter: str
    labels: tuple[str, ...]
    aggregation: Aggregation
    keys: list[WindowKey]
    values: list[Any]
    """The aggregates (of avg, the sums); of `latest` meters tuples (time_us, partition, offset, index, value)."""
    inputs: list[int]
    catalog_versions: list[int]


class MemberUpdate(NamedTuple):
    """A distinct value seen in a window of a `unique` meter: a row of `usage_members`."""

    meter: str
    subject: str
    window_start_us: int
    window_end_us: int
    dimensions_key: str
    member: str


@dataclass(frozen=True, slots=True)
class PriceUpdate:
    """Billing periods of one price, as parallel lists."""

    plan: str
    price: str
    pricing_version: int
    keys: list[PeriodKey]
    before: list[Total | None]
    """None where the price had no input yet."""
    after: list[Total]
    inputs: list[int]


@dataclass(frozen=True, slots=True)
class QuotaUpdate:
    """Periods of one entitlement, as parallel lists."""

    plan: str
    feature: str
    pricing_version: int
    keys: list[PeriodKey]
    before: list[int]
    after: list[int]
    inputs: list[int]
    since: Sequence[int] = ()
    """From when the subject is on the plan, as of the batch; empty for 0."""


class QuotaReset(NamedTuple):
    """A period of an entitlement that is over, and of which a threshold was crossed."""

    plan: str
    feature: str
    pricing_version: int
    key: PeriodKey
    used: int


class OtherTotal(NamedTuple):
    """A price that a batch did not touch, in a billing period that it did; a spend alert needs it."""

    plan: str
    pricing_version: int
    key: PeriodKey
    price: str
    total: Total


@dataclass(slots=True)
class Updates:
    """What one batch changed in one shard."""

    usage: list[UsageUpdate] = field(default_factory=list)
    members: list[MemberUpdate] = field(default_factory=list)
    prices: list[PriceUpdate] = field(default_factory=list)
    others: list[OtherTotal] = field(default_factory=list)
    """Of plans with alerts (in any catalog version) only."""
    quotas: list[QuotaUpdate] = field(default_factory=list)
    resets: list[QuotaReset] = field(default_factory=list)
    log_time_us: int | None = None
    """The newest log time of the batch, where log times are monotone: for measuring, nothing depends on it."""
