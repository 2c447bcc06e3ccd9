"""Signals and quota states as the JSON that products read.

A signal is a CloudEvents 1.0 event in the structured form; the same bytes go to Kafka and to the Redis
channel. Numbers are decimal strings in plain notation without trailing zeros, because they may have more
digits than a float holds; instants are RFC 3339 in UTC. What stands here is read by other programs: fields
are added, never changed.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import msgspec

from domain.instants import to_text
from domain.quota import QuotaState, Signal, SignalType
from domain.values import AMOUNT_DECIMALS, QUANTITY_DECIMALS

SOURCE = "tallyflow"
"""The CloudEvents `source` of every signal."""

CONTENT_TYPE = "application/cloudevents+json"
"""Of the whole message, by the CloudEvents bindings."""

_encode = msgspec.json.Encoder().encode
instant_text = lru_cache(10_000)(to_text)
"""Periods are few."""


def signal_event(signal: Signal) -> bytes:
    """A signal as a structured CloudEvent."""
    decimals = AMOUNT_DECIMALS if signal.type is SignalType.SPEND_REACHED else QUANTITY_DECIMALS
    return _encode(
        {
            "specversion": "1.0",
            "id": signal.id,
            "source": SOURCE,
            "type": signal.type,
            "subject": signal.subject,
            "time": to_text(signal.at_us),
            "datacontenttype": "application/json",
            "data": {
                "feature": signal.feature,
                "meter": signal.meter,
                "period_start": to_text(signal.period_start_us),
                "period_end": to_text(signal.period_end_us),
                "threshold": decimal_text(signal.threshold, decimals),
                "allowance": decimal_text(signal.allowance, decimals),
                "used": decimal_text(signal.used, decimals),
                "catalog_version": signal.catalog_version,
            },
        }
    )


class QuotaField(NamedTuple):
    """One period of one subject's entitlement, as a field of the hash `quota:{SUBJECT}`."""

    subject: str
    feature: str
    used: int
    limit: int
    state: QuotaState
    period_start_us: int
    period_end_us: int
    inputs: int
    era: int
    plan: str
    on_exceed: str = "block"
    since_us: int = 0
    """From when the subject is on the plan; 0 where it never subscribed."""


def quota_value(field: QuotaField) -> str:
    """The value of a quota's field; the feature is the field's name, the subject the key's.

    `plan` tells apart the totals of a subject that changed plans within a period, `since` (absent where it
    never subscribed) which plan is the newer one. `on_exceed` says whether an exceeded quota blocks.
    """
    start, end = instant_text(field.period_start_us), instant_text(field.period_end_us)
    used, limit = decimal_text(field.used, QUANTITY_DECIMALS), _limit(field.limit)
    # Written out, because this is done for every quota that a batch touches: half the time of an encoder.
    return (
        f'{{"used":"{used}","limit":"{limit}","state":"{field.state}","period_start":"{start}",'
        f'"period_end":"{end}","inputs":{field.inputs},"era":{field.era},"plan":{_quoted(field.plan)},'
        f'"on_exceed":"{field.on_exceed}"{_since(field.since_us)}}}'
    )


def quota_key(subject: str) -> str:
    """The hash of a subject's quotas. The braces make a Redis cluster place it by the subject alone."""
    return f"quota:{{{subject}}}"


def decimal_text(scaled: int, decimals: int) -> str:
    """`scaled / 10^decimals` in plain notation: no exponent, no trailing zeros, `0` and never `-0`."""
    whole, fraction = divmod(abs(scaled), 10**decimals)
    text = f"{whole}.{fraction:0{decimals}}".rstrip("0").rstrip(".") if fraction else str(whole)
    return f"-{text}" if scaled < 0 else text


@lru_cache(10_000)
def _limit(scaled: int) -> str:
    return decimal_text(scaled, QUANTITY_DECIMALS)


def _since(us: int) -> str:
    return f',"since":"{instant_text(us)}"' if us else ""


@lru_cache(10_000)
def _quoted(text: str) -> str:
    return _encode(text).decode()
