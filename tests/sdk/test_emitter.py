"""The emitter against a real broker: what arrives, what is reported, and that the caller never waits."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import date
from typing import Any

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient
from tallyflow import BufferFull, EmitterClosed, Undelivered, UsageEmitter

from tests.services.kafka import Kafka

_PROMPT_SECONDS = 1.0
"""Far more than a call that does no I/O takes on a busy machine, far less than one that waits for a broker."""


@pytest.fixture
def topic(kafka: Kafka, request: pytest.FixtureRequest) -> str:
    name = f"sdk.{request.node.name.partition('[')[0]}"[:200]
    kafka.create_topic(name, 4)
    return name


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a broker that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def read(kafka: Kafka, topic: str) -> list[Any]:
    """Every record that a topic has."""
    with KafkaConsumer(bootstrap_servers=kafka.bootstrap, enable_auto_commit=False) as consumer:
        places = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic) or ()]
        consumer.assign(places)
        consumer.seek_to_beginning(*places)
        ends = consumer.end_offsets(places)
        found: list[Any] = []
        while any(consumer.position(place) < ends[place] for place in places):
            for records in consumer.poll(timeout_ms=500).values():
                found.extend(records)
        return found


def ids(records: list[Any]) -> Counter[str]:
    return Counter(json.loads(record.value)["id"] for record in records)


def test_events_arrive_keyed_by_subject(kafka: Kafka, topic: str) -> None:
    with UsageEmitter(kafka.bootstrap, topic, source="/test") as made:
        sent = [made.emit("t", f"cust-{n % 7}", {"n": n}) for n in range(500)]
        made.emit("t", "foobar", {"n": 500}, id="mine")
        assert made.flush(30)
        stats = made.stats()
    assert (stats.accepted, stats.delivered, stats.pending_events, stats.pending_bytes) == (501, 501, 0, 0)
    records = read(kafka, topic)
    assert ids(records) == Counter([*sent, "mine"])
    for record in records:
        event = json.loads(record.value)
        assert (event["source"], event["subject"]) == ("/test", record.key.decode())
    places = {(record.key, record.partition) for record in records}
    assert len(places) == 8, "a subject has one partition"
    # Kafka's own test of murmur2 (UtilsTest) has -790332482 for "foobar".
    assert (b"foobar", (-790332482 & 0x7FFFFFFF) % 4) in places
    for subject in {record.key for record in records}:
        numbers = [json.loads(record.value)["data"]["n"] for record in records if record.key == subject]
        assert numbers == sorted(numbers)


def test_many_threads_emit(kafka: Kafka, topic: str) -> None:
    sent: list[str] = []
    with UsageEmitter([kafka.bootstrap], topic, source="/test") as made:

        def work(name: int) -> None:
            for n in range(250):
                sent.append(made.emit("t", f"thread-{name}", {"n": n}))

        threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert ids(read(kafka, topic)) == Counter(sent)


def test_a_broker_that_restarts_loses_nothing(kafka: Kafka, topic: str) -> None:
    with UsageEmitter(kafka.bootstrap, topic, source="/test") as made:
        sent = [made.emit("t", f"s{n % 9}", {"n": n}) for n in range(300)]
        kafka.stop()
        try:
            for n in range(300):
                started = time.monotonic()
                sent.append(made.emit("t", f"s{n % 9}", {"n": n}))
                assert time.monotonic() - started < _PROMPT_SECONDS
            assert not made.flush(0.1)
        finally:
            kafka.start()
        assert made.flush(60), made.stats()
        assert (made.stats().delivered, made.stats().failed) == (600, 0)
    assert set(ids(read(kafka, topic))) == set(sent)


def test_an_emitter_recovers_from_events_that_ran_out_of_time(kafka: Kafka, topic: str) -> None:
    """Kafka's client does not: once a batch expired that it had sent before, it never sends again."""
    lost: list[Undelivered] = []
    options: dict[str, Any] = {"delivery_seconds_max": 1.1, "kafka_options": {"request_timeout_ms": 300}}
    with UsageEmitter(kafka.bootstrap, topic, source="/test", on_error=lost.append, **options) as made:
        made.emit("t", "s", {}, id="before")
        assert made.flush(30)
        os.kill(kafka.pid, signal.SIGSTOP)
        try:
            made.emit("t", "s", {}, id="lost")
            assert made.flush(20)
        finally:
            os.kill(kafka.pid, signal.SIGCONT)
        assert [one.reason for one in lost] == ["timed_out"]
        for _ in range(20):
            made.resend(lost[-1].events[0])
            assert made.flush(30)
            if made.stats().delivered == 2:
                break
        assert made.stats().delivered == 2, made.stats()
    assert set(ids(read(kafka, topic))) == {"before", "lost"}


