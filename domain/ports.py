"""The protocols that adapters meet, and what they raise.

Bad data is a value; these are for broken infrastructure and broken promises.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, NewType, Protocol

from domain.values import Position, SubscriptionChange


class TallyError(Exception):
    """An error that an operator can act on: the message says what is wrong and what to do."""


class ClaimsLost(TallyError):
    """The claim store no longer holds what it acknowledged: restart, so that it is rebuilt."""


class Fenced(TallyError):
    """A younger instance has started; this one must stop without flushing."""


class ClaimsUnavailable(TallyError):
    """The claim store could not be reached within the stated bound."""


class Claim(NamedTuple):
    """Who claimed a key first."""

    position: Position
    content: int


@dataclass(frozen=True, slots=True)
class ClaimRequests:
    """Keys to be claimed by one partition, in order of position; parallel lists."""

    offsets: list[int]
    indexes: list[int]
    log_times_us: list[int]
    sources: list[str]
    ids: list[str]
    contents: list[int]


Ticket = NewType("Ticket", int)
"""Stands for a claim that was sent and whose answer is still to come."""

TICKETS_MAX = 4
"""Claims that a thread may have sent and not received: bounds memory and what is sent again after a failure."""


class Claims(Protocol):
    """Records, for each idempotency key, who claimed it first."""

    def claim(self, partition: int, start_offset: int, next_offset: int, requests: ClaimRequests) -> dict[int, Claim]:
        """Claim each key for its position, and record that the partition is claimed up to `next_offset`.

        Called for every batch, also for one with nothing to claim. A key without a claim, or with a
        claim of the same position, becomes or stays the caller's.

        Returns:
            For each request (by its index) whose key is somebody else's: that first claim.

        Raises:
            ClaimsLost: the incarnation or a partition's progress is missing.
            Fenced: a younger instance has taken over.
            ClaimsUnavailable: no answer within the bound.
        """
        ...

    def send(self, partition: int, start_offset: int, next_offset: int, requests: ClaimRequests) -> Ticket:
        """Begin a `claim` and return without waiting for its answer; `receive` has that.

        A thread receives its tickets in the order in which it sent them, and has at most `TICKETS_MAX`
        under way. Claims of a partition take effect in the order of their sending. Where an error is
        raised, here or by `receive`, none of the thread's tickets is under way any more: those not
        received may or may not have claimed, as after a crash.

        Raises:
            As `claim` does; what can be known only from the answer is raised by `receive`.
        """
        ...

    def receive(self, ticket: Ticket) -> dict[int, Claim]:
        """Wait for what a `claim` would have returned or raised."""
        ...

    def forget(self, log_time_us: int) -> None:
        """Drop what no event can ask for once every partition's log time has passed `log_time_us`."""
        ...


class SubscriptionLog(Protocol):
    """What accepted subscription events have changed."""

    def changes(self, partition: int, before_offset: int) -> Iterable[SubscriptionChange]:
        """Every change of a partition before an offset, in order of position.

        Raises:
            TallyError: it cannot be read.
        """
        ...


class ClaimsAdmin(Protocol):
    """What the start of a flow does with a claim store, before any source reads."""

    def take_over(self) -> int:
        """Take the next fencing token: every call of an older instance is refused from now on."""
        ...

    def progress(self) -> Mapping[int, int]:
        """By partition, the offset up to which the store holds every claim (the least over shards)."""
        ...

    def restore(self, partition: int, requests: ClaimRequests) -> None:
        """Record the claims of rows already in the ledger; somebody else's claim is replaced."""
        ...

    def publish(self, progress: Mapping[int, int]) -> None:
        """Store a new incarnation and each partition's progress: claims are complete again."""
        ...
