"""How events come out of messages: CloudEvents batches, and the binary mode of the Kafka binding.

A message is what has an offset in the log; an event is what has a position. Usually they are the
same bytes. A CloudEvents batch (a JSON array) is several events, whose exact bytes are kept; a
binary-mode message has its attributes in headers and is put together into the structured form.

Nothing here judges an event: whatever is not a well-formed batch stays one event, which `decode`
then rejects with a reason. So every message is at least one event, and none is lost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Final

import msgspec

from domain.values import JSON_DEPTH_MAX

BATCH_STARTS: Final = frozenset((b"[", b" ", b"\t", b"\r", b"\n"))
"""The first byte of every message that `split` could divide; any other first byte means one event."""

_WHITESPACE: Final = b" \t\r\n"
_NOT_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in b"[]{}")
_STRINGS: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_TOKENS: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{},]', re.DOTALL)
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")
_STEPS: Final = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}

_elements = msgspec.json.Decoder(list[msgspec.Raw])
_value = msgspec.json.Decoder(msgspec.Raw)


def split(message: bytes) -> list[bytes]:
    """The events of one message, never none.

    A JSON array in UTF-8 with at least one element gives the exact bytes of each element, without
    the whitespace around it. Everything else is one event as it stands: other JSON values, `[]`,
    what is not JSON or not UTF-8. An element that no event may be (nested too deeply, a lone
    surrogate) does not harm its neighbours.
    """
    if message[:1] not in BATCH_STARTS or message.lstrip(_WHITESPACE)[:1] != b"[":
        return [message]
    try:
        message.decode("utf-8")
        elements = None if too_deep(message) else _elements.decode(message)
    except UnicodeDecodeError:
        return [message]
    except (msgspec.DecodeError, RecursionError):
        elements = None
    found = _divide(message) if elements is None else [bytes(element) for element in elements]
    return found or [message]


def _divide(message: bytes) -> list[bytes]:
    """Split an array whose elements are not all readable; none if it is no array of JSON values."""
    body = message.strip(_WHITESPACE)
    cuts, level, at = [0], 0, 0
    for token in _TOKENS.finditer(body):
        at = token.start()
        mark = body[at : at + 1]
        if mark in b"[{":
            level += 1
        elif mark in b"]}":
            level -= 1
            if level == 0:
                break
        elif mark == b"," and level == 1:
            cuts.append(at)
    if body[at:] != b"]" or level:
        return []
    elements = [body[low + 1 : high].strip(_WHITESPACE) for low, high in pairwise([*cuts, at])]
    return elements if all(map(_is_element, elements)) else []


def _is_element(element: bytes) -> bool:
    """Whether bytes are one JSON value, whatever its strings mean and however deep it is."""
    if too_deep(element):
        return True
    try:
        _value.decode(_SURROGATE.sub(rb"\\u0041", element))
    except (msgspec.DecodeError, RecursionError):
        return False
    return True


def structured(attributes: Mapping[str, str], value: bytes) -> bytes:
    """A binary-mode message as a structured CloudEvent (CloudEvents Kafka binding, section 3.2).

    The value becomes `data` as it stands; an attribute called `data` is no CloudEvents attribute
    and is left out. The value must be one JSON value by itself: glued into the event's text,
    `1, "subject": "somebody else"` would otherwise bill somebody else.

    Raises:
        ValueError: the value is not one JSON value in UTF-8, or would be nested deeper than
            `JSON_DEPTH_MAX` in the event; or an attribute cannot be written in UTF-8.
    """
    data = _one_value(value, JSON_DEPTH_MAX - 1)
    attributes.get("data", "").encode()  # left out of the event, but kept with it
    event: dict[str, str | msgspec.Raw] = {name: text for name, text in attributes.items() if name != "data"}
    event["data"] = data
    return msgspec.json.encode(event)


def is_json(message: bytes) -> bool:
    """Whether a message is one JSON value in UTF-8, nested at most `JSON_DEPTH_MAX` deep."""
    try:
        _one_value(message, JSON_DEPTH_MAX)
    except ValueError:
        return False
    return True


def _one_value(text: bytes, depth_max: int) -> msgspec.Raw:
    if too_deep(text, depth_max):
        raise ValueError(f"nested deeper than {depth_max}")
    try:
        text.decode("utf-8")
        return _value.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"not one JSON value: {error}") from error


def too_deep(message: bytes, depth_max: int = JSON_DEPTH_MAX) -> bool:
    """Whether a message is nested deeper than `depth_max`; cheap for messages with few brackets."""
    return message.count(b"[") + message.count(b"{") > depth_max and depth(message) > depth_max


def depth(message: bytes) -> int:
    """How deep arrays and objects are nested; brackets inside strings do not count.

    Looks at every byte, and needs no stack, so that it answers where a parser gives up. Of what is
    not JSON it gives the greatest surplus of opening over closing brackets.
    """
    brackets = _STRINGS.sub(b"", message).translate(None, _NOT_BRACKETS)
    return max(accumulate(map(_STEPS.__getitem__, brackets), initial=0))
