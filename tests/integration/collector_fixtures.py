"""A collector between a simulated venue and a real broker, and followers that hold both together.

The followers know the contracts and nothing of the collector: what they rebuild from JetStream is
compared with the true book of the venue at the very same update id.
"""

import asyncio
import contextlib
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message as Proto
from marketprism.collector.v1 import collector_service_pb2_grpc
from marketprism.collector.v1 import integrity_event_pb2 as integrity
from marketprism.market.v1 import common_pb2, events_pb2, instrument_pb2
from marketprism.market.v1 import order_book_pb2 as pb

from services.broker.settings import load_broker_settings
from services.broker.streams import ensure_streams
from services.collector.feed import InstrumentFeed
from services.collector.service import CollectorService
from services.collector.settings import CollectorSettings
from services.shared.decimals import canonical_decimal
from services.shared.jetstream import Message, StartAt, StreamReader
from services.shared.settings import MeshSettings, NatsSettings, ServiceSettings
from services.simulator.generated import GeneratedMarket, GeneratedSettings
from services.simulator.instrument import SymbolSpec
from services.simulator.market import Trade, UpdateIdUnavailableError
from services.simulator.server import SimulatedVenue
from services.simulator.venues import VENUES, generated_market
from tests.integration.nats_tools import connected, nats_server, until

CONFIG = Path(__file__).resolve().parents[2] / "config"
SYMBOLS = {"BTCUSDT": "BTC-USDT", "ETHUSDT": "ETH-USDT"}
SYNCED = pb.ORDER_BOOK_STATE_SYNCED
WS_PATHS = {"binance": "/stream", "binance_coinm": "/stream", "deribit": "/ws/api/v2"}
"""Where the WebSocket of a simulated venue is, below its address; of the others at its root."""

_MESSAGES: Mapping[str, type[Proto]] = {
    "order_book_update": pb.OrderBookUpdate,
    "order_book_snapshot": pb.OrderBookSnapshot,
    "order_book_status": pb.OrderBookStatus,
    "trade": events_pb2.Trade,
    "best_bid_offer": events_pb2.BestBidOffer,
    "ticker": events_pb2.Ticker,
    "candle": events_pb2.Candle,
    "funding_rate": events_pb2.FundingRate,
    "mark_price": events_pb2.MarkPrice,
    "index_price": events_pb2.IndexPrice,
    "open_interest": events_pb2.OpenInterest,
    "liquidation": events_pb2.Liquidation,
    "long_short_ratio": events_pb2.LongShortRatio,
    "volatility_index": events_pb2.VolatilityIndex,
    "option_greeks": events_pb2.OptionGreeks,
    "instrument": instrument_pb2.Instrument,
}
"""The message of each kind of subject."""

_WORDS = frozenset(
    {
        "base", "collector_id", "connection_id", "detail", "event_id", "exchange", "liquidation_id",
        "native_symbol", "previous_event_id", "quote", "settlement", "symbol", "trade_id",
        "underlying",
    }
)  # fmt: skip
"""Text that is no number; all other text is."""


def numbers(message: Proto) -> Iterator[tuple[str, str]]:
    """Give every number that a message tells as text, by the name of its field."""
    for each, value in message.ListFields():
        if each.type == each.TYPE_STRING and each.name not in _WORDS:
            yield each.name, value
        elif each.message_type is common_pb2.PriceLevel.DESCRIPTOR:
            for level in value:
                yield f"{each.name}.price", level.price
                yield f"{each.name}.quantity", level.quantity


