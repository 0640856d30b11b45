"""A collector between a simulated venue and a real broker, and followers that hold both together.

The followers know the contracts and nothing of the collector: what they rebuild from JetStream is
compared with the true book of the venue at the very same update id.
"""

import asyncio
import contextlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from marketprism.collector.v1 import collector_service_pb2_grpc
from marketprism.collector.v1 import integrity_event_pb2 as integrity
from marketprism.market.v1 import events_pb2
from marketprism.market.v1 import order_book_pb2 as pb

from services.broker.settings import load_broker_settings
from services.broker.streams import ensure_streams
from services.collector.feed import InstrumentFeed
from services.collector.service import CollectorService
from services.collector.settings import CollectorSettings
from services.shared.decimals import canonical_decimal
from services.shared.jetstream import Message, StartAt, StreamReader
from services.shared.settings import MeshSettings, NatsSettings, ServiceSettings
from services.simulator.fixed import canonical
from services.simulator.generated import GeneratedMarket, GeneratedSettings
from services.simulator.market import UpdateIdUnavailableError
from services.simulator.server import SimulatedVenue, VenueSettings
from tests.integration.nats_tools import connected, nats_server, until

CONFIG = Path(__file__).resolve().parents[2] / "config"
SYMBOLS = {"BTCUSDT": "BTC-USDT", "ETHUSDT": "ETH-USDT"}
SYNCED = pb.ORDER_BOOK_STATE_SYNCED


@dataclass
class FollowedBook:
    """One book, rebuilt by the contract's rules from what the stream holds."""

    native: str
    epoch: int = 0
    sequence: int = 0
    venue_sequence: int = 0
    has_book: bool = False
    bids: dict[str, str] = field(default_factory=dict)
    asks: dict[str, str] = field(default_factory=dict)
    statuses: list[pb.OrderBookStatus] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    updates: int = 0
    compared: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def state(self) -> int:
        return self.statuses[-1].state if self.statuses else 0

    def reasons(self) -> list[str]:
        return [
            pb.OrderBookReason.Name(each.reason).removeprefix("ORDER_BOOK_REASON_")
            for each in self.statuses
        ]

    def snapshot(self, message: pb.OrderBookSnapshot) -> None:
        if message.epoch < self.epoch:
            self.problems.append(f"epoch went back from {self.epoch} to {message.epoch}")
        if message.epoch != self.epoch:
            self.epochs.append(message.epoch)
        bids = {level.price: level.quantity for level in message.bids}
        asks = {level.price: level.quantity for level in message.asks}
        repeated = (message.epoch, message.sequence) == (self.epoch, self.sequence)
        if self.has_book and repeated and (bids, asks) != (self.bids, self.asks):
            self.problems.append(f"a snapshot at {self.epoch}.{self.sequence} tells another book")
        self.bids, self.asks = bids, asks
        self.epoch, self.sequence = message.epoch, message.sequence
        self.venue_sequence = message.venue_sequence
        self.has_book = True

    def update(self, message: pb.OrderBookUpdate) -> None:
        if not self.has_book:
            return
        if (message.epoch, message.sequence) != (self.epoch, self.sequence + 1):
            self.problems.append(
                f"{message.epoch}.{message.sequence} does not continue {self.epoch}.{self.sequence}"
            )
            self.has_book = False
            return
        if message.previous_venue_sequence != self.venue_sequence:
            self.problems.append(f"{message.previous_venue_sequence} is not {self.venue_sequence}")
        self.updates += 1
        self.sequence = message.sequence
        self.venue_sequence = message.venue_sequence
        for side, levels in ((self.bids, message.bids), (self.asks, message.asks)):
            for level in levels:
                if level.quantity == "0":
                    side.pop(level.price, None)
                else:
                    side[level.price] = level.quantity


