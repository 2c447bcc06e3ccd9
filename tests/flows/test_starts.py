"""Starts that are refused, and runs that fail: they change nothing, and another may follow in the same process."""

from __future__ import annotations

from typing import Any

import pytest

from domain.ports import TallyError
from tests.flows.places import Place, check
from tests.flows.scenes import CATALOG, Scene, second_version


def refused(place: Place, match: str, catalog: str | None = None, **settings: Any) -> None:
    with pytest.raises(TallyError, match=match):
        place.run(catalog, **settings)


def test_unsafe_starts_are_refused_and_change_nothing(place: Place, scene: Scene) -> None:
    """Also not the catalog: a new version must not come into force by a start that failed."""
    place.write(scene.first)
    place.run(CATALOG)
    version = second_version()

    refused(place, "was made with shards=8, now it is 9", version, shards=9)
    with place.start(None):
        refused(place, "is in use by process")
    record = place.data / "deployment.json"
    record.rename(place.data / "elsewhere")
    refused(place, "the record of what made it is missing", version)
    (place.data / "elsewhere").rename(record)
    recovery = place.data / "recovery"
    recovery.rename(place.data / "elsewhere")
    refused(place, "the ledger holds events, but .*recovery has no saved state", version)
    recovery.rmdir()
    (place.data / "elsewhere").rename(recovery)
    moved = place.input.rename(place.input.with_name("moved"))
    refused(place, "no file matches", version)
    moved.rename(place.input)

    for content, fault in (
        ([b"x" + scene.first[0][1:]], "0.ndjson: its beginning is not what it was, but .* stand in the ledger"),
        ([scene.first[0], scene.first[1] + b" "], "1.ndjson: .*extended since"),
    ):
        place.write(content)
        refused(place, fault)
        place.write(scene.first)

    place.write(scene.whole)
    after = place.run(None)
    assert after.effective_from == [0]
    check(after.tables, scene.wanted)


def test_a_first_start_that_is_refused_decides_nothing(place: Place, scene: Scene) -> None:
    refused(place, "no file matches", second_version(), shards=3)
    place.write(scene.whole)
    refused(place, "the catalog has", "version: 1\n", shards=3)
    found = place.run(CATALOG, shards=5)
    assert found.effective_from == [0]
    check(found.tables, scene.wanted)
