"""The schema on a ClickHouse cluster: the same statements for every replica, with replicated engines.

For one shard with several replicas: every replica holds all rows. Tables are made `ON CLUSTER`; where their state is
kept in Keeper and what a replica is called is the servers' own business (`default_replica_path`,
`default_replica_name`, which use the macros `{shard}` and `{replica}` unless told otherwise).
"""

from __future__ import annotations

import re

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from domain.ports import TallyError

LEDGER = ("events", "rejects", "subscriptions", "progress", "catalogs", "schema_migrations")
"""What a start reads of what was written before it."""

_HEAD = re.compile(
    r"""(?P<head>\A(?:\s*--[^\n]*\n)*\s*
        (?:CREATE\ (?:OR\ REPLACE\ )?(?:MATERIALIZED\ )?|ALTER\ |DROP\ |TRUNCATE\ |RENAME\ )
        (?:DATABASE|TABLE|VIEW)\ (?:IF\ (?:NOT\ )?EXISTS\ )?
        (?P<name>`[^`]+`|\w+)(?:\ TO\ (?:`[^`]+`|\w+))?)""",
    re.VERBOSE,
)
_ENGINE = re.compile(r"^ENGINE = (\w*MergeTree)\b", re.MULTILINE)


def on_cluster(statement: str, cluster: str) -> str:
    """A statement of the migrations for every replica of a cluster.

    Args:
        statement: DDL; comments may stand before it.
        cluster: A name, or a macro in braces, that holds neither quotes nor backslashes.
    """
    assert not re.search(r"['\\]", cluster), cluster
    found = _HEAD.match(statement)
    assert found is not None, f"no DDL that can be sent to a cluster: {statement[:80]}"
    rest = statement[found.end() :]
    return f"{found['head']} ON CLUSTER '{cluster}'" + _ENGINE.sub(r"ENGINE = Replicated\1", rest)


def require_cluster(client: Client, cluster: str) -> None:
    """Refuse a cluster that the server does not know, or whose replicas do not all hold everything.

    Raises:
        TallyError: says which clusters there are.
    """
    name = cluster
    if cluster.startswith("{"):
        name = str(client.command("SELECT getMacro({m:String})", parameters={"m": cluster[1:-1]}))
    sql = "SELECT cluster, uniqExact(shard_num) FROM system.clusters GROUP BY cluster ORDER BY cluster"
    shards = {str(found): int(count) for found, count in client.query(sql).result_rows}
    if name not in shards:
        raise TallyError(
            f"ClickHouse knows no cluster {name!r} (it knows: {', '.join(shards) or 'none'}): correct "
            "TALLY_CLICKHOUSE_CLUSTER, or the server's remote_servers"
        )
    if shards[name] != 1:
        raise TallyError(
            f"the ClickHouse cluster {name!r} has {shards[name]} shards, but every replica has to hold all rows: "
            "name a cluster with one shard"
        )


def require_engines(client: Client, cluster: str | None) -> None:
    """Refuse tables that were made for another kind of server than the settings say.

    Raises:
        TallyError: names a table.
    """
    sql = """
        SELECT name, startsWith(engine, 'Replicated') FROM system.tables
        WHERE database = currentDatabase() AND name IN {names:Array(String)}
            AND endsWith(engine, 'MergeTree') AND NOT startsWith(engine, 'Shared')
        ORDER BY name
    """
    for name, replicated in client.query(sql, parameters={"names": list(LEDGER)}).result_rows:
        if cluster is not None and not replicated:
            raise TallyError(
                f"TALLY_CLICKHOUSE_CLUSTER is set, but the table {name} is not replicated: leave the setting out, or "
                "migrate an empty database with it"
            )
        if cluster is None and replicated:
            raise TallyError(
                f"the table {name} is replicated, but TALLY_CLICKHOUSE_CLUSTER is not set: set it, so that writes "
                "reach most replicas and a start reads what was written"
            )


def synchronise(client: Client) -> None:
    """Wait until the replica that this client talks to has every row of the ledger that was ever acknowledged.

    Raises:
        TallyError: it did not catch up within the client's timeout, or the user may not ask for it.
    """
    for table in LEDGER:
        try:
            client.command(f"SYSTEM SYNC REPLICA {table} LIGHTWEIGHT")
        except ClickHouseError as error:
            raise TallyError(
                f"the ClickHouse replica is not known to have all rows of {table} ({error}): let it catch up (see "
                "system.replication_queue), or name another in TALLY_CLICKHOUSE_URL; the user needs SYSTEM SYNC REPLICA"
            ) from error
