"""Claims whose answer is lost, and a server that lost claims: the same by the fake and by Redis behind a proxy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple
from urllib.parse import urlencode

import pytest

from domain.ports import ClaimsLost, ClaimsUnavailable
from tests.services.proxy import Proxy
from tests.simulation.effects import Clock, Effects, Error
from tests.stores.claim_stores import Event, FakeStore, RedisStore, Row, Store, claim, first, requests_of, started

A, B, C = Event("a"), Event("b"), Event("c")


class _Losing(Effects):
    """Loses the next answers, after the server did what it was asked."""

    answers = 0

    def after(self, name: str, error: Error | None = None) -> None:
        if self.answers and error is not None:
            self.answers -= 1
            raise error(f"{name}: the answer is lost")


class Place(NamedTuple):
    store: Store
    lose: Callable[[int], None]
    """Loses the next answers."""


@pytest.fixture(params=["fake", "redis"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    if request.param == "fake":
        effects = _Losing(Clock(0))

        def lose(count: int) -> None:
            effects.answers = count

        yield Place(FakeStore(effects=effects), lose)
        return
    with Proxy(request.getfixturevalue("redis_url")) as proxy:
        store = RedisStore(f"{proxy.url}?{urlencode({'db': 6})}", shards=1)
        store.flush()
        yield Place(store, lambda count: proxy.drop_answers(count, lambda sent: b"EVALSHA" in sent))


def test_a_claim_whose_answer_was_lost_gives_the_same_verdicts(place: Place) -> None:
    claims = started(place.store)
    assert claim(claims, 0, 0, [A, B]) == {}
    for lost, start in ((1, 2), (2, 5)):
        place.lose(lost)
        verdicts = claim(claims, 0, start, [B, Event(f"new {start}"), A])
        assert verdicts == {start: first(0, 1), start + 2: first(0, 0)}
    assert claims.progress() == {0: 8}


def test_a_restore_and_a_publish_bear_lost_answers(place: Place) -> None:
    instance = place.store.instance()
    instance.take_over()
    rows = requests_of([Row(first(0, 0).position, A), Row(first(0, 3).position, B)])
    place.lose(1)
    instance.restore(0, rows)
    place.lose(1)
    instance.publish({0: 4})
    assert claim(instance, 0, 4, [A, C, B]) == {4: first(0, 0), 6: first(0, 3)}


def test_without_any_answer_the_claims_are_unavailable_and_may_be_made(place: Place) -> None:
    store = place.store
    if isinstance(store, RedisStore):
        store.wait_seconds = 0.5
    claims = started(store)
    place.lose(1000)
    with pytest.raises(ClaimsUnavailable):
        claim(claims, 0, 0, [A])
    place.lose(0)
    assert claim(claims, 0, 0, [A, A]) == {1: first(0, 0)}


def test_a_failover_of_the_fake_is_seen_as_the_real_ones_are() -> None:
    """Those of Redis: `tests/flows/test_lost_claims.py`, `tests/stores/test_redis_cluster.py`."""
    store = FakeStore()
    claims = started(store)
    claim(claims, 0, 0, [A])
    claim(claims, 0, 1, [B])
    store.server.fail_over(1)
    with pytest.raises(ClaimsLost, match="another server"):
        claim(claims, 0, 2, [C])
    successor = store.instance()
    successor.take_over()
    assert successor.progress() == {0: 1}
    successor.restore(0, requests_of([Row(first(0, 1).position, B)]))
    successor.publish({0: 2})
    assert claim(successor, 0, 2, [B, A]) == {2: first(0, 1), 3: first(0, 0)}
    with pytest.raises(ClaimsLost):
        claim(claims, 0, 2, [C])
