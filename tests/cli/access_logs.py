"""What an access log adds up to, in a few lines of plain Python that share nothing with the product."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from tests.cli.command import Inside, Result, shown


class Totals(NamedTuple):
    """Bytes by subject, UTC day and status class; requests by method; what each subject owes."""

    egress: dict[tuple[str, str, str], int]
    requests: dict[str, int]
    cost: dict[str, Decimal]


def expected(log: Iterable[str]) -> Totals:
    """Add up an access log whose lines all parse, and of which all events are accepted."""
    egress: Counter[tuple[str, str, str]] = Counter()
    requests: Counter[str] = Counter()
    billed: Counter[tuple[str, str]] = Counter()
    for line in log:
        before, request, after = line.split('"')[:3]
        subject = before.split(" ")[0]
        status, size = after.split()[:2]
        day = datetime.strptime(before.split("[")[1].split("]")[0], "%d/%b/%Y:%H:%M:%S %z").astimezone(UTC).date()
        used = 0 if size == "-" else int(size)
        egress[subject, str(day), f"{status[0]}xx"] += used
        requests[request.split(" ")[0] if " " in request else ""] += 1
        if status[0] in "23":
            billed[subject, f"{day:%Y-%m}"] += used
    cost: dict[str, Decimal] = {}
    for (subject, _), used in billed.items():
        cost[subject] = cost.get(subject, Decimal(0)) + price(used)
    return Totals(dict(egress), dict(requests), cost)


def price(used: int) -> Decimal:
    """Of a month: 10 MB are free; then a cent, and 10^-10 a byte up to 1 GB, and 8 * 10^-11 beyond."""
    if used <= 10_000_000:
        return Decimal(0)
    first, rest = min(used, 1_000_000_000) - 10_000_000, max(used - 1_000_000_000, 0)
    return Decimal("0.01") + first * Decimal("1e-10") + rest * Decimal("8e-11")


def counted(inside: Inside, log: Path) -> tuple[Result, Result, Totals]:
    """Convert a log and run it by the sample catalog `web`; what was said, and the tables' totals."""
    converted = inside("convert", "access-log", log, "--out", "events.ndjson", "--rejects", "rejected.log")
    assert converted.code == 0, shown(converted)
    run = inside("run", "--catalog", "web", "--source", "file:events.ndjson", "--data-dir", "data")
    assert run.code == 0, shown(run)

    def ask(sql: str) -> list[dict[str, str]]:
        return [json.loads(line) for line in inside("query", "--data-dir", "data", sql).out.splitlines()]

    egress = ask(
        "SELECT subject, toDate(window_start) AS day, dimensions['status_class'] AS class, value "
        "FROM usage_by_window WHERE meter = 'egress_bytes'"
    )
    requests = ask(
        "SELECT dimensions['method'] AS method, sum(value) AS n FROM usage_by_window "
        "WHERE meter = 'requests' GROUP BY method"
    )
    cost = ask("SELECT subject, sum(amount) AS amount FROM rated_usage_current GROUP BY subject")
    return (
        converted,
        run,
        Totals(
            {(row["subject"], row["day"], row["class"]): int(row["value"]) for row in egress},
            {row["method"]: int(row["n"]) for row in requests},
            {row["subject"]: Decimal(row["amount"]) for row in cost},
        ),
    )
