"""What only a real Redis can do to claims: restart, evict, fill up, lose a connection."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from domain.ports import ClaimsLost, ClaimsUnavailable, Fenced, TallyError
from engines.redis_server import RedisServer
from stores.claims import RedisClaims
from tests.services.proxy import Proxy
from tests.services.redis_cluster import RedisNode
from tests.stores.claim_stores import (
    ACCEPT_WITHIN_US,
    GENERATION_US,
    Event,
    RedisStore,
    claim,
    first,
    requests,
    started,
)

A, B = Event("a"), Event("b")


@pytest.fixture
def url(redis_url: str) -> str:
    url = f"{redis_url}?db=5"
    RedisStore(url, shards=1).flush()
    return url


@pytest.fixture
def server(url: str) -> Iterator[redis.Redis]:
    """The server behind `url`, whose configuration is put back."""
    with redis.Redis.from_url(url) as client:
        yield client
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")


def keys_of(server: redis.Redis) -> set[str]:
    return {key.decode() for key in server.scan_iter(count=1000)}


def test_a_call_whose_answer_was_lost_is_repeated(url: str) -> None:
    with Proxy(url) as proxy:
        claims = started(RedisStore(proxy.url, shards=2))
        claim(claims, 0, 0, [A])
        proxy.drop_answers()
        assert claim(claims, 0, 1, [B, A, B]) == {2: first(0, 0), 3: first(0, 1)}
        assert proxy.dropped == 1
        assert claims.progress() == {0: 4}
        claims.close()


def test_publishing_and_restoring_bear_repetition(url: str) -> None:
    with Proxy(url) as proxy:
        claims = RedisStore(proxy.url, shards=1).instance()
        claims.take_over()
        proxy.drop_answers()
        claims.restore(0, requests([A]))
        proxy.drop_answers()
        claims.publish({0: 1})
        assert proxy.dropped == 2
        assert claim(claims, 0, 0, [A, A]) == {1: first(0, 0)}
        claims.close()


def test_an_unreachable_redis_is_waited_for_and_then_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    claims = RedisStore(f"redis://user:secret@127.0.0.1:{port}/0?password=secret", 1, wait_seconds=0.2).instance()
    began = time.monotonic()
    with pytest.raises(ClaimsUnavailable, match=rf"redis://127.0.0.1:{port}/0 .*start again") as raised:
        claims.take_over()
    assert 0.1 < time.monotonic() - began < 2
    assert "secret" not in str(raised.value)


def test_a_redis_that_hangs_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        claims = RedisStore(f"redis://127.0.0.1:{silent.getsockname()[1]}", 1, wait_seconds=0.2).instance()
        with pytest.raises(ClaimsUnavailable):
            claims.take_over()


def test_a_refused_password_is_not_tried_again(redis_url: str) -> None:
    claims = RedisStore(f"{redis_url}?username=nobody&password=secret", 1, wait_seconds=60).instance()
    with pytest.raises(TallyError, match="TALLY_REDIS_URL") as raised:
        claims.take_over()
    assert "secret" not in str(raised.value)


def test_a_full_redis_lets_nothing_through(url: str, server: redis.Redis) -> None:
    claims = started(RedisStore(url, shards=1, wait_seconds=0.2))
    server.config_set("maxmemory", 1)
    with pytest.raises(ClaimsUnavailable, match="memory"):
        claim(claims, 0, 0, [A])
    server.config_set("maxmemory", 0)
    assert claims.progress() == {}
    assert claim(claims, 0, 0, [A]) == {}


def test_a_redis_that_may_evict_is_refused(url: str, server: redis.Redis) -> None:
    store = RedisStore(url, shards=1)
    server.config_set("maxmemory-policy", "allkeys-lru")
    store.instance().take_over()
    server.config_set("maxmemory", 2**30)
    with pytest.raises(TallyError, match="set maxmemory-policy noeviction"):
        store.instance().take_over()


def test_an_old_redis_is_refused(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        version = str(client.info("server")["redis_version"])
    old = "5" + version[1:]
    with Proxy(url) as proxy:
        proxy.answers.replace = f"redis_version:{version}".encode(), f"redis_version:{old}".encode()
        with pytest.raises(TallyError, match=f"is version {old}: claims need 6.2 or later"):
            RedisStore(proxy.url, shards=1).instance().take_over()


def test_another_server_process_is_not_trusted(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as before:
        store = RedisStore(before.url, shards=1)
        claims = started(store)
        claim(claims, 0, 0, [A])
    with RedisServer(tmp_path):
        with pytest.raises(ClaimsLost, match="another server process"):
            claim(claims, 0, 1, [B])
        successor = started(store)
        assert successor.progress() == {0: 1}
        assert claim(successor, 0, 1, [A]) == {1: first(0, 0)}


def test_a_master_that_was_a_replica_meanwhile_is_not_trusted(tmp_path: Path) -> None:
    """The same process with another's older data: its run id says nothing."""
    with RedisNode(tmp_path / "one") as one, RedisNode(tmp_path / "other") as other:
        store = RedisStore(one.url, shards=1)
        claims = started(store)
        claim(claims, 0, 0, [A])
        other.follow(one)
        other.follow(None)
        claim(claims, 1, 0, [B])
        one.follow(other)
        threading.Timer(0.1, lambda: one.follow(None)).start()
        with pytest.raises(ClaimsLost, match="got its data from another"):
            claim(claims, 0, 1, [B])
        successor = started(store)
        assert successor.progress() == {0: 1}


