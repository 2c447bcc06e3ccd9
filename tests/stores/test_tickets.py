"""Claims that are sent now and received later: what every store promises, and what Redis does to them on the way."""

from __future__ import annotations

import threading

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domain.ports import TICKETS_MAX, Claim, ClaimsLost, ClaimsUnavailable, Fenced, Ticket
from tests.services.proxy import Proxy
from tests.stores.claim_stores import Event, Instance, RedisStore, Store, claim, first, requests, started

A, B, C = Event("a"), Event("b"), Event("c")


def send(instance: Instance, partition: int, start: int, events: list[Event]) -> Ticket:
    return instance.send(partition, start, start + len(events), requests(events, start))


def test_several_are_under_way_and_take_effect_in_order(store: Store) -> None:
    claims = started(store)
    tickets = [
        send(claims, 0, 0, [A, B]),
        send(claims, 0, 2, [A, C]),
        send(claims, 1, 0, [C, C]),
        send(claims, 0, 4, []),
    ]
    assert [claims.receive(ticket) for ticket in tickets] == [
        {},
        {0: first(0, 0)},
        {0: first(0, 3), 1: first(0, 3)},
        {},
    ]
    assert claims.progress() == {0: 4, 1: 2}


def test_they_are_received_in_order_and_bounded(store: Store) -> None:
    claims = started(store)
    tickets = [send(claims, 0, offset, [A]) for offset in range(TICKETS_MAX)]
    with pytest.raises(AssertionError, match="receive one"):
        send(claims, 0, TICKETS_MAX, [A])
    with pytest.raises(AssertionError, match="order"):
        claims.receive(tickets[1])
    claims.receive(tickets[0])
    with pytest.raises(AssertionError, match="order"):
        claim(claims, 0, TICKETS_MAX, [])
    claims.close()


def test_what_is_refused_is_raised_when_received_and_ends_the_others(store: Store) -> None:
    for action, kind in ((store.flush, ClaimsLost), (lambda: started(store), Fenced)):
        store.flush()
        claims = started(store)
        before = send(claims, 0, 0, [A])
        assert claims.receive(before) == {}
        action()
        tickets = [send(claims, 0, offset, [B]) for offset in (1, 2, 3)]
        with pytest.raises(kind):
            claims.receive(tickets[0])
        for ticket in tickets:
            with pytest.raises(AssertionError):
                claims.receive(ticket)


def test_threads_do_not_see_each_others_tickets(store: Store) -> None:
    claims = started(store)
    mine = send(claims, 0, 0, [A])
    theirs: list[dict[int, Claim] | str] = []

    def work() -> None:
        ticket = send(claims, 1, 0, [B, B])
        theirs.append(claims.receive(ticket))
        try:
            claims.receive(mine)
        except AssertionError as error:
            theirs.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert claims.receive(mine) == {}
    assert theirs == [{1: first(1, 0)}, "tickets are received in the order and by the thread of their sending"]


EVENTS = st.builds(Event, st.sampled_from("abcdef"), st.sampled_from([9, 10.0, 11]), st.integers(1, 2))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 1), st.lists(EVENTS, max_size=6)), max_size=12), st.integers(1, TICKETS_MAX))
def test_answers_do_not_depend_on_how_many_are_under_way(
    store: Store, batches: list[tuple[int, list[Event]]], depth: int
) -> None:
    def answers(depth: int) -> list[dict[int, Claim]]:
        store.flush()
        claims = started(store)
        at = [0, 0]
        found: list[dict[int, Claim]] = []
        tickets: list[Ticket] = []
        for partition, events in batches:
            if len(tickets) == depth:
                found.append(claims.receive(tickets.pop(0)))
            tickets.append(send(claims, partition, at[partition], events))
            at[partition] += len(events)
        found += [claims.receive(ticket) for ticket in tickets]
        claims.close()
        return found

    assert answers(depth) == answers(1)


# What happens on the way to Redis


@pytest.fixture
def url(redis_url: str) -> str:
    url = f"{redis_url}?db=6"
    RedisStore(url, shards=1).flush()
    return url


@pytest.mark.parametrize("lost_answer", range(TICKETS_MAX))
def test_a_connection_may_break_with_any_answer(url: str, lost_answer: int) -> None:
    with Proxy(url) as proxy:
        claims = started(RedisStore(proxy.url, shards=2))
        batches = [[A, B], [B, C], [Event("d"), A], [C, Event("d"), Event("e")]]
        tickets: list[Ticket] = []
        for number, events in enumerate(batches):
            if number == lost_answer:
                proxy.drop_answers()
            tickets.append(send(claims, 0, 2 * number, events))
        found = [claims.receive(ticket) for ticket in tickets]
        assert found == [{}, {0: first(0, 1)}, {1: first(0, 0)}, {0: first(0, 3), 1: first(0, 4)}]
        assert proxy.dropped == 1
        assert claims.progress() == {0: 9}
        claims.close()


def test_what_follows_a_refusal_in_passing_is_sent_again_after_it(url: str) -> None:
    """A full memory refuses one call; those behind it would then look as if Redis had lost claims."""
    with redis.Redis.from_url(url) as server:
        claims = started(RedisStore(url, shards=2))
        claim(claims, 0, 0, [A])
        server.script_flush()
        server.config_set("maxmemory", 1)
        try:
            tickets = [send(claims, 0, 1, [B, A]), send(claims, 0, 3, [B]), send(claims, 1, 0, [A])]
            threading.Timer(0.1, lambda: server.config_set("maxmemory", 0)).start()
            found = [claims.receive(ticket) for ticket in tickets]
        finally:
            server.config_set("maxmemory", 0)
        assert found == [{1: first(0, 0)}, {0: first(0, 1)}, {0: first(0, 0)}]


def test_after_giving_up_nothing_is_under_way(url: str) -> None:
    with redis.Redis.from_url(url) as server:
        claims = started(RedisStore(url, shards=1, wait_seconds=0.2))
        server.config_set("maxmemory", 1)
        try:
            tickets = [send(claims, 0, 0, [A]), send(claims, 0, 1, [B])]
            with pytest.raises(ClaimsUnavailable, match="memory"):
                claims.receive(tickets[0])
        finally:
            server.config_set("maxmemory", 0)
        with pytest.raises(AssertionError):
            claims.receive(tickets[1])
        assert claim(claims, 0, 0, [A, B, A]) == {2: first(0, 0)}


def test_large_batches_do_not_block_each_other(url: str) -> None:
    claims = started(RedisStore(url, shards=1))
    events = [Event(str(number)) for number in range(20_000)]
    again = [send(claims, 0, 0, events)]
    again += [send(claims, partition, 0, events) for partition in (1, 2, 3)]
    assert [len(claims.receive(ticket)) for ticket in again] == [0, 20_000, 20_000, 20_000]
