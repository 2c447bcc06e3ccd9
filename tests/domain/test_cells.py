"""The merge algebra: associative and commutative, with the empty cell as identity, and exact."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from fractions import Fraction
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.catalog import Aggregation
from domain.cells import Cell, Cells, aggregate_of, empty, merger, quantity
from domain.values import QUANTITY_SCALE

AGGREGATIONS = list(Aggregation)
LARGEST = 10**27 - 1
"""The largest number of an event, in units of 10^-12."""
numbers = st.integers(-5, 5) | st.integers(-LARGEST, LARGEST) | st.sampled_from([LARGEST, -LARGEST, 2**63, -(2**63)])


class Input(NamedTuple):
    """One event, as a meter sees it."""

    partition: int
    offset: int
    time_us: int
    number: int
    member: str


inputs = st.lists(
    st.builds(Input, st.integers(0, 2), st.integers(0, 9), st.integers(0, 3), numbers, st.sampled_from("abc")),
    min_size=1,
    max_size=12,
    unique_by=lambda one: (one.partition, one.offset),
)


def group(aggregation: Aggregation, events: Iterable[Input]) -> tuple[int, Any, int]:
    """Events of one partition as a partial: how many, the value, the partition."""
    chosen = sorted(events, key=lambda one: one.offset)
    match aggregation:
        case Aggregation.COUNT:
            value: Any = 0
        case Aggregation.SUM | Aggregation.AVG:
            value = sum(one.number for one in chosen)
        case Aggregation.MIN:
            value = min(one.number for one in chosen)
        case Aggregation.MAX:
            value = max(one.number for one in chosen)
        case Aggregation.LATEST:
            value = max((one.time_us, one.offset, 0, one.number) for one in chosen)
        case Aggregation.UNIQUE:
            value = list({one.member for one in chosen})
    return len(chosen), value, chosen[0].partition


def merged(aggregation: Aggregation, groups: Iterable[tuple[int, Any, int]]) -> Cell:
    cell = empty(aggregation)
    for partial in groups:
        merger(aggregation)(cell, *partial)
    return cell


def expected(aggregation: Aggregation, events: list[Input]) -> int:
    """The aggregate, from its definition."""
    match aggregation:
        case Aggregation.COUNT:
            return len(events) * QUANTITY_SCALE
        case Aggregation.SUM | Aggregation.AVG:
            return sum(one.number for one in events)
        case Aggregation.MIN:
            return min(one.number for one in events)
        case Aggregation.MAX:
            return max(one.number for one in events)
        case Aggregation.LATEST:
            return max(events, key=lambda one: (one.time_us, one.partition, one.offset)).number
        case Aggregation.UNIQUE:
            return len({one.member for one in events}) * QUANTITY_SCALE


@settings(max_examples=200)
@given(st.sampled_from(AGGREGATIONS), inputs, st.data())
def test_however_events_are_grouped_the_cell_is_the_same(
    aggregation: Aggregation, events: list[Input], data: st.DataObject
) -> None:
    singles = [group(aggregation, [one]) for one in data.draw(st.permutations(events))]
    cell = merged(aggregation, singles)
    assert cell[0] == len(events)
    assert aggregate_of(aggregation, cell) == expected(aggregation, events)
    where = {one: (one.partition, data.draw(st.integers(0, 2))) for one in events}
    groups = [group(aggregation, [e for e in events if where[e] == place]) for place in sorted({*where.values()})]
    assert merged(aggregation, data.draw(st.permutations(groups))) == cell


@given(st.sampled_from(AGGREGATIONS), inputs)
def test_cells_survive_arrow(aggregation: Aggregation, events: list[Input]) -> None:
    cells = Cells(aggregation)
    for number, one in enumerate(events):
        cells.by_key["s\0é", number, number + 1, -1, "[]"] = merged(aggregation, [group(aggregation, [one])])
    cells.by_key["all", 0, 1, 0, ""] = merged(aggregation, [group(aggregation, [one]) for one in events])
    for version, cell in enumerate(cells.by_key.values()):
        cell[2] = version
    kept = deepcopy(cells.by_key)
    sink = pa.BufferOutputStream()
    table = cells.to_arrow()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    again = Cells.from_arrow(aggregation, pa.ipc.open_stream(sink.getvalue()).read_all())
    assert again.by_key == kept == cells.by_key
    for cell in again.by_key.values():  # and they can go on
        again.merge(cell, *group(aggregation, [Input(0, 10, 10, 1, "z")]))
    assert cells.by_key == kept


@given(st.lists(numbers, min_size=1, max_size=9))
def test_an_average_is_rounded_half_to_even(values: list[int]) -> None:
    cell = merged(Aggregation.AVG, [(1, value, 0) for value in values])
    assert quantity(Aggregation.AVG, cell) == round(Fraction(sum(values), len(values)))


@pytest.mark.parametrize(
    ("total", "count", "average"),
    [(1, 2, 0), (3, 2, 2), (5, 2, 2), (-1, 2, 0), (-3, 2, -2), (-5, 2, -2), (2, 3, 1), (-2, 3, -1), (7, 4, 2)],
)
def test_averages(total: int, count: int, average: int) -> None:
    assert quantity(Aggregation.AVG, [count, total, 0]) == average
    assert aggregate_of(Aggregation.AVG, [count, total, 0]) == total


@given(st.sampled_from([a for a in AGGREGATIONS if a is not Aggregation.AVG]), inputs)
def test_any_other_quantity_is_the_aggregate(aggregation: Aggregation, events: list[Input]) -> None:
    cell = merged(aggregation, [group(aggregation, [one]) for one in events])
    assert quantity(aggregation, cell) == aggregate_of(aggregation, cell)


def test_of_latest_values_at_one_time_the_greatest_position_wins() -> None:
    newest = [Input(0, 9, 5, 1, ""), Input(1, 3, 5, 2, ""), Input(1, 4, 5, 3, ""), Input(2, 0, 4, 4, "")]
    for events in (newest, newest[::-1]):
        cell = merged(Aggregation.LATEST, [group(Aggregation.LATEST, [one]) for one in events])
        assert cell[1] == (5, 1, 4, 0, 3)


def test_unique_tells_which_members_are_new() -> None:
    cell = empty(Aggregation.UNIQUE)
    merge = merger(Aggregation.UNIQUE)
    assert sorted(merge(cell, 3, ["a", "b"], 0)) == ["a", "b"]
    assert merge(cell, 3, ["b", "", "a"], 1) == [""]
    assert merge(cell, 3, ["a"], 1) == []


def test_forgetting_is_by_the_end() -> None:
    cells = Cells(Aggregation.COUNT)
    for key in (("a", 0, 10, 0, ""), ("b", 5, 11), ("c", 0, 9, "part")):
        cells.by_key[key] = empty(Aggregation.COUNT)
    cells.forget(10)
    assert list(cells.by_key) == [("b", 5, 11)]
