"""Catalogs change between kills: each event and each period goes by the version in force."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.deployment import RUN_SECONDS_MAX, Deployment, run_with_kills
from tests.faults.loads import seasons
from tests.faults.report import Report
from tests.workload import kitchen_sink_catalog

SEED = 43
STARTS = ["2026-02-20T00:00:00+00:00", "2026-12-17T00:00:00+00:00", "2027-10-13T00:00:00+00:00"]
"""So far apart that a catalog applied in one season holds for all of the next."""
FIRST = kitchen_sink_catalog()


def replaced(text: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


MORE = """\
meters:
  us_bytes: {event_type: api.request, aggregation: sum, value: bytes, where: {region: [us-east-1]}, window: 1d}
"""
"""A new meter, which a new plan and a plan in use are priced by."""

BEATS = 'model: package, meter: beats, size: 3, amount: "{}"}}'
US = '      - {{key: us, model: per_unit, meter: us_bytes, unit_amount: "{}"}}'
TEAM = '  team:\n    prices: [{key: us, model: per_unit, meter: us_bytes, unit_amount: "0.01"}]'
SECOND = replaced(
    FIRST,
    ("\nmeters:\n", f"\n{MORE}"),
    (BEATS.format("0.25"), BEATS.format("0.40") + "\n" + US.format("0.003")),
    ("limit: 5, period: day", "limit: 7, period: day"),
    ("\n  bare:\n", f"\n{TEAM}\n  bare:\n"),
)
THIRD = replaced(SECOND, (US.format("0.003"), US.format("0.004")), ("limit: 7, period: day", "limit: 6, period: day"))
REFUSED = {
    "timezone": replaced(SECOND, ("\ntimezone: Europe/London\n", "\ntimezone: Europe/Paris\n")),
    "us_bytes": replaced(SECOND, ("region: [us-east-1]}, window: 1d", "region: [us-east-1]}, window: 1h")),
    "no_such_meter": replaced(SECOND, ("key: bandwidth, meter: api_bytes", "key: bandwidth, meter: no_such_meter")),
}
"""By what the refusal has to name."""


@pytest.mark.faults
def test_catalogs_change_between_kills(tmp_path: Path, report: Report) -> None:
    print(f"seed {SEED}")
    contents = seasons(SEED, 200, STARTS, 30)
    deployment = Deployment(tmp_path / "deployment", contents, FIRST, workers=2)
    run_with_kills(deployment, SEED, kills=2, end=0.25)
    apply(deployment, SECOND)
    run_with_kills(deployment, SEED + 1, kills=2, begin=0.25, end=0.55)
    before = deployment.tables(), deployment.catalogs()
    for name, text in REFUSED.items():
        apply(deployment, text)
        assert deployment.start().wait(RUN_SECONDS_MAX) == 1
        assert name in deployment.log
    assert (deployment.tables(), deployment.catalogs()) == before
    apply(deployment, THIRD)
    seconds = run_with_kills(deployment, SEED + 2, kills=2, begin=0.55)
    assert [text for _, text in deployment.catalogs()] == [FIRST, SECOND, THIRD]
    found, oracle = deployment.compared()
    assert {row["catalog_version"] for row in found.rated_usage.values()} == {1, 2, 3}
    outcome = "each period by the version at its start; refused ones change nothing"
    report.compare("catalogs change, with kill -9", outcome, found, oracle, seconds)


def apply(deployment: Deployment, text: str) -> None:
    (deployment.folder / "catalog.yaml").write_text(text, encoding="utf-8")
