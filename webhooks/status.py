"""Metrics and health of `tally webhooks` over HTTP, like those of the flow, if `TALLY_METRICS_PORT` is set."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from config.settings import Settings
from telemetry import catalogue
from telemetry.health import Verdict
from telemetry.recorder import Recorder, Sample
from telemetry.server import StatusServer
from webhooks.deliverer import Standing
from webhooks.service import Service


@contextmanager
def serving(settings: Settings, service: Service) -> Iterator[None]:
    """Serve `/metrics`, `/healthz` and `/readyz` inside the block, if the settings say where.

    `/healthz` fails when the service has not gone round for `TALLY_HEALTH_STUCK_SECONDS`; `/readyz` also while it is
    no member of its group. An endpoint that fails makes neither fail: that is for an alert on its metrics.

    Raises:
        TallyError: the address cannot be used.
    """
    if settings.metrics_port is None:
        yield
        return

    def alive() -> Verdict:
        still = time.monotonic() - service.turned_at
        stuck = still > settings.health_stuck_seconds
        return Verdict((f"nothing was done for {still:.0f} s",) if stuck else ())

    def ready() -> Verdict:
        absent = () if service.is_member else ("it is no member of its Kafka group",)
        return Verdict((*alive().reasons, *absent))

    recorder = _recorder(lambda: service.standing)
    with StatusServer(settings.metrics_host, settings.metrics_port, metrics=recorder.text, alive=alive, ready=ready):
        yield


def _recorder(standing: Callable[[], dict[str, Standing]]) -> Recorder:
    def by_endpoint(value: Callable[[Standing], float]) -> Callable[[], list[Sample]]:
        return lambda: [((name,), value(one)) for name, one in standing().items()]

    def attempts() -> Iterator[Sample]:
        for name, one in standing().items():
            yield (name, "delivered"), one.delivered
            yield (name, "failed"), one.failed_attempts

    looked_up = {
        catalogue.WEBHOOK_ATTEMPTS: attempts,
        catalogue.WEBHOOK_DEAD: by_endpoint(lambda one: one.dead_letters),
        catalogue.WEBHOOK_WAITING: by_endpoint(lambda one: one.waiting),
        catalogue.WEBHOOK_FAILING: by_endpoint(lambda one: one.failing_seconds),
    }
    return Recorder(tuple(looked_up), looked_up)
