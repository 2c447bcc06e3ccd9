"""Claims in memory: passes the same contract suite as those on Redis."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from itertools import count
from threading import local
from typing import Any

from domain.ports import TICKETS_MAX, Claim, ClaimRequests, ClaimsLost, ClaimsUnavailable, Fenced, TallyError, Ticket
from domain.values import FUTURE_SKEW_US, Position
from tests.fakes.redis import Link, RedisServer
from tests.simulation.effects import Effects

Key = tuple[str, str]

_incarnations = count(1)
_META = "claims"
_PROGRESS = "claims progress"


def _generation(number: int) -> tuple[str, int]:
    return ("claims", number)


class FakeClaims:
    """Implements `domain.ports.Claims` and `ClaimsAdmin`; one object is one instance of the flow."""

    def __init__(self, server: RedisServer, *, accept_within_us: int, effects: Effects | None = None) -> None:
        self._server = server
        self._link = Link(server, effects, ClaimsUnavailable)
        self._generation_us = accept_within_us + FUTURE_SKEW_US
        self._token = 0
        self._run_id = 0
        self._incarnation: int | None = None
        self._forgotten = -1
        self._numbers = count(1)
        self._sent = _Sent()

    def take_over(self) -> int:
        def take_over() -> int:
            self._run_id = self._server.run_id
            token: int = self._meta("token", 0) + 1
            self._server.put(_META, "token", token)
            return token

        self._token = self._link.call("redis.restore", take_over)
        self._incarnation, self._forgotten = None, -1
        return self._token

    def progress(self) -> Mapping[int, int]:
        return self._link.call(
            "redis.restore", lambda: dict(self._server.fields(_PROGRESS)) if self._meta("incarnation") else {}
        )

    def restore(self, partition: int, requests: ClaimRequests) -> None:
        def restore() -> None:
            self._check_token()
            for generation, key, mine in self._requested(partition, requests):
                self._restore(generation, key, mine)

        self._link.call("redis.restore", restore)

    def publish(self, progress: Mapping[int, int]) -> None:
        incarnation = next(_incarnations)

        def publish() -> None:
            self._check_token()
            for partition, offset in progress.items():
                self._claimed(partition, offset)
            self._server.put(_META, "incarnation", incarnation)

        self._link.call("redis.restore", publish)
        self._incarnation = incarnation

    def claim(self, partition: int, start_offset: int, next_offset: int, requests: ClaimRequests) -> dict[int, Claim]:
        return self.receive(self.send(partition, start_offset, next_offset, requests))

    def send(self, partition: int, start_offset: int, next_offset: int, requests: ClaimRequests) -> Ticket:
        sent = self._sent.tickets
        assert len(sent) < TICKETS_MAX, f"at most {TICKETS_MAX} tickets of a thread are under way: receive one"
        ticket = Ticket(next(self._numbers))
        try:
            claimed = self._link.call(
                "redis.claim", lambda: self._claim_all(partition, start_offset, next_offset, requests)
            )
            sent.append((ticket, claimed))
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
        self._check_token()
        assert self._incarnation is not None, "claim() before publish()"
        if self._meta("incarnation") != self._incarnation:
            raise ClaimsLost("the incarnation is another one: restart")
        if self._server.fields(_PROGRESS).get(partition, 0) < start_offset:
            raise ClaimsLost(f"progress of partition {partition} is missing: restart")
        firsts = {
            index: first
            for index, (generation, key, mine) in enumerate(self._requested(partition, requests))
            if (first := self._claim(generation, key, mine)) is not None
        }
        self._claimed(partition, next_offset)
        return firsts

    def forget(self, log_time_us: int) -> None:
        def forget() -> None:
            for generation in [key[1] for key in self._server.hashes if isinstance(key, tuple) and key[0] == "claims"]:
                if generation <= newest:
                    self._server.drop(_generation(generation))

        newest = self.kept_since_us(log_time_us) // self._generation_us - 1
        if newest > self._forgotten:
            self._link.call("redis.forget", forget)
            self._forgotten = newest

    def kept_since_us(self, log_time_us: int) -> int:
        return max(0, log_time_us // self._generation_us - 1) * self._generation_us

    def close(self) -> None:
        pass

    def _meta(self, name: str, otherwise: Any = None) -> Any:
        return self._server.fields(_META).get(name, otherwise)

    def _claimed(self, partition: int, offset: int) -> None:
        """Progress never falls."""
        if offset > self._server.fields(_PROGRESS).get(partition, -1):
            self._server.put(_PROGRESS, partition, offset)

    def _check_token(self) -> None:
        """Only a server process that it has met, and that was not taken over since, may be trusted."""
        if self._server.run_id != self._run_id:
            raise ClaimsLost("another server process answers: restart")
        token = self._meta("token", 0)
        if token > self._token:
            raise Fenced("a younger instance has taken over")
        if token < self._token:
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
        nearby = [(g, self._server.fields(_generation(g))) for g in (generation - 1, generation, generation + 1)]
        return {g: claims[key] for g, claims in nearby if key in claims}

    def _settled(self, found: Mapping[int, Claim], key: Key, mine: Claim) -> bool:
        """Whether the position is recorded already; it then learns its content if that was unknown."""
        for generation, claim in found.items():
            if claim.position == mine.position:
                if claim.content == 0:
                    self._server.put(_generation(generation), key, mine)
                return True
        return False

    def _claim(self, generation: int, key: Key, mine: Claim) -> Claim | None:
        found = self._found(generation, key)
        if self._settled(found, key, mine):
            return None
        if not found:
            self._server.put(_generation(generation), key, mine)
            return None
        return found[min(found, key=lambda g: (_rank(found[g].position, mine.position), g))]

    def _restore(self, generation: int, key: Key, mine: Claim) -> None:
        found = self._found(generation, key)
        if not self._settled(found, key, mine):
            for other in found:
                self._server.put(_generation(other), key, None)
            self._server.put(_generation(generation), key, mine)


class _Sent(local):
    """A thread's tickets that are not received yet, the oldest first, with their answers."""

    def __init__(self) -> None:
        self.tickets: deque[tuple[Ticket, dict[int, Claim] | TallyError]] = deque()


def _rank(claim: Position, mine: Position) -> int:
    """Its partition's earlier claim goes before another partition's, and its later one after."""
    if claim.partition != mine.partition:
        return 1
    return 0 if claim < mine else 2


def generations(server: RedisServer) -> set[int]:
    """Of which claims are held."""
    return {key[1] for key, held in server.hashes.items() if isinstance(key, tuple) and key[0] == "claims" and held}
