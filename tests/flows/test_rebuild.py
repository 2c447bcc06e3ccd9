"""State that was lost is rebuilt from the ledger: what follows is counted as if nothing had happened."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from domain.ports import TallyError
from engines.clickhouse import EmbeddedClickHouse
from engines.redis_server import RedisServer
from sinks.migrate import DATABASE
from tests.flows.places import Place, StopAfter, check
from tests.flows.scenes import CATALOG, Scene
from tests.oracle import Tables


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


def change(place: Place, *statements: str) -> None:
    """Do something to the tables while no run goes on."""
    with EmbeddedClickHouse(place.data / "clickhouse") as engine, engine.client(DATABASE) as client:
        for statement in statements:
            client.command(statement, settings={"mutations_sync": 1})


def ids(tables: Tables) -> set[str]:
    return {row["id"] for row in tables.signals.values()}


def test_lost_state_and_claims_are_rebuilt_and_the_log_goes_on(place: Place, scene: Scene, server: RedisServer) -> None:
    """Stopped in the middle, with other shards and workers. What follows repeats, and is late to, what was rebuilt.

    Of the signals that the first part crossed only the last one, which may not have been published, is again.
    """
    place.write(scene.first)
    before = ids(place.run(CATALOG, redis_url=server.url).tables)
    last = min(before)
    change(place, f"ALTER TABLE signals UPDATE at = at - INTERVAL 1 DAY WHERE id != '{last}'")
    with redis.Redis.from_url(server.url) as client, client.pubsub() as pubsub:
        client.flushall()
        shutil.rmtree(place.data / "recovery")
        (place.data / "files.json").unlink()
        with pytest.raises(TallyError, match=r"counts? from zero.*tally run --source ledger"):
            place.run(None, redis_url=server.url)

        pubsub.subscribe("usage.signals")
        place.write(scene.whole)
        part = StopAfter(9)
        place.run(None, part, 2, rebuilds=True, shards=5, batch_rows_max=20, redis_url=server.url)
        with pytest.raises(TallyError, match=r"made with shards=5, now it is 8.*--source ledger"):
            place.run(None, redis_url=server.url)
        whole = place.run(None, workers=3, shards=5, redis_url=server.url)
        check(whole.tables, scene.wanted)
        heard = []
        while (message := pubsub.get_message(timeout=0.5)) is not None:
            heard.append(message["data"])
    published = {json.loads(data)["id"] for data in heard[1:]}
    assert len(before) > 20
    assert published == (ids(scene.wanted) - before) | {last}

    place.run(None, workers=2, rebuilds=True, redis_url=server.url)
    check(place.run(None, redis_url=server.url).tables, scene.wanted)


def test_a_ledger_that_lacks_rows_is_refused(place: Place, scene: Scene) -> None:
    place.write(scene.first)
    place.run(CATALOG)
    change(place, "CREATE TABLE kept AS events", "INSERT INTO kept SELECT * FROM events")
    offset = "(SELECT max(log_offset) FROM kept WHERE log_partition = 1)"
    change(place, f"ALTER TABLE events DELETE WHERE log_partition = 1 AND log_offset = {offset}")
    with pytest.raises(TallyError, match=r"ledger of partition 1 of file is not complete: \d+ events were read"):
        place.run(None, rebuilds=True)
    change(place, "INSERT INTO events SELECT * FROM kept", "CREATE TABLE how_far AS progress")
    change(place, "INSERT INTO how_far SELECT * FROM progress", "ALTER TABLE progress DELETE WHERE log_partition = 2")
    with pytest.raises(TallyError, match="has events of partition 2 of file, but `progress` does not say"):
        place.run(None, rebuilds=True)
    with pytest.raises(TallyError, match=r"file/2: the saved state has counted up to offset \d+, but the ledger only"):
        place.run(None)
    change(place, "INSERT INTO progress SELECT * FROM how_far")
    place.write(scene.whole)
    check(place.run(None, rebuilds=True).tables, scene.wanted)
