"""The fast path of `domain.shape`: msgspec types that decode and validate, and what is left to refine.

An object with declared properties becomes a msgspec struct (fields `f0`, `f1`, ... renamed to the
properties, ascending by name; an absent property is `UNSET`), so one pass in C parses and validates.
What msgspec cannot say exactly (decimals, mixed enums, date-times, maps beside properties) is decoded
loosely and checked by a refiner, which also turns every `number` into an `int` in units of 10^-12.
Type and refiner together accept what `shape.check` accepts: a property test holds that.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, Inexact, InvalidOperation
from operator import attrgetter
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain import shape as rules
from domain.shape import NUMBER_LIMIT, Fault, Shape
from domain.values import QUANTITY_SCALE

Refiner = Callable[[Any], Any]
"""Takes a decoded value; gives the value to work with (the same object if only its inside changed) or a Fault."""


def is_struct(shape: Shape) -> bool:
    """Whether an object is decoded into a struct (else into a dict)."""
    if shape.kind != "object" or isinstance(shape.additional, Shape) or shape.free:
        return False
    return all(_renamable(name) for name in shape.properties)


def _renamable(name: str) -> bool:
    return not any(c in '"\\' or c < " " for c in name)


def field_names(shape: Shape) -> dict[str, str]:
    """By property, the attribute of the struct that holds it."""
    return {name: f"f{index}" for index, name in enumerate(shape.properties)}


def decoding_type(shape: Shape, name: str = "Data") -> Any:
    """The msgspec type of a value; decode with `float_hook=decimal.Decimal`."""
    exact = _exact_type(shape, name)
    return exact | None if shape.nullable and exact is not Any else exact


def _exact_type(shape: Shape, name: str) -> Any:
    match shape.kind:
        case "string" | "integer" if shape.enum is not None:
            return Literal[tuple(sorted(value for _, value in shape.enum))]
        case "string":
            return _string_type(shape)
        case "integer":
            return Annotated[int, Meta(ge=shape.low, le=shape.high)]
        case "boolean":
            return bool
        case "array":
            return list[Any] if shape.items is None else list[decoding_type(shape.items, name)]  # type: ignore[misc]
        case "object":
            return _object_type(shape, name)
        case _:
            return Any


def _string_type(shape: Shape) -> Any:
    if shape.low is None and shape.high is None:
        return str
    return Annotated[str, Meta(min_length=shape.low, max_length=shape.high)]


def _object_type(shape: Shape, name: str) -> Any:
    if not is_struct(shape):
        if isinstance(shape.additional, Shape) and not shape.properties:
            return dict[str, decoding_type(shape.additional, name)]  # type: ignore[misc]
        return dict[str, Any]
    fields: list[Any] = []
    names = field_names(shape)
    for key, attribute in names.items():
        inner = decoding_type(shape.properties[key], f"{name}_{attribute}")
        if key in shape.required:
            fields.append((attribute, inner))
        else:
            fields.append((attribute, inner | UnsetType if inner is not Any else Any, UNSET))
    return msgspec.defstruct(
        name,
        fields,
        rename={attribute: key for key, attribute in names.items()},
        forbid_unknown_fields=shape.additional is False,
        kw_only=True,
        gc=False,  # decoded JSON has no cycles
    )


def refiner(shape: Shape) -> Refiner | None:
    """What is left to check and convert after decoding; None if that is nothing."""
    inner = _exact_refiner(shape)
    if inner is None or not shape.nullable or shape.kind in ("number", "mixed"):
        return inner
    return lambda value: None if value is None else inner(value)


def _exact_refiner(shape: Shape) -> Refiner | None:
    match shape.kind:
        case "number":
            return _number_refiner(shape)
        case "mixed":
            return _checked(shape)
        case "boolean":
            return _checked(shape) if shape.enum is not None else None
        case "string":
            return _checked(shape) if (shape.date_time or shape.pattern) and shape.enum is None else None
        case "array" | "object" if shape.free:
            return rules.plain
        case "array":
            assert shape.items is not None
            return _each_refiner(refiner(shape.items))
        case "object":
            return _object_refiner(shape)
        case _:
            return None


def _checked(shape: Shape) -> Refiner:
    def refine(value: Any) -> Any:
        return rules.check(shape, value) or value

    return refine


def _number_refiner(shape: Shape) -> Refiner:
    quantize, multiply = rules.EXACT.quantize, rules.EXACT.multiply
    tiny, scale = rules.STEP, rules.SCALE
    limit = NUMBER_LIMIT * QUANTITY_SCALE - 1
    low = -limit if shape.low is None else shape.low
    high = limit if shape.high is None else shape.high
    allowed = None if shape.enum is None else frozenset(value for _, value in shape.enum)

    def refine(value: Any) -> Any:
        kind = type(value)
        if kind is Decimal:
            try:
                units = int(multiply(quantize(value, tiny), scale))
            except (Inexact, InvalidOperation):
                return rules.check(shape, value)
        elif kind is int:
            units = value * QUANTITY_SCALE
        else:
            return rules.check(shape, value)
        if low <= units <= high and (allowed is None or units in allowed):
            return units
        return rules.check(shape, value)

    return refine


def _each_refiner(inner: Refiner | None) -> Refiner | None:
    if inner is None:
        return None

    def refine(values: list[Any]) -> Any:
        for index, value in enumerate(values):
            refined = inner(value)
            if type(refined) is Fault:
                return refined.under(f"[{index}]")
            values[index] = refined
        return values

    return refine


def _object_refiner(shape: Shape) -> Refiner | None:
    if is_struct(shape):
        return _struct_refiner(shape)
    if not shape.properties and isinstance(shape.additional, Shape):
        return _map_refiner(refiner(shape.additional))
    return _dict_refiner(shape)


def _struct_refiner(shape: Shape) -> Refiner | None:
    steps = []
    for key, name in field_names(shape).items():
        child = shape.properties[key]
        fix = refiner(child)
        if child.nullable and key not in shape.required:
            fix = _null_is_absent(fix)
        if fix is not None:
            steps.append((name, attrgetter(name), fix, key))
    if not steps:
        return None

    def refine(struct: Any) -> Any:
        for name, get, fix, key in steps:
            value = get(struct)
            if value is UNSET:
                continue
            refined = fix(value)
            if refined is not value:
                if type(refined) is Fault:
                    return refined.under(rules.step(key))
                setattr(struct, name, refined)
        return struct

    return refine


def _null_is_absent(inner: Refiner | None) -> Refiner:
    """A null for an optional property is the same as none: a producer may leave nulls out of a retry."""
    if inner is None:
        return lambda value: UNSET if value is None else value
    return lambda value: UNSET if value is None else inner(value)


def _map_refiner(inner: Refiner | None) -> Refiner | None:
    if inner is None:
        return None

    def refine(values: dict[str, Any]) -> Any:
        for key, value in values.items():
            refined = inner(value)
            if type(refined) is Fault:
                return refined.under(rules.step(key))
            values[key] = refined
        return values

    return refine


def _dict_refiner(shape: Shape) -> Refiner:
    """Of an object that no struct can hold: checked as a whole, converted in place."""

    def refine(values: dict[str, Any]) -> Any:
        fault = rules.check(shape, values)
        if fault:
            return fault
        converted = rules.convert(shape, values)
        values.clear()
        values.update(converted)
        return values

    return refine


def getter(shape: Shape, path: tuple[str, ...]) -> Callable[[Any], Any]:
    """From a refined value, the value of a declared property; None if it is absent or null on the way.

    Raises:
        KeyError: the path is not declared.
    """
    steps: list[Callable[[Any], Any]] = []
    certain = True  # never UNSET on the way, nor null before the last step
    typed = True  # inside a dict all is dicts
    for index, name in enumerate(path):
        child = shape.properties[name]
        typed = typed and is_struct(shape)
        if typed:
            steps.append(attrgetter(field_names(shape)[name]))
            certain = certain and name in shape.required and (index + 1 == len(path) or not child.nullable)
        else:
            steps.append(_key_getter(name))
            certain = False
        shape = child
    return _chain(steps, certain)


def _key_getter(name: str) -> Callable[[Any], Any]:
    return lambda value: value.get(name)


def _chain(steps: list[Callable[[Any], Any]], certain: bool) -> Callable[[Any], Any]:
    if len(steps) == 1:
        first = steps[0]
        return first if certain else lambda value: None if (found := first(value)) is UNSET else found

    def get(value: Any) -> Any:
        for take in steps:
            value = take(value)
            if value is None or value is UNSET:
                return None
        return value

    return get
