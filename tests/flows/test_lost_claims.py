"""Redis loses claims in mid-run: the run stops, the next one restores them, and the tables are the oracle's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from domain.ports import ClaimsLost, TallyError
from stores.claims import RedisClaims
from tests.flows.places import Disturb, Place, StopAfter, check, events, expected
from tests.flows.scenes import CATALOG, Scene
from tests.services.proxy import Proxy
from tests.services.redis_cluster import RedisCluster, RedisNode

SMALL: dict[str, Any] = {
    "batch_rows_max": 10,
    "epoch_seconds": 0.2,
    "flush_rows_max": 20,
    "claim_shards": 3,
    "redis_wait_seconds": 20,
    "lease_seconds": 600,
}
"""Many batches, and several epochs and writes, in a run that takes a second."""


@pytest.fixture(scope="module")
def small() -> Scene:
    contents = events(21, 150)
    return Scene(contents, contents, expected([(0, CATALOG)], contents))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RedisNode]:
    with RedisNode(tmp_path / "redis") as node:
        yield node


def interrupted(place: Place, url: str, things: dict[int, Callable[[], None]]) -> None:
    """A run from where it was, in which Redis loses claims."""
    disturb = Disturb({10: lambda: time.sleep(0.3), **things})  # so that ClickHouse has some rows
    with pytest.raises(ClaimsLost, match="restart"):
        place.run(CATALOG, disturb, redis_url=url, **SMALL)
    assert disturb.done


def test_emptied_restarted_without_data_and_starts_that_die(
    place: Place, small: Scene, node: RedisNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def restart() -> None:
        node.kill()
        node.start()

    def die(*_: object) -> None:
        raise TallyError("killed")

    place.write(small.whole)
    interrupted(place, node.url, {15: node.client.flushall})
    interrupted(place, node.url, {15: restart})
    for step in ("restore", "publish"):
        with monkeypatch.context() as patch:
            patch.setattr(RedisClaims, step, die)
            with pytest.raises(TallyError, match="killed"):
                place.run(None, redis_url=node.url, **SMALL)
    last = place.run(None, workers=2, redis_url=node.url, **SMALL)
    assert last.reclaimed > 0
    check(last.tables, small.wanted)


def test_a_failover_to_a_replica_that_lags(place: Place, small: Scene, node: RedisNode, tmp_path: Path) -> None:
    """The address stays; behind it is a server whose data is older, as with Sentinel or a managed Redis."""
    with RedisNode(tmp_path / "replica") as replica, Proxy(node.url) as proxy:
        replica.follow(node)

        def fail_over() -> None:
            node.kill()
            proxy.lead_to(replica.url)

        place.write(small.whole)
        interrupted(place, proxy.url, {12: lambda: replica.follow(None), 30: fail_over})
        assert int(replica.client.hget("{tally:c0}", "p0")) > 0, "the replica has some claims"
        last = place.run(None, redis_url=proxy.url, **SMALL)
        assert last.reclaimed > 0, "and lacks some"
        check(last.tables, small.wanted)


def test_a_cluster_loses_a_node_and_promotes_a_replica_that_lags(place: Place, small: Scene, tmp_path: Path) -> None:
    with RedisCluster(tmp_path / "cluster", masters=2, replicas=1) as cluster:
        master = cluster.master_of("{tally:c0}")
        other = next(node for node in cluster.masters if node is not master)
        replica = cluster.replica_of(master)

        def fail_over() -> None:
            master.kill()
            cluster.promote(replica)

        place.write(small.whole)
        interrupted(place, other.url, {12: master.client.flushall})
        interrupted(place, other.url, {9: lambda: cluster.cut_off(master), 25: fail_over})
        check(place.run(None, workers=2, redis_url=other.url, **SMALL).tables, small.wanted)


def test_a_redis_that_served_another_ledger(place: Place, small: Scene, node: RedisNode, tmp_path: Path) -> None:
    """Its claims are of other events at the same positions: kept, they would make repeats of first events."""
    (tmp_path / "other").mkdir()
    other = Place(tmp_path / "other")
    other.write([small.whole[1], small.whole[2], small.whole[0]])
    other.run(CATALOG, StopAfter(30), redis_url=node.url, **SMALL)
    place.write(small.whole)
    last = place.run(CATALOG, redis_url=node.url, **SMALL)
    assert last.reclaimed == 0
    check(last.tables, small.wanted)
