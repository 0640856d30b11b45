"""OKX API v5: the public and the business WebSocket, with channels for all that is told in public.

Follows "WebSocket" and the channels' own chapters of the OKX API v5 documentation. A stream is
named `channel:key` here, where the key is what the channel's argument names: an instrument, an
index, a type of instruments or a family.
"""

import json
import math
import time
from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from aiohttp import web

from services.simulator.connection import Connection
from services.simulator.instrument import Listed, SymbolSpec
from services.simulator.limits import MessageRate
from services.simulator.market import (
    AggregateTrade,
    BestPrices,
    Candle,
    DepthUpdate,
    Event,
    Market,
    NotOfferedError,
    RawFrame,
    Ticker,
    Trade,
    UnknownSymbolError,
)
from services.simulator.okx_books import DEPTH_CHANNELS, OkxBooks
from services.simulator.okx_candles import BAR_CHANNELS, bar_of
from services.simulator.okx_channels import (
    CHANNELS,
    OkxArgument,
    OkxRefusalError,
    read_argument,
    read_request,
)
from services.simulator.okx_frames import OkxFrames, argument, dumps, instrument
from services.simulator.okx_listing import (
    default_symbols,
    instrument_type,
    listed,
    more_symbols,
)
from services.simulator.okx_rest import OkxRest
from services.simulator.okx_settings import OkxSettings
from services.simulator.protocol import Reply, VenueProtocol
from services.simulator.reference import (
    FundingRate,
    IndexPrice,
    InstrumentChange,
    InstrumentEvent,
    Liquidation,
    MarkPrice,
    OpenInterest,
    OptionGreeks,
)

if TYPE_CHECKING:
    from services.simulator.server import SimulatedVenue

__all__ = ["Okx"]

_DEPTH = tuple(f"{channel}:" for channel in DEPTH_CHANNELS)


class _State:
    """What is kept of a connection."""

    def __init__(self, identity: str, path: str, settings: OkxSettings) -> None:
        self.identity = identity
        """`connId`."""
        self.path = path
        limit = settings.operations_per_hour
        self.operations = None if limit is None else MessageRate(limit, 3600.0)
        self.told: dict[str, float] = {}
        """By book stream: monotonic time at which this connection was last told anything."""


