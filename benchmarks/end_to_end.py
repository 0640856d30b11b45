"""Latency from the socket read of a venue frame to a subscriber, at a chosen frame rate.

Runs a whole mesh of real processes on a simulated venue and subscribes to several books, half of
them through Envoy and half straight at marketdata, in this process. The latency of an update is
its arrival here less its `receive_time`, both of the same machine's clock. Beside it, the floor:
the same number of messages of the same size from a bare grpc.aio server through no mesh at all
would be the time this process itself takes to read them, which is measured and printed too.
"""

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

import grpc
import psutil
import uvloop
from marketprism.market.v1 import market_data_service_pb2 as pb

from tests.e2e.mesh import Mesh, running_mesh, wait_for

_STREAM = "/marketprism.market.v1.MarketDataService/StreamOrderBook"


class _Latencies:
    def __init__(self) -> None:
        self.values: list[float] = []
        self.messages = 0

    def describe(self) -> str:
        values = sorted(self.values)
        if not values:
            return "no updates"

        def at(share: float) -> float:
            return values[min(int(len(values) * share), len(values) - 1)] * 1000

        return (
            f"{len(values):>8,} updates  p50 {at(0.5):7.2f} ms  p90 {at(0.9):7.2f} ms  "
            f"p99 {at(0.99):7.2f} ms  p99.9 {at(0.999):7.2f} ms  max {values[-1] * 1000:7.2f} ms"
        )


async def _subscribe(address: str, symbol: str, into: _Latencies, seconds: float) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_stream(
            _STREAM,
            request_serializer=pb.StreamOrderBookRequest.SerializeToString,
            response_deserializer=pb.StreamOrderBookResponse.FromString,
        )(pb.StreamOrderBookRequest(exchange="binance", symbol=symbol))
        end = time.monotonic() + seconds
        # A new subscriber gets a recent snapshot and the updates since: those are not late.
        began = time.time_ns()
        async for response in call:
            now = time.time_ns()
            into.messages += 1
            for event in response.events:
                if event.WhichOneof("event") == "order_book_update":
                    time_read = event.order_book_update.receive_time
                    received = time_read.seconds * 1_000_000_000 + time_read.nanos
                    if received > began:
                        into.values.append((now - received) / 1e9)
            if time.monotonic() > end:
                call.cancel()
                return


def _processes(mesh: Mesh) -> dict[str, psutil.Process]:
    found = {}
    for child in mesh.record()["children"]:
        if child["pid"]:
            process = psutil.Process(child["pid"])
            found[child["name"]] = process
            for below in process.children(recursive=True):
                found[f"{child['name']}: {below.name()}"] = below
    return found


def main(arguments: list[str] | None = None) -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--symbols", type=int, default=50)
    parser.add_argument("--rate", type=float, default=10.0, help="depth frames/s a symbol")
    parser.add_argument("--trade-rate", type=float, default=2.0)
    parser.add_argument("--subscriptions", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="marketprism-bench-") as name, running_mesh(
        Path(name),
        "--simulated", "--exchanges", "binance",
        "--symbol-count", str(options.symbols),
        "--depth-rate", str(options.rate),
        "--trade-rate", str(options.trade_rate),
        seconds=120,
    ) as mesh:  # fmt: skip
        wait_for(mesh.books_in_step, "every book is in step", 120)
        statuses = mesh.get("/api/v1/orderbook/status?page_size=1000")["data"]["statuses"]
        symbols = [each["symbol"] for each in statuses]
        marketdata = mesh.registered("marketdata")
        direct_address = f"{marketdata['host']}:{marketdata['grpc_port']}"
        through, direct = _Latencies(), _Latencies()

        async def run() -> None:
            async with asyncio.TaskGroup() as group:
                for index in range(options.subscriptions):
                    symbol = symbols[(index // 2) % len(symbols)]
                    address, into = (
                        (mesh.address("all"), through)
                        if index % 2 == 0
                        else (direct_address, direct)
                    )
                    group.create_task(_subscribe(address, symbol, into, options.seconds))

        frames = _frames(mesh)
        cpu = {name: sum(p.cpu_times()[:2]) for name, p in _processes(mesh).items()}
        began = time.monotonic()
        own = time.process_time()
        uvloop.run(run())
        elapsed = time.monotonic() - began
        own = time.process_time() - own
        rate = (_frames(mesh) - frames) / elapsed
        print(f"\n{rate:,.0f} venue frames/s on {len(symbols)} books for {elapsed:.0f} s")
        print(f"  through Envoy   {through.describe()}")
        print(f"  direct gRPC     {direct.describe()}")
        print(
            f"  this reader itself: {own / max(through.messages + direct.messages, 1) * 1e6:.0f}"
            " us of processor time a message"
        )
        for process_name, process in _processes(mesh).items():
            used = sum(process.cpu_times()[:2]) - cpu.get(process_name, 0.0)
            memory = process.memory_info().rss / 1024 / 1024
            print(f"  {process_name:24} {used / elapsed * 100:5.1f} % of a core  {memory:6.0f} MiB")


def _frames(mesh: Mesh) -> int:
    connections = mesh.get("/api/v1/collector/status", "collector")["data"]["connections"]
    return sum(int(each["frames"]) for each in connections)


if __name__ == "__main__":
    main()
