"""Two processes of two workers: they stop together, come back by themselves, and leave the oracle's rows."""

from __future__ import annotations

import random
import signal
import time

import pytest

from tests.faults.report import Report
from tests.services.ports import free_ports
from tests.system.supervisor import Place, wait_until
from tests.system.system import System
from tests.system.traffic import Traffic

RESUMED_SECONDS_MAX = 45.0
"""On an idle machine it is less than 15, as the test prints; machines that run tests are not always idle."""


@pytest.mark.faults
def test_sigterm_to_one_process_ends_both_and_the_supervisor_resumes(system: System, report: Report) -> None:
    traffic = Traffic(seed=1)
    system.lease_seconds = 10.0  # the default, which bounds how soon the other hears of it
    with system.flow() as flow:
        system.emit(traffic.events(200))
        system.settle(flow)
        before = flow.pids()
        begun = time.monotonic()
        flow.kill(1, signal.SIGTERM)
        wait_until(lambda: all(flow.pids()[number] != pid for number, pid in before.items()), "both start again")
        system.emit(traffic.events(200))
        system.settle(flow)
        seconds = time.monotonic() - begun
        assert dict(flow.exits) == {0: 1, 1: 0}, flow.logs()
        assert "process 1 was told to stop" in flow.logs()
    print(f"resumed and caught up {seconds:.1f} s after the signal")
    assert seconds < RESUMED_SECONDS_MAX
    report.check("SIGTERM to one process of two", "both end and start again", system, seconds)


@pytest.mark.faults
def test_a_second_instance_is_refused_and_a_zombie_changes_nothing(system: System, report: Report) -> None:
    """One process alone is paused, loses its place to a successor, and wakes."""
    traffic = Traffic(seed=2)
    place = Place(system.folder, system.environment)
    paused = place.start(0, [], "paused")
    try:
        system.emit(traffic.events(100))
        wait_until(lambda: sum(system.counted().values()) >= 100, "counted by the first")
        second = place.start(0, [], "second")
        assert second.wait(60) == 1
        assert f"process id {paused.pid}" in (system.folder / "second").read_text()

        paused.send_signal(signal.SIGSTOP)
        system.emit(traffic.events(300))
        with system.flow(1) as flow:
            system.settle(flow)
            woken = time.monotonic()
            paused.send_signal(signal.SIGCONT)
            system.emit(traffic.events(100))
            system.settle(flow)
            seconds = time.monotonic() - woken
            assert paused.wait(30) == 1
            assert flow.exits == [], flow.logs()
        assert "this one stops" in (text := (system.folder / "paused").read_text()) or "this instance stops" in text
    finally:
        paused.kill()
        paused.wait()
    report.check("a second instance", "refused, and told who runs", system, None)
    report.check("an instance that was paused wakes after its successor", "stops, and changed nothing", system, seconds)


@pytest.mark.faults
def test_rescaling_keeps_every_row(system: System, report: Report) -> None:
    traffic = Traffic(seed=3)
    for processes in (1, 4, 2):
        system.workers = 1 if processes == 4 else 2
        with system.flow(processes) as flow:
            system.emit(traffic.events(150))
            system.settle(flow)
            assert flow.exits == [], flow.logs()
    found = report.check("1, 4 and 2 processes", "shards are shared out anew", system, None)
    assert len({position[1] for position in found.events}) > 1


@pytest.mark.faults
def test_kills_at_random_leave_no_trace(system: System, report: Report) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    draw, traffic = random.Random(seed), Traffic(seed)
    with system.flow() as flow:
        for _ in range(12):
            system.emit(traffic.events(100))
            time.sleep(draw.uniform(0, 5))
            flow.kill(draw.randrange(2), signal.SIGKILL)
        killed = time.monotonic()
        system.settle(flow)
        seconds = time.monotonic() - killed
    report.check("kill -9 at random, one of two processes", "both start again at their snapshot", system, seconds)


@pytest.mark.faults(quick=True)
def test_processes_that_differ_are_refused(system: System) -> None:
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    one = Place(system.folder, system.environment, workers=2).start(0, addresses, "one")
    other = Place(system.folder, system.environment, workers=1).start(1, addresses, "other")
    try:
        assert other.wait(60) == 1
        assert "process 0 runs with workers=2, process 1 with 1:" in (system.folder / "other").read_text()
        assert one.wait(30) == 1
        assert "process 1 has ended" in (system.folder / "one").read_text()
    finally:
        for process in (one, other):
            process.kill()
            process.wait()
