"""Fixtures for several folders."""

from __future__ import annotations

import zoneinfo
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from engines.redis_server import RedisServer

settings.register_profile("tallyflow", deadline=None)  # a busy machine is no fault
settings.load_profile("tallyflow")
zoneinfo.reset_tzpath(to=[])  # every test by the pinned tzdata package, as a flow is; what is cached stays


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Redis of this test run. Shared: use a database number (`?db=`) of your own."""
    directory: Path = tmp_path_factory.mktemp("redis")
    with RedisServer(directory) as server:
        yield server.url
