"""A dataflow of Bytewax 0.21 in one thread: every interleaving that several processes and workers allow, by a seed.

It takes the `Dataflow` objects that the processes of a cluster build, and runs their core operators as Bytewax does:

- Each worker has an instance of every operator; those of a process share what their functions close over.
- A step of an instance takes some of what waits for it. What one instance sends to another arrives in order; what
  several send is mixed in any way. What leaves a process is pickled.
- Keys go to workers by hash, partitions of sources and sinks to the worker that has the fewest of them so far.
- A partition of a source ends its epoch when its time has passed, or at its end; then its state is taken. It reads on
  only when everything of that epoch has drained out of all workers and is stored.
- An operator's epoch closes when those before it have closed on all workers: then stateful keys, and partitions of
  sinks, that saw anything in it are asked for their state. That is pickled at once and written some time later, and
  only then may the workers' frontiers be.
- An error ends the cluster: partitions are closed, nothing is flushed. A `Crash` ends it without that. Both ends are
  ragged: the other processes go on for a few steps.

What differs: an epoch without anything to read passes at once when everybody sleeps; on the last step of a run nothing
is left to write.
"""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any
from zlib import crc32

from bytewax.dataflow import Dataflow, MultiPort, Operator, SinglePort
from bytewax.inputs import AbortExecution, FixedPartitionedSource
from bytewax.outputs import DynamicSink, FixedPartitionedSink

from domain.values import SECOND_US
from tests.simulation.effects import Clock, Crash
from tests.simulation.store import FIRST_EPOCH, States, Store

COOLDOWN_SECONDS = 0.001
"""How long a source rests that had nothing to give."""
STEP_SECONDS_MAX = 0.01
"""Virtual time that passes with a step."""
RAGGED_STEPS_MAX = 40
"""How far the other processes get after one has ended."""

Emit = Callable[[str, list[Any]], None]


@dataclass(frozen=True, slots=True)
class Pace:
    """What the scheduler decides of one execution."""

    epoch_seconds: float
    eagerness: float = 0.5
    """How likely a step takes all that waits for it."""
    reading: float = 0.5
    """How likely a source reads on while something waits elsewhere."""
    beside: float = 0.01
    """How likely a step is one of what runs beside the flow."""


