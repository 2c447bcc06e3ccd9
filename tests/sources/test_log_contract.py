"""What the source gives of a log, held to the log in memory and to Kafka."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from typing import Any, Protocol

import pytest
from kafka import KafkaProducer

from domain.values import HOUR_US, MINUTE_US
from sources.kafka import IDLE_SLACK_US, KafkaState
from tests.fakes.log import LogServer
from tests.services.kafka import Kafka
from tests.sources.kafka_scenes import LOG_APPEND_TIME, SECONDS_MAX, Read, Scene, check_batch, produce


class Reading(Protocol):
    """A source that is polled by hand."""

    @property
    def read(self) -> Read: ...
    @property
    def stop(self) -> threading.Event: ...
    def poll(self) -> None: ...
    def until(self, done: Callable[[Read], object]) -> Read: ...


class Log(Protocol):
    """A topic of two partitions."""

    def append(self, values: Sequence[bytes | None], partition: int = 0, headers: Any = ()) -> None: ...
    def transact(self, values: Sequence[bytes], partition: int = 0) -> None: ...
    def end(self, commit: bool, partition: int = 0) -> None: ...
    def reading(self, states: Mapping[int, KafkaState] | None = None) -> AbstractContextManager[Reading]: ...
    def now_us(self) -> int: ...


class FakeLog:
    def __init__(self) -> None:
        self.server = LogServer("usage", self.now_us, [])
        self.server.add_partition()
        self.server.add_partition()

    def now_us(self) -> int:
        return time.time_ns() // 1000

    def append(self, values: Sequence[bytes | None], partition: int = 0, headers: Any = ()) -> None:
        for value in values:
            self.server.append(partition, value, headers)

    def transact(self, values: Sequence[bytes], partition: int = 0) -> None:
        self.server.transact(partition, values)

    def end(self, commit: bool, partition: int = 0) -> None:
        self.server.end(partition, commit=commit)

    def reading(self, states: Mapping[int, KafkaState] | None = None) -> FakeReading:
        return FakeReading(self.server, states or {})


class FakeReading:
    def __init__(self, server: LogServer, states: Mapping[int, KafkaState]) -> None:
        self.stop = threading.Event()
        source = server.source(rows_max=10, stop=self.stop)
        self.parts = {int(part): source.build_part("s", part, states.get(int(part))) for part in source.list_parts()}
        self.read = Read()

    def __enter__(self) -> FakeReading:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def poll(self) -> None:
        for partition, part in self.parts.items():
            for batch in part.next_batch():
                check_batch(batch, self.read.batches.get(partition, []))
                self.read.batches.setdefault(partition, []).append(batch)
            self.read.states[partition] = part.snapshot()

    def until(self, done: Callable[[Read], object]) -> Read:
        for _ in range(1000):
            if done(self.read):
                return self.read
            self.poll()
        raise AssertionError(f"not in 1000 polls; read so far: {self.read.states}")


class KafkaLog:
    def __init__(self, kafka: Kafka, name: str, opened: ExitStack) -> None:
        self.kafka, self.name = kafka, name
        kafka.create_topic(name, 2, **LOG_APPEND_TIME)
        self._transactional: Any = opened.enter_context(
            closing(KafkaProducer(bootstrap_servers=kafka.bootstrap, acks="all", transactional_id=f"tx-{name}"))
        )
        self._began = False

    def now_us(self) -> int:
        return time.time_ns() // 1000

    def append(self, values: Sequence[bytes | None], partition: int = 0, headers: Any = ()) -> None:
        produce(self.kafka, self.name, values, partition, key=b"subject", headers=list(headers))

    def transact(self, values: Sequence[bytes], partition: int = 0) -> None:
        if not self._began:
            self._transactional.init_transactions()
            self._began = True
        self._transactional.begin_transaction()
        for future in [self._transactional.send(self.name, value, partition=partition) for value in values]:
            future.get(timeout=SECONDS_MAX)

    def end(self, commit: bool, partition: int = 0) -> None:
        self._transactional.commit_transaction() if commit else self._transactional.abort_transaction()

    def reading(self, states: Mapping[int, KafkaState] | None = None) -> Scene:
        return Scene(self.kafka, self.name, states, rows_max=10)


@pytest.fixture(params=["fake", "kafka"])
def log(request: pytest.FixtureRequest) -> Iterator[Log]:
    if request.param == "fake":
        yield FakeLog()
        return
    with ExitStack() as opened:
        number = abs(hash(request.node.nodeid)) % 10**12
        yield KafkaLog(request.getfixturevalue("kafka"), f"log-contract-{number}", opened)


def numbered(*span: int) -> list[bytes]:
    return [b"%d" % number for number in range(*span)]


def at(offset: int, partition: int = 0) -> Callable[[Read], bool]:
    """Whether a partition is read up to an offset."""
    return lambda read: partition in read.states and read.states[partition].next_offset >= offset


def test_every_message_once_in_order_in_batches_of_a_bounded_size(log: Log) -> None:
    log.append(numbered(25))
    log.append(numbered(7), 1)
    with log.reading() as reading:
        read = reading.until(lambda read: at(25)(read) and at(7, 1)(read))
    assert (read.payloads(0), read.payloads(1)) == (numbered(25), numbered(7))
    assert read.offsets(0) == list(range(25))
    assert max(len(batch.payloads) for batch in read.batches[0]) <= 10
    assert read.states[0][1:4] == (25, 25, 25)


def test_a_snapshot_goes_on_where_it_was_taken(log: Log) -> None:
    log.append(numbered(25))
    with log.reading() as reading:
        first = reading.until(at(10))
    log.append(numbered(25, 30))
    with log.reading(first.states) as reading:
        rest = reading.until(at(30))
    assert first.payloads() + rest.payloads() == numbered(30)
    assert rest.batches[0][0].start_offset == first.states[0].next_offset
    assert rest.states[0][1:4] == (30, 30, 30)


def test_log_times_are_the_brokers_and_never_fall(log: Log) -> None:
    before = log.now_us()
    log.append(numbered(5))
    with log.reading() as reading:
        read = reading.until(at(5))
    times = [us for batch in read.batches[0] for us in batch.log_times_us or []]
    assert times == sorted(times) and read.states[0].log_time_us >= times[-1]
    assert before - MINUTE_US < times[0] and times[-1] < log.now_us() + MINUTE_US


def test_what_a_transaction_took_back_is_a_gap_that_batches_cover(log: Log) -> None:
    log.append(numbered(2))
    log.transact(numbered(100, 103))
    log.end(commit=False)
    log.transact(numbered(2, 4))
    log.end(commit=True)
    log.append(numbered(4, 5))
    with log.reading() as reading:
        read = reading.until(at(10))
    assert read.payloads() == numbered(5)
    assert read.offsets() == [0, 1, 6, 7, 9]
    assert read.states[0][1:4] == (10, 5, 5)


def test_an_open_transaction_hides_what_comes_after_it(log: Log) -> None:
    log.append(numbered(2))
    log.transact(numbered(2, 4))
    log.append(numbered(4, 6))
    with log.reading() as reading:
        reading.until(at(2))
        for _ in range(20):
            reading.poll()
        assert reading.read.payloads() == numbered(2)
        log.end(commit=True)
        read = reading.until(at(7))
    assert read.payloads() == numbered(6)


def test_an_idle_partition_says_how_far_its_log_time_is(log: Log) -> None:
    """By the newest message of the topic: a partition of an empty topic says nothing."""
    log.append(numbered(1))
    begun = log.now_us()
    with log.reading() as reading:
        read = reading.until(lambda read: read.batches.get(1))
    batch = read.batches[1][0]
    assert (batch.start_offset, batch.next_offset, batch.payloads) == (0, 0, [])
    assert begun - MINUTE_US < (batch.log_time_us or 0) + IDLE_SLACK_US <= log.now_us()


def test_a_partition_with_an_open_transaction_is_not_idle(log: Log) -> None:
    log.transact(numbered(1), 1)
    with log.reading() as reading:
        reading.until(lambda read: read.batches.get(0))
        for _ in range(20):
            reading.poll()
        assert 1 not in reading.read.batches
        log.end(commit=False, partition=1)
        read = reading.until(at(2, 1))
    assert read.payloads(1) == []


def test_batches_and_binary_mode_and_messages_without_a_value(log: Log) -> None:
    log.append([b"[1, 2]", None])
    log.append([b"{}"], headers=[("content-type", b"application/json"), ("ce_id", b"7")])
    with log.reading() as reading:
        read = reading.until(at(3))
    assert read.payloads() == [b"1", b"2", b"", b"{}"]
    assert read.attributes() == [None, None, None, {"id": "7", "datacontenttype": "application/json"}]
    assert read.states[0][1:4] == (3, 3, 4)


def test_a_set_stop_ends_a_partition_at_its_next_poll(log: Log) -> None:
    log.append(numbered(1))
    with log.reading() as reading:
        reading.stop.set()
        with pytest.raises(StopIteration):
            reading.poll()


def test_the_fakes_clock_may_turn_back_its_log_times_do_not() -> None:
    now = [HOUR_US]
    server = LogServer("usage", lambda: now[0])
    server.add_partition()
    server.append(0, b"1")
    now[0] -= MINUTE_US
    server.append(0, b"2")
    assert [message.log_time_us for message in server.messages()] == [HOUR_US, HOUR_US]
