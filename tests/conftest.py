"""Fixtures for several folders."""

from __future__ import annotations

import logging
import os
import sys
import threading
import zoneinfo
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from engines.redis_server import RedisServer
from tests.services.clickhouse import ClickHouse
from tests.services.jars import Unavailable
from tests.services.kafka import Kafka
from tests.services.redis_cluster import RedisCluster
from tests.system.system import System

settings.register_profile("tallyflow", deadline=None)  # a busy machine is no fault
settings.load_profile("tallyflow")
zoneinfo.reset_tzpath(to=[])  # every test by the pinned tzdata package, as a flow is; what is cached stays


_LOGGERS = (None, "clickhouse_connect", "kafka", "tally", "urllib3", "uvicorn.error")


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Commands that run in this process set up logging for all of it; the next test must not see that."""
    hooks = sys.excepthook, threading.excepthook
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [(list(one.handlers), one.level, one.propagate) for one in loggers]
    yield
    sys.excepthook, threading.excepthook = hooks
    for one, (handlers, level, propagate) in zip(loggers, before, strict=True):
        one.handlers[:] = handlers
        one.setLevel(level)
        one.propagate = propagate


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Redis of this test run. Shared: use a database number (`?db=`) of your own."""
    directory: Path = tmp_path_factory.mktemp("redis")
    with RedisServer(directory) as server:
        yield server.url


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """Three masters of this test run, `.url` is one of them. Shared: whoever uses it empties it first."""
    with RedisCluster(tmp_path_factory.mktemp("redis-cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """A real broker of this test run, started for the first test that asks. Shared: name your topics after your test.

    Whoever stops it starts it again. Without Java or Maven its tests are skipped; with `CI` set they fail.
    """
    try:
        server = Kafka(tmp_path_factory.mktemp("kafka"))
    except Unavailable as missing:
        if os.environ.get("CI"):
            pytest.fail(f"CI needs Kafka: {missing}", pytrace=False)
        pytest.skip(f"NOT TESTED without Kafka: {missing}")
    with server:
        yield server


@pytest.fixture(scope="session")
def clickhouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouse]:
    """ClickHouse's HTTP interface in a process of its own, migrated. Shared: whoever writes cleans up."""
    with ClickHouse(tmp_path_factory.mktemp("clickhouse")) as server:
        yield server


@pytest.fixture
def system(tmp_path: Path, kafka: Kafka) -> Iterator[System]:
    """A deployment with a Redis and a ClickHouse of its own, and topics of its own."""
    with RedisServer(tmp_path / "redis") as redis, ClickHouse(tmp_path / "clickhouse") as clickhouse:
        yield System(tmp_path / "flow", kafka, redis.url, clickhouse)
