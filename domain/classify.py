"""The careful second look at an event, one at a time.

`decode` sends here what its fast path refused. The event is parsed generically and checked step by
step in the order of precedence of `Reason`; the first step that fails names the reason and, where
there is one, the failing path. An event without fault (say, one whose repeated key was first given
a wrong value) comes back in a form that the fast path takes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec

from domain import envelope
from domain.catalog import History
from domain.instants import parse, to_text
from domain.values import EVENT_BYTES_MAX, JSON_DEPTH_MAX, Reason, Refusal

_BLANK = b" \t\r\n"
_LONG_DIGITS = 1000


def _number(text: str) -> Decimal:
    """A JSON number with fraction or exponent; one beyond Decimal's reach becomes merely huge."""
    try:
        return Decimal(text)
    except InvalidOperation:
        return _HUGE


_HUGE = Decimal("1E+999999")
_LONG_INTEGER = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|(?<![\d.eE+-])-?[1-9]\d{999,}(?![\d.eE])', re.DOTALL)
"""Strings (to step over them), and integers longer than Python converts in reasonable time."""
_decode = msgspec.json.Decoder(float_hook=_number).decode
_encode = msgspec.json.Encoder(decimal_format="number").encode


def examine(
    payload: bytes, attributes: Mapping[str, str] | None, log_time_us: int | None, history: History
) -> Refusal | bytes:
    """The reason why an event is not accepted, or the event in plain form (times are judged elsewhere).

    Args:
        payload: The bytes received.
        attributes: CloudEvents attributes in binary mode, else None.
        log_time_us: The broker's log time; None in a file, where the event says it.
        history: The catalogs.
    """
    known = log_time_us or 0
    try:
        value = _parse(payload, attributes)
    except ValueError as fault:
        return Refusal(Reason.MALFORMED, str(fault), known)
    if len(payload) > EVENT_BYTES_MAX:
        return Refusal(Reason.OVERSIZED, f"{len(payload)} bytes; at most {EVENT_BYTES_MAX}", known)
    fault_text = _envelope_fault(value, in_file=log_time_us is None)
    if fault_text:
        return Refusal(Reason.NOT_CLOUDEVENT, fault_text, known)
    if log_time_us is None:
        log_time_us = parse(value.get("logtime", value.get("time")))
        assert log_time_us is not None, "the envelope was checked"
    key = (log_time_us, value["source"], value["id"], value["subject"])
    event_type = history.at(log_time_us).catalog.event_types.get(value["type"])
    if event_type is None:
        return Refusal(Reason.UNKNOWN_TYPE, f"type: {value['type']!r} is not in the catalog", *key)
    if "data" not in value:
        return Refusal(Reason.SCHEMA_VIOLATION, "data: required", *key)
    found = event_type.schema.check(value["data"])
    if found is not None:
        return Refusal(Reason.SCHEMA_VIOLATION, str(found), *key)
    return _encode(value)


def gap_text(time_us: int, log_time_us: int) -> str:
    """How a refused time stands to its log time, for a reject's detail."""
    seconds = abs(time_us - log_time_us) / 1_000_000
    side = "after" if time_us > log_time_us else "before"
    return f"time: {to_text(time_us)} is {seconds:.6f} s {side} the log time {to_text(log_time_us)}"


def _parse(payload: bytes, attributes: Mapping[str, str] | None) -> Any:
    """The JSON value of an event.

    Raises:
        ValueError: it is malformed; the message says how.
    """
    if not payload.strip(_BLANK) and attributes is None:
        raise ValueError("empty")
    try:
        payload.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: byte {error.object[error.start]:#04x} at {error.start}") from error
    if attributes is not None:
        payload = envelope.structured(attributes, payload)
    if envelope.too_deep(payload):
        raise ValueError(f"nested deeper than {JSON_DEPTH_MAX}")
    if len(payload) > _LONG_DIGITS:
        payload = _LONG_INTEGER.sub(_shortened, payload)
    try:
        value = _decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if value is None or value == []:
        raise ValueError(f"{msgspec.json.encode(value).decode()} is no event")
    return value


def _shortened(token: re.Match[bytes]) -> bytes:
    """A long integer as a merely huge number; a string as it is."""
    return token[0] if token[0].startswith(b'"') else b"1E+999999"


def _envelope_fault(value: Any, *, in_file: bool) -> str:
    """What keeps a JSON value from being a CloudEvent that can be billed; "" if nothing does."""
    if not isinstance(value, dict):
        return f"expected an object, got {type(value).__name__}"
    if value.get("specversion") != "1.0":
        return f'specversion: expected "1.0", got {_short(value.get("specversion"))}'
    for name in ("id", "source", "type", "subject"):
        if name not in value:
            return f"{name}: required"
        if not isinstance(value[name], str) or not value[name]:
            return f"{name}: expected a non-empty string, got {_short(value[name])}"
    for name in ("time", "logtime") if in_file else ("time",):
        if name in value and (not isinstance(value[name], str) or parse(value[name]) is None):
            return f"{name}: expected an RFC 3339 time with offset, 2000 to 2100, got {_short(value[name])}"
    if in_file and "time" not in value and "logtime" not in value:
        return "time: required in a file (or logtime)"
    return ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
