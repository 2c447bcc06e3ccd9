"""subscribe: apply the log's subscription events, and tell what the events after them fall under."""

from __future__ import annotations

import bytewax.operators as op
from bytewax.dataflow import operator
from bytewax.operators import Stream

from domain.catalog import History
from domain.ports import SubscriptionLog
from domain.subscriber import Subscriber
from domain.values import Batch


@operator
def subscribe(step_id: str, up: Stream[Batch], history: History, saved: SubscriptionLog) -> Stream[Batch]:
    """Add to each batch the subscriptions that events made of its subjects; reject subscription events that do not fit.

    Must stand on the worker that reads the partition, behind everything that may drop an event. What
    `saved` raises stops the flow.
    """
    return op.map("apply", up, Subscriber(history, saved).subscribe)
