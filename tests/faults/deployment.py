"""Runs `tally run` in processes of its own, kills them, and reads what stands afterwards."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path

from engines.clickhouse import EmbeddedClickHouse
from sinks.migrate import DATABASE
from tests.audit import audit, file_messages
from tests.oracle import Tables, compute
from tests.tables import expected_tables, read_tables

ROOT = Path(__file__).parents[2]
RUN_SECONDS_MAX = 300


@dataclass
class Deployment:
    """A data directory, the input that grows under it, and how its runs are started."""

    folder: Path
    contents: list[bytes]
    catalog: str
    workers: int = 1
    batch_rows_max: int = 10
    """Small, so that a run lasts for several epochs."""
    mutation: str = ""
    """One of `tests.faults.mutants`, or none."""
    _given: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.folder / "in").mkdir(parents=True)
        (self.folder / "catalog.yaml").write_text(self.catalog, encoding="utf-8")
        self._given = [0] * len(self.contents)
        self.grow(0.0)

    def grow(self, share: float) -> None:
        """Let the input files reach this share of their contents, cut after a line end."""
        for number, content in enumerate(self.contents):
            end = len(content) if share >= 1 else content.rfind(b"\n", 0, int(len(content) * share)) + 1
            end = max(end, self._given[number])
            with open(self.folder / "in" / f"{number:04}.ndjson", "ab") as file:
                file.write(content[self._given[number] : end])
            self._given[number] = end

    def start(self, *build: str, rebuilds: bool = False, **settings: str) -> subprocess.Popen[bytes]:
        """Start a run; of another build where its module, and what that takes first, are given."""
        source = ["--source", "ledger", "--then", self.source] if rebuilds else ["--source", self.source]
        build = build or (("tests.faults.mutants", self.mutation) if self.mutation else ("cli.main",))
        common = ["--catalog", str(self.folder / "catalog.yaml"), "--workers", str(self.workers)]
        with open(self.folder / "log", "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *build, "run", "--data-dir", str(self.data), *common, *source],
                cwd=ROOT,
                env={**os.environ, **self.settings, **settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def source(self) -> str:
        return f"file:{self.folder}/in/*.ndjson"

    @property
    def settings(self) -> dict[str, str]:
        return {"TALLY_EPOCH_SECONDS": "0.3", "TALLY_BATCH_ROWS_MAX": str(self.batch_rows_max)}

    @property
    def log(self) -> str:
        """The end of what the runs have said."""
        return (self.folder / "log").read_text(errors="replace")[-3000:]

    @property
    def codes(self) -> set[int]:
        """The exit codes of a run that ends by itself; a wrong build may also find that its books do not balance."""
        return {0, 3} if self.mutation else {0}

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def epoch(self) -> int:
        """The newest epoch that a run has closed; 0 before there is one."""
        found = 0
        for path in glob(f"{self.data}/recovery/*/part-*.sqlite3"):  # unlike Path's, this bears that some are removed
            with (
                suppress(sqlite3.DatabaseError),
                closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as store,
            ):
                found = max(found, store.execute("SELECT max(worker_frontier) FROM fronts").fetchone()[0] or 0)
        return int(found)

    def add(self, content: bytes) -> None:
        """Let there be another file, which grows with the others."""
        self.contents.append(content)
        self._given.append(0)

    def leave(self, number: int) -> None:
        """Let a file never grow again."""
        self.contents[number] = self.contents[number][: self._given[number]]

    def finish(self, share: float = 1.0) -> None:
        """Run to the end of the input, of the whole unless a share is said."""
        self.grow(share)
        process = self.start()
        assert process.wait(RUN_SECONDS_MAX) in self.codes, self.log

    def refuse(self) -> str:
        """Start where that must be refused; returns what is said."""
        log = self.folder / "log"
        begun = log.stat().st_size if log.exists() else 0
        code = self.start().wait(RUN_SECONDS_MAX)
        said = log.read_bytes()[begun:].decode()
        assert code == 1, said
        return " ".join(said.split())

    def tables(self) -> Tables:
        with EmbeddedClickHouse(self.data / "clickhouse") as engine, engine.client(DATABASE) as client:
            return read_tables(client)

    def catalogs(self) -> list[tuple[int, str]]:
        """Those that were applied, and since which log time each holds."""
        with EmbeddedClickHouse(self.data / "clickhouse") as engine, engine.client(DATABASE) as client:
            rows = client.query(
                "SELECT toUnixTimestamp64Micro(effective_from), yaml FROM catalogs FINAL ORDER BY version"
            ).result_rows
        return [(int(since), str(text)) for since, text in rows]

    def compared(self) -> tuple[Tables, Tables]:
        """What the tables hold, which the auditor has passed, and what the oracle makes of the files."""
        found, catalogs, files = self.tables(), self.catalogs(), list(enumerate(self.contents))
        audited = audit(catalogs, "file", file_messages(files), found)
        assert not audited.violations, str(audited)
        return found, expected_tables(compute(catalogs, files))


def run_with_kills(deployment: Deployment, seed: int, kills: int, begin: float = 0.0, end: float = 1.0) -> float:
    """Let the input grow, run, and `kill -9` at random moments, until that many runs died; then finish.

    A moment is drawn from the whole life of a run: start-up, claiming, flushing, snapshot, the end. Of every
    other run it comes after a snapshot of that run, however slow the machine: the next has something to go on from.
    Returns how many seconds the last run took. `begin` and `end` are the shares of the input between which it grows.
    """
    draw = random.Random(seed)
    killed = attempts = 0
    while killed < kills:
        attempts += 1
        assert attempts <= kills * 5, f"only {killed} of {attempts} runs lived long enough to be killed"
        deployment.grow(begin + (end - begin) * (killed + 1) / (kills + 1))
        before = deployment.epoch()
        process = deployment.start()
        seconds = draw.uniform(0.5, 3.5)
        if killed % 2:
            wait_for_snapshot(deployment, process, before)
            seconds /= 3
        try:
            code = process.wait(seconds)
            assert code in deployment.codes, deployment.log
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
            assert_no_orphan(deployment)
    begun = time.monotonic()
    deployment.finish(end)
    return time.monotonic() - begun


def kill_after_snapshot(deployment: Deployment, *, rebuilds: bool = False, **settings: str) -> None:
    """Run, and `kill -9` once a snapshot was taken: in the middle, if batches are few enough."""
    before = deployment.epoch()
    process = deployment.start(rebuilds=rebuilds, **settings)
    wait_for_snapshot(deployment, process, before)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert_no_orphan(deployment)


def wait_for_snapshot(deployment: Deployment, process: subprocess.Popen[bytes], before: int) -> None:
    """Return once a run has closed an epoch after that one, or has ended."""
    deadline = time.monotonic() + RUN_SECONDS_MAX
    while deployment.epoch() <= before and process.poll() is None:
        assert time.monotonic() < deadline, f"no snapshot in {RUN_SECONDS_MAX} s"
        time.sleep(0.05)


def assert_no_orphan(deployment: Deployment) -> None:
    """The embedded Redis dies with the flow that started it."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not _processes_in(deployment.data / "redis"):
            return
        time.sleep(0.02)
    raise AssertionError(f"a redis-server outlived its flow: {_processes_in(deployment.data / 'redis')}")


def _processes_in(folder: Path) -> list[str]:
    """Processes whose working directory is the folder, or that name it on their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            inside = os.readlink(entry / "cwd") == str(folder)
        except OSError:
            continue
        if inside or str(folder) in command:
            found.append(f"{entry.name} {command}")
    return found
