"""Limits and signals: which thresholds an update crosses, and what a quota's state is.

A threshold is crossed iff `before < threshold <= after`. Thresholds stand only on totals that grow, so
however a period's usage is cut into updates, the same thresholds are crossed, each once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple

import msgspec
import xxhash

from domain.catalog import Alert, Entitlement, History
from domain.rating import RatedUpdates, Spend
from domain.resets import Limit
from domain.updates import PeriodKey, QuotaReset, QuotaUpdate

_ONE = Decimal(1)
_pack = msgspec.msgpack.Encoder().encode


class SignalType(StrEnum):
    THRESHOLD_REACHED = "quota.threshold_reached"
    EXCEEDED = "quota.exceeded"
    RESET = "quota.reset"
    SPEND_REACHED = "spend.threshold_reached"


class QuotaState(StrEnum):
    OK = "ok"
    WARNING = "warning"
    EXCEEDED = "exceeded"


class Signal(NamedTuple):
    """Something a product acts on. The id depends on what was crossed only, so a replay repeats it."""

    id: str
    type: SignalType
    subject: str
    feature: str
    """The entitlement's feature, or the alert's key."""
    meter: str
    """Empty for spend."""
    period_start_us: int
    period_end_us: int
    threshold: int
    """Absolute: a quantity scaled by 10^12, or of spend an amount scaled by 10^24. Of a reset, the limit."""
    allowance: int
    """The limit, in the same unit."""
    used: int
    """What was seen when it was sent, in the same unit."""
    at_us: int
    catalog_version: int


@dataclass(frozen=True, slots=True)
class QuotaStates:
    """Periods of one entitlement and how they stand, as parallel lists: rows of `quotas`."""

    plan: str
    entitlement: Entitlement
    catalog_version: int
    keys: list[PeriodKey]
    used: list[int]
    states: list[QuotaState]
    inputs: list[int]
    since: Sequence[int] = ()
    """From when the subject is on the plan; empty for 0."""


@dataclass(frozen=True, slots=True)
class Watched:
    """What one batch's updates mean to a product."""

    quotas: list[QuotaStates]
    signals: list[Signal]


def signal_id(type: str, subject: str, feature: str, period_start_us: int, threshold: int, corrections: int = 0) -> str:
    """128 bits over what was crossed, as hex. Every field is length-prefixed, so none runs into another."""
    return xxhash.xxh3_128_hexdigest(_pack((type, subject, feature, period_start_us, str(threshold), corrections)))


def absolute(entitlement: Entitlement, fraction: Decimal) -> int:
    """A threshold's quantity, scaled by 10^12 (the catalog allows only those that come out exact)."""
    numerator, denominator = fraction.as_integer_ratio()  # a product of decimals would be rounded to 28 digits
    return entitlement.limit * numerator // denominator


def lowest_thresholds(history: History) -> dict[Limit, int]:
    """Of every limit that has thresholds, the lowest one as a quantity."""
    return {
        (plan.name, entitlement.feature, version.version): min(absolute(entitlement, f) for f in entitlement.thresholds)
        for version in history.versions
        for plan in version.catalog.plans.values()
        for entitlement in plan.entitlements
        if entitlement.kind == "metered" and entitlement.thresholds
    }


class Watch:
    """One metered entitlement with its thresholds as quantities."""

    def __init__(self, entitlement: Entitlement) -> None:
        self.entitlement = entitlement
        self._thresholds = [(absolute(entitlement, f), f) for f in entitlement.thresholds]
        warnings = [threshold for threshold, fraction in self._thresholds if fraction < _ONE]
        self._warning = min([*warnings, entitlement.limit])
        self._lowest = min((threshold for threshold, _ in self._thresholds), default=None)

    def state(self, used: int) -> QuotaState:
        if used < self._warning:
            return QuotaState.OK
        return QuotaState.EXCEEDED if used >= self.entitlement.limit else QuotaState.WARNING

    def crossings(self, update: QuotaUpdate, at_us: int) -> list[Signal]:
        """The signals of the thresholds that an update crosses."""
        lowest = self._lowest
        if lowest is None:
            return []
        out = []
        for key, before, after in zip(update.keys, update.before, update.after, strict=True):
            if after >= lowest:
                for threshold, fraction in self._thresholds:
                    if before < threshold <= after:
                        kind = SignalType.EXCEEDED if fraction == _ONE else SignalType.THRESHOLD_REACHED
                        out.append(self._signal(kind, key, threshold, after, at_us, update.pricing_version))
        return out

    def reset(self, reset: QuotaReset, at_us: int) -> Signal:
        """The signal that a period is over. Its threshold is the limit: two plans' periods stay apart."""
        limit = self.entitlement.limit
        return self._signal(SignalType.RESET, reset.key, limit, reset.used, at_us, reset.pricing_version)

    def _signal(self, kind: SignalType, key: PeriodKey, threshold: int, used: int, at_us: int, version: int) -> Signal:
        subject, start, end = key
        entitlement = self.entitlement
        return Signal(
            signal_id(kind, subject, entitlement.feature, start, threshold),
            kind,
            subject,
            entitlement.feature,
            entitlement.meter,
            start,
            end,
            threshold,
            entitlement.limit,
            used,
            at_us,
            version,
        )


class Watcher:
    """Every metered entitlement and spend alert of a catalog history."""

    def __init__(self, history: History) -> None:
        self._watches: dict[tuple[int, str, str], Watch] = {}
        self._alerts: dict[tuple[int, str], tuple[Alert, ...]] = {}
        for version in history.versions:
            for plan in version.catalog.plans.values():
                self._alerts[version.version, plan.name] = plan.alerts
                for entitlement in plan.entitlements:
                    if entitlement.kind == "metered":
                        self._watches[version.version, plan.name, entitlement.feature] = Watch(entitlement)

    def watch(self, rated: RatedUpdates, at_us: int) -> Watched:
        """The states of touched quotas, and a signal for every threshold crossed."""
        watched = Watched([], [])
        for update in rated.updates.quotas:
            watch = self._watches[update.pricing_version, update.plan, update.feature]
            states = list(map(watch.state, update.after))
            watched.quotas.append(
                QuotaStates(
                    update.plan,
                    watch.entitlement,
                    update.pricing_version,
                    update.keys,
                    update.after,
                    states,
                    update.inputs,
                    update.since,
                )
            )
            watched.signals.extend(watch.crossings(update, at_us))
        for reset in rated.updates.resets:
            watch = self._watches[reset.pricing_version, reset.plan, reset.feature]
            watched.signals.append(watch.reset(reset, at_us))
        if rated.updates.resets:
            # A reset comes after the crossings of its own period, and before those of the next.
            watched.signals.sort(key=lambda signal: (signal.period_end_us, signal.type is SignalType.RESET))
        for spent in rated.spends:
            for alert in self._alerts[spent.pricing_version, spent.plan]:
                watched.signals.extend(spend_crossings(spent, alert, at_us))
        return watched


def spend_crossings(spend: Spend, alert: Alert, at_us: int) -> list[Signal]:
    """The signal of a spend alert, if the period's amount crosses it."""
    if not spend.before < alert.amount <= spend.after:
        return []
    subject, start, end = spend.key
    return [
        Signal(
            signal_id(SignalType.SPEND_REACHED, subject, alert.key, start, alert.amount),
            SignalType.SPEND_REACHED,
            subject,
            alert.key,
            "",
            start,
            end,
            alert.amount,
            alert.amount,
            spend.after,
            at_us,
            spend.pricing_version,
        )
    ]
