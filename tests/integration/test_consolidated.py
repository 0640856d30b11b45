"""Views and consolidated books of a running mesh: two simulated venues, broker, Envoy, clients."""

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from marketprism.market.v1 import common_pb2, market_event_pb2, order_book_pb2
from marketprism.market.v1 import market_data_service_pb2 as pb
from marketprism.market.v1.market_data_service_pb2_grpc import MarketDataServiceStub

from services.collector.service import CollectorService
from services.gateway.service import GatewayService
from services.marketdata.service import MarketDataService
from services.marketdata.settings import MarketDataSettings
from services.shared.settings import MeshSettings, NatsSettings, ServiceSettings
from services.simulator.server import SimulatedVenue
from services.simulator.venues import VENUES, generated_market
from tests.integration.collector_fixtures import (
    Bench,
    bench,
    collector_settings,
    mesh_settings,
)
from tests.integration.gateway_mesh import gateway_settings
from tests.integration.nats_tools import until
from tests.unit.marketdata.book_scene import grouped

S = order_book_pb2
E = market_event_pb2
BTC = ["binance/BTC-USDT"]
BOOK = common_pb2.EVENT_KIND_ORDER_BOOK
SYNCED = S.ORDER_BOOK_STATE_SYNCED
PAIR = {"base": "BTC", "quote": "USDT"}
Side = list[tuple[str, str]]


@contextlib.asynccontextmanager
async def served(directory: Path, nats_url: str) -> AsyncIterator[MarketDataService]:
    mesh = MeshSettings(
        data_dir=directory / "served",
        nats=NatsSettings(url=nats_url),
        services={"marketdata": ServiceSettings(), "gateway": ServiceSettings()},
        shutdown_grace_seconds=1,
    )
    settings = MarketDataSettings(collector_silence_seconds=2.0)
    async with MarketDataService(mesh, settings).running() as service:
        await until(lambda: service.health()[0] == 200, "marketdata is ready")
        yield service


@contextlib.asynccontextmanager
async def stub(service: MarketDataService) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel:
        yield MarketDataServiceStub(channel)  # type: ignore[no-untyped-call]


@contextlib.asynccontextmanager
async def reading(call: Any, take: Callable[[Any], None]) -> AsyncIterator[None]:
    """Read a stream in the background; what goes wrong there fails the test."""

    async def read() -> None:
        async for response in call:
            take(response)

    task = asyncio.create_task(read())
    try:
        yield
        assert not task.done(), f"expected the stream to go on: {task}"
    finally:
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await task


class Kept:
    """A book that is kept by the contract's rules, and what it was at each place."""

    def __init__(self) -> None:
        self.bids: dict[str, str] = {}
        self.asks: dict[str, str] = {}
        self.place = (0, 0)
        self.history: dict[tuple[int, int], tuple[Side, Side]] = {}
        self.reasons: list[int] = []
        self.merged = 0

    def take(self, response: Any) -> None:
        for event in response.events:
            if event.HasField("order_book_snapshot"):
                snapshot = event.order_book_snapshot
                self.bids = {level.price: level.quantity for level in snapshot.bids}
                self.asks = {level.price: level.quantity for level in snapshot.asks}
                self.place = (snapshot.epoch, snapshot.sequence)
                self.reasons.append(snapshot.reason)
            elif event.HasField("order_book_update"):
                update = event.order_book_update
                first = update.first_sequence or update.sequence
                assert (update.epoch, first) == (self.place[0], self.place[1] + 1)
                self.merged += update.sequence - first
                for held, changes in ((self.bids, update.bids), (self.asks, update.asks)):
                    for level in changes:
                        held[level.price] = level.quantity
                        if level.quantity == "0":
                            del held[level.price]
                self.place = (update.epoch, update.sequence)
            else:
                continue
            self.history[self.place] = (
                sorted(self.bids.items(), key=lambda level: -Decimal(level[0])),
                sorted(self.asks.items(), key=lambda level: Decimal(level[0])),
            )


