"""From a file's bytes to accepted or rejected events, one at a time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from functools import lru_cache
from operator import ge, gt, le, lt
from typing import Any

from tests.oracle import subscriptions
from tests.oracle.catalogs import Catalog, History, exact
from tests.oracle.json_text import SPACE, Malformed, Number, decode, elements, parse
from tests.oracle.subscriptions import Terms

EVENT_BYTES_MAX = 1024 * 1024
FUTURE_SKEW_US = 5 * 60 * 1_000_000
TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:[Zz]|([+-])(\d\d):(\d\d))",
    re.ASCII,
)

Position = tuple[str, int, int, int]
"""log_topic, log_partition, log_offset, log_index"""
NOWHERE: Position = ("", 0, 0, 0)


@dataclass(frozen=True)
class Rejected:
    reason: str
    source: str = ""
    id: str = ""
    subject: str = ""
    log_time: int = 0
    first_position: Position = NOWHERE


@dataclass(frozen=True)
class Event:
    source: str
    id: str
    type: str
    subject: str
    time: int
    log_time: int
    data: Any
    content: Any
    """What can be billed; compared by value."""
    catalog: Catalog
    terms: Terms | None = None
    """What a subscription that events made says, if one covers the event."""

    def rejected(self, reason: str, first_position: Position = NOWHERE) -> Rejected:
        return Rejected(reason, self.source, self.id, self.subject, self.log_time, first_position)


def lines(content: bytes) -> list[bytes]:
    """The lines of a file; an unterminated last line only if it is valid JSON."""
    *terminated, rest = content.split(b"\n")
    return [*terminated, rest] if rest and is_json(rest) else terminated


def is_json(line: bytes) -> bool:
    try:
        text = decode(line)
        if text.lstrip(SPACE).startswith("["):
            elements(text)
        else:
            parse(line)
    except Malformed:
        return False
    return True


def payloads(line: bytes) -> list[bytes]:
    """The events of a line: the elements of a CloudEvents batch, else the line itself."""
    try:
        return [text.encode() for text in elements(decode(line))] or [line]
    except Malformed:
        return [line]


@lru_cache(maxsize=10_000)
def instant_us(text: object) -> int | None:
    """The instant of an event's time, cut to microseconds; None if it is none, or not of 2000 to 2100."""
    instant = _date_time(text)
    return instant if instant is not None and FIRST_INSTANT <= instant < END_OF_TIME else None


def _date_time(text: object) -> int | None:
    """The same of any year: what `format: date-time` asks of a property."""
    match = TIME.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return None
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    fraction, sign, offset_hours, offset_minutes = match.groups()[6:]
    try:
        days = (date(year, month, day) - date(1970, 1, 1)).days
    except ValueError:
        return None
    ahead = int(offset_hours or 0) * 60 + int(offset_minutes or 0)
    if hour > 23 or minute > 59 or second > 59 or int(offset_hours or 0) > 23 or int(offset_minutes or 0) > 59:
        return None
    minutes = (days * 24 + hour) * 60 + minute - (-ahead if sign == "-" else ahead)
    return (minutes * 60 + second) * 1_000_000 + int(((fraction or "") + "000000")[:6])


def _year_start(year: int) -> int:
    return int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000


FIRST_INSTANT, END_OF_TIME = _year_start(2000), _year_start(2101)


def plain(schema: dict[str, Any], value: Any) -> Any:
    """A valid scalar's Python value: str, bool, int or Decimal; None if it is not of the schema's type."""
    match schema["type"]:
        case "string":
            return value if isinstance(value, str) else None
        case "boolean":
            return value if isinstance(value, bool) else None
        case "integer":
            return value.integer() if isinstance(value, Number) else None
        case "number":
            return value.decimal() if isinstance(value, Number) else None
    raise AssertionError(f"the oracle does not know the type {schema['type']}")


def valid(schema: dict[str, Any], value: Any) -> bool:
    """Whether a parsed value keeps to a schema."""
    if value is None:
        return bool(schema.get("nullable", False))
    match schema["type"]:
        case "object":
            return isinstance(value, dict) and _valid_object(schema, value)
        case "array":
            items = schema.get("items")
            return isinstance(value, list) and (items is None or all(valid(items, item) for item in value))
        case _:
            return _valid_scalar(schema, plain(schema, value))


def _valid_object(schema: dict[str, Any], value: dict[str, Any]) -> bool:
    properties = schema.get("properties") or {}
    if schema.get("additionalProperties") is False and not value.keys() <= properties.keys():
        return False
    if any(name not in value for name in schema.get("required") or []):
        return False
    return all(valid(properties[name], value[name]) for name in properties if name in value)


