"""`tally webhooks` from Kafka to a receiver, with ClickHouse for what is given up: killed, restarted, replayed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import urllib3
from kafka import ConsumerGroupMetadata, KafkaProducer
from kafka.admin import KafkaAdminClient
from pydantic import SecretStr
from typer.testing import CliRunner

from cli.main import commands
from config.kafka_client import kafka_options
from config.settings import PREFIX, Settings
from domain.instants import to_datetime
from domain.ports import TallyError
from domain.quota import Signal, SignalType
from domain.signals_json import decimal_text, signal_event
from engines.clickhouse_server import connect
from tests.docs.markdown import ROOT
from tests.services.clickhouse import ClickHouse
from tests.services.kafka import Kafka
from tests.services.ports import free_ports
from tests.system.supervisor import wait_until
from tests.webhooks.receiver import SECRET, Receiver, Reply
from webhooks import service as module
from webhooks.deliverer import Deliverer
from webhooks.endpoints import load_endpoints
from webhooks.service import Service, open_consumer
from webhooks.status import serving
from webhooks.store import Store

_AT_US = int(datetime(2026, 3, 5, tzinfo=UTC).timestamp()) * 1_000_000


def signal_of(number: int, subject: str = "cust-1") -> Signal:
    return Signal(
        f"id-{number:03}", SignalType.EXCEEDED, subject, "api", "api_bytes", _AT_US, _AT_US + 10**12,
        10**15, 10**15, 10**15 + 5 * 10**11 + number, _AT_US + number, 1,
    )  # fmt: skip


class Scene:
    """A topic, a file with one endpoint, and the command."""

    def __init__(self, kafka: Kafka, clickhouse: ClickHouse, receiver: Receiver, topic: str, folder: Path) -> None:
        self.kafka, self.topic, self.receiver = kafka, topic, receiver
        self.file = folder / "endpoints.yaml"
        self.endpoints("[200ms, 200ms]")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        self.environment = clean | {
            "TALLY_KAFKA_BROKERS": kafka.bootstrap,
            "TALLY_SIGNALS_TOPIC": topic,
            "TALLY_WEBHOOKS_GROUP": topic,
            "TALLY_CLICKHOUSE_URL": clickhouse.url,
            "TALLY_WEBHOOKS_FILE": str(self.file),
            "WEBHOOK_SECRET": SECRET,
            "PYTHONPATH": str(ROOT),
        }
        self._log = folder / "log"
        self._running: list[subprocess.Popen[bytes]] = []

    def endpoints(self, retry_after: str) -> None:
        main = f"{{url: '{self.receiver.url}/hook', internal: true, secrets: [{{env: WEBHOOK_SECRET}}]}}"
        self.file.write_text(f"endpoints:\n  main: {main}\nretry_after: {retry_after}\n")

    def send(self, *signals: Signal | bytes) -> None:
        with KafkaProducer(bootstrap_servers=self.kafka.bootstrap) as producer:
            for one in signals:
                if isinstance(one, bytes):
                    producer.send(self.topic, one)
                else:
                    producer.send(self.topic, signal_event(one), key=one.subject.encode())
            producer.flush(30)

    def start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "cli.main", "webhooks"], env=self.environment, stdout=log, stderr=log
            )
        self._running.append(process)
        return process

    @contextmanager
    def running(self) -> Iterator[Service]:
        """The service on a thread of this process, stopped in good order at the end."""
        settings = Settings(
            kafka_brokers=self.kafka.bootstrap, clickhouse_url=SecretStr(self.environment["TALLY_CLICKHOUSE_URL"])
        )
        loaded = load_endpoints(self.file, self.environment)
        store, stop = Store(lambda: connect(self.environment["TALLY_CLICKHOUSE_URL"])), threading.Event()
        service = Service(
            lambda: open_consumer(kafka_options(settings), self.topic, self.topic),
            lambda ended: Deliverer(loaded, store=store.write, ended=ended, undelivered_max=1000),
            1000,
        )
        thread = threading.Thread(target=service.run, args=(stop,))
        thread.start()
        try:
            yield service
        finally:
            stop.set()
            thread.join()
            service.close()
            store.close()

    def stop(self, process: subprocess.Popen[bytes]) -> str:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, self.log
        return self.log

    def close(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.kill()
                process.wait()

    def run(self, *arguments: str) -> tuple[int, str]:
        """A command that ends by itself, in this process: its exit code, and what it says."""
        result = CliRunner().invoke(commands, ["webhooks", *arguments], env=self.environment)
        if isinstance(result.exception, TallyError):
            return 1, str(result.exception)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        return result.exit_code, result.stdout

    @property
    def log(self) -> str:
        return self._log.read_text()

    def committed(self) -> dict[int, int]:
        """The group's offset of each partition."""
        with KafkaAdminClient(bootstrap_servers=self.kafka.bootstrap) as admin:
            found = admin.list_group_offsets([self.topic])[self.topic]
        return {place.partition: at.offset for place, at in found.items()}

    def wait_committed(self, offset: int) -> None:
        """Until partition 0 is done up to an offset."""
        deadline = time.monotonic() + 30
        while (found := self.committed()) != {0: offset}:
            assert time.monotonic() < deadline, f"{found}, not {offset}; the log:\n{self.log}"
            time.sleep(0.2)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        yield made


