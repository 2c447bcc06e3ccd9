"""`make bench-latency`: from an event's emission to the signal that it causes, with everything real in between.

One process emits usage with the SDK at a steady rate, another runs `tally run` from Kafka, and this one
subscribes to signals, as a product would. Kafka, Redis and ClickHouse run on the same machine. The
emitter knows which event makes a subject cross which threshold, and writes down when it emitted it;
latency is from there to the moment at which the subscriber has the signal in its hands.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path

from clickhouse_connect.driver.client import Client
from tallyflow import UsageEmitter, subscribe

from engines.clickhouse import connect
from engines.redis_server import RedisServer
from tests.services.clickhouse import ClickHouse
from tests.services.kafka import Kafka

_SUBJECTS = 1_000
_LIMIT = 200
_STEPS = 10
_PARTITIONS = 4
_SEED = 7
_TICK_SECONDS = 0.01
_WAIT_SECONDS_MAX = 60.0
_AIM_SECONDS = 0.5
_SIGNALS_MIN = 2_000
_EPOCHS_MIN = 6
_EPOCH_SECONDS = 5

_CATALOG = f"""
version: 1
timezone: UTC
currency: USD
event_types:
  api.request:
    schema:
      type: object
      required: [bytes, region]
      properties: {{bytes: {{type: integer, minimum: 0}}, region: {{type: string}}}}
meters:
  requests: {{event_type: api.request, aggregation: count, group_by: [region], window: 1h}}
  traffic: {{event_type: api.request, aggregation: sum, value: bytes, group_by: [region], window: 1h}}
plans:
  pro:
    prices: [{{key: traffic, meter: traffic, model: per_unit, unit_amount: "0.000001"}}]
    entitlements:
      - feature: requests
        kind: metered
        meter: requests
        limit: {_LIMIT}
        period: month
        thresholds: [{", ".join(str(Decimal(step) / _STEPS) for step in range(1, _STEPS + 1))}]
