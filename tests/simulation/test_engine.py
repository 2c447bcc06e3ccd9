"""The simulated Bytewax against the real one: same outputs, same calls, and either goes on from the other's state."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.inputs import AbortExecution, FixedPartitionedSource, StatefulSourcePartition
from bytewax.operators import StatefulBatchLogic
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import cluster_main, run_main

from flows import recovery
from flows.recovery import resume_epoch
from tests.simulation.effects import Clock, Crash, Effects
from tests.simulation.engine import Execution, Pace
from tests.simulation.store import Store

EVERY_BATCH = timedelta(0)
IN_ORDER = Pace(epoch_seconds=0, eagerness=1)


@dataclass
class Calls:
    """What Bytewax asked of a flow's adapters, in order."""

    made: list[tuple[Any, ...]] = field(default_factory=list)
    out: list[Any] = field(default_factory=list)

    def note(self, *call: Any) -> None:
        self.made.append(call)


class _Reading(StatefulSourcePartition[int, int]):
    def __init__(self, calls: Calls, name: str, read: int, size: int, dies_at: int | None) -> None:
        self._calls, self._name, self._read, self._size, self._dies_at = calls, name, read, size, dies_at

    def next_batch(self) -> list[int]:
        if self._read == self._dies_at:
            raise AbortExecution
        if self._read == self._size:
            raise StopIteration
        self._read += 1
        return [self._read]

    def snapshot(self) -> int:
        self._calls.note("source", "snapshot", self._name, self._read)
        return self._read

    def close(self) -> None:
        self._calls.note("source", "close", self._name)


class _Source(FixedPartitionedSource[int, int]):
    """Counts up in every partition."""

    def __init__(self, calls: Calls, parts: int, size: int, dies_at: int | None) -> None:
        self._calls, self._parts, self._size, self._dies_at = calls, parts, size, dies_at

    def list_parts(self) -> list[str]:
        return [f"p{n}" for n in range(self._parts)]

    def build_part(self, step_id: str, for_part: str, resume_state: int | None) -> _Reading:
        self._calls.note("source", "build", for_part, resume_state)
        return _Reading(self._calls, for_part, resume_state or 0, self._size, self._dies_at)


class _Writing(StatefulSinkPartition[Any, None]):
    def __init__(self, calls: Calls, name: str) -> None:
        self._calls, self._name = calls, name

    def write_batch(self, values: list[Any]) -> None:
        self._calls.note("sink", "write", self._name, values)
        self._calls.out += values

    def snapshot(self) -> None:
        self._calls.note("sink", "snapshot", self._name)

    def close(self) -> None:
        self._calls.note("sink", "close", self._name)


class _Sink(FixedPartitionedSink[Any, None]):
    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def list_parts(self) -> list[str]:
        return ["s0", "s1", "s2"]

    def build_part(self, step_id: str, for_part: str, resume_state: None) -> _Writing:
        self._calls.note("sink", "build", for_part)
        return _Writing(self._calls, for_part)


class _Sum(StatefulBatchLogic[int, int, int]):
    """Emits the sum so far; at the end, once more; begins anew after `limit`."""

    def __init__(self, calls: Calls, limit: int, total: int | None) -> None:
        self._calls, self._limit, self._total = calls, limit, total or 0

    def on_batch(self, values: list[int]) -> tuple[list[int], bool]:
        out = []
        for value in values:
            self._total += value
            out.append(self._total)
        return out, self._total > self._limit

    def on_eof(self) -> tuple[list[int], bool]:
        self._calls.note("sum", "eof", self._total)
        return [-self._total], False

    def snapshot(self) -> int:
        self._calls.note("sum", "snapshot", self._total)
        return self._total


def flow_of(calls: Calls, parts: int = 1, size: int = 12, dies_at: int | None = None, limit: int = 40) -> Dataflow:
    """Every operator that the simulation knows."""
    flow = Dataflow("test")
    numbers = op.input("in", flow, _Source(calls, parts, size, dies_at))
    halves = op.branch("halves", numbers, lambda n: n % 2 == 0)
    spread = op.redistribute("spread", op.map("tenfold", halves.trues, lambda n: 10 * n))
    merged = op.merge("merged", halves.falses, op.filter("small", spread, lambda n: n < 100))
    sums = op.stateful_batch("sum", op.key_on("key", merged, lambda n: str(n % 4)), lambda s: _Sum(calls, limit, s))
    op.output("out", sums, _Sink(calls))
    return flow


def real(calls: Calls, store: Path | None, **options: Any) -> None:
    config = RecoveryConfig(str(store)) if store is not None else None
    run_main(flow_of(calls, **options), epoch_interval=EVERY_BATCH, recovery_config=config)


def simulated(
    calls: Calls,
    store: Path | None,
    seed: int = 0,
    workers: int = 1,
    processes: int = 1,
    pace: Pace = IN_ORDER,
    **options: Any,
) -> None:
    rng, clock = Random(seed), Clock(0)
    saved = Store(store, workers * processes, Effects(clock), rng) if store is not None else None
    flows = [flow_of(calls, **options) for _ in range(processes)]
    with suppress(Crash):
        Execution(flows, workers, saved, rng, clock, pace).run()


Run = Callable[..., None]


def test_one_worker_makes_the_calls_that_bytewax_makes(tmp_path: Path) -> None:
    found = []
    for run in (real, simulated):
        store = tmp_path / run.__name__
        store.mkdir()
        init_db_dir(store, 2)
        calls = Calls()
        run(calls, store)
        found.append(calls.made)
    wanted, made = found
    assert sorted(map(repr, made)) == sorted(map(repr, wanted))
    for adapter in ("source", "sink", "sum"):
        assert [c for c in made if c[0] == adapter] == [c for c in wanted if c[0] == adapter]


