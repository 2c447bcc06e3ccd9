"""The Redis sink against a real Redis: quotas that never turn back, signals at once, and Redis away for a while."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domain.ports import TallyError
from domain.quota import QuotaState, Watched
from domain.signals_json import QuotaField, quota_value, signal_event
from domain.values import DAY_US, HOUR_US, QUANTITY_SCALE
from engines.redis_server import RedisServer
from sinks import redis as sink_module
from sinks import redis_quotas
from sinks.redis import RedisSink
from sinks.redis_quotas import Quotas
from tests.services.redis_cluster import RedisCluster
from tests.sinks.samples import QuotaRow, quota, signal, watched

MARCH = 2_087_942_400_000_000
"""2036-03-01T00:00:00Z: what ended long ago by Redis's clock is not kept."""
NOW = MARCH + DAY_US
WAIT_SECONDS_MAX = 10.0
CHANNEL = "usage.signals"
LEDGER = "usage@1"
numbers = count()


@pytest.fixture
def url(redis_url: str) -> Iterator[str]:
    """A database without quotas, which served `LEDGER` before."""
    own = f"{redis_url}{'&' if '?' in redis_url else '?'}db=9"
    with redis.Redis.from_url(own) as client:
        client.flushdb()
        client.hset("tallyflow:quotas", "ledger", LEDGER)
    yield own
    with redis.Redis.from_url(own) as client:
        client.flushdb()


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        yield client


@contextmanager
def sink_of(url: str, wait_seconds: float = 5, channel: str = CHANNEL) -> Iterator[RedisSink]:
    sink = RedisSink(url, channel=channel, wait_seconds=wait_seconds, now_us=lambda: NOW)
    try:
        yield sink
    finally:
        sink.close()


@contextmanager
def partitions(url: str, **options: Any) -> Iterator[Any]:
    with sink_of(url, **options) as sink:
        yield [sink.build_part("step", name, None) for name in sink.list_parts()[:2]]


def used(inputs: int, *, subject: str = "a", start: int = MARCH, days: int = 31, **other: Any) -> QuotaRow:
    """A period of 31 days with as much used as there were inputs."""
    state = other.pop("state", QuotaState.OK)
    return quota(
        inputs, inputs, subject=subject, feature="api", period_start_us=start,
        period_end_us=start + days * DAY_US, state=state, **other,
    )  # fmt: skip


def held(client: Any, subject: str = "a", feature: str = "api") -> Any:
    text = client.hget(f"quota:{{{subject}}}", feature)
    return None if text is None else json.loads(text)


def eventually(reached: Callable[[], bool]) -> None:
    give_up = time.monotonic() + WAIT_SECONDS_MAX
    while not reached():
        assert time.monotonic() < give_up
        time.sleep(0.002)


def test_a_quota_is_there_after_the_barrier(url: str, client: Any) -> None:
    with partitions(url) as (part, _):
        part.write_batch([watched(used(17, plan="pro", state=QuotaState.WARNING, allowance=100 * QUANTITY_SCALE))])
        part.snapshot()
        assert held(client) == {
            "used": "17", "limit": "100", "state": "warning", "period_start": "2036-03-01T00:00:00Z",
            "period_end": "2036-04-01T00:00:00Z", "inputs": 17, "era": 0, "plan": "pro",
            "on_exceed": "block",
        }  # fmt: skip


def test_quotas_are_there_soon_without_a_barrier(url: str, client: Any) -> None:
    with partitions(url) as (part, _):
        part.write_batch([watched(used(1))])
        eventually(lambda: held(client) is not None)
        part.write_batch([watched(used(2))])
        eventually(lambda: held(client)["inputs"] == 2)


def test_a_replay_does_not_turn_a_quota_back(url: str, client: Any) -> None:
    with partitions(url) as (part, _):
        part.write_batch([watched(used(5), used(3, subject="b"))])
        part.snapshot()
    with partitions(url) as (part, _):
        part.write_batch([watched(used(2), used(4, subject="b"))])
        part.snapshot()
        assert (held(client)["inputs"], held(client, "b")["inputs"]) == (5, 4)


def test_a_new_period_replaces_the_old_one_and_a_late_event_does_not_bring_it_back(url: str, client: Any) -> None:
    later = MARCH + 31 * DAY_US
    with partitions(url) as (part, _):
        part.write_batch([watched(used(5))])
        part.snapshot()
        part.write_batch([watched(used(1, start=later))])
        part.snapshot()
        assert held(client)["period_start"] == "2036-04-01T00:00:00Z"
        part.write_batch([watched(used(6))])
        part.snapshot()
        assert (held(client)["period_start"], held(client)["inputs"]) == ("2036-04-01T00:00:00Z", 1)


