"""What subscription events changed in earlier runs, read back from ClickHouse."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import date
from typing import Any

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from domain.ports import TallyError
from domain.subscriptions import Lives, applied
from domain.values import SubscriptionAction, SubscriptionChange

_COLUMNS = """
    log_offset, log_index, toUnixTimestamp64Micro(log_time), subject, action, plan, toString(start),
    ifNull(toString(end), ''), timezone, toUnixTimestamp64Micro(effective_from)
"""
_CHANGES = f"""
SELECT {_COLUMNS}
FROM subscriptions FINAL
WHERE log_topic = {{topic:String}} AND log_partition = {{partition:UInt32}} AND log_offset < {{offset:UInt64}}
ORDER BY log_offset, log_index
"""
_ALL = f"""
SELECT log_topic, log_partition, {_COLUMNS}
FROM subscriptions FINAL
ORDER BY log_topic, log_partition, log_offset, log_index
"""


class SavedSubscriptions:
    """The table `subscriptions` as a `domain.ports.SubscriptionLog`.

    Args:
        client: Makes a client of the database `tallyflow`; called once a partition and run.
        topic: The deployment's log topic.
    """

    def __init__(self, client: Callable[[], Client], topic: str) -> None:
        self._client = client
        self._topic = topic

    def changes(self, partition: int, before_offset: int) -> Iterable[SubscriptionChange]:
        parameters = {"topic": self._topic, "partition": partition, "offset": before_offset}
        try:
            client = self._client()
            try:
                rows = client.query(_CHANGES, parameters=parameters).result_rows
            finally:
                client.close()
        except ClickHouseError as error:
            raise TallyError(
                f"the subscriptions of partition {partition} could not be read from ClickHouse: {error}. Nothing is "
                "lost: start again once ClickHouse answers."
            ) from error
        return [_change(row) for row in rows]


def subscribed(client: Client) -> dict[str, list[Lives]]:
    """By subject, the subscriptions that events have made, of each partition."""
    found: dict[str, dict[tuple[str, int], Lives]] = {}
    for topic, partition, *row in client.query(_ALL).result_rows:
        change = _change(row)
        of = found.setdefault(change.subject, {})
        of[topic, partition] = applied(of.get((topic, partition), ()), change)
    return {subject: list(of.values()) for subject, of in found.items()}


def _change(row: Sequence[Any]) -> SubscriptionChange:
    offset, element, log_time_us, subject, action, plan, start, end, timezone, effective_from_us = row
    return SubscriptionChange(
        int(offset),
        int(element),
        int(log_time_us),
        subject,
        SubscriptionAction(action),
        plan,
        date.fromisoformat(start),
        date.fromisoformat(end) if end else None,
        timezone,
        int(effective_from_us),
    )
