"""Events that no flow may accept, each with the reason it must give: what producers get wrong.

Every edit turns the line of a valid `api.request` event into one broken event on one line. A lone
surrogate `\\udcXX` stands for the byte XX (Python's `surrogateescape`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from domain.values import EVENT_BYTES_MAX, JSON_DEPTH_MAX, Reason

Edit = Callable[[str], str]


def oversized(line: str) -> str:
    """A well-formed event that is a little larger than allowed."""
    return _replace('"endpoint":"', '"endpoint":"' + "x" * EVENT_BYTES_MAX)(line)


def _replace(old: str, new: str) -> Edit:
    def edit(line: str) -> str:
        assert old in line, f"{old} is not in {line}"
        return line.replace(old, new, 1)

    return edit


def _whole(text: str) -> Edit:
    return lambda line: text


def _value(name: str, value: str | None) -> Edit:
    """Give an attribute, or a property of `data`, another value as JSON text; None removes it."""

    def edit(line: str) -> str:
        start = line.index(f'"{name}":')
        comma = line.find(",", start)
        end = comma if comma >= 0 else len(line) - 2
        if value is None:
            return line[:start] + line[end + 1 :]
        return f'{line[:start]}"{name}":{value}{line[end:]}'

    return edit


def _data(value: str | None) -> Edit:
    """The same for all of `data`, which comes last."""

    def edit(line: str) -> str:
        start = line.index(',"data":')
        return line[:start] + ("}" if value is None else f',"data":{value}}}')

    return edit


_MALFORMED: Final[tuple[Edit, ...]] = (
    _whole(""),
    _whole(" \t\r"),
    _whole("null"),
    _whole("[]"),
    _whole("[ ]"),
    _whole("[1, 2"),
    _whole("Internal Server Error"),
    _whole('{"a":' + "[" * JSON_DEPTH_MAX + "]" * JSON_DEPTH_MAX + "}"),
    lambda line: line[:-1],
    lambda line: line[: len(line) // 2],
    lambda line: line + line,
    lambda line: line[:-1] + ",}",
    lambda line: line.replace('"', "'"),
    lambda line: "\ufeff" + line,
    lambda line: "[" + line + ",]",
    _value("bytes", "NaN"),
    _value("bytes", "012"),
    _value("bytes", "Infinity"),
    _replace('"endpoint":"', '"endpoint":"\udcff'),
    _replace('"endpoint":"', '"endpoint":"\\ud800'),
    _replace('"endpoint":"', '"endpoint":"\x01'),
    _replace('"endpoint":"', '"endpoint":"\\x'),
)

_NOT_CLOUDEVENT: Final[tuple[Edit, ...]] = (
    _whole("42"),
    _whole("true"),
    _whole('"api.request"'),
    _value("specversion", None),
    _value("specversion", "1.0"),
    _value("specversion", '"0.3"'),
    _value("id", None),
    _value("id", '""'),
    _value("id", "17"),
    _value("source", None),
    _value("source", '""'),
    _value("source", '["gateway"]'),
    _value("type", None),
    _value("type", '""'),
    _value("subject", None),
    _value("subject", '""'),
    _value("subject", "null"),
    _value("subject", "1001"),
    _value("time", None),
    _value("time", "null"),
    _value("time", '""'),
    _value("time", "1768176000"),
    _value("time", '"yesterday"'),
    _value("time", '"2026-01-12"'),
    _value("time", '"2026-01-12T00:00:00"'),
    _value("time", '"2026-01-12 00:00:00Z"'),
    _value("time", '"2026-01-12T24:00:00Z"'),
    _value("time", '"2026-01-12T23:59:60Z"'),
    _value("time", '"2026-02-30T00:00:00Z"'),
    _value("time", '"2026-01-12T00:00:00.Z"'),
    _value("time", '"2026-01-12T00:00:00+0100"'),
    _value("time", '"1999-12-31T23:59:59Z"'),
    _value("time", '"0000-00-00T00:00:00Z"'),
    _replace('"data":', '"logtime":"now","data":'),
)

_UNKNOWN_TYPE: Final[tuple[Edit, ...]] = (
    _value("type", '"api.requests"'),
    _value("type", '"API.REQUEST"'),
    _value("type", '"storage.object.created"'),
)

_SCHEMA_VIOLATION: Final[tuple[Edit, ...]] = (
    _data(None),
    _data("null"),
    _data("[]"),
    _data('"bytes"'),
    _data("{}"),
    _value("bytes", "-1"),
    _value("bytes", '"12"'),
    _value("bytes", "1.5"),
    _value("bytes", "1.0"),
    _value("bytes", "1e3"),
    _value("bytes", "true"),
    _value("bytes", "null"),
    _value("bytes", "1000000000000000"),
    _value("bytes", "[12]"),
    _value("region", "1"),
    _value("region", '{"name":"eu-west-1"}'),
    _value("status", '"200"'),
)

BROKEN: Final[tuple[tuple[Reason, Edit], ...]] = tuple(
    (reason, edit)
    for reason, edits in (
        (Reason.MALFORMED, _MALFORMED),
        (Reason.NOT_CLOUDEVENT, _NOT_CLOUDEVENT),
        (Reason.UNKNOWN_TYPE, _UNKNOWN_TYPE * 4),
        (Reason.SCHEMA_VIOLATION, _SCHEMA_VIOLATION),
    )
    for edit in edits
)