def test_the_script_is_loaded_again_where_it_is_missing(url: str, server: redis.Redis) -> None:
    claims = started(RedisStore(url, shards=3))
    claim(claims, 0, 0, [A])
    server.script_flush()
    assert claim(claims, 0, 1, [A]) == {1: first(0, 0)}


def test_one_lost_shard_is_a_loss(url: str, server: redis.Redis) -> None:
    store = RedisStore(url, shards=3)
    claims = started(store)
    claim(claims, 0, 0, [A, B])
    server.delete("{tally:c1}")
    with pytest.raises(ClaimsLost, match="fencing token"):
        claim(claims, 0, 2, [])
    successor = store.instance()
    successor.take_over()
    assert successor.progress() == {}
    assert keys_of(server) == {"{tally:c0}", "{tally:c1}", "{tally:c2}"}, "no claim of the old seed is left"


def test_a_start_that_slept_while_it_dropped_claims_drops_none_of_its_successor(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taking over may take long, and the process may be paused; another start may come and go on meanwhile."""
    store = RedisStore(url, shards=2)
    claim(started(RedisStore(url, shards=3)), 0, 0, [A, B])
    slow, successors = store.instance(), []
    scan = slow._link.scan

    def sleepy(pattern: str) -> Iterator[list[str]]:
        successors.append(started(store))
        claim(successors[0], 0, 0, [A, B])
        yield from scan(pattern)

    monkeypatch.setattr(slow._link, "scan", sleepy)
    with pytest.raises(Fenced):
        slow.take_over()
    assert claim(successors[0], 1, 0, [A, B]) == {0: first(0, 0), 1: first(0, 1)}
    assert started(store).progress() == {0: 2, 1: 2}


def test_another_layout_begins_anew(url: str, server: redis.Redis) -> None:
    claim(started(RedisStore(url, shards=3)), 0, 0, [A, B])
    fewer = RedisStore(url, shards=1).instance()
    fewer.take_over()
    assert fewer.progress() == {}
    assert keys_of(server) == {"{tally:c0}"}
    fewer.publish({})
    claim(fewer, 0, 0, [A])
    longer = RedisClaims(url, shards=1, accept_within_us=2 * ACCEPT_WITHIN_US, wait_seconds=1)
    longer.take_over()
    assert longer.progress() == {}


def test_namespaces_are_apart(url: str) -> None:
    one, two = (
        RedisClaims(url, shards=1, accept_within_us=ACCEPT_WITHIN_US, wait_seconds=1, namespace=name)
        for name in ("one", "two")
    )
    for claims in (one, two):
        claims.take_over()
        claims.publish({})
    assert claim(one, 0, 0, [A]) == claim(two, 0, 0, [A]) == {}
    with pytest.raises(TallyError):
        RedisClaims(url, shards=1, accept_within_us=1, wait_seconds=1, namespace="a*")


def test_forgotten_generations_leave_no_keys(url: str, server: redis.Redis) -> None:
    claims = started(RedisStore(url, shards=2))
    claim(claims, 0, 0, [Event(str(number), 10) for number in range(500)])
    assert server.dbsize() > 400
    claims.forget(12 * GENERATION_US)
    assert keys_of(server) == {"{tally:c0}", "{tally:c1}"}
    assert not server.hexists("{tally:c0}", "g10")


def test_buckets_stay_compact(url: str, server: redis.Redis) -> None:
    claims = started(RedisStore(url, shards=1))
    claim(claims, 0, 0, [Event(str(number)) for number in range(3_000)])
    keys = list(server.scan_iter("{tally:c0}:*", count=1000))
    assert len(keys) < 3_000, "some buckets hold more than one id"
    assert {server.object("encoding", key) for key in keys} <= {b"ziplist", b"listpack"}
