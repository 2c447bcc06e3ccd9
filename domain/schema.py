"""The JSON Schema subset in which a catalog declares the `data` of an event type, compiled once.

A schema either compiles or raises `SchemaError` with every fault in it: a keyword that would be
ignored in silence is an error, so what a catalog says is what is checked. See `KEYWORDS` for the
subset. Data that does not fit is a `Fault`, never an exception.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from difflib import get_close_matches
from fractions import Fraction
from typing import Any

import msgspec

from domain import decoding_types, shape
from domain.ports import TallyError
from domain.shape import NUMBER_LIMIT, Fault, Shape
from domain.values import QUANTITY_SCALE

__all__ = ["KEYWORDS", "TYPES", "Fault", "Property", "Schema", "SchemaError", "compile_schema"]

TYPES = ("string", "integer", "number", "boolean", "object", "array")

_SCALAR = frozenset({"string", "integer", "number", "boolean", "mixed"})
_NUMERIC = frozenset({"integer", "number"})
_ANY = frozenset({*TYPES, "mixed"})

KEYWORDS: Mapping[str, tuple[frozenset[str], str]] = {
    "type": (_ANY, "One of string, integer, number, boolean, object, array. `number` is an exact decimal."),
    "nullable": (_ANY, "Whether null is accepted as well. A null value counts as absent for meters."),
    "enum": (_SCALAR, "The accepted values."),
    "minimum": (_NUMERIC, "The least accepted value."),
    "maximum": (_NUMERIC, "The greatest accepted value."),
    "exclusiveMinimum": (_NUMERIC, "Values must be greater than this number."),
    "exclusiveMaximum": (_NUMERIC, "Values must be less than this number."),
    "pattern": (frozenset({"string"}), "A regular expression to be found in it: RE2's, without lookaround."),
    "minLength": (frozenset({"string"}), "The least number of characters (Unicode code points)."),
    "maxLength": (frozenset({"string"}), "The greatest number of characters (Unicode code points)."),
    "format": (frozenset({"string"}), "Only date-time: RFC 3339 with an offset."),
    "properties": (frozenset({"object"}), "The declared properties, each with its own schema."),
    "required": (frozenset({"object"}), "Names of declared properties that must be present."),
    "additionalProperties": (
        frozenset({"object"}),
        "Whether undeclared properties are accepted (true, the default; they are not billed), or their schema.",
    ),
    "items": (frozenset({"array"}), "The schema of every element."),
    "title": (_ANY, "A name for readers; not checked."),
    "description": (_ANY, "A text for readers; not checked."),
    "examples": (_ANY, "Examples for readers; not checked."),
}
"""Every keyword of the subset: the types that it applies to, and what it means."""

_DEPTH_MAX = 32
_LENGTH_MAX = 2**30
_REMEDIES = {
    "anyOf": "give one type",
    "oneOf": "give one type",
    "allOf": "write the merged schema",
    "const": "use enum with one value",
    "$ref": "write the schema in place",
    "default": "leave it out: an absent property stays absent",
    "multipleOf": "leave it out: numbers are exact to 12 decimals",
    "minItems": "leave it out",
    "maxItems": "leave it out",
}


canonical: Callable[[Any], bytes] = msgspec.json.Encoder(order="deterministic", decimal_format="number").encode
"""Of refined data (or a tuple that holds some), bytes that are equal iff the declared properties are
equal by value: order, whitespace, notation (1.50, 1.5), undeclared properties and a null for an optional
property make no difference. An object without declared properties, or with a schema for them all,
counts whole."""


class SchemaError(TallyError):
    """A schema outside the subset; `faults` has everything that is wrong with it."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Property:
    """What is declared of one property; `required` and `nullable` say so of the property itself."""

    type: str
    """One of `TYPES`, or "mixed" for an enum of several types."""
    minimum: Decimal | None
    exclusive_minimum: Decimal | None
    required: bool
    nullable: bool
    enum: frozenset[Any] | None
    """Allowed values: str, int, bool, or Decimal for a number."""


