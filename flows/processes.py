"""The processes that run one flow: who this one is, its place among them, and that they stop together."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from config.redis_client import redis_options
from config.settings import Settings
from domain.ports import TallyError
from stores.lease import Lease
from stores.rendezvous import Rendezvous
from telemetry.plain import shown


@dataclass(frozen=True, slots=True)
class Cluster:
    """One process among those that run a flow together."""

    process: int
    addresses: tuple[str, ...]
    """host:port of every process, in their order; empty for a process alone."""

    @property
    def processes(self) -> int:
        return max(1, len(self.addresses))


ALONE = Cluster(0, ())


class Course:
    """How far a run has come, for the threads that may end it."""

    stopped_by: int | None = None
    """Which other process was told to stop, so that this one has to."""
    over: bool = False
    """The flow has ended: nothing can be lost any more, whoever is gone."""


def end_at_once(error: TallyError) -> None:
    """End this process without a flush, as a crash would: another instance has taken its place."""
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{shown(f'tally: {error}')}\n".encode())
    os._exit(1)


def join(
    settings: Settings,
    cluster: Cluster,
    stop: threading.Event,
    course: Course,
    lost: Callable[[TallyError], None],
    opened: ExitStack,
) -> Rendezvous | None:
    """Take this process's place in the deployment; None where the data directory's lock stands for it.

    Args:
        settings: Where Redis is.
        cluster: This process, and those that it starts with.
        stop: Set when any of them is told to stop; once it is set, all are.
        course: Says afterwards which one that was, if it was another.
        lost: Called from another thread if the place is lost.
        opened: Gives the place up in the end.

    Raises:
        TallyError: somebody else has this place, or Redis gives no answer.
    """
    if settings.redis_url is None:
        return None
    lease = Lease(
        settings.redis_url.get_secret_value(),
        process=cluster.process,
        seconds=settings.lease_seconds,
        wait_seconds=settings.redis_wait_seconds,
        lost=lambda error: None if course.over else lost(error),
        options=redis_options(settings),
    )
    opened.callback(lease.close)
    lease.acquire()

    def stopping(process: int) -> None:
        if process != cluster.process and not stop.is_set():
            course.stopped_by = process
            stop.set()

    rendezvous = Rendezvous(
        lease, processes=cluster.processes, wait_seconds=settings.start_wait_seconds, stopping=stopping
    )
    if cluster.processes > 1:
        _tell_the_others(stop, course, rendezvous)
    return rendezvous


def _tell_the_others(stop: threading.Event, course: Course, rendezvous: Rendezvous) -> None:
    """Ask the other processes to end once this one is told to: none can end without them."""

    def wait() -> None:
        stop.wait()
        if course.stopped_by is None:
            with suppress(TallyError):  # then there is no start that could be stopped
                rendezvous.stop()

    threading.Thread(target=wait, name="stop", daemon=True).start()
