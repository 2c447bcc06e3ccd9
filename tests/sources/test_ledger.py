"""The ledger gives back exactly what was counted, page by page, and then the log goes on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from clickhouse_connect.driver.client import Client
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.values import Batch, Events, RawBatch, Rejects
from engines.clickhouse import EmbeddedClickHouse
from sinks.migrate import migrate
from sinks.rows import events_table
from sources.ledger import Counted, Ledger, LedgerSource, LedgerState, Row

TOPIC = "usage"
ROWS = [
    *(Row(n, 0, 1_000 + n, {}, b'{"n":%d}' % n) for n in range(3)),
    *(Row(5, n, 2_000, {}, b'{"element":%d}' % n) for n in range(20)),
    Row(6, 0, 1_500, {"ce": "1", "datacontenttype": "x\u00e9"}, "\u00e9\u2028\0".encode()),
    Row(9, 2, 3_000, {}, b"x" * 500),
]
END = 10


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedClickHouse]:
    """Holds the rows, written twice, and others before, behind and beside them."""
    with EmbeddedClickHouse(tmp_path_factory.mktemp("ledger") / "clickhouse") as engine:
        with engine.client() as admin:
            admin.command("CREATE DATABASE ledger")
        with engine.client("ledger") as client:
            migrate(client)
            client.command("SYSTEM STOP MERGES events")
            for partition, rows in ((0, ROWS), (1, ROWS), (1, [Row(END, 0, 9_000, {}, b"later")]), (1, ROWS)):
                insert(client, partition, rows)
        yield engine


def insert(client: Client, partition: int, rows: list[Row]) -> None:
    count = len(rows)
    offsets, elements, log_times, attributes, payloads = map(list, zip(*rows, strict=True))
    texts = ["a"] * count
    events = Events(
        offsets, elements, log_times, log_times, texts, texts, texts, texts, payloads, attributes,
        [None] * count, [1] * count, [1] * count,
    )  # fmt: skip
    raw = RawBatch(TOPIC, partition, 0, END, offsets, elements, payloads, count, count)
    client.insert_arrow("events", events_table(Batch(raw, events, Rejects())))


@settings(max_examples=40)
@given(st.integers(1, 40), st.integers(1, 2_000), st.integers(0, END))
def test_pages_of_any_size_give_every_event_once_and_whole_messages(
    engine: EmbeddedClickHouse, rows_max: int, bytes_max: int, start: int
) -> None:
    found: list[Row] = []
    with engine.client("ledger") as client:
        ledger = Ledger(client, TOPIC, 1, rows_max=rows_max, bytes_max=bytes_max)
        at = start
        while page := ledger.page(at, END):
            assert page[0].offset >= at
            found += page
            at = page[-1].offset + 1
    assert found == [row for row in ROWS if row.offset >= start]


class _Log(FixedPartitionedSource[RawBatch, Any]):
    """A log whose partitions say with what they were opened."""

    def list_parts(self) -> list[str]:
        return ["1", "2"]

    def build_part(self, step_id: str, for_part: str, resume_state: Any) -> _Opened:
        return _Opened(resume_state)


class _Opened(StatefulSourcePartition[RawBatch, Any]):
    def __init__(self, state: Any) -> None:
        self.state = state

    def next_batch(self) -> list[RawBatch]:
        return []

    def snapshot(self) -> Any:
        return self.state


@pytest.mark.parametrize("monotone", [True, False])
def test_behind_the_ledger_the_log_goes_on_where_it_was_counted(engine: EmbeddedClickHouse, monotone: bool) -> None:
    counted = Counted(END, 7, 26, 5_000)
    stop = threading.Event()
    source = LedgerSource(
        _Log(),
        {1: counted, 3: counted},
        lambda partition: ("at", partition),
        lambda partition: Ledger(engine.client("ledger"), TOPIC, partition, rows_max=4),
        topic=TOPIC,
        monotone=monotone,
        stop=stop,
    )
    assert source.list_parts() == ["1", "2", "3"]
    assert source.build_part("", "2", None).snapshot() is None
    assert source.build_part("", "1", ("log's",)).snapshot() == ("log's",)
    part: Any = source.build_part("", "1", LedgerState(2))
    batches: list[RawBatch] = []
    while isinstance(part.snapshot(), LedgerState):
        assert part.snapshot().next_offset == (batches[-1].next_offset if batches else 2)
        batches += part.next_batch()
    assert part.snapshot() == ("at", 1)
    assert all(batch.settled for batch in batches)
    places = [place for batch in batches for place in zip(batch.offsets, batch.indexes, batch.payloads, strict=True)]
    assert places == [(row.offset, row.element, row.payload) for row in ROWS[2:]]
    spans = [(batch.start_offset, batch.next_offset) for batch in batches]
    assert [start for start, _ in spans[1:]] == [end for _, end in spans[:-1]]
    assert (spans[0][0], spans[-1][1]) == (2, END)
    if monotone:
        log_times = [us for batch in batches for us in batch.log_times_us or []]
        assert log_times == [row.log_time_us for row in ROWS[2:]]
        assert [batch.log_time_us for batch in batches][-1] == counted.log_time_us
        told = [batch.log_time_us or 0 for batch in batches]
        assert told == sorted(told)
    else:
        assert {(batch.log_times_us, batch.log_time_us) for batch in batches} == {(None, None)}
    attributes = {
        offset: found
        for batch in batches
        for offset, found in zip(batch.offsets, batch.attributes or [None] * len(batch.offsets), strict=True)
    }
    assert attributes[6] == ROWS[-2].attributes
    assert attributes[5] is attributes[9] is None
    assert part.next_batch() == []
    stop.set()
    with pytest.raises(StopIteration):
        part.next_batch()
    assert (source.events_rebuilt(), source.share_rebuilt()) == (len(ROWS) - 2, 1.0)


def _polled(part: Any) -> list[RawBatch]:
    """What a poll gives; nothing once there is no more."""
    try:
        return list(part.next_batch())
    except StopIteration:
        return []


def test_a_file_that_is_gone_is_rebuilt_and_ends(engine: EmbeddedClickHouse, tmp_path: Path) -> None:
    source = LedgerSource(
        _Log(),
        {0: Counted(END, 7, 26, 0)},
        lambda partition: pytest.fail("there is no file"),
        lambda partition: Ledger(engine.client("ledger"), TOPIC, partition, rows_max=4),
        topic=TOPIC,
        monotone=False,
        stop=threading.Event(),
    )
    part: Any = source.build_part("", "0", None)
    found = sum(len(batch.payloads) for _ in ROWS for batch in _polled(part))
    assert found == len(ROWS)
    assert part.snapshot() == LedgerState(END)
