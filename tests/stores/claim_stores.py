"""What the tests of claims share: stores that can be opened many times, and short requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import redis

from domain.ports import Claim, ClaimRequests, Claims, ClaimsAdmin
from domain.values import FUTURE_SKEW_US, HOUR_US, Position
from stores.claims import RedisClaims
from tests.fakes.claims import FakeClaims
from tests.fakes.redis import RedisServer
from tests.services.redis_cluster import RedisCluster
from tests.simulation.effects import Effects

ACCEPT_WITHIN_US = HOUR_US - FUTURE_SKEW_US
GENERATION_US = HOUR_US
"""The length of a generation under `ACCEPT_WITHIN_US`."""


class Instance(Claims, ClaimsAdmin, Protocol):
    """One instance of the flow."""

    def close(self) -> None: ...


class Store(Protocol):
    """A claim store apart from the instances that use it."""

    def instance(self) -> Instance: ...

    def flush(self) -> None: ...


@dataclass
class FakeStore:
    server: RedisServer = field(default_factory=RedisServer)
    effects: Effects | None = None

    def instance(self) -> Instance:
        return FakeClaims(self.server, accept_within_us=ACCEPT_WITHIN_US, effects=self.effects)

    def flush(self) -> None:
        self.server.flush()


@dataclass
class RedisStore:
    url: str
    shards: int
    wait_seconds: float = 5.0

    def instance(self) -> RedisClaims:
        return RedisClaims(
            self.url, shards=self.shards, accept_within_us=ACCEPT_WITHIN_US, wait_seconds=self.wait_seconds
        )

    def flush(self) -> None:
        with redis.Redis.from_url(self.url) as client:
            client.flushdb()


@dataclass
class ClusterStore:
    cluster: RedisCluster
    shards: int
    wait_seconds: float = 5.0

    def instance(self) -> RedisClaims:
        return RedisStore(self.cluster.url, self.shards, self.wait_seconds).instance()

    def flush(self) -> None:
        self.cluster.flush()


class Event(NamedTuple):
    """One event of a partition's log; its offset is its place there."""

    key: str
    generation: float = 10.0
    content: int = 1


class Row(NamedTuple):
    """An event that stands in the ledger."""

    position: Position
    event: Event


def requests(events: Sequence[Event], start: int = 0) -> ClaimRequests:
    """A batch whose events have the offsets from `start` on."""
    return requests_of([Row(Position(0, start + i), event) for i, event in enumerate(events)])


def requests_of(rows: Sequence[Row]) -> ClaimRequests:
    return ClaimRequests(
        [row.position.offset for row in rows],
        [row.position.element for row in rows],
        [int(row.event.generation * GENERATION_US) for row in rows],
        ["source"] * len(rows),
        [row.event.key for row in rows],
        [row.event.content for row in rows],
    )


def started(store: Store, progress: Mapping[int, int] | None = None) -> Instance:
    """A new instance that has taken over and may claim."""
    instance = store.instance()
    instance.take_over()
    instance.publish(instance.progress() if progress is None else progress)
    return instance


def claim(instance: Claims, partition: int, start: int, events: Sequence[Event]) -> dict[int, Claim]:
    """Claim a batch of events at consecutive offsets; the answer is by offset."""
    firsts = instance.claim(partition, start, start + len(events), requests(events, start))
    return {start + index: first for index, first in firsts.items()}


def first(partition: int, offset: int, content: int = 1) -> Claim:
    return Claim(Position(partition, offset), content)
