"""The merge algebra, and the table of cells it works on.

A cell is a small list `[inputs, value, version]`; what `value` is depends on the aggregation:

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

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from domain.catalog import Aggregation
from domain.values import QUANTITY_SCALE

Cell = list[Any]
Key = tuple[Any, ...]
Merge = Callable[[Cell, int, Any, int], Any]
"""Merges (cell, inputs, value of a group, partition it came from); `unique` returns the new members."""

_QUANTITY_BYTES = 16


def _merge_count(cell: Cell, inputs: int, value: Any, partition: int) -> None:
    cell[0] += inputs


def _merge_sum(cell: Cell, inputs: int, value: Any, partition: int) -> None:
    cell[0] += inputs
    cell[1] += value


def _merge_min(cell: Cell, inputs: int, value: Any, partition: int) -> None:
    cell[0] += inputs
    if cell[1] is None or value < cell[1]:
        cell[1] = value


def _merge_max(cell: Cell, inputs: int, value: Any, partition: int) -> None:
    cell[0] += inputs
    if cell[1] is None or value > cell[1]:
        cell[1] = value


def _merge_latest(cell: Cell, inputs: int, value: Any, partition: int) -> None:
    cell[0] += inputs
    time_us, offset, index, number = value
    seen = (time_us, partition, offset, index, number)
    if cell[1] is None or seen > cell[1]:
        cell[1] = seen


def _merge_unique(cell: Cell, inputs: int, value: Any, partition: int) -> list[str]:
    cell[0] += inputs
    members = cell[1]
    new = [member for member in value if member not in members]
    members.update(new)
    return new


def merger(aggregation: Aggregation) -> Merge:
    """The function that merges a group into a cell."""
    match aggregation:
        case Aggregation.COUNT:
            return _merge_count
        case Aggregation.SUM | Aggregation.AVG:
            return _merge_sum
        case Aggregation.MIN:
            return _merge_min
        case Aggregation.MAX:
            return _merge_max
        case Aggregation.LATEST:
            return _merge_latest
        case Aggregation.UNIQUE:
            return _merge_unique


def empty(aggregation: Aggregation) -> Cell:
    """A cell without inputs."""
    match aggregation:
        case Aggregation.COUNT | Aggregation.SUM | Aggregation.AVG:
            return [0, 0, 0]
        case Aggregation.UNIQUE:
            return [0, set(), 0]
        case _:
            return [0, None, 0]


def aggregate_of(aggregation: Aggregation, cell: Cell) -> int:
    """The aggregate, scaled by 10^12: what `usage.value` holds (of avg, the sum)."""
    match aggregation:
        case Aggregation.COUNT:
            return int(cell[0]) * QUANTITY_SCALE
        case Aggregation.LATEST:
            return int(cell[1][4])
        case Aggregation.UNIQUE:
            return len(cell[1]) * QUANTITY_SCALE
        case _:
            return int(cell[1])


def quantity(aggregation: Aggregation, cell: Cell) -> int:
    """What a price or a limit applies to, scaled by 10^12 (avg: rounded half to even)."""
    if aggregation is not Aggregation.AVG:
        return aggregate_of(aggregation, cell)
    quotient, rest = divmod(int(cell[1]), int(cell[0]))
    twice = 2 * rest - int(cell[0])
    return quotient + (1 if twice > 0 or (twice == 0 and quotient % 2) else 0)


class Cells:
    """One family of totals: the cells of a meter's windows, of a price or of an entitlement.

    Keys begin with (subject, start_us, end_us); meters add (booked_on_day, dimensions_key), prices add
    (part,).
    """

    def __init__(self, aggregation: Aggregation) -> None:
        self.aggregation = aggregation
        self.merge = merger(aggregation)
        self.by_key: dict[Key, Cell] = {}

    def __len__(self) -> int:
        return len(self.by_key)

    def forget(self, horizon_us: int) -> None:
        """Drop every cell whose window or period ended at or before the horizon."""
        self.by_key = {key: cell for key, cell in self.by_key.items() if key[2] > horizon_us}

    def to_arrow(self) -> pa.Table:
        """The cells as columns; an immutable copy."""
        keys = list(zip(*self.by_key, strict=True))
        inputs, values, versions = zip(*self.by_key.values(), strict=True)
        columns = {f"k{i}": pa.array(column) for i, column in enumerate(keys)}
        columns["inputs"] = pa.array(inputs, pa.int64())
        columns["version"] = pa.array(versions, pa.int32())
        match self.aggregation:
            case Aggregation.COUNT:
                pass
            case Aggregation.UNIQUE:
                columns["value"] = pa.array([sorted(v) for v in values], pa.list_(pa.string()))
            case Aggregation.LATEST:
                times, partitions, offsets, indexes, numbers = zip(*values, strict=True)
                for name, column in zip(
                    ("time", "partition", "offset", "index"), (times, partitions, offsets, indexes), strict=True
                ):
                    columns[name] = pa.array(column, pa.int64())
                columns["value"] = _to_binary(numbers)
            case _:
                columns["value"] = _to_binary(values)
        return pa.table(columns)

    @classmethod
    def from_arrow(cls, aggregation: Aggregation, table: pa.Table) -> Cells:
        """What `to_arrow` gave, as cells again."""
        columns = {name: table.column(name).to_pylist() for name in table.column_names}
        inputs, versions = columns["inputs"], columns["version"]
        keys = zip(*(columns[name] for name in table.column_names if name.startswith("k")), strict=True)
        values: Iterator[Any]
        match aggregation:
            case Aggregation.COUNT:
                values = iter([0] * len(inputs))
            case Aggregation.UNIQUE:
                values = map(set, columns["value"])
            case Aggregation.LATEST:
                numbers = map(_from_bytes, columns["value"])
                values = zip(
                    columns["time"], columns["partition"], columns["offset"], columns["index"], numbers, strict=True
                )
            case _:
                values = map(_from_bytes, columns["value"])
        out = cls(aggregation)
        rows = zip(keys, inputs, values, versions, strict=True)
        out.by_key = {key: [count, value, version] for key, count, value, version in rows}
        return out


def _to_binary(values: Any) -> pa.Array:
    """Integers as fixed 16-byte little-endian binaries."""
    joined = b"".join([value.to_bytes(_QUANTITY_BYTES, "little", signed=True) for value in values])
    return pa.Array.from_buffers(pa.binary(_QUANTITY_BYTES), len(values), [None, pa.py_buffer(joined)])


def _from_bytes(value: bytes) -> int:
    return int.from_bytes(value, "little", signed=True)