class Execution:
    """One execution of a cluster.

    Args:
        flows: What each process has built; all alike.
        workers: Threads of each process.
        store: Where snapshots go; None to run without.
        rng: Decides every interleaving.
        clock: Virtual time, by which sources sleep and epochs end.
        pace: How it runs.
        beside: A step of what runs beside the flow.
    """

    def __init__(
        self,
        flows: Sequence[Dataflow],
        workers: int,
        store: Store | None,
        rng: Random,
        clock: Clock,
        pace: Pace,
        beside: Callable[[], None] | None = None,
    ) -> None:
        self._beside = beside
        self.rng = rng
        self.clock = clock
        self.pace = pace
        self.store = store
        self.workers = workers * len(flows)
        self.epoch = store.epoch if store else FIRST_EPOCH
        self._states: States = store.states() if store else {}
        self._process = [number // workers for number in range(self.workers)]
        steps = [list(_core(flow.substeps)) for flow in flows]
        self._consumers: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        for at, step in enumerate(steps[0]):
            for port, stream in enumerate(_ups(step)):
                self._consumers[stream].append((at, port))
        self._operators: list[list[_Instance]] = []
        """By operator in the order of the flow, one instance of each worker."""
        for at in range(len(steps[0])):
            made = [_instance(self, steps[process][at], worker) for worker, process in enumerate(self._process)]
            self._operators.append(made)
        producers = {stream: at for at, step in enumerate(steps[0]) for stream in _downs(step)}
        self._before = [[producers[stream] for stream in _ups(step)] for step in steps[0]]
        self._closed: set[int] = set()
        """Operators that have closed the epoch, on all workers."""
        self._sources = [i for made in self._operators for i in made if isinstance(i, _Input)]
        self._acting: int | None = None
        """The worker whose step it is; None if it is everybody's."""
        self._gone: set[int] = set()
        self._is_over = False

    def run(self) -> None:
        """Until every source has ended.

        Raises:
            Exception: what an operator, source or sink raised; its partitions are closed.
            Crash: as it came.
        """
        try:
            for made in self._operators:
                self._build(made)
            while self._step():
                pass
        except BaseException as error:
            self._end_raggedly(whole_process=isinstance(error, Crash))
            if not isinstance(error, Crash):
                self._close()
            raise
        finally:
            if self.store is not None:
                self.store.close()
        self._close()

    def emit(self, worker: int, stream: str, items: list[Any]) -> None:
        """Hand items to whoever reads a stream."""
        if not items:
            return
        for at, port in self._consumers[stream]:
            instances = self._operators[at]
            for target, part in instances[worker].routed(items):
                if self._process[target] != self._process[worker]:
                    part = pickle.loads(pickle.dumps(part))
                instances[target].waiting.setdefault((port, worker), []).extend(part)

    def state(self, step: str) -> dict[str, Any]:
        """What this execution goes on from, by key."""
        return self._states.get(step, {})

    def take(self, step: str, key: str, state: Any, kept: bool = True) -> None:
        """A state to be stored."""
        if self.store is not None:
            self.store.take(step, key, self.epoch, pickle.dumps(state) if kept else None)

    def _build(self, made: list[_Instance]) -> None:
        local = [instance.parts() for instance in made]
        primaries = _primaries(local)
        for instance in made:
            instance.build(primaries)

    def _step(self) -> bool:
        """Let something happen; whether there is more."""
        self.clock.advance(self.rng.random() * STEP_SECONDS_MAX)
        acts = self._acts()
        if self._beside is not None and self.rng.random() < self.pace.beside:
            self._acting = None
            self._beside()
        elif acts:
            act = self.rng.choice(acts)
            self._acting = act.__self__.worker if isinstance(act.__self__, _Instance) else None  # type: ignore[attr-defined]
            act()
        else:  # nobody has anything to do before a source wakes
            wake_us = min(source.wakes_us() for source in self._sources if source.is_reading)
            self.clock.advance(max(0, wake_us - self.clock.now_us + 1) / SECOND_US)
        return not self._is_over

    def _acts(self) -> list[Callable[[], None]]:
        """What may happen next."""
        acts: list[Callable[[], None]] = []
        work = [i.step for made in self._operators for i in made if i.waiting and i.worker not in self._gone]
        readers = [i.step for i in self._sources if i.is_due() and i.worker not in self._gone]
        if work and (not readers or self.rng.random() >= self.pace.reading):
            acts += work
        else:
            acts += readers
        acts += [i.close_epoch for i in self._closing() if i.worker not in self._gone]
        if self.store is not None and self.store.is_behind:
            acts.append(self.store.write)
        elif not acts and not self._gone and len(self._closed) == len(self._operators):
            acts.append(self._pass)
        return acts

    def _closing(self) -> list[_Instance]:
        """Instances whose epoch may close now."""
        found: list[_Instance] = []
        for at, made in enumerate(self._operators):
            if at in self._closed or not all(before in self._closed for before in self._before[at]):
                continue
            if any(instance.waiting for instance in made):
                continue
            unclosed = [instance for instance in made if instance.is_open]
            if unclosed:
                found += [instance for instance in unclosed if not isinstance(instance, _Input)]
            else:
                self._closed.add(at)
        return found

    def _pass(self) -> None:
        """Everything of the epoch is stored: let the workers say so, one after the other, and open the next."""
        if self.store is not None:
            for worker in self.rng.sample(range(self.workers), self.workers):
                self.store.front(worker, self.epoch + 1)
            self.store.collect(self.epoch)
        self._is_over = self.is_ending
        self.epoch += 1
        self._closed.clear()
        for made in self._operators:
            for instance in made:
                instance.open_epoch()

    @property
    def is_ending(self) -> bool:
        """Whether no source will give anything more."""
        return all(source.has_ended for source in self._sources)

    def _end_raggedly(self, whole_process: bool) -> None:
        """Somebody has ended; the others, if there are any, see it after a few steps."""
        first = self.rng.randrange(self.workers) if self._acting is None else self._acting
        alike = [self._process[worker] == self._process[first] for worker in range(self.workers)]
        self._gone = {worker for worker in range(self.workers) if (whole_process and alike[worker]) or worker == first}
        with suppress(Crash, Exception):
            for _ in range(self.rng.randrange(RAGGED_STEPS_MAX)):
                acts = self._acts() if len(self._gone) < self.workers else []
                if not acts:
                    return
                self.rng.choice(acts)()

    def _close(self) -> None:
        for made in self._operators:
            for instance in made:
                instance.close()


@dataclass
class _Instance:
    """An operator on one worker. Its base is one that passes items on as they come."""

    run: Execution
    step_of: Any
    worker: int
    waiting: dict[tuple[int, int], list[Any]] = field(default_factory=dict)
    """By port and sending worker, what is to be worked on, in order."""
    is_open: bool = True

    @property
    def id(self) -> str:
        return str(self.step_of.step_id)

    def parts(self) -> list[str]:
        """Partitions that this worker could have."""
        return []

    def build(self, primaries: dict[str, int]) -> None:
        """Go on from what is stored."""

    def routed(self, items: list[Any]) -> Iterator[tuple[int, list[Any]]]:
        """Which workers get which of the items that this worker sends here."""
        yield self.worker, items

    def step(self) -> None:
        """Work on some of what waits."""
        rng = self.run.rng
        channel = rng.choice(sorted(self.waiting))
        items = self.waiting[channel]
        if rng.random() < self.run.pace.eagerness:
            del self.waiting[channel]
        else:
            count = rng.randint(1, len(items))
            self.waiting[channel] = items[count:]
            items = items[:count]
            if not self.waiting[channel]:
                del self.waiting[channel]
        self.work(items)

    def work(self, items: list[Any]) -> None:
        self.emit(items)

    def emit(self, items: list[Any], port: str = "down") -> None:
        self.run.emit(self.worker, getattr(self.step_of, port).stream_id, items)

    def close_epoch(self) -> None:
        self.is_open = False

    def open_epoch(self) -> None:
        self.is_open = True

    def close(self) -> None:
        """The execution ends, well or badly."""


class _FlatMapBatch(_Instance):
    def work(self, items: list[Any]) -> None:
        self.emit(list(self.step_of.mapper(items)))


class _Branch(_Instance):
    def work(self, items: list[Any]) -> None:
        chosen = [self.step_of.predicate(item) for item in items]
        self.emit([item for item, yes in zip(items, chosen, strict=True) if yes], "trues")
        self.emit([item for item, yes in zip(items, chosen, strict=True) if not yes], "falses")


class _Redistribute(_Instance):
    def routed(self, items: list[Any]) -> Iterator[tuple[int, list[Any]]]:
        for item in items:
            yield self.run.rng.randrange(self.run.workers), [item]


class _StatefulBatch(_Instance):
    def build(self, primaries: dict[str, int]) -> None:
        self.logics: dict[str, Any] = {}
        self.awoken: set[str] = set()
        self.notify_at: dict[str, datetime] = {}
        for key, state in self.run.state(self.id).items():
            if self._home(key) == self.worker:
                self.logics[key] = self.step_of.builder(state)
                self._schedule(key)

    def routed(self, items: list[Any]) -> Iterator[tuple[int, list[Any]]]:
        yield from _by_worker(items, self._home)

    def _home(self, key: str) -> int:
        return crc32(key.encode()) % self.run.workers

    def work(self, items: list[Any]) -> None:
        grouped: defaultdict[str, list[Any]] = defaultdict(list)
        for key, value in items:
            grouped[key].append(value)
        for key in sorted(grouped):
            if key not in self.logics:
                self.logics[key] = self.step_of.builder(None)
            self._told(key, self.logics[key].on_batch(grouped[key]))
        self._notify()
        for key in grouped:
            self._schedule(key)

    def close_epoch(self) -> None:
        self._notify()
        if self.run.is_ending:
            for key in sorted(self.logics):
                self._told(key, self.logics[key].on_eof())
        for key in sorted(self.awoken):
            logic = self.logics.get(key)
            self.run.take(self.id, key, logic.snapshot() if logic else None, kept=logic is not None)
        self.awoken.clear()
        super().close_epoch()

    def _notify(self) -> None:
        now = datetime.fromtimestamp(self.run.clock.now_us / SECOND_US, UTC)
        for key in sorted(key for key, at in self.notify_at.items() if at <= now):
            del self.notify_at[key]
            self._told(key, self.logics[key].on_notify())
            self._schedule(key)

    def _told(self, key: str, answer: tuple[Any, bool]) -> None:
        values, is_complete = answer
        self.emit([(key, value) for value in values])
        self.awoken.add(key)
        if is_complete:
            del self.logics[key]
            self.notify_at.pop(key, None)

    def _schedule(self, key: str) -> None:
        if key in self.logics and (at := self.logics[key].notify_at()) is not None:
            self.notify_at[key] = at


class _Input(_Instance):
    """A source's partitions on one worker."""

    def parts(self) -> list[str]:
        return list(self.step_of.source.list_parts())

    def build(self, primaries: dict[str, int]) -> None:
        states = self.run.state(self.id)
        unknown = states.keys() - primaries.keys()
        assert not unknown, f"{self.id}: saved partitions {unknown} are not there any more"
        now_us = self.run.clock.now_us
        self.reading = {
            part: _Partition(self.step_of.source.build_part(self.id, part, states.get(part)), now_us)
            for part in sorted(primaries)
            if primaries[part] == self.worker
        }
        self.has_ended = not self.reading
        self.is_open = self.is_reading

    @property
    def is_reading(self) -> bool:
        return any(part.epoch_is_open for part in self.reading.values())

    def is_due(self) -> bool:
        return bool(self._due())

    def wakes_us(self) -> int:
        return min(self._wakes_us(part) for part in self.reading.values() if part.epoch_is_open)

    def step(self) -> None:
        """Read a batch of one partition, and see whether its epoch is over."""
        name = self.run.rng.choice(self._due())
        part = self.reading[name]
        now_us, ended = self.run.clock.now_us, False
        if part.awake_us() <= now_us:
            try:
                items = list(part.source.next_batch())
                self.emit(items)
                part.rests_until_us = now_us if items else now_us + int(COOLDOWN_SECONDS * SECOND_US)
            except StopIteration:
                ended = True
            except AbortExecution as error:
                raise Crash from error
        if ended or now_us >= part.began_us + self._epoch_us():
            self.run.take(self.id, name, part.source.snapshot())
            part.epoch_is_open = False
            if ended:
                part.source.close()
                del self.reading[name]
                self.has_ended = not self.reading
            self.is_open = self.is_reading

    def close_epoch(self) -> None:
        raise AssertionError("a source closes its epoch as it reads")

    def open_epoch(self) -> None:
        for part in self.reading.values():
            part.epoch_is_open, part.began_us = True, self.run.clock.now_us
        self.is_open = bool(self.reading)

    def close(self) -> None:
        for part in self.reading.values():
            part.source.close()

    def _due(self) -> list[str]:
        now_us = self.run.clock.now_us
        return [n for n, part in self.reading.items() if part.epoch_is_open and self._wakes_us(part) <= now_us]

    def _wakes_us(self, part: _Partition) -> int:
        return min(part.awake_us(), part.began_us + self._epoch_us())

    def _epoch_us(self) -> int:
        return int(self.run.pace.epoch_seconds * SECOND_US)


class _Partition:
    """Of a source."""

    def __init__(self, source: Any, now_us: int) -> None:
        self.source = source
        self.began_us = now_us
        self.rests_until_us = now_us
        self.epoch_is_open = True

    def awake_us(self) -> int:
        at: datetime | None = self.source.next_awake()
        return self.rests_until_us if at is None else int(at.timestamp() * SECOND_US)


class _PartitionedOutput(_Instance):
    def parts(self) -> list[str]:
        return list(self.step_of.sink.list_parts())

    def build(self, primaries: dict[str, int]) -> None:
        self.names = sorted(primaries)
        self.primaries = primaries
        self.writing = {
            part: self.step_of.sink.build_part(self.id, part, state)
            for part, state in self.run.state(self.id).items()
            if primaries[part] == self.worker
        }
        self.awoken: set[str] = set()

    def routed(self, items: list[Any]) -> Iterator[tuple[int, list[Any]]]:
        yield from _by_worker(items, lambda key: self.primaries[self._part(key)])

    def _part(self, key: str) -> str:
        part: str = self.names[self.step_of.sink.part_fn(key) % len(self.names)]
        return part

    def work(self, items: list[Any]) -> None:
        grouped: defaultdict[str, list[Any]] = defaultdict(list)
        for key, value in items:
            grouped[self._part(key)].append(value)
        for name in sorted(grouped):
            if name not in self.writing:
                self.writing[name] = self.step_of.sink.build_part(self.id, name, None)
            self.writing[name].write_batch(grouped[name])
            self.awoken.add(name)

    def close_epoch(self) -> None:
        for name in sorted(self.awoken):
            self.run.take(self.id, name, self.writing[name].snapshot())
        self.awoken.clear()
        super().close_epoch()

    def close(self) -> None:
        for part in self.writing.values():
            part.close()


class _DynamicOutput(_Instance):
    def build(self, primaries: dict[str, int]) -> None:
        self.part = self.step_of.sink.build(self.id, self.worker, self.run.workers)

    def work(self, items: list[Any]) -> None:
        self.part.write_batch(items)

    def close(self) -> None:
        self.part.close()


def _instance(run: Execution, step: Operator, worker: int) -> _Instance:
    made: Any = step
    match type(step).__name__:
        case "input" if isinstance(made.source, FixedPartitionedSource):
            return _Input(run, step, worker)
        case "output" if isinstance(made.sink, FixedPartitionedSink):
            return _PartitionedOutput(run, step, worker)
        case "output" if isinstance(made.sink, DynamicSink):
            return _DynamicOutput(run, step, worker)
        case "flat_map_batch":
            return _FlatMapBatch(run, step, worker)
        case "stateful_batch":
            return _StatefulBatch(run, step, worker)
        case "branch":
            return _Branch(run, step, worker)
        case "redistribute":
            return _Redistribute(run, step, worker)
        case "merge" | "_noop":
            return _Instance(run, step, worker)
        case name:
            raise NotImplementedError(f"{step.step_id}: the simulation does not know how Bytewax runs this {name}")


def _core(steps: Sequence[Operator]) -> Iterator[Operator]:
    """The operators that Bytewax itself runs; the others are made of them."""
    for step in steps:
        if getattr(type(step), "core", False):
            yield step
        else:
            yield from _core(step.substeps)


def _ups(step: Operator) -> list[str]:
    return [stream for name in step.ups_names for stream in _streams(getattr(step, name))]


def _downs(step: Operator) -> list[str]:
    return [stream for name in step.dwn_names for stream in _streams(getattr(step, name))]


def _streams(port: SinglePort | MultiPort[Any]) -> list[str]:
    return list(port.stream_ids.values())


def _by_worker(items: list[Any], home: Callable[[str], int]) -> Iterator[tuple[int, list[Any]]]:
    routed: defaultdict[int, list[Any]] = defaultdict(list)
    for item in items:
        routed[home(item[0])].append(item)
    yield from routed.items()


def _primaries(local: Sequence[Sequence[str]]) -> dict[str, int]:
    """Which worker has which partition: each the one that has the fewest so far of those that can."""
    counts = [0] * len(local)
    primaries: dict[str, int] = {}
    for part in sorted({part for parts in local for part in parts}):
        able = [worker for worker, parts in enumerate(local) if part in parts]
        primaries[part] = min(able, key=lambda worker: (counts[worker], worker))
        counts[primaries[part]] += 1
    return primaries
