"""Processes that start together, as threads: one prepares, and what it learns holds for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import redis

from domain.ports import ClaimsLost, Fenced, TallyError
from stores.claims import RedisClaims, Session
from stores.lease import Lease
from stores.rendezvous import Content, Rendezvous
from tests.stores.claim_stores import ACCEPT_WITHIN_US, Event, claim, first

SECONDS = 1.2
A, B = Event("a"), Event("b")


class Process:
    """One process of a deployment; its flow is a call of `meet`."""

    def __init__(self, url: str, number: int, processes: int, wait_seconds: float = 3) -> None:
        self.told: list[TallyError] = []
        self.lease = Lease(url, process=number, seconds=SECONDS, wait_seconds=1, lost=self.told.append)
        self.claims = RedisClaims(url, shards=2, accept_within_us=ACCEPT_WITHIN_US, wait_seconds=1)
        self._processes, self._wait_seconds = processes, wait_seconds

    def start(self, prepare: Callable[[], None] = lambda: None) -> Content:
        """What `flows.start` does: lease, rendezvous, claims."""

        def take_over() -> Content:
            prepare()
            self.claims.take_over()
            self.claims.publish(self.claims.progress())
            return {"claims": self.claims.session()}

        self.lease.acquire()
        rendezvous = Rendezvous(self.lease, processes=self._processes, wait_seconds=self._wait_seconds)
        content = rendezvous.meet(take_over)
        if self.lease.process:
            self.claims.adopt(Session(*content["claims"]))
        return content

    def die(self) -> None:
        """End as if killed: the lease is left over."""
        self.lease._ended.set()
        if self.lease._thread is not None:
            self.lease._thread.join()

    def end(self) -> None:
        self.lease.close()
        self.claims.close()


Make = Callable[..., Process]


@pytest.fixture
def url(redis_url: str) -> str:
    url = f"{redis_url}?db=7"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture
def make(url: str) -> Iterator[Make]:
    made: list[Process] = []

    def process(number: int, processes: int, wait_seconds: float = 3) -> Process:
        made.append(Process(url, number, processes, wait_seconds))
        return made[-1]

    yield process
    for each in made:
        each.end()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def together(pool: ThreadPoolExecutor, processes: list[Process]) -> list[Content]:
    """Start them in this order, a little apart."""
    started: list[Future[Content]] = []
    for process in processes:
        started.append(pool.submit(process.start))
        time.sleep(0.05)
    return [each.result(20) for each in started]


def wait_until(condition: Callable[[], Any], seconds: float = 5) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.01)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_all_learn_what_the_leader_prepared(make: Make, pool: ThreadPoolExecutor, order: tuple[int, ...]) -> None:
    processes = {number: make(number, 3) for number in order}
    contents = together(pool, list(processes.values()))
    assert contents[0] == contents[1] == contents[2]
    assert claim(processes[0].claims, 0, 0, [A]) == {}
    assert claim(processes[1].claims, 1, 0, [A, B]) == {0: first(0, 0)}
    assert claim(processes[2].claims, 2, 0, [B]) == {0: first(1, 1)}


def test_one_process_starts_alone(make: Make) -> None:
    process = make(0, 1)
    process.start()
    assert claim(process.claims, 0, 0, [A, A]) == {1: first(0, 0)}


def test_starts_follow_each_other_and_the_earlier_is_fenced(make: Make, pool: ThreadPoolExecutor) -> None:
    """All were paused, lost their leases to successors, and wake."""
    old = [make(0, 2), make(1, 2)]
    together(pool, old)
    claim(old[1].claims, 1, 0, [A])
    for process in old:
        process.die()
    young = [make(0, 2), make(1, 2)]
    together(pool, young)
    for process in old:
        with pytest.raises(Fenced, match="younger"):
            claim(process.claims, 0, 0, [B])
        with pytest.raises(Fenced, match="lease"):
            process.lease.call("join")
    assert claim(young[1].claims, 1, 1, [A]) == {1: first(1, 0)}


def test_one_that_is_told_to_stop_asks_all_to_end(make: Make, pool: ThreadPoolExecutor, url: str) -> None:
    told: list[int] = []
    leader = make(0, 2)
    started = pool.submit(leader.start)
    lease = Lease(url, process=1, seconds=SECONDS, wait_seconds=1)
    lease.acquire()
    rendezvous = Rendezvous(lease, processes=2, wait_seconds=3, stopping=told.append)
    rendezvous.meet(dict)
    started.result(20)
    assert not told
    rendezvous.stop()
    wait_until(lambda: told)
    assert set(told) == {1}
    assert leader.lease.held and lease.held
    lease.close()


def test_a_second_instance_is_refused_and_disturbs_nobody(make: Make, pool: ThreadPoolExecutor) -> None:
    running = [make(0, 2), make(1, 2)]
    together(pool, running)
    for number in (0, 1):
        with pytest.raises(TallyError, match=f"process {number} .*runs already"):
            make(number, 2).start()
    with pytest.raises(TallyError, match="process 2 of 3 is not part of the start that runs with 2 processes"):
        make(2, 3, wait_seconds=0.5).start()
    assert claim(running[0].claims, 0, 0, [A, A]) == {1: first(0, 0)}
    time.sleep(SECONDS)
    assert all(process.lease.held and not process.told for process in running)


def test_a_missing_member_is_named(make: Make, pool: ThreadPoolExecutor) -> None:
    leader, member = make(0, 4, wait_seconds=0.6), make(2, 4, wait_seconds=0.6)
    waiting = pool.submit(member.start)
    with pytest.raises(TallyError, match=r"of 4 processes, number 1, 3 did not come within 0.6 s"):
        leader.start()
    leader.end()
    with pytest.raises(TallyError, match=r"process 2 of 4 waited 0.6 s for process 0"):
        waiting.result(5)


def test_members_wait_as_long_as_the_leader_prepares(make: Make, pool: ThreadPoolExecutor) -> None:
    leader, member = make(0, 2, wait_seconds=0.5), make(1, 2, wait_seconds=0.5)
    waiting = pool.submit(member.start)
    leader.start(lambda: time.sleep(1.2))
    assert waiting.result(5)["claims"] == list(leader.claims.session())


def test_a_leader_that_dies_midway_is_followed_by_another(make: Make, pool: ThreadPoolExecutor) -> None:
    leader, member = make(0, 2), make(1, 2)

    def die() -> None:
        leader.claims.take_over()
        leader.die()
        raise KeyboardInterrupt

    waiting = pool.submit(member.start)
    with pytest.raises(KeyboardInterrupt):
        leader.start(die)
    assert not waiting.done()
    successor = make(0, 2)
    successor.start()
    waiting.result(5)
    assert claim(member.claims, 1, 0, [A]) == {}
    with pytest.raises(AssertionError):
        leader.claims.session()


def test_a_member_that_dies_while_the_leader_prepares_is_noticed(make: Make, pool: ThreadPoolExecutor) -> None:
    leader, member = make(0, 2), make(1, 2)
    waiting = pool.submit(member.start)

    def prepare() -> None:
        member.lease.close()
        with pytest.raises(Fenced):
            waiting.result(5)
        make(1, 2).lease.acquire()

    with pytest.raises(TallyError, match="process 1 ended or was started again during the start"):
        leader.start(prepare)


def test_when_one_process_is_started_again_the_others_end(make: Make, pool: ThreadPoolExecutor) -> None:
    """Bytewax waits for its peers for ever: a start that lost a member has to be left by all."""
    old = [make(0, 2), make(1, 2)]
    together(pool, old)
    old[1].end()
    again = make(1, 2)
    waiting = pool.submit(again.start)
    wait_until(lambda: old[0].told)
    assert "process 1 was started again" in str(old[0].told[0])
    assert isinstance(old[0].told[0], Fenced)
    old[0].end()
    make(0, 2).start()
    waiting.result(5)


def test_when_the_leader_is_started_again_the_others_end(make: Make, pool: ThreadPoolExecutor) -> None:
    old = [make(0, 2), make(1, 2)]
    together(pool, old)
    old[0].end()
    leader = make(0, 2)
    waiting = pool.submit(leader.start)
    wait_until(lambda: old[1].told)
    assert "another start of this deployment was called for" in str(old[1].told[0])
    old[1].end()
    make(1, 2).start()
    waiting.result(5)


def test_adopting_needs_the_servers_of_the_leader(make: Make) -> None:
    leader = make(0, 1)
    leader.start()
    session = leader.claims.session()
    member = make(1, 2)
    with pytest.raises(ClaimsLost, match="same TALLY_REDIS_URL"):
        member.claims.adopt(session._replace(servers=["another"]))
    member.claims.adopt(session)
    assert claim(member.claims, 3, 0, [A, A]) == {1: first(3, 0)}
