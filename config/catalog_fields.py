"""The values that stand in a catalog file: how each is read, and its JSON Schema.

A value that is wrong raises a pydantic error whose context holds the remedy.
"""

from __future__ import annotations

import re
from datetime import date
from decimal import Decimal, InvalidOperation
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any
from zoneinfo import available_timezones

from pydantic import Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from domain.shape import NUMBER_LIMIT, scaled
from domain.values import DAY_US, HOUR_US, MINUTE_US, SECOND_US

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}", re.ASCII)
_DURATION = re.compile(r"(\d{1,6})(s|m|h|d)", re.ASCII)
_DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_DECIMAL = re.compile(r"[-+]?\d+(\.\d+)?", re.ASCII)
_UNITS_US = {"s": SECOND_US, "m": MINUTE_US, "h": HOUR_US, "d": DAY_US}


def wrong(message: str, remedy: str) -> PydanticCustomError:
    """A fault of a value: what is wrong, and what to do."""
    return PydanticCustomError("catalog", "{message}", {"message": message, "remedy": remedy})


def meant(name: str, known: Any) -> str:
    """A remedy for an unknown name: the known one that it looks like, else all of them."""
    names = [str(k) for k in known]
    close = get_close_matches(name, names, 1)
    if close and not name[:1].isdigit():  # 90m does not mean 30m
        return f"did you mean {close[0]}?"
    return f"use one of {', '.join(names)}" if 0 < len(names) <= 20 else "check the name"


def check_name(value: object) -> str:
    """Letters, digits and `_ . : / -`, at most 128, beginning with a letter or digit."""
    if isinstance(value, str) and _NAME.fullmatch(value):
        return value
    raise wrong(f"{value!r} is no name", "use letters, digits and _.:/- (at most 128, a letter or digit first)")


def exact_decimal(value: object, quote: bool = True) -> Decimal:
    """A string or an integer as a decimal: less than 10^15 in size, at most 12 decimals."""
    if isinstance(value, Decimal) and quote:
        raise wrong(
            f"is the YAML number {value}, which other readers take for a float", f'write it as a string: "{value}"'
        )
    text = str(value)
    if isinstance(value, (bool, dict, list)) or value is None or not _DECIMAL.fullmatch(text):
        raise wrong(f"{value!r} is no decimal number", 'write digits, such as "0.25"')
    number = Decimal(text)
    if abs(number) >= NUMBER_LIMIT:
        raise wrong(f"{text} is too large", "stay below 10^15")
    if scaled(number) is None:
        raise wrong(f"{text} has more than 12 decimals", "round it to 12 decimals")
    return number


def _amount(value: object) -> Decimal:
    return exact_decimal(value)


def _positive(value: object) -> Decimal:
    number = exact_decimal(value)
    if number <= 0:
        raise wrong(f"is {number}", "write a number greater than 0")
    return number


def _fraction(value: object) -> Decimal:
    try:
        number = Decimal(value) if isinstance(value, (str, int, Decimal)) and not isinstance(value, bool) else None
    except InvalidOperation:
        number = None
    if number is None or not number.is_finite() or not 0 < number <= 1000:
        raise wrong(f"{value!r} is no fraction of the limit", "write a number such as 0.8; 1.0 is the limit")
    return number


def _duration(value: object) -> int:
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise wrong(f"{value!r} is no duration", "write a number and a unit: 30s, 10m, 1h, 35d")
    return int(match[1]) * _UNITS_US[match[2]]


def _day(value: object) -> date:
    try:
        if isinstance(value, str) and _DAY.fullmatch(value) and "1970" <= value[:4] <= "2200":
            return date.fromisoformat(value)
    except ValueError:
        pass
    raise wrong(f"{value!r} is no date", "write a day from 1970 to 2200: 2026-01-15")


@cache
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())


def _zone(value: object) -> str:
    if isinstance(value, str) and value in _zones():
        return value
    close = get_close_matches(str(value), sorted(_zones()), 1)
    remedy = f"did you mean {close[0]}?" if close else "use an IANA zone, such as Europe/Berlin or UTC"
    raise wrong(f"{value!r} is no time zone", remedy)


def _currency(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"[A-Z]{3}", value):
        return value
    raise wrong(f"{value!r} is no currency", "write the ISO 4217 code, such as USD")


def _text(value: object) -> str:
    """A YAML scalar as the text form of a property's value."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return value
        case int():
            return str(value)
    raise wrong(f"{value!r} is no string, integer or boolean", "write the value as a string")


def _texts(value: object) -> frozenset[str]:
    values = value if isinstance(value, list) else [value]
    if not values:
        raise wrong("is an empty list, which selects nothing", "list the values, or leave the key out")
    return frozenset(_text(item) for item in values)


def _path(value: object) -> str:
    if isinstance(value, str) and value and all(value.split(".")):
        return value
    raise wrong(f"{value!r} is no property", "write its name, dotted for a nested one: request.bytes")


_DECIMAL_SCHEMA = {"type": ["string", "integer"], "pattern": r"^[-+]?\d+(\.\d{1,12})?$"}
_SCALAR_SCHEMA = {"type": ["string", "integer", "boolean"]}

Name = Annotated[str, PlainValidator(check_name), WithJsonSchema({"type": "string", "pattern": f"^{_NAME.pattern}$"})]
Path = Annotated[str, PlainValidator(_path), WithJsonSchema({"type": "string"})]
Amount = Annotated[Decimal, PlainValidator(_amount), WithJsonSchema(_DECIMAL_SCHEMA)]
Positive = Annotated[Decimal, PlainValidator(_positive), WithJsonSchema(_DECIMAL_SCHEMA)]
Fraction = Annotated[Decimal, PlainValidator(_fraction), WithJsonSchema({"type": ["number", "string"]})]
Duration = Annotated[int, PlainValidator(_duration), WithJsonSchema({"type": "string", "pattern": r"^\d{1,6}[smhd]$"})]
Day = Annotated[date, PlainValidator(_day), WithJsonSchema({"type": "string", "format": "date"})]
Zone = Annotated[str, PlainValidator(_zone), WithJsonSchema({"type": "string"})]
Currency = Annotated[str, PlainValidator(_currency), WithJsonSchema({"type": "string", "pattern": "^[A-Z]{3}$"})]
Texts = Annotated[
    frozenset[str],
    PlainValidator(_texts),
    WithJsonSchema({"anyOf": [_SCALAR_SCHEMA, {"type": "array", "minItems": 1, "items": _SCALAR_SCHEMA}]}),
]
Text = Annotated[str, Field(min_length=1)]