def test_a_producer_that_failed_is_replaced(kafka: Kafka, topic: str) -> None:
    """The topic refuses what is older than it is: an error that Kafka's client does not retry, until it is mended."""

    def accept_within(milliseconds: int) -> None:
        with KafkaAdminClient(bootstrap_servers=kafka.bootstrap) as admin:
            config = {"message.timestamp.before.max.ms": str(milliseconds)}
            admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=config)])

    accept_within(0)
    with UsageEmitter(kafka.bootstrap, topic, source="/test") as made:
        sent = [made.emit("t", f"s{n}", {"n": n}) for n in range(20)]
        assert not made.flush(0.5)
        assert "InvalidRecord" in made.stats().last_error
        accept_within(2**62)
        assert made.flush(30), made.stats()
    assert set(ids(read(kafka, topic))) == set(sent)


def test_an_event_that_the_broker_refuses_is_reported(kafka: Kafka, topic: str) -> None:
    name = f"{topic}.small"
    kafka.create_topic(name, 1, max_message_bytes=1000)
    lost: list[Undelivered] = []
    with UsageEmitter(kafka.bootstrap, name, source="/test", on_error=lost.append) as made:
        large = [made.emit("t", "s", {"x": "y" * 2000}) for _ in range(2)]
        small = [made.emit("t", "s", {"x": "y" * n}) for n in range(100)]
        assert made.flush(30)
        small.append(made.emit("t", "s", {"x": "after"}))
    assert [(one.reason, len(one.events)) for one in lost] == [("refused", 1), ("refused", 1)]
    assert {event.id for one in lost for event in one.events} == set(large)
    assert "MessageSizeTooLarge" in lost[0].error
    assert set(ids(read(kafka, name))) == set(small)


def test_a_missing_topic_is_reported_and_never_made(kafka: Kafka) -> None:
    lost: list[Undelivered] = []
    with UsageEmitter(
        kafka.bootstrap, "sdk.no-such", source="/t", on_error=lost.append, delivery_seconds_max=1.1
    ) as made:
        made.emit("t", "s", {})
        assert made.flush(20)
        assert (made.stats().failed, made.stats().pending_events) == (1, 0)
    assert [one.reason for one in lost] == ["timed_out"]
    with KafkaAdminClient(bootstrap_servers=kafka.bootstrap) as admin:
        assert "sdk.no-such" not in admin.list_topics()


def test_what_came_back_can_be_sent_again(kafka: Kafka, topic: str, silent: str) -> None:
    lost: list[Undelivered] = []
    with UsageEmitter(silent, topic, source="/test", on_error=lost.append) as made:
        made.emit("t", "s", {"n": 1}, id="one")
        assert not made.close(0.1)
    assert [one.reason for one in lost] == ["closed"]
    with UsageEmitter(kafka.bootstrap, topic, source="/test") as made:
        made.resend(lost[0].events[0])
    assert [record.value for record in read(kafka, topic)] == [lost[0].events[0].body]


def test_a_full_buffer_raises(silent: str) -> None:
    with closing(UsageEmitter(silent, source="/test", buffer_events_max=3)) as made:
        for n in range(3):
            made.emit("t", "s", {"n": n})
        started = time.monotonic()
        with pytest.raises(BufferFull, match="3 events wait"):
            made.emit("t", "s", {})
        assert time.monotonic() - started < _PROMPT_SECONDS
        stats = made.stats()
        assert (stats.accepted, stats.dropped, stats.pending_events) == (3, 1, 3)


def test_a_full_buffer_drops(silent: str, caplog: pytest.LogCaptureFixture) -> None:
    lost: list[Undelivered] = []
    options: dict[str, Any] = {"source": "/test", "on_full": "drop", "on_error": lost.append}
    with closing(UsageEmitter(silent, buffer_bytes_max=2 * 1024 * 1024, **options)) as made:
        sent = [made.emit("t", "s", {"x": "y" * 500_000}) for _ in range(10)]
        stats = made.stats()
        assert (stats.accepted, stats.dropped) == (4, 6)
        assert stats.pending_bytes <= 2 * 1024 * 1024
        assert [(one.reason, one.events[0].id) for one in lost] == [("buffer_full", name) for name in sent[4:]]
        assert caplog.text.count("the buffer is full") == 1, "a flood of drops is not a flood of logs"


def test_a_full_buffer_blocks_for_a_stated_time(silent: str) -> None:
    with closing(
        UsageEmitter(silent, source="/t", on_full="block", block_seconds_max=0.3, buffer_events_max=1)
    ) as made:
        made.emit("t", "s", {})
        started = time.monotonic()
        with pytest.raises(BufferFull):
            made.emit("t", "s", {})
        assert 0.3 <= time.monotonic() - started < 0.3 + _PROMPT_SECONDS


def test_a_blocked_caller_goes_on_when_there_is_room(kafka: Kafka, topic: str) -> None:
    with UsageEmitter(
        kafka.bootstrap, topic, source="/t", on_full="block", block_seconds_max=20, buffer_events_max=5
    ) as made:
        sent = [made.emit("t", "s", {"n": n}) for n in range(50)]
    assert ids(read(kafka, topic)) == Counter(sent)


def test_emit_does_not_hold_up_an_event_loop(silent: str) -> None:
    async def longest_pause() -> float:
        longest, emitting = 0.0, True

        async def watch() -> None:
            nonlocal longest
            while emitting:
                before = time.monotonic()
                await asyncio.sleep(0)
                longest = max(longest, time.monotonic() - before)

        watcher = asyncio.create_task(watch())
        with closing(UsageEmitter(silent, source="/test")) as made:
            for n in range(200):
                made.emit("t", "s", {"n": n})
                await asyncio.sleep(0)
            emitting = False
            await watcher
        return longest

    assert asyncio.run(longest_pause()) < _PROMPT_SECONDS


def test_what_is_not_delivered_in_time_is_reported(silent: str) -> None:
    lost: list[Undelivered] = []
    with UsageEmitter(silent, source="/test", on_error=lost.append, delivery_seconds_max=1.1) as made:
        sent = [made.emit("t", "s", {"n": n}) for n in range(3)]
        assert made.flush(20)
        assert made.stats().failed == 3
    assert [event.id for one in lost for event in one.events] == sent
    assert {one.reason for one in lost} == {"timed_out"}
    assert lost[0].error


def test_a_failing_on_error_harms_nothing(kafka: Kafka, topic: str, caplog: pytest.LogCaptureFixture) -> None:
    name = f"{topic}.small"
    kafka.create_topic(name, 1, max_message_bytes=1000)

    def fail(_: Undelivered) -> None:
        raise RuntimeError("no disk")

    with UsageEmitter(kafka.bootstrap, name, source="/test", on_error=fail) as made:
        made.emit("t", "s", {"x": "y" * 2000})
        assert made.flush(30)
        made.emit("t", "s", {})
        assert made.flush(30)
        assert made.stats().delivered == 1
    assert "on_error failed; 1 usage events are lost" in caplog.text


def test_after_close_nothing_is_taken(silent: str) -> None:
    made = UsageEmitter(silent, source="/test")
    assert made.close()
    assert made.close()
    with pytest.raises(EmitterClosed):
        made.emit("t", "s", {})


