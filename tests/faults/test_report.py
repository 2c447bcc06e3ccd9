"""The report counts, and fails what has to fail."""

from __future__ import annotations

from typing import Any

import pytest

from tests.faults.report import RECOVER_SECONDS_MAX, Report, documented, lost_and_doubled
from tests.oracle import Tables

FAULT = "Redis is emptied"
EXPECTED = documented()[FAULT]


def test_runs_of_a_fault_are_one_row() -> None:
    report = Report()
    for seconds in (3.0, 9.0, 4.0):
        report.add(FAULT, EXPECTED, lost=0, doubled=0, seconds_to_recover=seconds)
    assert report.rows[FAULT].figure == "3 runs: 0 lost, 0 doubled; 4.0 / 9.0 s"
    assert all(word in report.table() for word in (FAULT, "4.0 / 9.0"))


@pytest.mark.parametrize(
    ("fault", "expected", "figures"),
    [
        (FAULT, EXPECTED, {"lost": 1, "doubled": 0, "seconds_to_recover": 1.0}),
        (FAULT, EXPECTED, {"lost": 0, "doubled": 2, "seconds_to_recover": None}),
        (FAULT, EXPECTED, {"lost": 0, "doubled": 0, "seconds_to_recover": RECOVER_SECONDS_MAX}),
        (FAULT, "is of no consequence", {"lost": 0, "doubled": 0, "seconds_to_recover": 1.0}),
        ("a fault that no page names", EXPECTED, {"lost": 0, "doubled": 0, "seconds_to_recover": 1.0}),
    ],
    ids=["lost", "doubled", "too slow", "another outcome", "not documented"],
)
def test_a_case_fails_and_is_in_the_table(fault: str, expected: str, figures: dict[str, Any]) -> None:
    report = Report()
    with pytest.raises(AssertionError):
        report.add(fault, expected, **figures)
    assert report.rows[fault].runs == 1


def test_an_id_counts_as_often_as_the_oracle_says() -> None:
    found, oracle = Tables(), Tables()
    ids = {"found": "aabbbd", "oracle": "aabcd"}
    for tables, some in ((found, ids["found"]), (oracle, ids["oracle"])):
        tables.events = {("topic", 0, number, 0): {"source": "/", "id": one} for number, one in enumerate(some)}
    assert lost_and_doubled(found, oracle) == (1, 1), "c is lost, b is doubled"
