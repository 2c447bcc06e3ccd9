"""A meter's inputs in a batch: which events they are, their values, and their group-by values as numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from domain.accounts import Int64s
from domain.catalog import Aggregation, Meter, Where

Getter = Callable[[tuple[str, ...]], Callable[[Any], Any]]
"""Makes the function that reads a property path from decoded data."""

INT64_MAX = 2**63 - 1


@lru_cache(maxsize=65_536)
def dimensions_key(values: tuple[str, ...]) -> str:
    """Group-by values as one text that cannot collide: a JSON array, "" without group_by."""
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")) if values else ""


def text_form(value: Any) -> str:
    """A property as text, for group_by, where and unique."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else str(value)


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of one meter in a batch."""

    rows: Int64s
    """Which of the batch's events they are."""
    values: list[Any]
    """Numbers, or texts for `unique`; empty for `count`."""
    dimensions: Int64s
    """Of each input, the place of its group-by values in `texts`."""
    texts: list[tuple[str, ...]]

    def numbers(self) -> NDArray[Any]:
        """The values as integers that cannot overflow in a sum: of Python where 64 bits might not do."""
        largest = max(max(self.values), -min(self.values))
        return np.array(self.values, object if largest * len(self.values) > INT64_MAX else np.int64)


Dimensions = tuple[Int64s, list[tuple[str, ...]]]
"""Of each event the place of its group-by values, and the distinct ones."""


def inputs_of(
    meter: Meter, getter: Getter, rows: list[int], data: list[Any], known: dict[tuple[str, ...], Dimensions]
) -> Inputs:
    """The inputs of a meter among the events of its type.

    Args:
        meter: Selects by `where`; an event whose value is absent or null is no input.
        getter: Of the event type's schema.
        rows: Which of the batch's events have the type.
        data: Their decoded data.
        known: By labels, the dimensions of all these events; shared by the meters of the type.
    """
    keep = _selected(meter, getter, data)
    values: list[Any] = []
    if meter.value is not None:
        values = list(map(getter(meter.value), data))
        if None in values:
            keep = [i for i in (range(len(data)) if keep is None else keep) if values[i] is not None]
    if keep is None:
        if meter.group_by not in known:
            known[meter.group_by] = _dimensions(meter.group_by, getter, data)
        dimensions = known[meter.group_by]
    else:
        rows = [rows[i] for i in keep]
        values = [values[i] for i in keep] if values else []
        dimensions = _dimensions(meter.group_by, getter, [data[i] for i in keep])
    if meter.aggregation is Aggregation.UNIQUE:
        values = list(map(text_form, values))
    return Inputs(np.array(rows, np.int64), values, *dimensions)


def _dimensions(labels: tuple[str, ...], getter: Getter, data: list[Any]) -> Dimensions:
    """The distinct group-by values, and of each event their place among them."""
    if not labels:
        return np.zeros(len(data), np.int64), [()]
    columns = [_texts(getter(tuple(label.split("."))), data) for label in labels]
    numbers: dict[tuple[str, ...], int] = {}
    places = [numbers.setdefault(texts, len(numbers)) for texts in zip(*columns, strict=True)]
    return np.array(places, np.int64), list(numbers)


def _texts(get: Callable[[Any], Any], data: list[Any]) -> list[str]:
    """A property of each event as text."""
    values = list(map(get, data))
    return values if set(map(type, values)) == {str} else list(map(text_form, values))


def _selected(meter: Meter, getter: Getter, data: list[Any]) -> list[int] | None:
    """The events that a meter's `where` selects; None for all."""
    keep: list[int] | None = None
    for path, allowed in meter.where.items():
        texts = _texts(getter(tuple(path.split("."))), data)
        keep = [i for i in (range(len(data)) if keep is None else keep) if texts[i] in allowed]
    return keep


def chosen(inputs: Inputs, where: Where, labels: tuple[str, ...], places: Int64s | None) -> Int64s | None:
    """The places (None: all) whose group-by values a price selects."""
    if not where:
        return places
    allowed = np.array([all(texts[labels.index(k)] in v for k, v in where.items()) for texts in inputs.texts], np.bool_)
    kept = allowed[inputs.dimensions]
    return np.flatnonzero(kept) if places is None else places[kept[places]]
