"""Every signal of two processes of two workers reaches products: by Kafka, by Redis, and as a webhook."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

from tallyflow import Signal, SignalStream, subscribe

from engines.clickhouse_server import connect
from tests.docs.markdown import ROOT
from tests.system.supervisor import wait_until
from tests.system.system import System
from tests.system.traffic import Traffic
from tests.webhooks.receiver import SECRET, Receiver


class Webhooks:
    """`tally webhooks` to one endpoint, as a process; a context manager."""

    def __init__(self, system: System, receiver: Receiver, folder: Path) -> None:
        file = folder / "endpoints.yaml"
        file.write_text(f"endpoints: {{e: {{url: '{receiver.url}', internal: true, secrets: [{{env: SECRET}}]}}}}\n")
        self._log = folder / "webhooks.log"
        self._environment = system.environment | {
            "TALLY_WEBHOOKS_FILE": str(file),
            "SECRET": SECRET,
            "PYTHONPATH": str(ROOT),
            "HOME": os.environ.get("HOME", "/"),
        }

    def __enter__(self) -> None:
        command = [sys.executable, "-m", "cli.main", "webhooks"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(60) == 0, self._log.read_text()


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


def test_every_signal_comes_by_kafka_by_redis_and_as_a_webhook(system: System, tmp_path: Path) -> None:
    with Receiver() as receiver, ExitStack() as opened:
        by_redis = opened.enter_context(Listener(subscribe(redis_url=system.redis_url)))
        with system.flow() as flow:
            system.emit(Traffic(seed=4).events(400))
            system.settle(flow)
            stream = subscribe(brokers=system.kafka.bootstrap, group=system.signals_topic, topic=system.signals_topic)
            by_kafka = opened.enter_context(Listener(stream))
            opened.enter_context(Webhooks(system, receiver, tmp_path))
            expected = _in_table(system)
            assert len(expected) > 10

            def missing() -> list[set[str]]:
                webhooks = {one.id for one in receiver.requests}
                return [expected.keys() - came for came in (by_kafka.signals.keys(), by_redis.signals.keys(), webhooks)]

            try:
                wait_until(lambda: not any(missing()), "signals", seconds_max=60)
            except AssertionError as error:
                raise AssertionError(f"{error}: by Kafka, Redis and webhook lack {missing()}") from error
    system.check()
    assert (
        by_kafka.signals.keys() == by_redis.signals.keys() == {one.id for one in receiver.requests} == expected.keys()
    )
    for name, row in expected.items():
        one = by_kafka.signals[name]
        assert (one.type, one.subject, one.feature, one.threshold, one.allowance) == row
        assert by_redis.signals[name] == one, "the same message"


def _in_table(system: System) -> dict[str, tuple[object, ...]]:
    with connect(system.clickhouse.url) as client:
        rows = client.query("SELECT id, type, subject, feature, threshold, allowance FROM signals FINAL").result_rows
    return {row[0]: tuple(row[1:]) for row in rows}
