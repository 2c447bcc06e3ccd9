"""decode: raw batches in, batches of events and rejects out."""

from __future__ import annotations

import bytewax.operators as op
from bytewax.dataflow import operator
from bytewax.operators import Stream

from domain.catalog import History
from domain.decode import BatchDecoder
from domain.values import Batch, RawBatch


@operator
def decode(step_id: str, up: Stream[RawBatch], history: History) -> Stream[Batch]:
    """Validate every event of a batch against the catalog in force at its log time.

    Nothing is dropped: an event that is not accepted is in the batch's rejects, with its reason.
    """
    return op.map("batch", up, BatchDecoder(history).decode)
