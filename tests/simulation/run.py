"""One seed is one run: starts that end in crashes, faults in between, and a last start that nobody disturbs.

After it, the audit and the oracle must find what they would have found had nothing ever gone wrong.
"""

from __future__ import annotations

import gc
import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from unittest.mock import patch

from bytewax.dataflow import Dataflow
from clickhouse_connect.driver.exceptions import ClickHouseError

from config.catalog import load_catalog, load_history
from domain.catalog import History
from domain.ports import TallyError
from domain.values import DAY_US, HOUR_US, SECOND_US
from flows import catalogs, recovery
from flows.metering import build
from flows.start import use_packaged_time_zones
from sources.kafka import IDLE_SLACK_US
from tests.audit import audit
from tests.oracle import compute_log
from tests.simulation.effects import Clock, Crash
from tests.simulation.engine import Execution, Pace
from tests.simulation.mutants import MUTANTS, Mutant
from tests.simulation.store import Store
from tests.simulation.trouble import Aim, Kind, Trouble
from tests.simulation.world import TOPIC, World
from tests.simulation.world import Run as Start
from tests.tables import differences, expected_tables

EVENTS = 2000
CRASHES_MIN = 5
CRASHES_MAX = 9
PROCESSES_MAX = 3
WORKERS_MAX = 3
STARTS_MAX = 60
"""A run that has not come to its end by then does not come to one."""
RECOVERY_FILES = 2


@dataclass
class Outcome:
    """What a run came to."""

    seed: int
    events: int = 0
    starts: int = 0
    crashes: int = 0
    faults: Counter[tuple[str, Kind]] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    """What starts ended with that did not crash."""
    violations: list[str] = field(default_factory=list)
    trail: list[str] = field(default_factory=list)
    """The last boundaries that something went through before the end."""
    lost: int = 0
    doubled: int = 0


