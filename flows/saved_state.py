"""Whether the saved state is whole, and belongs to this deployment and this ledger.

A run that went on from other state would count from somewhere else than where it should. So what does not fit is
refused, with what to do; `tally run --source ledger` makes it anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clickhouse_connect.driver.client import Client

from domain.ports import TallyError
from engines.data_directory import DataDirectory
from flows import recovery
from flows.metering import STATEFUL_STEPS
from flows.recovery import Saved
from sources.ledger import LedgerState

REBUILD = "rebuild the state from the ledger: tally run --source ledger (of files, with --then 'file:GLOB')"

_FIRST = """
SELECT min(log_offset), count() FROM
(
    SELECT log_offset FROM events WHERE log_topic = {topic:String} AND log_partition = {partition:UInt32}
    UNION ALL
    SELECT log_offset FROM rejects WHERE log_topic = {topic:String} AND log_partition = {partition:UInt32}
)
"""
_PROGRESS = "SELECT log_partition, next_offset FROM progress FINAL WHERE log_topic = {topic:String}"


def judge(directory: DataDirectory, identity: Mapping[str, Any], client: Client, topic: str) -> Saved | None:
    """What is saved to go on from; None where nothing was counted yet.

    Args:
        directory: Has the saved state, and the record of what made it.
        identity: What state depends on, as it is now.
        client: Of the database that holds the ledger.
        topic: The log topic.

    Raises:
        TallyError: it is missing beside a ledger, damaged, or not this deployment's or this ledger's.
    """
    store = recovery.newest(directory.recovery)
    if store is None:
        if int(client.query("SELECT count() FROM events").result_rows[0][0]):
            raise TallyError(
                f"the ledger holds events, but {directory.recovery} has no saved state: going on would count "
                f"from zero. Restore that directory, or {REBUILD}"
            )
        return None
    made = directory.read("deployment")
    if made is None:
        raise TallyError(
            f"{directory.recovery} has saved state, but the record of what made it is missing from {directory.path}: "
            f"restore deployment.json, or {REBUILD}"
        )
    for key, value in identity.items():
        if made.get(key) != value:
            other = "start a new deployment" if key == "topic" else REBUILD
            raise TallyError(
                f"this deployment was made with {key}={made.get(key)}, now it is {value}: go on with the old "
                f"value, or {other}"
            )
    try:
        saved = recovery.examine(store)
    except TallyError as error:
        raise TallyError(f"{error}: restore {directory.recovery} as it was at one moment, or {REBUILD}") from error
    unknown = sorted(saved.steps - STATEFUL_STEPS)
    if unknown:
        raise TallyError(
            f"the saved state {store} has state of {', '.join(unknown)}, which this version does not know and would "
            f"leave behind: run the tallyflow version that wrote it, or {REBUILD}"
        )
    _compare(saved, client, topic)
    return saved


def needs_claims_since_us(saved: Saved, client: Client, topic: str) -> int | None:
    """The least log time from which a partition is read again that was counted before; None if none is."""
    counted = _counted(client, topic)
    again = [
        int(getattr(state, "log_time_us", 0))
        for partition, state in saved.sources.items()
        if not isinstance(state, LedgerState) and state.next_offset < counted.get(partition, 0)
    ]
    return min(again, default=None)


def first_counted(client: Client, topic: str, partition: int) -> int | None:
    """The least offset of a partition that stands in the ledger; None if there is none."""
    offset, count = client.query(_FIRST, {"topic": topic, "partition": partition}).result_rows[0]
    return int(offset) if count else None


def _counted(client: Client, topic: str) -> dict[int, int]:
    return {int(partition): int(offset) for partition, offset in client.query(_PROGRESS, {"topic": topic}).result_rows}


def _compare(saved: Saved, client: Client, topic: str) -> None:
    """Refuse state that is ahead of the ledger: rows are durable before the state that follows them."""
    counted = _counted(client, topic)
    for partition, state in sorted(saved.sources.items()):
        if not isinstance(state, LedgerState) and state.next_offset > counted.get(partition, 0):
            raise TallyError(
                f"{topic}/{partition}: the saved state has counted up to offset {state.next_offset}, but the ledger "
                f"only up to {counted.get(partition, 0)}: rows were lost, or ClickHouse was restored from an older "
                f"backup. Restore the newer tables, or {REBUILD}, and what the ledger lacks is read from the log again"
            )
