"""Networks that fail between a flow of two processes and each of its services, under traffic."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

import pytest

from tests.faults.report import Report
from tests.services.proxy import Proxy
from tests.system.system import System
from tests.system.traffic import Traffic

Proxies = dict[str, Proxy]
SERVICES = ("Kafka", "Redis", "ClickHouse")
DISTURBED_SECONDS = 10.0
GONE_SECONDS = 20.0
"""Longer than the flow waits for any of them."""
_PRODUCE = b"\0\0"


@pytest.fixture
def proxies(system: System) -> Iterator[Proxies]:
    """Before each service of the deployment one through which the flow comes; traffic goes to Kafka directly."""
    with (
        Proxy(system.kafka.behind, port=system.kafka.proxied_port, seed=1) as kafka,
        Proxy(system.redis_url, seed=2) as redis,
        Proxy(system.clickhouse.url, seed=3) as clickhouse,
    ):
        system.lease_seconds = 10.0  # the default: that a machine has much to do is not the fault here
        system.settings |= {
            "TALLY_KAFKA_BROKERS": kafka.address,
            "TALLY_REDIS_URL": redis.url,
            "TALLY_CLICKHOUSE_URL": clickhouse.url,
            "TALLY_CLICKHOUSE_TIMEOUT_SECONDS": "5",
        }
        yield dict(zip(SERVICES, (kafka, redis, clickhouse), strict=True))


def recover(system: System, seed: int, proxies: list[Proxy], disturb: Callable[[], None]) -> tuple[float, int]:
    """Disturb a flow under traffic; returns the seconds until all was counted afterwards, and how often it ended."""
    traffic = Traffic(seed)
    with system.flow() as flow:
        system.emit(traffic.events(200))
        system.settle(flow)
        with system.sending(traffic):
            disturb()
            for proxy in proxies:
                proxy.clear()
            cleared = time.monotonic()
        system.settle(flow)
        return time.monotonic() - cleared, len(flow.exits)


def for_seconds(seconds: float) -> Iterator[float]:
    """Yields how much of the time is over, as a share, until all of it is."""
    begun = time.monotonic()
    while (gone := (time.monotonic() - begun) / seconds) < 1:
        yield gone


@pytest.mark.faults
@pytest.mark.parametrize(
    ("service", "fault"),
    [
        ("Kafka", "connections to Kafka are reset, again and again"),
        ("Redis", "connections to Redis are reset, again and again"),
        ("ClickHouse", "connections to ClickHouse are reset, again and again"),
    ],
)
def test_a_storm_of_resets(system: System, report: Report, proxies: Proxies, service: str, fault: str) -> None:
    draw = random.Random(service)

    def disturb() -> None:
        for _ in for_seconds(DISTURBED_SECONDS):
            proxies[service].reset()
            time.sleep(draw.uniform(0.0, 0.6))

    seconds, _ = recover(system, 41, [proxies[service]], disturb)
    report.check(fault, "tried again, or starts again", system, seconds)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("service", "fault"),
    [
        ("Kafka", "nothing passes to or from Kafka for 20 s"),
        ("Redis", "nothing passes to or from Redis for 20 s"),
        ("ClickHouse", "nothing passes to or from ClickHouse for 20 s"),
    ],
)
def test_a_black_hole(system: System, report: Report, proxies: Proxies, service: str, fault: str) -> None:
    """Connections stay open; what was sent into them arrives in the end, when nobody waits for it any more."""
    proxy = proxies[service]

    def disturb() -> None:
        proxy.requests.held = proxy.answers.held = True
        time.sleep(GONE_SECONDS)

    seconds, ends = recover(system, 42, [proxy], disturb)
    assert ends, "the flow stops when it has waited for long enough"
    report.check(fault, "stops at its bound, starts again until it is back", system, seconds)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("service", "fault"),
    [
        ("Kafka", "Kafka is 50 to 150 ms away"),
        ("Redis", "Redis is 50 to 150 ms away"),
        ("ClickHouse", "ClickHouse is 50 to 150 ms away"),
    ],
)
def test_latency(system: System, report: Report, proxies: Proxies, service: str, fault: str) -> None:
    proxy = proxies[service]

    def disturb() -> None:
        for way in (proxy.requests, proxy.answers):
            way.latency_seconds, way.jitter_seconds = 0.025, 0.05
        time.sleep(DISTURBED_SECONDS)

    seconds, ends = recover(system, 43, [proxy], disturb)
    assert ends == 0, "it is no reason to stop"
    report.check(fault, "goes on, slower", system, seconds)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("service", "fault"),
    [
        ("Kafka", "connections to Kafka break in mid-message"),
        ("Redis", "connections to Redis break in mid-message"),
        ("ClickHouse", "connections to ClickHouse break in mid-message"),
    ],
)
def test_cuts(system: System, report: Report, proxies: Proxies, service: str, fault: str) -> None:
    """Requests and answers in turn, after few bytes or many: in handshakes, in headers, in the middle of rows."""
    proxy = proxies[service]

    def disturb() -> None:
        for gone in for_seconds(2 * DISTURBED_SECONDS):
            bytes_max = 10 ** (1 + int(gone * 4))
            proxy.clear()
            way = proxy.requests if int(gone * 16) % 2 else proxy.answers
            way.cut_bytes = range(1, bytes_max)
            time.sleep(0.5)

    seconds, _ = recover(system, 44, [proxy], disturb)
    report.check(fault, "tried again, or starts again", system, seconds)


@pytest.mark.faults
def test_clickhouse_acknowledges_and_the_answer_is_lost(system: System, report: Report, proxies: Proxies) -> None:
    check_lost_answers(
        system, report, proxies["ClickHouse"], lambda request: b"INSERT" in request[:2000],
        "ClickHouse has the rows, its answer is lost", "written again, and there once",
    )  # fmt: skip


@pytest.mark.faults
def test_redis_claims_and_the_answer_is_lost(system: System, report: Report, proxies: Proxies) -> None:
    check_lost_answers(
        system, report, proxies["Redis"], lambda request: b"EVALSHA" in request[:2000],
        "Redis has the claims, its answer is lost", "claimed again, and no event is its own duplicate",
    )  # fmt: skip


def check_lost_answers(
    system: System, report: Report, proxy: Proxy, to: Callable[[bytes], bool], fault: str, expected: str
) -> None:
    def disturb() -> None:
        for _ in for_seconds(DISTURBED_SECONDS):
            proxy.drop_answers(to=to)
            time.sleep(0.7)

    seconds, ends = recover(system, 45, [proxy], disturb)
    assert proxy.dropped >= 5
    assert ends == 0, "it is no reason to stop"
    report.check(fault, expected, system, seconds)


@pytest.mark.faults
def test_kafka_has_the_signal_and_the_answer_is_lost(system: System, report: Report, proxies: Proxies) -> None:
    """Signals are few, and come with the first events: so the answers to all of these are lost."""
    proxy, traffic = proxies["Kafka"], Traffic(seed=46)
    with system.flow() as flow:
        system.emit(traffic.events(20))
        system.settle(flow)
        proxy.drop_answers(5, to=lambda request: request[4:6] == _PRODUCE)
        with system.sending(traffic, a_second=50):
            time.sleep(DISTURBED_SECONDS)
            proxy.clear()
            cleared = time.monotonic()
        system.settle(flow)
        seconds = time.monotonic() - cleared
    assert proxy.dropped >= 3
    expected = "sent again, and there once by id"
    found = report.check("Kafka has the signals, its answer is lost", expected, system, seconds)
    assert len(found.signals) > 10


@pytest.mark.faults
def test_everything_fails_at_random_for_a_minute(system: System, report: Report, proxies: Proxies) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    draw = random.Random(seed)

    def hold(proxy: Proxy) -> None:
        way = draw.choice((proxy.requests, proxy.answers))
        way.held = True

    def slow(proxy: Proxy) -> None:
        proxy.requests.latency_seconds, proxy.answers.jitter_seconds = draw.uniform(0, 0.2), draw.uniform(0, 0.2)

    def cut(proxy: Proxy) -> None:
        way = draw.choice((proxy.requests, proxy.answers))
        way.cut_bytes = range(1, draw.choice((10, 1_000, 100_000)))

    def refuse(proxy: Proxy) -> None:
        proxy.refuse()
        proxy.reset()

    def disturb() -> None:
        for _ in for_seconds(60.0):
            proxy = proxies[draw.choice(SERVICES)]
            draw.choice((hold, slow, cut, refuse, Proxy.reset, Proxy.drop_answers))(proxy)
            time.sleep(draw.uniform(0.2, 3.0))
            if draw.random() < 0.7:  # else the next comes on top of it
                proxy.clear()

    seconds, _ = recover(system, seed, list(proxies.values()), disturb)
    report.check("all three services are disturbed at random for a minute", "starts again", system, seconds)