@dataclass(frozen=True, slots=True)
class Schema:
    """A compiled schema of an event's `data`."""

    shape: Shape
    type: Any
    """The type to decode `data` with (msgspec, `float_hook=decimal.Decimal`)."""
    refine: Callable[[Any], Fault | None] | None
    """Checks in decoded data what `type` could not, and turns each `number` in place into an `int` in
    units of 10^-12. Data that was refused is half refined: drop it. None: nothing is left to do."""

    def check(self, value: object) -> Fault | None:
        """The first fault of generically decoded JSON (floats as Decimal), None if it is accepted.

        This is the meaning of the schema; `type` and `refine` accept the same values faster.
        """
        fault = shape.check(self.shape, value)
        return fault.under("data") if fault else None

    def getter(self, path: tuple[str, ...]) -> Callable[[Any], Any]:
        """From refined data, the value at a path of declared properties; None if absent or null.

        A `number` is in units of 10^-12, an `integer` in units of 1.

        Raises:
            KeyError: there is no such declared property.
        """
        return decoding_types.getter(self.shape, path)

    def describe(self, path: tuple[str, ...]) -> Property | None:
        """What is declared of the property at a path; None if nothing is."""
        node, parent = self.shape, self.shape
        for name in path:
            if name not in node.properties:
                return None
            parent, node = node, node.properties[name]
        number = node.kind == "number"
        enum = (
            None
            if node.enum is None
            else frozenset(Decimal(value) / QUANTITY_SCALE if number else value for _, value in node.enum)
        )
        required = not path or path[-1] in parent.required
        return Property(node.kind, node.minimum, node.exclusive_minimum, required, node.nullable, enum)

    def types(self) -> dict[str, str]:
        """The type of everything that is declared, by dotted path (`tags`, `tags[]`, `labels.*`)."""
        return dict(_types(self.shape, ""))


def _types(node: Shape, path: str) -> Iterator[tuple[str, str]]:
    if path:
        yield path, node.kind
    prefix = f"{path}." if path else ""
    for name, child in node.properties.items():
        yield from _types(child, prefix + name)
    if isinstance(node.additional, Shape):
        yield from _types(node.additional, f"{prefix}*")
    if node.items is not None:
        yield from _types(node.items, f"{path}[]")


def compile_schema(spec: Mapping[str, object]) -> Schema:
    """Compile the schema of an event's `data`: an object.

    Numbers in the schema are int or Decimal (a float is taken as it prints).

    Raises:
        SchemaError: with every fault, its path relative to the schema.
    """
    reader = _Reader()
    root = reader.read(spec, "", 0)
    if not reader.faults and (root.kind != "object" or root.nullable):
        reader.fault("type", "the data of an event is an object", "say type: object, without nullable")
    if reader.faults:
        raise SchemaError(tuple(reader.faults))
    return Schema(root, decoding_types.decoding_type(root), _root_refiner(root))


def _root_refiner(root: Shape) -> Callable[[Any], Fault | None] | None:
    inner = decoding_types.refiner(root)
    if inner is None:
        return None

    def refine(data: Any) -> Fault | None:
        refined = inner(data)
        return None if refined is data else refined.under("data")

    return refine


