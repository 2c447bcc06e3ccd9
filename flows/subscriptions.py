"""What subscription events changed in earlier runs, read back from ClickHouse."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import date

from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from domain.ports import TallyError
from domain.values import SubscriptionAction, SubscriptionChange

_CHANGES = """
SELECT
    log_offset, log_index, toUnixTimestamp64Micro(log_time), subject, action, plan, toString(start),
    ifNull(toString(end), ''), timezone, toUnixTimestamp64Micro(effective_from)
FROM subscriptions FINAL
WHERE log_topic = {topic:String} AND log_partition = {partition:UInt32} AND log_offset < {offset:UInt64}
ORDER BY log_offset, log_index
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
        return [
            SubscriptionChange(
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
            for (
                offset, element, log_time_us, subject, action, plan, start, end, timezone, effective_from_us,
            ) in rows
        ]  # fmt: skip
