"""Fan-out of one marketdata process, beside what grpcio alone can send in the same run.

`python -m benchmarks.fanout` prints one JSON line a measurement. To saturation, events in bursts,
the next when every subscriber of a book has the last, so that neither side waits for the other:
- ceiling: a bare grpc.aio server that sends one ready-made message over and over to every stream;
- marketdata: the service's own path, StreamOrderBook, each event in a message of its own;
- batched: the same with the usual bound on messages, so that one carries many events, as it does
  for subscribers who are behind;
- subscriptions, subscriptions_batched: both again by StreamMarketData.

Then at a rate that one process keeps up with (`benchmarks/fanout_latency.py`): latency by number of
subscribers beside a bare server that sends the same events, memory of a subscriber, and what one
client that does not read, or reads slowly, does to the others.

`server_us_per_event` is processor time, which says more than the rate where the machine has other
work. The client (`benchmarks/sink.py`) only counts. Server and client have a process each.
"""

import argparse
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import psutil
from marketprism.market.v1 import common_pb2
from marketprism.market.v1 import market_data_service_pb2 as pb

from benchmarks import fanout_latency
from benchmarks.fanout_events import EXCHANGE, symbol
from benchmarks.fanout_servers import ONE_EVENT, SERVICE, item_size
from benchmarks.sink import Sink
from services.shared.ports import free_port

__all__ = ["book_request", "server"]

_PREFIX = 5  # bytes before each gRPC message
_METHODS = {
    "ceiling": ("ceiling", "StreamOrderBook"),
    "marketdata": ("marketdata", "StreamOrderBook"),
    "subscriptions": ("marketdata", "StreamMarketData"),
    "batched": ("batched", "StreamOrderBook"),
    "subscriptions_batched": ("batched", "StreamMarketData"),
}


def book_request(method: str, number: int) -> bytes:
    """Give the encoded request for one of the books."""
    if method == "StreamOrderBook":
        request = pb.StreamOrderBookRequest(exchange=EXCHANGE, symbol=symbol(number))
        return request.SerializeToString()
    return pb.StreamMarketDataRequest(
        instruments=[f"{EXCHANGE}/{symbol(number)}"], kinds=[common_pb2.EVENT_KIND_ORDER_BOOK]
    ).SerializeToString()


@contextlib.contextmanager
def server(kind: str, **options: object) -> Iterator[tuple[psutil.Process, int]]:
    """Run a server of a kind; gives its process and its port."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.fanout_servers", kind, "--port", str(port)]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        while "ready" not in (line := process.stdout.readline()):
            if not line:
                raise SystemExit(f"the {kind} server did not start")
        yield psutil.Process(process.pid), port
    finally:
        process.terminate()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def measure(
    name: str, *, subscribers: int, books: int, burst: int, levels: int, seconds: float
) -> dict[str, object]:
    """Run a server of a kind and count what it sends."""
    kind, method = _METHODS[name]
    options = {"subscribers": subscribers, "books": books, "burst": burst, "levels": levels}
    with server(kind, **options) as (process, port):
        sink = Sink("127.0.0.1", port)
        for number in range(books):
            request = book_request(method, number)
            sink.open(subscribers // books, f"/{SERVICE}/{method}", request, f"127.0.0.1:{port}")
        sink.read(1.0)
        sent_before, cpu_before = sink.bytes, sum(process.cpu_times()[:2])
        took = sink.read(seconds)
        cpu = sum(process.cpu_times()[:2]) - cpu_before
        sent = sink.bytes - sent_before
        sink.close()
        if sink.ended or not sent:
            raise SystemExit(f"the {name} server ended {sink.ended} streams")
    size = item_size(levels)
    events = sent / (size if kind == "batched" else size + _PREFIX)
    return {
        "measured": name,
        "subscribers": subscribers,
        "books": books,
        "event_bytes": size,
        "events_per_second": round(events / took),
        "server_us_per_event": round(cpu / events * 1e6, 2),
        "megabytes_per_second": round(sent / took / 1e6, 1),
    }


def saturate(given: argparse.Namespace) -> None:
    """Measure every path to saturation, in turns, and print the best of each."""
    best: dict[str, dict[str, Any]] = {}
    for _ in range(given.rounds):
        for name in _METHODS:
            result = measure(
                name,
                subscribers=given.subscribers,
                books=given.books,
                burst=given.burst,
                levels=given.levels,
                seconds=given.seconds,
            )
            if result["events_per_second"] > best.get(name, result)["events_per_second"] or (
                name not in best
            ):
                best[name] = result
    ceiling = best["ceiling"]["events_per_second"]
    for result in best.values():
        result["of_ceiling"] = round(result["events_per_second"] / ceiling, 3)
        result["of_ceiling_by_cpu"] = round(
            best["ceiling"]["server_us_per_event"] / result["server_us_per_event"], 3
        )
        print(json.dumps(result), flush=True)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("saturation", "latency", "slow"))
    parser.add_argument("--subscribers", type=int, default=50, help="to saturation")
    parser.add_argument("--books", type=int, default=10, help="shared evenly by the subscribers")
    parser.add_argument("--levels", type=int, default=40, help="changed levels an update")
    parser.add_argument("--burst", type=int, default=200, help="events that come at once")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3, help="the best of so many counts")
    fanout_latency.add_arguments(parser)
    given = parser.parse_args()
    if item_size(given.levels) * 2 <= ONE_EVENT:
        parser.error(f"--levels {given.levels}: two such events fit into a message; give more")
    if given.only in (None, "saturation"):
        saturate(given)
    if given.only in (None, "latency"):
        fanout_latency.by_subscribers(given, server, book_request)
    if given.only in (None, "slow"):
        fanout_latency.beside_slow_clients(given, server, book_request)


if __name__ == "__main__":
    main()
