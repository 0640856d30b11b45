"""The simulated Binance futures venues keep the venue's protocol, and their own truth."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import aiohttp
import pytest
import websockets
from marketprism.market.v1 import common_pb2, instrument_pb2

from services.collector.venues.base import (
    Acknowledgement,
    Ignored,
    InstrumentsChanged,
    Observation,
    Selection,
    Several,
    SkippedTrade,
    TopOfBook,
    TradePrint,
)
from services.collector.venues.binance_futures import COINM, USDM, BinanceFutures
from services.collector.venues.binance_futures_streams import FuturesDepthUpdate
from services.simulator.binance_futures import (
    BinanceCoinM,
    BinanceFuturesProtocol,
    BinanceUsdM,
)
from services.simulator.generated import GeneratedMarket
from services.simulator.server import SimulatedVenue
from services.simulator.venues import generated_market

_DEADLINE = 20.0
_PROTOCOLS = [BinanceUsdM, BinanceCoinM]
_PUBLIC = ("depth", "depth@0ms", "depth@100ms", "depth@500ms", "bookTicker", "trade")
_MARKET = (
    *("aggTrade", "markPrice", "markPrice@1s", "kline_1m", "kline_1h"),
    *("ticker", "miniTicker", "forceOrder"),
)
_OF_BOOKS = {
    common_pb2.EVENT_KIND_ORDER_BOOK,
    common_pb2.EVENT_KIND_TRADE,
    common_pb2.EVENT_KIND_BEST_BID_OFFER,
}
_ALL_PUBLIC = ("!bookTicker",)
_ALL_MARKET = ("!markPrice@arr", "!markPrice@arr@1s", "!ticker@arr", "!miniTicker@arr")


class NaiveFuturesBook:
    """A book kept by the venue's published rules and nothing else."""

    def __init__(self, snapshot: dict[str, Any]) -> None:
        self.bids = {Decimal(price): Decimal(size) for price, size in snapshot["bids"]}
        self.asks = {Decimal(price): Decimal(size) for price, size in snapshot["asks"]}
        self.snapshot_id = snapshot["lastUpdateId"]
        self.update_id: int | None = None
        self.begun_by = ""

    def diff(self, event: dict[str, Any]) -> bool:
        """Apply a diff; whether the book changed."""
        if self.update_id is None:
            if event["u"] < self.snapshot_id:
                return False
            self.begun_by = self._bridge(event)
        else:
            assert event["pu"] == self.update_id, "a gap where no fault was set"
        for side, levels in ((self.bids, event["b"]), (self.asks, event["a"])):
            for price, size in levels:
                if Decimal(size):
                    side[Decimal(price)] = Decimal(size)
                else:
                    side.pop(Decimal(price), None)
        self.update_id = event["u"]
        return True

    def _bridge(self, event: dict[str, Any]) -> str:
        if event["U"] <= self.snapshot_id <= event["u"]:
            return "u" if event["u"] == self.snapshot_id else "inside"
        assert event["pu"] == self.snapshot_id, "the book fits nothing that was sent"
        return "pu"

    def canonical(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        return (
            [_plain(level) for level in sorted(self.bids.items(), reverse=True)],
            [_plain(level) for level in sorted(self.asks.items())],
        )


def _plain(level: tuple[Decimal, Decimal]) -> tuple[str, str]:
    price, size = (f"{number.normalize():f}" for number in level)
    return price, size


def _generated(protocol: BinanceFuturesProtocol, **options: Any) -> GeneratedMarket:
    values = {"depth_rate": 20, "trade_rate": 20, "levels": 150, "changes_per_side": 3, **options}
    return generated_market(protocol, **values)


@contextlib.asynccontextmanager
async def _venue(
    make: type[BinanceFuturesProtocol] = BinanceUsdM,
    settings: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[tuple[SimulatedVenue, aiohttp.ClientSession]]:
    protocol = make()
    market = _generated(protocol, **options)
    limits = protocol.settings_type.model_validate(settings or {})
    async with (
        asyncio.timeout(100),
        SimulatedVenue(market, settings=limits, protocol=protocol) as venue,
        aiohttp.ClientSession(venue.rest_url) as session,
    ):
        yield venue, session


def _symbol(venue: SimulatedVenue) -> str:
    return next(iter(venue.market.symbols))


def _prefix(venue: SimulatedVenue) -> str:
    assert isinstance(venue.protocol, BinanceFuturesProtocol)
    return venue.protocol.prefix


async def _json(socket: websockets.ClientConnection) -> dict[str, Any]:
    async with asyncio.timeout(_DEADLINE):
        return json.loads(await socket.recv())


async def _until(socket: websockets.ClientConnection, wanted: Any) -> dict[str, Any]:
    async with asyncio.timeout(_DEADLINE):
        while True:
            message = json.loads(await socket.recv())
            if wanted(message):
                return message


async def _ask(
    socket: websockets.ClientConnection, method: str, params: Any = None, number: int = 1
) -> dict[str, Any]:
    request = {"method": method, "id": number} | ({} if params is None else {"params": params})
    await socket.send(json.dumps(request))
    return await _until(socket, lambda message: "id" in message)


async def _get(session: aiohttp.ClientSession, path: str, **query: Any) -> tuple[int, Any]:
    async with session.get(path, params={k: str(v) for k, v in query.items()}) as response:
        text = await response.text()
        return response.status, json.loads(text) if text[:1] in "[{" else text


# Routes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ["public", "market"])
async def test_a_route_acknowledges_everything_and_sends_only_its_own_streams(route: str) -> None:
    streams = {
        "public": {f"btcusdt@{kind}" for kind in _PUBLIC} | set(_ALL_PUBLIC),
        "market": {f"btcusdt@{kind}" for kind in _MARKET} | set(_ALL_MARKET),
    }
    wanted = streams.pop(route)
    foreign = set().union(*streams.values())
    async with (
        _venue(trade_rate=80) as (venue, _),
        websockets.connect(f"{venue.ws_url}/{route}/stream") as client,
    ):
        named = sorted(wanted | foreign)
        assert await _ask(client, "SUBSCRIBE", named) == {"result": None, "id": 1}
        seen: Counter[str] = Counter()
        while not wanted <= seen.keys():
            seen[(await _json(client))["stream"]] += 1
        assert not foreign & seen.keys(), "acknowledged, and silent"
        listed = await _ask(client, "LIST_SUBSCRIPTIONS", number=2)
        assert sorted(listed["result"]) == named


async def test_streams_that_a_url_names_on_the_wrong_route_are_silent_too() -> None:
    async with _venue() as (venue, _):
        url = f"{venue.ws_url}/market/stream?streams=btcusdt@depth@100ms/btcusdt@markPrice@1s"
        async with websockets.connect(url) as client:
            told = [await _json(client) for _ in range(2)]
            assert {message["stream"] for message in told} == {"btcusdt@markPrice@1s"}
            listed = await _ask(client, "LIST_SUBSCRIPTIONS")
            assert len(listed["result"]) == 2


@pytest.mark.parametrize(
    ("unrouted", "served"),
    [("all", {"btcusdt@depth@100ms", "btcusdt@ticker"}), ("public", {"btcusdt@depth@100ms"})],
)
async def test_the_old_addresses_serve_what_the_setting_says(
    unrouted: str, served: set[str]
) -> None:
    async with _venue(settings={"unrouted": unrouted}) as (venue, _):
        url = f"{venue.ws_url}/stream?streams=btcusdt@depth@100ms/btcusdt@ticker"
        async with websockets.connect(url) as client:
            seen = {(await _json(client))["stream"] for _ in range(45)}
            assert seen == served


async def test_the_old_addresses_can_be_refused() -> None:
    async with _venue(settings={"unrouted": "refused"}) as (venue, _):
        with pytest.raises(websockets.InvalidStatus):
            await websockets.connect(f"{venue.ws_url}/stream?streams=btcusdt@trade")
        async with websockets.connect(f"{venue.ws_url}/public/ws/btcusdt@trade") as client:
            assert (await _json(client))["e"] == "trade"


async def test_coin_m_has_no_routes_and_one_address_for_everything() -> None:
    pairs = ("btcusd@indexPrice", "btcusd@markPrice@1s")
    wanted = {f"btcusd_perp@{kind}" for kind in (*_PUBLIC, *_MARKET)}
    wanted |= {*pairs, *_ALL_PUBLIC, *_ALL_MARKET}
    async with _venue(BinanceCoinM, trade_rate=80) as (venue, _):
        with pytest.raises(websockets.InvalidStatus):
            await websockets.connect(f"{venue.ws_url}/public/stream")
        async with websockets.connect(
            f"{venue.ws_url}/stream?streams={'/'.join(wanted)}"
        ) as client:
            while wanted:
                message = await _json(client)
                wanted.discard(message["stream"])


async def test_a_raw_address_carries_bare_events() -> None:
    async with (
        _venue() as (venue, _),
        websockets.connect(f"{venue.ws_url}/public/ws/btcusdt@depth@100ms") as client,
    ):
        event = await _json(client)
        assert list(event)[:3] == ["e", "E", "T"]
        assert (event["e"], event["ps"], event["st"]) == ("depthUpdate", "BTCUSDT", 1)


async def test_a_name_that_is_not_ascii_goes_all_the_way() -> None:
    async with _venue(symbols=("BTCUSDT", "币安人生USDT")) as (venue, session):
        async with websockets.connect(f"{venue.ws_url}/public/stream") as client:
            await _ask(client, "SUBSCRIBE", ["币安人生usdt@depth@100ms"])
            message = await _json(client)
            assert message["stream"] == "币安人生usdt@depth@100ms"
            assert message["data"]["s"] == "币安人生USDT"
        status, book = await _get(session, "/fapi/v1/depth", symbol="币安人生USDT", limit=5)
        assert (status, len(book["bids"])) == (200, 5)
        _, info = await _get(session, "/fapi/v1/exchangeInfo")
        assert "币安人生USDT" in [entry["symbol"] for entry in info["symbols"]]


# Books --------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", _PROTOCOLS)
@pytest.mark.parametrize("stream", ["depth@0ms", "depth@100ms", "depth", "depth@500ms"])
async def test_books_chain_by_pu_and_equal_the_truth_at_every_u(
    make: type[BinanceFuturesProtocol], stream: str
) -> None:
    async with _venue(make) as (venue, session):
        symbol = _symbol(venue)
        path = f"/ws/{symbol.lower()}@{stream}"
        async with websockets.connect(venue.ws_url + path) as client:
            first = await _json(client)
            _, body = await _get(session, f"{_prefix(venue)}/depth", symbol=symbol, limit=1000)
            book = NaiveFuturesBook(body)
            book.diff(first)
            compared = 0
            while compared < 8:
                event = await _json(client)
                assert event["pu"] < event["U"] <= event["u"]
                if book.diff(event):
                    bids, asks = venue.market.book_at(symbol, event["u"]).canonical()
                    assert book.canonical() == (bids, asks)
                    compared += 1


@pytest.mark.parametrize("make", _PROTOCOLS)
async def test_fresh_books_begin_inside_a_frame_at_its_end_or_right_before_the_next(
    make: type[BinanceFuturesProtocol],
) -> None:
    begun: Counter[str] = Counter()
    above = 0
    async with _venue(make, {"weight_limit": 10**6}, depth_rate=10) as (venue, session):
        symbol = _symbol(venue)
        market = venue.market
        url = f"{venue.ws_url}/ws/{symbol.lower()}@depth@100ms"
        async with websockets.connect(url) as client:
            events = [await _json(client)]
            while not {"inside", "u", "pu"} <= begun.keys():
                events = events[-1:] if sum(begun.values()) % 2 else []
                # The book has moved on since the frame.
                while market.update_id(symbol) < market.frame_id(symbol) + 3:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                _, body = await _get(session, f"{_prefix(venue)}/depth", symbol=symbol, limit=1000)
                book = NaiveFuturesBook(body)
                for event in events:
                    book.diff(event)
                while book.update_id is None:
                    events.append(await _json(client))
                    book.diff(events[-1])
                begun[book.begun_by] += 1
                last = events[-1]
                above += book.begun_by == "pu" and last["U"] > book.snapshot_id + 1
                truth = venue.market.book_at(symbol, last["u"]).canonical()
                assert book.canonical() == (truth[0], truth[1])
                assert sum(begun.values()) < 200, begun
    assert above or begun["pu"] < 4, "U is often above lastUpdateId + 1"


async def test_best_prices_equal_the_book_at_their_id() -> None:
    async with (
        _venue(BinanceCoinM) as (venue, _),
        websockets.connect(f"{venue.ws_url}/ws/btcusd_perp@bookTicker") as client,
    ):
        for _ in range(20):
            event = await _json(client)
            bids, asks = venue.market.book_at("BTCUSD_PERP", event["u"], 1).canonical()
            best = [f"{Decimal(event[field]).normalize():f}" for field in "bBaA"]
            assert best == [*bids[0], *asks[0]]


# Trades -------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", _PROTOCOLS)
async def test_trades_are_contiguous_and_some_are_not_of_the_market(
    make: type[BinanceFuturesProtocol],
) -> None:
    async with _venue(make, trade_rate=200) as (venue, session):
        symbol = _symbol(venue)
        async with websockets.connect(f"{venue.ws_url}/ws/{symbol.lower()}@trade") as client:
            trades = [await _json(client)]
            while trades[-1]["X"] == "MARKET" or len(trades) < 100:
                trades.append(await _json(client))
                assert trades[-1]["t"] == trades[-2]["t"] + 1
            skipped = trades[-1]["t"]
        _, told = await _get(session, f"{_prefix(venue)}/trades", symbol=symbol, limit=1000)
        ids = {trade["id"] for trade in told}
        assert skipped - 1 in ids
        assert skipped not in ids, "only trades of the market are told over REST"
        sim = await _get(session, "/sim/trades", symbol=symbol)
        assert set(sim[1]["made"]) >= ids


async def test_aggregate_trades_are_told_again_over_rest() -> None:
    async with _venue(trade_rate=50) as (venue, session):
        async with websockets.connect(f"{venue.ws_url}/market/ws/btcusdt@aggTrade") as client:
            events = [await _json(client) for _ in range(20)]
        first = events[0]["a"]
        query = {"symbol": "BTCUSDT", "fromId": first, "limit": 20}
        _, told = await _get(session, "/fapi/v1/aggTrades", **query)
        fields = ("a", "p", "q", "nq", "f", "l", "T", "m")
        assert [[trade[f] for f in fields] for trade in told] == [
            [event[f] for f in fields] for event in events
        ]


async def test_past_trades_need_a_key_and_begin_where_asked() -> None:
    async with _venue() as (_, session):
        path, query = "/fapi/v1/historicalTrades", {"symbol": "BTCUSDT", "limit": "3"}
        assert (await _get(session, path, **query))[0] == 401
        async with session.get(path, params=query, headers={"X-MBX-APIKEY": "k"}) as response:
            newest = await response.json()
        begin = {**query, "fromId": str(newest[0]["id"])}
        async with session.get(path, params=begin, headers={"X-MBX-APIKEY": "k"}) as response:
            assert [trade["id"] for trade in await response.json()] == [
                trade["id"] for trade in newest
            ]


# REST ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "query", "status", "code"),
    [
        ("depth", {}, 400, -1102),
        ("depth", {"symbol": "NOSUCH"}, 400, -1121),
        ("depth", {"symbol": "btcusdt"}, 400, -1100),
        ("depth", {"symbol": "BTCUSDT", "limit": 7}, 400, -4021),
        ("depth", {"symbol": "BTCUSDT", "limit": "many"}, 400, -1100),
        ("depth", {"symbol": "BTCUSDT", "foo": 1}, 400, -1104),
        ("trades", {"symbol": "BTCUSDT", "limit": 0}, 400, -1130),
        ("klines", {"symbol": "BTCUSDT", "interval": "7m"}, 400, -1120),
        ("aggTrades", {"symbol": "BTCUSDT", "startTime": 5, "endTime": 4}, 400, -1023),
        ("time", {"a": 1}, 400, -1101),
    ],
)
async def test_bad_requests_are_refused_with_the_venues_codes(
    path: str, query: dict[str, Any], status: int, code: int
) -> None:
    async with _venue() as (_, session):
        got, body = await _get(session, f"/fapi/v1/{path}", **query)
        assert (got, body["code"]) == (status, code)
        assert body["msg"]


@pytest.mark.parametrize(
    ("path", "query", "weight"),
    [
        ("ping", {}, 1),
        ("exchangeInfo", {}, 1),
        ("depth", {"symbol": "BTCUSDT", "limit": 50}, 2),
        ("depth", {"symbol": "BTCUSDT", "limit": 100}, 5),
        ("depth", {"symbol": "BTCUSDT"}, 10),
        ("depth", {"symbol": "BTCUSDT", "limit": 1000}, 20),
        ("trades", {"symbol": "BTCUSDT"}, 5),
        ("aggTrades", {"symbol": "BTCUSDT"}, 20),
        ("klines", {"symbol": "BTCUSDT", "interval": "1m", "limit": 99}, 1),
        ("klines", {"symbol": "BTCUSDT", "interval": "1m"}, 5),
        ("klines", {"symbol": "BTCUSDT", "interval": "1m", "limit": 1500}, 10),
        ("premiumIndex", {"symbol": "BTCUSDT"}, 1),
        ("premiumIndex", {}, 10),
        ("ticker/24hr", {"symbol": "BTCUSDT"}, 1),
        ("ticker/24hr", {}, 40),
        ("openInterest", {"symbol": "BTCUSDT"}, 1),
    ],
)
async def test_requests_weigh_what_they_weigh_at_the_venue(
    path: str, query: dict[str, Any], weight: int
) -> None:
    async with (
        _venue() as (_, session),
        session.get(f"/fapi/v1/{path}", params=query) as response,
    ):
        assert response.status == 200, await response.text()
        assert response.headers["X-MBX-USED-WEIGHT-1M"] == str(weight)


async def test_usd_m_and_coin_m_can_share_one_pool_of_weight() -> None:
    async with _venue(settings={"weight_limit": 25, "ban_after": 1}) as (usd, session):
        protocol = BinanceCoinM()
        market = _generated(protocol)
        async with (
            SimulatedVenue(market, protocol=protocol, weights=usd.weights) as coin,
            aiohttp.ClientSession(coin.rest_url) as other,
        ):
            depth = {"symbol": "BTCUSD_PERP", "limit": "1000"}
            async with other.get("/dapi/v1/depth", params=depth) as response:
                assert response.status == 200
            statuses = []
            for _ in range(3):
                async with session.get(
                    "/fapi/v1/depth", params={"symbol": "BTCUSDT", "limit": "500"}
                ) as response:
                    statuses.append(response.status)
                    assert int(response.headers["Retry-After"]) >= 1
            assert statuses == [429, 418, 418], "what the one used up is missing at the other"
            async with other.get("/dapi/v1/ping") as response:
                assert response.status == 418
                assert "IP banned until" in (await response.json())["msg"]


async def test_statistics_have_no_weight_but_a_limit_of_their_own() -> None:
    async with _venue(settings={"data_requests_per_five_minutes": 2}) as (_, session):
        query = {"symbol": "BTCUSDT", "period": "5m", "limit": "2"}
        path = "/futures/data/globalLongShortAccountRatio"
        for _ in range(2):
            async with session.get(path, params=query) as response:
                assert response.status == 200
                assert response.headers["X-MBX-USED-WEIGHT-1M"] == "0"
                assert len(await response.json()) == 2
        async with session.get(path, params=query) as response:
            assert response.status == 429


@pytest.mark.parametrize("make", _PROTOCOLS)
async def test_the_three_long_short_ratios_differ_and_each_adds_up(
    make: type[BinanceFuturesProtocol],
) -> None:
    query = {"symbol": "BTCUSDT"} if make is BinanceUsdM else {"pair": "BTCUSD"}
    ratios = set()
    async with _venue(make) as (_, session):
        for name in (
            "topLongShortPositionRatio", "topLongShortAccountRatio", "globalLongShortAccountRatio"
        ):  # fmt: skip
            _, told = await _get(session, f"/futures/data/{name}", **query, period="15m", limit=3)
            assert len(told) == 3
            what = "Position" if make is BinanceCoinM and "Position" in name else "Account"
            for each in told:
                long, short = Decimal(each[f"long{what}"]), Decimal(each[f"short{what}"])
                assert abs(long + short - 1) <= Decimal("0.0001")
                assert each["timestamp"] % (15 * 60_000) == 0
            ratios.add(told[-1]["longShortRatio"])
        status, problem = await _get(
            session, "/futures/data/globalLongShortAccountRatio", **query, period="7m"
        )
        assert (status, problem["code"]) == (400, -1130)
    assert len(ratios) == 3


@pytest.mark.parametrize("make", _PROTOCOLS)
async def test_dated_contracts_have_a_mark_but_no_funding(
    make: type[BinanceFuturesProtocol],
) -> None:
    async with _venue(make) as (venue, session):
        symbols = list(venue.market.symbols)
        _, told = await _get(session, f"{_prefix(venue)}/premiumIndex")
        by_symbol = {each["symbol"]: each for each in told}
        assert by_symbol.keys() == set(symbols)
        dated, perpetual = by_symbol[symbols[-1]], by_symbol[symbols[0]]
        assert (dated["lastFundingRate"], dated["nextFundingTime"]) == ("", 0)
        assert Decimal(perpetual["lastFundingRate"]).is_finite()
        assert perpetual["nextFundingTime"] > perpetual["time"]
        _, rates = await _get(session, f"{_prefix(venue)}/fundingRate", symbol=symbols[-1])
        assert rates == []


# What the collector makes of it -------------------------------------------------------------


def _adapter(make: type[BinanceFuturesProtocol]) -> BinanceFutures:
    return BinanceFutures(USDM if make is BinanceUsdM else COINM)


@pytest.mark.parametrize("make", _PROTOCOLS)
async def test_the_listing_is_what_the_adapter_expects(
    make: type[BinanceFuturesProtocol],
) -> None:
    adapter = _adapter(make)
    async with _venue(make) as (venue, session):
        async with session.get(adapter.instrument_requests()[0].path) as response:
            specs = {
                spec.native_symbol: spec
                for spec in adapter.decode_instruments(await response.read())
            }
        assert specs.keys() == venue.market.symbols.keys()
        for name, listed in venue.market.symbols.items():
            spec = specs[name]
            assert (spec.base, spec.quote, spec.trading) == (listed.base, listed.quote, True)
            assert Decimal(spec.tick_size) * 10**8 == listed.tick
            # Of inverse contracts in the quote currency, as all their quantities.
            assert Decimal(spec.lot_size) * 10**16 == listed.lot * listed.contract_size
            assert spec.settlement == listed.settlement
            assert spec.expiry_time == (listed.expiry_us or 0) * 1000
        names = [spec.symbol for spec in specs.values()]
        if make is BinanceUsdM:
            assert names[0] == "BTC-USDT-PERP"
        else:
            assert names[0] == "BTC-USD-PERP"
            unit = instrument_pb2.QUANTITY_UNIT_QUOTE
            assert [spec.quantity_unit for spec in specs.values()] == [unit] * len(specs)
            assert specs["BTCUSD_PERP"].contract_size == "100"
            assert specs["ETHUSD_PERP"].contract_size == "10"


@pytest.mark.parametrize("make", _PROTOCOLS)
async def test_the_adapter_understands_every_frame_of_every_stream_it_asks_for(
    make: type[BinanceFuturesProtocol],
) -> None:
    adapter = _adapter(make)
    selection = Selection(adapter.kinds, (60, 3600))
    async with _venue(make, trade_rate=120) as (venue, session):
        async with session.get(adapter.instrument_requests()[0].path) as response:
            specs = adapter.decode_instruments(await response.read())
        asked = adapter.shared_subscriptions(specs, selection)
        for spec in specs:
            asked += adapter.subscriptions(spec, selection)
        base = venue.ws_url if make is BinanceUsdM else f"{venue.ws_url}/stream"
        told: Counter[str] = Counter()
        observed: set[int] = set()
        for route in sorted({each.route for each in asked}):
            mine = [each for each in asked if each.route == route]
            # Trades and liquidations of one instrument may be long in coming.
            wanted = {each.topic for each in mine if each.quiet_seconds or not each.native_symbol}
            async with websockets.connect(adapter.route_url(base, route)) as client:
                for request in adapter.subscribe([each.topic for each in mine], 1):
                    await client.send(request.frame)
                while wanted:
                    async with asyncio.timeout(_DEADLINE):
                        frame = await client.recv()
                    wanted.discard(json.loads(frame).get("stream", ""))
                    whole = adapter.decode(frame)
                    for message in whole.messages if isinstance(whole, Several) else (whole,):
                        assert not isinstance(message, Ignored), frame
                        told[type(message).__name__] += 1
                        if isinstance(message, Observation):
                            observed.add(message.kind)
                        elif isinstance(message, Acknowledgement) and "!contractInfo" in wanted:
                            name = "XRPUSDT" if make is BinanceUsdM else "XRPUSD_PERP"
                            venue.market.list_instrument(venue.protocol.listed(name))
        once = (TradePrint, TopOfBook, InstrumentsChanged, FuturesDepthUpdate)
        assert {kind.__name__ for kind in once} <= told.keys()
        polled: set[int] = set()
        for poll in adapter.polls(specs, selection):
            async with session.get(poll.request.path, params=poll.request.query) as response:
                assert response.status == 200, await response.text()
                for observation in adapter.decode_poll(await response.read(), poll):
                    polled.add(observation.kind)
        assert polled == {
            common_pb2.EVENT_KIND_OPEN_INTEREST, common_pb2.EVENT_KIND_LONG_SHORT_RATIO
        }  # fmt: skip
        liquidation = {common_pb2.EVENT_KIND_LIQUIDATION}
        assert observed | polled | liquidation | _OF_BOOKS == set(adapter.kinds), (
            "every kind that the adapter has for the venue"
        )


async def test_the_adapter_skips_what_is_no_trade_of_the_market() -> None:
    adapter = _adapter(BinanceUsdM)
    async with (
        _venue(trade_rate=300) as (venue, _),
        websockets.connect(f"{venue.ws_url}/public/stream?streams=btcusdt@trade") as client,
    ):
        last: int | None = None
        while True:
            async with asyncio.timeout(_DEADLINE):
                message = adapter.decode(await client.recv())
            assert isinstance(message, TradePrint | SkippedTrade)
            assert last is None or message.trade_id == last + 1
            last = message.trade_id
            if isinstance(message, SkippedTrade):
                break


# Listing while running ----------------------------------------------------------------------


async def test_what_appears_expires_or_changes_is_told_and_listed() -> None:
    async with _venue() as (venue, session):
        async with websockets.connect(f"{venue.ws_url}/market/ws/!contractInfo") as client:
            async with session.post("/sim/instruments", json={"symbol": "XRPUSDT"}) as response:
                assert response.status == 201
            event = await _json(client)
            assert (event["s"], event["cs"], event["ct"]) == ("XRPUSDT", "TRADING", "PERPETUAL")
            patch = {"tick": "0.5"}
            async with session.patch("/sim/instruments?symbol=BTCUSDT", json=patch) as response:
                assert response.status == 200
            assert (await _json(client))["s"] == "BTCUSDT"
            async with session.delete("/sim/instruments?symbol=ETHUSDT") as response:
                assert response.status == 200
            event = await _json(client)
            assert (event["s"], event["cs"]) == ("ETHUSDT", "SETTLING")
        _, info = await _get(session, "/fapi/v1/exchangeInfo")
        status = {entry["symbol"]: entry["status"] for entry in info["symbols"]}
        assert (status["XRPUSDT"], status["ETHUSDT"]) == ("TRADING", "SETTLING")
        ticks = {
            entry["symbol"]: next(f["tickSize"] for f in entry["filters"] if "tickSize" in f)
            for entry in info["symbols"]
        }
        assert ticks["BTCUSDT"] == "0.5"
        assert (await _get(session, "/fapi/v1/depth", symbol="ETHUSDT"))[1]["code"] == -1121
