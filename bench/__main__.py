"""`make bench`: how fast the flow is beside msgspec alone, and how its memory grows.

Every figure of a line comes from one run in one process, so machines and moments compare as ratios.
Events are generated once for each line; `--runs` repeats a measurement and the median is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from cli._generator import generate

_SEED = 7
_FILES = 4
_RATIO_MIN = {1_000: 0.06, 100_000: 0.04}
_MEMORY_RATIO_MAX = 1.2
_BATCHES = (20_000, 5_000)
"""TALLY_BATCH_ROWS_MAX: the default, and a smaller one for comparison."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--events", type=int, default=300_000, help="events of a speed measurement")
    parser.add_argument("--runs", type=int, default=3, help="runs of each speed measurement; the median counts")
    parser.add_argument("--no-memory", action="store_true", help="leave out the memory measurement (minutes)")
    parser.add_argument("--json", type=Path, help="also write every run to this file")
    options = parser.parse_args()
    runs: list[dict[str, Any]] = []
    print(f"Python {platform.python_version()}, {platform.machine()}, {options.runs} runs each\n")
    names = f"{'events':>9} {'subjects':>8} {'batch':>7} {'events/s':>9} {'msgspec/s':>10} {'ratio':>7} {'aim':>5}"
    print(f"{names} {'peak MiB':>9}")
    for subjects, aim in _RATIO_MIN.items():
        for batch in _BATCHES:
            found = measure(options.events, subjects, options.runs, batch)
            runs += found
            middle = sorted(found, key=lambda run: run["ratio"])[len(found) // 2]
            print(_line(middle, f"{aim:.2f}"), flush=True)
    if not options.no_memory:
        small, large = (measure(events, 1_000, 1)[0] for events in (1_000_000, 3_000_000))
        runs += [small, large]
        print(_line(small, ""))
        print(_line(large, ""))
        growth = large["peak_mib"] / small["peak_mib"]
        print(f"\npeak memory at 3,000,000 events is {growth:.2f} times that at 1,000,000 (aim {_MEMORY_RATIO_MAX})")
    if options.json:
        options.json.write_text(json.dumps(runs, indent=2) + "\n", encoding="utf-8")


def measure(events: int, subjects: int, runs: int, batch: int = _BATCHES[0]) -> list[dict[str, Any]]:
    """Run the flow over generated events, each time in a new process."""
    with tempfile.TemporaryDirectory(prefix="tally-bench-") as folder:
        generate(events, subjects, _FILES, _SEED, Path(folder), lambda count: None)
        return [{"subjects": subjects, "batch": batch, **_run(folder, batch)} for _ in range(runs)]


def _run(folder: str, batch: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.flow", folder]
    environment = {**os.environ, "TALLY_BATCH_ROWS_MAX": str(batch)}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _line(run: dict[str, Any], aim: str) -> str:
    about = f"{run['events']:>9,} {run['subjects']:>8,} {run['batch']:>7,}"
    rates = f"{run['events_per_second']:>9,.0f} {run['msgspec_per_second']:>10,.0f} {run['ratio']:>7.3f}"
    return f"{about} {rates} {aim:>5} {run['peak_mib']:>9,.0f}"


if __name__ == "__main__":
    main()
