"""Limits and signals: which thresholds an update crosses, and what a quota's state is.

A threshold is crossed iff `before < threshold <= after`. Thresholds stand only on totals that grow, so
however a period's usage is cut into updates, the same thresholds are crossed, each once.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple

import msgspec
import xxhash

from domain.catalog import Alert, Entitlement
from domain.rating import Spend
from domain.totals import QuotaUpdate

_ONE = Decimal(1)
_pack = msgspec.msgpack.Encoder().encode


class SignalType(StrEnum):
    THRESHOLD_REACHED = "quota.threshold_reached"
    EXCEEDED = "quota.exceeded"
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
    """Absolute: a quantity scaled by 10^12, or of spend an amount scaled by 10^24."""
    allowance: int
    """The limit, in the same unit."""
    used: int
    """What was seen when it was sent, in the same unit."""
    at_us: int
    catalog_version: int


class QuotaRow(NamedTuple):
    """The state of an entitlement period; quantities scaled by 10^12."""

    subject: str
    plan: str
    feature: str
    period_start_us: int
    period_end_us: int
    meter: str
    used: int
    allowance: int
    state: QuotaState
    inputs: int
    catalog_version: int


@dataclass(frozen=True, slots=True)
class Watched:
    """What one batch's updates mean to a product."""

    quotas: list[QuotaRow]
    signals: list[Signal]


def signal_id(type: str, subject: str, feature: str, period_start_us: int, threshold: int, corrections: int = 0) -> str:
    """128 bits over what was crossed, as hex. Every field is length-prefixed, so none runs into another."""
    return xxhash.xxh3_128_hexdigest(_pack((type, subject, feature, period_start_us, str(threshold), corrections)))


def absolute(entitlement: Entitlement, fraction: Decimal) -> int:
    """A threshold's quantity, scaled by 10^12 (the catalog allows only those that come out exact)."""
    numerator, denominator = fraction.as_integer_ratio()  # a product of decimals would be rounded to 28 digits
    return entitlement.limit * numerator // denominator


def state_of(entitlement: Entitlement, used: int) -> QuotaState:
    if used >= entitlement.limit:
        return QuotaState.EXCEEDED
    if any(fraction < _ONE and used >= absolute(entitlement, fraction) for fraction in entitlement.thresholds):
        return QuotaState.WARNING
    return QuotaState.OK


def quota_row(update: QuotaUpdate, entitlement: Entitlement) -> QuotaRow:
    return QuotaRow(
        update.subject,
        update.plan,
        update.feature,
        update.period_start_us,
        update.period_end_us,
        entitlement.meter,
        update.after,
        entitlement.limit,
        state_of(entitlement, update.after),
        update.inputs,
        update.pricing_version,
    )


def crossings(update: QuotaUpdate, entitlement: Entitlement, at_us: int) -> list[Signal]:
    """The signals of the thresholds that an update crosses."""
    out = []
    for fraction in entitlement.thresholds:
        threshold = absolute(entitlement, fraction)
        if update.before < threshold <= update.after:
            kind = SignalType.EXCEEDED if fraction == _ONE else SignalType.THRESHOLD_REACHED
            out.append(
                Signal(
                    signal_id(kind, update.subject, update.feature, update.period_start_us, threshold),
                    kind,
                    update.subject,
                    update.feature,
                    entitlement.meter,
                    update.period_start_us,
                    update.period_end_us,
                    threshold,
                    entitlement.limit,
                    update.after,
                    at_us,
                    update.pricing_version,
                )
            )
    return out


def spend_crossings(spend: Spend, alert: Alert, at_us: int) -> list[Signal]:
    """The signal of a spend alert, if the period's amount crosses it."""
    if not spend.before < alert.amount <= spend.after:
        return []
    kind = SignalType.SPEND_REACHED
    return [
        Signal(
            signal_id(kind, spend.subject, alert.key, spend.period_start_us, alert.amount),
            kind,
            spend.subject,
            alert.key,
            "",
            spend.period_start_us,
            spend.period_end_us,
            alert.amount,
            alert.amount,
            spend.after,
            at_us,
            spend.pricing_version,
        )
    ]
