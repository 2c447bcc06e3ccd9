"""One measured run of the flow over files, in a process of its own: `python -m bench.flow FOLDER`.

Prints one JSON object. The files are decoded by msgspec alone as well, in the same process, before and
after the flow; the flow's rate is compared with the faster of the two.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from config.catalog import load_catalog, sample_text
from config.settings import load_settings
from domain.decode import decoder_of
from flows.run import run
from flows.start import start

_BLOCK_BYTES = 16 * 1024 * 1024


def measure(folder: Path, workers: int) -> dict[str, Any]:
    """Count the events of `folder/*.ndjson` once, and say how long it took."""
    before = decode_alone(folder)
    with tempfile.TemporaryDirectory(prefix="tally-bench-") as data:
        settings = load_settings().model_copy(update={"data_dir": Path(data)})
        pattern = f"file:{folder}/*.ndjson"
        with start(
            settings, catalog=sample_text("api"), source=pattern, stop=threading.Event(), workers=workers
        ) as deployment:
            begun, cpu = time.perf_counter(), time.process_time()
            run(deployment)
            seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            with deployment.client() as client:
                counted = client.query("SELECT sum(events) FROM progress FINAL").result_rows[0][0]
                balanced = client.query("SELECT min(balanced) FROM completeness").result_rows[0][0]
    assert balanced, "the books do not balance: nothing was measured"
    after = decode_alone(folder)
    rate = counted / seconds
    return {
        "events": int(counted),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "events_per_second": rate,
        "msgspec_per_second": max(before, after),
        "ratio": rate / max(before, after),
        "peak_mib": peak,
    }


def decode_alone(folder: Path) -> float:
    """Events a second by msgspec alone: the same bytes, decoded and validated, one call an event."""
    decode = decoder_of(load_catalog(sample_text("api")))
    count, seconds = 0, 0.0
    for path in sorted(folder.glob("*.ndjson")):
        with path.open("rb") as file:
            while lines := file.readlines(_BLOCK_BYTES):
                begun = time.perf_counter()
                for line in lines:
                    try:
                        decode(line)
                    except (msgspec.DecodeError, ValueError, RecursionError, ArithmeticError):
                        continue
                seconds += time.perf_counter() - begun
                count += len(lines)
    return count / seconds


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)))
