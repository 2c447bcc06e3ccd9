"""Metrics: the list holds, and what Prometheus reads is what was recorded."""

from __future__ import annotations

import re
import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families

from telemetry import catalogue
from telemetry.catalogue import METRICS, Kind, Metric
from telemetry.recorder import Recorder

_NAME = re.compile(r"tally(_[a-z]+)+")
_COUNTED = ("attempts", "claims", "events", "inserts", "messages", "offsets", "rows", "signals", "totals")
_ENDINGS = {"seconds": "_seconds", "bytes": "_bytes", "Unix time": "_time_seconds", "offset": "_offset"}


def test_the_list_holds_every_metric_once_in_prometheus_form() -> None:
    assert set(METRICS) == {value for value in vars(catalogue).values() if isinstance(value, Metric)}
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert _NAME.fullmatch(metric.name), metric.name
        assert metric.help.endswith(".")
        assert metric.unit in {*_ENDINGS, *_COUNTED, ""}, metric.unit
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
        name = metric.name.removesuffix("_total")
        assert name.endswith(_ENDINGS.get(metric.unit, "")), metric.name
        assert bool(metric.buckets) == (metric.kind is Kind.HISTOGRAM)
        assert list(metric.buckets) == sorted(set(metric.buckets))


def test_what_is_recorded_is_what_prometheus_reads() -> None:
    steps = [(("decode",), 1.5), (("rate",), 0.25)]
    recorder = Recorder(METRICS, {catalogue.STEP_SECONDS: lambda: steps})
    recorder.add(catalogue.EVENTS, 3, "accepted")
    recorder.add(catalogue.EVENTS, 2, "accepted")
    recorder.set(catalogue.CATALOG, 4)
    recorder.observe(catalogue.CLAIM_SECONDS, 0.004)
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(recorder.text().decode())
        for sample in family.samples
    }
    assert found["tally_events_total", "accepted"] == recorder.value(catalogue.EVENTS, "accepted") == 5
    assert found["tally_catalog_version",] == 4
    assert found["tally_step_seconds_total", "decode"] == 1.5
    assert found["tally_claim_seconds_bucket", "0.0025"] == 0
    assert found["tally_claim_seconds_bucket", "0.005"] == found["tally_claim_seconds_bucket", "+Inf"] == 1
    assert found["process_resident_memory_bytes",] > 1_000_000
    assert not any(name.endswith("_created") for name, *_ in found)
    assert {family.name for family in text_string_to_metric_families(recorder.text().decode())} >= {
        metric.name.removesuffix("_total") for metric in METRICS
    }


def test_threads_lose_nothing() -> None:
    recorder = Recorder(METRICS)

    def record() -> None:
        for _ in range(2_000):
            recorder.add(catalogue.FLUSH_ROWS, 1, "events")

    threads = [threading.Thread(target=record) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recorder.value(catalogue.FLUSH_ROWS, "events") == 8_000


def test_wrong_labels_are_a_broken_build() -> None:
    recorder = Recorder(METRICS)
    with pytest.raises(ValueError, match="label"):
        recorder.add(catalogue.EVENTS, 1)
    with pytest.raises(KeyError):
        recorder.add(Metric("tally_other_total", Kind.COUNTER, "", ""), 1)
