"""What every quota store promises, held to the one in memory and to Redis."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domain.quota import QuotaState
from domain.signals_json import QuotaField
from domain.values import DAY_US, QUANTITY_SCALE
from sinks.redis import QuotaStore
from sinks.redis_quotas import KEEP_US, Quotas
from tests.audit import read_quotas
from tests.fakes.quotas import FakeQuotas
from tests.fakes.redis import RedisServer, quota_states

MARCH = 2_087_942_400_000_000
"""2036-03-01T00:00:00Z: what ended long ago by Redis's clock is not kept."""
NOW = MARCH + DAY_US
WAIT_SECONDS_MAX = 5.0


@dataclass
class Place:
    """A server, ways to it, and what products see there."""

    store: Any
    states: Callable[[], dict[tuple[str, str], dict[str, Any]]]
    flush: Callable[[], object]
    heard: Callable[[int], list[tuple[str, bytes]]]
    """So many messages that a subscriber received."""


@pytest.fixture(params=["fake", "redis"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    if request.param == "fake":
        server = RedisServer()
        store = FakeQuotas(server, now_us=lambda: NOW)
        yield Place(store, lambda: quota_states(server), server.flush, lambda count: server.published[:count])
        return
    url = request.getfixturevalue("redis_url")
    own = f"{url}{'&' if '?' in url else '?'}db=8"
    with redis.Redis.from_url(own) as client, client.pubsub(ignore_subscribe_messages=True) as subscriber:
        client.flushdb()
        subscriber.subscribe("signals")
        subscriber.get_message(timeout=WAIT_SECONDS_MAX)

        def heard(count: int) -> list[tuple[str, bytes]]:
            found = [subscriber.get_message(timeout=WAIT_SECONDS_MAX) for _ in range(count)]
            return [(m["channel"].decode(), m["data"]) for m in found if m is not None]

        quotas = Quotas(own, wait_seconds=WAIT_SECONDS_MAX, now_us=lambda: NOW)
        yield Place(quotas, lambda: read_quotas(client), client.flushdb, heard)
        quotas.close()
        client.flushdb()


def field(
    inputs: int,
    subject: str = "a",
    *,
    start: int = MARCH,
    days: int = 31,
    era: int = 0,
    plan: str = "pro",
    since: int = 0,
    feature: str = "api",
) -> QuotaField:
    """A period with as much used as there were inputs."""
    used, limit = inputs * QUANTITY_SCALE, 100 * QUANTITY_SCALE
    span = (start, start + days * DAY_US)
    return QuotaField(subject, feature, used, limit, QuotaState.OK, *span, inputs, era, plan, "block", since)


def test_what_is_written_is_what_products_read(place: Place) -> None:
    assert place.store.write([field(17), field(3, 'b "é"\n🙂', feature="x y")], live=True) == 2
    states = place.states()
    assert states.keys() == {("a", "api"), ('b "é"\n🙂', "x y")}
    assert states["a", "api"] == {
        "used": "17", "limit": "100", "state": "ok", "period_start": "2036-03-01T00:00:00Z",
        "period_end": "2036-04-01T00:00:00Z", "inputs": 17, "era": 0, "plan": "pro", "on_exceed": "block",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "live", "kept"),
    [
        (field(5), field(4), True, True),
        (field(5), field(5), True, True),
        (field(5), field(6), False, False),
        (field(5), field(1, start=MARCH + 31 * DAY_US), True, False),
        (field(5, start=MARCH + 31 * DAY_US), field(9), True, True),
        (field(5), field(1, era=1), True, False),
        (field(5, era=1), field(9, start=MARCH + 31 * DAY_US), True, True),
        (field(5), field(1, plan="lab"), True, False),
        (field(5), field(9, plan="lab"), False, True),
        (field(5, since=MARCH), field(9), True, True),
        (field(5), field(1, start=MARCH - DAY_US, since=MARCH), True, False),
        (field(5, since=MARCH - DAY_US), field(1, since=MARCH), True, False),
    ],
)
def test_a_write_never_turns_a_state_back(
    place: Place, before: QuotaField, after: QuotaField, live: bool, kept: bool
) -> None:
    place.store.write([before], live=True)
    place.store.write([after], live=live)
    assert place.states()["a", "api"]["inputs"] == (before if kept else after).inputs


def test_a_period_that_ended_long_ago_is_left_out(place: Place) -> None:
    days_ago = KEEP_US // DAY_US + 1
    old = field(1, start=NOW - (days_ago + 1) * DAY_US, days=1)
    recent = field(2, "b", start=NOW - days_ago * DAY_US, days=1 + 1)
    assert place.store.write([old, recent], live=True) == 1
    assert place.states().keys() == {("b", "api")}
    assert place.store.write([old], live=True) == 0


def test_messages_are_published_in_order(place: Place) -> None:
    place.store.publish("signals", [b"1", b"2"])
    place.store.publish("signals", [b"3"])
    assert place.heard(3) == [("signals", b"1"), ("signals", b"2"), ("signals", b"3")]


def test_quotas_of_another_ledger_are_dropped(place: Place) -> None:
    assert place.store.adopt("one") == 0
    place.store.write([field(5), field(5, "b")], live=True)
    assert place.store.adopt("one") == 0 and len(place.states()) == 2
    assert place.store.adopt("two") == 2 and not place.states()


def test_who_was_given_everything_is_known_until_it_is_flushed(place: Place) -> None:
    assert not place.store.was_restored()
    place.store.note_restored()
    assert place.store.was_restored()
    place.flush()
    assert not place.store.was_restored()


def test_a_fake_that_failed_over_was_not_given_everything() -> None:
    """And has lost what its replica had not received; real ones: `tests/flows/test_lost_claims.py`."""
    server = RedisServer()
    store: QuotaStore = FakeQuotas(server, now_us=lambda: NOW)
    store.write([field(1)], live=True)
    store.note_restored()
    store.write([field(2)], live=True)
    store.write([field(3), field(1, "b")], live=True)
    server.fail_over(2)
    assert {key: state["inputs"] for key, state in quota_states(server).items()} == {("a", "api"): 1}
    assert not store.was_restored()


_FIELDS = st.builds(
    field,
    st.integers(1, 3),
    start=st.sampled_from([MARCH - 32 * DAY_US, MARCH, MARCH + DAY_US, MARCH + 31 * DAY_US]),  # the first is over
    era=st.integers(0, 1),
    plan=st.sampled_from(["pro", "lab"]),
    since=st.sampled_from([0, MARCH - DAY_US, MARCH]),
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(writes=st.lists(st.tuples(_FIELDS, st.booleans()), max_size=6))
def test_any_writes_leave_what_the_fake_has(redis_url: str, writes: list[tuple[QuotaField, bool]]) -> None:
    server = RedisServer()
    fake = FakeQuotas(server, now_us=lambda: NOW)
    with redis.Redis.from_url(f"{redis_url}{'&' if '?' in redis_url else '?'}db=8") as client:
        client.flushdb()
        real = Quotas(redis_url + ("&" if "?" in redis_url else "?") + "db=8", wait_seconds=5, now_us=lambda: NOW)
        for one, live in writes:
            assert fake.write([one], live=live) == real.write([one], live=live)
        assert quota_states(server) == read_quotas(client)
        real.close()
        client.flushdb()
    assert json.dumps(quota_states(server).popitem()[1]) if writes else True
