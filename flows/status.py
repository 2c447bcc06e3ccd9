"""Whoever runs the flow asks here: metrics and health over HTTP, and services that are asked whether they answer.

Without `TALLY_METRICS_PORT` nothing listens and nobody is asked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from config.settings import Settings
from flows.observed import Observer
from telemetry.health import Limits, alive, ready
from telemetry.server import StatusServer

ASK_SECONDS = 5.0
"""How often a service is asked."""


class Status:
    """Of one process, for as long as `serving` is open."""

    def __init__(self, settings: Settings, observer: Observer) -> None:
        self.limits = Limits(settings.health_stuck_seconds, settings.epoch_seconds)
        self._observer = observer
        self._listens = settings.metrics_port is not None
        vitals = observer.vitals
        self.server = StatusServer(
            settings.metrics_host,
            settings.metrics_port or 0,
            metrics=observer.recorder.text,
            alive=lambda: alive(vitals.facts(), self.limits),
            ready=lambda: ready(vitals.facts(), self.limits),
        )

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Listen, if the settings say where.

        Raises:
            TallyError: the address cannot be used.
        """
        if not self._listens:
            yield
            return
        with self.server:
            yield

    @contextmanager
    def asking(self, service: str, ask: Callable[[], object]) -> Iterator[None]:
        """Ask a service now and then whether it answers; it has not if `ask` raises or does not return."""

        def ask_once() -> None:
            ask()
            self._observer.vitals.answered(service)

        with self._repeating(f"ask-{service}", ask_once):
            if self._listens:
                self._observer.vitals.answers.setdefault(service, None)
            yield

    @contextmanager
    def measuring(self, ends: Callable[[], Iterable[tuple[int, int]]]) -> Iterator[None]:
        """Ask now and then where the partitions end: a source that silently stopped would not know."""
        with self._repeating("measure-lag", lambda: self._observer.vitals.measured(ends())):
            yield

    @contextmanager
    def _repeating(self, name: str, work: Callable[[], object]) -> Iterator[None]:
        if not self._listens:
            yield
            return
        stop = threading.Event()

        def repeat() -> None:
            while not stop.is_set():
                with suppress(Exception):  # whatever it is, there was no answer
                    work()
                stop.wait(ASK_SECONDS)

        thread = threading.Thread(target=repeat, name=name, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(ASK_SECONDS)
