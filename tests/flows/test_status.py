"""A flow as those see it who run it: its metrics, and that its health fails when it is stuck and not before."""

from __future__ import annotations

import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Collection
from typing import Any

import pytest
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.testing import cluster_main
from clickhouse_connect.driver.exceptions import DatabaseError, OperationalError
from prometheus_client.parser import text_string_to_metric_families

from domain.ports import TallyError
from domain.quota import Signal, SignalType
from domain.values import RawBatch
from flows.metering import build
from flows.observed import ObservedClaims, ObservedSource, Observer
from flows.run import run
from sources.kafka_feed import Lag
from telemetry import catalogue
from telemetry.health import Limits, Phase, alive, ready
from telemetry.vitals import Vitals
from tests.batches import history
from tests.fakes.flows import FakeSink, FakeSource, FakeSubscriptions
from tests.flows.places import Place
from tests.flows.scenes import CATALOG, Scene
from tests.flows.test_metering import batches_of
from tests.operators.running import fake_claims
from tests.telemetry.test_health import Clock
from tests.workload import generate, kitchen_sink_catalog

LIMITS = Limits(stuck_seconds=60, epoch_seconds=10)


class Look(threading.Event):
    """Not a stop: at the n-th look something is done, in the middle of the run."""

    def __init__(self, looks: int, do: Callable[[], None]) -> None:
        super().__init__()
        self._looks = looks
        self._do = do

    def is_set(self) -> bool:
        self._looks -= 1
        if self._looks == 0:
            self._do()
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(port: int, page: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def samples(text: bytes) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_a_run_tells_what_it_does(place: Place, scene: Scene) -> None:
    place.write(scene.whole)
    port = free_port()
    seen: dict[str, tuple[int, bytes]] = {}

    def look() -> None:
        for page in ("healthz", "readyz"):
            seen[page] = get(port, page)

    settings: dict[str, Any] = {"metrics_port": port, "batch_rows_max": 20, "epoch_seconds": 0.1}
    with place.start(CATALOG, Look(12, look), **settings) as deployment:
        status, body = get(port, "readyz")
        assert status == 503 and "starting" in json.loads(body)["reasons"][0]
        assert get(port, "healthz")[0] == 200
        run(deployment)
        found = samples(get(port, "metrics")[1])
        assert get(port, "readyz")[0] == 503
    with pytest.raises(OSError, match="refused"):
        get(port, "healthz")

    assert seen["healthz"][0] == 200 and seen["readyz"] == (200, b'{"status": "ok", "reasons": []}\n')
    wanted = scene.wanted
    assert found["tally_events_total", "accepted"] == len(wanted.events)
    for reason in {row["reason"] for row in wanted.rejects.values()}:
        count = sum(row["reason"] == reason for row in wanted.rejects.values())
        assert found["tally_events_total", reason] == count
    assert found["tally_flush_rows_total", "events"] == len(wanted.events)
    assert found["tally_catalog_version",] == 1
    assert found["tally_claims_rebuilt_total",] == 0
    assert sum(v for (name, *_), v in found.items() if name == "tally_signals_total") == len(wanted.signals)
    for step in ("decode", "claim", "partials", "totals", "rate", "watch_quotas"):
        assert found["tally_step_seconds_total", step] > 0
    for name in ("tally_state_bytes", "tally_open_totals", "tally_last_flush_time_seconds", "tally_batch_rows_count"):
        assert found[name,] > 0, name
    assert found["tally_claim_seconds_count",] == found["tally_batch_rows_count",]
    assert not any(name == "tally_event_to_signal_seconds_count" and value for (name, *_), value in found.items())


def test_a_port_in_use_is_named_before_anything_is_opened(place: Place, scene: Scene) -> None:
    place.write(scene.first)
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(TallyError, match=r"cannot listen on .*TALLY_METRICS_PORT"),
    ):
        place.run(CATALOG, metrics_port=taken.getsockname()[1])
    assert not place.data.exists()


# stuck flows: a flow over fakes, in which a part lets the clock run on and asks for a judgement


class Slow(FixedPartitionedSource[RawBatch, int]):
    """A source that does something at its n-th poll."""

    def __init__(self, source: FakeSource, polls: int, do: Callable[[], None]) -> None:
        self._source = source
        self.polls = polls
        self.do = do

    def list_parts(self) -> list[str]:
        return self._source.list_parts()

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> _SlowPartition:
        return _SlowPartition(self, self._source.build_part(step_id, for_part, resume_state))


class _SlowPartition(StatefulSourcePartition[RawBatch, int]):
    def __init__(self, slow: Slow, partition: StatefulSourcePartition[RawBatch, int]) -> None:
        self._slow = slow
        self._partition = partition

    def next_batch(self) -> Collection[RawBatch]:
        self._slow.polls -= 1
        if self._slow.polls == 0:
            self._slow.do()
        return list(self._partition.next_batch())

    def snapshot(self) -> int:
        return self._partition.snapshot()


def observed(polls: int, do: Callable[[Vitals, Clock], None]) -> tuple[Observer, FakeSink]:
    """Run a flow in which something happens at a poll of its source."""
    clock = Clock()
    observer = Observer(Vitals(clock), wall=lambda: 1_700_000_000.0)
    vitals = observer.vitals
    content = generate(seed=5, events=120, subjects=5, files=1)[0]
    source = Slow(FakeSource({3: list(batches_of(content, 3, 20))}), polls, lambda: do(vitals, clock))
    sink = FakeSink()
    flow = build(
        ObservedSource(source, observer),
        history=history(kitchen_sink_catalog()),
        claims=ObservedClaims(fake_claims(None), observer),
        sink=sink,
        outlets={},
        here="00",
        subscriptions=FakeSubscriptions(),
        shards=4,
        partitions=None,
        now_us=lambda: 0,
        probe=observer,
    )
    vitals.enter(Phase.RUNNING)
    cluster_main(flow, [], 0)
    return observer, sink


