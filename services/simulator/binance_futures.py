"""Binance USD-M and COIN-M futures market streams.

Follows "Websocket Market Streams" of both documents as of 2026. USD-M serves streams on two routes,
`/public` (books, best prices, trades) and `/market` (everything else); a subscription on the wrong
one is acknowledged and then silent. COIN-M has no routes.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, cast
from urllib.parse import unquote

from aiohttp import web

from services.simulator.binance_candles import INTERVALS, fold, minutes_of
from services.simulator.binance_futures_contracts import Contract, contract_of
from services.simulator.binance_futures_depth import DEPTH_STREAMS, DepthPace
from services.simulator.binance_futures_frames import COIN_M, USD_M, FuturesFrames
from services.simulator.binance_futures_listing import (
    coin_m_listed,
    default_coin_m,
    default_usd_m,
    more_coin_m,
    more_usd_m,
    usd_m_listed,
)
from services.simulator.binance_futures_market import OtherTrade
from services.simulator.binance_futures_rest import FuturesRest
from services.simulator.binance_requests import answer
from services.simulator.connection import Connection
from services.simulator.instrument import Listed
from services.simulator.market import (
    AggregateTrade,
    BestPrices,
    Candle,
    DepthUpdate,
    Event,
    Market,
    RawFrame,
    Ticker,
    Trade,
)
from services.simulator.protocol import BadHandshakeError, VenueProtocol
from services.simulator.reference import (
    IndexPrice,
    InstrumentChange,
    Liquidation,
    MarkPrice,
)
from services.simulator.settings import AtLeastOne, Positive, VenueSettings

if TYPE_CHECKING:
    from services.simulator.server import SimulatedVenue

__all__ = [
    "BinanceCoinM",
    "BinanceFuturesProtocol",
    "BinanceUsdM",
    "FuturesSettings",
    "FuturesVariant",
    "UsdMSettings",
]

_SECOND_US = 1_000_000
_BEST_OF_ALL_US = 5 * _SECOND_US
_AGGREGATES_KEPT = 20_000
_TRADES = ("@trade", "@aggTrade")
_PATHS = ("/stream", "/ws", "/ws/{streams:.*}")
_ROUTES = ("public", "market", "private")
_PUBLIC = ("depth", "rpiDepth", "bookTicker", "trade")
_PARTIAL_DEPTHS = ("depth5", "depth10", "depth20")
_REFERENCE = ("markPrice", "indexPrice", "forceOrder", "contractInfo")


class FuturesSettings(VenueSettings):
    """Limits and timings of Binance futures."""

    ping_interval_seconds: Positive | None = 180.0
    """Between the server's ping frames."""
    pong_timeout_seconds: Positive = 600.0
    """Without a pong this long after a ping, the connection is ended."""
    inbound_per_second: AtLeastOne | None = 10
    """Messages, pings and pongs that a client may send a second."""
    weight_limit: AtLeastOne = 2400
    """REST request weight a minute."""
    data_requests_per_five_minutes: AtLeastOne = 1000
    """Requests to `/futures/data` that may be made in five minutes; they have no weight."""


class UsdMSettings(FuturesSettings):
    """Limits and timings of Binance USD-M futures."""

    unrouted: Literal["all", "public", "refused"] = "all"
    """What the old addresses `/stream` and `/ws` serve: every stream, only those of `/public`
    (the others are acknowledged and silent, as at the venue since 2026-04), or nothing: 400."""


class FuturesVariant(NamedTuple):
    """How a connection of Binance futures wants its frames."""

    combined: bool
    """Wrapped with the stream's name."""
    route: str
    """`public`, `market` or `private`; empty for an address without a route."""
    muted: tuple[str, ...]
    """Streams which its URL names and its route does not serve."""


