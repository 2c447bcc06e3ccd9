"""ClickHouse's HTTP interface in a process of its own: the embedded engine behind its front, writable.

No package registry has a current ClickHouse server (CONTRIBUTING.md), so this is what stands in for one: the
same engine of the same version, and the front's known differences (`engines/front.py`). The database
`tallyflow` is there and migrated. It ends with the process that started it; the address and the
password are the same after a restart.
"""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Self

from engines.child import spawn
from engines.clickhouse import EmbeddedClickHouse
from engines.data_directory import DataDirectory
from engines.front import USER, ClickHouseFront
from flows.run import stopping_on_signals
from sinks import migrate
from tests.services.ports import free_ports

START_SECONDS_MAX = 60
STOP_SECONDS_MAX = 30
_ROOT = Path(__file__).resolve().parents[2]


class ClickHouse:
    """A server; a context manager that starts and stops it.

    Args:
        directory: An empty or new directory for its data, or the one of an earlier server.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory.absolute()
        self._password = secrets.token_urlsafe(32)
        (self._port,) = free_ports(1)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """As `TALLY_CLICKHOUSE_URL` takes it."""
        return f"http://{USER}:{self._password}@127.0.0.1:{self._port}/{migrate.DATABASE}"

    @property
    def runs(self) -> bool:
        """Whether it was started, and neither stopped nor killed since."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """Of the running server."""
        assert self._process is not None, "start() first"
        return self._process.pid

    def start(self) -> None:
        """Start the server over the directory's data, and wait until it answers."""
        assert self._process is None, "it runs"
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        secret = self._directory / "password"
        secret.touch(mode=0o600)
        secret.write_text(self._password)
        # A path, not -m: the working directory is the data's.
        program = f"import sys; sys.path.insert(0, {str(_ROOT)!r}); import {__name__} as m; m.serve()"
        arguments = ["-c", program, str(self._directory), str(self._port)]
        self._process = spawn(sys.executable, arguments, self._directory / "clickhouse.log")
        try:
            self._await_answer(self._process)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End it in good order; without one, do nothing."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._end(signal.SIGKILL)

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

    def _await_answer(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/ping", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                pass
            log = (self._directory / "clickhouse.log").read_text(errors="replace")[-4000:]
            assert process.poll() is None, f"ClickHouse ended at its start (exit code {process.returncode}):\n{log}"
            assert time.monotonic() < deadline, f"ClickHouse does not answer:\n{log}"
            time.sleep(0.05)


def serve() -> None:
    """The child: argv has the directory and the port; it serves until SIGTERM."""
    directory, port = DataDirectory(Path(sys.argv[1])), int(sys.argv[2])
    password = (directory.path / "password").read_text()
    stop = threading.Event()
    with stopping_on_signals(stop), directory.acquire(), EmbeddedClickHouse(directory.clickhouse) as engine:
        with engine.client() as client:
            migrate.create_database(client)
        with engine.client(migrate.DATABASE) as client:
            migrate.migrate(client)
        with ClickHouseFront(engine, directory, read_only=False, port=port, password=password):
            stop.wait()