def misspelt(message: Proto) -> list[str]:
    """Tell which numbers are not canonical decimals."""
    found = []
    for name, text in numbers(message):
        try:
            good = canonical_decimal(text) == text
        except ValueError:
            good = False
        if not good:
            found.append(f"{type(message).__name__}.{name} is {text!r}")
    return found


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
    """Reads the book, trade and integrity streams live, across any outage of the broker.

    `natives` has the canonical symbols by the venue's names; books of others are left alone. With
    `everything` the other streams are read too, and every message is looked at: `told` counts them
    by kind and symbol, `problems` are breaches of what all of them have in common.
    """

    def __init__(
        self,
        url: str,
        market: GeneratedMarket,
        *,
        start: StartAt | None = None,
        natives: Mapping[str, str] = SYMBOLS,
        exchange: str = "binance",
        everything: bool = False,
    ) -> None:
        self.market = market
        self.exchange = exchange
        self.books: dict[str, FollowedBook] = {}
        self.trades: dict[str, list[events_pb2.Trade]] = defaultdict(list)
        self.entries: list[integrity.IntegrityEvent] = []
        self.instruments: dict[str, instrument_pb2.Instrument] = {}
        self.told: Counter[tuple[str, str]] = Counter()
        self.problems: list[str] = []
        self._sizes: dict[str, Decimal] = {}
        self._everything = everything
        for native, symbol in natives.items():
            self.follow(native, symbol)
        handlers = {
            "MARKET_ORDER_BOOK": self._book,
            "MARKET_TRADE": self._trade,
            "MARKET_INTEGRITY": self._entry,
        }
        if everything:
            handlers |= {
                "MARKET_BEST_BID_OFFER": self._look_at,
                "MARKET_REFERENCE": self._look_at,
                "MARKET_INSTRUMENT": self._instrument,
            }
        self._readers = [
            StreamReader(url, stream, start=start or StartAt.all(), on_batch=handler)
            for stream, handler in handlers.items()
        ]

    def follow(self, native: str, symbol: str, spec: SymbolSpec | None = None) -> None:
        """Follow the book of an instrument that the venue lists, or `spec` that it will list."""
        spec = spec or self.market.symbols[native]
        self._sizes[native] = Decimal(spec.contract_size * spec.multiplier) / 10**16
        self.books[symbol] = FollowedBook(native)

    def quantity(self, native: str, units: int) -> str:
        """Give a quantity of the venue (units of 1e-8) in the unit of the mesh."""
        return canonical_decimal(f"{Decimal(units) / 10**8 * self._sizes[native]:f}")

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
        self._look_at(messages)
        for message in messages:
            _, kind, _, symbol = message.subject.split(".")
            book = self.books.get(symbol)
            if book is None:
                continue
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
        self._look_at(messages)
        for message in messages:
            trade = events_pb2.Trade.FromString(message.payload)
            self.trades[trade.symbol].append(trade)

    def _entry(self, messages: list[Message]) -> None:
        self.entries += [integrity.IntegrityEvent.FromString(each.payload) for each in messages]

    def _instrument(self, messages: list[Message]) -> None:
        self._look_at(messages)
        for each in messages:
            message = instrument_pb2.Instrument.FromString(each.payload)
            self.instruments[message.symbol] = message

    def _look_at(self, messages: list[Message]) -> None:
        """See that messages are what all of their kind have to be."""
        if not self._everything:
            return
        for each in messages:
            _, kind, exchange, symbol = each.subject.split(".")
            message: Any = _MESSAGES[kind].FromString(each.payload)
            self.told[kind, symbol] += 1
            self.problems += misspelt(message)
            if (message.exchange, message.symbol) != (exchange, symbol):
                self.problems.append(f"{each.subject} tells of {message.exchange} {message.symbol}")
            time_field = {"order_book_status": "time", "instrument": "update_time"}
            if not message.HasField(time_field.get(kind, "receive_time")):
                self.problems.append(f"{each.subject} has no time")

    def compare(self, book: FollowedBook) -> None:
        """Hold a book against the venue's true one at the same update id."""
        try:
            truth = self.market.book_at(book.native, book.venue_sequence)
        except UpdateIdUnavailableError as error:
            book.problems.append(str(error))
            return
        size = self._sizes[book.native]
        bids, asks = (
            dict(side)
            if size == 1
            else {price: canonical_decimal(f"{Decimal(q) * size:f}") for price, q in side}
            for side in truth.canonical()
        )
        if (bids, asks) != (book.bids, book.asks):
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
        natives = {book.native: symbol for symbol, book in self.books.items()}
        newest = {native: self.market.recent_trades(native, 1)[-1].trade_id for native in natives}
        for native, symbol in natives.items():
            stored = self.trades[symbol]
            await until(
                lambda s=stored, n=native: s and _number(s[-1]) >= newest[n],
                f"trade {newest[native]} of {symbol} is stored",
                seconds,
            )
            ids = [number for trade in stored for number in _stands_for(trade)]
            true = {t.trade_id: t for t in self.market.recent_trades(native, 100_000)}
            # Binance's futures use up numbers for what is no trade of the market.
            made = [number for number in true if ids[0] <= number <= ids[-1]]
            assert ids == sorted(set(ids)), "expected each trade once, in order"
            assert set(ids) <= set(made), "expected nothing that is no trade of the market"
            assert len(made) - len(ids) <= lost, f"expected every trade of {symbol}"
            for trade in stored:
                self._hold_against(trade, native, [true[number] for number in _stands_for(trade)])

    def _hold_against(self, trade: events_pb2.Trade, native: str, truth: list[Trade]) -> None:
        """See that a trade is what the venue's own were, of which it may fold several."""
        assert {trade.price} == {canonical_decimal(f"{Decimal(t.price) / 10**8:f}") for t in truth}
        assert trade.quantity == self.quantity(native, sum(t.quantity for t in truth))
        assert trade.exchange_time.ToMicroseconds() == truth[-1].time_us // 1000 * 1000
        assert (trade.side == common_pb2.SIDE_SELL) == truth[-1].buyer_is_maker
        assert canonical_decimal(trade.price) == trade.price