@pytest.mark.parametrize("seed", range(8))
def test_any_interleaving_gives_what_a_cluster_of_bytewax_gives(seed: int) -> None:
    wanted, made = Calls(), Calls()
    flow = Dataflow("sorted")  # what a key gets from several workers has no order; sums of it have none either
    cluster_main(_sizes(flow, wanted), [], 0, worker_count_per_proc=2, epoch_interval=EVERY_BATCH)
    rng, clock = Random(seed), Clock(0)
    flows = [_sizes(Dataflow("sorted"), made) for _ in range(rng.randint(1, 3))]
    Execution(flows, rng.randint(1, 3), None, rng, clock, Pace(rng.random() / 10, rng.random(), rng.random())).run()
    assert sorted(made.out) == sorted(wanted.out)


def _sizes(flow: Dataflow, calls: Calls) -> Dataflow:
    numbers = op.input("in", flow, _Source(calls, 3, 20, None))
    keyed = op.key_on("key", op.redistribute("spread", numbers), lambda n: str(n % 5))
    counted = op.stateful_map("count", keyed, lambda count, n: ((count or 0) + 1, (count or 0) + 1))
    op.output("out", counted, _Sink(calls))
    return flow


@pytest.mark.parametrize("runs", [(real, simulated), (simulated, real), (simulated, simulated), (real, real)])
def test_either_goes_on_from_what_the_other_saved(runs: tuple[Run, Run], tmp_path: Path) -> None:
    whole = Calls()
    real(whole, None)
    init_db_dir(tmp_path, 3)
    calls = Calls()
    runs[0](calls, tmp_path, dies_at=5)
    runs[1](calls, tmp_path, dies_at=9)
    runs[0](calls, tmp_path)
    last = calls.made[max(i for i, call in enumerate(calls.made) if call[:2] == ("source", "build")) :]
    assert last[0] == ("source", "build", "p0", 9)
    assert [total for total in calls.out if total > 0] == [total for total in whole.out if total > 0]
    assert sorted(call for call in last if call[1] == "eof") == sorted(c for c in whole.made if c[1] == "eof")


def test_both_leave_the_same_behind(tmp_path: Path) -> None:
    found = []
    for run in (real, simulated):
        store = tmp_path / run.__name__
        store.mkdir()
        init_db_dir(store, 1)
        run(Calls(), store, dies_at=7)
        run(Calls(), store)
        database = sqlite3.connect(store / "part-0.sqlite3")
        rows = {
            table: sorted(row[1:] for row in database.execute(f"SELECT * FROM {table}")) for table in ("exs", "fronts")
        }
        database.close()
        found.append((rows, resume_epoch([store / "part-0.sqlite3"]), saved(store)))
    assert found[1] == found[0]


def saved(directory: Path) -> dict[str, dict[str, Any]]:
    store = Store(directory, 1, Effects(Clock(0)), Random(0))
    try:
        return store.states()
    finally:
        store.close()


def test_after_crashes_in_any_place_every_number_is_counted_once(tmp_path: Path) -> None:
    """Also if snapshots of an unfinished epoch are left behind, which the product's start forgets."""
    left = False
    log: dict[str, Any] = {"parts": 3, "size": 40, "limit": 10**6}
    for seed in range(12):
        directory = recovery.begin(tmp_path, 2)
        pace = Pace(epoch_seconds=0.05)
        simulated(Calls(), directory, seed, 2, 1 + seed % 2, pace, dies_at=3 + 3 * seed, **log)
        epochs = []
        for file in directory.glob("*.sqlite3"):
            database = sqlite3.connect(file)
            epochs += [row[0] for row in database.execute("SELECT snap_epoch FROM snaps")]
            database.close()
        left |= max(epochs) >= (resume_epoch(directory.glob("*.sqlite3")) or 0)
    assert left
    calls = Calls()
    simulated(calls, recovery.begin(tmp_path, 2), **log)
    assert saved(recovery.begin(tmp_path, 2))["test.in"] == dict.fromkeys(("p0", "p1", "p2"), 40)
    whole = Calls()
    simulated(whole, None, **log)
    assert sorted(c for c in calls.made if c[1] == "eof") == sorted(c for c in whole.made if c[1] == "eof")


def test_a_failing_sink_ends_the_run_with_everything_closed() -> None:
    class Failing(_Writing):
        def snapshot(self) -> None:
            raise ValueError("no")

    class Sink(_Sink):
        def build_part(self, step_id: str, for_part: str, resume_state: None) -> _Writing:
            return Failing(self._calls, for_part)

    calls = Calls()
    flow = Dataflow("test")
    keyed = op.key_on("key", op.input("in", flow, _Source(calls, 1, 5, None)), str)
    op.output("out", keyed, Sink(calls))
    clock = Clock(0)
    with pytest.raises(ValueError, match="no"):
        Execution([flow], 1, None, Random(0), clock, Pace(0)).run()
    assert {call[0] for call in calls.made if call[1] == "close"} == {"source", "sink"}


def test_an_operator_that_it_does_not_know_is_refused() -> None:
    flow = Dataflow("test")
    op.inspect_debug("look", op.input("in", flow, _Source(Calls(), 1, 5, None)))
    with pytest.raises(NotImplementedError, match=r"test\.look"):
        Execution([flow], 1, None, Random(0), Clock(0), Pace(0))
