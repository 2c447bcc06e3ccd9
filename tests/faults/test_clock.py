"""The clock of the flow's machine jumps by hours: no number goes by it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.faults import with_clock
from tests.faults.deployment import RUN_SECONDS_MAX, Deployment, assert_no_orphan
from tests.faults.report import Report
from tests.faults.small import expected, workload
from tests.workload import kitchen_sink_catalog

JUMPS = ("+3h", "-2h", "+50h", "-26h", "+0")
ENDS = (0, 1)
"""Exit codes of a run: that of one whose clock was set back is 1."""
SETTLE_SECONDS = 3.0
"""By then a run reads; the library looks into its file once a second."""


def step(clock: Path, ahead: str) -> None:
    beside = clock.with_suffix(".new")
    beside.write_text(f"{ahead}\n")
    beside.replace(clock)


@pytest.mark.faults
def test_the_clock_jumps_while_files_are_read(tmp_path: Path, report: Report) -> None:
    with_clock.library()
    clock = tmp_path / "clock"
    step(clock, "+0")
    deployment = Deployment(tmp_path / "deployment", workload(), kitchen_sink_catalog(), workers=2)
    for number, ahead in enumerate(JUMPS):
        deployment.grow((number + 1) / len(JUMPS))
        process = deployment.start("tests.faults.with_clock", str(clock), "cli.main")
        time.sleep(SETTLE_SECONDS)
        step(clock, ahead)
        assert process.wait(RUN_SECONDS_MAX) in ENDS, deployment.log
        assert_no_orphan(deployment)
    begun = time.monotonic()
    deployment.finish()
    seconds = time.monotonic() - begun
    fault, outcome = "the clock jumps while files are read", "no number goes by it; set back, the run ends"
    report.compare(fault, outcome, deployment.tables(), expected(), seconds)
