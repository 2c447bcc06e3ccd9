"""The schema on a cluster. No cluster runs here, so what is sent to one is compared and parsed, not executed."""

from __future__ import annotations

from typing import Any, cast

import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError

from domain.ports import TallyError
from sinks import cluster, migrate
from sinks.cluster import on_cluster, require_cluster, require_engines, synchronise
from sinks.migrate import migrations


class Recorder:
    """Takes commands, and says that nothing exists yet."""

    def __init__(self) -> None:
        self.commands: list[str] = []
        self.inserts: list[str] = []

    def command(self, sql: str, **_: Any) -> int:
        self.commands.append(sql)
        return 0

    def query(self, sql: str, **_: Any) -> Any:
        return type("Result", (), {"result_rows": []})()

    def insert_arrow(self, name: str, table: Any) -> None:
        self.inserts.append(name)


def migrated(name: str | None) -> Recorder:
    recorder = Recorder()
    client = cast(Client, recorder)
    migrate.create_database(client, "usage", name)
    migrate.migrate(client, name)
    return recorder


def test_every_statement_goes_to_all_replicas_and_every_engine_is_replicated() -> None:
    single, replicated = migrated(None).commands, migrated("main").commands
    assert len(single) == len(replicated)
    changed = [(a, b) for a, b in zip(single, replicated, strict=True) if a != b]
    assert [a for a, b in zip(single, replicated, strict=True) if a == b] == [
        "EXISTS DATABASE `usage`",
        "EXISTS TABLE schema_migrations",
    ]
    for plain, sent in changed:
        assert sent.count(" ON CLUSTER 'main'") == 1
        back = sent.replace(" ON CLUSTER 'main'", "").replace("ENGINE = Replicated", "ENGINE = ")
        assert back == plain
        assert sent.count("ReplicatedReplacingMergeTree") == plain.count("ENGINE = ReplacingMergeTree")
    engines = sum(sent.count("ENGINE = ") for _, sent in changed)
    assert engines == sum(sent.count("ENGINE = Replicated") for _, sent in changed) >= 10


@pytest.mark.parametrize("name", ["main", "{cluster}", "eu-1.prod_2"])
def test_they_parse(name: str, empty: Client) -> None:
    for sent in migrated(name).commands:
        if "ON CLUSTER" in sent:
            tree = str(empty.command(f"EXPLAIN AST {sent}"))
            assert "Create" in tree
            formatted = str(empty.query("SELECT formatQuery({q:String})", parameters={"q": sent}).result_rows[0][0])
            kept = name if name.isidentifier() else f"`{name}`"
            assert f"ON CLUSTER {kept}" in formatted


@pytest.mark.parametrize(
    ("statement", "sent"),
    [
        ("CREATE DATABASE IF NOT EXISTS `a b`", "CREATE DATABASE IF NOT EXISTS `a b` ON CLUSTER 'c'"),
        ("-- why\nCREATE VIEW v AS SELECT 1", "-- why\nCREATE VIEW v ON CLUSTER 'c' AS SELECT 1"),
        ("ALTER TABLE t ADD COLUMN x UInt8", "ALTER TABLE t ON CLUSTER 'c' ADD COLUMN x UInt8"),
        ("DROP VIEW IF EXISTS v", "DROP VIEW IF EXISTS v ON CLUSTER 'c'"),
        ("RENAME TABLE a TO b", "RENAME TABLE a TO b ON CLUSTER 'c'"),
        (
            "CREATE TABLE t (x UInt8)\nENGINE = MergeTree\nORDER BY x",
            "CREATE TABLE t ON CLUSTER 'c' (x UInt8)\nENGINE = ReplicatedMergeTree\nORDER BY x",
        ),
    ],
)
def test_statements(statement: str, sent: str, empty: Client) -> None:
    assert on_cluster(statement, "c") == sent
    assert empty.command(f"EXPLAIN AST {sent}")


def test_what_cannot_be_sent_is_a_broken_build() -> None:
    for statement in ("INSERT INTO t VALUES (1)", "SELECT 1", "OPTIMIZE TABLE t"):
        with pytest.raises(AssertionError):
            on_cluster(statement, "c")
    with pytest.raises(AssertionError):
        on_cluster("DROP TABLE t", "c' --")


def test_migrations_can_all_be_sent() -> None:
    assert all(on_cluster(s, "c") for migration in migrations() for s in migration.statements())


def test_an_unknown_cluster_is_refused(empty: Client) -> None:
    with pytest.raises(TallyError, match=r"knows no cluster 'main' \(it knows: .*correct TALLY_CLICKHOUSE_CLUSTER"):
        require_cluster(empty, "main")


def test_a_cluster_of_several_shards_is_refused() -> None:
    client = Recorder()
    client.query = lambda sql, **_: type("R", (), {"result_rows": [("one", 1), ("two", 2)]})()  # type: ignore[method-assign]
    require_cluster(cast(Client, client), "one")
    with pytest.raises(TallyError, match="'two' has 2 shards, but every replica has to hold all rows"):
        require_cluster(cast(Client, client), "two")


def test_tables_of_one_server_are_not_taken_for_replicated_ones(client: Client) -> None:
    require_engines(client, None)
    with pytest.raises(TallyError, match="TALLY_CLICKHOUSE_CLUSTER is set, but the table catalogs is not replicated"):
        require_engines(client, "main")
    with pytest.raises(TallyError, match="is not replicated"):
        migrate.require_current(client, "main")


def test_replicated_tables_need_the_setting() -> None:
    client = Recorder()
    client.query = lambda sql, **_: type("R", (), {"result_rows": [("events", 1)]})()  # type: ignore[method-assign]
    require_engines(cast(Client, client), "main")
    with pytest.raises(TallyError, match="events is replicated, but TALLY_CLICKHOUSE_CLUSTER is not set"):
        require_engines(cast(Client, client), None)


def test_a_start_waits_for_the_whole_ledger(empty: Client) -> None:
    recorder = Recorder()
    synchronise(cast(Client, recorder))
    assert recorder.commands == [f"SYSTEM SYNC REPLICA {table} LIGHTWEIGHT" for table in cluster.LEDGER]
    assert all("SYSTEM query" in str(empty.command(f"EXPLAIN AST {sql}")) for sql in recorder.commands)

    def late(sql: str, **_: Any) -> int:
        raise DatabaseError("timeout", code=159)

    recorder.command = late  # type: ignore[method-assign]
    with pytest.raises(TallyError, match="is not known to have all rows of events"):
        synchronise(cast(Client, recorder))
