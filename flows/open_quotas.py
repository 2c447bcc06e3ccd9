"""Reading the quotas of open periods back from ClickHouse, so that Redis can be given what it may have lost.

`quotas` holds, at every barrier, the newest state of every period; what is not in it yet is read again from
the log, and written again. So the table is where all open quotas can be had at a start, at any size, without
touching the flow's state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from clickhouse_connect.driver.client import Client

from domain.catalog import History
from domain.quota import QuotaState
from domain.signals_json import QuotaField
from domain.values import QUANTITY_DECIMALS

_OPEN = """
SELECT subject, feature, toString(used), toString(allowance), state, toUnixTimestamp64Micro(period_start),
    toUnixTimestamp64Micro(period_end), inputs, era, plan, catalog_version
FROM quotas FINAL
WHERE period_end > fromUnixTimestamp64Micro({now_us:Int64})
"""


def open_quotas(client: Callable[[], Client], history: History, now_us: int) -> Iterator[QuotaField]:
    """Every quota whose period has not ended; blocks are read as they are asked for."""
    on_exceed = {
        (version.version, plan.name, entitlement.feature): entitlement.on_exceed
        for version in history.versions
        for plan in version.catalog.plans.values()
        for entitlement in plan.entitlements
    }
    with client() as opened, opened.query_row_block_stream(_OPEN, parameters={"now_us": now_us}) as stream:
        for block in stream:
            for subject, feature, used, limit, state, start, end, inputs, era, plan, version in block:
                what = (subject, feature, _scaled(used), _scaled(limit), QuotaState(state))
                yield QuotaField(*what, start, end, inputs, era, plan, on_exceed[version, plan, feature])


def _scaled(text: str) -> int:
    """A decimal of ClickHouse's, exactly: Python's own would round to 28 digits."""
    whole, _, fraction = text.partition(".")
    return int(whole + fraction.ljust(QUANTITY_DECIMALS, "0"))
