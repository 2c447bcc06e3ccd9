"""The HTTP binding of CloudEvents 1.0.2: from a content type, headers and a body to messages for the log.

| content type | is |
| --- | --- |
| `application/cloudevents+json` | one event in the body |
| `application/cloudevents-batch+json` | a JSON array of events |
| `application/x-ndjson` | an event a line (not in the binding, but what many producers write) |
| `application/json`, `*/*+json` or none, with `ce-specversion` | attributes in `ce-` headers, `data` is the body |

Bytes are kept: a structured event is the body as it came, an element of a batch is its exact bytes, and a binary
event keeps its body and becomes the binary mode of the Kafka binding. Nothing here judges an event.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from domain import envelope

EVENTS_MAX: Final = 10_000
"""Most events in one request: an answer has a line for each."""
VALUES_MAX: Final = 64 * EVENTS_MAX
"""Most values in one request."""

_BLANK: Final = b" \t\r\n"
_CHARSET: Final = re.compile(r'charset="?([\w-]+)"?', re.I)
_ESCAPED: Final = re.compile(rb"%([0-9a-fA-F]{2})")
_ATTRIBUTE: Final = re.compile(r"[a-z0-9]+")


class Unsupported(Exception):
    """The content type is none that events come in (415); the message says what to send."""


class TooMany(Exception):
    """More events than one request may have (413)."""


class BadRequest(Exception):
    """The request cannot be read at all (400)."""


class Mode(Enum):
    """How events stand in a request."""

    STRUCTURED = "structured"
    BATCH = "batch"
    LINES = "ndjson"
    BINARY = "binary"


_MODES: Final = {
    "application/cloudevents+json": Mode.STRUCTURED,
    "application/cloudevents-batch+json": Mode.BATCH,
    "application/x-ndjson": Mode.LINES,
    "application/ndjson": Mode.LINES,
}
_EXPECTED: Final = (
    "send application/cloudevents+json, application/cloudevents-batch+json or application/x-ndjson, "
    "or application/json with ce- headers"
)


@dataclass(frozen=True, slots=True)
class Received:
    """Events of one request, in order; parallel lists."""

    indexes: list[int]
    """Place in the batch; of NDJSON, the line, from 0."""
    payloads: list[bytes]
    """The exact bytes."""
    attributes: dict[str, str] | None
    """Binary mode: the event's attributes, `datacontenttype` among them if the request had a content type."""


def mode_of(headers: Iterable[tuple[bytes, bytes]]) -> Mode:
    """How the events stand in a request with these headers (names in lower case).

    Raises:
        Unsupported: in no way that is known.
    """
    names = dict(headers)
    text = names.get(b"content-type", b"").decode("latin-1")
    media = text.partition(";")[0].strip().lower()
    charset = _CHARSET.search(text)
    if charset and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise Unsupported(f"charset {charset[1]} is not read: send UTF-8")
    mode = _MODES.get(media)
    if mode is not None:
        return mode
    if media.startswith("application/cloudevents"):
        raise Unsupported(f"{media} is not read: {_EXPECTED}")
    if b"ce-specversion" not in names:
        raise Unsupported(f"{media or 'a body without a content type'} is not read: {_EXPECTED}")
    if media in ("", "application/json", "text/json") or media.endswith("+json"):
        return Mode.BINARY
    raise Unsupported(f"data of type {media} cannot be metered: send JSON")


def divide(mode: Mode, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> Received:
    """The events of a request.

    Raises:
        BadRequest: an attribute's header cannot be read.
        TooMany: there are more than `EVENTS_MAX`, or more than `VALUES_MAX` values.
    """
    _check_values(body)
    match mode:
        case Mode.STRUCTURED:
            return Received([0], [body], None)
        case Mode.BINARY:
            return Received([0], [body], attributes_of(headers))
        case Mode.LINES:
            if body.count(b"\n") > 2 * EVENTS_MAX:
                raise TooMany(f"more than {EVENTS_MAX} lines in one request: send several")
            lines = [(i, line.strip(_BLANK)) for i, line in enumerate(body.split(b"\n"))]
            filled = [(i, line) for i, line in lines if line]
            if len(filled) > EVENTS_MAX:
                raise TooMany(f"{len(filled)} events in one request: send at most {EVENTS_MAX}")
            return Received([i for i, _ in filled], [line for _, line in filled], None)
        case Mode.BATCH:
            elements = _elements(body)
            return Received(list(range(len(elements))), elements, None)


def _elements(body: bytes) -> list[bytes]:
    """The elements of a JSON array, or the body itself, as one event that will be refused, if it is none."""
    stripped = body.strip(_BLANK)
    if stripped[:1] != b"[":
        return [body]
    if not stripped[1:-1].strip(_BLANK) and stripped[-1:] == b"]":
        return []
    elements = envelope.split(body)
    if len(elements) > EVENTS_MAX:
        raise TooMany(f"{len(elements)} events in one request: send at most {EVENTS_MAX}")
    return elements


def _check_values(body: bytes) -> None:
    """Refuse a body that has little but structure; it could keep the process busy for half a minute.

    What is counted is cheap to count, and as many as have to be looked at one by one: separators, brackets
    and strings. The bound allows 10,000 events of 20 properties each.

    Raises:
        TooMany: there is too much of it.
    """
    values = body.count(b",") + body.count(b"[") + body.count(b"{") + body.count(b'"') // 2
    if values > VALUES_MAX:
        raise TooMany(f"{values} values in one request: send at most {VALUES_MAX}")


def attributes_of(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """The attributes of an event in binary mode (HTTP binding, section 3.1.3).

    Raises:
        BadRequest: a header is repeated, or its name or value is none that an attribute may have.
    """
    attributes: dict[str, str] = {}
    for name, value in headers:
        if name == b"content-type":
            attributes["datacontenttype"] = value.decode("latin-1")
        if not name.startswith(b"ce-"):
            continue
        attribute = name[3:].decode("latin-1")
        if not _ATTRIBUTE.fullmatch(attribute) or attribute in ("data", "datacontenttype"):
            raise BadRequest(f"header ce-{attribute}: is no name of an attribute; use a to z and 0 to 9")
        if attribute in attributes:
            raise BadRequest(f"header ce-{attribute}: is given twice")
        try:
            attributes[attribute] = attribute_value(value)
        except UnicodeDecodeError:
            raise BadRequest(f"header ce-{attribute}: is not UTF-8 when percent-decoded") from None
    return attributes


def attribute_value(value: bytes) -> str:
    """A header's value as an attribute's: double quotes removed, then percent-decoded once (section 3.1.3.2).

    Raises:
        UnicodeDecodeError: the result is not UTF-8.
    """
    if len(value) >= 2 and value[:1] == b'"' == value[-1:]:
        value = re.sub(rb"\\(.)", rb"\1", value[1:-1], flags=re.DOTALL)
    return _ESCAPED.sub(lambda found: bytes((int(found[1], 16),)), value).decode("utf-8")
