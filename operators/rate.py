"""rate: apply prices to the billing periods that an update touched."""

from __future__ import annotations

import bytewax.operators as op
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream

from domain.catalog import History
from domain.rating import RatedUpdates, Rater
from domain.updates import Updates
from operators.probe import UNOBSERVED, Probe


@operator
def rate(
    step_id: str, up: KeyedStream[Updates], history: History, probe: Probe = UNOBSERVED
) -> KeyedStream[RatedUpdates]:
    """Price every touched period by the catalog version in force at its start."""
    return op.map_value("price", up, probe.timed("rate", Rater(history).rate))
