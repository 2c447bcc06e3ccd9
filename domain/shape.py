"""What a JSON value must look like: the tree that a schema is read into, and the plain rules over it.

`check` is the semantic truth of accepted values (tests hold the fast path of `domain.decoding_types`
to it), and `convert` gives the values that the flow works with. Both take generically decoded JSON:
`int`, `Decimal`, `str`, `bool`, `None`, `list`, `dict`. Nothing raises: a value that does not fit is
a `Fault`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal, Inexact, InvalidOperation
from typing import Any

import re2

from domain.values import QUANTITY_DECIMALS, QUANTITY_SCALE

NUMBER_LIMIT = 10**15
"""Integers and numbers are smaller than this in size."""

STEP = Decimal(1).scaleb(-QUANTITY_DECIMALS)
SCALE = Decimal(1).scaleb(QUANTITY_DECIMALS)
EXACT = Context(prec=15 + QUANTITY_DECIMALS, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[Inexact, InvalidOperation])
_UNBOUNDED = Context(prec=MAX_PREC, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[])
_quantize = EXACT.quantize
_multiply = EXACT.multiply

_DATE_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d+)?(?:[Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)",
    re.ASCII,
)
_PLAIN_DIGITS_MAX = 40

_PATTERN_OPTIONS = re2.Options()
_PATTERN_OPTIONS.log_errors = False
_PATTERN_OPTIONS.never_capture = True


class Pattern:
    """A regular expression that is looked for in time linear in the text, whatever it says.

    RE2's, because a pattern meets what customers send: Python's own takes exponential time for `^(a+)+$` and a
    long text, and holds the flow as long. Its price: no lookaround and no backreferences.

    Raises:
        ValueError: it is no such expression; the message says how.
    """

    __slots__ = ("_search", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            self._search = re2.compile(text, _PATTERN_OPTIONS).search
        except re2.error as error:
            raise ValueError(_words(error)) from None

    def found_in(self, value: str) -> bool:
        return self._search(value.encode()) is not None


def _words(error: re2.error) -> str:
    reason = error.args[0]
    return reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong, where, and what to do about it (an empty remedy: the message says it all)."""

    path: str
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        text = f"{self.path}: {self.message}" if self.path else self.message
        return f"{text}; {self.remedy}" if self.remedy else text

    def under(self, prefix: str) -> Fault:
        """The same fault, seen from a container whose own path is `prefix`."""
        return Fault(prefix + self.path, self.message, self.remedy)


@dataclass(frozen=True, slots=True)
class Shape:
    """One node of a schema.

    `kind` is string, integer, number, boolean, object, array, or "mixed" for an enum of several
    types. Bounds are inclusive: of integers in units of 1, of numbers in units of 10^-12, of strings
    in characters (Unicode code points).
    """

    kind: str
    nullable: bool = False
    enum: frozenset[tuple[type, Any]] | None = None
    """Allowed values with their Python type (True is not 1); numbers in units of 10^-12."""
    low: int | None = None
    high: int | None = None
    bounds: str = ""
    """The bounds as the schema states them, for messages."""
    pattern: Pattern | None = None
    date_time: bool = False
    properties: Mapping[str, Shape] = field(default_factory=dict)
    """Ascending by name."""
    required: frozenset[str] = frozenset()
    additional: bool | Shape = True
    items: Shape | None = None
    minimum: Decimal | None = None
    exclusive_minimum: Decimal | None = None

    @property
    def free(self) -> bool:
        """An object or an array about whose contents nothing is declared."""
        if self.kind == "object":
            return not self.properties and self.additional is True
        return self.kind == "array" and self.items is None


def scaled(value: Decimal) -> int | None:
    """A decimal in units of 10^-12, or None if it is no accepted number (size, decimals)."""
    try:
        return int(_multiply(_quantize(value, STEP), SCALE))
    except (Inexact, InvalidOperation):
        return None


def step(name: str) -> str:
    """The path of a property within its object."""
    return f".{name}"


def check(shape: Shape, value: object) -> Fault | None:
    """The first fault of a value, its path relative to the value; None if it fits."""
    if value is None:
        return None if shape.nullable else Fault("", "must not be null")
    match shape.kind:
        case "string":
            return _check_string(shape, value)
        case "integer":
            return _check_integer(shape, value)
        case "number":
            return _check_number(shape, value)
        case "boolean":
            return _wrong(shape, value) if type(value) is not bool else _check_enum(shape, value)
        case "object":
            return _check_object(shape, value)
        case "array":
            return _check_array(shape, value)
        case _:
            return _check_enum(shape, value)


def convert(shape: Shape, value: Any) -> Any:
    """A value that fits as the flow works with it.

    Every `number` becomes an `int` in units of 10^-12, undeclared properties are left out, a null for
    an optional property is the same as none, and what is free-form is made independent of notation
    (see `plain`).
    """
    if value is None:
        return None
    match shape.kind:
        case "number":
            return scaled(Decimal(value))
        case "object" | "array" if shape.free:
            return plain(value)
        case "array":
            assert shape.items is not None
            return [convert(shape.items, item) for item in value]
        case "object":
            return _convert_object(shape, value)
        case _:
            return value


