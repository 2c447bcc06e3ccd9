"""Reading the quotas of open periods back from ClickHouse, so that Redis can be given what it may have lost.

`quotas` holds, at every barrier, the newest state of every period; what is not in it yet is read again from
the log, and written again. So the table is where all open quotas can be had at a start, at any size, without
touching the flow's state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from clickhouse_connect.driver.client import Client

from domain.accounts import on_plan_since, seed_segments, stays, together
from domain.catalog import History
from domain.quota import QuotaState
from domain.signals_json import QuotaField
from domain.subscriptions import Lives, segments_of
from domain.values import QUANTITY_DECIMALS
from flows.subscriptions import subscribed

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
    with client() as opened:
        since = _since(history, subscribed(opened), now_us)
    with client() as opened, opened.query_row_block_stream(_OPEN, parameters={"now_us": now_us}) as stream:
        for block in stream:
            for subject, feature, used, limit, state, start, end, inputs, era, plan, version in block:
                what = (subject, feature, _scaled(used), _scaled(limit), QuotaState(state))
                blocks = on_exceed[version, plan, feature]
                yield QuotaField(*what, start, end, inputs, era, plan, blocks, since(subject, plan, start, end))


def _since(history: History, live: Mapping[str, list[Lives]], now_us: int) -> Callable[[str, str, int, int], int]:
    """From when a subject is on the plan of a period, as the flow itself says it."""
    catalog = history.versions[-1].catalog
    seeds = seed_segments(catalog)

    def since(subject: str, plan: str, start_us: int, end_us: int) -> int:
        if subject not in live and subject not in seeds:
            return 0
        made = tuple(segment for lives in live.get(subject, ()) for segment in segments_of(lives))
        known = stays(together(made, seeds.get(subject, ())), catalog.default_plan)
        return on_plan_since(known, plan, start_us, end_us, now_us)

    return since


def _scaled(text: str) -> int:
    """A decimal of ClickHouse's, exactly: Python's own would round to 28 digits."""
    whole, _, fraction = text.partition(".")
    return int(whole + fraction.ljust(QUANTITY_DECIMALS, "0"))
