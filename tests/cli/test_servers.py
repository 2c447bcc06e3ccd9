"""`tally migrate`, `check` and `query` against a ClickHouse server: what they make, and what they name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import pytest

from engines.clickhouse import connect
from tests.cli.command import Inside, shown
from tests.services.clickhouse import ClickHouse


@pytest.fixture
def host(clickhouse: ClickHouse) -> Iterator[str]:
    """The server's host and port; databases that tests make are dropped."""
    yield urlsplit(clickhouse.url).netloc.rpartition("@")[2]
    with closing(connect(clickhouse.url, "default")) as admin:
        for name in ("usage", "older"):
            admin.command(f"DROP DATABASE IF EXISTS {name}")


@pytest.fixture
def login(clickhouse: ClickHouse) -> dict[str, str]:
    parts = urlsplit(clickhouse.url)
    return {"TALLY_CLICKHOUSE_USER": parts.username or "", "TALLY_CLICKHOUSE_PASSWORD": parts.password or ""}


def test_migrate_makes_the_database_of_the_address(inside: Inside, host: str, login: dict[str, str]) -> None:
    login = login | {"TALLY_CLICKHOUSE_URL": f"http://{host}/usage"}
    before = inside("check", **login)
    assert "clickhouse  FAULT: " in before.out and "has no database 'usage' yet: `tally migrate`" in before.out
    assert before.out.count("FAULT") == 1 and before.err == "", "each fault is named once"
    assert "catalog     ok: none given; see clickhouse for whether one is applied" in before.out
    given = inside("check", "--catalog", "web", **login)
    assert "catalog     ok: is valid, and was not compared with the one applied (see clickhouse), 1 event" in given.out
    made = inside("migrate", **login)
    assert made.code == 0 and made.out.startswith("applied 0001_tables.sql\n"), shown(made)
    assert inside("migrate", **login).out == "the schema is current\n"
    after = inside("check", **login)
    assert after.code == 0 and ", migrated" in after.out, shown(after)
    said = inside("query", "SELECT currentDatabase() AS d, count() AS n FROM events", **login)
    assert said.out == '{"d":"usage","n":"0"}\n', shown(said)


def test_without_a_database_it_is_tallyflow(inside: Inside, host: str, login: dict[str, str]) -> None:
    said = inside("query", "SELECT currentDatabase() AS d", TALLY_CLICKHOUSE_URL=f"http://{host}", **login)
    assert said.out == '{"d":"tallyflow"}\n', shown(said)


def test_an_older_schema_is_named(inside: Inside, host: str, login: dict[str, str], clickhouse: ClickHouse) -> None:
    login = login | {"TALLY_CLICKHOUSE_URL": f"http://{host}/older"}
    assert inside("migrate", **login).code == 0
    with closing(connect(clickhouse.url, "older")) as admin:
        admin.command("ALTER TABLE schema_migrations DELETE WHERE version = 2 SETTINGS mutations_sync = 1")
    said = inside("check", **login)
    assert "clickhouse  FAULT: the database lacks 0002_views.sql: run `tally migrate`" in said.out
    assert inside("migrate", **login).out == "applied 0002_views.sql\n"


def test_wrong_passwords_and_clusters_are_named(inside: Inside, host: str, login: dict[str, str]) -> None:
    url = {"TALLY_CLICKHOUSE_URL": f"http://{host}"}
    for arguments in (["check"], ["migrate"], ["query", "SELECT 1"]):
        said = inside(*arguments, **url, **login | {"TALLY_CLICKHOUSE_PASSWORD": "s3cret"})
        assert said.code == 1
        assert "refuses the user or the password" in said.out + said.err and "s3cret" not in said.out + said.err
    for command in ("check", "migrate"):
        said = inside(command, **url, **login, TALLY_CLICKHOUSE_CLUSTER="main")
        assert said.code == 1 and "ClickHouse knows no cluster 'main'" in said.out + said.err, shown(said)
