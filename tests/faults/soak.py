"""`make soak MINUTES=20`: half of the maximum throughput, a `kill -9` every 30 s, and the books compared at the end.

First the maximum is measured on the same machine, by as much load as keeps a backlog. Then a new deployment gets half
of it, as an open loop, while processes of the flow are killed under a supervisor. Judged are

- the books: every id counted once, and no other; every window, amount, quota and signal is what was sent
- the lag: before each kill, less than `LAG_SECONDS_MAX` of the load is not counted yet
- memory, from `JUDGED_MINUTES_MIN` on: of the flow's resident memory and of Redis's used memory, taken before each kill
  of the second half, a straight line rises by less than `GROWTH_MAX` of their mean over that half

What may grow is kept from growing: subjects are fixed, windows are minutes and `accept_within` is a minute, so that
claims and windows older than a few minutes are forgotten. The ledger grows; that is what it is for.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import redis
from clickhouse_connect.driver.client import Client

from engines.clickhouse_server import connect
from engines.redis_server import RedisServer
from tests.audit import read_quotas
from tests.faults.load import SUBJECTS, Generator, Load
from tests.faults.report import RECOVER_SECONDS_MAX
from tests.services.clickhouse import ClickHouse
from tests.services.kafka import Kafka
from tests.system.supervisor import Flow, wait_until
from tests.system.system import PARTITIONS, System

KILL_SECONDS = 30.0
LAG_SECONDS_MAX = 10.0
GROWTH_MAX = 0.10
JUDGED_MINUTES_MIN = 5.0
_MAXIMUM_SECONDS = 20.0
_WARM_SECONDS = 10.0
_BACKLOG = 100_000
_SAMPLE_SECONDS = 1.0
_PRICE = Decimal("0.000001")
_LIMIT = 2_000
_STEPS = 10
_DEFAULTS = {
    "TALLY_EPOCH_SECONDS": "5",
    "TALLY_FLUSH_SECONDS": "1",
    "TALLY_LEASE_SECONDS": "10",
    "TALLY_KAFKA_WAIT_SECONDS": "60",
    "TALLY_REDIS_WAIT_SECONDS": "30",
    "TALLY_CLICKHOUSE_WAIT_SECONDS": "30",
}
"""As an operator gets it, not as tests of outages want it."""
_CATALOG = f"""
version: 1
timezone: UTC
currency: USD
accept_within: 1m
event_types:
  api.request:
    schema: {{type: object, required: [bytes], properties: {{bytes: {{type: integer, minimum: 0}}}}}}
meters:
  requests: {{event_type: api.request, aggregation: count, window: 1m, grace: 30s}}
  traffic: {{event_type: api.request, aggregation: sum, value: bytes, window: 1m, grace: 30s}}
plans:
  pro:
    prices: [{{key: traffic, meter: traffic, model: per_unit, unit_amount: "{_PRICE}"}}]
    entitlements:
      - feature: requests
        kind: metered
        meter: requests
        limit: {_LIMIT}
        period: month
        thresholds: [{", ".join(str(Decimal(step) / _STEPS) for step in range(1, _STEPS + 1))}]