class Followers:
    """Reads the book, trade and integrity streams live, across any outage of the broker."""

    def __init__(self, url: str, market: GeneratedMarket, *, start: StartAt | None = None) -> None:
        self.market = market
        self.books = {symbol: FollowedBook(native) for native, symbol in SYMBOLS.items()}
        self.trades: dict[str, list[events_pb2.Trade]] = defaultdict(list)
        self.entries: list[integrity.IntegrityEvent] = []
        handlers = {
            "MARKET_ORDER_BOOK": self._book,
            "MARKET_TRADE": self._trade,
            "MARKET_INTEGRITY": self._entry,
        }
        self._readers = [
            StreamReader(url, stream, start=start or StartAt.all(), on_batch=handler)
            for stream, handler in handlers.items()
        ]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Followers"]:
        for reader in self._readers:
            await reader.start()
        try:
            yield self
        finally:
            for reader in self._readers:
                await reader.stop()

    def _book(self, messages: list[Message]) -> None:
        for message in messages:
            _, kind, _, symbol = message.subject.split(".")
            book = self.books[symbol]
            if kind == "order_book_update":
                book.update(pb.OrderBookUpdate.FromString(message.payload))
            elif kind == "order_book_snapshot":
                book.snapshot(pb.OrderBookSnapshot.FromString(message.payload))
            else:
                book.statuses.append(pb.OrderBookStatus.FromString(message.payload))
                continue
            if book.updates % 7 == 0 and book.has_book:
                self.compare(book)

    def _trade(self, messages: list[Message]) -> None:
        for message in messages:
            trade = events_pb2.Trade.FromString(message.payload)
            self.trades[trade.symbol].append(trade)

    def _entry(self, messages: list[Message]) -> None:
        self.entries += [integrity.IntegrityEvent.FromString(each.payload) for each in messages]

    def compare(self, book: FollowedBook) -> None:
        """Hold a book against the venue's true one at the same update id."""
        try:
            truth = self.market.book_at(book.native, book.venue_sequence)
        except UpdateIdUnavailableError as error:
            book.problems.append(str(error))
            return
        bids, asks = truth.canonical()
        if (dict(bids), dict(asks)) != (book.bids, book.asks):
            book.problems.append(f"the book at {book.venue_sequence} is not the venue's")
        book.compared += 1

    def kinds(self) -> list[str]:
        return [
            integrity.IntegrityKind.Name(each.kind).removeprefix("INTEGRITY_KIND_")
            for each in self.entries
        ]

    def of_kind(self, kind: str) -> list[integrity.IntegrityEvent]:
        return [each for each, name in zip(self.entries, self.kinds(), strict=True) if name == kind]

    def reasons(self) -> list[str]:
        return [reason for book in self.books.values() for reason in book.reasons()]

    async def settle(self, seconds: float = 20.0) -> None:
        """Wait until every book is in step beyond what the venue has now, and equal to it."""
        targets = {book.native: self.market.update_id(book.native) for book in self.books.values()}
        for symbol, book in self.books.items():
            await until(
                lambda b=book: (
                    b.state == SYNCED and b.has_book and b.venue_sequence >= targets[b.native]
                ),
                f"{symbol} is in step beyond {targets[book.native]}",
                seconds,
            )
            self.compare(book)
            assert book.problems == []
            assert book.compared > 0

    async def settle_trades(self, seconds: float = 20.0, *, lost: int = 0) -> None:
        """Wait until the newest trades are stored; each must be there once, in order, and true."""
        newest = {native: self.market.recent_trades(native, 1)[-1].trade_id for native in SYMBOLS}
        for native, symbol in SYMBOLS.items():
            stored = self.trades[symbol]
            await until(
                lambda s=stored, n=native: s and int(s[-1].trade_id) >= newest[n],
                f"trade {newest[native]} of {symbol} is stored",
                seconds,
            )
            ids = [int(trade.trade_id) for trade in stored]
            if lost:
                assert ids == sorted(set(ids)), "expected each trade once, in order"
                assert ids[-1] - ids[0] + 1 - len(ids) <= lost
            else:
                assert ids == list(range(ids[0], ids[-1] + 1)), "expected each trade once, in order"
            true = {t.trade_id: t for t in self.market.recent_trades(native, 100_000)}
            for trade in stored:
                truth = true[int(trade.trade_id)]
                assert (trade.price, trade.quantity) == (
                    canonical(truth.price),
                    canonical(truth.quantity),
                )
                assert trade.exchange_time.ToMicroseconds() == truth.time_us // 1000 * 1000
                assert canonical_decimal(trade.price) == trade.price


