"""watch_quotas: turn updates into quota states, and crossed thresholds into signals."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import bytewax.operators as op
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream

from domain.catalog import History
from domain.quota import Watched, Watcher
from domain.rating import RatedUpdates
from operators.probe import UNOBSERVED, Probe


@operator
def watch_quotas(
    step_id: str,
    up: KeyedStream[RatedUpdates],
    history: History,
    now_us: Callable[[], int],
    probe: Probe = UNOBSERVED,
    told: Collection[str] = frozenset(),
) -> KeyedStream[Watched]:
    """The state of every touched entitlement, and a signal for every threshold crossed.

    `now_us` stamps the signals; nothing else depends on the clock. Those whose ids were `told` are left out.
    """
    watch = probe.timed("watch_quotas", Watcher(history).watch)

    def step(rated: RatedUpdates) -> Watched:
        watched = watch(rated, now_us())
        if told and watched.signals:
            watched = replace(watched, signals=[signal for signal in watched.signals if signal.id not in told])
        if watched.signals:
            probe.signalled(rated.updates.log_time_us, watched.signals)
        return watched

    return op.map_value("watch", up, step)
