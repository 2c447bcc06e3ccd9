"""Fixtures for several folders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.redis_server import RedisServer


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Redis of this test run. Shared: use a database number (`?db=`) of your own."""
    directory: Path = tmp_path_factory.mktemp("redis")
    with RedisServer(directory) as server:
        yield server.url