@dataclass
class Bench:
    """The whole path, in one process but for nats-server."""

    venue: SimulatedVenue
    market: GeneratedMarket
    nats_url: str
    directory: Path
    service: CollectorService
    seen: Followers
    rest_times: list[tuple[float, str]]

    def feed(self, symbol: str = "BTC-USDT") -> InstrumentFeed:
        return self.service.venues[0].by_symbol[symbol]

    def requests(self, path: str = "/api/v3/depth") -> int:
        return sum(1 for _, asked in self.rest_times if asked == path)

    async def fault(self, kind: str, **options: Any) -> None:
        """Put a fault in force and wait until it happened."""
        fault = self.venue.fault(kind, **options)
        await until(lambda: fault.hits > 0, f"the fault {kind} happens")


def mesh_settings(directory: Path, nats_url: str) -> MeshSettings:
    return MeshSettings(
        data_dir=directory / "var",
        nats=NatsSettings(url=nats_url),
        shutdown_grace_seconds=1,
        services={"collector": ServiceSettings()},
    )


def collector_settings(
    venue_rest: str, venue_ws: str, *, exchange: dict[str, Any] | None = None, **more: Any
) -> CollectorSettings:
    """Give settings with short times, so that a test sees in seconds what takes minutes live."""
    return CollectorSettings.model_validate(
        {
            "collector_id": "test",
            "exchanges": {
                "binance": {
                    "rest_url": venue_rest,
                    "ws_url": f"{venue_ws}/stream",
                    "symbols": list(SYMBOLS.values()),
                    "backoff_seconds": 0.05,
                    "backoff_limit_seconds": 0.5,
                    "silence_seconds": 1.0,
                    "lag_seconds": 1.0,
                    "acknowledge_seconds": 2.0,
                    "rest_seconds": 2.0,
                    **(exchange or {}),
                }
            },
            "books": {"snapshot_every_updates": 50, "snapshot_every_seconds": 1},
            **more,
        }
    )


async def make_streams(url: str) -> None:
    """Make the streams that the broker service makes."""
    async with connected(url) as connection:
        await ensure_streams(connection, load_broker_settings(CONFIG))


def make_market(**more: Any) -> GeneratedMarket:
    return GeneratedMarket(
        GeneratedSettings(
            **{
                "symbols": tuple(SYMBOLS),
                "depth_rate": 20,
                "trade_rate": 8,
                "levels": 100,
                "warmup_seconds": 0.5,
                **more,
            }
        )
    )


def count_requests(venue: SimulatedVenue) -> list[tuple[float, str]]:
    """Note when each REST request reaches the venue."""
    times: list[tuple[float, str]] = []
    count = venue.count_rest

    def noted(path: str) -> None:
        times.append((time.monotonic(), path))
        count(path)

    venue.count_rest = noted  # type: ignore[method-assign]
    return times


@contextlib.asynccontextmanager
async def bench(
    directory: Path,
    *,
    market: dict[str, Any] | None = None,
    venue: dict[str, Any] | None = None,
    exchange: dict[str, Any] | None = None,
    nats_url: str | None = None,
    **settings: Any,
) -> AsyncIterator[Bench]:
    """Run venue, broker, collector and followers; gives them when every book is in step."""
    async with contextlib.AsyncExitStack() as stack:
        if nats_url is None:
            server = await stack.enter_async_context(nats_server(directory / "nats"))
            nats_url = server.url
            await make_streams(nats_url)
        source = make_market(**(market or {}))
        limits = {"connects_per_five_minutes": 10_000, **(venue or {})}
        simulated = await stack.enter_async_context(
            SimulatedVenue(source, settings=VenueSettings(**limits))
        )
        times = count_requests(simulated)
        service = CollectorService(
            mesh_settings(directory, nats_url),
            collector_settings(simulated.rest_url, simulated.ws_url, exchange=exchange, **settings),
        )
        await stack.enter_async_context(service.running())
        seen = await stack.enter_async_context(Followers(nats_url, source).running())
        await seen.settle()
        yield Bench(simulated, source, nats_url, directory, service, seen, times)
        assert service.failure is None


@contextlib.asynccontextmanager
async def stub(
    service: CollectorService,
) -> AsyncIterator[collector_service_pb2_grpc.CollectorServiceStub]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{service.grpc_port}") as channel:
        yield collector_service_pb2_grpc.CollectorServiceStub(channel)


def tasks() -> set[asyncio.Task[Any]]:
    """Tasks of this loop beside the test's own."""
    return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]


def contains_in_order(found: Sequence[str], wanted: Sequence[str]) -> bool:
    rest = iter(found)
    return all(each in rest for each in wanted)
