"""Reads nats-server's monitoring (`/varz`, `/jsz`) and shows it as Prometheus metrics.

Endpoints: https://docs.nats.io/running-a-nats-service/nats_admin/monitoring
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import aiohttp
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

__all__ = ["Monitor", "ServerReading", "StreamReading"]

_STREAM_METRICS = (
    ("messages", "Messages held by a stream."),
    ("bytes", "Bytes held by a stream."),
    ("first_sequence", "Oldest sequence of a stream."),
    ("last_sequence", "Newest sequence of a stream."),
    ("consumers", "Consumers of a stream."),
)
_TIMEOUT = aiohttp.ClientTimeout(total=5.0)


@dataclass(frozen=True, slots=True)
class StreamReading:
    """What one stream held at a reading."""

    name: str
    """Its name."""

    messages: int
    """Messages held."""

    bytes: int
    """Bytes held."""

    first_sequence: int
    """Sequence of the oldest message."""

    last_sequence: int
    """Sequence of the newest message."""

    consumers: int
    """Its consumers."""


@dataclass(frozen=True, slots=True)
class ServerReading:
    """What one nats-server said of itself."""

    taken: float
    """When, on the monotonic clock, seconds."""

    varz: dict[str, Any]
    """The answer of `/varz`."""

    jsz: dict[str, Any]
    """The answer of `/jsz`, without its accounts."""

    streams: tuple[StreamReading, ...]
    """The streams of all accounts by name."""


class Monitor:
    """Keeps the newest reading of one server; a Prometheus collector of what it says.

    `reading` is None while the server does not answer.
    """

    def __init__(self, url: Callable[[], str], interval: float) -> None:
        self._url = url
        self._interval = interval
        self.reading: ServerReading | None = None
        self.last_error = "not read yet"

    async def run(self) -> None:
        """Read again and again, until cancelled."""
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
            while True:
                await self.read(session)
                await asyncio.sleep(self._interval)

    async def read(self, session: aiohttp.ClientSession) -> None:
        """Take one reading."""
        try:
            varz = await self._get(session, "varz")
            jsz = await self._get(session, "jsz?streams=true&limit=1024")
            self.reading = _reading(varz, jsz)
            self.last_error = ""
        except (aiohttp.ClientError, TimeoutError, KeyError, TypeError, ValueError) as error:
            self.reading = None
            self.last_error = f"{type(error).__name__}: {error}"

    async def _get(self, session: aiohttp.ClientSession, path: str) -> dict[str, Any]:
        async with session.get(f"{self._url()}/{path}") as response:
            response.raise_for_status()
            answer: dict[str, Any] = await response.json()
            return answer

    def collect(self) -> Iterable[Metric]:
        """Give the metrics of the newest reading; none while the server does not answer."""
        reading = self.reading
        up = GaugeMetricFamily("marketprism_nats_up", "1 when nats-server's monitoring answers.")
        up.add_metric([], 0 if reading is None else 1)
        yield up
        if reading is None:
            return
        yield from _server_metrics(reading.varz, reading.jsz)
        for field, documentation in _STREAM_METRICS:
            family = GaugeMetricFamily(
                f"marketprism_nats_stream_{field}", documentation, labels=["stream"]
            )
            for stream in reading.streams:
                family.add_metric([stream.name], getattr(stream, field))
            yield family


def _reading(varz: dict[str, Any], jsz: dict[str, Any]) -> ServerReading:
    streams = [
        StreamReading(
            name=str(stream["name"]),
            messages=int(stream["state"]["messages"]),
            bytes=int(stream["state"]["bytes"]),
            first_sequence=int(stream["state"]["first_seq"]),
            last_sequence=int(stream["state"]["last_seq"]),
            consumers=int(stream["state"]["consumer_count"]),
        )
        for account in jsz.get("account_details") or ()
        for stream in account.get("stream_detail") or ()
    ]
    return ServerReading(
        taken=time.monotonic(),
        varz=varz,
        jsz={key: value for key, value in jsz.items() if key != "account_details"},
        streams=tuple(sorted(streams, key=lambda stream: stream.name)),
    )


def _server_metrics(varz: dict[str, Any], jsz: dict[str, Any]) -> Iterable[Metric]:
    for source, key, name, documentation in (
        (varz, "connections", "connections", "Clients connected to nats-server."),
        (varz, "subscriptions", "subscriptions", "Subscriptions at nats-server."),
        (varz, "mem", "memory_bytes", "Resident memory of nats-server, bytes."),
        (varz, "cpu", "cpu_percent", "Processor use of nats-server, 100 a core."),
        (jsz, "storage", "storage_bytes", "JetStream bytes on disk."),
        (jsz, "memory", "memory_storage_bytes", "JetStream bytes in memory."),
        (jsz, "streams", "streams", "Streams."),
        (jsz, "consumers", "consumers", "Consumers."),
        (jsz, "messages", "messages", "Messages in all streams."),
    ):
        gauge = GaugeMetricFamily(f"marketprism_nats_{name}", documentation)
        gauge.add_metric([], float(source.get(key, 0)))
        yield gauge
    for key, name, documentation in (
        ("in_msgs", "in_messages", "Messages that nats-server received."),
        ("out_msgs", "out_messages", "Messages that nats-server sent."),
        ("in_bytes", "in_bytes", "Bytes that nats-server received."),
        ("out_bytes", "out_bytes", "Bytes that nats-server sent."),
        ("slow_consumers", "slow_consumers", "Clients cut off for reading too slowly."),
    ):
        counter = CounterMetricFamily(f"marketprism_nats_{name}", documentation)
        counter.add_metric([], float(varz.get(key, 0)))
        yield counter
