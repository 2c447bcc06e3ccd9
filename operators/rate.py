"""rate: apply prices to the billing periods that an update touched."""

from __future__ import annotations

import bytewax.operators as op
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream

from domain.catalog import History
from domain.rating import Rated, rated_rows, spend
from domain.totals import Updates


@operator
def rate(step_id: str, up: KeyedStream[Updates], history: History) -> KeyedStream[Rated]:
    """Price every touched period by the catalog version in force at its start."""

    def price(updates: Updates) -> Rated:
        rows = [row for update in updates.periods for row in rated_rows(update, history)]
        spends = [found for update in updates.periods if (found := spend(update, history)) is not None]
        return Rated(updates, rows, spends)

    return op.map_value("price", up, price)