def _valid_scalar(schema: dict[str, Any], value: Any) -> bool:
    if value is None:
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if isinstance(value, str):
        return _valid_string(schema, value)
    return all(
        holds(value, exact(schema[name]))
        for name, holds in (("minimum", ge), ("maximum", le), ("exclusiveMinimum", gt), ("exclusiveMaximum", lt))
        if name in schema
    )


def _valid_string(schema: dict[str, Any], value: str) -> bool:
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        return False
    if "pattern" in schema and re.search(schema["pattern"].replace("$", r"\Z"), value, re.ASCII) is None:
        return False
    return schema.get("format") != "date-time" or _date_time(value) is not None


def content_of(schema: dict[str, Any], value: Any) -> Any:
    """The declared part of a valid value, comparable; null is as good as absent."""
    if value is None:
        return None
    if schema["type"] == "object":
        declared = (schema.get("properties") or {}).items()
        return {name: content_of(sub, value[name]) for name, sub in declared if value.get(name) is not None}
    if schema["type"] == "array":
        return [content_of(schema["items"], item) for item in value]
    return plain(schema, value)


def _text(envelope: dict[str, Any], name: str) -> str:
    value = envelope.get(name)
    return value if isinstance(value, str) else ""


def attributes_of(headers: Sequence[tuple[str, bytes]]) -> dict[str, str]:
    """The attributes of an event whose data is the message; empty where the message is the whole event.

    CloudEvents Kafka binding, section 3.1: only headers that are UTF-8 are known to the oracle.
    """
    found = {name[3:]: value.decode() for name, value in headers if name.startswith("ce_")}
    kind = dict(headers).get("content-type", b"").decode()
    if not found or kind.startswith("application/cloudevents"):
        return {}
    return found | ({"datacontenttype": kind} if kind else {})


def read(
    payload: bytes, history: History, stamped: int | None = None, attributes: dict[str, str] | None = None
) -> Event | Rejected:
    """Everything that can be said of one event alone, in order of precedence.

    Args:
        payload: its bytes.
        history: the catalogs.
        stamped: the broker's log time; None in a file, where the event says it.
        attributes: of an event in binary mode, whose payload is its data.
    """
    unread = Rejected("malformed", log_time=stamped or 0)
    try:
        envelope = parse(payload)
    except Malformed:
        return unread
    if attributes:
        envelope = {**attributes, "data": envelope}
    if envelope is None or envelope == []:
        return unread
    if len(payload) > EVENT_BYTES_MAX:
        return replace(unread, reason="oversized")
    if not isinstance(envelope, dict) or envelope.get("specversion") != "1.0":
        return replace(unread, reason="not_cloudevent")
    source, id_, type_, subject = (_text(envelope, name) for name in ("source", "id", "type", "subject"))
    times = {name: instant_us(envelope[name]) for name in ("time", "logtime") if name in envelope}
    if stamped is not None:
        times["logtime"] = stamped
    if not (source and id_ and type_ and subject and times) or None in times.values():
        return replace(unread, reason="not_cloudevent")
    log_time = times.get("logtime", times.get("time"))
    time = times.get("time", log_time)
    assert time is not None and log_time is not None
    catalog = history.at(log_time)
    schema = subscriptions.SCHEMA if type_ == subscriptions.TYPE else catalog.schemas.get(type_)
    if schema is None:
        return Rejected("unknown_type", source, id_, subject, log_time)
    if "data" not in envelope or not valid(schema, envelope["data"]):
        return Rejected("schema_violation", source, id_, subject, log_time)
    if type_ == subscriptions.TYPE and not subscriptions.sound(envelope["data"], catalog.plans):
        return Rejected("schema_violation", source, id_, subject, log_time)
    data = content_of(schema, envelope["data"])
    event = Event(source, id_, type_, subject, time, log_time, data, (type_, subject, time, data), catalog)
    if time - log_time > FUTURE_SKEW_US:
        return event.rejected("time_in_future")
    if log_time - time > catalog.accept_within:
        return event.rejected("too_late")
    return event


@dataclass
class Claims:
    """Who claimed an idempotency key first, by generation of log time."""

    first: dict[tuple[int, str, str], tuple[Position, Any]] = field(default_factory=dict)

    def claim(self, event: Event, position: Position) -> Rejected | None:
        """Claim the event's key, or say whose it is.

        One pass in order of position: a claim found is of the same partition at an earlier position,
        or another partition's; the former is preferred, then the earliest generation.
        """
        generation = event.log_time // (event.catalog.accept_within + FUTURE_SKEW_US)
        near = [(g, event.source, event.id) for g in (generation - 1, generation, generation + 1)]
        found = [self.first[key] for key in near if key in self.first]
        own_partition = [claim for claim in found if claim[0][1] == position[1]]
        for first_position, content in own_partition + found:
            return event.rejected("duplicate" if content == event.content else "conflict", first_position)
        self.first[near[1]] = (position, event.content)
        return None
