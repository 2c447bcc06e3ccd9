"""The clocks of the flow's machines jump by hours, and differ: what is late, and who writes, does not go by them."""

from __future__ import annotations

import random
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.faults import with_clock
from tests.faults.deployment import RUN_SECONDS_MAX, Deployment, assert_no_orphan
from tests.faults.report import Report
from tests.faults.small import expected, workload
from tests.system.system import System
from tests.system.traffic import Traffic, Usage
from tests.workload import kitchen_sink_catalog

SEED = 47
JUMPS = ("+3h", "-2h", "+50h", "-26h", "+0")
ENDS = (0, 1)
"""Exit codes of a run: that of one whose clock was set back is 1."""
LEASE_SECONDS = 15.0
"""A busy machine may not let a process renew a shorter one: that would be another fault."""
SETTLE_SECONDS = 3.0
"""The library looks into its file once a second; the flow looks for the ends of the log every two."""


@pytest.fixture
def clocks(tmp_path: Path) -> list[Path]:
    """Files that set the clock of a process each; right at first."""
    with_clock.library()
    files = [tmp_path / f"clock{number}" for number in range(2)]
    for file in files:
        step(file, "+0")
    return files


def step(clock: Path, ahead: str) -> None:
    beside = clock.with_suffix(".new")
    beside.write_text(f"{ahead}\n")
    beside.replace(clock)


def nearly_too_late(number: int) -> Usage:
    """Usage that is accepted for a few minutes more: of a window that a clock ahead would have forgotten."""
    data = {"bytes": 1 + number, "region": "eu"}
    moment = datetime.now(UTC) - timedelta(days=3) + timedelta(minutes=20)
    return Usage("api.request", f"customer-{number}", data, f"old-{number}", moment)


@pytest.mark.faults
def test_clocks_of_two_processes_jump_and_differ(system: System, report: Report, clocks: list[Path]) -> None:
    print(f"seed {SEED}")
    traffic, draw = Traffic(SEED), random.Random(SEED)
    builds = {number: ["tests.faults.with_clock", str(clock), "cli.main"] for number, clock in enumerate(clocks)}
    system.lease_seconds = LEASE_SECONDS
    with system.flow(2, builds) as flow:
        for round_, ahead in enumerate(JUMPS):
            step(clocks[0], ahead)
            step(clocks[1], draw.choice(JUMPS))
            system.emit(traffic.events(60))
            system.settle(flow)
            time.sleep(SETTLE_SECONDS)  # every partition is idle, and says how far it is
            system.emit(nearly_too_late(number) for number in range(round_ * 8, round_ * 8 + 8))
            if round_ % 2:
                flow.kill(draw.randrange(2), signal.SIGKILL)
            seconds = system.settle(flow)
    fault = "the clocks of two processes jump by hours, and differ; kill -9"
    report.check(fault, "no number goes by them; set back, the run ends and starts again", system, seconds)


@pytest.mark.faults
def test_the_clock_jumps_while_files_are_read(tmp_path: Path, report: Report, clocks: list[Path]) -> None:
    deployment = Deployment(tmp_path / "deployment", workload(), kitchen_sink_catalog(), workers=2)
    for number, ahead in enumerate(JUMPS):
        deployment.grow((number + 1) / len(JUMPS))
        process = deployment.start("tests.faults.with_clock", str(clocks[0]), "cli.main")
        time.sleep(SETTLE_SECONDS)
        step(clocks[0], ahead)
        assert process.wait(RUN_SECONDS_MAX) in ENDS, deployment.log
        assert_no_orphan(deployment)
    begun = time.monotonic()
    deployment.finish()
    seconds = time.monotonic() - begun
    fault, outcome = "the clock jumps while files are read", "no number goes by it; set back, the run ends"
    report.compare(fault, outcome, deployment.tables(), expected(), seconds)
