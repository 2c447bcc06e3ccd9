"""Saved state that is missing, old, mixed or damaged: refused with what to do, then rebuilt; never begun at zero."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import redis

from tests.faults.deployment import Deployment, kill_after_snapshot
from tests.faults.report import Report
from tests.faults.test_kills import deployment
from tests.system.supervisor import wait_until
from tests.system.system import System
from tests.system.traffic import Traffic

REBUILT = "refused; rebuilt with --source ledger"


def stores(deployed: Deployment) -> list[Path]:
    """The files of the saved state, which is one directory."""
    return sorted(deployed.data.glob("recovery/*/part-*.sqlite3"))


def counted(folder: Path, share: float) -> Deployment:
    """A deployment that was killed once, and then counted so much of its input."""
    deployed = deployment(folder, workers=2)
    deployed.grow(share)
    kill_after_snapshot(deployed)
    assert deployed.start().wait(300) == 0
    return deployed


def rebuild(deployed: Deployment, report: Report, fault: str) -> None:
    """Rebuild with kills in the middle; the rest of the log follows."""
    deployed.grow(1.0)
    kill_after_snapshot(deployed, rebuilds=True)
    kill_after_snapshot(deployed)
    begun = time.monotonic()
    deployed.finish()
    seconds = time.monotonic() - begun
    report.compare(fault, REBUILT, *deployed.compared(), seconds)


@pytest.mark.faults
def test_a_missing_recovery_directory(tmp_path: Path, report: Report) -> None:
    """With Redis and the numbers of the files, so that ClickHouse alone is left."""
    deployed = counted(tmp_path, 0.6)
    for lost in ("recovery", "redis"):
        shutil.rmtree(deployed.data / lost)
    for record in ("files.json", "deployment.json"):
        (deployed.data / record).unlink()
    assert "has no saved state: going on would count from zero" in deployed.refuse()
    rebuild(deployed, report, "all but ClickHouse is lost")


@pytest.mark.faults
def test_an_old_recovery_directory(tmp_path: Path, report: Report) -> None:
    """A backup is restored: what came after it is read again, and meets its own claims and rows."""
    deployed = counted(tmp_path, 0.3)
    shutil.copytree(deployed.data / "recovery", tmp_path / "backup")
    deployed.grow(0.8)
    assert deployed.start().wait(300) == 0
    shutil.rmtree(deployed.data / "recovery")
    (tmp_path / "backup").rename(deployed.data / "recovery")
    begun = time.monotonic()
    deployed.finish()
    seconds = time.monotonic() - begun
    fault = "an old recovery directory is restored"
    report.compare(fault, "what followed is read again", *deployed.compared(), seconds)


def _mixed(deployed: Deployment, older: Path) -> None:
    """A file of an earlier start among those of the last."""
    shutil.copy(sorted(older.glob("*/part-*.sqlite3"))[0], stores(deployed)[0])


def _lacking(deployed: Deployment, older: Path) -> None:
    stores(deployed)[1].unlink()


def _cut_off(deployed: Deployment, older: Path) -> None:
    file = stores(deployed)[2]
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _anonymous(deployed: Deployment, older: Path) -> None:
    (deployed.data / "deployment.json").unlink()


def _of_another(deployed: Deployment, older: Path) -> None:
    record = deployed.data / "deployment.json"
    record.write_text(record.read_text().replace('"state_version": ', '"state_version": 9'))


def _of_an_unknown_step(deployed: Deployment, older: Path) -> None:
    """As if the step of the totals had another id in the version that saved them."""
    for file in stores(deployed):
        with closing(sqlite3.connect(file)) as database, database:
            database.execute("UPDATE snaps SET step_id = 'metering.sums' WHERE step_id = 'metering.aggregate.totals'")


DAMAGES: dict[str, tuple[Callable[[Deployment, Path], None], str]] = {
    "a recovery directory of two starts": (_mixed, "is mixed: its files were written by different starts"),
    "a recovery file is missing": (_lacking, "lacks files"),
    "a recovery file is cut off": (_cut_off, "is damaged"),
    "deployment.json is missing": (_anonymous, "record of what made it is missing"),
    "another state version": (_of_another, "was made with state_version=9"),
    "a changed step id": (_of_an_unknown_step, "has state of metering.sums, which this version does not know"),
}


@pytest.mark.faults
def test_another_shard_count(tmp_path: Path, report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    deployed = counted(tmp_path, 0.6)
    monkeypatch.setenv("TALLY_SHARDS", "7")
    assert "was made with shards=64, now it is 7" in deployed.refuse()
    rebuild(deployed, report, "another shard count")


@pytest.mark.faults
@pytest.mark.parametrize("fault", DAMAGES)
def test_state_that_does_not_fit(tmp_path: Path, report: Report, fault: str) -> None:
    deployed = counted(tmp_path, 0.3)
    shutil.copytree(deployed.data / "recovery", tmp_path / "older")
    deployed.finish(0.6)
    damage, message = DAMAGES[fault]
    damage(deployed, tmp_path / "older")
    said = deployed.refuse()
    assert message in said
    assert "tally run --source ledger" in said
    rebuild(deployed, report, fault)


@pytest.mark.faults
def test_two_processes_rebuild_together(system: System, report: Report) -> None:
    """Under a supervisor that starts them as they were started, one is killed: they go on, or rebuild again."""
    traffic = Traffic(seed=19)
    with system.flow() as flow:
        system.emit(traffic.events(400))
        system.settle(flow)
    shutil.rmtree(system.folder / "data")
    with redis.Redis.from_url(system.redis_url) as client:
        client.flushall()
    system.emit(traffic.events(100))
    with system.flow(source="ledger") as flow:
        wait_until(lambda: (system.folder / "data" / "rebuild.json").exists(), "the rebuild begins")
        flow.kill(1, signal.SIGKILL)
        begun = time.monotonic()
        system.emit(traffic.events(100))
        system.settle(flow)
        seconds = time.monotonic() - begun
        assert flow.exits
    with system.flow(1) as flow:
        system.emit(traffic.events(50))
        system.settle(flow)
    report.check("all but ClickHouse is lost, of two processes", "rebuilt with --source ledger", system, seconds)
