"""Metrics and traces of one service: a registry and a tracer of its own, nothing global."""

import asyncio
from collections.abc import Sequence
from importlib import metadata
from typing import Any, TypeVar

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SpanExporter,
)
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

from services.shared.settings import TelemetrySettings

__all__ = ["LATENCY_BUCKETS", "Metrics", "make_tracer_provider", "package_version"]

METRIC_NAMESPACE = "marketprism"

_M = TypeVar("_M", Counter, Gauge, Histogram)

LATENCY_BUCKETS = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
"""Histogram buckets for latencies, seconds."""


def package_version() -> str:
    """Give the version of MarketPrism, `0.0.0+unknown` when it is not installed."""
    try:
        return metadata.version("marketprism")
    except metadata.PackageNotFoundError:
        return "0.0.0+unknown"


class Metrics:
    """The metrics of one service; names get the prefix `marketprism_`.

    Labels have few values each (an exchange, a kind, a code): never an id, an address or a symbol
    without bound. Take a child once (`counter.labels("binance")`) where it counts often.
    """

    def __init__(self, service: str, version: str = "") -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self._made: dict[str, tuple[object, Counter | Gauge | Histogram]] = {}
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.gauge(
            "service_info", "Which service this is; always 1.", ["service", "version"]
        ).labels(service, version).set(1)

    def counter(self, name: str, documentation: str, labels: Sequence[str] = ()) -> Counter:
        """Give `marketprism_<name>_total`, the same one for the same name."""
        return self._get(Counter, name, documentation, labels)

    def gauge(self, name: str, documentation: str, labels: Sequence[str] = ()) -> Gauge:
        """Give `marketprism_<name>`; `.set_function(f)` reads the value when scraped."""
        return self._get(Gauge, name, documentation, labels)

    def histogram(
        self,
        name: str,
        documentation: str,
        labels: Sequence[str] = (),
        buckets: Sequence[float] = LATENCY_BUCKETS,
    ) -> Histogram:
        """Give `marketprism_<name>`, by default with buckets for latencies in seconds."""
        return self._get(Histogram, name, documentation, labels, buckets=buckets)

    def watch_tasks(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tell at each scrape how many tasks the event loop has; growth is a leak."""
        self.gauge("asyncio_tasks", "Unfinished tasks of the event loop.").set_function(
            lambda: len(asyncio.all_tasks(loop))
        )

    def _get(
        self, kind: type[_M], name: str, documentation: str, labels: Sequence[str], **more: Any
    ) -> _M:
        signature = (kind, tuple(labels))
        known = self._made.get(name)
        if known is None:
            metric = kind(
                name,
                documentation,
                labels,
                namespace=METRIC_NAMESPACE,
                registry=self.registry,
                **more,
            )
            self._made[name] = (signature, metric)
            return metric
        if known[0] != signature or not isinstance(known[1], kind):
            raise ValueError(f"metric {name!r} exists already, with another kind or other labels")
        return known[1]


def make_tracer_provider(
    settings: TelemetrySettings,
    service: str,
    version: str,
    exporter: SpanExporter | None = None,
) -> TracerProvider | None:
    """Make the tracer provider of one service, or None when tracing is off.

    `exporter` replaces the one that the settings name: any of OpenTelemetry's, or one in memory.
    The owner calls `shutdown()` on the provider at its stop.
    """
    if not settings.enabled:
        return None
    if exporter is None and settings.exporter == "console":
        exporter = ConsoleSpanExporter()
    provider = TracerProvider(
        resource=Resource.create({"service.name": service, "service.version": version}),
        shutdown_on_exit=False,
    )
    if exporter is not None:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider
