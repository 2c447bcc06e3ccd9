"""Signals from a real Kafka and a real Redis: handled at least once, repeats left out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
import redis
from kafka import KafkaProducer
from tallyflow import Signal, SignalStream, SignalsUnreachable, subscribe
from tallyflow.signals import read_signal

from domain.quota import Signal as Sent
from domain.quota import SignalType
from domain.signals_json import signal_event
from tests.services.kafka import Kafka


def sent(number: int) -> Sent:
    start, end = (int(datetime(2026, month, 1, tzinfo=UTC).timestamp()) * 1_000_000 for month in (3, 4))
    return Sent(
        f"id-{number}",
        SignalType.EXCEEDED,
        f"cust-{number % 3}",
        "api",
        "api_bytes",
        start,
        end,
        10**12,
        10**12,
        10**12 + number,
        start + 1_500_000,
        2,
    )


def received(number: int) -> Signal:
    return Signal(
        f"id-{number}", "quota.exceeded", f"cust-{number % 3}", datetime(2026, 3, 1, 0, 0, 1, 500_000, UTC), "api",
        "api_bytes", datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC),
        Decimal(1), Decimal(1), 1 + number * Decimal("1E-12"), 2,
    )  # fmt: skip


@pytest.fixture
def topic(kafka: Kafka, request: pytest.FixtureRequest) -> str:
    name = f"sdk.{request.node.name.partition('[')[0]}"
    kafka.create_topic(name, 2)
    return name


@pytest.fixture
def send(kafka: Kafka, topic: str) -> Callable[..., None]:
    """Puts signals by number, or anything as bytes, into the topic."""

    def produce(*signals: int | bytes) -> None:
        with KafkaProducer(bootstrap_servers=kafka.bootstrap) as producer:
            for one in signals:
                value = one if isinstance(one, bytes) else signal_event(sent(one))
                producer.send(topic, value, key=b"k" if isinstance(one, bytes) else sent(one).subject.encode())
            producer.flush(30)

    return produce


def take(stream: SignalStream, count: int) -> list[Signal]:
    """The next signals, all of them handled."""
    taken: list[Signal] = []
    for signal in stream:
        taken.append(signal)
        if len(taken) == count:
            stream.stop()
    return taken


def numbers(signals: list[Signal]) -> list[int]:
    return sorted(int(signal.id.removeprefix("id-")) for signal in signals)


def test_signals_are_read_as_they_were_sent() -> None:
    assert read_signal(signal_event(sent(7))) == received(7)


@pytest.mark.parametrize("raw", [b"", b"null", b"{}", b'{"data": []}', signal_event(sent(1)).replace(b'"1"', b'"x"')])
def test_what_is_no_signal_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="not a signal"):
        read_signal(raw)


def test_a_group_goes_on_where_it_ended(kafka: Kafka, topic: str, send: Callable[..., None]) -> None:
    send(*range(5))
    with subscribe(brokers=kafka.bootstrap, group=topic, topic=topic) as stream:
        first = take(stream, 5)
    assert sorted(first, key=lambda signal: signal.id) == [received(number) for number in range(5)]
    send(5, 6)
    with subscribe(brokers=[kafka.bootstrap], group=topic, topic=topic) as stream:
        assert numbers(take(stream, 2)) == [5, 6]
    with subscribe(brokers=kafka.bootstrap, group=f"{topic}.other", topic=topic) as stream:
        assert numbers(take(stream, 7)) == list(range(7))


def test_a_signal_whose_handling_failed_comes_again(kafka: Kafka, topic: str, send: Callable[..., None]) -> None:
    send(0, 3, 6)  # one subject, so one partition

    def fail(signal: Signal) -> None:
        handled.append(signal)
        if signal.id == "id-3":
            raise RuntimeError("down")

    handled: list[Signal] = []
    stream = subscribe(brokers=kafka.bootstrap, group=topic, topic=topic)
    with stream, pytest.raises(RuntimeError, match="down"):
        stream.run(fail)
    assert numbers(handled) == [0, 3]
    with subscribe(brokers=kafka.bootstrap, group=topic, topic=topic) as stream:
        assert numbers(take(stream, 2)) == [3, 6]


def test_repeats_and_rubbish_are_left_out(kafka: Kafka, topic: str, send: Callable[..., None]) -> None:
    send(0, 3, 0, b"rubbish", 3, 6, 6, 9)
    with subscribe(brokers=kafka.bootstrap, group=topic, topic=topic) as stream:
        assert [signal.id for signal in take(stream, 4)] == ["id-0", "id-3", "id-6", "id-9"]
        assert (stream.duplicates, stream.unreadable) == (3, 1)


def test_the_memory_of_ids_is_bounded(kafka: Kafka, topic: str, send: Callable[..., None]) -> None:
    send(0, 3, 6, 6, 0)
    with subscribe(brokers=kafka.bootstrap, group=topic, topic=topic, remember_ids_max=2) as stream:
        assert [signal.id for signal in take(stream, 4)] == ["id-0", "id-3", "id-6", "id-0"]


def test_two_members_share_the_signals(kafka: Kafka, topic: str, send: Callable[..., None]) -> None:
    """And what one of them left unhandled, the other gets."""
    lists: tuple[list[Signal], list[Signal]] = ([], [])
    streams = [subscribe(brokers=kafka.bootstrap, group=topic, topic=topic) for _ in lists]
    threads = [
        threading.Thread(target=stream.run, args=(taken.append,)) for stream, taken in zip(streams, lists, strict=True)
    ]
    for thread in threads:
        thread.start()
    send(*range(60))
    deadline = time.monotonic() + 30
    while len(set(lists[0]) | set(lists[1])) < 60 and time.monotonic() < deadline:
        time.sleep(0.02)
    for stream, thread in zip(streams, threads, strict=True):
        stream.stop()
        thread.join()
        stream.close()
    assert numbers(list({*lists[0], *lists[1]})) == list(range(60))


def test_stop_ends_an_idle_stream(kafka: Kafka, topic: str) -> None:
    with subscribe(brokers=kafka.bootstrap, group=topic, topic=topic) as stream:
        threading.Timer(0.2, stream.stop).start()
        started = time.monotonic()
        assert list(stream) == []
        assert time.monotonic() - started < 5


def test_signals_from_redis(redis_url: str) -> None:
    with subscribe(redis_url=redis_url, channel="sdk") as stream, redis.Redis.from_url(redis_url) as client:
        for number in (1, 2, 1):
            client.publish("sdk", signal_event(sent(number)))
        client.publish("sdk", b"rubbish")
        client.publish("sdk", signal_event(sent(3)))
        assert take(stream, 3) == [received(1), received(2), received(3)]
        assert (stream.duplicates, stream.unreadable) == (1, 1)


def test_a_broken_connection_to_redis_is_made_again(redis_url: str) -> None:
    with subscribe(redis_url=redis_url, channel="sdk.broken") as stream, redis.Redis.from_url(redis_url) as client:
        taken: list[Signal] = []
        thread = threading.Thread(target=lambda: taken.extend(take(stream, 1)))
        thread.start()
        client.client_kill_filter(_type="pubsub")
        deadline = time.monotonic() + 20
        while thread.is_alive() and time.monotonic() < deadline:  # until somebody listens again
            client.publish("sdk.broken", signal_event(sent(1)))
            time.sleep(0.05)
        thread.join(1)
        assert numbers(taken) == [1]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({}, "say where signals come from"),
        ({"brokers": "a:1", "redis_url": "redis://a"}, "say where signals come from"),
        ({"brokers": "a:1"}, "group is missing"),
        ({"brokers": "a", "group": "g"}, "'a' has no host and port"),
        ({"brokers": "a:1", "group": "g", "start": "now"}, "use earliest or latest"),
        ({"redis_url": "redis://a", "remember_ids_max": 0}, "remember_ids_max is 0"),
    ],
)
def test_bad_arguments_are_refused(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        subscribe(**given)


def test_an_unreachable_service_is_said_and_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tallyflow.signals.CONNECT_SECONDS_MAX", 0.3)
    threads = threading.active_count()
    with pytest.raises(SignalsUnreachable, match=r"cannot read signals from 127\.0\.0\.1:1"):
        subscribe(brokers="127.0.0.1:1", group="g")
    with pytest.raises(SignalsUnreachable, match=r"cannot subscribe to 'usage\.signals'"):
        subscribe(redis_url="redis://127.0.0.1:1")
    deadline = time.monotonic() + 5
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.02)
    assert threading.active_count() == threads