default_plan: pro
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.latency", description=__doc__)
    parser.add_argument("--rate", type=int, default=5_000, help="events a second")
    parser.add_argument("--seconds", type=float, default=60.0, help="for how long")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--emit", metavar="BROKERS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.emit:
        print(json.dumps(emit(options.emit, options.rate, options.seconds)))
        return
    figures = measure(options.rate, options.seconds)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def emit(brokers: str, rate: int, seconds: float) -> dict[str, object]:
    """Emit events of random subjects; returns when each threshold's event was emitted, by subject and threshold."""
    draw = random.Random(_SEED)
    names = [f"customer-{number}" for number in range(_SUBJECTS)]
    weights = [draw.uniform(0.3, 1.7) for _ in names]
    subjects = draw.choices(names, weights, k=int(rate * seconds))
    counts = dict.fromkeys(names, 0)
    crossed: dict[str, float] = {}
    with UsageEmitter(brokers, source="/bench", on_full="block", block_seconds_max=30.0) as emitter:
        begun = time.perf_counter()
        for number, subject in enumerate(subjects):
            due = begun + number / rate
            while (ahead := due - time.perf_counter()) > _TICK_SECONDS:
                time.sleep(ahead)
            counts[subject] += 1
            if counts[subject] % (_LIMIT // _STEPS) == 0 and counts[subject] <= _LIMIT:
                crossed[f"{subject} {counts[subject]}"] = time.time()
            emitter.emit("api.request", subject, {"bytes": number % 5_000, "region": "eu"}, id=str(number))
        took = time.perf_counter() - begun
    return {"crossed": crossed, "seconds": took, "events": len(subjects)}


def measure(rate: int, seconds: float) -> dict[str, object]:
    """Run everything, print the figures and return them."""
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="tally-latency-")))
        kafka = opened.enter_context(Kafka(folder / "kafka"))
        redis = opened.enter_context(RedisServer(folder / "redis"))
        clickhouse = opened.enter_context(ClickHouse(folder / "clickhouse"))
        (folder / "catalog.yaml").write_text(_CATALOG, encoding="utf-8")
        environment = {
            **os.environ,
            "TALLY_KAFKA_BROKERS": kafka.bootstrap,
            "TALLY_KAFKA_PARTITIONS": str(_PARTITIONS),
            "TALLY_REDIS_URL": redis.url,
            "TALLY_CLICKHOUSE_URL": clickhouse.url,
            "TALLY_DATA_DIR": str(folder / "data"),
            "TALLY_EPOCH_SECONDS": str(_EPOCH_SECONDS),
        }
        log = opened.enter_context(open(folder / "flow.log", "wb"))
        arguments = ["run", "--source", "kafka", "--catalog", str(folder / "catalog.yaml")]
        flow = subprocess.Popen(
            [sys.executable, "-m", "cli.main", *arguments],
            env=environment,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
        opened.callback(_end, flow)
        with connect(clickhouse.url) as client:
            _await(lambda: _number(client, "SELECT count() FROM catalogs") == 1, flow, folder)
            heard = {
                "kafka": opened.enter_context(_Ear(brokers=kafka.bootstrap, group="bench")),
                "redis": opened.enter_context(_Ear(redis_url=redis.url)),
            }
            emitter = [sys.executable, "-m", "bench.latency", "--emit", kafka.bootstrap]
            emitter += ["--rate", str(rate), "--seconds", str(seconds)]
            done = subprocess.run(emitter, check=True, stdout=subprocess.PIPE, text=True)
            emitted = json.loads(done.stdout.splitlines()[-1])
            crossed: dict[str, float] = emitted["crossed"]
            _await(lambda: all(len(ear.at) >= len(crossed) for ear in heard.values()), flow, folder)
            _await(lambda: _number(client, "SELECT count() FROM events") == emitted["events"], flow, folder)
        return _figures(emitted, heard, rate)


class _Ear:
    """Listens to signals in a thread, and notes when each came."""

    def __init__(self, **where: str) -> None:
        self.at: dict[str, float] = {}
        self._stream = subscribe(**where)  # type: ignore[arg-type]  # names of two overloads
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> _Ear:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.stop()
        self._thread.join()

    def _listen(self) -> None:
        with self._stream as signals:
            for found in signals:
                self.at[f"{found.subject} {found.threshold:f}"] = time.time()


def _figures(emitted: dict[str, object], heard: dict[str, _Ear], rate: int) -> dict[str, object]:
    crossed = emitted["crossed"]
    assert isinstance(crossed, dict) and isinstance(emitted["seconds"], float) and isinstance(emitted["events"], int)
    epochs = emitted["seconds"] / _EPOCH_SECONDS
    reached = emitted["events"] / emitted["seconds"]
    print(
        f"{emitted['events']:,} events in {emitted['seconds']:.1f} s ({reached:,.0f} a second, asked for {rate:,}), "
        f"{epochs:.0f} epochs of {_EPOCH_SECONDS} s; {len(crossed):,} signals\n"
    )
    print(f"{'received by':<12} {'signals':>8} {'p50 ms':>8} {'p90 ms':>8} {'p99 ms':>8} {'max ms':>8}")
    figures: dict[str, object] = {"events": emitted["events"], "seconds": emitted["seconds"], "signals": len(crossed)}
    for name, ear in heard.items():
        assert set(ear.at) == set(crossed), f"{name}: signals that differ from what was emitted: nothing was measured"
        waits = sorted(ear.at[key] - crossed[key] for key in crossed)
        shown = {p: _percentile(waits, p) for p in (50, 90, 99, 100)}
        print(f"{name:<12} {len(waits):>8,} " + " ".join(f"{1000 * wait:>8.0f}" for wait in shown.values()))
        figures[name] = {f"p{p}": wait for p, wait in shown.items()}
    aim = f"p99 under {1000 * _AIM_SECONDS:.0f} ms"
    print(f"\naim: {aim}, over at least {_SIGNALS_MIN:,} signals and {_EPOCHS_MIN} epochs")
    return figures


def _percentile(ordered: Sequence[float], percent: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def _number(client: Client, sql: str) -> int:
    return int(client.query(sql).result_rows[0][0])


def _await(condition: Callable[[], bool], flow: subprocess.Popen[bytes], folder: Path) -> None:
    give_up = time.monotonic() + _WAIT_SECONDS_MAX
    while not condition():
        if flow.poll() is not None or time.monotonic() > give_up:
            raise SystemExit(f"the flow did not come to its end:\n{(folder / 'flow.log').read_text()[-3000:]}")
        time.sleep(0.1)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_WAIT_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
