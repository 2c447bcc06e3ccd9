"""Whole runs over files with embedded engines, against the oracle: the rows are the same rows, however it runs."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from config.catalog import CatalogError
from domain.ports import TallyError
from domain.subscriptions import SUBSCRIPTION
from flows.catalogs import apply_catalog
from flows.run import run
from tests.flows.places import Place, StopAfter, changed_catalog, check, expected
from tests.flows.scenes import CATALOG, Scene, second_version
from tests.oracle import Tables
from tests.tables import read_tables


def test_the_workload_has_everything(scene: Scene) -> None:
    reasons = Counter(row["reason"] for row in scene.wanted.rejects.values())
    assert len(reasons) == 10
    assert min(reasons.values()) >= 2
    assert {key[0] for key in scene.wanted.signals} == {
        "quota.threshold_reached",
        "quota.exceeded",
        "quota.reset",
        "spend.threshold_reached",
    }
    assert {row["action"] for row in scene.wanted.subscriptions.values()} == {"create", "change", "end"}


@pytest.mark.parametrize(
    ("workers", "batch", "others"),
    [
        (1, 50_000, {}),
        (2, 100, {}),
        (4, 5_000, {"flush_rows_max": 50, "flush_seconds": 0.05}),
        (4, 40, {"shards": 1, "claim_shards": 3}),
    ],
)
def test_workers_and_batches_make_no_difference(
    place: Place, scene: Scene, workers: int, batch: int, others: dict[str, Any]
) -> None:
    place.write(scene.whole)
    check(place.run(CATALOG, workers=workers, batch_rows_max=batch, **others).tables, scene.wanted)


def test_a_run_that_is_stopped_goes_on(place: Place, scene: Scene) -> None:
    place.write(scene.whole)
    part = place.run(CATALOG, StopAfter(20), batch_rows_max=20).tables
    assert 0 < len(part.events) < len(scene.wanted.events) / 2
    assert {position: scene.wanted.events[position] for position in part.events} == part.events
    check(place.run(None, workers=2).tables, scene.wanted)


def test_a_saved_state_that_cannot_be_written_stops_the_run_and_loses_nothing(place: Place, scene: Scene) -> None:
    """Bytewax has but a panic for it. Here SQLite only says so; tests/faults/test_disk.py has disks that are full."""
    place.write(scene.whole)
    with place.start(CATALOG) as deployment:
        files = sorted(Path(deployment.recovery.db_dir).glob("part-*"))
        for file in files:
            alter(file, "CREATE TRIGGER full BEFORE INSERT ON snaps BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
        with pytest.raises(TallyError, match=f"saved state in {files[0].parent} could not be written: disk is full"):
            run(deployment)
    for file in files:
        alter(file, "DROP TRIGGER full")
    check(place.run(None, workers=2).tables, scene.wanted)


def alter(store: Path, statement: str) -> None:
    with closing(sqlite3.connect(store)) as database, database:
        database.execute(statement)


# catalogs


def jobs(day: str) -> bytes:
    """Jobs of a subject that subscribes, of one whose subscription ends, and of one without."""
    lines = [
        {
            "specversion": "1.0", "source": "jobs", "id": f"{day}-{n}", "type": "job.done",
            "time": f"{day}T0{n}:00:00Z",
            "subject": ("cust-1", "cust-berlin", "cust-bare-not")[n % 3], "data": {"units": n},
        }
        for n in range(9)
    ]  # fmt: skip
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def test_a_catalog_changes_between_runs(place: Place, scene: Scene) -> None:
    place.write([*scene.first, jobs("2026-03-01")])
    first = place.run(CATALOG)
    assert first.effective_from == [0]

    version = second_version()
    whole = [*scene.whole, jobs("2026-03-01") + jobs("2027-02-28") + jobs("2027-03-02") + jobs("2027-03-11")]
    place.write(whole)
    second = place.run(version, workers=2)
    assert second.added == 2
    assert second.effective_from == [0, max(row["log_time"] for row in accepted_or_not(first.tables)) + 1]

    catalogs = list(zip(second.effective_from, (CATALOG, version), strict=True))
    wanted = expected(catalogs, whole)
    check(second.tables, wanted)
    by_type = Counter(row["type"] for row in wanted.events.values())
    assert by_type["job.done"] == 27
    assert {row["catalog_version"] for row in wanted.rated_usage.values()} == {1, 2}
    priced = {(subject, plan) for subject, plan, price, *_ in wanted.rated_usage if price == "jobs"}
    assert {("cust-1", "pro"), ("cust-bare-not", "starter")} <= priced


def accepted_or_not(tables: Tables) -> list[Any]:
    return [*tables.events.values(), *tables.rejects.values()]


def test_a_run_goes_on_where_the_files_have_grown_whatever_changes_were_refused(place: Place, scene: Scene) -> None:
    place.write(scene.first)
    assert place.run(CATALOG).added == 1
    place.write(scene.whole)
    meters = yaml.safe_load(CATALOG)["meters"]
    changed = meters | {"beats": meters["beats"] | {"window": "5m"}}
    with place.start(CATALOG) as deployment, deployment.client() as client:
        for text, fault in (
            (changed_catalog(CATALOG, currency="USD"), "currency: may not change"),
            (changed_catalog(CATALOG, accept_within="36d"), "accept_within: may not change"),
            (changed_catalog(CATALOG, timezone="UTC"), "timezone: may not change"),
            (changed_catalog(CATALOG, meters=changed), "meters.beats: its window may not change"),
            (changed_catalog(CATALOG, subscriptions=[]), "is gone"),
            ("{", "the catalog has"),
        ):
            with pytest.raises(CatalogError, match=fault):
                apply_catalog(client, text)
        assert [version.yaml for version in apply_catalog(client, None).history.versions] == [CATALOG]
        assert (deployment.applied.added, deployment.reclaimed.claims) == (None, 0)
        run(deployment)
        check(read_tables(client), scene.wanted)


# claims that Redis lost


def repeats(content: bytes) -> bytes:
    """Every heartbeat and subscription event of a file again, and every third of them with something else to bill."""
    out = []
    for number, line in enumerate(content.split(b"\n")):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("type") in ("heartbeat", SUBSCRIPTION):
            out.append(line)
            if number % 3 == 0:
                out.append(json.dumps(event | {"subject": "somebody else"}).encode())
    return b"\n".join(out) + b"\n"


def test_claims_that_redis_lost_are_rebuilt_from_the_ledger(place: Place, scene: Scene) -> None:
    """A repeat of an old event in a new file is a duplicate still, and one with another content a conflict."""
    place.write(scene.first)
    first = place.run(CATALOG)
    shutil.rmtree(place.data / "redis")
    whole = [*scene.whole, repeats(scene.first[0]) + repeats(scene.first[2])]
    place.write(whole)
    second = place.run(None, workers=2, batch_rows_max=100)

    wanted = expected([(0, CATALOG)], whole)
    check(second.tables, wanted)
    new = [row for position, row in wanted.rejects.items() if position[1] == 3]
    repeated = Counter(row["reason"] for row in new if row["first_position"][1] != 3)
    assert repeated["duplicate"] > 5
    assert repeated["conflict"] > 1
    claimed = ("duplicate", "conflict", "subscription_invalid")
    known = [row for row in first.tables.rejects.values() if row["reason"] in claimed]
    assert second.reclaimed == len(first.tables.events) + len(known)
