"""watch_quotas: turn updates into quota states, and crossed thresholds into signals."""

from __future__ import annotations

from collections.abc import Callable

import bytewax.operators as op
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream

from domain.catalog import Entitlement, History
from domain.quota import Watched, crossings, quota_row, spend_crossings
from domain.rating import Rated


@operator
def watch_quotas(
    step_id: str, up: KeyedStream[Rated], history: History, now_us: Callable[[], int]
) -> KeyedStream[Watched]:
    """Quota rows of every touched entitlement, and a signal for every threshold crossed.

    `now_us` stamps the signals; nothing else depends on the clock.
    """
    limits: dict[tuple[int, str, str], Entitlement] = {
        (version.version, plan.name, entitlement.feature): entitlement
        for version in history.versions
        for plan in version.catalog.plans.values()
        for entitlement in plan.entitlements
    }
    alerts = {(v.version, p.name): p.alerts for v in history.versions for p in v.catalog.plans.values()}

    def watch(rated: Rated) -> Watched:
        at_us = now_us()
        watched = Watched([], [])
        for update in rated.updates.quotas:
            entitlement = limits[update.pricing_version, update.plan, update.feature]
            watched.quotas.append(quota_row(update, entitlement))
            watched.signals.extend(crossings(update, entitlement, at_us))
        for spent in rated.spends:
            for alert in alerts[spent.pricing_version, spent.plan]:
                watched.signals.extend(spend_crossings(spent, alert, at_us))
        return watched

    return op.map_value("watch", up, watch)