@pytest.fixture
async def binance(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path / "binance", everything=True) as running:
        yield running


@contextlib.asynccontextmanager
async def okx(directory: Path, nats_url: str) -> AsyncIterator[None]:
    """Run another venue and its collector."""
    protocol = VENUES["okx"]()
    market = generated_market(protocol, depth_rate=20, trade_rate=8, levels=100, warmup_seconds=0.5)
    limits = protocol.settings_type.model_validate({"connects_per_five_minutes": 10_000})
    async with SimulatedVenue(market, settings=limits, protocol=protocol) as venue:
        settings = collector_settings(
            venue.rest_url, venue.ws_url, of="okx", collector_id="test-okx"
        )
        async with CollectorService(mesh_settings(directory, nats_url), settings).running():
            yield


async def test_every_view_is_the_book_that_the_collector_publishes(
    binance: Bench, tmp_path: Path
) -> None:
    wishes: dict[str, dict[str, Any]] = {
        "plain": {},
        "conflated": {"conflation_interval": Duration(nanos=300_000_000)},
        "top": {"order_book_mode": pb.ORDER_BOOK_MODE_TOP, "depth": 5},
        "grouped": {"price_grouping": "25"},
        "grouped top": {
            "order_book_mode": pb.ORDER_BOOK_MODE_TOP,
            "depth": 3,
            "price_grouping": "25",
            "conflation_interval": Duration(nanos=200_000_000),
        },
    }
    async with (
        served(tmp_path, binance.nats_url) as service,
        stub(service) as client,
        contextlib.AsyncExitStack() as stack,
    ):
        kept: dict[str, Kept] = defaultdict(Kept)
        for name, wish in wishes.items():
            call = client.StreamMarketData(
                pb.StreamMarketDataRequest(instruments=BTC, kinds=[BOOK], **wish)
            )
            await stack.enter_async_context(reading(call, kept[name].take))
        await until(
            lambda: (
                len({each.place[1] for each in kept.values()} - {0})
                and all(len(each.history) > 8 for each in kept.values())
            ),
            "every view has sent some",
        )
        compared = 0
        plain = kept["plain"]
        for name, wish in wishes.items():
            step, depth = wish.get("price_grouping", ""), wish.get("depth")
            for place, (bids, asks) in kept[name].history.items():
                if place in plain.history:
                    compared += 1
                    true_bids, true_asks = plain.history[place]
                    assert bids == grouped(true_bids, step, up=False)[:depth], name
                    assert asks == grouped(true_asks, step, up=True)[:depth], name
        assert compared > 30
        assert kept["conflated"].merged > 0, "expected updates to have been merged"
        assert S.SNAPSHOT_REASON_TOP_CHANGED in kept["top"].reasons


async def test_a_pair_of_two_venues_is_one_book(binance: Bench, tmp_path: Path) -> None:
    async with (
        served(tmp_path, binance.nats_url) as service,
        stub(service) as client,
        contextlib.AsyncExitStack() as stack,
    ):
        books: list[pb.ConsolidatedOrderBook] = []
        statuses: list[int] = []

        def take(response: pb.StreamConsolidatedOrderBookResponse) -> None:
            if response.HasField("stream_status"):
                statuses.append(response.stream_status.state)
            else:
                books.append(response.order_book)

        def included() -> set[str]:
            return {leg.exchange for leg in books[-1].legs if leg.included} if books else set()

        request = pb.StreamConsolidatedOrderBookRequest(
            **PAIR, depth=10, interval=Duration(nanos=50_000_000)
        )
        await stack.enter_async_context(reading(client.StreamConsolidatedOrderBook(request), take))
        await until(lambda: included() == {"binance"}, "the first venue is there")
        assert statuses == [E.STREAM_STATE_OPEN]
        async with okx(tmp_path / "okx", binance.nats_url):
            await until(
                lambda: included() == {"binance", "okx"}, "a venue that comes later joins", 20
            )
            await compare(client)
            count = len(books)
            await until(lambda: len(books) > count + 3, "the book comes again and again")
            best = books[-1]
            assert len(best.bids) == len(best.asks) == 10
            prices = [Decimal(level.price) for level in best.bids]
            assert prices == sorted(prices, reverse=True)
        await until(lambda: included() == {"binance"}, "a venue that is gone is left out", 20)
        (gone,) = (leg for leg in books[-1].legs if leg.exchange == "okx")
        assert gone.state != SYNCED, "expected to be told why it is left out"