class Run:
    """A seed being run.

    Args:
        seed: Decides everything.
        events: Good ones of the workload, at least.
        mutant: A wrong build to be run; None for the product's.
        disturbed: Whether anything goes wrong.
    """

    def __init__(
        self, seed: int, *, events: int = EVENTS, mutant: Mutant | None = None, disturbed: bool = True
    ) -> None:
        self._rng = rng = Random(f"simulation {seed}")
        self._mutant = mutant
        self._outcome = Outcome(seed)
        self.trouble = Trouble(Clock(0), rng, rate=_log_uniform(rng, 0.001, 0.05))
        self.trouble.on_boundary = self._meanwhile
        self.world = World(seed, self.trouble, events=events, partitions=rng.randint(1, 4))
        self.trouble.lose = self._lose
        self._crashes = rng.randint(CRASHES_MIN, CRASHES_MAX) if disturbed else 0
        self._burst = int(_log_uniform(rng, 2, 200))
        self._last = not disturbed
        self._grows_at: set[int] = {rng.randint(1, self._crashes) for _ in range(rng.randint(0, 2)) if disturbed}
        self._stops_in: int | None = None
        self._now: Start | None = None

    def run(self) -> Outcome:
        """Run to the end; what was wrong is in the outcome."""
        use_packaged_time_zones()
        outcome, trouble = self._outcome, self.trouble
        wrong = self._mutant.patched(self.world) if self._mutant is not None else nullcontext()
        with (
            wrong,
            patch.object(catalogs, "load_history", _load_history),
            patch.object(catalogs, "load_catalog", _load_catalog),
            tempfile.TemporaryDirectory(dir=_memory()) as scratch,
        ):
            root = Path(scratch) / "recovery"
            root.mkdir()
            while outcome.starts < STARTS_MAX:
                self._last = trouble.crashes >= self._crashes and not (self._crashes and trouble.owes())
                trouble.is_calm = self._last
                ended = self._start(root)
                if ended and self._last:
                    self._judge()
                    break
                if self._last and outcome.errors:
                    outcome.violations.append(f"undisturbed, it ended with {outcome.errors[-1]}")
                    break
            else:
                outcome.violations.append(f"not at its end after {STARTS_MAX} starts: {outcome.errors[-3:]}")
        outcome.crashes, outcome.faults = trouble.crashes, trouble.faults
        outcome.trail = list(trouble.trail)
        return outcome

    def _start(self, root: Path) -> bool:
        """One start and what it runs; whether it ended well."""
        rng, world, trouble = self._rng, self.world, self.trouble
        self._outcome.starts += 1
        if self._outcome.starts in self._grows_at:
            world.log.add_partition()
        self._aim()
        processes, workers = rng.randint(1, PROCESSES_MAX), rng.randint(1, WORKERS_MAX)
        self._stops_in = rng.randint(1, 500) if not self._last and rng.random() < 0.2 else None
        world.stop.clear()
        self._now = None
        trouble.trail.append(f"=== start {self._outcome.starts}: {processes} x {workers}")
        try:
            run = world.start(
                processes,
                workers,
                batch_rows_max=int(_log_uniform(rng, 5, 1000)),
                flush_rows_max=int(_log_uniform(rng, 20, 20_000)),
            )
            with self._disturbed_copy():
                directory = recovery.begin(root, RECOVERY_FILES)
            self._now = run
            store = Store(directory, processes * workers, trouble, rng)
            flows = [self._build(run, process) for process in range(processes)]
            pace = Pace(
                epoch_seconds=_log_uniform(rng, HOUR_US, 10 * DAY_US) / SECOND_US,
                eagerness=rng.random(),
                reading=rng.random(),
            )
            Execution(flows, workers, store, rng, world.clock, pace, beside=lambda: _forget(run)).run()
        except Crash:
            return False
        except (TallyError, ClickHouseError) as error:
            self._outcome.errors.append(f"{type(error).__name__}: {error}")
            trouble.trail.append(f"*** ended: {self._outcome.errors[-1][:200]}")
            return False
        return True

    def _aim(self) -> None:
        """Where this start is going to crash."""
        rng = self._rng
        if self._last:
            self.trouble.aim = None
            return
        known = sorted(self.trouble.names)
        if known and rng.random() < 0.5:
            self.trouble.aim = Aim(rng.randint(1, 12), rng.choice(known))
        else:
            self.trouble.aim = Aim(int(_log_uniform(rng, 1, 600)))

    def _build(self, run: Start, process: int) -> Dataflow:
        arguments = run.arguments(process)
        return build(**(arguments if self._mutant is None else self._mutant.arguments(self.world, arguments)))

    def _meanwhile(self, name: str) -> None:
        """Others append to the log as the flow reads; an operator may stop it."""
        world = self.world
        if self._stops_in is not None:
            self._stops_in -= 1
            if self._stops_in <= 0:
                world.stop.set()
        if name == "log.read":
            if not world.exhausted:
                world.step(self._rng.randint(0, self._burst))
            elif self._now is not None and self._now.is_read:
                world.stop.set()

    def _lose(self, steps: int | None) -> None:
        if steps is None:
            self.world.redis.flush()
        else:
            self.world.redis.fail_over(steps)

    @contextmanager
    def _disturbed_copy(self) -> Iterator[None]:
        """Let the copy of the saved state crash between any two of its steps."""
        with ExitStack() as patched:
            for name in ("_copy", "_forget_unfinished", "_sync"):
                patched.enter_context(patch.object(recovery, name, self._bracketed(name, getattr(recovery, name))))
            yield

    def _bracketed(self, name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def bracketed(*arguments: Any) -> Any:
            self.trouble.before(f"recovery.{name.strip('_')}")
            done = act(*arguments)
            self.trouble.after(f"recovery.{name.strip('_')}")
            return done

        return bracketed

    def _judge(self) -> None:
        world, outcome = self.world, self._outcome
        tables = world.tables()
        outcome.events = len(tables.events) + len(tables.rejects)
        found = audit(
            world.catalogs,
            TOPIC,
            world.messages,
            tables,
            quotas=world.quotas(),
            published=world.published(),
            now_us=world.clock.now_us,
        )
        outcome.lost, outcome.doubled = found.lost, found.doubled
        outcome.violations += found.violations
        expected = expected_tables(compute_log(world.catalogs, TOPIC, world.messages))
        for (_, number), row in expected.progress.items():
            row["next_offset"] = world.log.partitions[number].stable  # markers of transactions take offsets too
            written = tables.progress.get((TOPIC, number), row)
            if row["log_time"] < written["log_time"] <= world.clock.now_us - IDLE_SLACK_US:
                row["log_time"] = written["log_time"]  # claimed by a partition that had nothing to read
        outcome.violations += differences(tables, expected)


def collect_seldom() -> None:
    """Of a process that runs many seeds: hardly any garbage is cyclic, and to look for it takes a tenth of the time."""
    gc.freeze()
    gc.set_threshold(200_000, 50, 1_000)


def _forget(run: Start) -> None:
    """As `flows.forget.stepping` does."""
    with suppress(TallyError, ClickHouseError):
        run.forget()


def _load_history(rows: Iterable[tuple[int, int, str]]) -> History:
    """`config.catalog.load_history`, which takes a tenth of a second, once for the same rows."""
    return _history(tuple(map(tuple, rows)))


_load_catalog = cache(load_catalog)


@cache
def _history(rows: tuple[tuple[int, int, str], ...]) -> History:
    return load_history(rows)


def _log_uniform(rng: Random, low: float, high: float) -> float:
    """As often between 1 and 10 as between 10 and 100."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _memory() -> str | None:
    """A directory in memory, if there is one: the machine itself does not fail here, so nothing has to reach a disk."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def simulate(seed: int, *, events: int = EVENTS, mutant: str | None = None, disturbed: bool = True) -> Outcome:
    """Run one seed of the product, or of a mutant by name."""
    return Run(seed, events=events, mutant=None if mutant is None else MUTANTS[mutant], disturbed=disturbed).run()
