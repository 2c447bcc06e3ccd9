"""Every kind of claim store, for the suites that hold them to one contract."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlencode

import pytest

from tests.stores.claim_stores import FakeStore, RedisStore, Store


@pytest.fixture(params=["fake", "redis, 1 shard", "redis, 3 shards"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    if request.param == "fake":
        yield FakeStore()
        return
    url = f"{request.getfixturevalue('redis_url')}?{urlencode({'db': 5})}"
    redis_store = RedisStore(url, shards=int(request.param.split()[1]))
    redis_store.flush()
    yield redis_store