def test_another_plan_in_the_same_period_counts_from_zero_again(url: str, client: Any) -> None:
    """A restore cannot tell which of the two holds now, so it leaves what it finds."""
    with partitions(url) as (part, _):
        part.write_batch([watched(used(5, plan="small"))])
        part.snapshot()
        part.write_batch([watched(used(1, plan="large"))])
        part.snapshot()
        assert (held(client)["plan"], held(client)["inputs"]) == ("large", 1)
    with sink_of(url) as sink:
        sink.restore(LEDGER, lambda: [field(5, plan="small")])
        sink.wait_restored()
        assert (held(client)["plan"], held(client)["inputs"]) == ("large", 1)


def test_the_plan_that_holds_since_later_is_the_newer_one_wherever_its_periods_begin(url: str, client: Any) -> None:
    """A customer signs up in a zone ahead of the catalog's, and ends in mid-period: both periods begin before."""
    with partitions(url) as (part, _):
        for inputs, plan, start, since in (
            (5, "free", MARCH, 0),
            (1, "pro", MARCH - HOUR_US, MARCH + 14 * DAY_US),
            (6, "free", MARCH, 0),  # late
            (2, "pro", MARCH - HOUR_US, MARCH + 14 * DAY_US),
            (7, "free", MARCH - DAY_US, MARCH + 20 * DAY_US),
            (3, "pro", MARCH - HOUR_US, MARCH + 14 * DAY_US),  # late
        ):
            part.write_batch([watched(used(inputs, plan=plan, start=start, since_us=since))])
            part.snapshot()
            if inputs == 2:
                assert (held(client)["plan"], held(client)["inputs"]) == ("pro", 2)
                assert held(client)["since"] == "2036-03-15T00:00:00Z"
        assert (held(client)["plan"], held(client)["inputs"]) == ("free", 7)
    with sink_of(url) as sink:
        sink.restore(LEDGER, lambda: [field(9, plan="pro")._replace(since_us=MARCH + 14 * DAY_US)])
        sink.wait_restored()
        assert held(client)["plan"] == "free"


def test_late_usage_of_a_plan_that_is_over_does_not_hide_what_runs(url: str, client: Any) -> None:
    """Nobody knew of the plan when the usage that runs was counted: it counted as if the other had held for ever."""
    quotas = Quotas(url, wait_seconds=5, now_us=lambda: NOW)
    runs = field(5, plan="free")
    over = field(1, plan="pro", start=MARCH - 35 * DAY_US)._replace(since_us=MARCH - 40 * DAY_US)
    for first, then in ((runs, over), (over, runs)):
        client.flushdb()
        quotas.write([first], live=True)
        quotas.write([then], live=True)
        assert client.hget("quota:{a}", "api") == quota_value(runs)
    quotas.close()


def test_a_field_that_somebody_broke_is_written_anew(url: str, client: Any) -> None:
    for broken in ("", "{", "7", '"x"', "[]", '{"era":"x"}', "{}"):
        client.hset("quota:{a}", "api", broken)
        with partitions(url) as (part, _):
            part.write_batch([watched(used(1))])
            part.snapshot()
            assert held(client)["inputs"] == 1


def field(inputs: int, *, era: int = 0, start: int = MARCH, subject: str = "a", plan: str = "pro") -> QuotaField:
    end = start + 31 * DAY_US
    return QuotaField(subject, "api", inputs * QUANTITY_SCALE, 10**15, QuotaState.OK, start, end, inputs, era, plan)


states = st.builds(
    lambda since, *some, **named: field(*some, **named)._replace(since_us=since),
    st.sampled_from([0, MARCH - DAY_US, MARCH]),
    st.integers(1, 2**40),
    era=st.integers(0, 2),
    start=st.sampled_from([MARCH - 31 * DAY_US, MARCH, MARCH + 31 * DAY_US]),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(states, min_size=1, max_size=4), min_size=1, max_size=5))
def test_of_any_states_in_any_order_the_highest_stays(url: str, client: Any, batches: list[list[QuotaField]]) -> None:
    client.flushdb()
    quotas = Quotas(url, wait_seconds=5, now_us=lambda: NOW)
    for batch in batches:
        quotas.write(batch, live=True)
    quotas.close()
    highest = max(
        (f for batch in batches for f in batch),
        key=lambda f: (f.era, f.period_end_us > NOW, f.since_us, f.period_start_us, f.inputs),
    )
    assert client.hget("quota:{a}", "api") == quota_value(highest)


