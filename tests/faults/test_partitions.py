"""Partitions that are idle, and partitions that come while the flow runs."""

from __future__ import annotations

import signal

import pytest

from tests.faults.report import Report
from tests.system.supervisor import wait_until
from tests.system.system import SOURCE, System
from tests.system.traffic import Traffic

SEED = 59


@pytest.mark.faults
def test_idle_partitions_and_new_ones(system: System, report: Report) -> None:
    """One key's usage leaves all partitions but one idle; new ones end the run, and the next reads them too."""
    print(f"seed {SEED}")
    before, alone, after = (Traffic(SEED + n) for n in range(3))  # a repeat stays in the partition of its first
    with system.flow(2) as flow:
        system.emit(before.events(100))
        system.settle(flow)
        system.produce((usage.json(SOURCE) for usage in alone.events(100)), key=b"alone")
        flow.kill(1, signal.SIGKILL)
        system.settle(flow)
        exits = len(flow.exits)
        with system.kafka.admin() as admin:
            admin.create_partitions({system.topic: 6})
        wait_until(lambda: len(flow.exits) >= exits + 2, "both end, to read the new partitions too")
        system.emit(after.events(100))
        flow.kill(0, signal.SIGKILL)
        seconds = system.settle(flow)
    assert len(system.counted()) == 6
    report.check("idle partitions and new ones, with kill -9", "the next start reads them too", system, seconds)
