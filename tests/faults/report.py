"""What each fault cost, over all its cases of a run: the fault matrix of docs/guarantees.md, measured.

`python -m tests.faults.report` writes the figures of the last `make faults` into that page.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from io import StringIO
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from tests.oracle import Tables
from tests.system.system import System
from tests.tables import differences

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guarantees.md"
FIGURES = ROOT / ".faults" / "matrix.json"
RECOVER_SECONDS_MAX = 90.0
"""Once a fault is over, everything in the log is counted within this time."""
ROW = re.compile(r"^\| (?P<fault>[^|]+) \| (?P<expected>[^|]+) \| (?P<test>`[^|]+`) \| (?P<figure>[^|]+) \|$", re.M)


@dataclass
class Row:
    """The cases of one fault."""

    fault: str
    expected: str
    runs: int = 0
    lost: int = 0
    doubled: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def recovered(self) -> str:
        """Seconds to recover, median and worst."""
        return f"{median(self.seconds):.1f} / {max(self.seconds):.1f}" if self.seconds else "–"

    @property
    def figure(self) -> str:
        """As the page has it."""
        runs = "1 run" if self.runs == 1 else f"{self.runs} runs"
        return f"{runs}: {self.lost} lost, {self.doubled} doubled; {self.recovered} s"


class Report:
    """Collects the outcome of every case."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}

    def add(self, fault: str, expected: str, *, lost: int, doubled: int, seconds_to_recover: float | None) -> None:
        """Keep the outcome of one case, and fail unless it is a good one.

        Args:
            fault: What was done, by its name in the fault matrix of docs/guarantees.md.
            expected: What has to come of it, by the same row.
            lost: Ids that had to count and did not.
            doubled: Ids that counted more than once.
            seconds_to_recover: From the end of the fault until everything in the log was counted, if that was measured.
        """
        row = self.rows.setdefault(fault, Row(fault, expected))
        row.runs, row.lost, row.doubled = row.runs + 1, row.lost + lost, row.doubled + doubled
        if seconds_to_recover is not None:
            row.seconds.append(seconds_to_recover)
        assert documented().get(fault) == expected, f"the fault matrix of {PAGE.name} has no such row: {row}"
        assert (lost, doubled) == (0, 0), row
        assert seconds_to_recover is None or seconds_to_recover < RECOVER_SECONDS_MAX, row

    def compare(
        self, fault: str, expected: str, found: Tables, oracle: Tables, seconds_to_recover: float | None
    ) -> None:
        """Keep what the tables say, and fail unless every row is the oracle's."""
        lost, doubled = lost_and_doubled(found, oracle)
        self._judge(fault, expected, lost, doubled, seconds_to_recover, differences(found, oracle))

    def check(self, fault: str, expected: str, system: System, seconds_to_recover: float | None) -> Tables:
        """The same of a deployment at rest, and what the auditor says of it; returns its tables."""
        found, oracle = system.compared()
        judged = system.audit()
        wrong = judged.violations[:20] + differences(found, oracle)
        self._judge(fault, expected, judged.lost, judged.doubled, seconds_to_recover, wrong)
        return found

    def _judge(
        self, fault: str, expected: str, lost: int, doubled: int, seconds: float | None, wrong: list[str]
    ) -> None:
        try:
            self.add(fault, expected, lost=lost, doubled=doubled, seconds_to_recover=seconds)
        finally:
            assert not wrong, "\n".join(wrong)

    def table(self) -> str:
        """All of it, for people."""
        table = Table("fault", "expected", "runs", "lost", "doubled", "seconds to recover: median / worst")
        for row in self.rows.values():
            table.add_row(row.fault, row.expected, str(row.runs), str(row.lost), str(row.doubled), row.recovered)
        text = StringIO()
        Console(file=text, width=150).print(table)
        return text.getvalue()

    def write(self) -> None:
        """All of it, for programs."""
        FIGURES.parent.mkdir(exist_ok=True)
        FIGURES.write_text(json.dumps([asdict(row) for row in self.rows.values()], indent=1), encoding="utf-8")


def lost_and_doubled(found: Tables, oracle: Tables) -> tuple[int, int]:
    """Ids that are in the ledger less often, and ids that are there more often, than the oracle has them.

    It has one twice only where the log times are more than `accept_within` apart.
    """
    times, wanted = (
        Counter((row["source"], row["id"]) for row in tables.events.values()) for tables in (found, oracle)
    )
    return len(wanted - times), len(times - wanted)


def documented() -> dict[str, str]:
    """By fault, what has to come of it, as the page says."""
    return {match["fault"]: match["expected"] for match in ROW.finditer(PAGE.read_text(encoding="utf-8"))}


def main() -> None:
    """Write the last figures into the page."""
    rows = {row["fault"]: Row(**row) for row in json.loads(FIGURES.read_text(encoding="utf-8"))}

    def measured(match: re.Match[str]) -> str:
        row = rows.get(match["fault"])
        figure = row.figure if row else match["figure"]
        return f"| {match['fault']} | {match['expected']} | {match['test']} | {figure} |"

    PAGE.write_text(ROW.sub(measured, PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
