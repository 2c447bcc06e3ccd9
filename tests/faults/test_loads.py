"""Loads that strain one part of the flow, with kills: the tables are the oracle's, and the auditor's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.deployment import Deployment, run_with_kills
from tests.faults.loads import around, hot_subject, many_files, poison, repeats
from tests.faults.report import Report
from tests.workload import kitchen_sink_catalog

SEED = 41
EVENTS = 400
GOES_ON = "goes on at its snapshot"

LOADS: dict[str, Callable[[], list[bytes]]] = {
    "90 % repeats, with kill -9": lambda: repeats(SEED, EVENTS, 0.9),
    "90 % garbage, with kill -9": lambda: poison(SEED, EVENTS, 0.9),
    "nearly all usage is one subject's, with kill -9": lambda: hot_subject(SEED, EVENTS),
    "1,000 partitions with tiny batches, with kill -9": lambda: many_files(SEED, 1_000),
}

BORDERS = {
    "Berlin springs forward, and March ends": (
        "2026-03-28T12:00:00+00:00",
        5,
        [
            "2026-03-29T01:00:00+00:00",  # Berlin, London
            "2026-03-31T18:15:00+00:00",  # the month's end in Kathmandu
            "2026-03-31T22:00:00+00:00",  # in Berlin
            "2026-03-31T23:00:00+00:00",  # in London
            "2026-03-31T13:00:00+00:00",  # on Lord Howe
            "2026-03-31T04:00:00+00:00",  # a billing period of New York's 31st
            "2026-04-01T04:00:00+00:00",  # the month's end in New York
        ],
    ),
    "New York and Havana fall back as October ends": (
        "2026-10-30T12:00:00+00:00",
        4,
        [
            "2026-10-31T23:00:00+00:00",  # the month's end in Berlin
            "2026-10-31T18:15:00+00:00",  # in Kathmandu
            "2026-11-01T00:00:00+00:00",  # in London
            "2026-11-01T04:00:00+00:00",  # in New York
            "2026-11-01T05:00:00+00:00",  # Havana: 01:00 becomes 00:00
            "2026-11-01T06:00:00+00:00",  # New York: 02:00 becomes 01:00
            "2026-11-01T05:30:00+00:00",  # in the hour that comes twice
            "2026-11-01T06:30:00+00:00",
        ],
    ),
}
"""Where log times begin, how many days they go on, and the instants around which event times lie.

From files, whose log times are in their lines: Kafka's are the broker's clock, and a broker has but the present.
"""


@pytest.mark.faults
@pytest.mark.parametrize("load", LOADS)
def test_a_load_that_is_not_the_usual_one(tmp_path: Path, report: Report, load: str) -> None:
    print(f"seed {SEED}")
    deployment = Deployment(
        tmp_path / "deployment", LOADS[load](), kitchen_sink_catalog(), workers=2, batch_rows_max=50
    )
    seconds = run_with_kills(deployment, SEED, kills=3)
    report.compare(load, GOES_ON, *deployment.compared(), seconds)


@pytest.mark.faults
@pytest.mark.parametrize("border", BORDERS)
def test_a_month_ends_and_clocks_change(tmp_path: Path, report: Report, border: str) -> None:
    print(f"seed {SEED}")
    contents = around(SEED, EVENTS, *BORDERS[border])
    deployment = Deployment(tmp_path / "deployment", contents, kitchen_sink_catalog(), workers=2)
    seconds = run_with_kills(deployment, SEED, kills=4)
    fault = "a month ends and daylight saving changes, with kill -9"
    report.compare(fault, GOES_ON, *deployment.compared(), seconds)


@pytest.mark.faults
def test_an_idle_file_and_new_ones(tmp_path: Path, report: Report) -> None:
    """The first file never grows again; two come while runs come and go."""
    print(f"seed {SEED}")
    *grown, second, third = around(SEED, EVENTS, "2026-03-01T00:00:00+00:00", 20, files=5)
    deployment = Deployment(tmp_path / "deployment", grown, kitchen_sink_catalog(), workers=2)
    deployment.finish(0.2)
    deployment.leave(0)
    run_with_kills(deployment, SEED, kills=2, begin=0.2, end=0.5)
    deployment.add(second)
    seconds = run_with_kills(deployment, SEED + 1, kills=2, begin=0.5, end=0.8)
    deployment.add(third)
    seconds = max(seconds, run_with_kills(deployment, SEED + 2, kills=2, begin=0.8))
    report.compare("an idle file and new ones, with kill -9", GOES_ON, *deployment.compared(), seconds)