def test_a_hash_expires_some_time_after_the_last_of_its_periods(url: str, client: Any) -> None:
    clock = int(time.time()) * 10**6
    end = (clock + 3 * DAY_US) // 1000 + redis_quotas.KEEP_US // 1000
    quotas = Quotas(url, wait_seconds=5, now_us=lambda: clock)
    longer = field(1, start=clock - 28 * DAY_US)
    shorter = longer._replace(feature="other", period_end_us=clock + DAY_US)
    quotas.write([longer], live=True)
    quotas.write([shorter], live=True)
    assert abs(client.pttl("quota:{a}") + time.time() * 1000 - end) < 2000
    long_ago = field(1, subject="old", start=clock - 60 * DAY_US)
    assert quotas.write([long_ago], live=True) == 0
    assert client.keys("quota:*") == ["quota:{a}"], "what ended long ago is not written at all"
    quotas.close()


@contextmanager
def listening(url: str, channel: str = CHANNEL) -> Iterator[list[bytes]]:
    """What is published meanwhile."""
    heard: list[bytes] = []
    with redis.Redis.from_url(url) as client, client.pubsub() as pubsub:
        pubsub.subscribe(channel)
        assert pubsub.get_message(timeout=WAIT_SECONDS_MAX)["type"] == "subscribe"
        ended = threading.Event()

        def listen() -> None:
            while not ended.is_set():
                message = pubsub.get_message(timeout=0.01)
                if message is not None:
                    heard.append(message["data"])

        thread = threading.Thread(target=listen)
        thread.start()
        yield heard
        ended.set()
        thread.join()


def test_a_signal_goes_out_at_once_and_its_quota_is_there_before(url: str, client: Any) -> None:
    one = signal("s1")._replace(
        subject="a", feature="api", period_start_us=MARCH, period_end_us=MARCH + 31 * DAY_US, catalog_version=1
    )
    many = [used(n, subject=f"other-{n}") for n in range(1, 5000)]
    with listening(url) as heard, partitions(url) as (part, _):
        part.write_batch([watched(*many, used(9, catalog_version=1), one)])
        eventually(lambda: heard != [])
        assert held(client)["inputs"] == 9
        part.snapshot()
        assert heard == [signal_event(one)]
        assert len(client.keys("quota:*")) == 5000


def test_signals_keep_their_order(url: str) -> None:
    sent = [signal(f"s{n}") for n in range(300)]
    with listening(url) as heard, partitions(url) as (part, _):
        for start in range(0, 300, 30):
            part.write_batch([watched(*sent[start : start + 30])])
        part.snapshot()
        eventually(lambda: len(heard) >= 300)
        assert heard == list(map(signal_event, sent))


def test_workers_share_one_thread_and_each_barrier_covers_its_own(url: str, client: Any) -> None:
    before = threading.active_count()
    with partitions(url) as parts:
        assert threading.active_count() == before + 1

        def work(part: Any, worker: int) -> None:
            for n in range(1, 101):
                part.write_batch([watched(used(n, subject=f"{worker}-{n % 7}"))])
                if n % 10 == 0:
                    part.snapshot()
                    with redis.Redis.from_url(url, decode_responses=True) as own:
                        assert held(own, f"{worker}-{n % 7}")["inputs"] == n
            done.append(worker)

        done: list[int] = []
        threads = [threading.Thread(target=work, args=(part, n)) for n, part in enumerate(parts)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_SECONDS_MAX)
        assert sorted(done) == [0, 1]
        parts[0].close()
        parts[1].write_batch([watched(used(1000, subject="last"))])
        parts[1].snapshot()
        assert held(client, "last")["inputs"] == 1000
    assert threading.active_count() == before


