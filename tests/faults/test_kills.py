"""Killed at any moment, as often as you like: the books are those of a run that was never disturbed."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from tests.faults.deployment import Deployment, run_with_kills
from tests.faults.mutants import MUTANTS
from tests.faults.report import Report
from tests.oracle import Tables, compute
from tests.tables import differences, expected_tables
from tests.workload import generate, kitchen_sink_catalog

SEED = 20_26
EVENTS = 1_500


@cache
def workload() -> list[bytes]:
    return generate(SEED, EVENTS, 20, 4)


@cache
def expected() -> Tables:
    return expected_tables(compute([(0, kitchen_sink_catalog())], list(enumerate(workload()))))


def deployment(folder: Path, workers: int, mutation: str = "") -> Deployment:
    return Deployment(folder / "deployment", workload(), kitchen_sink_catalog(), workers, mutation=mutation)


def check_kills(folder: Path, report: Report, seed: int, kills: int, workers: int) -> None:
    print(f"seed {seed}, {kills} kills, {workers} workers")
    deployed = deployment(folder, workers)
    seconds = run_with_kills(deployed, seed, kills)
    report.compare("kill -9 at random, from files", "goes on at its snapshot", deployed.tables(), expected(), seconds)


@pytest.mark.faults(quick=True)
def test_a_few_kills_leave_no_trace(tmp_path: Path, report: Report) -> None:
    check_kills(tmp_path, report, seed=1, kills=4, workers=2)


@pytest.mark.faults
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_twenty_kills_leave_no_trace(tmp_path: Path, report: Report, workers: int) -> None:
    check_kills(tmp_path, report, seed=100 + workers, kills=20, workers=workers)


@pytest.mark.faults
@pytest.mark.parametrize("mutation", sorted(MUTANTS))
def test_the_crash_test_sees_a_wrong_build(tmp_path: Path, mutation: str) -> None:
    """The same kills that leave no trace on the real build show on this one; undisturbed, it is right."""
    undisturbed = deployment(tmp_path / "undisturbed", workers=2, mutation=mutation)
    undisturbed.finish()
    assert "\n".join(differences(undisturbed.tables(), expected())) == ""
    deployed = deployment(tmp_path, workers=2, mutation=mutation)
    run_with_kills(deployed, seed=1, kills=4)
    assert differences(deployed.tables(), expected()), f"{mutation} went unseen"
