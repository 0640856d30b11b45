"""Latency of fan-out at a rate that one process keeps up with, and what disturbs it.

An event's latency is from when it was put into the live state to when the client read it off its
socket: both are processes of this machine, with one clock. Subscribers have 50 streams a
connection. The events of the books come in turns; each goes to all subscribers of its book at once,
so that the last of them waits for the sending of all.
"""

import argparse
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import psutil
from marketprism.market.v1 import market_data_service_pb2 as pb

from benchmarks.fanout_servers import SERVICE, item_size
from benchmarks.sink import Sink, read_all

__all__ = ["add_arguments", "beside_slow_clients", "by_subscribers"]

_STREAMS = 50  # a connection
_SAMPLES = 2000  # a second
_METHOD = "StreamMarketData"
_SETTLE_SECONDS = 2.0
_WINDOW = 65_535
_CRAWL_BYTES = 2048
_CRAWL_SECONDS = 0.1

Server: TypeAlias = Callable[..., AbstractContextManager[tuple[psutil.Process, int]]]
Request: TypeAlias = Callable[[str, int], bytes]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of these measurements."""
    parser.add_argument("--at", type=int, nargs="+", default=[100, 1000, 2000], metavar="N")
    parser.add_argument(
        "--deliveries", type=int, default=10_000, help="events to all subscribers, a second"
    )
    parser.add_argument("--latency-seconds", type=float, default=10.0)


class _Latencies:
    """Latencies of sampled events, seconds."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.events = 0

    def sample(self, message: bytes, now: int) -> None:
        for event in pb.StreamMarketDataResponse.FromString(message).events:
            stamp = event.order_book_update.receive_time
            if stamp.seconds:
                self.seconds.append((now - stamp.ToNanoseconds()) / 1e9)

    def clear(self) -> None:
        self.seconds.clear()

    def at(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return round(ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e3, 2)

    def figures(self) -> dict[str, object]:
        return {
            "samples": len(self.seconds),
            "p50_ms": self.at(0.5),
            "p99_ms": self.at(0.99),
            "p999_ms": self.at(0.999),
        }


def _open(
    port: int, subscribers: int, books: int, latencies: _Latencies, every: int, request: Request
) -> list[Sink]:
    sinks = []
    for first in range(0, subscribers, _STREAMS):
        sink = Sink("127.0.0.1", port, every=every, sample=latencies.sample)
        for number in range(first, min(first + _STREAMS, subscribers)):
            sink.open(1, f"/{SERVICE}/{_METHOD}", request(_METHOD, number % books), "bench")
        sinks.append(sink)
        # Opened at once, thousands of streams would wait for each other's beginning.
        read_all(sinks, 0.1)
    return sinks


def _measure(
    kind: str, subscribers: int, given: argparse.Namespace, server: Server, request: Request
) -> dict[str, object]:
    books = min(given.books, subscribers)
    rate = given.deliveries * books / subscribers
    every = max(1, given.deliveries // _SAMPLES)
    latencies = _Latencies()
    with server(kind, books=books, levels=given.levels, rate=rate) as (process, port):
        idle = process.memory_info().rss
        sinks = _open(port, subscribers, books, latencies, every, request)
        read_all(sinks, _SETTLE_SECONDS)
        # A server that is too busy to begin streams refuses some: they are not counted.
        refused = sum(s.ended for s in sinks)
        latencies.clear()
        frames, cpu = sum(s.frames for s in sinks), sum(process.cpu_times()[:2])
        took = read_all(sinks, given.latency_seconds)
        cpu = sum(process.cpu_times()[:2]) - cpu
        frames = sum(s.frames for s in sinks) - frames
        memory = (process.memory_info().rss - idle) / (subscribers - refused) / 1024
        ended = sum(s.ended for s in sinks) - refused
        for sink in sinks:
            sink.close()
    if ended or not latencies.seconds:
        raise SystemExit(f"the {kind} server ended {ended} streams")
    return {
        "measured": f"latency_{'subscriptions' if kind == 'paced' else kind}",
        "subscribers": subscribers - refused,
        "events_per_second": round(rate),
        "event_bytes": item_size(given.levels),
        "messages_per_second": round(frames / took),
        **latencies.figures(),
        "server_share_of_core": round(cpu / took, 3),
        "kib_per_subscriber": round(memory, 1),
    }


def by_subscribers(given: argparse.Namespace, server: Server, request: Request) -> None:
    """Measure the service and a bare server at each number of subscribers, in turns."""
    for subscribers in given.at:
        for kind in ("bare", "paced"):
            print(json.dumps(_measure(kind, subscribers, given, server, request)), flush=True)


def beside_slow_clients(given: argparse.Namespace, server: Server, request: Request) -> None:
    """Measure many subscribers alone, beside one that never reads, and one that crawls."""
    subscribers = sorted(given.at)[len(given.at) // 2]
    books = min(given.books, subscribers)
    rate = given.deliveries * books / subscribers
    every = max(1, given.deliveries // _SAMPLES)
    latencies = _Latencies()
    with server("paced", books=books, levels=given.levels, rate=rate) as (process, port):
        sinks = _open(port, subscribers, books, latencies, every, request)
        read_all(sinks, _SETTLE_SECONDS)
        for disturbance in ("nobody", "stalled", "crawling"):
            slow = None
            if disturbance != "nobody":
                slow = Sink("127.0.0.1", port, window=_WINDOW)
                for number in range(books):
                    slow.open(1, f"/{SERVICE}/{_METHOD}", request(_METHOD, number), "bench")
                # Until its windows are full: from then on it is behind.
                read_all([*sinks, slow], _SETTLE_SECONDS + _WINDOW * books / 850 / rate)
            before = process.memory_info().rss
            latencies.clear()
            _read_beside(slow, sinks, given.latency_seconds, crawls=disturbance == "crawling")
            figures: dict[str, Any] = {
                "measured": f"beside_{disturbance}",
                "subscribers": subscribers,
                **latencies.figures(),
                "server_grew_by_kib": round((process.memory_info().rss - before) / 1024),
            }
            if slow is not None:
                figures["slow_client_bytes"] = slow.bytes
                slow.close()
            print(json.dumps(figures), flush=True)
        for sink in sinks:
            sink.close()


def _read_beside(slow: Sink | None, sinks: list[Sink], seconds: float, *, crawls: bool) -> None:
    everyone = sinks if slow is None else [*sinks, slow]
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        read_all(everyone, _CRAWL_SECONDS if crawls else seconds)
        if crawls and slow is not None:
            slow.allow(_CRAWL_BYTES)