def test_redis_away_for_a_while_only_delays(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    url = server.start()
    try:
        with partitions(url, wait_seconds=30) as (part, _):
            part.write_batch([watched(used(1))])
            part.snapshot()
            server.stop()
            began = time.monotonic()
            for n in range(2, 50):
                part.write_batch([watched(used(n), signal(str(n)))])
            assert time.monotonic() - began < 1, "the flow never waits for Redis but at the barrier"
            barrier = threading.Thread(target=part.snapshot)
            barrier.start()
            barrier.join(0.3)
            assert barrier.is_alive()
            assert server.start() == url
            barrier.join(WAIT_SECONDS_MAX)
            assert not barrier.is_alive()
            with redis.Redis.from_url(url, decode_responses=True) as client:
                assert held(client)["inputs"] == 49
    finally:
        server.stop()


def test_redis_away_for_too_long_stops_the_flow(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        url = server.url
    with partitions(url, wait_seconds=0.2) as (part, _):
        part.write_batch([watched(used(1))])
        with pytest.raises(TallyError, match=r"did not take signals and quotas in 0.2 s .*Nothing is lost"):
            part.snapshot()
        with pytest.raises(TallyError):
            part.write_batch([watched(used(1))])


def test_a_refusal_says_what_to_check_and_no_password(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server, redis.Redis.from_url(server.url) as admin:
        admin.execute_command("ACL", "SETUSER", "reader", "on", ">secret-word", "~*", "&*", "+@read", "+info", "+ping")
        url = server.url.replace("unix://", "unix://reader:secret-word@")
        with partitions(url) as (part, _):
            part.write_batch([watched(used(1))])
            with pytest.raises(TallyError, match="what its user may do") as caught:
                part.snapshot()
        assert "secret-word" not in str(caught.value)


def test_what_waits_is_bounded(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A flow that crosses thresholds faster than Redis takes signals is held back."""
    monkeypatch.setattr(sink_module, "SIGNALS_MAX", 3)
    server = RedisServer(tmp_path)
    stopped = server.start()
    server.stop()
    try:
        with partitions(stopped, wait_seconds=30) as (part, _):
            writes = threading.Thread(
                target=lambda: [part.write_batch([watched(signal(str(n)))]) for n in range(20)], daemon=True
            )
            writes.start()
            writes.join(0.3)
            assert writes.is_alive()
            server.start()
            writes.join(WAIT_SECONDS_MAX)
            assert not writes.is_alive()
    finally:
        server.stop()


# Restoring ------------------------------------------------------------------------------------------------------


def test_after_a_flush_every_open_quota_is_written_again(url: str, client: Any) -> None:
    reads = []

    def read() -> list[QuotaField]:
        reads.append(1)
        return [field(n, subject=f"s{n}") for n in range(1, 1201)]

    def start() -> None:
        with sink_of(url) as sink:
            sink.restore(LEDGER, read)
            sink.wait_restored()

    start()
    assert (len(reads), len(client.keys("quota:*"))) == (1, 1200)
    start()
    assert len(reads) == 1, "this Redis was given everything, and what came since came through a barrier"
    client.flushdb()
    start()
    assert (len(reads), len(client.keys("quota:*"))) == (2, 1200)
    assert held(client, "s77")["inputs"] == 77


def test_another_redis_process_may_have_lost_quotas(tmp_path: Path) -> None:
    """A replica that was promoted has the mark, but maybe not the last second."""
    reads = []
    for _ in range(2):
        with RedisServer(tmp_path) as server, sink_of(server.url) as sink:
            sink.restore(LEDGER, lambda: reads.append(1) or [field(1)])  # type: ignore[func-returns-value]
            sink.wait_restored()
    assert len(reads) == 2


def test_quotas_of_another_ledger_are_dropped(url: str, client: Any) -> None:
    """They may be higher than those of this one will ever be."""

    def start(ledger: str, *fields: QuotaField) -> None:
        with sink_of(url) as sink:
            sink.restore(ledger, lambda: fields)
            sink.wait_restored()

    start("usage@1", *(field(900, subject=f"s{n}") for n in range(2500)))
    client.set("other", "stays")
    start("usage@2", field(1, subject="s7"))
    assert client.keys("quota:*") == ["quota:{s7}"]
    assert held(client, "s7")["inputs"] == 1
    assert client.get("other") == "stays"


def test_a_start_that_slept_while_it_dropped_quotas_spares_its_successors(
    url: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the few that it had just looked up."""
    monkeypatch.setattr(redis_quotas, "_SCAN_KEYS", 5)
    fields = [field(1, subject=f"s{n}") for n in range(40)]
    old, young = (Quotas(url, wait_seconds=5, now_us=lambda: NOW) for _ in range(2))
    old.write([f._replace(inputs=900) for f in fields], live=True)
    run = redis_quotas._pipelined
    slept: list[bool] = []

    def sleep_once(server: Any, commands: list[tuple[Any, ...]]) -> list[Any]:
        if not slept and commands[0][0] == "UNLINK":
            slept.append(True)
            young.adopt("usage@2")
            assert young.write(fields, live=False) == 40
        return run(server, commands)

    monkeypatch.setattr(redis_quotas, "_pipelined", sleep_once)
    assert old.adopt("usage@2") == 5
    assert len(client.keys("quota:*")) == 35
    old.close()
    young.close()


def test_a_restore_beside_the_flow_turns_nothing_back(url: str, client: Any) -> None:
    with sink_of(url) as sink:
        part = sink.build_part("step", "00", None)
        part.write_batch([watched(used(9, plan="pro"))])
        part.snapshot()
        sink.restore(LEDGER, lambda: [field(7), field(3, subject="b")])
        part.snapshot()
        sink.wait_restored()
        assert (held(client)["inputs"], held(client, "b")["inputs"]) == (9, 3)


def test_a_restore_that_fails_stops_the_flow_at_a_barrier(url: str) -> None:
    def broken() -> list[QuotaField]:
        raise TallyError("no quotas to be read")

    with sink_of(url) as sink:
        part = sink.build_part("step", "00", None)
        part.write_batch([watched(used(1))])
        sink.restore(LEDGER, broken)
        with pytest.raises(TallyError, match="no quotas"):
            sink.wait_restored()
        with pytest.raises(TallyError, match="no quotas"):
            part.snapshot()


def test_closing_ends_every_thread(tmp_path: Path) -> None:
    """Also those that try again and again to reach Redis."""
    before = threading.active_count()
    gone = threading.Event()

    def read() -> Iterator[QuotaField]:
        assert gone.wait(WAIT_SECONDS_MAX)
        yield field(1)

    server = RedisServer(tmp_path)
    with sink_of(server.start(), wait_seconds=3600) as sink:
        part = sink.build_part("step", "00", None)
        sink.restore(LEDGER, read)
        server.stop()
        gone.set()
        part.write_batch([watched(used(1))])
        time.sleep(0.1)
    assert threading.active_count() == before


def test_nothing_to_say_is_said_quickly(url: str) -> None:
    with partitions(url) as (part, _):
        part.write_batch([Watched([], [])])
        part.snapshot()


# A cluster ------------------------------------------------------------------------------------------------------


def test_a_cluster_keeps_quotas_where_their_subject_is(redis_cluster: RedisCluster) -> None:
    """The same states as on one server, of subjects on every node; the guard holds there too."""
    subjects = [f"customer-{number}" for number in range(60)]
    redis_cluster.flush()
    with (
        partitions(redis_cluster.url) as (part, _),
        redis.RedisCluster.from_url(redis_cluster.url, decode_responses=True) as client,
    ):
        part.write_batch([watched(*(used(5, subject=subject) for subject in subjects))])
        part.write_batch([watched(used(6, subject="x}{y"))])
        part.snapshot()
        part.write_batch([watched(*(used(3, subject=subject) for subject in subjects))])
        part.snapshot()
        assert {held(client, subject)["inputs"] for subject in subjects} == {5}
        assert held(client, "x}{y")["inputs"] == 6
        assert len({redis_cluster.master_of(f"quota:{{{subject}}}").url for subject in subjects}) == 3


def test_signals_on_a_clusters_channel_reach_every_node(redis_cluster: RedisCluster) -> None:
    nodes = {redis_cluster.master_of(f"quota:{{{n}}}").url for n in range(50)}
    with ExitStack() as opened:
        heard = [opened.enter_context(listening(url)) for url in nodes]
        (part, _) = opened.enter_context(partitions(redis_cluster.url))
        part.write_batch([watched(*(signal(str(number)) for number in range(20)))])
        part.snapshot()
        wanted = [signal_event(signal(str(number))) for number in range(20)]
        eventually(lambda: all(len(found) == 20 for found in heard))
        assert all(found == wanted for found in heard)


def test_after_a_cluster_was_flushed_every_open_quota_is_written_again(redis_cluster: RedisCluster) -> None:
    """One node may lose its part alone, so a cluster is given everything at each start."""
    fields = [field(n, subject=f"s{n}") for n in range(1, 301)]
    redis_cluster.flush()
    for _ in range(2):
        with sink_of(redis_cluster.url) as sink:
            sink.restore(LEDGER, lambda: fields)
            sink.wait_restored()
        with redis.RedisCluster.from_url(redis_cluster.url, decode_responses=True) as client:
            assert {held(client, f"s{n}")["inputs"] for n in range(1, 301)} == set(range(1, 301))
        redis_cluster.flush()


def test_slots_that_moved_are_found(redis_cluster: RedisCluster) -> None:
    """As after a failover or a new node: what the client knows of the cluster is no longer so."""
    redis_cluster.flush()
    quotas = Quotas(redis_cluster.url, wait_seconds=5, now_us=lambda: NOW)
    fields = [field(1, subject=f"s{n}") for n in range(30)]
    quotas.write(fields, live=True)
    known = quotas._client.nodes_manager.slots_cache
    slots = list(known)
    for slot, nodes in zip(slots, [known[slot] for slot in reversed(slots)], strict=True):
        known[slot] = nodes
    assert quotas.write([f._replace(inputs=2) for f in fields], live=True) == 30
    quotas.close()
