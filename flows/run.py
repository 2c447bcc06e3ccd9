"""Running a deployment's flow to the end of its input, or until it is told to stop."""

from __future__ import annotations

import faulthandler
import gc
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyarrow as pa
from bytewax._bytewax import cluster_main

from domain.ports import TallyError
from flows.start import Deployment
from telemetry.health import Phase

_GC_THRESHOLDS = (1_000_000, 20, 1_000)
"""State is millions of long-lived small objects, and hardly any garbage is cyclic; the default thresholds scan them
over and over."""

_FAULTS = (signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV)


def run(deployment: Deployment) -> None:
    """Run the flow; returns at end of input or once the sources were stopped, after the final snapshot.

    Args:
        deployment: What `flows.start` opened.

    Raises:
        TallyError: what stopped the flow. It resumes at its last snapshot.
    """
    cluster = deployment.cluster
    _die_of_faults()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    pa.set_memory_pool(pa.system_memory_pool())
    vitals = deployment.observer.vitals
    vitals.enter(Phase.RUNNING)
    try:
        cluster_main(
            deployment.flow,
            list(cluster.addresses),
            cluster.process,
            epoch_interval=deployment.epoch_interval,
            recovery_config=deployment.recovery,
            worker_count_per_proc=deployment.workers,
        )
    except BaseException as error:
        cause = _tally_error(error) or _unsaved(error, deployment)
        if cause is None and cluster.processes > 1 and type(error).__name__ == "PanicException":
            cause = TallyError(
                f"process {cluster.process} lost touch with another process of the flow ({error}): it ended, or cannot "
                "be reached at its address. Start all processes again; they resume at the last snapshot."
            )
        if cause is None:
            raise
        raise cause from error
    finally:
        vitals.enter(Phase.ENDING)
    deployment.course.over = True
    process = deployment.course.stopped_by
    if process is not None:
        raise TallyError(f"process {process} was told to stop, so this one has ended with it: start both to go on")


def _die_of_faults() -> None:
    """Let a fault in native code end the process with a traceback, so that a supervisor can start it again.

    chDB installs handlers that wait for a thread which only a server has: the process would hang for good.
    """
    faulthandler.disable()
    if threading.current_thread() is threading.main_thread():
        for number in _FAULTS:
            signal.signal(number, signal.SIG_DFL)
    if sys.__stderr__ is not None:
        faulthandler.enable(sys.__stderr__)


def _tally_error(error: BaseException | None) -> TallyError | None:
    """The error of ours that Bytewax wrapped in its own, if there is one."""
    while error is not None:
        if isinstance(error, TallyError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _unsaved(error: BaseException, deployment: Deployment) -> TallyError | None:
    """What it means that Bytewax could not write the saved state, if that is the error; it gives text only."""
    found = re.search(r'SqliteFailure\(.*Some\("([^"]*)"\)', str(error))
    if found is None:
        return None
    return TallyError(
        f"the saved state in {deployment.recovery.db_dir} could not be written: {found[1]}. Nothing is lost: see that "
        "the disk has space, and that the directory may be written to; the next run goes on at the last snapshot."
    )


@contextmanager
def stopping_on_signals(stop: threading.Event, told: Callable[[bool], None] = lambda at_once: None) -> Iterator[None]:
    """Set `stop` on SIGTERM or SIGINT, whatever the main thread is doing; a second signal ends the process.

    The main thread waits inside Bytewax, where Python's own handlers would not run. So the interpreter
    only writes a byte to a pipe, and a thread reads it.

    Args:
        stop: What the sources look at.
        told: Called from that thread on each signal, before it has its effect; with True if it is the second.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        while received := os.read(reader, 1):
            at_once = stop.is_set()
            try:
                told(at_once)
            finally:
                if at_once:
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