class Okx(VenueProtocol):
    """OKX v5 spot, swaps, futures and options."""

    name = "okx"
    title = "OKX"
    websocket_paths = ("/ws/v5/public", "/ws/v5/business")
    settings_type = OkxSettings
    resets_chain = True

    def __init__(self) -> None:
        self.default_symbols = default_symbols()
        self.frames = OkxFrames()
        """Writes events; REST uses it too."""
        self._bound: tuple[SimulatedVenue, OkxSettings, OkxBooks] | None = None
        self._numbers = 0

    def bind(self, venue: "SimulatedVenue") -> None:
        """Serve that venue from now on."""
        settings = venue.settings
        if not isinstance(settings, OkxSettings):
            raise TypeError(f"expected OkxSettings, got {type(settings).__name__}")
        self._bound = (
            venue,
            settings,
            OkxBooks(venue, self.frames, checksum=settings.checksum),
        )

    def _serving(self) -> "tuple[SimulatedVenue, OkxSettings, OkxBooks]":
        if self._bound is None:
            raise RuntimeError("the protocol serves no venue yet: expected bind first")
        return self._bound

    @property
    def _market(self) -> Market:
        return self._serving()[0].market

    @property
    def _settings(self) -> OkxSettings:
        return self._serving()[1]

    @property
    def _books(self) -> OkxBooks:
        return self._serving()[2]

    def listed(self, symbol: str) -> Listed:
        """Return the instrument of an `instId`."""
        return listed(symbol)

    def more_symbols(self, count: int, have: Iterable[str]) -> tuple[str, ...]:
        """Return `have`, continued to `count` names."""
        return more_symbols(count, have)

    def addresses(self, venue: "SimulatedVenue") -> list[tuple[str, str]]:
        """REST and the two WebSockets."""
        return [
            ("REST", f"{venue.rest_url}/api/v5"),
            ("public", f"{venue.ws_url}/ws/v5/public"),
            ("business", f"{venue.ws_url}/ws/v5/business"),
        ]

    def open(self, request: web.Request) -> tuple[Hashable, list[str]]:
        """All connections get the same frames; what they may subscribe to depends on the path."""
        return request.path.rpartition("/")[2], []

    def opened(self, venue: "SimulatedVenue", connection: Connection) -> Iterable[bytes | Reply]:
        """Nothing is sent before the first request."""
        self._numbers += 1
        identity = f"{self._numbers * 2654435761 % (1 << 32):08x}"
        connection.state = _State(identity, str(connection.variant), self._settings)
        return ()

    def streams_of(self, event: Event) -> Sequence[str]:
        """Return the streams of an event; a candle has one for each of the longer intervals too."""
        kind = type(event)
        if isinstance(event, DepthUpdate):
            return _depth_streams(event.symbol) if event.interval_ms == 100 else ()
        if kind is Candle:
            return _candle_streams(event.symbol)
        channel = _CHANNEL_OF.get(kind)
        if channel is not None:
            return (_stream(channel, event.symbol),)
        if isinstance(event, RawFrame):
            return (event.stream,)
        if isinstance(event, InstrumentChange):
            if event.change is not InstrumentEvent.TICK:
                self._books.forget(event.symbol)
            return (_stream("instruments", instrument_type(event.spec)),)
        spec = self._spec(event.symbol)
        if spec is None:
            return ()
        if kind is OptionGreeks:
            return (_stream("opt-summary", spec.family),)
        if kind is Liquidation:
            return (_stream("liquidation-orders", instrument_type(spec)),)
        return ()

    def _spec(self, symbol: str) -> SymbolSpec | None:
        return self._market.symbols.get(symbol)

    def symbol_of(self, stream: str) -> str | None:
        """`books:BTC-USDT` belongs to BTC-USDT, `instruments:SPOT` to none."""
        channel, _, key = stream.partition(":")
        known = CHANNELS["books"] if stream.startswith(_DEPTH) else CHANNELS.get(channel)
        return key if known is not None and known.key == "instId" and not known.index else None

    def is_depth(self, stream: str) -> bool:
        """Whether it is `books`, or one of the faster ones that captures hold."""
        return stream.startswith(_DEPTH)

    def is_reference(self, stream: str) -> bool:
        """Whether it tells anything but books, trades, tickers and candles."""
        known = CHANNELS.get(stream.partition(":")[0])
        return known is not None and known.reference

    def event_id(self, event: Event) -> int | None:
        """Trade id; that of the last match for `trades`."""
        if isinstance(event, Trade):
            return event.trade_id
        if isinstance(event, AggregateTrade):
            return event.last_trade_id
        if isinstance(event, RawFrame) and event.event_id >= 0:
            return event.event_id if event.stream.startswith("trades") else None
        return None

    def encode(self, event: Event, stream: str) -> bytes | None:
        """Return the whole frame."""
        channel, _, key = stream.partition(":")
        frames = self.frames
        match event:
            case DepthUpdate():
                books = self._books
                return books.update(event) if channel == "books" else books.best_five(event)
            case BestPrices():
                return frames.best(event, self._market.time_us)
            case AggregateTrade():
                return frames.trade(event, self._market.update_id(event.symbol))
            case Trade():
                return frames.each_trade(event)
            case RawFrame():
                return event.payload
            case Candle():
                return self._candle(channel, event)
            case InstrumentChange():
                state = "expired" if event.change is InstrumentEvent.EXPIRED else "live"
                return _data(channel, key, "instType", [instrument(event.spec, state)])
            case IndexPrice():
                return _data(channel, key, "instId", [frames.index(event)])
        spec = self._spec(event.symbol)
        if spec is None:
            return None
        match event:
            case Ticker():
                return _data(channel, key, "instId", [frames.ticker(spec, event)])
            case MarkPrice():
                return _data(channel, key, "instId", [frames.mark(spec, event)])
            case FundingRate():
                return _data(channel, key, "instId", [frames.funding(spec, event)])
            case OpenInterest():
                return _data(channel, key, "instId", [frames.open_interest(spec, event)])
            case OptionGreeks():
                return _data(channel, key, "instFamily", [frames.greeks(spec, event)])
            case Liquidation():
                return _data(channel, key, "instType", [frames.liquidation(spec, event)])
        return None

    def _candle(self, channel: str, event: Candle) -> bytes | None:
        spec = self._spec(event.symbol)
        if spec is None:
            return None
        bar = bar_of(self._market, event, BAR_CHANNELS[channel])
        return self.frames.candle(spec, channel, bar)

    def request(
        self, venue: "SimulatedVenue", connection: Connection, text: str
    ) -> Iterable[bytes | Reply]:
        """`ping`, subscribe and unsubscribe; one acknowledgement for each argument."""
        state: _State = connection.state
        if text == "ping":
            return () if venue.heartbeat_refused(connection) else (b"pong",)
        try:
            asked = read_request(text)
        except OkxRefusalError as error:
            return (_error(error, None, state),)
        if state.operations is not None and not state.operations.allow():
            refused = OkxRefusalError("60014", "Requests too frequent")
            return (_error(refused, asked.number, state),)
        replies: list[bytes | Reply] = []
        for given in asked.arguments:
            try:
                wanted = read_argument(given, state.path, login=not self._market.raw)
                if asked.operation == "unsubscribe":
                    venue.unsubscribe(connection, wanted.stream)
                    state.told.pop(wanted.stream, None)
                    replies.append(_acknowledged("unsubscribe", wanted, asked.number, state))
                else:
                    replies += self._subscribe(venue, connection, wanted, asked.number)
            except OkxRefusalError as error:
                replies.append(_error(error, asked.number, state))
        return replies

    def _subscribe(
        self,
        venue: "SimulatedVenue",
        connection: Connection,
        wanted: OkxArgument,
        number: str | None,
    ) -> list[bytes | Reply]:
        state: _State = connection.state
        stream = wanted.stream
        self._check_known(wanted)
        if venue.subscription_refused(connection, stream):
            raise wanted.refused()
        if len(connection.streams) >= venue.settings.max_streams:
            raise OkxRefusalError("60014", "Requests too frequent")
        again = stream in connection.streams
        live = venue.subscribe(connection, stream)
        replies: list[bytes | Reply] = [_acknowledged("subscribe", wanted, number, state)]
        if again or not live:
            return replies
        if self.is_depth(stream):
            state.told[stream] = time.monotonic()
            connection.wake()
            book = self._books.snapshot(wanted.channel, wanted.key)
            first = [] if book is None else [book]
        else:
            first = self._first(wanted)
        symbol = self.symbol_of(stream) or ""
        return replies + [Reply(text, stream, symbol) for text in first]

    def _check_known(self, wanted: OkxArgument) -> None:
        market = self._market
        known = CHANNELS.get(wanted.channel, CHANNELS["books"])
        if known.index:
            exists = wanted.key in market.indices or not market.indices
        elif known.key == "instId":
            exists = wanted.key in market.symbols
        elif known.key == "instFamily":
            exists = any(spec.family == wanted.key for spec in market.symbols.values())
        else:
            return
        if not exists:
            raise wanted.refused()

    def _first(self, wanted: OkxArgument) -> list[bytes]:
        """Return what the venue tells at once of channels that are rarely told."""
        market, stream = self._market, wanted.stream
        events: list[Event] = []
        try:
            match wanted.channel:
                case "instruments":
                    specs = [
                        instrument(spec)
                        for spec in market.symbols.values()
                        if instrument_type(spec) == wanted.key
                    ]
                    return [_data("instruments", wanted.key, "instType", specs)]
                case "opt-summary":
                    told = [
                        self.frames.greeks(spec, market.greeks(spec.symbol))
                        for spec in market.symbols.values()
                        if spec.family == wanted.key and spec.strike is not None
                    ]
                    return [_data("opt-summary", wanted.key, "instFamily", told)]
                case "tickers":
                    events = [market.ticker(wanted.key)]
                case "mark-price":
                    events = [market.mark_price(wanted.key)]
                case "funding-rate":
                    events = [market.funding_rate(wanted.key)]
                case "open-interest":
                    events = [market.open_interest(wanted.key)]
                case "index-tickers":
                    events = [market.index_price(wanted.key)]
        except (NotOfferedError, UnknownSymbolError):
            return []
        encoded = [self.encode(event, stream) for event in events]
        return [text for text in encoded if text is not None]

    def keep(self, venue: "SimulatedVenue", connection: Connection, now: float) -> float:
        """Tell books which had no change for a minute once more, without levels."""
        state: _State | None = connection.state
        if state is None:
            return now + 0.05
        due = math.inf
        interval = self._settings.keepalive_seconds
        for stream, told in state.told.items():
            if not connection.streams.get(stream):
                continue
            symbol = stream.partition(":")[2]
            last = max(told, self._books.sent_at(symbol))
            if now >= last + interval:
                text = self._books.keepalive(symbol)
                if text is not None:
                    venue.send(connection, text)
                state.told[stream] = last = now
            due = min(due, last + interval)
        return due

    def shutdown_event(self, time_us: int) -> bytes:
        """`notice` 64008; the connection's own `connId` is not told apart."""
        return dumps(
            {
                "event": "notice",
                "code": "64008",
                "msg": "The connection will soon be closed for a service upgrade. "
                "Please reconnect.",
                "connId": "a4d3ae55",
            }
        )

    def wrong_checksum(self, text: bytes) -> bytes:
        """Return the frame with another checksum, where it has one."""
        if not self._settings.checksum:
            return text
        message: dict[str, Any] = json.loads(text)
        for book in message.get("data", ()):
            if isinstance(book, dict) and "checksum" in book:
                book["checksum"] ^= 0x55
        return dumps(message)

    def rest_routes(self, venue: "SimulatedVenue") -> list[web.RouteDef]:
        """`/api/v5/...`."""
        return OkxRest(venue, self.frames).routes()


