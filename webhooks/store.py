"""Dead letters and signals in ClickHouse: written when a delivery is given up, read for a replay.

A dead letter is keyed by endpoint and signal, and a later row of a key replaces the earlier one, so
writing one twice is writing it once. Failure: `TallyError`; the caller tries again or says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from decimal import Decimal, localcontext
from typing import Any

import pyarrow as pa
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import ClickHouseError

from domain.instants import EPOCH
from domain.ports import TallyError
from domain.quota import Signal, SignalType
from domain.signals_json import signal_event
from domain.values import AMOUNT_DECIMALS, QUANTITY_DECIMALS
from webhooks.deliverer import DeadLetter
from webhooks.lanes import Delivery

ERROR_CHARS_MAX = 500
READ_ROWS_MAX = 1000

_INSTANT = pa.timestamp("us", "UTC")
_SCHEMA = pa.schema(
    [
        ("endpoint", pa.string()),
        ("id", pa.string()),
        ("type", pa.string()),
        ("subject", pa.string()),
        ("at", _INSTANT),
        ("payload", pa.binary()),
        ("reason", pa.string()),
        ("attempts", pa.uint32()),
        ("last_status", pa.uint16()),
        ("last_error", pa.string()),
        ("first_attempt", _INSTANT),
        ("dead_at", _INSTANT),
        ("replayed_at", _INSTANT),
        ("version", pa.uint64()),
    ]
)


class Store:
    """The tables, through a client that is made when it is needed, and anew after a failure."""

    def __init__(self, connect: Callable[[], Client]) -> None:
        self._connect = connect
        self._client: Client | None = None

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Store dead letters.

        Raises:
            TallyError: they may not be stored.
        """
        self._insert(
            [
                (
                    one.delivery.endpoint,
                    one.delivery.id,
                    one.delivery.type,
                    one.delivery.subject,
                    one.delivery.at_us,
                    one.delivery.body,
                    one.ending,
                    one.delivery.attempts,
                    one.delivery.last_status,
                    one.delivery.last_error[:ERROR_CHARS_MAX],
                    one.first_attempt_us,
                    one.dead_us,
                    0,
                    one.dead_us,
                )
                for one in letters
            ]
        )

    def mark_replayed(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Write dead letters, as `dead` gave them, once more: replayed now.

        Raises:
            TallyError: they may not be marked.
        """
        now_us = time.time_ns() // 1000
        self._insert([(*row[:-2], now_us, now_us) for row in rows])

    def dead(self, since: datetime, until: datetime, endpoint: str | None) -> Iterator[Delivery]:
        """Dead letters of a time that were not replayed, in the order of their signals; `place` is the row.

        Raises:
            TallyError: they cannot be read.
        """
        columns = ", ".join(_columns(name) for name in _SCHEMA.names)
        sql = (
            f"SELECT {columns} FROM webhook_dead_letters FINAL "
            "WHERE dead_at >= fromUnixTimestamp64Micro({since:Int64}, 'UTC') "
            "AND dead_at < fromUnixTimestamp64Micro({until:Int64}, 'UTC') "
            "AND ({endpoint:String} = '' OR endpoint = {endpoint:String}) "
            "AND toUnixTimestamp64Micro(replayed_at) = 0 ORDER BY at, id"
        )
        for row in self._read(sql, since, until, endpoint):
            name, key, kind, subject, at_us, payload = row[:6]
            yield Delivery(name, key, kind, subject, at_us, payload.encode(), place=row)

    def signals(self, since: datetime, until: datetime) -> Iterator[tuple[Signal, bytes]]:
        """Every signal of a time, in order, and the message that was sent for it.

        Raises:
            TallyError: they cannot be read.
        """
        sql = (
            "SELECT id, type, subject, feature, meter, toUnixTimestamp64Micro(period_start), "
            "toUnixTimestamp64Micro(period_end), threshold, allowance, used, toUnixTimestamp64Micro(at), "
            "catalog_version FROM signals FINAL WHERE at >= fromUnixTimestamp64Micro({since:Int64}, 'UTC') "
            "AND at < fromUnixTimestamp64Micro({until:Int64}, 'UTC') ORDER BY at, id"
        )
        for row in self._read(sql, since, until, None):
            key, kind, subject, feature, meter, start, end, threshold, allowance, used, at_us, version = row
            decimals = AMOUNT_DECIMALS if kind == SignalType.SPEND_REACHED else QUANTITY_DECIMALS
            signal = Signal(
                id=key,
                type=SignalType(kind),
                subject=subject,
                feature=feature,
                meter=meter,
                period_start_us=start,
                period_end_us=end,
                threshold=_scaled(threshold, decimals),
                allowance=_scaled(allowance, decimals),
                used=_scaled(used, decimals),
                at_us=at_us,
                catalog_version=version,
            )
            yield signal, signal_event(signal)

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def _insert(self, rows: Sequence[tuple[Any, ...]]) -> None:
        table = pa.table(dict(zip(_SCHEMA.names, map(list, zip(*rows, strict=True)), strict=True)), _SCHEMA)
        try:
            self._open().insert_arrow("webhook_dead_letters", table)
        except (ClickHouseError, OSError) as error:
            self.close()
            raise TallyError(f"ClickHouse took no dead letters: {error}") from error

    def _read(self, sql: str, since: datetime, until: datetime, endpoint: str | None) -> Iterator[tuple[Any, ...]]:
        given = {"since": _us(since), "until": _us(until), "endpoint": endpoint or ""}
        try:
            with self._open().query_row_block_stream(
                sql, parameters=given, settings={"max_block_size": READ_ROWS_MAX}
            ) as stream:
                for block in stream:
                    yield from block
        except (ClickHouseError, OSError) as error:
            self.close()
            raise TallyError(f"ClickHouse cannot be read: {error}") from error

    def _open(self) -> Client:
        if self._client is None:
            self._client = self._connect()
        return self._client


def _columns(name: str) -> str:
    return f"toUnixTimestamp64Micro({name}) AS {name}_us" if _SCHEMA.field(name).type == _INSTANT else name


def _us(instant: datetime) -> int:
    return (instant - EPOCH) // timedelta(microseconds=1)


def _scaled(value: Decimal, decimals: int) -> int:
    """The whole number that a decimal is when it is scaled; exact, whatever the ambient precision."""
    with localcontext() as context:
        context.prec = 100
        return int(value.scaleb(decimals))