class _Reader:
    """Reads a schema into shapes; collects faults and goes on with a placeholder."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def fault(self, path: str, message: str, remedy: str = "") -> None:
        self.faults.append(Fault(path, message, remedy))

    def read(self, spec: object, path: str, depth: int) -> Shape:
        if not isinstance(spec, Mapping):
            self.fault(path, f"a schema is a mapping, not {spec!r}", "write {type: ...}")
            return Shape("object")
        if depth > _DEPTH_MAX:
            self.fault(path, f"is nested deeper than {_DEPTH_MAX}", "flatten the data")
            return Shape("object")
        kind = self._type(spec, path)
        self._keywords(spec, path, kind)
        node = Shape(kind, nullable=self._flag(spec, path, "nullable", False))
        if kind in _NUMERIC:
            node = self._numeric(node, spec, path)
        elif kind == "string":
            node = self._string(node, spec, path)
        elif kind == "object":
            node = self._object(node, spec, path, depth)
        elif kind == "array" and "items" in spec:
            node = replace(node, items=self.read(spec["items"], _join(path, "items"), depth + 1))
        return self._enum(node, spec, path) if "enum" in spec and kind in _SCALAR else node

    def _type(self, spec: Mapping[Any, object], path: str) -> str:
        if "type" not in spec:
            if not isinstance(spec.get("enum"), list):
                self.fault(path, "has no type", f"say type: one of {', '.join(TYPES)}")
                return "mixed"
            return _enum_type(spec["enum"])
        kind = spec["type"]
        if isinstance(kind, str) and kind in TYPES:
            return kind
        if isinstance(kind, list):
            remedy = "give one type" + ("; say nullable: true for null" if "null" in kind else "")
        elif kind == "null":
            remedy = "give the type of the value and say nullable: true"
        else:
            remedy = _meant(str(kind), TYPES) or f"use one of {', '.join(TYPES)}"
        self.fault(_join(path, "type"), f"unknown type {kind!r}", remedy)
        return "mixed"

    def _keywords(self, spec: Mapping[Any, object], path: str, kind: str) -> None:
        unknown = "type" in spec and kind == "mixed"
        for key in spec:
            if key not in KEYWORDS:
                known = [name for name in KEYWORDS if not unknown and kind in KEYWORDS[name][0]]
                remedy = _REMEDIES.get(str(key)) or _meant(str(key), known) or f"use one of {', '.join(KEYWORDS)}"
                self.fault(_join(path, str(key)), "is not a supported schema keyword", remedy)
            elif not unknown and kind not in KEYWORDS[key][0]:
                self.fault(_join(path, key), f"does not apply to type {kind}", "leave it out or change the type")

    def _flag(self, spec: Mapping[Any, object], path: str, key: str, absent: bool) -> bool:
        value = spec.get(key, absent)
        if isinstance(value, bool):
            return value
        self.fault(_join(path, key), f"is {value!r}", "say true or false")
        return absent

    def _numeric(self, node: Shape, spec: Mapping[Any, object], path: str) -> Shape:
        unit = QUANTITY_SCALE if node.kind == "number" else 1
        least, above = self._number(spec, path, "minimum"), self._number(spec, path, "exclusiveMinimum")
        most, below = self._number(spec, path, "maximum"), self._number(spec, path, "exclusiveMaximum")
        lows, highs = [1 - NUMBER_LIMIT * unit], [NUMBER_LIMIT * unit - 1]
        if least is not None:
            lows.append(math.ceil(Fraction(least) * unit))
        if above is not None:
            lows.append(math.floor(Fraction(above) * unit) + 1)
        if most is not None:
            highs.append(math.floor(Fraction(most) * unit))
        if below is not None:
            highs.append(math.ceil(Fraction(below) * unit) - 1)
        if max(lows) > min(highs):
            self.fault(path, "its bounds leave no value", "lower the minimum or raise the maximum")
        pairs = (("at least", least), ("greater than", above), ("at most", most), ("less than", below))
        bounds = " and ".join(f"{word} {value}" for word, value in pairs if value is not None)
        return replace(node, low=max(lows), high=min(highs), bounds=bounds, minimum=least, exclusive_minimum=above)

    def _number(self, spec: Mapping[Any, object], path: str, key: str) -> Decimal | None:
        value = spec.get(key)
        number = _exact(value)
        if key in spec and number is None:
            self.fault(_join(path, key), f"is {value!r}", "write a number")
        elif number is not None and not -30 < number.adjusted() < 30:
            self.fault(_join(path, key), "is out of range", "numbers are less than 10^15 with 12 decimals")
            return None
        return number

    def _string(self, node: Shape, spec: Mapping[Any, object], path: str) -> Shape:
        low, high = self._length(spec, path, "minLength"), self._length(spec, path, "maxLength")
        if low is not None and high is not None and low > high:
            self.fault(path, "its lengths leave no value", "lower minLength or raise maxLength")
        if "format" in spec and spec["format"] != "date-time":
            self.fault(_join(path, "format"), f"unknown format {spec['format']!r}", "use date-time, or a pattern")
        pairs = (("at least", low), ("at most", high))
        bounds = " and ".join(f"{word} {value}" for word, value in pairs if value is not None)
        pattern = self._pattern(spec, path)
        return replace(node, low=low, high=high, bounds=bounds, pattern=pattern, date_time="format" in spec)

    def _length(self, spec: Mapping[Any, object], path: str, key: str) -> int | None:
        value = spec.get(key)
        if key not in spec or (type(value) is int and 0 <= value <= _LENGTH_MAX):
            return value if type(value) is int else None
        self.fault(_join(path, key), f"is {value!r}", "write a number of characters, 0 or more")
        return None

    def _pattern(self, spec: Mapping[Any, object], path: str) -> shape.Pattern | None:
        value = spec.get("pattern")
        if "pattern" not in spec:
            return None
        try:
            if isinstance(value, str):
                return shape.Pattern(value)
            self.fault(_join(path, "pattern"), f"is {value!r}", "write a regular expression as a string")
        except ValueError as error:
            self.fault(_join(path, "pattern"), f"is no regular expression (RE2): {error}", "correct it")
        return None

    def _object(self, node: Shape, spec: Mapping[Any, object], path: str, depth: int) -> Shape:
        children: dict[str, Shape] = {}
        declared = spec.get("properties", {})
        if not isinstance(declared, Mapping):
            self.fault(_join(path, "properties"), "is not a mapping", "write the properties by name")
            declared = {}
        for name, child in declared.items():
            inside = f"{_join(path, 'properties')}.{name}"
            if not isinstance(name, str):
                self.fault(inside, f"the name {name!r} is not a string", "put it in quotes")
            children[str(name)] = self.read(child, inside, depth + 1)
        additional = spec.get("additionalProperties", True)
        if isinstance(additional, Mapping):
            additional = self.read(additional, _join(path, "additionalProperties"), depth + 1)
        elif not isinstance(additional, bool):
            self.fault(_join(path, "additionalProperties"), f"is {additional!r}", "say true, false or a schema")
            additional = True
        required = self._required(spec, path, children)
        return replace(node, properties=dict(sorted(children.items())), required=required, additional=additional)

    def _required(self, spec: Mapping[Any, object], path: str, children: Mapping[str, Shape]) -> frozenset[str]:
        names = spec.get("required", [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            self.fault(_join(path, "required"), "is not a list of names", "write [name, ...]")
            return frozenset()
        for index, name in enumerate(names):
            if name not in children:
                remedy = _meant(name, children) or "declare it under properties"
                self.fault(f"{_join(path, 'required')}[{index}]", f"property {name!r} is not declared", remedy)
            if name in names[:index]:
                self.fault(f"{_join(path, 'required')}[{index}]", f"{name!r} is repeated", "write it once")
        return frozenset(names).intersection(children)

    def _enum(self, node: Shape, spec: Mapping[Any, object], path: str) -> Shape:
        values = spec["enum"]
        if not isinstance(values, list) or not values:
            self.fault(_join(path, "enum"), "is not a list of values", "write [value, ...]")
            return node
        allowed: set[tuple[type, Any]] = set()
        for index, value in enumerate(values):
            where = f"{_join(path, 'enum')}[{index}]"
            value = _exact(value) if isinstance(value, float) else value
            entry = self._enum_value(node, value, where)
            if entry in allowed:
                self.fault(where, f"{value!r} is repeated", "write it once")
            if entry is not None:
                allowed.add(entry)
        return replace(node, enum=frozenset(allowed))

    def _enum_value(self, node: Shape, value: object, where: str) -> tuple[type, Any] | None:
        if value is None:
            self.fault(where, "is null", "leave it out and say nullable: true")
            return None
        if node.kind == "mixed":
            if type(value) not in (str, int, bool):
                self.fault(where, f"{value} is no string, integer or boolean", "give the property a type")
                return None
            return type(value), value
        fault = shape.check(replace(node, nullable=False), value)
        if fault:
            hint = "put it in quotes" if node.kind == "string" and not isinstance(value, str) else "remove it"
            self.fault(where, f"{value} {fault.message}", hint)
            return None
        converted = shape.convert(node, value)
        return type(converted), converted


def _enum_type(values: Any) -> str:
    kinds = {type(value) for value in values if value is not None}
    names = {str: "string", int: "integer", bool: "boolean"}
    return names.get(kinds.pop(), "mixed") if len(kinds) == 1 else "mixed"


def _exact(value: object) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
        return None
    number = Decimal(str(value)) if isinstance(value, float) else Decimal(value)
    return number if number.is_finite() else None


def _meant(name: str, known: Any) -> str:
    close = get_close_matches(name, [str(k) for k in known], 1)
    return f"did you mean {close[0]}?" if close else ""


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