def _number(trade: events_pb2.Trade) -> int:
    return trade.venue_sequence or int(trade.trade_id)


def _stands_for(trade: events_pb2.Trade) -> range:
    number = _number(trade)
    return range(number - max(trade.trade_count, 1) + 1, number + 1)


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
    venue_rest: str,
    venue_ws: str,
    *,
    of: str = "binance",
    exchange: dict[str, Any] | None = None,
    **more: Any,
) -> CollectorSettings:
    """Give settings with short times, so that a test sees in seconds what takes minutes live."""
    return CollectorSettings.model_validate(
        {
            "collector_id": "test",
            "exchanges": {
                of: {
                    "rest_url": venue_rest,
                    "ws_url": venue_ws + WS_PATHS.get(of, ""),
                    "symbols": list(SYMBOLS.values()) if of == "binance" else ["*"],
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
    of: str = "binance",
    market: dict[str, Any] | None = None,
    venue: dict[str, Any] | None = None,
    exchange: dict[str, Any] | None = None,
    nats_url: str | None = None,
    everything: bool = False,
    **settings: Any,
) -> AsyncIterator[Bench]:
    """Run venue, broker, collector and followers; gives them when every book is in step.

    `of` is the exchange: Binance spot with two symbols, or another one with all that it lists.
    """
    async with contextlib.AsyncExitStack() as stack:
        if nats_url is None:
            server = await stack.enter_async_context(nats_server(directory / "nats"))
            nats_url = server.url
            await make_streams(nats_url)
        protocol = VENUES[of]()
        options = {"depth_rate": 20, "trade_rate": 8, "levels": 100, "warmup_seconds": 0.5}
        source = generated_market(
            protocol,
            **{
                **options,
                **({"symbols": tuple(SYMBOLS)} if of == "binance" else {}),
                **(market or {}),
            },
        )
        limits = {"connects_per_five_minutes": 10_000, **(venue or {})}
        simulated = await stack.enter_async_context(
            SimulatedVenue(
                source, settings=protocol.settings_type.model_validate(limits), protocol=protocol
            )
        )
        times = count_requests(simulated)
        service = CollectorService(
            mesh_settings(directory, nats_url),
            collector_settings(
                simulated.rest_url, simulated.ws_url, of=of, exchange=exchange, **settings
            ),
        )
        await stack.enter_async_context(service.running())
        natives: Mapping[str, str] = SYMBOLS
        if of != "binance":
            collected = service.venues[0]
            await until(lambda: collected.ready, "the instruments are known")
            natives = {name: feed.spec.symbol for name, feed in collected.feeds.items()}
        seen = await stack.enter_async_context(
            Followers(
                nats_url, source, natives=natives, exchange=of, everything=everything
            ).running()
        )
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
