"""The whole product: usage in by SDK and HTTP; tables, quotas and signals out; two processes of two workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tallyflow import Quotas, Signal, SignalStream, subscribe

from engines.clickhouse_server import connect
from tests.docs.markdown import ROOT
from tests.system.supervisor import wait_until
from tests.system.system import SOURCE, System, check_quotas
from tests.system.traffic import Traffic, Usage
from tests.webhooks.receiver import SECRET, Receiver


class Tally:
    """A `tally` command that serves, as a process; a context manager. `says` is in the line by which it is ready."""

    def __init__(self, system: System, *arguments: str, says: str, **settings: str) -> None:
        self._arguments, self._says = arguments, says
        self._environment = system.environment | {
            "PYTHONPATH": str(ROOT),
            "HOME": os.environ.get("HOME", "/"),
            **settings,
        }
        self._lines: list[str] = []
        self._read = threading.Event()

    def __enter__(self) -> str:
        """That line."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", *self._arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._follow, daemon=True)
        self._reader.start()
        try:
            wait_until(lambda: self._ready or self._read.is_set(), f"tally {self._arguments}: {self._says}")
            assert self._ready, "".join(self._lines)
        except BaseException:
            self._process.kill()
            raise
        return self._ready[0]

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._process.terminate()
        code = self._process.wait(60)
        self._reader.join(10)
        if kind is None:
            assert code == 0, "".join(self._lines)

    @property
    def _ready(self) -> list[str]:
        return [line for line in self._lines if self._says in line]

    def _follow(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line)
        self._read.set()


class Listener:
    """What came by one stream, by id; a context manager that reads on a thread."""

    def __init__(self, stream: SignalStream) -> None:
        self.signals: dict[str, Signal] = {}
        self._stream = stream
        self._thread = threading.Thread(target=stream.run, args=(self._keep,))

    def _keep(self, one: Signal) -> None:
        assert one.id not in self.signals, "repeats are left out"
        self.signals[one.id] = one

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.stop()
        self._thread.join()
        self._stream.close()


def post(url: str, key: str, body: bytes, content_type: str, **headers: str) -> tuple[int, dict[str, Any]]:
    """The status and the answer of one request to the ingest."""
    names = {f"ce-{name}": value for name, value in headers.items()}
    request = urllib.request.Request(
        f"{url}/v1/events",
        data=body,
        headers={"Authorization": f"Bearer {key}", "Content-Type": content_type, **names},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def send_over_http(url: str, key: str, events: list[Usage]) -> int:
    """Send a third of the events one by one, a third as batches, a third in binary mode; returns how many it took."""
    accepted = 0
    for usage in events[::3]:
        _, answer = post(url, key, usage.json(SOURCE), "application/cloudevents+json")
        accepted += answer["accepted"]
    batches = [events[1::3][start : start + 10] for start in range(0, len(events[1::3]), 10)]
    for batch in batches:
        body = b"[" + b",".join(usage.json(SOURCE) for usage in batch) + b"]"
        _, answer = post(url, key, body, "application/cloudevents-batch+json")
        accepted += answer["accepted"]
    for usage in events[2::3]:
        event = json.loads(usage.json(SOURCE))
        data = json.dumps(event.pop("data")).encode()
        _, answer = post(url, key, data, "application/json", **event)
        accepted += answer["accepted"]
    return accepted


def test_usage_in_by_sdk_and_http_and_everything_out(system: System, tmp_path: Path) -> None:
    traffic = Traffic(seed=4)
    keys, endpoints = tmp_path / "keys.yaml", tmp_path / "endpoints.yaml"
    made = subprocess.run(
        [sys.executable, "-m", "cli.main", "ingest-key", "test", "--file", str(keys)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    with Receiver() as receiver, ExitStack() as opened:
        endpoints.write_text(
            f"endpoints: {{e: {{url: '{receiver.url}', internal: true, secrets: [{{env: SECRET}}]}}}}\n"
        )
        by_redis = opened.enter_context(Listener(subscribe(redis_url=system.redis_url)))
        with system.flow() as flow:
            system.emit(traffic.events(300))
            with Tally(system, "ingest", "--port", "0", says="listening on", TALLY_INGEST_KEYS_FILE=str(keys)) as line:
                url = next(word for word in line.split() if word.startswith("http://"))
                wait_until(lambda: _is_ready(url), "the ingest is ready")
                assert send_over_http(url, made.stdout.strip(), list(traffic.events(90))) > 60
            system.produce(traffic.bad(20), key=b"customer-1")
            system.emit(traffic.events(200))
            system.settle(flow)
            stream = subscribe(brokers=system.kafka.bootstrap, group=system.signals_topic, topic=system.signals_topic)
            by_kafka = opened.enter_context(Listener(stream))
            webhooks = Tally(system, "webhooks", says="delivering", TALLY_WEBHOOKS_FILE=str(endpoints), SECRET=SECRET)
            opened.enter_context(webhooks)
            expected = _in_table(system)
            assert len(expected) > 10

            def missing() -> list[set[str]]:
                delivered = {one.id for one in receiver.requests}
                return [
                    expected.keys() - came for came in (by_kafka.signals.keys(), by_redis.signals.keys(), delivered)
                ]

            try:
                wait_until(lambda: not any(missing()), "signals", seconds_max=60)
            except AssertionError as error:
                raise AssertionError(f"{error}: by Kafka, Redis and webhook lack {missing()}") from error
            assert flow.exits == [], flow.logs()
    tables = system.check()
    assert (
        by_kafka.signals.keys() == by_redis.signals.keys() == {one.id for one in receiver.requests} == expected.keys()
    )
    for name, row in expected.items():
        one = by_kafka.signals[name]
        assert (one.type, one.subject, one.feature, one.threshold, one.allowance) == row
        assert by_redis.signals[name] == one, "the same message"
    with Quotas(system.redis_url) as quotas:
        check_quotas(tables, quotas)
    reasons = {row["reason"] for row in tables.rejects.values()}
    assert {"malformed", "duplicate", "conflict", "schema_violation", "too_late", "unknown_type"} <= reasons
    assert any(row["attributes"] for row in tables.events.values()), "some came in binary mode"


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=10) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError:
        return False


def _in_table(system: System) -> dict[str, tuple[object, ...]]:
    with connect(system.clickhouse.url) as client:
        rows = client.query("SELECT id, type, subject, feature, threshold, allowance FROM signals FINAL").result_rows
    return {row[0]: tuple(row[1:]) for row in rows}
