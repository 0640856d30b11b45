"""Binance spot, and sites that speak the same protocol (Binance.US).

Follows Binance's "WebSocket Streams" and "REST API" documents for spot as of 2026: combined
streams, `SUBSCRIBE` requests, diff depth with `U` and `u`, the rules under "How to manage a local
order book correctly".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from marketprism.market.v1 import common_pb2

from services.collector.venues.base import (
    BookDiff,
    ConnectionRules,
    InstrumentSpec,
    MalformedFrameError,
    Observation,
    Poll,
    RestPool,
    RestRequest,
    Selection,
    Subscription,
    TradePrint,
)
from services.collector.venues.binance_adapter import KLINE_CHANNELS, BinanceAdapter
from services.collector.venues.binance_common import (
    DECODE_ERRORS,
    INTERVALS,
    Id,
    Levels,
    Time,
    nanoseconds,
    read_steps,
    split_pair,
    unique,
)
from services.collector.venues.binance_streams import (
    AggregateTrade,
    BookTicker,
    Kline,
    Ticker,
    aggregate_trade,
    candle,
    ticker,
    top_of_book,
)
from services.shared.decimals import canonical_decimal

__all__ = ["BINANCE", "BINANCE_US", "BinanceSpot", "DepthUpdate", "SpotSite"]

_BOOK = common_pb2.EVENT_KIND_ORDER_BOOK
_TRADE = common_pb2.EVENT_KIND_TRADE
_TOP = common_pb2.EVENT_KIND_BEST_BID_OFFER
_TICKER = common_pb2.EVENT_KIND_TICKER
_CANDLE = common_pb2.EVENT_KIND_CANDLE
# Stream, kind, and how long it may be silent: depth, top and ticker are sent when they change, and
# of the least traded instruments the top stays what it is for minutes.
_STREAMS = (
    ("depth@100ms", _BOOK, 120.0),
    ("trade", _TRADE, 0.0),
    ("bookTicker", _TOP, 300.0),
    ("ticker", _TICKER, 120.0),
)
_QUIET_CANDLE = 300.0


@dataclass(frozen=True, slots=True)
class SpotSite:
    """What is different between the sites that speak this protocol."""

    exchange: str
    """Venue id."""
    rest_url: str
    """Base of the REST interface."""
    ws_url: str
    """WebSocket address."""
    weight_limit: int
    """Request weight that we allow ourselves in a minute, four fifths of what the site does."""
    depth_weights: tuple[tuple[int, int], ...]
    """Largest limit and weight of requests for a book."""
    list_weight: int
    """Weight of exchangeInfo."""
    trades_weight: int
    """Weight of a request for past trades."""
    quotes: tuple[str, ...]
    """Quote currencies by which a bare name is split, longest first where one ends another."""


BINANCE = SpotSite(
    exchange="binance",
    rest_url="https://api.binance.com",
    ws_url="wss://stream.binance.com:9443/stream",
    weight_limit=4800,
    depth_weights=((100, 5), (500, 25), (1000, 50), (5000, 250)),
    list_weight=20,
    trades_weight=25,
    quotes=(
        "FDUSD", "RLUSD", "USDT", "USDC", "TUSD", "BUSD", "USDP", "USD1", "IDRT", "BIDR", "EURI",
        "DOGE", "DAI", "BTC", "ETH", "BNB", "EUR", "TRY", "BRL", "GBP", "AUD", "USD", "JPY", "MXN",
        "ARS", "PLN", "RUB", "UAH", "NGN", "ZAR", "COP", "CZK", "RON", "IDR", "PAX", "TRX", "XRP",
        "SOL", "DOT", "VAI", "USDS", "BKRW", "BVND", "GYEN", "U",
    ),
)  # fmt: skip
BINANCE_US = SpotSite(
    exchange="binance_us",
    rest_url="https://api.binance.us",
    ws_url="wss://stream.binance.us:9443/stream",
    weight_limit=960,
    depth_weights=((100, 1), (500, 5), (1000, 10), (5000, 50)),
    list_weight=10,
    trades_weight=1,
    quotes=("USDT", "USDC", "BUSD", "USD4", "DAI", "USD", "BTC", "ETH", "BNB"),
)


class DepthUpdate(msgspec.Struct, gc=False, frozen=True):
    """The `depthUpdate` payload."""

    native_symbol: str = msgspec.field(name="s")
    """Instrument."""
    first: Id = msgspec.field(name="U")
    """First update id in the event."""
    last: Id = msgspec.field(name="u")
    """Final update id in the event."""
    bids: Levels = msgspec.field(name="b")
    """Changed bids."""
    asks: Levels = msgspec.field(name="a")
    """Changed asks."""
    event_time: Time = msgspec.field(name="E", default=0)
    """Event time as sent, milliseconds or microseconds."""

    def __post_init__(self) -> None:
        if self.last < self.first:
            raise ValueError(f"expected U <= u, got {self.first} and {self.last}")

    @property
    def previous(self) -> int:
        """Id that this event continues."""
        return self.first - 1

    @property
    def exchange_time(self) -> int:
        """Event time in nanoseconds."""
        return nanoseconds(self.event_time)

    @property
    def checksum(self) -> int:
        """None on spot."""
        return 0


class _Trade(msgspec.Struct, gc=False, frozen=True):
    native_symbol: str = msgspec.field(name="s")
    trade_id: Id = msgspec.field(name="t")
    price: str = msgspec.field(name="p")
    quantity: str = msgspec.field(name="q")
    time: Time = msgspec.field(name="T")
    buyer_is_maker: bool = msgspec.field(name="m")


class _Symbol(msgspec.Struct, gc=False, frozen=True, rename="camel"):
    symbol: str
    status: str
    base_asset: str
    quote_asset: str
    filters: list[dict[str, Any]] = []


class _ExchangeInfo(msgspec.Struct, gc=False, frozen=True):
    symbols: list[_Symbol]


_decode_info = msgspec.json.Decoder(_ExchangeInfo).decode


def _trade(data: _Trade) -> TradePrint:
    return TradePrint(
        data.native_symbol,
        data.trade_id,
        nanoseconds(data.time),
        canonical_decimal(data.price),
        canonical_decimal(data.quantity),
        data.buyer_is_maker,
    )


class BinanceSpot(BinanceAdapter):
    """Adapter of one site; see `VenueAdapter`."""

    kinds = frozenset((_BOOK, _TRADE, _TOP, _TICKER, _CANDLE))
    # Five messages a second are allowed, our answers to pings among them.
    connection_rules = ConnectionRules(
        topics=300,
        request_seconds=0.3,
        connects=250,
        connect_seconds=300.0,
        life_seconds=86_400.0,
    )

    def __init__(self, site: SpotSite = BINANCE) -> None:
        super().__init__(site.exchange)
        self._site = site
        self.default_rest_url = site.rest_url
        self.default_ws_url = site.ws_url
        self.rest_pool = RestPool(site.exchange, site.weight_limit, 60.0)
        self._on_diff(DepthUpdate)
        self._on("trade", ("trade",), _Trade, _trade)
        self._on("aggTrade", ("aggTrade",), AggregateTrade, aggregate_trade)
        self._on("bookTicker", ("bookTicker",), BookTicker, top_of_book)
        self._on("24hrTicker", ("ticker",), Ticker, ticker)
        self._on("kline", KLINE_CHANNELS, Kline, candle)

    # Frames

    def route_url(self, ws_url: str, route: str) -> str:
        """There is but one."""
        return ws_url

    def subscriptions(self, spec: InstrumentSpec, selection: Selection) -> list[Subscription]:
        """Streams of one instrument, one a kind and one a length of candles."""
        name = spec.native_symbol.lower()
        found = [
            Subscription(f"{name}@{stream}", (kind,), spec.native_symbol, quiet_seconds=quiet)
            for stream, kind, quiet in _STREAMS
            if kind in selection.kinds
        ]
        if _CANDLE in selection.kinds:
            found += [
                Subscription(
                    f"{name}@kline_{INTERVALS[seconds]}",
                    (_CANDLE,),
                    spec.native_symbol,
                    quiet_seconds=_QUIET_CANDLE,
                )
                for seconds in selection.candle_intervals
                if seconds in INTERVALS
            ]
        return found

    def shared_subscriptions(
        self, specs: Sequence[InstrumentSpec], selection: Selection
    ) -> list[Subscription]:
        """None: spot tells of changes to its list by REST only."""
        return []

    # REST

    def instrument_requests(self) -> list[RestRequest]:
        """GET /api/v3/exchangeInfo."""
        return [RestRequest("/api/v3/exchangeInfo", self._site.list_weight)]

    def decode_instruments(self, body: bytes) -> list[InstrumentSpec]:
        """Decode exchangeInfo; a symbol whose filters are malformed keeps empty steps."""
        try:
            info = _decode_info(body)
        except DECODE_ERRORS as error:
            raise MalformedFrameError(f"{self.exchange}: exchangeInfo: {error}") from error
        return unique([self._instrument(symbol) for symbol in info.symbols])

    def _instrument(self, symbol: _Symbol) -> InstrumentSpec:
        steps = read_steps(symbol.filters)
        return InstrumentSpec(
            self.exchange,
            f"{symbol.base_asset}-{symbol.quote_asset}",
            symbol.symbol,
            symbol.base_asset,
            symbol.quote_asset,
            tick_size=steps.tick_size,
            lot_size=steps.lot_size,
            min_quantity=steps.min_quantity,
            min_notional=steps.min_notional,
            trading=symbol.status == "TRADING",
        )

    def snapshot_request(self, native_symbol: str, depth: int) -> RestRequest:
        """GET /api/v3/depth; the weight grows with the limit, which is 5000 at the most."""
        weights = self._site.depth_weights
        limit, weight = next(
            ((limit, weight) for limit, weight in weights if depth <= limit), weights[-1]
        )
        return RestRequest(
            "/api/v3/depth", weight, {"symbol": native_symbol, "limit": str(min(depth, limit))}
        )

    def trades_request(self, native_symbol: str, first_id: int, count: int) -> RestRequest:
        """GET /api/v3/trades: the latest 1000, which reach back past a hole that is fresh."""
        return RestRequest(
            "/api/v3/trades", self._site.trades_weight, {"symbol": native_symbol, "limit": "1000"}
        )

    def older_trades_request(
        self, native_symbol: str, first_id: int, last_id: int
    ) -> RestRequest | None:
        """GET /api/v3/historicalTrades from an id on; binance.us wants an API key and refuses."""
        return RestRequest(
            "/api/v3/historicalTrades",
            self._site.trades_weight,
            {
                "symbol": native_symbol,
                "fromId": str(first_id),
                "limit": str(min(last_id - first_id + 1, self.history_page)),
            },
        )

    def polls(self, specs: Sequence[InstrumentSpec], selection: Selection) -> list[Poll]:
        """None: everything that spot has comes in streams."""
        return []

    def decode_poll(self, body: bytes, poll: Poll) -> list[Observation]:
        """Nothing is polled on spot. Raises MalformedFrameError."""
        raise MalformedFrameError(f"{self.exchange}: no poll of {poll.request.path} is known")

    # Synchronisation

    def covered(self, diff: BookDiff, snapshot_id: int) -> bool:
        """Drop any event where `u` is not above the snapshot's lastUpdateId."""
        return diff.last <= snapshot_id

    def bridges(self, diff: BookDiff, snapshot_id: int) -> bool:
        """Require U <= lastUpdateId + 1 <= u of the first event that is kept."""
        return diff.first <= snapshot_id + 1 <= diff.last

    # Names

    def infer_instrument(self, native_symbol: str) -> InstrumentSpec:
        """Split a name at a known quote currency that ends it."""
        base, quote = split_pair(native_symbol, self._site.quotes)
        symbol = f"{base}-{quote}" if quote else native_symbol
        return InstrumentSpec(self.exchange, symbol, native_symbol, base, quote)
