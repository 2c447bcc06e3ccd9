"""The merge algebra: associative and commutative, with the empty row as identity, and exact."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Any, NamedTuple

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.catalog import Aggregation
from domain.cells import Cells, Key, little_endian, mean
from domain.values import QUANTITY_SCALE

AGGREGATIONS = list(Aggregation)
LARGEST = 10**27 - 1
"""The largest number of an event, in units of 10^-12."""
MEMBERS = "abc"
numbers = st.integers(-5, 5) | st.integers(-LARGEST, LARGEST) | st.sampled_from([LARGEST, -LARGEST, 2**63, -(2**63)])


class Input(NamedTuple):
    """One event, as a meter sees it."""

    partition: int
    offset: int
    time_us: int
    number: int
    member: str


inputs = st.lists(
    st.builds(Input, st.integers(0, 2), st.integers(0, 9), st.integers(0, 3), numbers, st.sampled_from(MEMBERS)),
    min_size=1,
    max_size=12,
    unique_by=lambda one: (one.partition, one.offset),
)


class Row(NamedTuple):
    """All that a row holds, as its family tells."""

    inputs: int
    aggregate: Any
    members: set[str]
    """Of `unique`, those of `MEMBERS` and "z" that it has."""
    version: int


KEY: Key = ("s", 0, 1, 0, "")


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


def opened(keys: list[Key]) -> None:
    """Every window is open."""


def add(cells: Cells, key: Key, partial: tuple[int, Any, int], version: int = 0) -> None:
    count, value, partition = partial
    places = cells.places([key], opened)
    cells.merge(places, [count], [value], partition)
    cells.see_version(places, version)


def merged(aggregation: Aggregation, groups: Iterable[tuple[int, Any, int]]) -> Cells:
    """A family of one row."""
    cells = Cells(aggregation)
    for partial in groups:
        add(cells, KEY, partial)
    return cells


def content(cells: Cells) -> dict[Key, Row]:
    """Every row, in order."""
    places = list(cells.rows.values())
    assert places == list(range(len(cells)))
    members: list[set[str]] = [set() for _ in places]
    if cells.aggregation is Aggregation.UNIQUE:
        known = [*MEMBERS, "z"]
        members = [set(known) - set(new) for new in cells.new_members(places, [known] * len(places))]
    counts = [cells.inputs[place] for place in places]
    versions = cells.see_version(places, 0)
    return dict(zip(cells.rows, map(Row, counts, cells.aggregates(places), members, versions), strict=True))


def aggregate_of(cells: Cells) -> Any:
    (aggregate,) = cells.aggregates([0])
    return aggregate


def quantity(cells: Cells) -> int:
    (found,) = cells.quantities([0])
    return found


def expected(aggregation: Aggregation, events: list[Input]) -> Any:
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
            last = max(events, key=lambda one: (one.time_us, one.partition, one.offset))
            return last.time_us, last.partition, last.offset, 0, last.number
        case Aggregation.UNIQUE:
            return len({one.member for one in events}) * QUANTITY_SCALE


@settings(max_examples=200)
@given(st.sampled_from(AGGREGATIONS), inputs, st.data())
def test_however_events_are_grouped_the_row_is_the_same(
    aggregation: Aggregation, events: list[Input], data: st.DataObject
) -> None:
    singles = [group(aggregation, [one]) for one in data.draw(st.permutations(events))]
    cells = merged(aggregation, singles)
    assert cells.inputs == [len(events)]
    assert aggregate_of(cells) == expected(aggregation, events)
    where = {one: (one.partition, data.draw(st.integers(0, 2))) for one in events}
    groups = [group(aggregation, [e for e in events if where[e] == place]) for place in sorted({*where.values()})]
    assert content(merged(aggregation, data.draw(st.permutations(groups)))) == content(cells)


@given(st.sampled_from(AGGREGATIONS), inputs, st.data())
def test_rows_merged_together_are_those_merged_one_by_one(
    aggregation: Aggregation, events: list[Input], data: st.DataObject
) -> None:
    """A partial merges into many rows at once, some of them new, in any order."""
    keys = [("s", n, n + 1, 0, "") for n in range(3)]
    together, singly = Cells(aggregation), Cells(aggregation)
    where = {one: (data.draw(st.integers(0, 1)), one.partition, data.draw(st.sampled_from(keys))) for one in events}
    for batch, partition in sorted({place[:2] for place in where.values()}):
        touched = sorted({key for *place, key in where.values() if place == [batch, partition]})
        chosen = data.draw(st.permutations(touched))
        groups = [group(aggregation, [e for e in events if where[e] == (batch, partition, key)]) for key in chosen]
        places = together.places(chosen, opened)
        together.merge(places, [g[0] for g in groups], [g[1] for g in groups], partition)
        for key, partial in zip(chosen, groups, strict=True):
            add(singly, key, partial)
    assert content(together) == content(singly)
    for key, row in content(together).items():
        assert row.aggregate == expected(aggregation, [one for one in events if where[one][2] == key])


@given(st.sampled_from(AGGREGATIONS), inputs)
def test_cells_survive_arrow(aggregation: Aggregation, events: list[Input]) -> None:
    cells = Cells(aggregation)
    for number, one in enumerate(events):
        add(cells, ("s\0é", number, number + 1, -1, "[]"), group(aggregation, [one]))
    for one in events:
        add(cells, ("all", 0, 1, 0, ""), group(aggregation, [one]))
    for version, place in enumerate(cells.rows.values()):
        cells.see_version([place], version)
    kept = content(cells)
    assert [row.version for row in kept.values()] == list(range(len(events) + 1))
    again = Cells.from_arrow(aggregation, saved(cells))
    assert content(again) == kept == content(cells)
    for key in list(again.rows):  # and they can go on
        add(again, key, group(aggregation, [Input(0, 10, 10, 1, "z")]), 99)
    assert all(again.inputs[place] == kept[key].inputs + 1 for key, place in again.rows.items())
    assert content(cells) == kept


def saved(cells: Cells) -> pa.Table:
    """A snapshot, written and read."""
    sink = pa.BufferOutputStream()
    table = cells.to_arrow()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return pa.ipc.open_stream(sink.getvalue()).read_all()


SHAPES: list[list[Key]] = [
    [("s", n, n + 1, day, dims) for n in range(3) for day, dims in ((0, '["é"]'), (5, ""))],
    [("s\0", n, n + 1, part) for n in range(3) for part in ("", "=")],
    [(subject, n, n + 1) for n in range(3) for subject in ("", "s")],
]
"""Keys of windows, of billing periods and of entitlement periods, as they end at 1, 2 and 3."""

merges = st.tuples(st.just("merge"), st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True), inputs)
forgets = st.tuples(st.just("forget"), st.integers(0, 3), st.none())
saves = st.tuples(st.sampled_from(["save", "restore"]), st.none(), st.none())


@settings(max_examples=200)
@given(
    st.sampled_from(AGGREGATIONS),
    st.sampled_from(SHAPES),
    st.lists(st.one_of(merges, merges, forgets, saves), min_size=1, max_size=12),
)
def test_a_snapshot_holds_all_rows_whatever_came_before(
    aggregation: Aggregation, keys: list[Key], steps: list[tuple[str, Any, Any]]
) -> None:
    """Keys are encoded once, when first snapshotted; forgetting lays them anew. Neither shows in what is restored."""
    cells = Cells(aggregation)
    model: dict[Key, list[Input]] = {}
    snapshots: list[tuple[pa.Table, dict[Key, Row]]] = []
    for version, (step, what, events) in enumerate([*steps, ("save", None, None)], start=1):
        match step:
            case "merge":
                events = [one._replace(offset=one.offset + 10 * version) for one in events]  # a position has one event
                for key in (keys[n] for n in what):
                    model[key] = model.get(key, []) + events
                    for partition in {one.partition for one in events}:
                        partial = group(aggregation, [one for one in events if one.partition == partition])
                        add(cells, key, partial, version)
            case "forget":
                cells.forget(what)
                model = {key: held for key, held in model.items() if key[2] > what}
            case _ if len(cells):
                again = Cells.from_arrow(aggregation, saved(cells))
                assert content(again) == content(cells)
                assert again.to_arrow().equals(cells.to_arrow())
                snapshots.append((cells.to_arrow(), content(cells)))
                cells = again if step == "restore" else cells
        found = content(cells)
        assert {key: (row.inputs, row.aggregate) for key, row in found.items()} == {
            key: (len(held), expected(aggregation, held)) for key, held in model.items()
        }
    for table, rows in snapshots:
        assert content(Cells.from_arrow(aggregation, table)) == rows, "a snapshot is immutable"


def test_what_was_forgotten_begins_anew() -> None:
    for aggregation in AGGREGATIONS:
        cells = Cells(aggregation)
        old, new = Input(0, 1, 3, 9, "a"), Input(0, 2, 1, 4, "b")
        add(cells, ("s", 0, 10), group(aggregation, [old]), 7)
        add(cells, ("s", 10, 20), group(aggregation, [old]), 7)
        cells.to_arrow()
        cells.forget(10)
        add(cells, ("s", 0, 10), group(aggregation, [new]), 2)
        for found in (cells, Cells.from_arrow(aggregation, cells.to_arrow())):
            rows = content(found)
            assert list(rows) == [("s", 10, 20), ("s", 0, 10)]
            assert rows["s", 0, 10][:2] == (1, expected(aggregation, [new]))
            assert [row.version for row in rows.values()] == [7, 2]
        cells.forget(20)
        assert (len(cells), content(cells)) == (0, {})
        add(cells, ("t", 20, 30), group(aggregation, [new]), 3)
        assert content(Cells.from_arrow(aggregation, cells.to_arrow())) == content(cells)


def test_only_new_keys_are_asked_to_be_open() -> None:
    cells = Cells(Aggregation.COUNT)
    asked: list[Key] = []

    def check(keys: list[Key]) -> None:
        asked.extend(keys)
        if ("c", 0, 1) in keys:
            raise ValueError("closed")

    assert cells.places([("a", 0, 1), ("b", 0, 1)], check) == [0, 1]
    assert cells.places([("b", 0, 1), ("d", 0, 1), ("a", 0, 1)], check) == [1, 2, 0]
    assert asked == [("a", 0, 1), ("b", 0, 1), ("d", 0, 1)]
    with pytest.raises(ValueError, match="closed"):
        cells.places([("a", 0, 1), ("c", 0, 1)], check)
    assert list(cells.rows) == [("a", 0, 1), ("b", 0, 1), ("d", 0, 1)]
    assert cells.find([("b", 0, 1), ("c", 0, 1)]) == [1, None]


def test_the_greatest_catalog_version_is_kept() -> None:
    cells = Cells(Aggregation.COUNT)
    places = cells.places([("a", 0, 1), ("b", 0, 1)], opened)
    assert cells.see_version(places, 2) == [2, 2]
    assert cells.see_version(places[1:], 3) == [3]
    assert cells.see_version(places, 1) == [2, 3]


@given(st.lists(numbers, min_size=1, max_size=9))
def test_an_average_is_rounded_half_to_even(values: list[int]) -> None:
    cells = merged(Aggregation.AVG, [(1, value, 0) for value in values])
    assert quantity(cells) == round(Fraction(sum(values), len(values)))


@pytest.mark.parametrize(
    ("total", "count", "average"),
    [(1, 2, 0), (3, 2, 2), (5, 2, 2), (-1, 2, 0), (-3, 2, -2), (-5, 2, -2), (2, 3, 1), (-2, 3, -1), (7, 4, 2)],
)
def test_averages(total: int, count: int, average: int) -> None:
    cells = merged(Aggregation.AVG, [(count, total, 0)])
    assert mean(total, count) == quantity(cells) == average
    assert aggregate_of(cells) == total


@given(st.sampled_from([a for a in AGGREGATIONS if a is not Aggregation.AVG]), inputs)
def test_any_other_quantity_is_the_aggregate(aggregation: Aggregation, events: list[Input]) -> None:
    cells = merged(aggregation, [group(aggregation, [one]) for one in events])
    aggregate = aggregate_of(cells)
    assert quantity(cells) == (aggregate[4] if aggregation is Aggregation.LATEST else aggregate)


def test_of_latest_values_at_one_time_the_greatest_position_wins() -> None:
    newest = [Input(0, 9, 5, 1, ""), Input(1, 3, 5, 2, ""), Input(1, 4, 5, 3, ""), Input(2, 0, 4, 4, "")]
    for events in (newest, newest[::-1]):
        cells = merged(Aggregation.LATEST, [group(Aggregation.LATEST, [one]) for one in events])
        assert aggregate_of(cells) == (5, 1, 4, 0, 3)


def test_unique_tells_which_members_are_new() -> None:
    cells = Cells(Aggregation.UNIQUE)

    def merge(count: int, members: list[str], partition: int) -> list[str]:
        places = cells.places([KEY], opened)
        (new,) = cells.new_members(places, [members])
        cells.merge(places, [count], [members], partition)
        return new

    assert sorted(merge(3, ["a", "b"], 0)) == ["a", "b"]
    assert merge(3, ["b", "", "a"], 1) == [""]
    assert merge(3, ["a"], 1) == []


def test_forgetting_is_by_the_end() -> None:
    cells = Cells(Aggregation.COUNT)
    cells.places([("a", 0, 10, 0, ""), ("b", 5, 11), ("c", 0, 9, "part")], opened)
    cells.forget(10)
    assert list(cells.rows) == [("b", 5, 11)]


@given(
    st.lists(st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**127), 2**127 - 1))), st.sampled_from([16, 32])
)
def test_integers_become_bytes_of_their_width(values: list[int], width: int) -> None:
    written = bytes(little_endian(values, width))
    pieces = [written[at : at + width] for at in range(0, len(written), width)]
    assert [int.from_bytes(piece, "little", signed=True) for piece in pieces] == values