class BinanceFuturesProtocol(VenueProtocol):
    """What USD-M and COIN-M have in common. One instance serves one simulated venue."""

    settings_type: ClassVar[type[VenueSettings]] = FuturesSettings
    inverse: ClassVar[bool]
    """COIN-M: contracts settled in the base asset."""
    prefix: ClassVar[str]
    """What the paths of its REST begin with."""
    _type: ClassVar[int]

    def __init__(self) -> None:
        self.frames = FuturesFrames(self._type)
        self.aggregates: dict[str, deque[AggregateTrade]] = {}
        """The newest aggregate trades by symbol, for REST."""
        self._bound: SimulatedVenue | None = None
        self._contracts: dict[str, Contract] = {}
        self._paces: dict[str, DepthPace] = {}
        self._told_us: dict[tuple[str, str], int] = {}
        self._encoders: dict[type, Callable[[Any, str], bytes | None]] = {
            DepthUpdate: self._depth,
            BestPrices: self._best,
            Trade: self._trade,
            OtherTrade: self._other_trade,
            AggregateTrade: self._aggregate,
            Candle: self._candle,
            Ticker: self._ticker,
            MarkPrice: self._mark,
            IndexPrice: lambda event, _: self.frames.index(event),
            Liquidation: self._liquidation,
            InstrumentChange: self._changed,
            RawFrame: lambda event, _: cast("bytes", event.payload),
        }

    # The venue that it serves

    @property
    def venue(self) -> "SimulatedVenue":
        """The venue that it serves."""
        if self._bound is None:
            raise RuntimeError("the protocol serves no venue yet: expected bind first")
        return self._bound

    def bind(self, venue: "SimulatedVenue") -> None:
        """Serve that venue from now on."""
        self._bound = venue

    @property
    def _market(self) -> Market:
        return self.venue.market

    def contract(self, symbol: str) -> Contract:
        """Return the contract, also one that is no longer listed.

        Raises:
            KeyError: for a symbol that was never listed.

        """
        spec = self._market.symbols.get(symbol)
        known = self._contracts.get(symbol)
        if known is None or (spec is not None and known.spec is not spec):
            if spec is None:
                raise KeyError(symbol)
            known = self._contracts[symbol] = contract_of(spec, self._market.time_us)
        return known

    def contracts(self) -> list[Contract]:
        """Return every contract that is listed now."""
        return [self.contract(symbol) for symbol in list(self._market.symbols)]

    def gone(self) -> dict[str, Contract]:
        """Return the contracts that were listed while the venue ran and are no longer."""
        listed = self._market.symbols
        return {name: told for name, told in self._contracts.items() if name not in listed}

    def _learn(self, event: InstrumentChange) -> None:
        # What is told of it must still be written when it is gone.
        self._contracts[event.symbol] = contract_of(event.spec, event.time_us)

    def rest_routes(self, venue: "SimulatedVenue") -> list[web.RouteDef]:
        """`/fapi/v1/...` or `/dapi/v1/...`, and `/futures/data/...`."""
        self.contracts()
        return FuturesRest(venue, self).routes()

    # Connections

    def open(self, request: web.Request) -> tuple[Hashable, list[str]]:
        """`/stream?streams=a/b` is combined, `/ws/a` and `/ws` are raw, below a route or not."""
        route = request.path.split("/", 2)[1]
        route = route if route in _ROUTES else ""
        self._check_route(route)
        combined = request.path.rpartition("/")[2] == "stream" and "streams" not in (
            request.match_info
        )
        if combined:
            named = request.query.get("streams", "")
        else:
            named = unquote(request.match_info.get("streams", ""))
        streams = list(dict.fromkeys(stream for stream in named.split("/") if stream))
        muted = tuple(stream for stream in streams if not self.served(stream, route))
        return FuturesVariant(combined, route, muted), [s for s in streams if s not in muted]

    def _check_route(self, route: str) -> None:
        """Raise BadHandshakeError for an address that is not served."""

    def served(self, stream: str, route: str) -> bool:
        """Whether the stream is sent on that route; else it is acknowledged and silent."""
        return True

    def opened(self, venue: "SimulatedVenue", connection: Connection) -> Iterable[bytes]:
        """Take up the streams of the URL which this route does not serve."""
        for stream in cast("FuturesVariant", connection.variant).muted:
            venue.subscribe(connection, stream, mute=True)
        return ()

    def request(
        self, venue: "SimulatedVenue", connection: Connection, text: str
    ) -> tuple[bytes, ...]:
        """SUBSCRIBE, UNSUBSCRIBE, LIST_SUBSCRIPTIONS, SET_PROPERTY and GET_PROPERTY."""

        def subscribe(stream: str) -> None:
            route = cast("FuturesVariant", connection.variant).route
            venue.subscribe(connection, stream, mute=not self.served(stream, route))

        return (answer(venue, connection, text, subscribe),)

    def frame(self, event: Event, stream: str, payload: bytes, variant: Hashable) -> bytes:
        """Return the event, wrapped for combined connections; captured frames as they were."""
        if not cast("FuturesVariant", variant).combined:
            return payload
        if type(event) is RawFrame and event.wrapped is not None:
            return event.wrapped
        return b'{"stream":"%b","data":%b}' % (stream.encode(), payload)

    def shutdown_event(self, time_us: int) -> bytes:
        """`serverShutdown`, never wrapped: it belongs to no stream."""
        return b'{"e":"serverShutdown","E":%d}' % (time_us // 1000)

    # Streams

    def streams_of(self, event: Event) -> Sequence[str]:
        """`btcusdt@depth@100ms` and its slower and faster twins, and so on."""
        kind = type(event)
        if kind is RawFrame:
            return (cast("RawFrame", event).stream,)
        if kind is DepthUpdate and cast("DepthUpdate", event).interval_ms != 100:
            return ()
        if kind is AggregateTrade:
            kept = self.aggregates.get(event.symbol)
            if kept is None:
                kept = self.aggregates[event.symbol] = deque(maxlen=_AGGREGATES_KEPT)
            kept.append(cast("AggregateTrade", event))
        elif kind is InstrumentChange:
            self._learn(cast("InstrumentChange", event))
        suffixes = _SUFFIXES.get(kind)
        if suffixes is None:
            return ()
        pair = ""
        if kind is MarkPrice and self.inverse:
            pair = self.contract(event.symbol).pair
        return _streams(event.symbol, pair, suffixes)

    def symbol_of(self, stream: str) -> str | None:
        """`btcusdt@trade` belongs to BTCUSDT; `!ticker@arr` and `btcusd@indexPrice` to none."""
        symbol, at, kind = stream.partition("@")
        if not at or symbol.startswith("!") or kind.startswith("indexPrice"):
            return None
        return None if self.inverse and "_" not in symbol else symbol.upper()

    def is_depth(self, stream: str) -> bool:
        """Whether it is one of `DEPTH_STREAMS`."""
        return stream.partition("@")[2] in DEPTH_STREAMS

    def is_reference(self, stream: str) -> bool:
        """Whether it carries marks, indices, liquidations or changes of the listing."""
        return _kind(stream).startswith(_REFERENCE)

    def event_id(self, event: Event) -> int | None:
        """Trade id or aggregate trade id."""
        if type(event) is Trade:
            return event.trade_id
        if type(event) is AggregateTrade:
            return event.aggregate_id
        if type(event) is RawFrame and event.event_id >= 0 and event.stream.endswith(_TRADES):
            return event.event_id
        return None

    def encode(self, event: Event, stream: str) -> bytes | None:
        """Return the bare event, fields in the venue's order; None when the stream is not due."""
        return self._encoders[type(event)](event, stream)

    def _depth(self, event: DepthUpdate, stream: str) -> bytes | None:
        pace = self._paces.get(stream)
        if pace is None:
            pace = DepthPace(DEPTH_STREAMS[stream.partition("@")[2]])
            self._paces[stream] = pace
        due = pace.take(event)
        return due and self.frames.depth(self.contract(event.symbol), *due)

    def _best(self, event: BestPrices, stream: str) -> bytes | None:
        now_us = self._market.time_us
        if stream == "!bookTicker" and not self._due(stream, event.symbol, now_us, _BEST_OF_ALL_US):
            return None
        return self.frames.best(self.contract(event.symbol), event, now_us)

    def _trade(self, event: Trade, _: str) -> bytes:
        return self.frames.trade(self.contract(event.symbol), event)

    def _other_trade(self, event: OtherTrade, _: str) -> bytes:
        return self.frames.trade(self.contract(event.symbol), event, event.execution)

    def _aggregate(self, event: AggregateTrade, _: str) -> bytes:
        return self.frames.aggregate(self.contract(event.symbol), event)

    def _candle(self, event: Candle, stream: str) -> bytes:
        interval = stream.rpartition("_")[2]
        candle = event
        # One that has expired since may have events on the way.
        if interval != "1m" and event.symbol in self._market.symbols:
            minutes = self._market.candles(event.symbol, minutes_of(interval) + 1)
            known = [minute for minute in minutes if minute.open_us < event.open_us]
            candle = fold([*known, event], interval)[-1]
        return self.frames.candle(self.contract(event.symbol), candle, interval)

    def _ticker(self, event: Ticker, stream: str) -> bytes | None:
        write = self.frames.mini_ticker if "mini" in stream else self.frames.ticker
        if not stream.startswith("!"):
            return write(self.contract(event.symbol), event)
        if not self._leads(event.symbol):
            return None
        return self.frames.array(
            [
                write(contract, self._market.ticker(contract.spec.symbol))
                for contract in self.contracts()
            ]
        )

    def _mark(self, event: MarkPrice, stream: str) -> bytes | None:
        # Told every second, or every third.
        if not stream.endswith("@1s") and event.time_us // _SECOND_US % 3:
            return None
        name, _, _ = stream.partition("@")
        if name == event.symbol.lower():
            return self._marked(event)
        pair = None if name.startswith("!") else name.upper()
        if not self._leads(event.symbol, pair):
            return None
        return self.frames.array(
            [
                self._marked(self._market.mark_price(contract.spec.symbol))
                for contract in self.contracts()
                if pair in (None, contract.pair)
            ]
        )

    def _marked(self, event: MarkPrice) -> bytes:
        funding = None
        if self.contract(event.symbol).perpetual and event.symbol in self._market.symbols:
            funding = self._market.funding_rate(event.symbol)
        return self.frames.mark(event, funding)

    def _liquidation(self, event: Liquidation, stream: str) -> bytes | None:
        # A sample: of each symbol, at most one a second.
        if not self._due(stream, event.symbol, event.time_us, _SECOND_US):
            return None
        return self.frames.liquidation(self.contract(event.symbol), event)

    def _changed(self, event: InstrumentChange, _: str) -> bytes:
        contract = contract_of(event.spec, event.time_us)
        return self.frames.contract_info(contract, event)

    def _leads(self, symbol: str, pair: str | None = None) -> bool:
        # What tells of all symbols is sent when it is the first one's turn.
        for contract in self.contracts():
            if pair in (None, contract.pair):
                return contract.spec.symbol == symbol
        return False

    def _due(self, stream: str, symbol: str, now_us: int, interval_us: int) -> bool:
        if now_us - self._told_us.get((stream, symbol), 0) < interval_us:
            return False
        self._told_us[stream, symbol] = now_us
        return True


class BinanceUsdM(BinanceFuturesProtocol):
    """Binance USD-M futures: routes `/public` and `/market`, `/fapi/v1`."""

    name = "binance_usdm"
    title = "Binance USD-M futures"
    websocket_paths = _PATHS + tuple(f"/{route}{path}" for route in _ROUTES for path in _PATHS)
    settings_type: ClassVar[type[VenueSettings]] = UsdMSettings
    inverse = False
    prefix = "/fapi/v1"
    _type = USD_M

    def __init__(self) -> None:
        super().__init__()
        self.default_symbols = default_usd_m()

    def listed(self, symbol: str) -> Listed:
        """Return the USD-M contract of that name."""
        return usd_m_listed(symbol)

    def more_symbols(self, count: int, have: Iterable[str]) -> tuple[str, ...]:
        """Return `have`, continued to `count` names."""
        return more_usd_m(count, have)

    def addresses(self, venue: "SimulatedVenue") -> list[tuple[str, str]]:
        """REST and the two routes."""
        return [
            ("REST", f"{venue.rest_url}{self.prefix}"),
            ("books, trades", f"{venue.ws_url}/public/stream?streams="),
            ("other streams", f"{venue.ws_url}/market/stream?streams="),
        ]

    def _check_route(self, route: str) -> None:
        if not route and cast("UsdMSettings", self.venue.settings).unrouted == "refused":
            raise BadHandshakeError(
                '{"code":-1000,"msg":"expected a route: /public, /market or /private"}'
            )

    def served(self, stream: str, route: str) -> bool:
        """Whether the stream is sent on that route; else it is acknowledged and silent."""
        if not route:
            if cast("UsdMSettings", self.venue.settings).unrouted == "all":
                return True
            route = "public"
        name = _kind(stream).partition("@")[0]
        public = name in _PUBLIC or name.startswith(_PARTIAL_DEPTHS)
        return route == ("public" if public else "market")


class BinanceCoinM(BinanceFuturesProtocol):
    """Binance COIN-M futures: inverse contracts, `/dapi/v1`, no routes."""

    name = "binance_coinm"
    title = "Binance COIN-M futures"
    websocket_paths = _PATHS
    inverse = True
    prefix = "/dapi/v1"
    _type = COIN_M

    def __init__(self) -> None:
        super().__init__()
        self.default_symbols = default_coin_m()

    def listed(self, symbol: str) -> Listed:
        """Return the COIN-M contract of that name."""
        return coin_m_listed(symbol)

    def more_symbols(self, count: int, have: Iterable[str]) -> tuple[str, ...]:
        """Return `have`, continued to `count` names."""
        return more_coin_m(count, have)

    def addresses(self, venue: "SimulatedVenue") -> list[tuple[str, str]]:
        """REST and the streams."""
        return [
            ("REST", f"{venue.rest_url}{self.prefix}"),
            ("WebSocket", f"{venue.ws_url}/stream?streams="),
        ]


_SUFFIXES: Mapping[type, tuple[str, ...]] = {
    DepthUpdate: tuple(f"@{name}" for name in DEPTH_STREAMS),
    BestPrices: ("@bookTicker", "!bookTicker"),
    Trade: ("@trade",),
    OtherTrade: ("@trade",),
    AggregateTrade: ("@aggTrade",),
    Candle: tuple(f"@kline_{interval}" for interval in INTERVALS),
    Ticker: ("@ticker", "@miniTicker", "!ticker@arr", "!miniTicker@arr"),
    MarkPrice: ("@markPrice", "@markPrice@1s", "!markPrice@arr", "!markPrice@arr@1s"),
    IndexPrice: ("@indexPrice", "@indexPrice@1s"),
    Liquidation: ("@forceOrder", "!forceOrder@arr"),
    InstrumentChange: ("!contractInfo",),
}


@lru_cache(maxsize=100_000)
def _streams(symbol: str, pair: str, suffixes: tuple[str, ...]) -> tuple[str, ...]:
    names = [suffix if suffix.startswith("!") else symbol.lower() + suffix for suffix in suffixes]
    if pair:
        names += [pair.lower() + suffix for suffix in suffixes if suffix.startswith("@")]
    return tuple(names)


def _kind(stream: str) -> str:
    # `depth@100ms` of btcusdt@depth@100ms, `ticker@arr` of !ticker@arr.
    if stream.startswith("!"):
        return stream[1:]
    return stream.partition("@")[2]
