"""The sink: what it keeps, when it writes, and what it does when ClickHouse does not take it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError, DataError, OperationalError

from domain.ports import TallyError
from domain.quota import QuotaState, SignalType
from sinks import clickhouse
from sinks.clickhouse import ClickHouseSink, Insertion, Untold
from tests.sinks.samples import (
    TOPIC,
    QuotaRow,
    RatedRow,
    UsageRow,
    batch,
    latest,
    member,
    quota,
    quotas_table,
    rated,
    rated_table,
    signal,
    updated,
    usage,
    usage_table,
    watched,
)

TIMEOUT = OperationalError("the connection was refused")
TOO_MANY_PARTS = DatabaseError("Code: 252. Too many parts", code=252)
DISK_FULL = DatabaseError("Code: 243. Cannot reserve 1.00 MiB, not enough space", code=243)
NO_SUCH_COLUMN = DatabaseError("Code: 16. No such column", code=16)
BROKEN = (NO_SUCH_COLUMN, DataError("does not fit"), RuntimeError("broken"))
ROUNDS_SECONDS_MAX = 10.0
STATES = list(QuotaState)


class FakeClient:
    """Takes inserts; fails as it is told, and waits where it is told."""

    def __init__(self) -> None:
        self.inserted: list[tuple[str, pa.Table]] = []
        self.attempts: list[str] = []
        self.failures: list[Exception] = []
        """One for each attempt to come; then they succeed."""
        self.always: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.held: set[str] = set()
        """Tables whose inserts wait until they are taken out of here."""
        self.closed = False

    def insert_arrow(self, name: str, table: pa.Table, settings: dict[str, Any]) -> None:
        assert settings["insert_deduplicate"] == 0
        self.attempts.append(name)
        assert self.gate.wait(ROUNDS_SECONDS_MAX)
        eventually(lambda: name not in self.held)
        if self.always is not None:
            raise self.always
        if self.failures:
            raise self.failures.pop(0)
        self.inserted.append((name, table))

    def close(self) -> None:
        self.closed = True

    def names(self) -> list[str]:
        return [name for name, _ in self.inserted]

    def rows(self, table: str) -> list[dict[str, Any]]:
        return [row for name, found in self.inserted if name == table for row in found.to_pylist()]


@pytest.fixture
def fake() -> FakeClient:
    return FakeClient()


@contextmanager
def partition(client: Any, **changes: Any) -> Iterator[Any]:
    """One partition of a sink, which writes at barriers only unless told otherwise; ended whatever happens."""
    with partitions(client, **changes) as (first, second):
        first.close()
        yield second


@contextmanager
def partitions(client: Any, **changes: Any) -> Iterator[Any]:
    options: dict[str, Any] = {"rows_max": 10**9, "seconds": 3600, "retry_seconds": 0.2} | changes
    sink = ClickHouseSink(lambda: cast(Client, client), topic=TOPIC, **options)
    try:
        yield [sink.build_part("step", name, None) for name in sink.list_parts()[:2]]
    finally:
        sink.close()


def eventually(reached: Callable[[], bool]) -> None:
    give_up = time.monotonic() + ROUNDS_SECONDS_MAX
    while not reached():
        assert time.monotonic() < give_up
        time.sleep(0.001)


EVERYTHING = (
    batch(payloads=(b"a",), rejected=1),
    updated(usage(), member(), rated()),
    watched(quota(), signal()),
)


def test_a_barrier_writes_every_table_and_progress_last(fake: FakeClient) -> None:
    with partition(fake) as part:
        part.write_batch(list(EVERYTHING))
        assert fake.names() == []
        part.snapshot()
        assert fake.names() == [
            "events", "rejects", "usage_members", "usage", "rated_usage", "quotas", "signals", "progress",
        ]  # fmt: skip


def test_a_barrier_returns_once_everything_is_written(fake: FakeClient) -> None:
    with partition(fake) as part:
        fake.gate.clear()
        part.write_batch(list(EVERYTHING))
        barrier = threading.Thread(target=part.snapshot)
        barrier.start()
        barrier.join(0.05)
        assert barrier.is_alive()
        fake.gate.set()
        barrier.join(ROUNDS_SECONDS_MAX)
        assert not barrier.is_alive()
        assert len(fake.inserted) == 8


def test_nothing_is_left_after_a_barrier(fake: FakeClient) -> None:
    with partition(fake) as part:
        part.write_batch(list(EVERYTHING))
        part.snapshot()
        written = len(fake.inserted)
        part.snapshot()
        part.close()
        assert len(fake.inserted) == written


@pytest.mark.parametrize(
    ("item", "tables"),
    [
        (batch(payloads=()), ["progress"]),
        (batch(payloads=(), rejected=1), ["rejects", "progress"]),
        (updated(usage()), ["usage"]),
        (updated(member()), ["usage_members"]),
        (updated(rated()), ["rated_usage"]),
        (watched(quota()), ["quotas"]),
        (watched(signal()), ["signals"]),
        (updated(), []),
        (watched(), []),
    ],
)
def test_whatever_came_alone_is_written_at_the_barrier(fake: FakeClient, item: Any, tables: list[str]) -> None:
    """A signal that crossed an amount comes without a quota, maybe just after the rest was written."""
    with partition(fake) as part:
        part.write_batch([item])
        part.snapshot()
        assert fake.names() == tables


def test_closing_writes_nothing(fake: FakeClient) -> None:
    """At the end of the input there was a barrier before; after an error nothing more may be written."""
    with partition(fake) as part:
        part.write_batch(list(EVERYTHING))
        part.close()
        assert fake.names() == []


def test_of_a_key_only_the_newest_row_is_written(fake: FakeClient) -> None:
    with partition(fake) as part:
        for n in range(1, 4):
            part.write_batch([batch(start=n, messages=n), updated(usage(n, n), rated(n, n, n)), watched(quota(n, n))])
        part.snapshot()
        assert [row["value"] for row in fake.rows("usage")] == [3]
        assert [row["amount"] for row in fake.rows("rated_usage")] == [3]
        assert [row["used"] for row in fake.rows("quotas")] == [3]
        assert [row["next_offset"] for row in fake.rows("progress")] == [4]
        assert [row["log_offset"] for row in fake.rows("events")] == [1, 2, 3]


def test_rows_keep_their_columns_whatever_rows_they_came_with(fake: FakeClient) -> None:
    """Two meters, prices and limits; the later updates have other rows in another order."""

    def rows_of(found: dict[str, int]) -> tuple[list[UsageRow], list[RatedRow], list[QuotaRow]]:
        ones = found.items()
        windows = [usage(n, 10 + n, subject=s, catalog_version=n) for s, n in ones]
        places = [latest(n, inputs=20 + n, subject=s, catalog_version=n, latest=(n, n, n, n)) for s, n in ones]
        prices = [rated(n, 3 * n, 10 + n, subject=s, price=p, tiers=((n, n),) * n) for p in "pq" for s, n in ones]
        limits = [quota(n, 10 + n, subject=s, feature=f, state=STATES[n % 3]) for f in "fg" for s, n in ones]
        return [*windows, *places], prices, limits

    with partition(fake) as part:
        for found in ({"a": 1, "b": 2, "c": 3}, {"c": 6, "d": 7, "a": 4}, {"b": 8}):
            windows, prices, limits = rows_of(found)
            part.write_batch([updated(*windows, *prices), watched(*limits)])
        part.snapshot()
    windows, prices, limits = rows_of({"a": 4, "b": 8, "c": 6, "d": 7})
    for name, wanted in (
        ("usage", usage_table(*windows)),
        ("rated_usage", rated_table(*prices)),
        ("quotas", quotas_table(*limits)),
    ):
        assert sorted(fake.rows(name), key=str) == sorted(wanted.to_pylist(), key=str)


def test_other_keys_are_other_rows(fake: FakeClient) -> None:
    hour = usage(labels=("x",), dimensions_key='["x"]')
    windows = [
        hour, hour._replace(meter="m"), hour._replace(subject="s"), hour._replace(window_start_us=1),
        hour._replace(window_end_us=1), hour._replace(dimensions_key='["y"]'), hour._replace(booked_on_day=1),
    ]  # fmt: skip
    prices = [
        rated(), rated(subject="s"), rated(plan="p"), rated(price="p"), rated(period_start_us=1),
        rated(period_end_us=1),
    ]  # fmt: skip
    limits = [
        quota(), quota(subject="s"), quota(plan="p"), quota(feature="f"), quota(period_start_us=1),
        quota(period_end_us=1),
    ]  # fmt: skip
    with partition(fake) as part:
        part.write_batch([updated(*windows, *prices, member("a"), member("b"), member("a")), watched(*limits)])
        part.write_batch([batch(partition=0), batch(partition=1)])
        part.snapshot()
        counted = {name: len(fake.rows(name)) for name in ("usage", "rated_usage", "quotas", "usage_members")}
        assert counted == {"usage": 7, "rated_usage": 6, "quotas": 6, "usage_members": 2}
        assert [row["log_partition"] for row in fake.rows("progress")] == [0, 1]


def test_of_a_signal_the_first_is_kept(fake: FakeClient) -> None:
    """A repeat says the same with a later clock."""
    spend = signal("s", SignalType.SPEND_REACHED, at_us=1)
    with partition(fake) as part:
        part.write_batch([watched(spend, signal("q")), watched(spend._replace(at_us=2))])
        part.snapshot()
        assert [(row["id"], row["at"].microsecond) for row in fake.rows("signals")] == [("s", 1), ("q", 0)]


def test_many_rows_are_written_without_a_barrier(fake: FakeClient) -> None:
    with partition(fake, rows_max=10) as part:
        for n in range(9):
            part.write_batch([updated(usage(n, n + 1))])
        time.sleep(0.01)
        assert fake.attempts == []
        part.write_batch([updated(usage(9, 10))])
        eventually(lambda: fake.names() == ["usage"])
        assert [row["value"] for row in fake.rows("usage")] == [9]


@pytest.mark.parametrize("item", [lambda n: updated(*(usage(subject=str(i)) for i in range(n))),
                                  lambda n: updated(*(rated(subject=str(i)) for i in range(n))),
                                  lambda n: watched(*(quota(subject=str(i)) for i in range(n))),
                                  lambda n: updated(*map(member, map(str, range(n)))),
                                  lambda n: watched(*map(signal, map(str, range(n))))])  # fmt: skip
def test_the_rows_of_an_update_are_counted(fake: FakeClient, item: Callable[[int], Any]) -> None:
    with partition(fake, rows_max=10) as part:
        part.write_batch([item(9)])
        time.sleep(0.01)
        assert fake.attempts == []
        part.write_batch([item(1)])
        eventually(lambda: [len(table) for _, table in fake.inserted] == [9])


def test_rows_that_have_waited_are_written_with_the_next(fake: FakeClient) -> None:
    with partition(fake, seconds=0.05) as part:
        part.write_batch([updated(usage(1))])
        assert fake.attempts == []
        time.sleep(0.06)
        part.write_batch([updated(usage(2))])
        eventually(lambda: [row["value"] for row in fake.rows("usage")] == [2])


def test_a_slow_server_holds_the_flow_back(fake: FakeClient) -> None:
    """One buffer is being written, one waits; the third has to."""
    with partition(fake, rows_max=1) as part:
        fake.gate.clear()
        part.write_batch([updated(usage())])
        eventually(lambda: fake.attempts == ["usage"])
        part.write_batch([updated(usage())])
        third = threading.Thread(target=part.write_batch, args=([updated(usage())],))
        third.start()
        third.join(0.05)
        assert third.is_alive()
        fake.gate.set()
        third.join(ROUNDS_SECONDS_MAX)
        part.snapshot()
        assert fake.names() == ["usage"] * 3


@pytest.mark.parametrize("error", [TIMEOUT, TOO_MANY_PARTS, DISK_FULL])
def test_a_passing_failure_is_tried_again(fake: FakeClient, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(clickhouse, "_PAUSE_SECONDS_MIN", 0.001)
    fake.failures = [error, error, error]
    with partition(fake, retry_seconds=5) as part:
        part.write_batch([updated(usage(), rated())])
        part.snapshot()
        assert fake.attempts == ["usage"] * 4 + ["rated_usage"]
        assert fake.names() == ["usage", "rated_usage"]


def test_the_pauses_grow_and_the_bound_holds(fake: FakeClient) -> None:
    now = [0.0]
    pauses: list[float] = []

    def rest(seconds: float) -> bool:
        pauses.append(seconds)
        now[0] += seconds
        return False

    fake.always = TIMEOUT
    insertion = Insertion(cast(Client, fake), 30, Untold(), rest=rest, monotonic=lambda: now[0])
    with pytest.raises(TallyError, match=r"did not take 1 rows of usage in 30 s: the connection was refused. Nothi"):
        insertion.insert("usage", pa.table({"meter": ["api_bytes"]}))
    assert [round(pause, 3) for pause in pauses] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5, 5]
    assert len(fake.attempts) == len(pauses) + 1
    assert now[0] <= 30


@pytest.mark.parametrize("error", BROKEN)
def test_any_other_failure_is_raised_at_once(fake: FakeClient, error: Exception) -> None:
    fake.always = error
    with partition(fake, retry_seconds=30) as part:
        part.write_batch([updated(usage(), rated())])
        with pytest.raises((TallyError, RuntimeError), match=str(error)):
            part.snapshot()
    assert fake.attempts == ["usage"]


def test_a_failure_in_the_background_reaches_the_flow(fake: FakeClient) -> None:
    fake.always = NO_SUCH_COLUMN
    with partition(fake, rows_max=1) as part:
        part.write_batch([updated(usage())])
        eventually(lambda: fake.attempts == ["usage"])

        def fails() -> bool:
            try:
                part.write_batch([updated(usage())])
            except TallyError as error:
                return "ClickHouse refused 1 rows of usage: Code: 16" in str(error)
            return False

        eventually(fails)
        for call in (part.snapshot, lambda: part.write_batch([updated(usage())])):
            with pytest.raises(TallyError, match="refused"):
                call()
        part.close()
    assert fake.attempts == ["usage"]


def test_nothing_is_written_after_a_failure(fake: FakeClient) -> None:
    """Not even what comes after it in the same buffer: progress would claim what is not there."""
    fake.failures = [NO_SUCH_COLUMN]
    with partition(fake) as part:
        part.write_batch(list(EVERYTHING))
        with pytest.raises(TallyError):
            part.snapshot()
        part.write_batch([updated(usage())])
        with pytest.raises(TallyError):
            part.snapshot()
    assert fake.attempts == ["events"]
    assert fake.inserted == []


@pytest.mark.parametrize("error", [None, TIMEOUT, NO_SUCH_COLUMN])
def test_closing_ends_the_thread_and_the_client_and_never_raises(fake: FakeClient, error: Exception | None) -> None:
    """Bytewax closes the parts while an error unwinds too: another one would abort the process."""
    before = threading.active_count()
    fake.always = error
    with partition(fake) as part:
        part.write_batch([updated(usage())])
        if error is not None:
            with pytest.raises(TallyError):
                part.snapshot()
        part.close()
        assert fake.closed
        assert threading.active_count() == before


def test_a_flow_that_failed_leaves_no_thread_and_writes_no_more(fake: FakeClient) -> None:
    """Bytewax does not always close the parts of a flow that fails; one may be trying again just then."""
    before = threading.active_count()
    fake.always = TIMEOUT
    with partition(fake, rows_max=1, retry_seconds=3600) as part:
        part.write_batch([updated(usage())])
        eventually(lambda: fake.attempts != [])
        part.write_batch([updated(usage())])
        started = time.monotonic()
    assert time.monotonic() - started < ROUNDS_SECONDS_MAX
    assert fake.inserted == []
    assert fake.closed
    assert threading.active_count() == before


def test_partitions_of_a_process_write_together(fake: FakeClient) -> None:
    """Whichever has its barrier first writes for all; the other has nothing left to do."""
    with partitions(fake) as (first, second):
        first.write_batch([updated(usage(1, subject="a"))])
        second.write_batch([updated(usage(2, subject="b")), watched(signal())])
        first.snapshot()
        assert fake.names() == ["usage", "signals"]
        assert len(fake.rows("usage")) == 2
        second.snapshot()
        assert len(fake.inserted) == 2


def test_a_partition_that_ends_leaves_the_others_their_writer(fake: FakeClient) -> None:
    """At the end of the input workers end one after the other."""
    with partitions(fake) as (first, second):
        first.write_batch([updated(usage())])
        first.snapshot()
        first.close()
        assert not fake.closed
        second.write_batch([watched(signal())])
        second.snapshot()
        assert fake.names() == ["usage", "signals"]
        second.close()
        assert fake.closed


def test_a_barrier_does_not_wait_for_what_comes_after_it(fake: FakeClient) -> None:
    """Another worker that is ahead must not hold an epoch open."""
    with partitions(fake, rows_max=1) as (first, second):
        fake.gate.clear()
        first.write_batch([updated(usage())])
        eventually(lambda: fake.attempts == ["usage"])
        barrier = threading.Thread(target=first.snapshot)
        barrier.start()
        barrier.join(0.05)
        assert barrier.is_alive()
        second.write_batch([watched(signal())])
        fake.held.add("signals")
        fake.gate.set()
        barrier.join(ROUNDS_SECONDS_MAX)
        assert not barrier.is_alive()
        assert fake.names() == ["usage"]
        fake.held.clear()


def test_several_threads_lose_nothing(fake: FakeClient) -> None:
    with partitions(fake, rows_max=7) as parts:

        def work(part: Any, worker: int) -> None:
            for n in range(50):
                part.write_batch([updated(usage(n, n + 1, subject=f"{worker}-{n}"))])
                if n % 10 == 9:
                    part.snapshot()
                    seen = {row["subject"] for row in fake.rows("usage")}
                    assert seen >= {f"{worker}-{i}" for i in range(n + 1)}
            done.append(worker)

        done: list[int] = []
        threads = [threading.Thread(target=work, args=(part, number)) for number, part in enumerate(parts)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(ROUNDS_SECONDS_MAX)
        assert sorted(done) == [0, 1]
        assert len(fake.rows("usage")) == 100


def test_the_rows_stand_in_clickhouse_after_the_barrier(client: Client, clients: Callable[[], Client]) -> None:
    with partition(clients()) as part:
        part.write_batch(list(EVERYTHING))
        part.write_batch([batch(start=2, partition=9), updated(latest(subject="b"), usage(5, 2)), watched(quota(7, 2))])
        part.snapshot()
        counts = {
            name: client.query(f"SELECT count() FROM {name} FINAL").result_rows[0][0]
            for name in ("events", "rejects", "usage", "usage_members", "rated_usage", "quotas", "signals", "progress")
        }
        assert counts == {
            "events": 2, "rejects": 1, "usage": 2, "usage_members": 1, "rated_usage": 1, "quotas": 1, "signals": 1,
            "progress": 2,
        }  # fmt: skip
        # The same again, as after a crash.
        part.write_batch(list(EVERYTHING))
        part.snapshot()
        assert client.query("SELECT count(), sum(value) FROM usage FINAL").result_rows == [(2, 6)]
        part.close()


def test_a_table_that_is_missing_is_no_passing_failure(empty: Client) -> None:
    with partition(empty, retry_seconds=3600) as part:
        part.write_batch([updated(usage())])
        with pytest.raises(TallyError, match=r"ClickHouse refused 1 rows of usage: .*UNKNOWN_TABLE"):
            part.snapshot()
