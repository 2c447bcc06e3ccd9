"""decode and deduplicate: validate every event, claim its key for its position, reject what is somebody else's."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import bytewax.operators as op
from bytewax.dataflow import operator
from bytewax.operators import Stream

from domain.ports import TICKETS_MAX, Claim, ClaimRequests, Claims, TallyError, Ticket
from domain.values import Batch, Events, Position, RawBatch, Reason, Refusal, Rejects

STRIDE_ROWS = 5_000
"""Few enough that what is decoded is still in the processor's cache when it is claimed."""


@operator
def deduplicate(
    step_id: str,
    up: Stream[RawBatch],
    decode: Callable[[RawBatch], Batch],
    claims: Claims,
    stride_rows: int = STRIDE_ROWS,
) -> Stream[Batch]:
    """Decode batches, and move events whose key another position claimed first to the rejects.

    One step, so that the store works on a stride of a batch while the next one is decoded. It is called for
    every batch, also for one without events, so that it can tell whether it holds every claim before this one.
    Only settled batches, which come before all others of their partition, are not claimed: their claims are restored.
    What it raises stops the flow; nothing passes unclaimed.

    Args:
        step_id: Unique id of this step.
        up: Batches as received, in order of offset within a partition.
        decode: Says of every event of a batch whether it is accepted but for repeats.
        claims: Who claimed an idempotency key first.
        stride_rows: So many events are decoded and claimed together.
    """

    def claim(raws: list[RawBatch]) -> list[Batch]:
        passed: list[Batch] = []
        sent: deque[tuple[Batch, Batch, Ticket]] = deque()

        def receive() -> None:
            whole, decoded, ticket = sent.popleft()
            judged = _without_repeats(claims, decoded, ticket)
            whole.events.extend(judged.events)
            whole.rejects.extend(judged.rejects)

        for raw in raws:
            if raw.settled:
                passed.append(_still_accepted(decode(raw)))
                continue
            whole = Batch(raw, Events(attributes=None if raw.attributes is None else []), Rejects())
            passed.append(whole)
            for stride in raw.strides(stride_rows):
                decoded = decode(stride)
                if len(sent) == TICKETS_MAX:
                    receive()
                sent.append((whole, decoded, _send(claims, decoded)))
        while sent:
            receive()
        return passed

    return op.flat_map_batch("claim", up, claim)


def _still_accepted(batch: Batch) -> Batch:
    """A settled batch; if what the ledger holds is not accepted any more, state rebuilt from it would be another."""
    rejects = batch.rejects
    if len(rejects):
        position = Position(batch.raw.partition, rejects.offsets[0], rejects.indexes[0])
        raise TallyError(
            f"{_text(batch.raw, position)} stands in the ledger as accepted, but is now refused ({rejects.reasons[0]}: "
            f"{rejects.details[0]}): the tables `events` or `catalogs` are not what they were. Restore them."
        )
    return batch


def _send(claims: Claims, batch: Batch) -> Ticket:
    raw, events = batch.raw, batch.events
    requests = ClaimRequests(
        events.offsets, events.indexes, events.log_times_us, events.sources, events.ids, events.contents
    )
    return claims.send(raw.partition, raw.start_offset, raw.next_offset, requests)


def _without_repeats(claims: Claims, batch: Batch, ticket: Ticket) -> Batch:
    taken = claims.receive(ticket)
    for i, first in taken.items():
        _reject(batch, batch.events, i, first)
    return Batch(batch.raw, batch.events.without(taken), batch.rejects)


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
