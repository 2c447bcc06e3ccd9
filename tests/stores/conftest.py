"""Every kind of claim store, for the suites that hold them to one contract."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlencode

import pytest

from tests.services.redis_cluster import RedisCluster
from tests.stores.claim_stores import ClusterStore, FakeStore, RedisStore, Store


@pytest.fixture(params=["fake", "redis, 1 shard", "redis, 3 shards", "cluster, 4 shards"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    if request.param == "fake":
        yield FakeStore()
        return
    kind, shards, _ = request.param.replace(",", "").split()
    if kind == "cluster":
        cluster: RedisCluster = request.getfixturevalue("redis_cluster")
        cluster.flush()
        yield ClusterStore(cluster, int(shards))
        return
    url = f"{request.getfixturevalue('redis_url')}?{urlencode({'db': 5})}"
    redis_store = RedisStore(url, shards=int(shards))
    redis_store.flush()
    yield redis_store
