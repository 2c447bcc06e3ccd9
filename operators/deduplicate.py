"""deduplicate: claim every event's idempotency key for its position; reject what is somebody else's."""

from __future__ import annotations

import bytewax.operators as op
from bytewax.dataflow import operator
from bytewax.operators import Stream

from domain.ports import Claim, ClaimRequests, Claims
from domain.values import Batch, Events, Position, RawBatch, Reason, Refusal


@operator
def deduplicate(step_id: str, up: Stream[Batch], claims: Claims) -> Stream[Batch]:
    """Move events whose key another position claimed first from a batch's events to its rejects.

    The store is called for every batch, also for one without events, so that it can tell whether it
    holds every claim before this one. What it raises stops the flow; nothing passes unclaimed.
    """

    def claim(batch: Batch) -> Batch:
        raw, events = batch.raw, batch.events
        requests = ClaimRequests(
            events.offsets, events.indexes, events.log_times_us, events.sources, events.ids, events.contents
        )
        taken = claims.claim(raw.partition, raw.start_offset, raw.next_offset, requests)
        for i, first in taken.items():
            _reject(batch, events, i, first)
        return Batch(raw, events.without(taken), batch.rejects)

    return op.map("claim", up, claim)


def _reject(batch: Batch, events: Events, i: int, first: Claim) -> None:
    """Record event `i` as a repeat of `first`: a duplicate, or a conflict if the content differs."""
    raw, rejects = batch.raw, batch.rejects
    same = first.content == events.contents[i]
    reason = Reason.DUPLICATE if same else Reason.CONFLICT
    refusal = Refusal(
        reason,
        f"first at {_text(raw, first.position)}",
        events.log_times_us[i],
        events.sources[i],
        events.ids[i],
        events.subjects[i],
    )
    position = Position(raw.partition, events.offsets[i], events.indexes[i])
    rejects.add(position, b"" if same else events.payloads[i], refusal, first.position, first.content)


def _text(raw: RawBatch, position: Position) -> str:
    return f"{raw.topic}/{position.partition}/{position.offset}/{position.element}"
