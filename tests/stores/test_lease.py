"""Leases: one holder at a time, who learns in time that it is none any more."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
import redis

from domain.ports import ClaimsUnavailable, Fenced, TallyError
from stores import lease as lease_module
from stores.lease import Lease
from tests.services.proxy import Proxy

SECONDS = 1.0
Make = Callable[..., Lease]


def wait_until(condition: Callable[[], bool], seconds: float = 5) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


@pytest.fixture
def url(redis_url: str) -> str:
    url = f"{redis_url}?db=7"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture
def make(url: str) -> Iterator[Make]:
    made: list[Lease] = []

    def lease(process: int = 0, seconds: float = SECONDS, address: str = url, **options: object) -> Lease:
        made.append(Lease(address, process=process, seconds=seconds, wait_seconds=1, **options))  # type: ignore[arg-type]
        return made[-1]

    yield lease
    for each in made:
        each.close()


def pause(lease: Lease) -> None:
    """Stop renewing, as a process that is stopped does; its other threads go on."""
    lease._ended.set()
    assert lease._thread is not None
    lease._thread.join()
    lease._ended.clear()


def test_a_second_holder_is_refused_and_told_who_has_it(make: Make) -> None:
    holder = make()
    holder.acquire()
    other = make(process=1)
    other.acquire()
    for _ in range(2):
        with pytest.raises(TallyError, match=r"process 0 .* runs already \(process id \d+ on .+, since 20.*stop it"):
            make().acquire()
    time.sleep(1.2 * SECONDS)
    assert holder.held and other.held, "renewed"
    with pytest.raises(TallyError, match="process 1"):
        make(process=1).acquire()


def test_a_released_lease_is_free_at_once(make: Make) -> None:
    for _ in range(3):
        lease = make(seconds=60)
        lease.acquire()
        lease.close()
        assert not lease.held
        lease.close()


def test_a_left_over_lease_is_waited_for(make: Make) -> None:
    """Whether its process is dead cannot be known here: it might be another machine's."""
    left = make()
    left.holder = left.holder._replace(host="elsewhere", machine="another boot")
    left._me = left.holder.text()
    left.acquire()
    pause(left)
    began = time.monotonic()
    successor = make()
    successor.acquire()
    assert 0.1 < time.monotonic() - began < 2 * SECONDS
    assert successor.held
    assert not left.held


def test_the_lease_of_a_process_that_is_certainly_dead_is_taken_at_once(make: Make, url: str) -> None:
    code = (
        "import os; from stores.lease import Lease\n"
        f"lease = Lease({url!r}, process=0, seconds=600, wait_seconds=1); lease.acquire(); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    began = time.monotonic()
    make().acquire()
    assert time.monotonic() - began < 5


def test_a_holder_that_was_paused_is_fenced_when_it_wakes(make: Make) -> None:
    told: list[TallyError] = []
    paused = make(lost=told.append)
    paused.acquire()
    pause(paused)
    successor = make()
    successor.acquire()
    assert not paused.held
    with pytest.raises(Fenced, match=re.escape(f"process id {successor.holder.pid}")):
        paused.call("join")
    paused._renew_until_ended()
    assert [type(error) for error in told] == [Fenced]
    paused.close()
    assert successor.held, "closing a lost lease takes it from nobody"
    with pytest.raises(TallyError, match="runs already"):
        make().acquire()


def test_without_redis_a_lease_ends_in_time_and_says_so(make: Make, url: str) -> None:
    told: list[TallyError] = []
    with Proxy(url) as proxy:
        lease = make(address=proxy.url, lost=told.append)
        lease.acquire()
        time.sleep(SECONDS / 2)
        assert lease.held
    gone = time.monotonic()
    wait_until(lambda: bool(told))
    assert time.monotonic() - gone < 3 * SECONDS
    assert isinstance(told[0], ClaimsUnavailable)
    assert not lease.held
    lease.close()


def test_a_short_outage_does_not_end_it(make: Make, url: str) -> None:
    with Proxy(url) as proxy:
        lease = make(address=proxy.url, seconds=2)
        lease.acquire()
        for _ in range(3):
            proxy.drop_answers()
            time.sleep(0.7)
        assert lease.held
        assert proxy.dropped
        lease.close()


def test_an_emptied_redis_ends_it(make: Make, url: str) -> None:
    told: list[TallyError] = []
    lease = make(lost=told.append)
    lease.acquire()
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    wait_until(lambda: bool(told))
    assert isinstance(told[0], Fenced)
    assert "emptied" in str(told[0])


def test_a_dead_process_is_told_from_one_of_another_machine() -> None:
    mine = Lease("redis://127.0.0.1:1", process=0, seconds=1, wait_seconds=1).holder
    assert not mine.is_dead()
    assert mine._replace(started="1").is_dead(), "its number went to another process"
    assert mine._replace(pid=2**22 + 1).is_dead()
    assert not mine._replace(pid=2**22 + 1, machine="other").is_dead()
    assert not mine._replace(pid=2**22 + 1, machine="").is_dead()
    assert not lease_module._holder("nonsense").is_dead()