def test_subscriptions_are_events(kafka: Kafka, topic: str) -> None:
    with UsageEmitter(kafka.bootstrap, topic, source="/signup") as made:
        made.subscription(
            "c", "create", plan="pro", start=date(2026, 3, 5), end=date(2027, 3, 5), timezone="UTC", id="1"
        )
        made.subscription("c", "change", plan="free", id="2")
        made.subscription("c", "end", id="3")
        for action, given, complaint in (
            ("create", {}, "create needs a plan"),
            ("change", {"plan": "p", "timezone": "UTC"}, "change takes no timezone"),
            ("end", {"plan": "p"}, "end takes no plan"),
            ("cancel", {}, "use create, change or end"),
        ):
            with pytest.raises(ValueError, match=complaint):
                made.subscription("c", action, **given)  # type: ignore[arg-type]
    events = {event["id"]: event for event in (json.loads(record.value) for record in read(kafka, topic))}
    assert {event["type"] for event in events.values()} == {"tallyflow.subscription"}
    assert events["1"]["data"] == {
        "action": "create",
        "plan": "pro",
        "start": "2026-03-05",
        "end": "2027-03-05",
        "timezone": "UTC",
    }
    assert [events[one]["data"] for one in "23"] == [{"action": "change", "plan": "free"}, {"action": "end"}]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"brokers": "kafka"}, "'kafka' has no host and port"),
        ({"brokers": []}, "brokers is empty"),
        ({"brokers": "a:1,b:99999"}, "'b:99999' has no host and port"),
        ({"topic": "a b"}, "is no topic name"),
        ({"source": ""}, "source is empty"),
        ({"on_full": "wait"}, "use raise, drop or block"),
        ({"buffer_events_max": 0}, "buffer_events_max is 0"),
        ({"buffer_bytes_max": 1000}, "buffer_bytes_max is 1000: use 2097152 or more"),
        ({"block_seconds_max": float("nan")}, "block_seconds_max is nan"),
        ({"delivery_seconds_max": 0.5}, "delivery_seconds_max is 0.5"),
        ({"kafka_options": {"acks": 0}}, "acks belong to the emitter"),
        ({"kafka_options": {"sasl_pasword": "x"}}, "has no option sasl_pasword"),
    ],
)
def test_bad_arguments_are_refused(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        UsageEmitter(**{"brokers": "127.0.0.1:1", "source": "/test", **given})


def test_passwords_are_not_shown(silent: str) -> None:
    made = UsageEmitter(silent, source="/test", kafka_options={"sasl_plain_password": "hunter2"})
    assert "hunter2" not in repr(made) + repr(made._options)


_PROGRAM = """
import os, sys, threading
from tallyflow import UsageEmitter
emitter = UsageEmitter(sys.argv[1], sys.argv[2], source="/test", on_error=lambda lost: print("lost", lost.reason))
"""


def _run(program: str, *arguments: str) -> str:
    command = [sys.executable, "-c", _PROGRAM + program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_program_that_ends_at_once_delivers(kafka: Kafka, topic: str) -> None:
    _run('emitter.emit("t", "s", {}, id="last")', kafka.bootstrap, topic)
    _run(
        'import atexit\natexit.register(lambda: emitter.flush(0))\nemitter.emit("t", "s", {}, id="exit")\nsys.exit(0)',
        kafka.bootstrap,
        topic,
    )
    assert ids(read(kafka, topic)) == Counter(["last", "exit"])


def test_the_end_of_a_program_is_bounded(silent: str) -> None:
    program = """
emitter = UsageEmitter(sys.argv[1], source="/test", exit_seconds_max=0.5, on_error=lambda lost: print(lost.reason))
emitter.emit("t", "s", {})
"""
    started = time.monotonic()
    assert _run(program, silent, "t") == "closed\n"
    assert time.monotonic() - started < 10


def test_a_forked_child_sends_its_own_events_only(kafka: Kafka, topic: str) -> None:
    program = """
emitter.emit("t", "s", {}, id="before")
flushed = sys.argv[3] == "flushed"
if flushed:
    assert emitter.flush(30)
child = os.fork()
emitter.emit("t", "s", {}, id="child" if child == 0 else "parent")
if child:
    assert os.waitpid(child, 0)[1] == 0
    assert emitter.flush(30)
    assert emitter.stats().delivered == 2, emitter.stats()
else:
    assert emitter.flush(30)
    assert emitter.stats().delivered == 1, emitter.stats()
"""
    for when in ("flushed", "waiting"):
        name = f"{topic}.{when}"
        kafka.create_topic(name)
        assert _run(program, kafka.bootstrap, name, when) == ""
        assert ids(read(kafka, name)) == Counter(["before", "parent", "child"])


def test_a_worker_of_multiprocessing_delivers(kafka: Kafka, topic: str) -> None:
    program = """
import multiprocessing
worker = multiprocessing.get_context("fork").Process(target=emitter.emit, args=("t", "s", {}), kwargs={"id": "w"})
worker.start()
worker.join()
assert worker.exitcode == 0
"""
    _run(program, kafka.bootstrap, topic)
    assert ids(read(kafka, topic)) == Counter(["w"])


class closing:
    """Closes an emitter without waiting for a broker that will not answer."""

    def __init__(self, made: UsageEmitter) -> None:
        self._made = made

    def __enter__(self) -> UsageEmitter:
        return self._made

    def __exit__(self, *_: object) -> None:
        self._made.close(0)
