"""Services that fail under a running flow: it comes back by itself, and the rows are the oracle's."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import redis
from tallyflow import Quotas

from tests.faults.report import Report
from tests.services.proxy import Proxy
from tests.services.redis_cluster import RedisCluster, RedisNode
from tests.system.supervisor import wait_until
from tests.system.system import System, check_quotas
from tests.system.traffic import Traffic


@pytest.mark.faults(quick=True)
def test_redis_is_emptied(system: System, report: Report) -> None:
    traffic = Traffic(seed=11)
    with system.flow() as flow:
        system.emit(traffic.events(300))
        system.settle(flow)
        with redis.Redis.from_url(system.redis_url) as client:
            client.flushall()
        emptied = time.monotonic()
        system.emit(traffic.events(300))
        system.settle(flow)
        seconds = time.monotonic() - emptied
        assert flow.exits, "the flow has to start again"
    report.check("Redis is emptied", "starts again; claims restored from the ledger", system, seconds)


@pytest.mark.faults
def test_redis_fails_over_to_a_replica_that_lags(system: System, report: Report, tmp_path: Path) -> None:
    """Under traffic it answers at the same address, without the claims (and the quota states) of the last events."""
    traffic = Traffic(seed=14)
    with (
        RedisNode(tmp_path / "master") as master,
        RedisNode(tmp_path / "replica") as replica,
        Proxy(master.url) as address,
    ):
        replica.follow(master)
        system.redis_url = address.url
        with system.flow() as flow:
            system.emit(traffic.events(200))
            system.settle(flow)
            replica.follow(None)
            with system.sending(traffic):
                wait_until(lambda: len(master.client.keys("*")) > len(replica.client.keys("*")) + 20, "it lags")
                address.lead_to(replica.url)
                failed_over = time.monotonic()
                wait_until(lambda: flow.exits, "the flow starts again")
            system.settle(flow)
            seconds = time.monotonic() - failed_over
        fault = "Redis fails over to a replica that lags"
        report.check(fault, "starts again; claims restored from the ledger", system, seconds)


@pytest.mark.faults
def test_claims_and_quotas_in_a_redis_cluster(system: System, report: Report, redis_cluster: RedisCluster) -> None:
    """Three masters: the same emitter, the same flow, the same rows."""
    redis_cluster.flush()
    traffic = Traffic(seed=15)
    system.redis_url, system.claim_shards = redis_cluster.url, 6
    with system.flow() as flow:
        system.emit(traffic.events(300))
        system.settle(flow)
        redis_cluster.masters[1].client.flushall()
        emptied = time.monotonic()
        system.emit(traffic.events(200))
        system.settle(flow)
        seconds = time.monotonic() - emptied
    fault = "a master of a Redis Cluster is emptied"
    found = report.check(fault, "starts again; claims restored from the ledger", system, seconds)
    keys = [len(node.client.keys("*")) for node in redis_cluster.masters]
    assert all(keys), f"every master has a part: {keys}"
    with Quotas(redis_cluster.url) as quotas:
        check_quotas(found, quotas)


@pytest.mark.faults
def test_the_broker_restarts(system: System, report: Report) -> None:
    traffic = Traffic(seed=12)
    with system.flow() as flow:
        system.emit(traffic.events(200))
        system.kafka.stop()
        system.kafka.start()
        restarted = time.monotonic()
        system.emit(traffic.events(200))
        system.settle(flow)
        seconds = time.monotonic() - restarted
    report.check("the broker restarts", "waited for, or starts again", system, seconds)


@pytest.mark.faults
def test_clickhouse_is_away(system: System, report: Report) -> None:
    """For 20 s, longer than the flow waits for it, so that the supervisor has to start it more than once."""
    traffic = Traffic(seed=13)
    with system.flow() as flow:
        system.emit(traffic.events(200))
        system.clickhouse.kill()
        system.emit(traffic.events(200))
        time.sleep(20)
        system.clickhouse.start()
        returned = time.monotonic()
        system.emit(traffic.events(100))
        system.settle(flow)
        seconds = time.monotonic() - returned
    report.check("ClickHouse is away for 20 s", "starts again until it is back", system, seconds)