def test_a_poll_that_does_not_return_is_seen() -> None:
    judged = []

    def hang(vitals: Vitals, clock: Clock) -> None:
        judged.append(alive(vitals.facts(), LIMITS))
        clock.now += 61
        judged.append(alive(vitals.facts(), LIMITS))

    observer, sink = observed(3, hang)
    assert judged[0].well
    assert judged[1].reasons == ("partition 3 was not polled for 61 s",)
    assert alive(observer.vitals.facts(), LIMITS).well, "it went on, and ended"
    assert len(sink.items) > 10


def test_a_source_that_silently_stopped_is_seen() -> None:
    """It is polled and gives nothing, although the log goes on."""
    judged = []

    def stall(vitals: Vitals, clock: Clock) -> None:
        vitals.measured([(3, 10_000)])
        for _ in range(7):
            judged.append(alive(vitals.facts(), LIMITS).reasons)
            clock.now += 10
            vitals.measured([(3, 10_000)])
            vitals.partitions[3].polled_at = vitals.epoch_at = clock.now
        judged.append(alive(vitals.facts(), LIMITS).reasons)

    observed(3, stall)
    assert judged[:7] == [()] * 7
    assert judged[7] == ("partition 3 stands at offset 40 for 70 s, with 9960 messages waiting",)


def test_services_that_are_silent_are_seen() -> None:
    judged = []

    def silence(vitals: Vitals, clock: Clock) -> None:
        vitals.answers["clickhouse"] = None
        judged.append(ready(vitals.facts(), LIMITS).reasons)
        vitals.answered("clickhouse")
        judged.append(ready(vitals.facts(), LIMITS).reasons)
        clock.now += 40
        vitals.answered("clickhouse")
        vitals.partitions[3].polled_at = clock.now
        judged.append(ready(vitals.facts(), LIMITS).reasons)
        assert alive(vitals.facts(), LIMITS).well

    observed(4, silence)
    assert judged == [("clickhouse has not answered yet",), (), ("redis has not answered for 40 s",)]


def test_lag_is_told_in_offsets_and_seconds() -> None:
    observer = Observer(Vitals(Clock()))
    seen = observer.vitals.opened(3)
    assert not any(name[0].startswith("tally_lag") for name in samples(observer.recorder.text()))
    observer.read(seen, RawBatch("t", 3, 10, 14, [], [], [], 14, 14))
    observer.lags = lambda: {3: Lag(6, 9.5)}
    found = samples(observer.recorder.text())
    assert (found["tally_lag_offsets", "3"], found["tally_lag_seconds", "3"]) == (6, 9.5)
    assert found["tally_position_offset", "3"] == 14 and found["tally_messages_total", "3"] == 4


def test_a_batch_that_only_tells_the_time_moves_nothing() -> None:
    clock = Clock()
    observer = Observer(Vitals(clock))
    seen = observer.vitals.opened(3)
    observer.read(seen, RawBatch("t", 3, 10, 14, [], [], [], 14, 14))
    clock.now += 70
    observer.read(seen, RawBatch("t", 3, 14, 14, [], [], [], 14, 14))
    assert seen.moved_at == clock.now - 70


def test_signals_are_timed_from_the_log_time_where_that_is_a_clock() -> None:
    observer = Observer(Vitals(Clock()), wall=lambda: 1_700_000_000.0)
    signal = Signal("i", SignalType.EXCEEDED, "s", "f", "m", 0, 1, 1, 1, 1, 0, 1)
    observer.signalled(1_699_999_999_880_000, [signal, signal])
    observer.signalled(None, [signal])
    found = samples(observer.recorder.text())
    assert found["tally_event_to_signal_seconds_bucket", "0.1"] == 0
    assert found["tally_event_to_signal_seconds_bucket", "0.15"] == 2
    assert found["tally_event_to_signal_seconds_sum",] == pytest.approx(0.24)
    assert observer.recorder.value(catalogue.SIGNALS, SignalType.EXCEEDED) == 3
    observer.sent("redis")(signal._replace(at_us=1_699_999_999_992_000))
    found = samples(observer.recorder.text())
    assert found["tally_signal_send_seconds_bucket", "redis", "0.005"] == 0
    assert found["tally_signal_send_seconds_bucket", "redis", "0.01"] == 1


def test_inserts_are_told(caplog: pytest.LogCaptureFixture) -> None:
    observer = Observer(Vitals(Clock()), wall=lambda: 1_700_000_000.0)
    refused = OperationalError("Error executing HTTP request, with customers' data in it")
    refused.__cause__ = ConnectionRefusedError(111, "Connection refused")
    observer.refused("events", 500, refused)
    observer.refused("events", 500, DatabaseError("Code: 252. Too many parts: customers' data", code=252))
    observer.taken("events", 500, 0.2)
    assert observer.recorder.value(catalogue.FLUSH_ERRORS, "events") == 2
    assert observer.recorder.value(catalogue.FLUSH_ROWS, "events") == 500
    assert observer.recorder.value(catalogue.FLUSHED) == 1_700_000_000
    assert "clickhouse" in observer.vitals.answers
    assert "Connection refused" in caplog.text and "DatabaseError (code 252)" in caplog.text
    assert "customers" not in caplog.text
