"""The merge algebra, and the table of cells it works on.

A cell is a row: its key, the number of inputs, a value, and the greatest catalog version among its
inputs. What the value is depends on the aggregation:

| aggregation | value | merge |
|---|---|---|
| count | unused | inputs add up |
| sum, avg | the sum | add |
| min, max | the extreme, None before the first | least, greatest |
| latest | (time_us, partition, offset, index, value) | the greatest |
| unique | the set of distinct texts | union |

Every merge is associative and commutative, so the order in which batches arrive does not show.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from typing_extensions import Buffer

from domain.catalog import Aggregation
from domain.values import QUANTITY_SCALE

Key = tuple[Any, ...]
"""Begins with (subject, start_us, end_us)."""

_QUANTITY_BYTES = 16
_KEY_TYPES = {str: pa.string(), int: pa.int64()}


class Cells:
    """One family of totals: a meter's windows, the billing periods of a price, the periods of an entitlement.

    Rows are columns of Python lists; a key's place in them is its place in `rows`. Keys are only added
    (or all laid anew by `forget`), so a snapshot encodes each key once.
    """

    def __init__(self, aggregation: Aggregation) -> None:
        self.aggregation = aggregation
        self.rows: dict[Key, int] = {}
        self.inputs: list[int] = []
        self._values: list[Any] = []
        self._versions: list[int] = []
        self._encoded: list[pa.RecordBatch] = []
        self._new_keys: list[Key] = []

    def __len__(self) -> int:
        return len(self.rows)

    def find(self, keys: Sequence[Key]) -> list[int | None]:
        """The row of each key, None where there is none."""
        return list(map(self.rows.get, keys))

    def places(self, keys: Sequence[Key], check_open: Callable[[list[Key]], None]) -> list[int]:
        """The row of each key (no key twice); `check_open` may raise on the new ones before they get theirs."""
        return self.complete(keys, self.find(keys), check_open)

    def complete(
        self, keys: Sequence[Key], found: list[int | None], check_open: Callable[[list[Key]], None]
    ) -> list[int]:
        """The same after `find`."""
        if None not in found:
            return found  # type: ignore[return-value]  # there is no None in it
        fresh = [key for key, place in zip(keys, found, strict=True) if place is None]
        check_open(fresh)
        first = len(self.rows)
        self.rows.update(zip(fresh, range(first, first + len(fresh)), strict=True))
        self.inputs += [0] * len(fresh)
        self._versions += [0] * len(fresh)
        self._values += self._empty(len(fresh))
        self._new_keys += fresh
        added = iter(range(first, first + len(fresh)))
        return [next(added) if place is None else place for place in found]

    def _empty(self, count: int) -> list[Any]:
        """Values of rows without inputs."""
        match self.aggregation:
            case Aggregation.SUM | Aggregation.AVG:
                return [0] * count
            case Aggregation.UNIQUE:
                return [set() for _ in range(count)]
            case _:
                return [None] * count

    def merge(self, places: Sequence[int], inputs: Sequence[int], values: Sequence[Any], partition: int) -> None:
        """Merge a group into each row; `partition` is where the groups come from.

        Every merge is associative and commutative, so the order in which batches arrive does not show.
        """
        held_inputs, held = self.inputs, self._values
        for place, count in zip(places, inputs, strict=True):
            held_inputs[place] += count
        match self.aggregation:
            case Aggregation.COUNT:
                pass
            case Aggregation.SUM | Aggregation.AVG:
                for place, value in zip(places, values, strict=True):
                    held[place] += value
            case Aggregation.MIN:
                for place, value in zip(places, values, strict=True):
                    if held[place] is None or value < held[place]:
                        held[place] = value
            case Aggregation.MAX:
                for place, value in zip(places, values, strict=True):
                    if held[place] is None or value > held[place]:
                        held[place] = value
            case Aggregation.LATEST:
                for place, (time_us, offset, index, number) in zip(places, values, strict=True):
                    seen = (time_us, partition, offset, index, number)
                    if held[place] is None or seen > held[place]:
                        held[place] = seen
            case Aggregation.UNIQUE:
                for place, value in zip(places, values, strict=True):
                    held[place].update(value)

    def new_members(self, places: Sequence[int], values: Sequence[Sequence[str]]) -> list[list[str]]:
        """Of a `unique` family, what of each group is not in its row yet; ask before merging."""
        held = self._values
        return [[member for member in found if member not in held[p]] for p, found in zip(places, values, strict=True)]

    def see_version(self, places: Sequence[int], version: int) -> list[int]:
        """Note the catalog version of inputs; returns the greatest one of each row."""
        held = self._versions
        for place in places:
            if held[place] < version:
                held[place] = version
        return [held[place] for place in places]

    def aggregates(self, places: Sequence[int]) -> list[Any]:
        """What `usage.value` holds, scaled by 10^12 (of avg, the sum).

        Of `latest` it comes with where it is from: (time_us, partition, offset, index, value).
        """
        match self.aggregation:
            case Aggregation.COUNT:
                return [self.inputs[place] * QUANTITY_SCALE for place in places]
            case Aggregation.UNIQUE:
                return [len(self._values[place]) * QUANTITY_SCALE for place in places]
            case _:
                return [self._values[place] for place in places]

    def quantities(self, places: Sequence[int]) -> list[int]:
        """What a price or a limit applies to, scaled by 10^12; the rows have inputs."""
        match self.aggregation:
            case Aggregation.LATEST:
                return [self._values[place][4] for place in places]
            case Aggregation.AVG:
                return [mean(self._values[place], self.inputs[place]) for place in places]
            case _:
                return self.aggregates(places)

    def forget(self, horizon_us: int) -> None:
        """Drop every row whose window or period ended at or before the horizon."""
        kept = [(key, place) for key, place in self.rows.items() if key[2] > horizon_us]
        if len(kept) == len(self.rows):
            return
        places = [place for _, place in kept]
        self._lay([key for key, _ in kept], *([column[p] for p in places] for column in self._columns()))

    def _columns(self) -> tuple[list[int], list[Any], list[int]]:
        return self.inputs, self._values, self._versions

    def _lay(self, keys: list[Key], inputs: list[int], values: list[Any], versions: list[int]) -> None:
        self.rows = {key: place for place, key in enumerate(keys)}
        self.inputs, self._values, self._versions = inputs, values, versions
        self._encoded, self._new_keys = [], keys

    def to_arrow(self) -> pa.Table:
        """The rows as columns; an immutable copy. Not to be asked of a family without rows."""
        if self._new_keys:
            columns = zip(*self._new_keys, strict=True)
            arrays = [pa.array(column, _KEY_TYPES[type(column[0])]) for column in columns]
            self._encoded.append(pa.record_batch(arrays, [f"k{i}" for i in range(len(arrays))]))
            self._new_keys = []
        table = pa.Table.from_batches(self._encoded)
        table = table.append_column("inputs", pa.array(self.inputs, pa.int64()))
        table = table.append_column("version", pa.array(self._versions, pa.int32()))
        for name, column in self._value_columns().items():
            table = table.append_column(name, column)
        return table

    def _value_columns(self) -> dict[str, pa.Array]:
        values = self._values
        match self.aggregation:
            case Aggregation.COUNT:
                return {}
            case Aggregation.UNIQUE:
                return {"value": pa.array([sorted(value) for value in values], pa.list_(pa.string()))}
            case Aggregation.LATEST:
                *places, numbers = zip(*values, strict=True)
                found = {name: pa.array(column, pa.int64()) for name, column in zip(_PLACE, places, strict=True)}
                return {**found, "value": _to_binary(numbers)}
            case _:
                return {"value": _to_binary(values)}

    @classmethod
    def from_arrow(cls, aggregation: Aggregation, table: pa.Table) -> Cells:
        """What `to_arrow` gave, as cells again."""
        names = [name for name in table.column_names if name.startswith("k")]
        columns = {name: table.column(name).to_pylist() for name in table.column_names}
        match aggregation:
            case Aggregation.COUNT:
                values: list[Any] = [None] * len(table)
            case Aggregation.UNIQUE:
                values = list(map(set, columns["value"]))
            case Aggregation.LATEST:
                numbers = map(_from_bytes, columns["value"])
                values = list(zip(*(columns[name] for name in _PLACE), numbers, strict=True))
            case _:
                values = list(map(_from_bytes, columns["value"]))
        cells = cls(aggregation)
        keys = list(zip(*(columns[name] for name in names), strict=True))
        cells._lay(keys, columns["inputs"], values, columns["version"])
        return cells


_PLACE = ("time", "partition", "offset", "index")


def mean(total: int, count: int) -> int:
    """A quotient rounded half to even, as quantities are."""
    quotient, rest = divmod(total, count)
    twice = 2 * rest - count
    return quotient + (1 if twice > 0 or (twice == 0 and quotient % 2) else 0)


def _to_binary(values: Sequence[int]) -> pa.Array:
    """Integers as fixed 16-byte little-endian binaries."""
    joined = little_endian(values, _QUANTITY_BYTES)
    return pa.Array.from_buffers(pa.binary(_QUANTITY_BYTES), len(values), [None, pa.py_buffer(joined)])


def little_endian(values: Sequence[int], width: int) -> Buffer:
    """Signed integers as so many bytes each, one behind the other; a width is a multiple of 8."""
    try:
        low = np.array(values, "<i8")
    except OverflowError:
        return b"".join([value.to_bytes(width, "little", signed=True) for value in values])
    wide = np.empty((len(low), width // 8), "<i8")
    wide[:, 0] = low
    wide[:, 1:] = (low >> 63)[:, None]
    return wide.data


def _from_bytes(value: bytes) -> int:
    return int.from_bytes(value, "little", signed=True)
