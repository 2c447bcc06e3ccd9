"""What a Redis Cluster can do to claims: lose a node, promote a replica that lags, move slots."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from domain.ports import ClaimsLost, ClaimsUnavailable, TallyError
from stores.claims import Session
from stores.lease import Lease
from stores.rendezvous import Rendezvous
from tests.services.redis_cluster import RedisCluster, RedisNode, node_id, wait_until
from tests.stores.claim_stores import ClusterStore, Event, RedisStore, claim, first, started

EVENTS = [Event(str(number)) for number in range(40)]
SHARDS = 4


@pytest.fixture
def cluster(redis_cluster: RedisCluster) -> RedisCluster:
    redis_cluster.flush()
    return redis_cluster


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[RedisCluster]:
    """One whose nodes may be killed: two masters with a replica each."""
    with RedisCluster(tmp_path, masters=2, replicas=1) as cluster:
        yield cluster


def metas(node: RedisNode) -> set[str]:
    return {key for key in node.client.scan_iter("{tally:c*", count=1000) if key.endswith("}")}


def test_shards_are_spread_over_the_masters(cluster: RedisCluster) -> None:
    claims = started(ClusterStore(cluster, SHARDS))
    claim(claims, 0, 0, EVENTS)
    held = [metas(node) for node in cluster.masters]
    assert sum(map(len, held)) == SHARDS
    assert sum(1 for each in held if each) > 1, "the test needs shards on several masters"
    assert claim(claims, 1, 0, EVENTS) == {offset: first(0, offset) for offset in range(len(EVENTS))}


def test_any_node_is_an_address_of_the_cluster(cluster: RedisCluster) -> None:
    claim(started(RedisStore(cluster.masters[0].url, SHARDS)), 0, 0, [])
    claims = RedisStore(cluster.masters[2].url, SHARDS).instance()
    assert claims.examine().endswith(f", a cluster with 3 masters, at {cluster.masters[2].url}")
    claims.take_over()
    assert claims.progress() == {0: 0}


def test_every_master_must_be_fit(cluster: RedisCluster) -> None:
    node = cluster.masters[2]
    node.client.config_set("maxmemory-policy", "allkeys-lru")
    node.client.config_set("maxmemory", 2**30)
    try:
        with pytest.raises(TallyError, match=rf"Redis at 127.0.0.1:{node.port} may evict claims"):
            ClusterStore(cluster, SHARDS).instance().take_over()
    finally:
        node.client.config_set("maxmemory", 0)
        node.client.config_set("maxmemory-policy", "noeviction")


def test_a_cluster_has_no_database_numbers(cluster: RedisCluster) -> None:
    with pytest.raises(TallyError, match="take the number off TALLY_REDIS_URL"):
        RedisStore(f"{cluster.url}/5", SHARDS).instance().take_over()


def test_an_emptied_node_is_a_loss(cluster: RedisCluster) -> None:
    claims = started(ClusterStore(cluster, SHARDS))
    claim(claims, 0, 0, EVENTS)
    node = cluster.master_of("{tally:c0}")
    node.client.flushall()
    with pytest.raises(ClaimsLost, match="restart"):
        claim(claims, 0, 40, [Event("new")])
    successor = ClusterStore(cluster, SHARDS).instance()
    successor.take_over()
    assert successor.progress() == {}


def test_another_number_of_shards_begins_anew_on_every_node(cluster: RedisCluster) -> None:
    claim(started(ClusterStore(cluster, 7)), 0, 0, EVENTS)
    successor = ClusterStore(cluster, 2).instance()
    successor.take_over()
    assert successor.progress() == {}
    left = {key for node in cluster.masters for key in node.client.scan_iter("*", count=1000)}
    assert left == {"{tally:c0}", "{tally:c1}"}


def test_forgetting_frees_every_node(cluster: RedisCluster) -> None:
    claims = started(ClusterStore(cluster, SHARDS))
    claim(claims, 0, 0, EVENTS)
    claims.forget(2**50)
    assert sum(node.client.dbsize() for node in cluster.masters) == SHARDS


def test_a_node_that_restarts_empty_is_not_trusted(own_cluster: RedisCluster) -> None:
    claims = started(ClusterStore(own_cluster, SHARDS))
    claim(claims, 0, 0, EVENTS)
    node = own_cluster.master_of("{tally:c0}")
    node.kill()
    node.start()
    with pytest.raises(ClaimsLost, match=r"another server process|moved"):
        claim(claims, 0, 40, EVENTS)


def test_a_promoted_replica_that_lags_is_not_trusted(own_cluster: RedisCluster) -> None:
    store = ClusterStore(own_cluster, SHARDS, wait_seconds=20)
    claims = started(store)
    claim(claims, 0, 0, EVENTS[:20])
    master = own_cluster.master_of("{tally:c0}")
    replica = own_cluster.replica_of(master)
    claimed = master.client.info("replication")["master_repl_offset"]
    wait_until(lambda: replica.client.info("replication")["slave_repl_offset"] >= claimed, "replication")
    own_cluster.cut_off(master)
    claim(claims, 0, 20, EVENTS[20:])
    master.kill()

    def promote() -> None:
        time.sleep(0.3)
        own_cluster.promote(replica)

    threading.Thread(target=promote).start()
    with pytest.raises(ClaimsLost, match=r"slot \d+ moved from .* to .* restart"):
        claim(claims, 0, 40, [Event("new")])
    successor = RedisStore(replica.url, SHARDS, wait_seconds=20).instance()
    successor.take_over()
    assert successor.progress() == {0: 20}, "what it lacks is restored from there on"


@pytest.mark.faults
def test_the_node_of_the_address_may_die(own_cluster: RedisCluster) -> None:
    """Once it has been reached, the others are known; a lease, too, is then found at its new place."""
    seed = own_cluster.masters[0]
    claims = started(RedisStore(seed.url, 16, wait_seconds=20))
    lease = Lease(seed.url, process=0, seconds=60, wait_seconds=20)
    lease.acquire()
    own_cluster.cut_off(seed)
    seed.kill()
    own_cluster.promote(own_cluster.replica_of(seed))
    with pytest.raises(ClaimsLost, match="moved"):
        claim(claims, 0, 0, [])
    assert lease.call("join")[0]
    lease.close()


def test_slots_may_move_with_their_keys(cluster: RedisCluster) -> None:
    """While they move, calls wait; then a restart finds every claim at its new place."""
    claims = started(ClusterStore(cluster, SHARDS, wait_seconds=10))
    claim(claims, 0, 0, EVENTS)
    source = cluster.master_of("{tally:c0}")
    target = next(node for node in cluster.masters if node is not source)
    move = Move(cluster, source, target)
    move.begin()
    try:
        impatient = ClusterStore(cluster, SHARDS, wait_seconds=0.3).instance()
        impatient.adopt(Session(*claims.session()))  # type: ignore[attr-defined]
        move.keys(1)
        with pytest.raises(ClaimsUnavailable, match=r"ASK|non local key"):
            claim(impatient, 0, 40, [Event(str(number)) for number in range(100, 200)])
        threading.Timer(0.3, move.finish).start()
        with pytest.raises(ClaimsLost, match="moved"):
            claim(claims, 0, 40, [Event(str(number)) for number in range(100, 200)])
        successor = started(ClusterStore(cluster, SHARDS))
        assert successor.progress() == {0: 40}
        assert len(claim(successor, 1, 0, EVENTS)) == len(EVENTS)
    finally:
        wait_until(lambda: move.ended, "the move", seconds=5)
        back = Move(cluster, target, source, slot=move.slot)
        back.begin()
        back.finish()


class Move:
    """The way of the slot of `{tally:c0}` to another node, as `redis-cli --cluster reshard` goes it."""

    def __init__(self, cluster: RedisCluster, source: RedisNode, target: RedisNode, slot: int | None = None) -> None:
        self._cluster, self._source, self._target = cluster, source, target
        known = source.client.execute_command("CLUSTER", "KEYSLOT", "{tally:c0}") if slot is None else slot
        self.slot = int(known)
        self.ended = False

    def begin(self) -> None:
        self._set(self._target, "IMPORTING", self._source)
        self._set(self._source, "MIGRATING", self._target)

    def keys(self, count: int) -> None:
        names = self._source.client.execute_command("CLUSTER", "GETKEYSINSLOT", self.slot, count)
        if names:
            self._source.client.execute_command("MIGRATE", "127.0.0.1", self._target.port, "", 0, 5000, "KEYS", *names)

    def finish(self) -> None:
        self.keys(10_000)
        for node in (self._target, self._source, *self._cluster.masters):
            self._set(node, "NODE", self._target)
        self.ended = True

    def _set(self, node: RedisNode, what: str, other: RedisNode) -> None:
        node.client.execute_command("CLUSTER", "SETSLOT", self.slot, what, node_id(other))


def test_leases_and_starts_live_in_a_cluster_too(cluster: RedisCluster) -> None:
    with_lease = Lease(cluster.masters[1].url, process=0, seconds=2, wait_seconds=2)
    with_lease.acquire()
    with pytest.raises(TallyError, match="runs already"):
        Lease(cluster.url, process=0, seconds=2, wait_seconds=2).acquire()
    assert Rendezvous(with_lease, processes=1, wait_seconds=1).meet(lambda: {"n": 1}) == {"n": 1}
    with_lease.close()
    again = Lease(cluster.url, process=0, seconds=2, wait_seconds=2)
    again.acquire()
    again.close()