def plain(value: Any) -> Any:
    """Free-form JSON, changed in place so that equal numbers are equal in form (1.50, 1.5; 1E3, 1000).

    Without recursion: free-form JSON may be nested deeper than Python's stack.
    """
    root = [value]
    todo: list[Any] = [root]
    while todo:
        container = todo.pop()
        for key, item in container.items() if type(container) is dict else enumerate(container):
            kind = type(item)
            if kind is int or kind is Decimal:
                container[key] = _plain_number(item)
            elif kind is dict or kind is list:
                todo.append(item)
    return root[0]


def _plain_number(value: int | Decimal) -> int | Decimal:
    number = _UNBOUNDED.normalize(Decimal(value))
    if not number:
        return 0
    if number == number.to_integral_value() and number.adjusted() < _PLAIN_DIGITS_MAX:
        return int(number)
    return number


def _convert_object(shape: Shape, value: dict[str, Any]) -> dict[str, Any]:
    known = {
        name: convert(child, value[name])
        for name, child in shape.properties.items()
        if name in value and (value[name] is not None or name in shape.required)
    }
    if isinstance(shape.additional, Shape):
        for name in value:
            if name not in shape.properties:
                known[name] = convert(shape.additional, value[name])
    return known


def _check_string(shape: Shape, value: object) -> Fault | None:
    if type(value) is not str:
        return _wrong(shape, value)
    low, high = shape.low, shape.high
    if (low is not None and len(value) < low) or (high is not None and len(value) > high):
        return Fault("", f"has {len(value)} characters, must have {shape.bounds}")
    if shape.pattern and not shape.pattern.found_in(value):
        return Fault("", f"does not match the pattern {shape.pattern.text}")
    if shape.date_time and not is_date_time(value):
        return Fault("", "is not a date-time", "write RFC 3339 with an offset: 2026-01-15T08:30:00Z")
    return _check_enum(shape, value)


def _check_integer(shape: Shape, value: object) -> Fault | None:
    if type(value) is not int:
        return _wrong(shape, value)
    return _check_bounds(shape, value, NUMBER_LIMIT) or _check_enum(shape, value)


def _check_number(shape: Shape, value: object) -> Fault | None:
    if type(value) is int:
        units: int | None = value * QUANTITY_SCALE
    elif type(value) is Decimal:
        units = scaled(value)
    else:
        return _wrong(shape, value)
    if units is None and Decimal(value).copy_abs() < NUMBER_LIMIT:  # abs() would round, and overflow
        return Fault("", f"has more than {QUANTITY_DECIMALS} decimals")
    if units is None:
        return Fault("", "must be less than 10^15 in size")
    return _check_bounds(shape, units, NUMBER_LIMIT * QUANTITY_SCALE) or _check_enum(shape, units)


def _check_bounds(shape: Shape, units: int, limit: int) -> Fault | None:
    if not -limit < units < limit:
        return Fault("", "must be less than 10^15 in size")
    if (shape.low is not None and units < shape.low) or (shape.high is not None and units > shape.high):
        return Fault("", f"must be {shape.bounds}")
    return None


def _check_enum(shape: Shape, value: object) -> Fault | None:
    if shape.enum is None or (not isinstance(value, (dict, list)) and (type(value), value) in shape.enum):
        return None
    number = shape.kind == "number"
    names = sorted(str(Decimal(v).scaleb(-QUANTITY_DECIMALS).normalize() if number else v) for _, v in shape.enum)
    return Fault("", f"must be one of {', '.join(names)}")


def _check_array(shape: Shape, value: object) -> Fault | None:
    if type(value) is not list:
        return _wrong(shape, value)
    if shape.items is not None:
        for index, item in enumerate(value):
            fault = check(shape.items, item)
            if fault:
                return fault.under(f"[{index}]")
    return None


def _check_object(shape: Shape, value: object) -> Fault | None:
    if type(value) is not dict:
        return _wrong(shape, value)
    for name, child in shape.properties.items():
        if name in value:
            fault = check(child, value[name])
            if fault:
                return fault.under(step(name))
        elif name in shape.required:
            return Fault(step(name), "is missing")
    return None if shape.additional is True else _check_additional(shape, value)


def _check_additional(shape: Shape, value: dict[str, object]) -> Fault | None:
    for name, item in value.items():
        if name in shape.properties:
            continue
        if not isinstance(shape.additional, Shape):
            return Fault(step(name), "is not a declared property")
        fault = check(shape.additional, item)
        if fault:
            return fault.under(step(name))
    return None


def is_date_time(text: str) -> bool:
    """RFC 3339 with an offset; an hour 24 and a second 60 are refused."""
    match = _DATE_TIME.fullmatch(text)
    if not match:
        return False
    try:
        date(int(match[1]), int(match[2]), int(match[3]))
    except ValueError:
        return False
    return True


def _wrong(shape: Shape, value: object) -> Fault:
    article = "an" if shape.kind[0] in "aio" else "a"
    hint = (
        "write it as an integer, without fraction or exponent"
        if (shape.kind == "integer" and type(value) is Decimal)
        else ""
    )
    return Fault("", f"must be {article} {shape.kind}, not {_kind(value)}", hint)


def _kind(value: object) -> str:
    match value:
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case Decimal():
            return "a number with fraction or exponent"
        case str():
            return "a string"
        case list():
            return "an array"
        case dict():
            return "an object"
        case _:
            return type(value).__name__
