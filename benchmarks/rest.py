"""REST requests a second through the gateway, beside the bare transcoder path.

The bare path is a second Envoy with nothing but the JSON transcoder and the router, in front of the
same marketdata process; both are loaded in turn by the same client. The difference is what the
gateway adds: envelope, request ids, access log, limits, health, CORS.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import psutil
import uvloop

from services.shared.ports import free_port
from services.shared.process import find_binary
from tests.e2e.mesh import Mesh, running_mesh, wait_for

_PATH = "/api/v1/orderbook/binance/BTC-USDT?depth=5"
_DESCRIPTORS = Path(__file__).parent.parent / "gen" / "descriptors" / "marketprism.binpb"


class _Client(asyncio.Protocol):
    """One keep-alive connection that asks again as soon as it is answered."""

    def __init__(self, request: bytes, counts: list[int]) -> None:
        self._request = request
        self._counts = counts
        self._buffer = b""
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's
        self._transport = cast("asyncio.WriteTransport", transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self._buffer.lower().find(b"content-length:", 0, head)
        length = int(self._buffer[at + 15 : self._buffer.find(b"\r", at)])
        if len(self._buffer) < head + 4 + length:
            return
        self._counts[0 if self._buffer.startswith(b"HTTP/1.1 200") else 1] += 1
        self._buffer = b""
        assert self._transport is not None
        self._transport.write(self._request)


async def _load(address: str, connections: int, seconds: float) -> float:
    host, port = address.rsplit(":", 1)
    counts = [0, 0]
    request = f"GET {_PATH} HTTP/1.1\r\nHost: {address}\r\n\r\n".encode()
    loop = asyncio.get_running_loop()
    clients = [
        (await loop.create_connection(lambda: _Client(request, counts), host, int(port)))[0]
        for _ in range(connections)
    ]
    before, began = counts[0], time.monotonic()
    await asyncio.sleep(seconds)
    rate = (counts[0] - before) / (time.monotonic() - began)
    for client in clients:
        client.close()
    if counts[1]:
        raise SystemExit(f"{counts[1]} answers of {address} were not 200: the figures mean nothing")
    return rate


def _bare_config(port: int, upstream: dict[str, object], concurrency_admin: int) -> str:
    """Envoy's shortest configuration that transcodes MarketDataService."""
    filters = [
        {
            "name": "transcoder",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http."
                "grpc_json_transcoder.v3.GrpcJsonTranscoder",
                "proto_descriptor": str(_DESCRIPTORS),
                "services": ["marketprism.market.v1.MarketDataService"],
                "convert_grpc_status": True,
                "print_options": {
                    "always_print_primitive_fields": True,
                    "preserve_proto_field_names": True,
                },
            },
        },
        {
            "name": "router",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
            },
        },
    ]
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network."
        "http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bare",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "marketdata"}}],
                }
            ]
        },
        "http_filters": filters,
    }
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    options = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return json.dumps(
        {
            "admin": {
                "address": {
                    "socket_address": {"address": "127.0.0.1", "port_value": concurrency_admin}
                }
            },
            "static_resources": {
                "listeners": [
                    {
                        "name": "bare",
                        "address": address,
                        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
                    }
                ],
                "clusters": [
                    {
                        "name": "marketdata",
                        "connect_timeout": "1s",
                        "typed_extension_protocol_options": {
                            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                                "@type": options,
                                "explicit_http_config": {"http2_protocol_options": {}},
                            }
                        },
                        "load_assignment": {
                            "cluster_name": "marketdata",
                            "endpoints": [
                                {
                                    "lb_endpoints": [
                                        {
                                            "endpoint": {
                                                "address": {
                                                    "socket_address": {
                                                        "address": upstream["host"],
                                                        "port_value": upstream["grpc_port"],
                                                    }
                                                }
                                            }
                                        }
                                    ]
                                }
                            ],
                        },
                    }
                ],
            },
        }
    )


@contextlib.contextmanager
def _bare_envoy(mesh: Mesh, directory: Path) -> Iterator[tuple[str, int]]:
    port, admin = free_port(), free_port()
    config = directory / "bare.json"
    config.write_text(_bare_config(port, mesh.registered("marketdata"), admin))
    with (directory / "bare.log").open("wb") as log:
        process = subprocess.Popen(
            [
                str(find_binary("envoy")), "--config-path", str(config), "--use-dynamic-base-id",
                "--concurrency", "2", "--log-level", "warning",
            ],
            stdout=log,
            stderr=log,
        )  # fmt: skip
    try:
        wait_for(
            lambda: asyncio.run(_load(f"127.0.0.1:{port}", 1, 0.2)) > 0, "the bare Envoy answers"
        )
        yield f"127.0.0.1:{port}", process.pid
    finally:
        process.terminate()
        process.wait(timeout=15)


def _cpu(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def main(arguments: list[str] | None = None) -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="marketprism-bench-") as name:
        directory = Path(name)
        with running_mesh(directory, "--simulated", "--exchanges", "binance", seconds=120) as mesh:
            wait_for(mesh.books_in_step, "every book is in step", 60)
            with _bare_envoy(mesh, directory) as (bare, bare_pid):
                marketdata = mesh.pid("marketdata")
                paths = {
                    "bare transcoder": (bare, bare_pid),
                    "gateway": (mesh.address("all"), mesh.pid_of_binary("gateway", "envoy")),
                }
                rates: dict[str, list[float]] = {what: [] for what in paths}
                costs: dict[str, list[float]] = {what: [] for what in paths}
                for _ in range(options.rounds):
                    for what, (address, pid) in paths.items():
                        before = _cpu(pid) + _cpu(marketdata)
                        rate = uvloop.run(_load(address, options.connections, options.seconds))
                        used = _cpu(pid) + _cpu(marketdata) - before
                        rates[what].append(rate)
                        costs[what].append(used / (rate * options.seconds) * 1e6)
                        print(
                            f"  {what}: {rate:,.0f} requests/s, {costs[what][-1]:.0f} us of "
                            "processor time each",
                            flush=True,
                        )
    medians = {what: statistics.median(values) for what, values in rates.items()}
    pairs = zip(rates["gateway"], rates["bare transcoder"], strict=True)
    ratio = statistics.median(ours / floor for ours, floor in pairs)
    print(f"\nGET {_PATH}, {options.connections} connections, median of {options.rounds}:")
    for what, median in medians.items():
        cost = statistics.median(costs[what])
        print(
            f"  {what:16} {median:>8,.0f} requests/s  {cost:4.0f} us of Envoy and marketdata each"
        )
    by_cost = statistics.median(costs["bare transcoder"]) / statistics.median(costs["gateway"])
    print(f"  gateway over bare, median of pairs: {ratio:.0%}; by processor time {by_cost:.0%}")


if __name__ == "__main__":
    main()
