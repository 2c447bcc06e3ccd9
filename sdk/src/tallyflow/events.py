"""A usage event as it goes over the wire: a structured CloudEvent 1.0 in JSON.

Encoding happens once, in the caller: what is wrong with an event is a programming error and raises
there, and every later attempt to deliver it sends the same bytes under the same id. Numbers are
exact: nothing passes through a float that was not one already.
"""

from __future__ import annotations

import os
import time as clock
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson

EVENT_BYTES_MAX = 1024 * 1024
"""tallyflow rejects a larger event."""
DEPTH_MAX = 200
"""How deep objects and arrays in `data` may be nested."""
DECIMALS_MAX = 12
"""tallyflow counts with 12 decimals; more would be rejected there, never rounded."""
NUMBER_MAX = 10**15
"""A number with decimals has to be smaller than this."""
YEAR_MIN, YEAR_MAX = 2000, 2100


@dataclass(frozen=True)
class UsageEvent:
    """One event, encoded. `id` and the emitter's source are its idempotency key: sent twice, it counts once."""

    id: str
    type: str
    subject: str
    time: datetime
    body: bytes
    """The whole CloudEvent: one line of JSON, as `tally run --source 'file:...'` reads it as well."""


def encode(
    type: str,
    subject: str,
    data: Mapping[str, Any],
    *,
    source: str,
    id: str | None = None,
    time: datetime | None = None,
) -> UsageEvent:
    """Make an event; without `id` a new one (a UUID of version 7), without `time` now.

    Raises:
        ValueError: says which part of the event cannot be sent and why.
    """
    key = new_id() if id is None else id
    time = datetime.now(timezone.utc) if time is None else time
    for name, value in (("type", type), ("subject", subject), ("source", source), ("id", key)):
        if not isinstance(value, str) or not value:
            raise ValueError(f"{name} has to be a text that is not empty, not {value!r}")
    if not isinstance(data, Mapping):
        raise ValueError(f"data has to be a mapping, not {_kind(data)}")
    event = {
        "specversion": "1.0",
        "id": key,
        "source": source,
        "type": type,
        "subject": subject,
        "time": _instant(time, "time"),
        "datacontenttype": "application/json",
        "data": _mapping(data, "data", 1),
    }
    try:
        body = orjson.dumps(event)
    except TypeError as error:  # a text with a lone surrogate
        raise ValueError(f"the event is no JSON: {error}") from error
    if len(body) > EVENT_BYTES_MAX:
        raise ValueError(f"the event has {len(body):,} bytes; at most {EVENT_BYTES_MAX:,} are accepted")
    return UsageEvent(key, type, subject, time, body)


def new_id() -> str:
    """A UUID of version 7 (RFC 9562): unique without coordination, and sorted by the time it was made."""
    stamp = clock.time_ns() // 1_000_000 & (1 << 48) - 1
    random = int.from_bytes(os.urandom(10), "big")
    number = stamp << 80 | 7 << 76 | (random >> 64 & 0xFFF) << 64 | 2 << 62 | random & (1 << 62) - 1
    return str(UUID(int=number))


def _mapping(value: Mapping[Any, Any], path: str, depth: int) -> dict[str, Any]:
    out = {}
    for key, item in value.items():
        if not isinstance(key, str):
            raise ValueError(f"{path}: the key {key!r} is no text")
        out[key] = _json(item, f"{path}.{key}", depth)
    return out


def _json(value: Any, path: str, depth: int) -> Any:
    """A value that orjson writes exactly as we mean it."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        return orjson.Fragment(str(int(value)))  # of any size; orjson itself ends at 64 bits
    if isinstance(value, float):
        return _number(Decimal(repr(float(value))), path)
    if isinstance(value, Decimal):
        return _number(value, path)
    if isinstance(value, datetime):
        return _instant(value, path)
    if isinstance(value, UUID):
        return str(value)
    if depth >= DEPTH_MAX:
        raise ValueError(f"data is nested deeper than {DEPTH_MAX}")
    if isinstance(value, Mapping):
        return _mapping(value, path, depth + 1)
    if isinstance(value, (list, tuple)):
        return [_json(item, f"{path}[{place}]", depth + 1) for place, item in enumerate(value)]
    raise ValueError(f"{path}: {_kind(value)} has no JSON form here; use numbers, texts, lists and mappings")


def _number(value: Decimal, path: str) -> orjson.Fragment:
    """The number in plain digits: what a float is, is what `repr` says, not its binary fraction."""
    if not value.is_finite():
        raise ValueError(f"{path}: {value} is no JSON number")
    if value.copy_abs() >= NUMBER_MAX:
        raise ValueError(f"{path}: {value} is too large; a number with decimals has to be below 10^15")
    text = format(value, "f")
    whole, _, decimals = text.partition(".")
    if len(decimals) > DECIMALS_MAX:
        decimals = decimals.rstrip("0")
        if len(decimals) > DECIMALS_MAX:
            raise ValueError(f"{path}: {value} has {len(decimals)} decimals; round it to at most {DECIMALS_MAX}")
        text = f"{whole}.{decimals}" if decimals else whole
    return orjson.Fragment(text)


def _instant(value: Any, path: str) -> str:
    if not isinstance(value, datetime):
        raise ValueError(f"{path} has to be a datetime, not {_kind(value)}")
    if value.utcoffset() is None:
        raise ValueError(f"{path}: {value.isoformat()} has no time zone; use datetime.now(timezone.utc)")
    near = YEAR_MIN - 1 <= value.year <= YEAR_MAX + 1  # the calendar's ends cannot be converted
    utc = value.astimezone(timezone.utc) if near else value
    if not YEAR_MIN <= utc.year <= YEAR_MAX:
        raise ValueError(f"{path}: {value.isoformat()} is not between the years {YEAR_MIN} and {YEAR_MAX}")
    return utc.isoformat().replace("+00:00", "Z")


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"
