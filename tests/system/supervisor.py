"""A flow of several processes under a supervisor, which starts again whatever ends, as Kubernetes or systemd would."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.services.ports import free_ports

ROOT = Path(__file__).parents[2]
WAIT_SECONDS_MAX = 90.0
_PAUSE_SECONDS = 0.2


def wait_until(condition: Callable[[], object], what: str, seconds_max: float = WAIT_SECONDS_MAX) -> float:
    """Wait for a condition; returns how long that took."""
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds_max, f"not in {seconds_max:g} s: {what}"
        time.sleep(0.05)
    return time.monotonic() - begun


@dataclass(frozen=True)
class Place:
    """Where a flow runs: its catalog, data directory, logs and services."""

    folder: Path
    environment: Mapping[str, str]
    workers: int = 2
    builds: Mapping[int, Sequence[str]] = field(default_factory=dict)
    """By process, the module to run in the product's place, and what that takes first; looked at in each start."""
    source: str = "kafka"

    def start(self, process: int, addresses: list[str], log: str) -> subprocess.Popen[bytes]:
        """Start one process of a flow; one alone has no addresses."""
        arguments = ["run", "--source", self.source, "--catalog", str(self.folder / "catalog.yaml")]
        arguments += ["--workers", str(self.workers)]
        if len(addresses) > 1:
            arguments += ["--process", str(process), "--addresses", ",".join(addresses)]
        settings = {"TALLY_DATA_DIR": str(self.folder / "data"), "PYTHONPATH": str(ROOT), **self.environment}
        with open(self.folder / log, "ab") as file:
            return subprocess.Popen(
                [sys.executable, "-m", *self.builds.get(process, ["cli.main"]), *arguments],
                cwd=ROOT,
                env={**os.environ, **settings},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )


class Flow:
    """Processes that are started again whenever they end, until the block does; then all are told to stop."""

    def __init__(self, place: Place, processes: int) -> None:
        self._place = place
        self._addresses = [f"127.0.0.1:{port}" for port in free_ports(processes)]
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self.exits: list[tuple[int, int]] = []
        """Process number and exit code of everything that ended under supervision."""
        self._thread = threading.Thread(target=self._supervise, name="supervisor", daemon=True)

    def __enter__(self) -> Self:
        for process in range(len(self._addresses)):
            self._start(process)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Stop in good order; a process that cannot is killed, and that is a failure.

        One that the supervisor has only just started may have no handler for the signal yet.
        """
        self._ending.set()
        self._thread.join()
        for process in self._running.values():
            process.send_signal(signal.SIGCONT)
            process.terminate()
        codes = {number: self._wait(process) for number, process in self._running.items()}
        if kind is None:
            assert set(codes.values()) <= {0, 1, -signal.SIGTERM}, f"{codes}\n{self.logs()}"

    def kill(self, process: int, number: signal.Signals) -> int:
        """Send a signal to a process; returns its pid."""
        with self._lock:
            running = self._running[process]
            running.send_signal(number)
            return running.pid

    def pids(self) -> dict[int, int]:
        with self._lock:
            return {number: process.pid for number, process in self._running.items()}

    def logs(self, chars_max: int = 4000) -> str:
        """The ends of the processes' logs."""
        parts = [
            f"--- process {number}\n{(self._place.folder / f'log{number}').read_text(errors='replace')[-chars_max:]}"
            for number in range(len(self._addresses))
        ]
        return "\n".join(parts)

    def _start(self, process: int) -> None:
        self._running[process] = self._place.start(process, self._addresses, f"log{process}")

    def _supervise(self) -> None:
        while not self._ending.wait(_PAUSE_SECONDS):
            with self._lock:
                for number, process in list(self._running.items()):
                    code = process.poll()
                    if code is not None:
                        self.exits.append((number, code))
                        self._start(number)

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        try:
            return process.wait(WAIT_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
