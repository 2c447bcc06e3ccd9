"""Apache Kafka itself, one node in KRaft mode, as a child of the tests: on loopback, its data stays over a restart.

It ends with this process. Topics are made by `create_topic` only (auto-creation is off), so that a
misspelt name fails. Everything is as small as it gets: one partition for offsets and transactions,
a heap of 384 MB, and no background work that a test would wait for.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import time
import uuid
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any, Self

from kafka.admin import KafkaAdminClient
from kafka.errors import CoordinatorNotAvailableError, KafkaError

from engines.child import spawn
from tests.services.jars import find_java, kafka_jars
from tests.services.ports import free_ports, quiet_port

START_SECONDS_MAX = 90
STOP_SECONDS_MAX = 60
_JVM = ("-Xms128m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")
_LOG = ("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true")


class Kafka:
    """A broker; a context manager that starts and stops it.

    Args:
        directory: An empty or new directory for its data, or the one of an earlier broker.
        options: Broker settings (`server.properties`) in addition to, or instead of, the usual ones.
        client: Further arguments that clients need, where `options` ask for a login or TLS.

    Raises:
        Unavailable: Java or Kafka's jars are missing and cannot be had.
    """

    def __init__(
        self, directory: Path, options: dict[str, str] | None = None, client: dict[str, Any] | None = None
    ) -> None:
        self._directory = directory.absolute()
        self._java = find_java()
        self._jars = kafka_jars()
        self._port, self._controller_port, self._behind_port = free_ports(3)
        self.proxied_port = quiet_port()
        """For a proxy that leads to `behind`. Clients that come through it are told to stay with it."""
        self._options = options or {}
        self.client = client or {}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def bootstrap(self) -> str:
        """Host and port for clients; the same after a restart."""
        return f"127.0.0.1:{self._port}"

    @property
    def behind(self) -> str:
        """Host and port of the listener that is meant for a proxy; the same after a restart."""
        return f"127.0.0.1:{self._behind_port}"

    @property
    def pid(self) -> int:
        """Of the running broker."""
        assert self._process is not None, "start() first"
        return self._process.pid

    def start(self) -> None:
        """Start the broker over the directory's data, and wait until it answers."""
        assert self._process is None, "it runs"
        self._directory.mkdir(parents=True, exist_ok=True)
        properties = self._directory / "server.properties"
        properties.write_text("".join(f"{key}={value}\n" for key, value in self._properties().items()))
        if not (self._directory / "data" / "meta.properties").exists():
            self._format(properties)
        self._process = spawn(
            self._java, [*_JVM, *_LOG, *self._main("kafka.Kafka"), str(properties)], self._directory / "kafka.log"
        )
        try:
            self._await_answer(self._process)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End the broker in good order; without one, do nothing."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a power cut would (what it acknowledged is in the page cache, and stays)."""
        self._end(signal.SIGKILL)

    def admin(self) -> KafkaAdminClient:
        """A new client for what the methods here do not do; closed by its user."""
        return KafkaAdminClient(bootstrap_servers=self.bootstrap, **self.client)

    def create_topic(self, name: str, partitions: int = 1, **config: Any) -> None:
        """Make a topic, and wait until it can be used.

        Args:
            config: Topic settings with `_` for `.`, such as `message_timestamp_type="LogAppendTime"`.
        """
        configs = {key.replace("_", "."): str(value) for key, value in config.items()}
        topic = {name: {"num_partitions": partitions, "replication_factor": 1, "configs": configs}}
        with self.admin() as admin:
            admin.create_topics(topic, wait_for_metadata=True)

    def delete_topic(self, name: str) -> None:
        """Delete a topic, and wait until it is gone."""
        with self.admin() as admin:
            admin.delete_topics([name])
            deadline = time.monotonic() + 30
            while name in admin.list_topics():
                assert time.monotonic() < deadline, f"topic {name} is still there"
                time.sleep(0.05)

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """The offsets that a group has committed, by partition."""
        try:
            with self.admin() as admin:
                found = admin.list_group_offsets(group).get(group, {})
        except CoordinatorNotAvailableError:  # the topic of offsets is made when it is first asked for
            return {}
        return {place.partition: int(offset.offset) for place, offset in found.items() if place.topic == topic}

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _main(self, name: str) -> list[str]:
        return ["-cp", f"{self._jars}/*", name]

    def _properties(self) -> dict[str, str]:
        controller = f"127.0.0.1:{self._controller_port}"
        return {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@{controller}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT",
            "listeners": f"PLAINTEXT://{self.bootstrap},PROXIED://{self.behind},CONTROLLER://{controller}",
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap},PROXIED://127.0.0.1:{self.proxied_port}",
            "log.dirs": str(self._directory / "data"),
            "auto.create.topics.enable": "false",
            "default.replication.factor": "1",
            "num.partitions": "1",
            "num.io.threads": "2",
            "num.network.threads": "2",
            "background.threads": "2",
            "num.recovery.threads.per.data.dir": "1",
            "log.cleaner.threads": "1",
            "log.cleaner.dedupe.buffer.size": "2097152",
            "offsets.topic.num.partitions": "1",
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.num.partitions": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            # A node that comes back waits until the controller (itself) believes that its former self is dead.
            "broker.session.timeout.ms": "2000",
            "broker.heartbeat.interval.ms": "250",
            **self._options,
        }

    def _format(self, properties: Path) -> None:
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        arguments = ["format", "--config", str(properties), f"--cluster-id={cluster}"]  # it may begin with "-"
        command = [self._java, *_JVM, *_LOG, *self._main("kafka.tools.StorageTool"), *arguments]
        said = subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS_MAX, check=False)
        assert said.returncode == 0, f"Kafka's storage could not be formatted:\n{said.stdout}{said.stderr}"

    def _await_answer(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            if process.poll() is not None:
                raise AssertionError(f"Kafka ended at its start (exit code {process.returncode}):\n{self._log_tail()}")
            try:
                with socket.create_connection(("127.0.0.1", self._port), 1):
                    pass
                with self.admin() as admin:
                    if admin.describe_cluster()["brokers"]:
                        return
            except (OSError, KafkaError):
                pass
            assert time.monotonic() < deadline, f"Kafka does not answer:\n{self._log_tail()}"
            time.sleep(0.05)

    def _log_tail(self) -> str:
        return (self._directory / "kafka.log").read_bytes()[-4000:].decode("utf-8", "replace")
