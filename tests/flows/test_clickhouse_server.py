"""Whole runs against ClickHouse over HTTP, in a process of its own that is killed and comes back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from clickhouse_connect.driver.client import Client
from pydantic import SecretStr

from domain.ports import TallyError
from engines.clickhouse import connect
from sinks import migrate
from tests.flows.places import Place, check
from tests.flows.scenes import CATALOG, Scene
from tests.services.clickhouse import ClickHouse


@pytest.fixture
def server(clickhouse: ClickHouse) -> Iterator[ClickHouse]:
    """The one of all tests, running again afterwards."""
    yield clickhouse
    if not clickhouse.runs:
        clickhouse.start()


@pytest.fixture
def settings(server: ClickHouse, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Of a deployment with a migrated database of its own; user and password are not in its address."""
    name = request.node.name.partition("[")[0]
    with client(server, "default") as admin:
        migrate.create_database(admin, name)
    with client(server, name) as own:
        migrate.migrate(own)
    return {
        "clickhouse_url": SecretStr(f"http://{address(server)}/{name}"),
        "clickhouse_user": "default",
        "clickhouse_password": SecretStr(password(server)),
        "batch_rows_max": 20,
        "flush_seconds": 0.05,
        "epoch_seconds": 0.1,
    }


def client(server: ClickHouse, database: str) -> Client:
    return connect(server.url, database)


def address(server: ClickHouse) -> str:
    return urlsplit(server.url).netloc.rpartition("@")[2]


def password(server: ClickHouse) -> str:
    return urlsplit(server.url).password or ""


class Outage(threading.Event):
    """Not a stop: at the n-th look, the server is killed; it comes back after a while."""

    def __init__(self, server: ClickHouse, looks: int, seconds: float | None) -> None:
        super().__init__()
        self._server = server
        self._looks = looks
        self._seconds = seconds
        self.thread = threading.Thread(target=self._come_back)

    def is_set(self) -> bool:
        self._looks -= 1
        if self._looks == 0:
            self._server.kill()
            if self._seconds is not None:
                self.thread.start()
        return False

    def _come_back(self) -> None:
        assert self._seconds is not None
        time.sleep(self._seconds)
        self._server.start()


def test_an_outage_within_the_bound_is_waited_for(
    server: ClickHouse, settings: dict[str, Any], place: Place, scene: Scene
) -> None:
    place.write(scene.whole)
    outage = Outage(server, looks=12, seconds=1.0)
    found = place.run(CATALOG, outage, **settings, clickhouse_wait_seconds=30)
    outage.thread.join()
    check(found.tables, scene.wanted)


def test_a_longer_outage_stops_the_run_and_the_next_goes_on(
    server: ClickHouse, settings: dict[str, Any], place: Place, scene: Scene
) -> None:
    place.write(scene.whole)
    outage = Outage(server, looks=12, seconds=None)
    with pytest.raises(TallyError, match="Nothing is lost: the flow resumes at its last snapshot") as stopped:
        place.run(CATALOG, outage, **settings, clickhouse_wait_seconds=0.3)
    with pytest.raises(TallyError, match=r"cannot be used: Connection refused\. Is it running") as refused:
        place.run(None, **settings)
    for error in (stopped, refused):
        assert password(server) not in str(error.value)
    server.start()
    check(place.run(None, workers=2, **settings).tables, scene.wanted)


def test_a_start_names_what_is_wrong(server: ClickHouse, place: Place, scene: Scene, tmp_path: Path) -> None:
    place.write(scene.first)
    host = address(server)
    user = {"clickhouse_user": "default"}
    right = {"clickhouse_password": SecretStr(password(server))} | user
    with client(server, "default") as admin:
        admin.command("CREATE DATABASE IF NOT EXISTS empty")
    for url, login, fault in (
        (f"http://{host}/nope", right, "has no database 'nope' yet: `tally migrate` makes it"),
        (f"http://{host}/empty", right, r"the database lacks 0001_tables\.sql, .*: run `tally migrate`"),
        (f"http://{host}/empty", user, "refuses the user or the password"),
    ):
        with pytest.raises(TallyError, match=fault) as caught:
            place.run(CATALOG, clickhouse_url=SecretStr(url), **login)
        assert password(server) not in str(caught.value)
