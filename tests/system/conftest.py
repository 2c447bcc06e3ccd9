"""Services for whole deployments."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.redis_server import RedisServer
from tests.services.clickhouse import ClickHouse
from tests.services.kafka import Kafka
from tests.system.system import System


@pytest.fixture
def system(tmp_path: Path, kafka: Kafka) -> Iterator[System]:
    """A deployment with a Redis and a ClickHouse of its own, and topics of its own."""
    with RedisServer(tmp_path / "redis") as redis, ClickHouse(tmp_path / "clickhouse") as clickhouse:
        yield System(tmp_path / "flow", kafka, redis.url, clickhouse)
