"""Numbered migrations of the ClickHouse schema: `sinks/migrations/NNNN_*.sql`, applied in order, once each.

Run by `tally migrate` (embedded runs migrate by themselves), never by a sink. The table
`schema_migrations` records what was applied; a file that changed after it was applied is refused.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib import resources

import pyarrow as pa
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from domain.ports import TallyError
from sinks.cluster import on_cluster, require_engines

DATABASE = "tallyflow"

_STATUS = """
CREATE TABLE IF NOT EXISTS schema_migrations
(
    version    UInt32,
    name       String,
    sha256     String,
    applied_at DateTime64(6, 'UTC') DEFAULT now64(6)
)
ENGINE = ReplacingMergeTree
ORDER BY version
"""
_NAME = re.compile(r"(\d{4})_\w+\.sql")


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered file."""

    version: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()

    def statements(self) -> list[str]:
        """The file's statements; comments stay with the statement that follows."""
        parts = [part.strip() for part in re.split(r";\s*$", self.sql, flags=re.MULTILINE)]
        return [part for part in parts if part]


def migrations() -> list[Migration]:
    """Every migration, ascending."""
    folder = resources.files("sinks") / "migrations"
    found = [(match, path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return sorted(
        (Migration(int(match[1]), path.name, path.read_text(encoding="utf-8")) for match, path in found),
        key=lambda migration: migration.version,
    )


def create_database(client: Client, name: str = DATABASE, cluster: str | None = None) -> None:
    """Create the database if it is missing; `client` may be connected to any.

    Asks first: a user who may not create databases can still migrate one that is there.

    Raises:
        TallyError: the name cannot be one, or ClickHouse refused.
    """
    if "`" in name or "\\" in name:
        raise TallyError(f"the database name {name!r} has a quote or backslash: choose another in TALLY_CLICKHOUSE_URL")
    if client.command(f"EXISTS DATABASE `{name}`"):
        return
    try:
        client.command(_for(f"CREATE DATABASE IF NOT EXISTS `{name}`", cluster))
    except ClickHouseError as error:
        raise TallyError(f"cannot make the database {name!r}: {error}") from error


def _for(statement: str, cluster: str | None) -> str:
    return statement if cluster is None else on_cluster(statement, cluster)


def applied(client: Client) -> dict[int, str]:
    """The checksum of each migration applied so far, by version."""
    if not client.command("EXISTS TABLE schema_migrations"):
        return {}
    rows = client.query("SELECT version, sha256 FROM schema_migrations FINAL ORDER BY version").result_rows
    return {int(version): str(sha256) for version, sha256 in rows}


def migrate(client: Client, cluster: str | None = None) -> list[Migration]:
    """Apply what is not applied yet to the client's database.

    A migration that failed half-way is tried again from its first statement, so statements that create
    something skip what is there.

    Args:
        client: Of the database.
        cluster: Make everything on all replicas of this cluster, with replicated engines.

    Returns:
        The migrations that were applied now.

    Raises:
        TallyError: a migration changed after it was applied, the database is newer than this version,
            or ClickHouse refused a statement.
    """
    client.command(_for(_STATUS, cluster))
    require_engines(client, cluster)
    known, done = migrations(), applied(client)
    check(known, done)
    fresh = [migration for migration in known if migration.version not in done]
    for migration in fresh:
        for statement in migration.statements():
            try:
                client.command(_for(_repeatable(statement), cluster))
            except ClickHouseError as error:
                raise TallyError(f"migration {migration.name} failed: {error}") from error
        row = {"version": [migration.version], "name": [migration.name], "sha256": [migration.sha256]}
        client.insert_arrow("schema_migrations", pa.table(row))
    return fresh


def check(known: list[Migration], done: dict[int, str]) -> None:
    """Refuse a database whose history is not a beginning of this version's.

    Raises:
        TallyError: says which migration differs.
    """
    by_version = {migration.version: migration for migration in known}
    for version, sha256 in done.items():
        migration = by_version.get(version)
        if migration is None:
            raise TallyError(
                f"the database has migration {version}, which this version of tallyflow does not know: "
                "run the version that applied it, or a newer one"
            )
        if migration.sha256 != sha256:
            raise TallyError(f"migration {migration.name} was changed after it was applied: restore the file")


def require_current(client: Client, cluster: str | None = None) -> None:
    """Refuse a database that is not migrated, or was for another kind of server.

    Raises:
        TallyError: names the missing migrations and what to do.
    """
    require_engines(client, cluster)
    known, done = migrations(), applied(client)
    check(known, done)
    missing = [migration.name for migration in known if migration.version not in done]
    if missing:
        raise TallyError(f"the database lacks {', '.join(missing)}: run `tally migrate`")


def _repeatable(statement: str) -> str:
    return re.sub(r"^(\s*(?:--.*\n\s*)*CREATE (?:TABLE|VIEW)) ", r"\1 IF NOT EXISTS ", statement)