async def compare(client: Any) -> None:
    """Compare a consolidated book with the books of its legs at the very same places."""
    kept: dict[str, Kept] = defaultdict(Kept)
    async with contextlib.AsyncExitStack() as stack:
        for exchange in ("binance", "okx"):
            request = pb.StreamOrderBookRequest(exchange=exchange, symbol="BTC-USDT")
            call = client.StreamOrderBook(request)
            await stack.enter_async_context(reading(call, kept[exchange].take))
        await until(lambda: all(each.place[0] for each in kept.values()), "both books are kept")
        for _ in range(20):
            answer = await client.GetConsolidatedOrderBook(
                pb.GetConsolidatedOrderBookRequest(**PAIR, depth=20)
            )
            book = answer.order_book
            places = {leg.exchange: (leg.epoch, leg.sequence) for leg in book.legs}
            await until(
                lambda places=places: all(
                    place in kept[name].history for name, place in places.items()
                ),
                "the books are where the consolidated one was",
            )
            for number, sign in ((0, -1), (1, 1)):
                naive = sorted(
                    (sign * Decimal(price), name, price, quantity)
                    for name, place in places.items()
                    for price, quantity in kept[name].history[place][number]
                )
                told = book.asks if number else book.bids
                assert [(each.exchange, each.price, each.quantity) for each in told] == [
                    level[1:] for level in naive[:20]
                ]


async def test_rest_gives_the_consolidated_book_and_its_stream(
    binance: Bench, tmp_path: Path
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        service = await stack.enter_async_context(served(tmp_path, binance.nats_url))
        gateway = GatewayService(service.mesh, gateway_settings({"marketdata": service}))
        await stack.enter_async_context(gateway.running())
        session = await stack.enter_async_context(aiohttp.ClientSession())
        url = f"http://127.0.0.1:{gateway.ports['all']}/api/v1/consolidated"

        async def ask(path: str) -> tuple[int, Any]:
            async with session.get(url + path) as answer:
                return answer.status, await answer.json()

        async def answered() -> bool:
            return (await ask("/BTC/USDT"))[0] == 200

        for _ in range(500):
            if await answered():
                break
            await asyncio.sleep(0.02)
        status, body = await ask("/BTC/USDT?depth=3&exchanges=binance")
        assert status == 200
        book = body["data"]["order_book"]
        assert len(book["bids"]) == len(book["asks"]) == 3
        assert book["legs"][0]["included"] is True
        status, body = await ask("/BTC/USDT?depth=-3")
        assert status == 400
        assert body["error"]["details"][0]["field"] == "depth"
        status, body = await ask("/BTC/XYZ")
        assert (status, body["error"]["code"]) == (404, "INSTRUMENT_NOT_FOUND")
        lines: list[Any] = []
        async with session.get(f"{url}/BTC/USDT/stream?depth=2&interval=0.05s") as answer:
            assert answer.status == 200
            async for line in answer.content:
                if line.strip():
                    lines.append(json.loads(line))
                if len(lines) == 4:
                    break
        assert lines[0]["stream_status"]["state"] == "STREAM_STATE_OPEN"
        assert [len(line["order_book"]["bids"]) for line in lines[1:]] == [2, 2, 2]
