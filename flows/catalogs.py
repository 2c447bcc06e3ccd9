"""The applied catalogs: which versions there are, and whether a new text may become the next one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from config.catalog import CatalogError, check_change, load_catalog, load_history, sample_text
from domain.catalog import History
from domain.ports import TallyError
from domain.subscriptions import check_catalog
from flows.subscriptions import subscribed

DEFAULT_SAMPLE = "api"
"""The sample catalog that a deployment begins with when none is given."""

_APPLIED = """
SELECT version, toUnixTimestamp64Micro(effective_from), yaml, sha256 FROM catalogs FINAL ORDER BY version
"""
_LATEST_LOG_TIME = """
SELECT greatest(
    (SELECT toUnixTimestamp64Micro(max(log_time)) FROM events),
    (SELECT toUnixTimestamp64Micro(max(log_time)) FROM rejects),
    (SELECT toUnixTimestamp64Micro(max(log_time)) FROM progress)
)
"""


@dataclass(frozen=True, slots=True)
class Applied:
    """The history to run with, and the version that was added now, if any."""

    history: History
    added: int | None


def apply_catalog(client: Client, text: str | None, logged_until_us: Callable[[], int] = lambda: 0) -> Applied:
    """Make a catalog text the current version, if it is not already.

    A new version holds from the first log time after everything seen so far, so that no event already
    counted would be judged otherwise on a replay. A run that was killed had seen more than it wrote, and told
    products of it; so a log that knows where it ends is left behind whole. The first version holds from the beginning.

    Args:
        client: Of the database that holds table `catalogs`.
        text: YAML; None to go on with the current version, or to begin with the sample `DEFAULT_SAMPLE`.
        logged_until_us: Asks for the newest log time in the log; 0 where that is not known.

    Raises:
        CatalogError: the text is not valid, or may not follow the current version; nothing was applied.
    """
    applied = judge_catalog(client, text, logged_until_us)
    if applied.added is not None:
        new = applied.history.versions[-1]
        instants = pa.timestamp("us", "UTC")
        row = {
            "version": [new.version],
            "sha256": [new.sha256],
            "yaml": [new.yaml],
            "effective_from": pa.array([new.effective_from_us], instants),
            "applied_at": pa.array([datetime.now(UTC)], instants),
        }
        client.insert_arrow("catalogs", pa.table(row))
    return applied


def applied_history(client: Client) -> History:
    """The catalogs that a flow has applied.

    Raises:
        TallyError: there are none yet, or the table cannot be read.
    """
    try:
        rows = _rows(client)
    except ClickHouseError as error:
        raise TallyError(f"the applied catalogs cannot be read: {str(error).splitlines()[0]}") from error
    if not rows:
        raise TallyError("no catalog has been applied yet: the first `tally run` applies one")
    return load_history([row[:3] for row in rows])


def _rows(client: Client) -> list[tuple[int, int, str, str]]:
    return [(int(n), int(since), str(yaml), str(sha)) for n, since, yaml, sha in client.query(_APPLIED).result_rows]


def judge_catalog(client: Client, text: str | None, logged_until_us: Callable[[], int] = lambda: 0) -> Applied:
    """What `apply_catalog` would do with the same arguments, without doing it."""
    rows = _rows(client)
    if text is None and not rows:
        text = sample_text(DEFAULT_SAMPLE)
    if text is None or (rows and rows[-1][3] == sha256_of(text)):
        return Applied(load_history([row[:3] for row in rows]), None)
    catalog = load_catalog(text)
    version, effective_from_us = 1, 0
    if rows:
        history = load_history([row[:3] for row in rows])
        current = history.versions[-1]
        version = current.version + 1
        latest = int(client.query(_LATEST_LOG_TIME).result_rows[0][0] or 0)
        effective_from_us = max(latest, current.effective_from_us, logged_until_us()) + 1
        faults = check_change(history, catalog, effective_from_us)
        faults += check_catalog(subscribed(client), current.catalog, catalog, effective_from_us)
        if faults:
            raise CatalogError(faults)
    return Applied(load_history([*(row[:3] for row in rows), (version, effective_from_us, text)]), version)


def sha256_of(text: str) -> str:
    """How a catalog text is told from others."""
    return hashlib.sha256(text.encode()).hexdigest()
