"""Quota checks against a real Redis: what the state means, and what is answered without one."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import redis
from tallyflow import AsyncQuotas, QuotaCheck, Quotas, QuotasUnreachable, QuotaUnknown

from domain.quota import QuotaState
from domain.signals_json import QuotaField, quota_key, quota_value
from tests.services.redis_cluster import RedisCluster

_NOW = datetime.now(UTC)
_START, _END = _NOW - timedelta(days=1), _NOW + timedelta(days=1)
_STATE = {
    "used": "123.5",
    "limit": "1000",
    "state": "warning",
    "period_start": _START.isoformat().replace("+00:00", "Z"),
    "period_end": _END.isoformat().replace("+00:00", "Z"),
    "inputs": 17,
    "era": 0,
    "on_exceed": "block",
}

Check = Callable[..., QuotaCheck]


@pytest.fixture
def url(redis_url: str) -> str:
    return f"{redis_url}?db=7"


@pytest.fixture
def store(url: str) -> Iterator[Callable[..., None]]:
    """Writes a field of `cust-1` as tallyflow does."""
    client = redis.Redis.from_url(url)
    client.flushdb()

    def write(feature: str, raw: bytes | None = None, **changed: Any) -> None:
        value = json.dumps({**_STATE, **changed}).encode() if raw is None else raw
        client.hset("quota:{cust-1}", feature, value)

    yield write
    client.close()


@pytest.fixture(params=["threads", "asyncio"])
def check(request: pytest.FixtureRequest) -> Check:
    """`check(url, subject, feature, **arguments)` by either class."""

    def blocking(url: str, subject: str, feature: str, **given: Any) -> QuotaCheck:
        with Quotas(url, **given) as quotas:
            return quotas.check(subject, feature)

    def awaiting(url: str, subject: str, feature: str, **given: Any) -> QuotaCheck:
        async def ask() -> QuotaCheck:
            async with AsyncQuotas(url, **given) as quotas:
                return await quotas.check(subject, feature)

        return asyncio.run(ask())

    return blocking if request.param == "threads" else awaiting


def test_a_state_is_read(url: str, store: Callable[..., None], check: Check) -> None:
    store("api")
    expected = QuotaCheck(True, Decimal("123.5"), Decimal(1000), "warning", _START, _END, True)
    assert check(url, "cust-1", "api", when_unknown="raise", when_unreachable="raise") == expected


def test_what_tallyflow_writes_is_read(url: str, check: Check) -> None:
    start, end = (int(instant.timestamp()) * 1_000_000 for instant in (_START, _END))
    written = QuotaField(
        subject="ü {x}",
        feature="api",
        used=15 * 10**11,
        limit=10**12,
        state=QuotaState.EXCEEDED,
        period_start_us=start,
        period_end_us=end,
        inputs=3,
        era=0,
        plan="pro",
    )
    with redis.Redis.from_url(url) as client:
        client.hset(quota_key("ü {x}"), "api", quota_value(written))
    found = check(url, "ü {x}", "api", when_unknown="raise", when_unreachable="raise")
    assert (found.allowed, found.used, found.limit, found.state) == (False, Decimal("1.5"), Decimal(1), "exceeded")
    assert found.period_end == _END.replace(microsecond=0)
    with redis.Redis.from_url(url) as client:
        client.hset(quota_key("ü {x}"), "api", quota_value(written._replace(on_exceed="allow")))
    assert check(url, "ü {x}", "api").allowed


@pytest.mark.parametrize(
    ("state", "on_exceed", "allowed"),
    [("ok", "block", True), ("warning", "block", True), ("exceeded", "block", False), ("exceeded", "allow", True)],
)
def test_an_exceeded_quota_blocks_unless_the_catalog_allows_it(
    url: str, store: Callable[..., None], state: str, on_exceed: str, allowed: bool
) -> None:
    store("api", state=state, on_exceed=on_exceed)
    with Quotas(url) as quotas:
        found = quotas.check("cust-1", "api")
    assert (found.allowed, found.state, found.known) == (allowed, state, True)


def test_a_state_that_does_not_say_on_exceed_blocks(url: str, store: Callable[..., None]) -> None:
    store(
        "api",
        json.dumps(
            {key: value for key, value in _STATE.items() if key != "on_exceed"} | {"state": "exceeded"}
        ).encode(),
    )
    with Quotas(url) as quotas:
        assert not quotas.check("cust-1", "api").allowed


def test_after_its_period_nothing_is_used(url: str, store: Callable[..., None], check: Check) -> None:
    store("api", state="exceeded", used="2000", period_end=(_NOW - timedelta(microseconds=1)).isoformat())
    expected = QuotaCheck(True, Decimal(0), Decimal(1000), "ok", None, None, True)
    assert check(url, "cust-1", "api") == expected


@pytest.mark.parametrize(("subject", "feature"), [("cust-1", "other"), ("nobody", "api")])
def test_without_state_the_policy_answers(
    url: str, store: Callable[..., None], check: Check, subject: str, feature: str
) -> None:
    store("api")
    for policy, allowed in (("allow", True), ("deny", False)):
        found = check(url, subject, feature, when_unknown=policy, when_unreachable="raise")
        assert found == QuotaCheck(allowed, Decimal(0), None, "unknown", None, None, False)
    with pytest.raises(QuotaUnknown, match=f"no quota state of '{feature}' for '{subject}'"):
        check(url, subject, feature, when_unknown="raise")


@pytest.mark.parametrize("broken", ["refusing", "silent", "unreadable"])
def test_without_an_answer_the_policy_answers_in_time(
    url: str, store: Callable[..., None], check: Check, broken: str
) -> None:
    store("api", b'{"used": "lots"}')
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1] if broken == "silent" else 1
        where = url if broken == "unreadable" else f"redis://:hunter2@127.0.0.1:{port}/0"
        for policy, allowed in (("allow", True), ("deny", False)):
            started = time.monotonic()
            found = check(where, "cust-1", "api", when_unreachable=policy, when_unknown="raise", timeout_seconds=0.05)
            assert found == QuotaCheck(allowed, Decimal(0), None, "unreachable", None, None, False)
            assert time.monotonic() - started < 2, "a bound of 0.05 s on each of a few replies"
        with pytest.raises(QuotasUnreachable) as caught:
            check(where, "cust-1", "api", when_unreachable="raise", timeout_seconds=0.05)
        assert "hunter2" not in str(caught.value)


def test_a_check_is_one_command(url: str, store: Callable[..., None]) -> None:
    store("api")
    with Quotas(url) as quotas, redis.Redis.from_url(url) as watcher:
        quotas.check("cust-1", "api")
        before = watcher.info("commandstats")
        for _ in range(5):
            quotas.check("cust-1", "api")
        after = watcher.info("commandstats")
    changed = {name: after[name]["calls"] - before.get(name, {"calls": 0})["calls"] for name in after}
    assert {name: calls for name, calls in changed.items() if calls and name != "cmdstat_info"} == {"cmdstat_hget": 5}


def test_a_cluster_is_found_out(redis_cluster: RedisCluster) -> None:
    """From any node, whichever node has the state; and each thread gets its answer while that happens."""
    redis_cluster.flush()
    subjects = [f"cust-{number}" for number in range(30)]
    for number, subject in enumerate(subjects):
        value = json.dumps({**_STATE, "used": str(number)})
        redis_cluster.master_of(f"quota:{{{subject}}}").client.hset(f"quota:{{{subject}}}", "api", value)

    async def ask(url: str) -> list[QuotaCheck]:
        async with AsyncQuotas(url, when_unknown="raise", when_unreachable="raise", timeout_seconds=5) as quotas:
            return await asyncio.gather(*(quotas.check(subject, "api") for subject in subjects))

    for node in redis_cluster.masters:
        with (
            Quotas(node.url, when_unknown="raise", when_unreachable="raise", timeout_seconds=5) as quotas,
            ThreadPoolExecutor(8) as threads,
        ):
            found = list(threads.map(lambda subject: quotas.check(subject, "api"), subjects))
        assert [check.used for check in found] == list(range(30))
        assert [check.used for check in asyncio.run(ask(node.url))] == list(range(30))


def test_a_broken_connection_is_made_again(url: str, store: Callable[..., None]) -> None:
    store("api")
    with Quotas(url) as quotas, redis.Redis.from_url(url) as other:
        assert quotas.check("cust-1", "api").known
        other.client_kill_filter(_type="normal", skipme=True)
        quotas.check("cust-1", "api")  # may find the connection broken
        assert quotas.check("cust-1", "api").known


@pytest.mark.parametrize("given", [{"when_unknown": "maybe"}, {"when_unreachable": ""}, {"timeout_seconds": 0}])
def test_bad_arguments_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(given))):
        Quotas("redis://127.0.0.1", **given)
    with pytest.raises(ValueError, match=next(iter(given))):
        AsyncQuotas("redis://127.0.0.1", **given)