_CHANNEL_OF: dict[type, str] = {
    BestPrices: "bbo-tbt",
    AggregateTrade: "trades",
    Trade: "trades-all",
    Ticker: "tickers",
    MarkPrice: "mark-price",
    IndexPrice: "index-tickers",
    FundingRate: "funding-rate",
    OpenInterest: "open-interest",
}


@lru_cache(maxsize=100_000)
def _stream(channel: str, key: str) -> str:
    return f"{channel}:{key}"


@lru_cache(maxsize=100_000)
def _depth_streams(symbol: str) -> tuple[str, ...]:
    return f"books:{symbol}", f"books5:{symbol}"


@lru_cache(maxsize=100_000)
def _candle_streams(symbol: str) -> tuple[str, ...]:
    return tuple(f"{channel}:{symbol}" for channel in BAR_CHANNELS)


def _data(channel: str, key: str, name: str, data: list[Any]) -> bytes:
    return f'{{"arg":{argument(channel, key, name)},"data":'.encode() + dumps(data) + b"}"


def _numbered(number: str | None, message: dict[str, object]) -> bytes:
    return dumps(message if number is None else {"id": number, **message})


def _acknowledged(event: str, wanted: OkxArgument, number: str | None, state: _State) -> bytes:
    return _numbered(number, {"event": event, "arg": wanted.told, "connId": state.identity})


def _error(error: OkxRefusalError, number: str | None, state: _State) -> bytes:
    return _numbered(
        number,
        {"event": "error", "msg": error.text, "code": error.code, "connId": state.identity},
    )
