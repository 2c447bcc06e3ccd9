"""Redis servers on loopback ports: one, with replicas, or a Redis Cluster of three masters.

For what an embedded server cannot show: failovers, replicas that lag, slots that move. They keep nothing
on disk and end with this process. The executable is the embedded engine's.
"""

from __future__ import annotations

import random
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import redis

from engines.child import spawn
from engines.redis_server import find_executable

START_SECONDS_MAX = 60
SLOTS = 16384
_PORTS = range(20_000, 22_700)
"""Below the ports that the kernel gives to clients, as is the cluster bus 10,000 above."""


def wait_until(condition: Callable[[], Any], what: str, seconds: float = START_SECONDS_MAX) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, f"{what}: not within {seconds:g} s"
        time.sleep(0.02)


class RedisNode:
    """A server on a port of its own; a context manager. Started again, it is empty (but for its cluster's nodes)."""

    def __init__(self, directory: Path, options: Mapping[str, str] | None = None) -> None:
        self._directory = directory
        self._options = dict(options or {})
        self.port = _free_port()
        self.client: Any = redis.Redis(port=self.port, decode_responses=True)
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.client.close()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        assert self.process is None, "it runs"
        self._directory.mkdir(parents=True, exist_ok=True)
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self._directory),
            "save": "",
            "appendonly": "no",
            "repl-diskless-sync": "yes",
            "repl-diskless-sync-delay": "0",
            "shutdown-timeout": "0",
            **self._options,
        }
        executable = find_executable()
        if executable.version < (7, 0):
            del options["shutdown-timeout"]
        arguments = [argument for name, value in options.items() for argument in (f"--{name}", value)]
        self.process = spawn(str(executable.path), arguments, self._directory / "redis.log")
        wait_until(self._answers, f"Redis on port {self.port}")

    def kill(self) -> None:
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()

    def follow(self, master: RedisNode | None) -> None:
        """Become a replica that has caught up; or, with None, a master."""
        if master is None:
            self.client.replicaof("NO", "ONE")
            return
        self.client.replicaof("127.0.0.1", master.port)
        wait_until(lambda: self.client.info("replication").get("master_link_status") == "up", "replication")

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self._directory / "redis.log").read_text()[-2000:]
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False


class RedisCluster:
    """Masters that share the slots, each with so many replicas; a context manager."""

    def __init__(self, directory: Path, masters: int = 3, replicas: int = 0, node_timeout_ms: int = 2000) -> None:
        options = {"cluster-enabled": "yes", "cluster-node-timeout": str(node_timeout_ms)}
        self.masters = [RedisNode(directory / f"master-{i}", options) for i in range(masters)]
        self.replicas = [RedisNode(directory / f"replica-{i}", options) for i in range(masters * replicas)]
        """Replica `i` follows master `i % masters`."""
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        nodes = [*self.masters, *self.replicas]
        with ExitStack() as opened:
            for node in nodes:
                opened.enter_context(node)
            bounds = [SLOTS * i // len(self.masters) for i in range(len(self.masters) + 1)]
            for i, node in enumerate(nodes):
                node.client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
                if i < len(self.masters):
                    node.client.execute_command("CLUSTER", "ADDSLOTS", *range(bounds[i], bounds[i + 1]))
                if i:
                    nodes[0].client.execute_command("CLUSTER", "MEET", "127.0.0.1", node.port)
            wait_until(lambda: all(_knows(node, len(nodes)) for node in nodes), "the cluster")
            for i, node in enumerate(self.replicas):
                node.client.execute_command("CLUSTER", "REPLICATE", node_id(self.masters[i % len(self.masters)]))
            for node in self.replicas:
                wait_until(lambda node=node: node.client.info()["master_link_status"] == "up", "a replica")  # type: ignore[misc]
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @property
    def url(self) -> str:
        """Of the first master; a client finds the others by itself."""
        return self.masters[0].url

    def flush(self) -> None:
        """Empty every master."""
        for node in self.masters:
            node.client.flushall()

    def master_of(self, key: str) -> RedisNode:
        """The master that was given a key's slot at the start."""
        slot = int(self.masters[0].client.execute_command("CLUSTER", "KEYSLOT", key))
        return self.masters[next(i for i in range(len(self.masters)) if slot < SLOTS * (i + 1) // len(self.masters))]

    def replica_of(self, master: RedisNode) -> RedisNode:
        """Its first replica."""
        return self.replicas[self.masters.index(master)]

    def cut_off(self, master: RedisNode) -> None:
        """Let its first replica lag from now on: it is no longer let in, and its connection is closed."""
        replica = self.replica_of(master)
        replica.client.config_set("masteruser", "nobody")
        replica.client.config_set("masterauth", "nothing")
        master.client.client_kill_filter(_type="replica", skipme=True)
        wait_until(lambda: replica.client.info("replication")["master_link_status"] == "down", "the lag")

    def promote(self, replica: RedisNode) -> None:
        """Make it the master of its slots, as it is, and wait until every living node knows."""
        replica.client.execute_command("CLUSTER", "FAILOVER", "TAKEOVER")
        wait_until(lambda: replica.client.info("replication")["role"] == "master", "the promotion")
        living = [node for node in (*self.masters, *self.replicas) if node.process is not None]
        wait_until(lambda: all(f"{node_id(replica)} 127.0.0.1:{replica.port}" in _masters(n) for n in living), "news")


def _masters(node: RedisNode) -> str:
    """The lines of CLUSTER NODES that are about living masters."""
    raw = node.client.execute_command("CLUSTER", "NODES")
    if isinstance(raw, dict):  # as redis-py parses it
        found = raw.items()
        return "\n".join(f"{each['node_id']} {address}" for address, each in found if "master" in each["flags"])
    return "\n".join(line for line in raw.splitlines() if "master" in line)


def node_id(node: RedisNode) -> str:
    return str(node.client.execute_command("CLUSTER", "MYID"))


def _knows(node: RedisNode, nodes: int) -> bool:
    raw = node.client.execute_command("CLUSTER", "INFO")
    info = raw if isinstance(raw, dict) else dict(line.split(":", 1) for line in raw.split())
    return info["cluster_state"] == "ok" and int(info["cluster_known_nodes"]) == nodes


def _free_port() -> int:
    while True:
        port = random.SystemRandom().choice(_PORTS)
        with socket.socket() as one, socket.socket() as bus:
            try:
                one.bind(("127.0.0.1", port))
                bus.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port
