"""Every fault does on the simulated futures venues what it says."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import aiohttp
import pytest
import websockets

from services.simulator.binance_futures import BinanceCoinM, BinanceFuturesProtocol, BinanceUsdM
from services.simulator.server import SimulatedVenue
from services.simulator.venues import generated_market

_DEADLINE = 20.0
_PROTOCOLS = [BinanceUsdM, BinanceCoinM]


@contextlib.asynccontextmanager
async def _venue(
    make: type[BinanceFuturesProtocol] = BinanceUsdM, **settings: Any
) -> AsyncIterator[tuple[SimulatedVenue, aiohttp.ClientSession]]:
    protocol = make()
    market = generated_market(protocol, depth_rate=50, trade_rate=20, levels=150)
    limits = protocol.settings_type.model_validate(settings)
    async with (
        asyncio.timeout(100),
        SimulatedVenue(market, settings=limits, protocol=protocol) as venue,
        aiohttp.ClientSession(venue.rest_url) as session,
    ):
        yield venue, session


def _connect(venue: SimulatedVenue, *kinds: str, symbol: str | None = None) -> websockets.connect:
    name = (symbol or next(iter(venue.market.symbols))).lower()
    streams = "/".join(f"{name}@{kind}" for kind in kinds)
    # An unbounded queue: a client that has stopped reading could not see the close frame.
    return websockets.connect(f"{venue.ws_url}/ws/{streams}", max_queue=None)


async def _recv(client: websockets.ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(_DEADLINE):
        return json.loads(await client.recv())


async def _frames(client: websockets.ClientConnection, count: int) -> list[dict[str, Any]]:
    return [await _recv(client) for _ in range(count)]


def _breaks(frames: list[dict[str, Any]]) -> int:
    return sum(later["pu"] != earlier["u"] for earlier, later in pairwise(frames))


async def _until_the_end(client: websockets.ClientConnection) -> tuple[set[str], int | None]:
    """Names of the events until the venue ends the connection, and its close code."""
    seen: set[str] = set()
    async with asyncio.timeout(_DEADLINE):
        try:
            while True:
                seen.add(json.loads(await client.recv()).get("e", ""))
        except websockets.ConnectionClosed as ended:
            return seen, None if ended.rcvd is None else ended.rcvd.code


@pytest.mark.parametrize("make", _PROTOCOLS)
async def test_a_dropped_frame_breaks_the_chain_of_pu_once(
    make: type[BinanceFuturesProtocol],
) -> None:
    async with _venue(make) as (venue, _), _connect(venue, "depth@0ms") as client:
        frames = await _frames(client, 2)
        venue.fault("drop", stream="@depth@0ms")
        frames += await _frames(client, 20)
        assert _breaks(frames) == 1
        lost = [later["pu"] for earlier, later in pairwise(frames) if later["pu"] != earlier["u"]]
        assert lost[0] > frames[0]["u"]


async def test_duplicates_and_reordering_are_told_by_their_ids() -> None:
    async with _venue() as (venue, _), _connect(venue, "depth@0ms") as client:
        await _frames(client, 1)
        venue.fault("duplicate")
        ids = [frame["u"] for frame in await _frames(client, 20)]
        assert sum(earlier == later for earlier, later in pairwise(ids)) == 1
        venue.fault("reorder")
        ids = [frame["u"] for frame in await _frames(client, 20)]
        assert sum(earlier > later for earlier, later in pairwise(ids)) == 1


@pytest.mark.parametrize("mode", ["json", "truncate", "types", "binary", "utf8", "empty"])
@pytest.mark.parametrize("stream", ["btcusd_perp@depth@0ms", "!markPrice@arr@1s"])
async def test_a_damaged_frame_comes_in_place_of_the_good_one(mode: str, stream: str) -> None:
    async with (
        _venue(BinanceCoinM) as (venue, _),
        websockets.connect(f"{venue.ws_url}/stream?streams={stream}") as client,
    ):
        await _recv(client)
        fault = venue.fault("corrupt", mode=mode)
        async with asyncio.timeout(_DEADLINE):
            with contextlib.suppress(websockets.ConnectionClosed):
                while _is_good(await client.recv()):
                    pass
        assert fault.hits == 1


def _is_good(frame: str | bytes) -> bool:
    try:
        inner = json.loads(frame)["data"]
    except (ValueError, TypeError):
        return False
    event = inner[0] if isinstance(inner, list) else inner
    return isinstance(event, dict) and isinstance(event["E"], int)


async def test_a_cut_ends_the_connection_as_asked() -> None:
    async with _venue() as (venue, _), _connect(venue, "trade") as client:
        await _recv(client)
        venue.fault("cut", code=1012)
        assert (await _until_the_end(client))[1] == 1012


async def test_a_silent_subscription_is_acknowledged_and_nothing_more() -> None:
    async with _venue() as (venue, _):
        venue.fault("silence", stream="btcusdt@depth@100ms")
        async with websockets.connect(f"{venue.ws_url}/public/stream") as client:
            streams = ["btcusdt@depth@100ms", "ethusdt@depth@100ms"]
            await client.send(json.dumps({"method": "SUBSCRIBE", "params": streams, "id": 9}))
            assert await _recv(client) == {"result": None, "id": 9}
            seen = {(await _recv(client))["stream"] for _ in range(20)}
            assert seen == {"ethusdt@depth@100ms"}


async def test_a_subscription_can_be_refused() -> None:
    async with _venue() as (venue, _):
        venue.fault("refuse_subscription", symbol="BTCUSDT")
        async with websockets.connect(f"{venue.ws_url}/market/stream") as client:
            for number in (1, 2):
                request = {"method": "SUBSCRIBE", "params": ["btcusdt@ticker"], "id": number}
                await client.send(json.dumps(request))
            refused, taken = await _recv(client), await _recv(client)
            assert refused["error"]["code"] == 2
            assert taken == {"result": None, "id": 2}


@pytest.mark.parametrize("make", _PROTOCOLS)
async def test_skipped_ids_are_a_gap_and_the_book_stays_true(
    make: type[BinanceFuturesProtocol],
) -> None:
    async with _venue(make) as (venue, session), _connect(venue, "depth@0ms") as client:
        symbol = next(iter(venue.market.symbols))
        frames = await _frames(client, 2)
        venue.fault("gap", symbol=symbol, ids=5000)
        while frames[-1]["pu"] == frames[-2]["u"]:
            frames.append(await _recv(client))
        assert frames[-1]["pu"] - frames[-2]["u"] >= 5000
        query = {"symbol": symbol, "update_id": str(frames[-1]["u"])}
        async with session.get("/sim/book", params=query) as response:
            assert response.status == 200


async def test_ids_that_begin_again_come_without_a_hint() -> None:
    async with _venue() as (venue, session), _connect(venue, "depth@0ms") as client:
        frames = await _frames(client, 2)
        venue.fault("sequence_reset", symbol="BTCUSDT")
        while frames[-1]["u"] > frames[-2]["u"]:
            frames.append(await _recv(client))
        assert frames[-1]["pu"] < frames[0]["pu"]
        assert frames[-1]["pu"] != frames[-2]["u"]
        depth = {"symbol": "BTCUSDT", "limit": "1000"}
        async with session.get("/fapi/v1/depth", params=depth) as response:
            assert (await response.json())["lastUpdateId"] >= frames[-1]["pu"]


async def test_a_stale_book_fits_nothing_that_was_sent() -> None:
    async with _venue() as (venue, session), _connect(venue, "depth@100ms") as client:
        first = await _recv(client)
        venue.fault("stale_snapshot", symbol="BTCUSDT")
        depth = {"symbol": "BTCUSDT", "limit": "1000"}
        ids = []
        for _ in range(2):
            async with session.get("/fapi/v1/depth", params=depth) as response:
                ids.append((await response.json())["lastUpdateId"])
        assert ids[0] < first["pu"], "older than what the first frame continues"
        assert ids[1] >= first["u"]


@pytest.mark.parametrize(
    ("kind", "options", "status"),
    [
        ("rest_429", {"retry_after": 7}, 429),
        ("rest_418", {"retry_after": 9}, 418),
        ("rest_5xx", {"status": 503}, 503),
        ("rest_5xx", {"status": 504}, 504),
    ],
)
@pytest.mark.parametrize("path", ["/dapi/v1/depth?symbol=BTCUSD_PERP", "/dapi/v1/exchangeInfo"])
async def test_rest_fails_as_asked_and_then_recovers(
    kind: str, options: dict[str, int], status: int, path: str
) -> None:
    async with _venue(BinanceCoinM) as (venue, session):
        venue.fault(kind, **options)
        async with session.get(path) as response:
            assert response.status == status
            if "retry_after" in options:
                assert response.headers["Retry-After"] == str(options["retry_after"])
                assert (await response.json())["code"] == -1003
        async with session.get(path) as response:
            assert response.status == 200


async def test_rest_can_be_slow() -> None:
    async with _venue() as (venue, session):
        venue.fault("rest_slow", path="/futures/data/openInterestHist", seconds=0.3)
        query = {"symbol": "BTCUSDT", "period": "5m"}
        begun = time.monotonic()
        async with session.get("/futures/data/openInterestHist", params=query) as response:
            assert response.status == 200
        assert time.monotonic() - begun >= 0.3


async def test_a_maintenance_is_announced_closes_and_refuses_until_it_is_over() -> None:
    async with _venue() as (venue, session), _connect(venue, "trade") as client:
        await _recv(client)
        venue.fault("maintenance", seconds=0.5, notice=0.1)
        assert "serverShutdown" in (await _until_the_end(client))[0]
        async with session.get("/fapi/v1/ping") as response:
            assert response.status == 503
        status = 503
        async with asyncio.timeout(_DEADLINE):
            while status == 503:
                await asyncio.sleep(0.02)
                async with session.get("/fapi/v1/ping") as response:
                    status = response.status
        assert status == 200
        async with _connect(venue, "trade") as again:
            assert (await _recv(again))["e"] == "trade"


async def test_a_connection_ends_after_its_life_with_a_notice() -> None:
    settings = {"connection_life_seconds": 0.6, "shutdown_notice_seconds": 0.4}
    async with _venue(**settings) as (venue, _), _connect(venue, "bookTicker") as client:
        assert await _until_the_end(client) == ({"bookTicker", "serverShutdown"}, 1001)


async def test_the_server_pings_and_ends_who_does_not_answer() -> None:
    settings = {"ping_interval_seconds": 0.1, "pong_timeout_seconds": 0.3}
    async with _venue(**settings) as (venue, _), aiohttp.ClientSession() as session:
        url = f"{venue.ws_url}/public/ws/btcusdt@trade"
        async with session.ws_connect(url, autoping=False) as socket, asyncio.timeout(_DEADLINE):
            kinds = [message.type async for message in socket]
        assert aiohttp.WSMsgType.PING in kinds
        assert socket.close_code == 1008


async def test_who_sends_more_than_ten_messages_a_second_is_ended() -> None:
    async with _venue() as (venue, _), _connect(venue, "trade") as client:
        for number in range(11):
            await client.send(json.dumps({"method": "LIST_SUBSCRIPTIONS", "id": number}))
        assert (await _until_the_end(client))[1] == 1008


async def test_a_clients_ping_can_stay_unanswered() -> None:
    async with _venue() as (venue, _), _connect(venue, "depth@100ms") as client:
        await asyncio.wait_for(await client.ping(), _DEADLINE)
        fault = venue.fault("heartbeat_refusal")
        pong = await client.ping()
        await _frames(client, 5)
        assert fault.hits == 1
        assert not pong.done()


async def test_a_new_connection_can_be_refused() -> None:
    async with _venue() as (venue, _):
        venue.fault("refuse_connections", status=429)
        with pytest.raises(websockets.InvalidStatus):
            await websockets.connect(f"{venue.ws_url}/market/stream")
        async with websockets.connect(f"{venue.ws_url}/market/stream"):
            pass
