"""A disk is full: the run stops and says which, nothing is lost, and with space it goes on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults.deployment import RUN_SECONDS_MAX, Deployment, assert_no_orphan
from tests.faults.disk import fill, make_space, small_disk
from tests.faults.report import Report
from tests.faults.small import expected, workload
from tests.workload import kitchen_sink_catalog


class Case(NamedTuple):
    """What lies on the disk, its size, and where a run is when the disk becomes full."""

    fault: str
    folder: str
    megabytes: int
    point: str
    passing: int


CASES = [
    Case("the disk of the saved state is full", "recovery", 64, "in a file's snapshot", 6),
    Case("the disk of the embedded ClickHouse is full", "clickhouse", 256, "table inserted", 3),
    Case("the disk of the embedded Redis is full", "redis", 16, "claimed", 5),
]


@pytest.mark.faults
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.folder)
def test_the_disk_is_full(tmp_path: Path, report: Report, case: Case) -> None:
    deployment = Deployment(tmp_path / "deployment", workload(), kitchen_sink_catalog(), workers=2)
    folder = deployment.data / case.folder
    with small_disk(folder, case.megabytes):
        deployment.grow(0.3)
        assert deployment.start().wait(RUN_SECONDS_MAX) == 0, deployment.log
        deployment.grow(0.7)
        full_in_mid_run = ["tests.faults.disk", str(folder), case.point, str(case.passing)]
        assert says_what_to_do(deployment, folder, *full_in_mid_run)
        fill(folder)
        assert says_what_to_do(deployment, folder)
        make_space(folder)
        begun = time.monotonic()
        deployment.finish()
        seconds = time.monotonic() - begun
        assert_no_orphan(deployment)
        found = deployment.tables()
    report.compare(case.fault, "stops and says which; goes on once there is space", found, expected(), seconds)


def says_what_to_do(deployment: Deployment, folder: Path, *build: str) -> bool:
    """Whether a run ends with one message that names the disk, and leaves no process behind."""
    before = len((deployment.folder / "log").read_bytes())
    code = deployment.start(*build, TALLY_REDIS_WAIT_SECONDS="2", TALLY_CLICKHOUSE_WAIT_SECONDS="2").wait(
        RUN_SECONDS_MAX
    )
    said = (deployment.folder / "log").read_bytes()[before:].decode(errors="replace")
    print(f"exit code {code}:\n{said[-6000:]}")
    assert_no_orphan(deployment)
    assert code == 1
    assert "Traceback" not in said and "panicked" not in said
    assert str(folder) in said
    return "disk" in said or "space" in said.lower()
