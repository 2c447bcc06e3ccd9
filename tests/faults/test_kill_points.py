"""`kill -9` at named points, again and again at the same one: the tables are the oracle's, and no child is left."""

from __future__ import annotations

import random
import re
import shutil
import signal
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults.deployment import RUN_SECONDS_MAX, Deployment, assert_no_orphan
from tests.faults.kafka_deployment import KafkaDeployment
from tests.faults.report import Report
from tests.faults.small import expected, workload
from tests.flows.kafka_logs import recent
from tests.services.kafka import Kafka
from tests.system.supervisor import wait_until
from tests.system.system import System
from tests.system.traffic import Traffic
from tests.tables import differences
from tests.workload import kitchen_sink_catalog

RUNS_MAX = 12
IN_A_ROW = 5
GOES_ON = "goes on at its snapshot"


class Case(NamedTuple):
    """A fault, the point (`kill_at.POINTS`) at which it comes, and before which passing of it."""

    fault: str
    point: str
    passings_max: int
    goes_on: bool = False
    """Whether the point is passed only where something has run before."""


FILES = [
    Case("kill -9 at a claim", "claim sent", 12),
    Case("kill -9 at a claim", "claimed", 12),
    Case("kill -9 after an insert", "table inserted", 9),
    Case("kill -9 after a signal or quota went out", "quotas written", 2),
    Case("kill -9 after a signal or quota went out", "signal published", 1),
    Case("kill -9 in a snapshot", "in the sink's snapshot", 1),
    Case("kill -9 in a snapshot", "behind the sink's snapshot", 1),
    Case("kill -9 in a snapshot", "in a file's snapshot", 4),
    Case("kill -9 in a snapshot", "in a shard's snapshot", 6),
    Case("kill -9 while claims are brought up to the ledger", "claims taken over", 1),
    Case("kill -9 while claims are brought up to the ledger", "claims restored", 2, goes_on=True),
    Case("kill -9 while claims are brought up to the ledger", "claims published", 1),
    Case("kill -9 while the saved state is copied", "saved state copied", 4, goes_on=True),
    Case("kill -9 while the saved state is copied", "before the copy's name", 1, goes_on=True),
    Case("kill -9 while the saved state is copied", "saved state synced", 6, goes_on=True),
    Case("kill -9 while tables are made", "before a statement of a migration", 5),
    Case("kill -9 while a catalog is applied", "before the catalog", 1),
    Case("kill -9 while a catalog is applied", "catalog applied", 1),
    Case("kill -9 while a catalog is applied", "before a record's name", 1),
]


KAFKA = [
    Case("kill -9 at a claim", "claimed", 6),
    Case("kill -9 after an insert", "table inserted", 9),
    Case("kill -9 after a signal or quota went out", "signal produced", 2),
    Case("kill -9 after a signal or quota went out", "signals acknowledged", 1),
    Case("kill -9 in a snapshot", "in a partition's snapshot", 4),
    Case("kill -9 in a snapshot", "behind the sink's snapshot", 1),
    Case("kill -9 in a snapshot", "offsets committed", 2),
]
"""What goes another way there than with files."""

LEADER = ["claims taken over", "claims published", "before the copy's name", "saved state synced", "claimed"]
"""Points of process 0, for which another one waits at the start."""


@pytest.mark.faults
@pytest.mark.parametrize("case", FILES, ids=lambda case: case.point)
def test_killed_at_a_point(tmp_path: Path, report: Report, case: Case) -> None:
    deployment = Deployment(tmp_path / "deployment", workload(), kitchen_sink_catalog(), workers=2)
    if case.goes_on:
        deployment.grow(0.3)
        assert deployment.start().wait(RUN_SECONDS_MAX) == 0, deployment.log
    if case.point == "claims restored":
        shutil.rmtree(deployment.data / "redis")
    seconds = die_and_finish(deployment, case)
    report.compare(case.fault, GOES_ON, deployment.tables(), expected(), seconds)


@pytest.mark.faults
@pytest.mark.parametrize("case", KAFKA, ids=lambda case: case.point)
def test_killed_at_a_point_over_kafka(tmp_path: Path, kafka: Kafka, report: Report, case: Case) -> None:
    topic = "killed-" + re.sub("[^a-z]", "-", case.point)
    messages = tuple(recent(20_29, 300))
    deployment = KafkaDeployment(
        tmp_path / "deployment", [], kitchen_sink_catalog(), 2, 30, kafka=kafka, messages=messages, topic=topic
    )
    seconds = die_and_finish(deployment, case)
    report.compare(case.fault, GOES_ON, *deployment.compared(), seconds)


@pytest.mark.faults
def test_killed_once_at_some_points(tmp_path: Path) -> None:
    deployment = Deployment(tmp_path / "deployment", workload(), kitchen_sink_catalog(), workers=2, batch_rows_max=30)
    for number, point in enumerate(["table inserted", "before the copy's name", "behind the sink's snapshot"]):
        deployment.grow(0.3 * (number + 1))
        assert deployment.start("tests.faults.kill_at", point, "1").wait(RUN_SECONDS_MAX) == -signal.SIGKILL
        assert_no_orphan(deployment)
    deployment.finish()
    found, oracle = deployment.compared()
    assert not differences(found, oracle)


def die_and_finish(deployment: Deployment, case: Case) -> float:
    """Run, with a little more input each time, until the process has died often enough; then to the end of all input.

    Returns how long that last run took.
    """
    passing = random.Random(case.point).randint(1, case.passings_max)
    print(f"{case.point}: dies at passing {passing}")
    deaths = 0
    for run in range(RUNS_MAX):
        deployment.grow(0.3 + 0.6 * run / RUNS_MAX)
        code = deployment.start("tests.faults.kill_at", case.point, str(passing)).wait(RUN_SECONDS_MAX)
        assert code in (0, -signal.SIGKILL), deployment.log
        assert_no_orphan(deployment)
        deaths += code != 0
        if deaths == IN_A_ROW:
            break
    assert deaths == IN_A_ROW, f"died {deaths} times only in {RUNS_MAX} runs"
    begun = time.monotonic()
    deployment.finish()
    assert_no_orphan(deployment)
    return time.monotonic() - begun


@pytest.mark.faults
@pytest.mark.parametrize("point", LEADER)
def test_the_leader_of_two_processes_is_killed_at_a_point(system: System, report: Report, point: str) -> None:
    traffic = Traffic(seed=31)
    with system.flow(2) as flow:
        system.emit(traffic.events(100))
        system.settle(flow)
    builds = {0: ["tests.faults.kill_at", point, "1"]}
    system.emit(traffic.events(100))
    with system.flow(2, builds) as flow:
        wait_until(lambda: flow.exits.count((0, -signal.SIGKILL)) >= IN_A_ROW, f"deaths: {flow.exits}")
        builds.clear()
        system.emit(traffic.events(200))
        seconds = system.settle(flow)
    report.check("kill -9 of the process that prepares a start for two", "both start again", system, seconds)
