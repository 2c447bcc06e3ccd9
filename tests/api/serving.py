"""A real `tally ingest` in a process of its own, a client that speaks raw HTTP, and what the topic holds."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from kafka import KafkaConsumer, TopicPartition

from api.keys import new_key
from tests.cli.command import environment

READY_SECONDS_MAX = 60


def event(number: object, subject: str = "cust-1", **data: object) -> dict[str, Any]:
    """A valid event of the sample catalog `api`."""
    return {
        "specversion": "1.0",
        "id": str(number),
        "source": "/tests",
        "type": "api.request",
        "subject": subject,
        "data": {"bytes": 1, "region": "eu-west-1", **data},
    }


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json"
        return json.loads(self.body)

    @property
    def outcomes(self) -> list[str]:
        """Of each event: `accepted`, or why it is not."""
        return [e.get("reason", e["status"]) for e in self.json["events"]]


@dataclass
class Ingesting:
    """A running ingest, and the keys that it knows."""

    process: subprocess.Popen[str]
    port: int
    keys: dict[str, str]
    keys_file: Path

    def send(
        self, body: bytes, content_type: str = "application/cloudevents+json", key: str = "all", **headers: str
    ) -> Answer:
        """POST events; header names with `_` for `-`."""
        named = {"content-type": content_type, "authorization": f"Bearer {self.keys[key]}"}
        return self.request("POST", "/v1/events", body, named | {k.replace("_", "-"): v for k, v in headers.items()})

    def request(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def raw(self) -> Raw:
        return Raw(self.port)

    def head(self, *headers: str, key: str = "all") -> bytes:
        """The head of a POST of one structured event."""
        lines = ["POST /v1/events HTTP/1.1", "host: tally", f"authorization: Bearer {self.keys[key]}"]
        lines += ["content-type: application/cloudevents+json", *headers]
        return "\r\n".join([*lines, "", ""]).encode()

    def ready(self) -> bool:
        return self.request("GET", "/readyz").status == 200

    def add_key(self, name: str, **limits: object) -> None:
        key, digest = new_key()
        entries = json.loads(self.keys_file.read_text())["keys"] if self.keys_file.exists() else []
        entries.append({"name": name, "sha256": digest, **limits})
        self.keys_file.write_text(json.dumps({"keys": entries}))
        self.keys[name] = key


class Raw:
    """A connection on which anything can be sent."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def answer(self) -> Answer:
        response = http.client.HTTPResponse(self._socket)
        response.begin()
        headers = {k.lower(): v for k, v in response.getheaders()}
        return Answer(response.status, headers, response.read())

    def answers(self, seconds_max: float) -> bool:
        """Whether an answer begins in that time."""
        self._socket.settimeout(seconds_max)
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK))
        except TimeoutError:
            return False
        finally:
            self._socket.settimeout(30)

    def closed(self, seconds_max: float) -> bool:
        """Whether the server closes the connection in that time without another byte."""
        self._socket.settimeout(seconds_max)
        try:
            return self._socket.recv(1) == b""
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False


@contextmanager
def ingesting(folder: Path, bootstrap: str, topic: str, *arguments: str, **settings: str) -> Iterator[Ingesting]:
    """Start `tally ingest`; on leaving, it must end with 0 when told to."""
    folder.mkdir(exist_ok=True)
    running = Ingesting(None, 0, {}, folder / "keys.yaml")  # type: ignore[arg-type]
    running.add_key("all")
    given = {
        "TALLY_KAFKA_BROKERS": bootstrap,
        "TALLY_KAFKA_TOPIC": topic,
        "TALLY_INGEST_KEYS_FILE": str(running.keys_file),
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "ingest", "--port", "0", *arguments],
            cwd=folder,
            env=environment(**(given | settings)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            encoding="utf-8",
        )
    running.process = process
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith("listening on http://127.0.0.1:"), (folder / "log").read_text()
        running.port = int(said.rpartition(":")[2])
        yield running
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, (folder / "log").read_text()
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    log_text = (folder / "log").read_text()
    assert "Traceback" not in log_text, log_text


def await_ready(running: Ingesting) -> None:
    deadline = time.monotonic() + READY_SECONDS_MAX
    while not running.ready():
        assert time.monotonic() < deadline, running.request("GET", "/readyz").body
        time.sleep(0.05)


@dataclass(frozen=True)
class Stored:
    """One message of the topic."""

    partition: int
    key: bytes
    value: bytes
    headers: dict[str, bytes]


def stored(bootstrap: str, topic: str) -> list[Stored]:
    """Everything that the topic holds now, partition by partition."""
    with KafkaConsumer(bootstrap_servers=bootstrap, group_id=None, auto_offset_reset="earliest") as consumer:
        partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
        ends = consumer.end_offsets(partitions)
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        found: list[Stored] = []
        deadline = time.monotonic() + 30
        while any(consumer.position(p) < ends[p] for p in partitions):
            assert time.monotonic() < deadline, "the topic cannot be read"
            for records in consumer.poll(timeout_ms=500).values():
                found += [Stored(r.partition, r.key, r.value, dict(r.headers)) for r in records]
    return sorted(found, key=lambda message: message.partition)


def hurried(running: Ingesting) -> None:
    """Have keys and catalog read again."""
    os.kill(running.process.pid, signal.SIGHUP)