@pytest.fixture
def scene(
    kafka: Kafka, clickhouse: ClickHouse, receiver: Receiver, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[Scene]:
    topic = f"webhooks.{request.node.name}"
    kafka.create_topic(topic, 1)
    made = Scene(kafka, clickhouse, receiver, topic, tmp_path)
    yield made
    made.close()
    with connect(clickhouse.url) as client:
        client.command("TRUNCATE TABLE webhook_dead_letters")
        client.command("TRUNCATE TABLE signals")


@pytest.fixture
def query(clickhouse: ClickHouse) -> Callable[[str], list[tuple[Any, ...]]]:
    def ask(sql: str) -> list[tuple[Any, ...]]:
        with connect(clickhouse.url) as client:
            return [tuple(row) for row in client.query(sql).result_rows]

    return ask


def test_signals_are_delivered_and_committed(scene: Scene) -> None:
    scene.send(*(signal_of(number, f"cust-{number % 3}") for number in range(30)), b"rubbish")
    process = scene.start()
    scene.receiver.wait_for(30)
    scene.wait_committed(31)
    scene.send(signal_of(30))
    scene.receiver.wait_for(31)
    log = scene.stop(process)
    assert "delivered 31, given up 0, left for the next start 0" in log
    assert "/0/30 is no signal and is left out" in log
    assert sorted(scene.receiver.ids()) == [f"id-{number:03}" for number in range(31)]
    for subject in range(3):
        numbers = [one.id for one in scene.receiver.requests[:30] if one.event["subject"] == f"cust-{subject}"]
        assert numbers == sorted(numbers)
    assert scene.receiver.requests[0].event["data"]["allowance"] == "1000"
    assert SECRET not in log


@pytest.mark.faults
def test_a_killed_process_delivers_again_under_the_same_ids(scene: Scene) -> None:
    scene.endpoints("[1h]")
    scene.receiver.reply = lambda request: Reply(500 if request.event["subject"] == "bad" else 204)
    scene.send(signal_of(0, "bad"), *(signal_of(number) for number in range(1, 6)))
    process = scene.start()
    scene.receiver.wait_for(6)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = len(scene.receiver.requests)
    scene.receiver.reply = lambda _: Reply(204)
    process = scene.start()
    scene.wait_committed(6)
    scene.stop(process)
    assert set(scene.receiver.ids(204)) == {f"id-{number:03}" for number in range(6)}
    assert "id-000" in scene.receiver.ids()[first:], "what was not taken comes again"


def test_metrics_and_health(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    settings = Settings(metrics_port=port, health_stuck_seconds=100)
    pool = urllib3.HTTPConnectionPool("127.0.0.1", port)

    def asked(page: str) -> tuple[int, str]:
        answer = pool.request("GET", page)
        return answer.status, answer.data.decode()

    scene.endpoints("[1h]")
    scene.receiver.reply = lambda request: Reply(500 if request.event["subject"] == "bad" else 204)
    scene.send(signal_of(0), signal_of(1, "bad"), signal_of(2))
    with scene.running() as service, serving(settings, service):
        scene.receiver.wait_for(3)
        scene.wait_committed(1)
        lines = {
            'tally_webhook_attempts_total{endpoint="main",outcome="delivered"} 2.0',
            'tally_webhook_attempts_total{endpoint="main",outcome="failed"} 1.0',
            'tally_webhook_dead_letters_total{endpoint="main"} 0.0',
            'tally_webhook_undelivered_signals{endpoint="main"} 1.0',
        }
        wait_until(lambda: lines <= set(asked("/metrics")[1].splitlines()), "the metrics", seconds_max=20)
        assert service.standing["main"].failing_seconds > 0
        assert asked("/healthz")[0] == asked("/readyz")[0] == 200
        monkeypatch.setattr(type(service), "is_member", False)
        assert asked("/readyz") == (503, '{"status": "failed", "reasons": ["it is no member of its Kafka group"]}\n')
        assert asked("/healthz")[0] == 200
    monkeypatch.undo()
    service.turned_at -= 1000
    with serving(settings, service):
        assert asked("/healthz")[0] == 503


def test_a_crash_between_delivery_and_commit_delivers_again(scene: Scene) -> None:
    scene.send(*(signal_of(number) for number in range(3)))
    with scene.running() as service:
        service._commit = lambda: None  # type: ignore[method-assign]
        scene.receiver.wait_for(3)
    assert scene.committed() == {}
    with scene.running():
        scene.wait_committed(3)
    assert scene.receiver.ids() == ["id-000", "id-001", "id-002"] * 2


def test_a_restart_repeats_only_what_is_open(scene: Scene) -> None:
    scene.endpoints("[1h]")
    scene.receiver.reply = lambda request: Reply(500 if request.event["subject"] == "bad" else 204)
    scene.send(signal_of(0), signal_of(1, "bad"), *(signal_of(number) for number in range(2, 8)))
    with scene.running() as service:
        scene.receiver.wait_for(8)
        scene.wait_committed(1)
    assert (service.deliverer.total.delivered, len(service.deliverer)) == (7, 1)
    scene.receiver.requests.clear()
    scene.receiver.reply = lambda _: Reply(204)
    with scene.running():
        scene.wait_committed(8)
    assert scene.receiver.ids() == ["id-001"]


def test_a_member_that_cannot_join_is_replaced(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REJOIN_SECONDS_MAX", 0.0)
    scene.send(signal_of(0))
    with scene.running() as service:
        scene.receiver.wait_for(1)
        scene.wait_committed(1)
        stuck = service._consumer
        monkeypatch.setattr(stuck, "group_metadata", ConsumerGroupMetadata)
        scene.send(signal_of(1))
        scene.wait_committed(2)
        assert service._consumer is not stuck
    assert set(scene.receiver.ids()) == {"id-000", "id-001"}


def test_what_is_given_up_is_kept_and_replayed(scene: Scene, query: Callable[[str], list[tuple[Any, ...]]]) -> None:
    scene.receiver.reply = lambda _: Reply(503)
    scene.send(signal_of(1), signal_of(2, "other"))
    with scene.running():
        scene.wait_committed(2)
    assert scene.receiver.ids().count("id-001") == 3
    rows = query(
        "SELECT endpoint, id, subject, reason, attempts, last_status, last_error, toUnixTimestamp64Micro(at), payload "
        "FROM webhook_dead_letters FINAL ORDER BY id"
    )
    assert [row[:-1] for row in rows] == [
        ("main", "id-001", "cust-1", "exhausted", 3, 503, "answered 503 Service Unavailable", _AT_US + 1),
        ("main", "id-002", "other", "exhausted", 3, 503, "answered 503 Service Unavailable", _AT_US + 2),
    ]
    assert rows[0][-1].encode() == signal_event(signal_of(1))

    scene.receiver.reply = lambda request: Reply(410 if request.id == "id-002" else 204)
    scene.receiver.requests.clear()
    done = scene.run("replay", "--since", "2026-01-01", "--dead")
    assert done == (3, "failed: id-002 to main: answered 410 Gone\ndelivered 1, failed 1\n")
    scene.receiver.reply = lambda _: Reply(204)
    done = scene.run("replay", "--since", "2026-01-01", "--dead")
    assert done == (0, "delivered 1, failed 0\n")
    assert scene.receiver.ids(204) == ["id-001", "id-002"]
    done = scene.run("replay", "--since", "2026-01-01", "--dead")
    assert done == (0, "delivered 0, failed 0\n")
    assert query("SELECT count() FROM webhook_dead_letters FINAL WHERE replayed_at > dead_at") == [(2,)]


def test_signals_are_replayed_from_their_table(scene: Scene, clickhouse: ClickHouse) -> None:
    spend = Signal(
        "spend", SignalType.SPEND_REACHED, "cust-2", "high", "", _AT_US, _AT_US + 10**12,
        500 * 10**24, 500 * 10**24, 500 * 10**24 + 1, _AT_US + 9, 1,
    )  # fmt: skip
    sent = [signal_of(1), signal_of(2), spend]
    columns: dict[str, list[Any]] = {
        "id": [one.id for one in sent],
        "type": [one.type for one in sent],
        "subject": [one.subject for one in sent],
        "feature": [one.feature for one in sent],
        "meter": [one.meter for one in sent],
        "period_start": [to_datetime(one.period_start_us) for one in sent],
        "period_end": [to_datetime(one.period_end_us) for one in sent],
        "at": [to_datetime(one.at_us) for one in sent],
        "catalog_version": [one.catalog_version for one in sent],
    }
    for name in ("threshold", "allowance", "used"):
        decimals = [24 if one.type is SignalType.SPEND_REACHED else 12 for one in sent]
        texts = [decimal_text(getattr(one, name), scale) for one, scale in zip(sent, decimals, strict=True)]
        columns[name] = pa.array([Decimal(text) for text in texts], pa.decimal256(76, 24))
    with connect(clickhouse.url) as client:
        client.insert_arrow("signals", pa.table(columns))
    done = scene.run("replay", "--since", "2026-03-05T00:00:00.000002Z", "--until", "2026-03-06")
    assert done == (0, "delivered 2, failed 0\n")
    assert sorted(scene.receiver.ids()) == ["id-002", "spend"]
    by_id = {one.id: one.event["data"] for one in scene.receiver.requests}
    assert by_id["spend"]["used"] == "500.000000000000000000000001"
    assert by_id["id-002"]["used"] == "1000.500000000002"


@pytest.mark.parametrize(
    ("changed", "arguments", "complaint"),
    [
        ({"TALLY_WEBHOOKS_FILE": ""}, [], "no endpoints: give --endpoints FILE, or set TALLY_WEBHOOKS_FILE"),
        ({"WEBHOOK_SECRET": ""}, [], "the variable WEBHOOK_SECRET is empty or missing"),
        ({"TALLY_CLICKHOUSE_URL": ""}, [], "TALLY_CLICKHOUSE_URL is not set"),
        ({"TALLY_KAFKA_BROKERS": ""}, [], "TALLY_KAFKA_BROKERS is not set"),
        ({"TALLY_SIGNALS_TOPIC": "no.such"}, [], "there is no Kafka topic 'no.such': start the flow first"),
        ({}, ["replay", "--since", "yesterday"], "--since 'yesterday' is no time"),
        (
            {},
            ["replay", "--since", "2026-01-01", "--endpoint", "x"],
            "there is no endpoint 'x' in the file",
        ),
    ],
)
def test_what_is_wrong_is_said(
    kafka: Kafka,
    clickhouse: ClickHouse,
    receiver: Receiver,
    tmp_path: Path,
    changed: dict[str, str],
    arguments: list[str],
    complaint: str,
) -> None:
    scene = Scene(kafka, clickhouse, receiver, "webhooks.unused", tmp_path)
    scene.environment.update(changed)
    code, said = scene.run(*arguments)
    assert (code, complaint in said) == (1, True), said
    assert SECRET not in said
