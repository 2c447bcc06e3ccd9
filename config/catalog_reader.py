"""Reading a catalog part by part, and saying what is wrong with each in a catalog's terms."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from config import catalog_file as file
from config.catalog_fields import check_name, meant
from domain.catalog import Aggregation, EventType, Meter
from domain.schema import Fault, Property

LABEL_TYPES = ("string", "integer", "boolean")
"""Types of properties that usage can be grouped, selected or made unique by."""


def grows(meter: Meter, value: Property | None) -> bool:
    """Whether the meter's total never falls: what limits and alerts may stand on."""
    if meter.aggregation is not Aggregation.SUM:
        return meter.aggregation in (Aggregation.COUNT, Aggregation.MAX, Aggregation.UNIQUE)
    if value is None:
        return False
    if value.enum is not None and all(v >= 0 for v in value.enum):
        return True
    return any(least is not None and least >= 0 for least in (value.minimum, value.exclusive_minimum))


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


class Reader:
    """Collects the faults of a catalog, and holds what has been read of it so far.

    A part with a fault is left out of `event_types` and `meters` but stands in `names`, so that what
    refers to it is not blamed.
    """

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.names: dict[str, set[str]] = {}
        """By section, every name that stands there, also of parts with faults."""
        self.event_types: dict[str, EventType] = {}
        self.meters: dict[str, Meter] = {}

    def fault(self, path: str, message: str, remedy: str) -> None:
        self.faults.append(Fault(path, message, remedy))

    def read(self, kind: Any, raw: Any, path: str) -> Any:
        """One part as its pydantic model, or None after noting its faults."""
        try:
            return _adapter(kind).validate_python(raw)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                self.faults.append(_explain(detail, raw, path, kind))
            return None

    def check_name(self, name: str, path: str) -> None:
        """Note a fault if a name has characters that it may not have."""
        try:
            check_name(name)
        except PydanticCustomError as error:
            context = error.context or {}
            self.fault(path, str(context["message"]), str(context["remedy"]))

    def known(self, section: str, name: str, path: str, noun: str) -> bool:
        """Whether a name stands in a section; notes a fault if not."""
        if name in self.names[section]:
            return True
        known = self.names[section]
        remedy = meant(name, sorted(known)) if known else f"declare it under {section}"
        self.fault(path, f"unknown {noun} {name!r}", remedy)
        return False

    def unique(self, keys: Iterable[tuple[str, str]], noun: str) -> None:
        seen: dict[str, str] = {}
        for path, key in keys:
            if key in seen:
                self.fault(path, f"{noun} {key!r} stands at {seen[key]} already", "give each its own")
            seen.setdefault(key, path)

    def described(self, meter: Meter, dotted: str) -> Property | None:
        event_type = self.event_types.get(meter.event_type)
        return event_type.schema.describe(tuple(dotted.split("."))) if event_type else None

    def grows(self, meter: Meter) -> bool:
        if meter.event_type not in self.event_types:
            return True  # it has faults of its own
        value = self.described(meter, ".".join(meter.value)) if meter.value else None
        return grows(meter, value)

    def check_selected(self, found: Property | None, values: Iterable[str], path: str) -> None:
        """That the property can have the selected values at all."""
        if found is None or found.type not in LABEL_TYPES:
            return
        known: set[str] | None = None
        if found.enum is not None:
            known = {str(v).lower() if found.type == "boolean" else str(v) for v in found.enum}
        elif found.type == "boolean":
            known = {"true", "false"}
        for value in sorted(values):
            if value == "":
                continue  # absent
            if known is not None and value not in known:
                self.fault(path, f"{value!r} is no value of the property", meant(value, sorted(known)))
            elif found.type == "integer" and not _INTEGER.fullmatch(value):
                self.fault(path, f"{value!r} is no integer", "write integers as they are in the events")


_INTEGER = re.compile(r"0|-?[1-9]\d{0,14}", re.ASCII)
_WRITE = {
    "string_type": "a string",
    "int_type": "an integer",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def _explain(detail: ErrorDetails, raw: Any, path: str, kind: Any) -> Fault:
    """A pydantic error as a fault in a catalog's terms."""
    loc = list(detail["loc"])
    context = detail.get("ctx", {})
    if kind in (file.PriceSpec, file.EntitlementSpec) and loc:
        loc = loc[1:]  # the discriminator's value
    where = _path(path, loc)
    match detail["type"]:
        case "catalog":
            return Fault(where, str(context["message"]), str(context["remedy"]))
        case "missing":
            return Fault(where, "is missing", "add it")
        case "extra_forbidden":
            return Fault(where, "is not a known key", meant(str(loc[-1]), _keys(kind, raw, loc)))
        case "union_tag_not_found":
            tag = str(context["discriminator"]).strip("'")
            return Fault(f"{where}.{tag}", "is missing", f"use one of {', '.join(_tags(kind))}")
        case "union_tag_invalid":
            tag = str(context["discriminator"]).strip("'")
            return Fault(f"{where}.{tag}", f"unknown {tag} {context['tag']!r}", meant(context["tag"], _tags(kind)))
        case "literal_error":
            expected = [part.strip("' ") for part in str(context["expected"]).replace(" or ", ", ").split(",")]
            return Fault(where, f"is {detail['input']!r}", meant(str(detail["input"]), expected))
        case "too_short" | "string_too_short":
            return Fault(where, "is empty", "write at least one")
        case other if other in _WRITE:
            return Fault(where, f"is {_short(detail['input'])}", f"write {_WRITE[other]}")
        case _:
            return Fault(where, detail["msg"], "correct it")


def _path(path: str, loc: Iterable[Any]) -> str:
    for part in loc:
        if part != "[key]":
            path = f"{path}[{part}]" if isinstance(part, int) else f"{path}.{part}" if path else str(part)
    return path


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _models(kind: Any) -> dict[str, Any]:
    """The models of a tagged union, by tag."""
    models = {}
    for model in kind.__args__[0].__args__ if hasattr(kind, "__metadata__") else ():
        tagged = model.model_fields.get("model") or model.model_fields["kind"]
        models[tagged.annotation.__args__[0]] = model
    return models


def _tags(kind: Any) -> list[str]:
    return list(_models(kind))


def _keys(kind: Any, raw: Any, loc: list[Any]) -> list[str]:
    """The keys that could have stood where an unknown one does."""
    if "tiers" in loc:
        model: Any = file.TierSpec
    elif hasattr(kind, "__metadata__"):
        model = _models(kind)[raw.get("model") or raw.get("kind")]
    else:
        model = kind
    return [field.alias or name for name, field in model.model_fields.items()]
