"""Claims in memory: passes the same contract suite as those on Redis."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from threading import Lock, local

from domain.ports import TICKETS_MAX, Claim, ClaimRequests, ClaimsLost, Fenced, TallyError, Ticket
from domain.values import FUTURE_SKEW_US, Position

Key = tuple[str, str]

_incarnations = count(1)


@dataclass
class ClaimServer:
    """What instances of `FakeClaims` share, and what outlives them."""

    token: int = 0
    incarnation: int | None = None
    stored: dict[int, int] = field(default_factory=dict)
    generations: dict[int, dict[Key, Claim]] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def flush(self) -> None:
        """Lose everything, as FLUSHALL does."""
        with self.lock:
            self.token, self.incarnation = 0, None
            self.stored.clear()
            self.generations.clear()


class FakeClaims:
    """Implements `domain.ports.Claims` and `ClaimsAdmin`; one object is one instance of the flow."""

    def __init__(self, server: ClaimServer, *, accept_within_us: int) -> None:
        self._server = server
        self._generation_us = accept_within_us + FUTURE_SKEW_US
        self._token = 0
        self._incarnation: int | None = None
        self._forgotten = -1
        self._numbers = count(1)
        self._sent = _Sent()

    def take_over(self) -> int:
        with self._server.lock:
            self._server.token += 1
            self._token, self._incarnation, self._forgotten = self._server.token, None, -1
            return self._token

    def progress(self) -> Mapping[int, int]:
        with self._server.lock:
            return dict(self._server.stored) if self._server.incarnation is not None else {}

    def restore(self, partition: int, requests: ClaimRequests) -> None:
        with self._server.lock:
            self._check_token()
            for generation, key, mine in self._requested(partition, requests):
                self._restore(generation, key, mine)

    def publish(self, progress: Mapping[int, int]) -> None:
        with self._server.lock:
            self._check_token()
            for partition, offset in progress.items():
                self._server.stored[partition] = max(offset, self._server.stored.get(partition, 0))
            self._incarnation = self._server.incarnation = next(_incarnations)

    def claim(self, partition: int, start_offset: int, next_offset: int, requests: ClaimRequests) -> dict[int, Claim]:
        return self.receive(self.send(partition, start_offset, next_offset, requests))

    def send(self, partition: int, start_offset: int, next_offset: int, requests: ClaimRequests) -> Ticket:
        sent = self._sent.tickets
        assert len(sent) < TICKETS_MAX, f"at most {TICKETS_MAX} tickets of a thread are under way: receive one"
        ticket = Ticket(next(self._numbers))
        try:
            sent.append((ticket, self._claim_all(partition, start_offset, next_offset, requests)))
        except TallyError as error:
            sent.append((ticket, error))
        return ticket

    def receive(self, ticket: Ticket) -> dict[int, Claim]:
        sent = self._sent.tickets
        assert sent and sent[0][0] == ticket, "tickets are received in the order and by the thread of their sending"
        _, answer = sent.popleft()
        if isinstance(answer, TallyError):
            sent.clear()
            raise answer
        return answer

    def _claim_all(
        self, partition: int, start_offset: int, next_offset: int, requests: ClaimRequests
    ) -> dict[int, Claim]:
        with self._server.lock:
            self._check_token()
            assert self._incarnation is not None, "claim() before publish()"
            if self._server.incarnation != self._incarnation:
                raise ClaimsLost("the incarnation is another one: restart")
            if self._server.stored.get(partition, 0) < start_offset:
                raise ClaimsLost(f"progress of partition {partition} is missing: restart")
            firsts = {
                index: first
                for index, (generation, key, mine) in enumerate(self._requested(partition, requests))
                if (first := self._claim(generation, key, mine)) is not None
            }
            self._server.stored[partition] = max(next_offset, self._server.stored.get(partition, 0))
            return firsts

    def forget(self, log_time_us: int) -> None:
        newest = log_time_us // self._generation_us - 2
        with self._server.lock:
            if newest > self._forgotten:
                for generation in [g for g in self._server.generations if g <= newest]:
                    del self._server.generations[generation]
                self._forgotten = newest

    def close(self) -> None:
        pass

    def _check_token(self) -> None:
        if self._server.token > self._token:
            raise Fenced("a younger instance has taken over")
        if self._server.token < self._token:
            raise ClaimsLost("the fencing token is missing: restart")

    def _requested(self, partition: int, requests: ClaimRequests) -> list[tuple[int, Key, Claim]]:
        positions = [Position(partition, *at) for at in zip(requests.offsets, requests.indexes, strict=True)]
        return [
            (log_time // self._generation_us, (source, id_), Claim(position, content))
            for position, log_time, source, id_, content in zip(
                positions, requests.log_times_us, requests.sources, requests.ids, requests.contents, strict=True
            )
        ]

    def _found(self, generation: int, key: Key) -> dict[int, Claim]:
        """By generation, in order: who holds the key there."""
        nearby = [(g, self._server.generations.get(g, {})) for g in (generation - 1, generation, generation + 1)]
        return {g: claims[key] for g, claims in nearby if key in claims}

    def _settled(self, found: Mapping[int, Claim], key: Key, mine: Claim) -> bool:
        """Whether the position is recorded already; it then learns its content if that was unknown."""
        for generation, claim in found.items():
            if claim.position == mine.position:
                if claim.content == 0:
                    self._server.generations[generation][key] = mine
                return True
        return False

    def _claim(self, generation: int, key: Key, mine: Claim) -> Claim | None:
        found = self._found(generation, key)
        if self._settled(found, key, mine):
            return None
        if not found:
            self._server.generations.setdefault(generation, {})[key] = mine
            return None
        return found[min(found, key=lambda g: (_rank(found[g].position, mine.position), g))]

    def _restore(self, generation: int, key: Key, mine: Claim) -> None:
        found = self._found(generation, key)
        if not self._settled(found, key, mine):
            for other in found:
                del self._server.generations[other][key]
            self._server.generations.setdefault(generation, {})[key] = mine


class _Sent(local):
    """A thread's tickets that are not received yet, the oldest first, with their answers."""

    def __init__(self) -> None:
        self.tickets: deque[tuple[Ticket, dict[int, Claim] | TallyError]] = deque()


def _rank(claim: Position, mine: Position) -> int:
    """Its partition's earlier claim goes before another partition's, and its later one after."""
    if claim.partition != mine.partition:
        return 1
    return 0 if claim < mine else 2
