"""Bringing the claim store up to the ledger before any source reads: Redis is a cache, the ledger is the truth.

Runs on every start and usually finds almost nothing: only rows at or beyond the offset up to which the
store holds every claim are read. After a flush or a lost store, that is everything.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from clickhouse_connect.driver.client import Client

from domain.ports import ClaimRequests, ClaimsAdmin

_EVENTS = """
SELECT log_partition, log_offset, log_index, toUnixTimestamp64Micro(log_time), source, id, content_hash
FROM events
WHERE log_topic = {topic:String} AND log_partition = {partition:UInt32} AND log_offset >= {offset:UInt64}
    AND log_time >= fromUnixTimestamp64Micro({since:Int64}, 'UTC')
"""
_FIRSTS = """
SELECT first_position.log_partition, first_position.log_offset, first_position.log_index,
    toUnixTimestamp64Micro(log_time), source, id, first_content
FROM rejects
WHERE log_topic = {topic:String} AND log_partition = {partition:UInt32} AND log_offset >= {offset:UInt64}
    AND reason IN ('duplicate', 'conflict', 'subscription_invalid')
    AND log_time >= fromUnixTimestamp64Micro({since:Int64}, 'UTC')
"""
_ENDS = """
SELECT max(next) FROM
(
    SELECT max(log_offset) + 1 AS next, count() AS n FROM events
    WHERE log_topic = {topic:String} AND log_partition = {partition:UInt32} AND log_offset >= {offset:UInt64}
    UNION ALL
    SELECT max(log_offset) + 1, count() FROM rejects
    WHERE log_topic = {topic:String} AND log_partition = {partition:UInt32} AND log_offset >= {offset:UInt64}
    UNION ALL
    SELECT max(next_offset), count() FROM progress
    WHERE log_topic = {topic:String} AND log_partition = {partition:UInt32}
)
WHERE n > 0
"""
_PARTITIONS = """
SELECT DISTINCT log_partition FROM
(
    SELECT log_partition FROM events WHERE log_topic = {topic:String}
    UNION ALL SELECT log_partition FROM rejects WHERE log_topic = {topic:String}
    UNION ALL SELECT log_partition FROM progress WHERE log_topic = {topic:String}
)
"""
_LEDGER_MADE = "SELECT toUnixTimestamp64Micro(min(applied_at)) FROM catalogs WHERE version = 1"


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """What a start found missing in the claim store."""

    claims: int


def ledger_of(client: Client, topic: str) -> str:
    """Names the ledger of a deployment, so that claims made for another one are told from its own.

    The database's tables may be made anew under the same name; when its first catalog was applied tells them
    apart.
    """
    return f"{topic}@{int(client.query(_LEDGER_MADE).result_rows[0][0])}"


def reclaim(
    claims: ClaimsAdmin, client: Client, topic: str, partitions: Collection[int], since_us: int = 0
) -> Reclaimed:
    """Take the store over, record the claims it lacks, and publish it as complete.

    Args:
        claims: The store; calls of an older instance are refused from now on.
        client: Of the database that holds the ledger.
        topic: The log topic.
        partitions: Those that the source is about to read.
        since_us: Claims of earlier log times were forgotten, and stay so.
    """
    claims.take_over()
    held = dict(claims.progress())
    known = {row[0] for row in client.query(_PARTITIONS, parameters={"topic": topic}).result_rows}
    ends: dict[int, int] = {}
    restored = 0
    for sql in (_EVENTS, _FIRSTS):
        for partition in sorted(known):
            parameters = {"topic": topic, "partition": partition, "offset": held.get(partition, 0), "since": since_us}
            restored += _restore(claims, client, sql, parameters)
    for partition in sorted(known | set(partitions)):
        parameters = {"topic": topic, "partition": partition, "offset": held.get(partition, 0)}
        end = client.query(_ENDS, parameters=parameters).result_rows[0][0]
        ends[partition] = max(int(end or 0), held.get(partition, 0))
    claims.publish(ends)
    return Reclaimed(restored)


def _restore(claims: ClaimsAdmin, client: Client, sql: str, parameters: dict[str, object]) -> int:
    """Record the claims that a query finds; returns how many."""
    count = 0
    with client.query_row_block_stream(sql, parameters=parameters) as stream:
        for block in stream:
            by_partition: dict[int, list[tuple[int, int, int, str, str, int]]] = {}
            for partition, *claim in block:
                by_partition.setdefault(partition, []).append(tuple(claim))
            for partition, found in by_partition.items():
                claims.restore(partition, ClaimRequests(*map(list, zip(*sorted(found), strict=True))))
                count += len(found)
    return count