default_plan: pro
"""


@dataclass
class Sample:
    """How it stands at one moment."""

    seconds: float
    sent: int
    counted: int
    flow_mib: float
    redis_mib: float
    clickhouse_mib: float
    ends: int

    @property
    def lag(self) -> int:
        return self.sent - self.counted


@dataclass
class Watch:
    """Looks at a deployment under load."""

    system: System
    flow: Flow
    generator: Generator
    samples: list[Sample] = field(default_factory=list)
    begun: float = field(default_factory=time.monotonic)

    def look(self) -> Sample:
        sent = sum(self.generator.sent)  # before what was counted of it
        with redis.Redis.from_url(self.system.redis_url) as client:
            redis_bytes = client.info("memory")["used_memory"]
        sample = Sample(
            time.monotonic() - self.begun,
            sent,
            sum(self.system.counted().values()),
            sum(map(_resident_mib, self.flow.pids().values())),
            redis_bytes / 2**20,
            _resident_mib(self.system.clickhouse.pid),
            len(self.flow.exits),
        )
        self.samples.append(sample)
        return sample


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=20.0, help="how long the load lasts")
    parser.add_argument("--processes", type=int, default=2, help="processes of the flow, with one worker each")
    parser.add_argument("--rate", type=float, help="messages a second; else half of the measured maximum")
    parser.add_argument("--seed", type=int, default=20_26)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    rate = options.rate or measure_maximum(options.processes, options.seed) / 2
    wrong = soak(options.minutes, rate, options.processes, options.seed)
    print("\n".join(["", *wrong[:50], f"{len(wrong)} things are wrong" if wrong else "all is well"]))
    sys.exit(bool(wrong))


@contextmanager
def deployed(processes: int) -> Iterator[tuple[System, Flow]]:
    """A deployment of its own whose flow runs under a supervisor."""
    with tempfile.TemporaryDirectory(prefix="tally-soak-") as name:
        folder = Path(name)
        with (
            Kafka(folder / "kafka") as kafka,
            RedisServer(folder / "redis") as server,
            ClickHouse(folder / "clickhouse") as clickhouse,
        ):
            system = System(folder / "flow", kafka, server.url, clickhouse, workers=1)
            system.settings = _DEFAULTS
            (folder / "flow" / "catalog.yaml").write_text(_CATALOG, encoding="utf-8")
            with system.flow(processes) as flow:
                try:
                    wait_until(system.has_catalog, "the flow has started")
                    yield system, flow
                except BaseException:
                    print(flow.logs(), file=sys.stderr)
                    raise


def measure_maximum(processes: int, seed: int) -> float:
    """Messages a second that are counted while there is always a backlog."""
    generator = Generator(seed, PARTITIONS)
    with deployed(processes) as (system, flow), _load(system, generator, _BACKLOG) as load:
        watch = Watch(system, flow, generator)

        def look() -> bool:
            load.rate = 0.0 if watch.look().lag > 2 * _BACKLOG else 2.0 * _BACKLOG
            return watch.samples[-1].counted > 0

        wait_until(look, "the first is counted")
        begun = time.monotonic()
        while time.monotonic() < begun + _WARM_SECONDS + _MAXIMUM_SECONDS:
            look()
            time.sleep(_SAMPLE_SECONDS / 5)
        warm = begun - watch.begun + _WARM_SECONDS
        steps = [(one, next_) for one, next_ in pairwise(watch.samples) if next_.counted > one.counted]
        marks = [next_ for _, next_ in steps if next_.seconds > warm]
        assert len(marks) > 1, "nothing was counted"
    first, last = marks[0], marks[-1]
    maximum = (last.counted - first.counted) / (last.seconds - first.seconds)
    print(f"maximum: {maximum:,.0f} messages a second with {processes} processes\n", flush=True)
    return maximum


def soak(minutes: float, rate: float, processes: int, seed: int) -> list[str]:
    """The load, the kills, and what is wrong afterwards."""
    draw, generator, kills = random.Random(seed), Generator(seed, PARTITIONS), []
    print(f"{minutes:g} minutes of {rate:,.0f} messages a second, a kill every {KILL_SECONDS:g} s\n\n{_HEAD}")
    with deployed(processes) as (system, flow):
        with _load(system, generator, rate):
            watch = Watch(system, flow, generator)
            for number in range(1, int(minutes * 60 / KILL_SECONDS) + 1):
                while time.monotonic() < watch.begun + number * KILL_SECONDS:
                    watch.look()
                    time.sleep(_SAMPLE_SECONDS)
                kills.append(watch.look())
                flow.kill(draw.randrange(processes), signal.SIGKILL)
                print(_line(watch.samples), flush=True)
        print(f"\n{generator.events:,} events and {generator.repeats:,} repeats were sent", flush=True)
        bound = RECOVER_SECONDS_MAX + watch.look().lag / rate
        took = wait_until(lambda: watch.look().lag == 0, "all is counted", seconds_max=bound)
        print(f"all was counted {took:.1f} s after the last kill", flush=True)
        wrong = books(system, generator)
    return wrong + judge_lag(kills, rate) + judge_memory(kills, minutes)


_HEAD = (
    f"{'s':>6} {'sent/s':>9} {'counted/s':>9} {'lag':>9} {'worst lag':>9} "
    f"{'flow MiB':>9} {'Redis MiB':>9} {'ClickHouse MiB':>14} {'ends':>5}"
)


def _line(samples: list[Sample]) -> str:
    """The half minute that ends with the last sample."""
    last = samples[-1]
    some = [sample for sample in samples if sample.seconds > last.seconds - KILL_SECONDS]
    seconds = max(some[-1].seconds - some[0].seconds, 1e-9)
    sent, counted = some[-1].sent - some[0].sent, some[-1].counted - some[0].counted
    return (
        f"{last.seconds:>6.0f} {sent / seconds:>9,.0f} {counted / seconds:>9,.0f} {last.lag:>9,} "
        f"{max(sample.lag for sample in some):>9,} {last.flow_mib:>9,.0f} {last.redis_mib:>9,.1f} "
        f"{last.clickhouse_mib:>14,.0f} {last.ends:>5}"
    )


def judge_lag(kills: list[Sample], rate: float) -> list[str]:
    """Before each kill but the first, what the one before had held up was counted."""
    worst = max(sample.lag / rate for sample in kills)
    print(f"lag before a kill: at most {worst:.1f} s of the load (bound {LAG_SECONDS_MAX:g})")
    return [
        f"lag: {sample.lag / rate:.1f} s of the load at {sample.seconds:.0f} s"
        for sample in kills
        if sample.lag > LAG_SECONDS_MAX * rate
    ]


def judge_memory(kills: list[Sample], minutes: float) -> list[str]:
    """Whether the second half was flat."""
    if minutes < JUDGED_MINUTES_MIN:
        print(f"memory is judged from {JUDGED_MINUTES_MIN:g} minutes on")
        return []
    wrong, half = [], kills[len(kills) // 2 :]
    for name in ("flow_mib", "redis_mib"):
        values = [getattr(sample, name) for sample in half]
        slope = np.polyfit([sample.seconds for sample in half], values, 1)[0]
        mean = sum(values) / len(values)
        growth = float(slope) * (half[-1].seconds - half[0].seconds) / mean
        print(f"{name}: {mean:,.0f} on average, {growth:+.1%} over the second half (bound {GROWTH_MAX:+.0%})")
        if growth > GROWTH_MAX:
            wrong.append(f"{name} grew by {growth:.1%} over the second half")
    return wrong


def books(system: System, generator: Generator) -> list[str]:
    """What in the tables and in Redis differs from what was sent."""
    found: list[str] = []
    with connect(system.clickhouse.url) as client:
        found += _ids(client, generator)
        found += _usage(client, generator)
        found += _periods(client, system, generator)
    return found


def _ids(client: Client, generator: Generator) -> list[str]:
    """As many rows as ids, all of them different, and all below the number of ids: so they are the ids."""
    rows = ids = repeats = 0
    wrong = []
    for partition in range(generator.partitions):
        where = f"FINAL WHERE log_partition = {partition}"
        sql = f"SELECT count(), groupBitmap(toUInt32(id)), max(toUInt32(id)) FROM events {where}"
        one = client.query(sql).result_rows[0]
        reasons = client.query(f"SELECT reason, count() FROM rejects {where} GROUP BY reason").result_rows
        rejected = {str(reason): int(count) for reason, count in reasons}
        rows, ids = rows + one[0], ids + one[1]
        repeats += rejected.get("duplicate", 0)
        if one[2] >= generator.events:
            wrong.append(f"partition {partition}: an id {one[2]} that nobody sent")
        if one[0] + sum(rejected.values()) != (sent := generator.sent[partition]):
            wrong.append(f"partition {partition}: {one[0]} events and {rejected} of {sent} messages")
    all_ids = client.query("SELECT groupBitmap(toUInt32(id)) FROM events").result_rows[0][0]
    print(f"ledger: {rows:,} rows with {all_ids:,} ids of {generator.events:,}; {repeats:,} duplicates")
    if not rows == ids == all_ids == generator.events or repeats != generator.repeats:
        wrong.append(f"{rows} rows, {all_ids} ids, {repeats} repeats; sent {generator.events}, {generator.repeats}")
    return wrong


def _usage(client: Client, generator: Generator) -> list[str]:
    """Every window of every subject."""
    sql = (
        "SELECT subject, toUnixTimestamp64Micro(window_start) AS start, toInt64(sum(value)) FROM usage FINAL "
        "WHERE meter = %(meter)s GROUP BY subject, start"
    )
    wrong = []
    for meter, wanted in (("requests", generator.counts), ("traffic", generator.sums)):
        rows = client.query(sql, parameters={"meter": meter}).result_rows
        have = {(subject, start): int(value) for subject, start, value in rows}
        print(f"usage, {meter}: {len(have):,} windows of {len(wanted):,}")
        wrong += _differences(f"usage, {meter}", have, wanted)
    return wrong


def _periods(client: Client, system: System, generator: Generator) -> list[str]:
    """Amounts, quotas in both places, and signals, by subject and month."""
    counts: Counter[tuple[str, str]] = Counter()
    sums: Counter[tuple[str, str]] = Counter()
    for totals, by_minute in ((counts, generator.counts), (sums, generator.sums)):
        for (subject, minute), number in by_minute.items():
            totals[subject, _month(minute)] += number
    month = "formatDateTime(period_start, '%Y-%m', 'UTC')"

    def rows(what: str, table: str) -> dict[Any, Any]:
        found = client.query(f"SELECT subject, {month}, {what} FROM {table} FINAL").result_rows
        return {tuple(row[:-1]): row[-1] for row in found}

    wrong = _differences("rated_usage", rows("amount", "rated_usage"), {k: v * _PRICE for k, v in sums.items()})
    wrong += _differences("quotas", rows("used", "quotas"), dict(counts))
    signals = {
        (subject, period, Decimal(_LIMIT * step // _STEPS)): True
        for (subject, period), count in counts.items()
        for step in range(1, _STEPS + 1)
        if count * _STEPS >= _LIMIT * step
    }
    wrong += _differences("signals", rows("threshold, true", "signals"), signals)
    last = max(period for _, period in counts)
    with redis.Redis.from_url(system.redis_url) as server:
        states = {subject: Decimal(state["used"]) for (subject, _), state in read_quotas(server).items()}
    wrong += _differences("Redis", states, {subject: n for (subject, period), n in counts.items() if period == last})
    print(f"{len(sums):,} amounts, {len(counts):,} quotas of {SUBJECTS:,} subjects, {len(signals):,} signals")
    return wrong


def _month(minute_us: int) -> str:
    return time.strftime("%Y-%m", time.gmtime(minute_us // 1_000_000))


def _differences(table: str, have: dict[Any, Any], wanted: dict[Any, Any]) -> list[str]:
    return [
        f"{table}: {key}: {have.get(key)}, not {wanted.get(key)}"
        for key in {**wanted, **have}
        if have.get(key) != wanted.get(key)
    ]


def _load(system: System, generator: Generator, rate: float) -> Load:
    return Load(system.kafka.bootstrap, system.topic, generator, rate)


def _resident_mib(pid: int) -> float:
    """Of a process; 0 of one that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS:")), 0.0)


if __name__ == "__main__":
    main()
