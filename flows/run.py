"""Running a deployment's flow to the end of its input, or until it is told to stop."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from bytewax._bytewax import cluster_main

from domain.ports import TallyError
from flows.start import Deployment

_GC_THRESHOLDS = (100_000, 20, 100)
"""State is millions of long-lived small objects; the default thresholds scan them over and over."""


def run(deployment: Deployment, workers: int) -> None:
    """Run the flow; returns at end of input or once the sources were stopped, after the final snapshot.

    Args:
        deployment: What `flows.start` opened.
        workers: Threads that share the partitions and shards.

    Raises:
        TallyError: what stopped the flow. It resumes at its last snapshot.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    try:
        cluster_main(
            deployment.flow,
            [],
            0,
            epoch_interval=deployment.epoch_interval,
            recovery_config=deployment.recovery,
            worker_count_per_proc=workers,
        )
    except BaseException as error:
        cause = _tally_error(error)
        if cause is None:
            raise
        raise cause from error


def _tally_error(error: BaseException | None) -> TallyError | None:
    """The error of ours that Bytewax wrapped in its own, if there is one."""
    while error is not None:
        if isinstance(error, TallyError):
            return error
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def stopping_on_signals(stop: threading.Event) -> Iterator[None]:
    """Set `stop` on SIGTERM or SIGINT, whatever the main thread is doing; a second signal ends the process.

    The main thread waits inside Bytewax, where Python's own handlers would not run. So the interpreter
    only writes a byte to a pipe, and a thread reads it.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        while received := os.read(reader, 1):
            if stop.is_set():
                os._exit(128 + received[0])
            stop.set()

    watcher = threading.Thread(target=watch, name="signals", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writer)
        watcher.join()
        os.close(reader)
