"""How far a partition is done, when messages are done out of order: pure.

The group's offset is that of the first message that is not done. Those behind it that are done already
are told in the offset's metadata, so that a restart repeats few of them. What does not fit into the
metadata is delivered again, under the same webhook-id.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

METADATA_BYTES_MAX = 3000
"""Brokers take 4096 (`offset.metadata.max.bytes`)."""
_VERSION = "1"


@dataclass(frozen=True, slots=True)
class Done:
    """Which messages from an offset on were done before: all below `end` that are not `left`."""

    end: int = 0
    left: dict[int, None] = field(default_factory=dict)
    """A set in ascending order."""

    def __contains__(self, offset: int) -> bool:
        return offset < self.end and offset not in self.left

    @staticmethod
    def read(offset: int, metadata: str) -> Done:
        """What the metadata of a committed offset says; nothing, if somebody else wrote it."""
        version, _, rest = metadata.partition(":")
        if version != _VERSION or not rest.isascii():
            return Done()
        try:
            length, *gaps = [int(number, 36) for number in rest.split(",")]
        except ValueError:
            return Done()
        found, at = [], offset
        for gap in gaps:
            at += gap
            found.append(at)
        return Done(offset + length, dict.fromkeys(found))


class Progress:
    """One partition's messages: which are open, and what to commit."""

    def __init__(self, offset: int, done: Done) -> None:
        self._next = offset
        self._done = done
        self._open: Counter[int] = Counter()
        """Deliveries of each open message; ascending, since messages come in order."""

    def begin(self, offset: int, deliveries: int) -> None:
        """A message was read that makes so many deliveries."""
        assert offset >= self._next, "messages come in order"
        self._next = offset + 1
        if deliveries:
            self._open[offset] = deliveries

    def was_read(self, offset: int) -> bool:
        """Whether it was read by this member before."""
        return offset < self._next

    def was_done(self, offset: int) -> bool:
        """Whether an earlier run has brought it to its end."""
        return offset in self._done

    def finish(self, offset: int) -> None:
        """One delivery of a message came to its end."""
        self._open[offset] -= 1
        if not self._open[offset]:
            del self._open[offset]

    def position(self) -> tuple[int, str]:
        """The offset to commit, and its metadata. What an earlier run did beyond what was read is told again."""
        opened = [*self._open, *(offset for offset in self._done.left if offset >= self._next)]
        end = max(self._next, self._done.end)
        first = opened[0] if opened else end
        numbers, at, size = [], first, 20
        for offset in opened:
            text = _base36(offset - at)
            size += len(text) + 1
            if size > METADATA_BYTES_MAX:
                end = offset
                break
            numbers.append(text)
            at = offset
        return first, f"{_VERSION}:{','.join([_base36(end - first), *numbers])}" if opened else ""


def _base36(number: int) -> str:
    digits = ""
    while True:
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
        if not number:
            return digits
