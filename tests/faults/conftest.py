"""The report of a run of fault cases."""

from __future__ import annotations

import pytest

from tests.faults.report import Report

_REPORT = pytest.StashKey[Report]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_REPORT] = Report()


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """Where a case says what came of its fault; the table is printed at the end."""
    assert request.node.get_closest_marker("faults"), "a case is found by its marker"
    return request.config.stash[_REPORT]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table, and keep it if the cases were what was asked for (`make faults`)."""
    report = config.stash[_REPORT]
    if report.rows:
        terminalreporter.section("fault matrix")
        terminalreporter.write(report.table())
        if config.option.markexpr == "faults":
            report.write()
