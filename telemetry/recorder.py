"""The metrics of one process: what is counted as it happens, and what is looked up when somebody asks.

For any number of threads. Labels are given in the order in which the metric lists them. Recording costs about 2 µs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from telemetry.catalogue import Kind, Metric

Sample = tuple[tuple[str, ...], float]
"""Label values, and what they stand at."""
Looked = Callable[[], Iterable[Sample]]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Recorder:
    """A list of metrics in a registry of its own, beside those of the process (memory, CPU, files).

    Args:
        metrics: What may be recorded.
        looked_up: Counters and gauges that stand at what a function says when somebody asks (in the asker's thread).
    """

    def __init__(self, metrics: Sequence[Metric], looked_up: Mapping[Metric, Looked] | None = None) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        looked_up = looked_up or {}
        assert looked_up.keys() <= set(metrics)
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._kept = {metric: self._make(metric) for metric in metrics if metric not in looked_up}
        self._registry.register(_Looked(looked_up))

    def add(self, metric: Metric, amount: float, *labels: str) -> None:
        """Let a counter grow."""
        self._of(metric, labels).inc(amount)

    def set(self, metric: Metric, value: float, *labels: str) -> None:
        """Let a gauge stand at a value."""
        self._of(metric, labels).set(value)

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """Count a value into its bucket."""
        self._of(metric, labels).observe(value)

    def value(self, metric: Metric, *labels: str) -> float:
        """What a counter or gauge stands at; 0 if nothing was recorded with these labels."""
        return self._registry.get_sample_value(metric.name, dict(zip(metric.labels, labels, strict=True))) or 0.0

    def text(self) -> bytes:
        """Everything in Prometheus's text format (`CONTENT_TYPE`)."""
        return generate_latest(self._registry)

    def _of(self, metric: Metric, labels: tuple[str, ...]) -> Any:
        found = self._kept[metric]
        return found.labels(*labels) if metric.labels else found

    def _make(self, metric: Metric) -> Any:
        match metric.kind:
            case Kind.COUNTER:
                return Counter(metric.name, metric.help, metric.labels, registry=self._registry)
            case Kind.GAUGE:
                return Gauge(metric.name, metric.help, metric.labels, registry=self._registry)
            case Kind.HISTOGRAM:
                return Histogram(
                    metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=self._registry
                )


class _Looked(Collector):
    def __init__(self, looked: Mapping[Metric, Looked]) -> None:
        self._looked = looked

    def describe(self) -> Iterable[Any]:
        """Nothing: else registering would look everything up before there is anything."""
        return []

    def collect(self) -> Iterable[Any]:
        for metric, samples in self._looked.items():
            make = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
            family = make(metric.name, metric.help, labels=metric.labels)
            for labels, value in samples():
                family.add_metric(labels, value)
            yield family
