"""A start that is killed, a hundred times at any instant of it, loses nothing and leaves nothing behind."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.faults.deployment import Deployment, assert_no_orphan
from tests.faults.report import Report
from tests.faults.small import expected, workload
from tests.workload import kitchen_sink_catalog

SEED = 53
STARTS = 100


@pytest.mark.faults
def test_a_hundred_starts_that_die(tmp_path: Path, report: Report) -> None:
    print(f"seed {SEED}")
    draw = random.Random(SEED)
    deployment = Deployment(tmp_path / "deployment", workload(), kitchen_sink_catalog(), workers=2)
    deployment.finish(0.5)
    begun = time.monotonic()
    deployment.finish(0.5)  # nothing new: nearly all of it is start-up
    longest = time.monotonic() - begun
    died = 0
    for number in range(STARTS):
        deployment.grow(0.5 + 0.3 * number / STARTS)
        process = deployment.start()
        time.sleep(draw.uniform(0, longest))
        died += process.poll() is None
        process.kill()
        process.wait()
        assert_no_orphan(deployment)
    assert died > STARTS / 2, f"only {died} of {STARTS} starts were killed"
    begun = time.monotonic()
    deployment.finish()
    seconds = time.monotonic() - begun
    fault = "a hundred starts are killed"
    report.compare(fault, "the next goes on at its snapshot", deployment.tables(), expected(), seconds)
