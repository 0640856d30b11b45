"""What the gateway does when something dies, moves, is taken or stops."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import grpc
import psutil
import pytest
from marketprism.market.v1 import market_data_service_pb2 as market_pb2
from marketprism.market.v1 import market_data_service_pb2_grpc as market_grpc

from services.gateway.envoy import validate_config
from services.gateway.plan import Address
from services.gateway.service import GatewayService
from services.gateway.settings import CircuitBreakerSettings, ListenerSettings, RequestLimitSettings
from services.shared.errors import StartupError
from services.shared.ports import bind_socket
from tests.integration.gateway_mesh import (
    Mesh,
    base_settings,
    gateway_settings,
    running_mesh,
)
from tests.integration.gateway_upstream import MarketData, refusing_server

BOOK = "/api/v1/orderbook/venue/BTC-USDT"
REPOSITORY = Path(__file__).resolve().parents[2]


async def instance(mesh: Mesh) -> str:
    answer = await mesh.rest(BOOK)
    return str(answer.json()["data"]["order_book"]["exchange"]) if answer.status == 200 else ""


def envoy_pid(mesh: Mesh) -> int:
    assert mesh.gateway.envoy is not None
    pid = mesh.gateway.envoy.child.pid
    assert pid is not None
    return pid


async def test_a_killed_envoy_is_back_within_two_seconds(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        before = envoy_pid(mesh)
        ports = dict(mesh.gateway.ports)
        os.kill(before, 9)
        await mesh.until(lambda: not psutil.pid_exists(before), seconds=2)
        await mesh.until(mesh.serves, seconds=2)
        assert mesh.gateway.ports == ports
        assert envoy_pid(mesh) != before


async def test_an_upstream_that_is_away_is_told_and_found_again(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        service = mesh.marketdata
        port = service.grpc_port
        await service.stop()
        await mesh.until(lambda: mesh.serves(status=503))
        answer = await mesh.rest(BOOK)
        assert (answer.status, answer.error["code"]) == (503, "UNAVAILABLE")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await market_grpc.MarketDataServiceStub(mesh.channel).GetOrderBook(
                market_pb2.GetOrderBookRequest(exchange="venue", symbol="A")
            )
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "{" not in (caught.value.details() or "")

        async def told() -> bool:
            body = (await mesh.rest("/health")).json()
            return bool(body["dependencies"]["marketdata"]["status"] == "degraded")

        await mesh.until(told)
        assert (await mesh.rest("/health")).status == 200, "the gateway itself still works"
        assert (await mesh.rest("/api/v1/collector/status")).status == 200

        base = base_settings(tmp_path)
        usual = {**base.services, "marketdata": {"grpc_port": port}}
        again = base.model_validate({**base.model_dump(), "services": usual})
        async with MarketData(again, instance="again").running():
            await mesh.until(mesh.serves)
            assert await instance(mesh) == "again"


async def test_an_upstream_moves_without_a_restart(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        pid = envoy_pid(mesh)
        assert await instance(mesh) == "one"
        async with MarketData(base_settings(tmp_path), instance="two").running() as two:
            address = Address("127.0.0.1", two.grpc_port)
            assert mesh.gateway.endpoints.set("marketdata", [address])

            async def moved() -> bool:
                return await instance(mesh) == "two"

            await mesh.until(moved)
            assert not mesh.gateway.endpoints.set("marketdata", [address]), "no news, no write"
            mesh.gateway.endpoints.set("marketdata", [])
            await mesh.until(lambda: mesh.serves(status=503))
        assert envoy_pid(mesh) == pid


async def test_a_refused_stream_has_the_status_and_the_envelope(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh, refusing_server() as port:
        mesh.gateway.endpoints.set("marketdata", [Address("127.0.0.1", port)])

        async def moved() -> bool:
            return await instance(mesh) == "refusing"

        await mesh.until(moved)
        for accept in ("*/*", "text/event-stream"):
            answer = await mesh.rest(f"{BOOK}/stream", headers={"Accept": accept})
            assert answer.status == 404
            assert answer.error["code"] == "INSTRUMENT_NOT_FOUND"


async def test_a_stop_waits_for_streams_that_end_and_leaves_nothing(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        pid = envoy_pid(mesh)
        stream = await mesh.session.get(mesh.url(f"{BOOK}/stream"))
        await stream.content.readline()
        stopping = asyncio.ensure_future(mesh.gateway.stop())
        # The service ends its streams while the gateway drains: the client sees a clean end.
        await mesh.marketdata.stop()
        await stream.content.read()
        await stopping
        assert stream.content.at_eof()
        assert not psutil.pid_exists(pid)
        with pytest.raises(aiohttp.ClientError):
            await mesh.rest(BOOK)


async def test_a_stop_does_not_wait_for_streams_beyond_the_grace(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        stream = await mesh.session.get(mesh.url(f"{BOOK}/stream"))
        await stream.content.readline()
        began = asyncio.get_running_loop().time()
        await mesh.gateway.stop()
        took = asyncio.get_running_loop().time() - began
        assert took < mesh.gateway.mesh.shutdown_grace_seconds + 3
        stream.close()


async def test_a_slow_reader_costs_bounded_memory_and_nobody_else(tmp_path: Path) -> None:
    async with running_mesh(tmp_path) as mesh:
        slow = [
            await mesh.session.get(mesh.url("/api/v1/orderbook/venue/BURST/stream"))
            for _ in range(8)
        ]
        quick = await mesh.rest("/api/v1/orderbook/venue/BURST/stream")
        assert len(quick.text.splitlines()) == 64
        used = psutil.Process(envoy_pid(mesh)).memory_info().rss
        assert used < 400 * 1024 * 1024
        for each in slow:
            each.close()


async def test_more_calls_than_the_circuit_breaker_takes_are_refused_at_once(
    tmp_path: Path,
) -> None:
    breakers = CircuitBreakerSettings(max_requests=2)
    async with running_mesh(tmp_path, circuit_breakers=breakers) as mesh:
        paths = ["/api/v1/orderbook/venue/SLOW"] * 5
        answers = await asyncio.gather(*map(mesh.rest, paths))
        assert sorted(answer.status for answer in answers) == [503, 503, 503, 504, 504]
        assert await mesh.serves(), "the breaker closes again"


async def test_more_connections_than_the_limit_are_refused(tmp_path: Path) -> None:
    async with running_mesh(tmp_path, limits=RequestLimitSettings(max_connections=8)) as mesh:
        host, port = mesh.address().split(":")
        opened = [await asyncio.open_connection(host, int(port)) for _ in range(12)]
        request = f"GET {BOOK} HTTP/1.1\r\nhost: x\r\n\r\n".encode()
        served = 0
        for reader, writer in opened:
            with contextlib.suppress(ConnectionError):
                writer.write(request)
                served += (await reader.read(15)).startswith(b"HTTP/1.1 200 OK")
        for _, writer in opened:
            writer.close()
        assert 1 <= served <= 8
        await mesh.until(mesh.serves)


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    with bind_socket("127.0.0.1", 0, "unused") as taken:
        taken.listen()
        yield taken.getsockname()[1]


async def test_a_taken_port_stops_the_start_with_one_sentence(tmp_path: Path) -> None:
    with taken_port() as port:
        settings = gateway_settings({}, listeners={"all": ListenerSettings(port=port)})
        with pytest.raises(StartupError) as caught:
            await GatewayService(base_settings(tmp_path), settings).start()
    message = caught.value.message
    assert "\n" not in message
    assert f"port {port} on 127.0.0.1 is taken" in message
    assert "listeners.all.port in config/gateway.yaml" in message


async def test_a_configuration_that_envoy_refuses_is_told_in_envoys_words(tmp_path: Path) -> None:
    bad = tmp_path / "envoy.yaml"
    bad.write_text("static_resources: {listeners: [{nonsense: 1}]}", encoding="utf-8")
    with pytest.raises(StartupError, match="nonsense"):
        await validate_config(bad)


async def run_module(*arguments: str, **environment: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.gateway",
        *arguments,
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def test_the_repositorys_configuration_is_valid_to_envoy() -> None:
    status, output = await run_module("--validate")
    assert status == 0, output
    assert "OK" in output


async def test_hosts_by_name_and_other_addresses_are_valid_to_envoy() -> None:
    status, output = await run_module(
        "--validate",
        MARKETPRISM__GATEWAY__HOST="0.0.0.0",
        MARKETPRISM__GATEWAY__UPSTREAMS__COLLECTOR__HOST="collector.internal",
        MARKETPRISM__GATEWAY__UPSTREAMS__MARKETDATA__HOST="'::1'",
        MARKETPRISM__GATEWAY__UPSTREAMS__STORAGE__ENABLED="true",
        MARKETPRISM__GATEWAY__CORS__ALLOW_ORIGIN_REGEXES="[]",
        MARKETPRISM__GATEWAY__RETRIES__ATTEMPTS="0",
        MARKETPRISM__GATEWAY__ACCESS_LOG="errors",
        MARKETPRISM__GATEWAY__ENVELOPE="false",
    )
    assert status == 0, output


async def test_a_bad_setting_is_told_with_file_and_key() -> None:
    status, output = await run_module(
        "--print-config", MARKETPRISM__GATEWAY__TIMEOUTS__UNARY="soon"
    )
    assert status == 2
    assert "MARKETPRISM__GATEWAY__TIMEOUTS__UNARY" in output


async def test_the_access_log_names_the_request_and_no_secret(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with running_mesh(tmp_path) as mesh:
        await mesh.rest(
            f"{BOOK}?depth=1&access_token=hunter2",
            headers={"x-request-id": "logged-one", "Authorization": "Bearer hunter2hunter2"},
        )
        text = ""

        def logged() -> bool:
            nonlocal text
            out, err = capfd.readouterr()
            text += out + err
            return "logged-one" in text

        await mesh.until(logged)
    line = next(line for line in text.splitlines() if "logged-one" in line and "envoy" in line)
    for part in (BOOK, "GET", "400", "duration_ms", "service"):
        assert part in line
    assert "hunter2" not in text
