"""Binance spot, and sites that speak the same protocol (Binance.US).

Follows Binance's "WebSocket Streams" and "REST API" documents for spot as of 2026: combined
streams, `SUBSCRIBE` requests, diff depth with `U` and `u`, the rules under "How to manage a local
order book correctly".
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from services.collector.venues.base import (
    BookChecksum,
    BookDiff,
    BookSnapshot,
    Goodbye,
    Ignored,
    InstrumentSpec,
    MalformedFrameError,
    RestRequest,
    SnapshotSource,
    TradePrint,
    VenueMessage,
)
from services.collector.venues.binance_common import (
    COMBINED,
    DECODE_ERRORS,
    BookTicker,
    Id,
    Levels,
    Time,
    decode_answer,
    decode_depth,
    decode_trades,
    nanoseconds,
    split_pair,
    stream_of,
    subscribe_requests,
    symbol_spec,
    top_of_book,
)
from services.shared.decimals import canonical_decimal

__all__ = ["BinanceSpot", "DepthUpdate"]

_STREAMS = ("depth@100ms", "trade", "bookTicker")
_DEPTH_WEIGHTS = ((100, 5), (500, 25), (1000, 50), (5000, 250))


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


class _DepthFrame(msgspec.Struct, gc=False, frozen=True):
    data: DepthUpdate


class _TradeFrame(msgspec.Struct, gc=False, frozen=True):
    data: _Trade


class _BookTickerFrame(msgspec.Struct, gc=False, frozen=True):
    data: BookTicker


class _Symbol(msgspec.Struct, gc=False, frozen=True, rename="camel"):
    symbol: str
    status: str
    base_asset: str
    quote_asset: str
    filters: list[dict[str, Any]] = []


class _ExchangeInfo(msgspec.Struct, gc=False, frozen=True):
    symbols: list[_Symbol]


_decode_any = msgspec.json.Decoder().decode
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


def _combined_decoders() -> dict[bytes, Callable[[bytes], VenueMessage]]:
    depth = msgspec.json.Decoder(_DepthFrame).decode
    trade = msgspec.json.Decoder(_TradeFrame).decode
    ticker = msgspec.json.Decoder(_BookTickerFrame).decode
    decoders: dict[bytes, Callable[[bytes], VenueMessage]] = {
        b"trade": lambda frame: _trade(trade(frame).data),
        b"bookTicker": lambda frame: top_of_book(ticker(frame).data),
    }
    for name in (b"depth", b"depth@100ms", b"depth@1000ms"):
        decoders[name] = lambda frame: depth(frame).data
    return decoders


class BinanceSpot:
    """Adapter of Binance spot; see `VenueAdapter`."""

    snapshot_source = SnapshotSource.REQUEST

    def __init__(self, exchange: str = "binance") -> None:
        self.exchange = exchange
        self._decoders = _combined_decoders()

    # Frames

    def decode(self, frame: bytes | str) -> VenueMessage:
        """Decode a combined or raw stream frame, or the answer to a request."""
        data = frame.encode("utf-8", "surrogatepass") if isinstance(frame, str) else frame
        try:
            if data.startswith(COMBINED):
                # The stream's name tells the type before any JSON is read:
                # {"stream":"btcusdt@depth@100ms","data":{...}}
                end = data.find(b'"', len(COMBINED))
                decoder = self._decoders.get(data[data.find(b"@", 11, end) + 1 : end])
                if decoder is not None:
                    return decoder(data)
            return self._decode_slow(data)
        except DECODE_ERRORS as error:
            symbol, kind = stream_of(data)
            raise MalformedFrameError(
                f"{self.exchange}: {error} in frame {data[:160]!r}",
                symbol,
                concerns_book=kind not in ("trade", "bookTicker"),
            ) from error

    def _decode_slow(self, data: bytes) -> VenueMessage:
        message = _decode_any(data)
        if isinstance(message, dict) and "stream" in message and "data" in message:
            message = message["data"]
        if not isinstance(message, dict):
            raise MalformedFrameError(
                f"{self.exchange}: expected a JSON object, got {data[:160]!r}"
            )
        kind = message.get("e")
        if kind == "depthUpdate":
            return msgspec.convert(message, DepthUpdate)
        if kind == "trade":
            return _trade(msgspec.convert(message, _Trade))
        if kind == "serverShutdown":
            return Goodbye("serverShutdown")
        if kind in ("bookTicker", None) and {"u", "b", "B", "a", "A"} <= message.keys():
            return top_of_book(msgspec.convert(message, BookTicker))
        if kind is not None:
            return Ignored(str(kind))
        return decode_answer(self.exchange, message, data)

    def subscribe_frames(
        self, native_symbols: Iterable[str], first_request_id: int
    ) -> list[tuple[int, Sequence[str], str]]:
        """SUBSCRIBE requests, at most 150 streams in each to keep frames small."""
        return subscribe_requests(native_symbols, _STREAMS, first_request_id)

    # REST

    def instruments_request(self) -> RestRequest:
        """GET /api/v3/exchangeInfo, weight 20."""
        return RestRequest("/api/v3/exchangeInfo", 20)

    def decode_instruments(self, body: bytes) -> list[InstrumentSpec]:
        """Decode exchangeInfo; a symbol whose filters are malformed keeps empty steps."""
        try:
            info = _decode_info(body)
        except DECODE_ERRORS as error:
            raise MalformedFrameError(f"{self.exchange}: exchangeInfo: {error}") from error
        return [self._instrument(symbol) for symbol in info.symbols]

    def _instrument(self, symbol: _Symbol) -> InstrumentSpec:
        return symbol_spec(
            InstrumentSpec(
                self.exchange,
                f"{symbol.base_asset}-{symbol.quote_asset}",
                symbol.symbol,
                symbol.base_asset,
                symbol.quote_asset,
            ),
            symbol.filters,
            trading=symbol.status == "TRADING",
        )

    def snapshot_request(self, native_symbol: str, depth: int) -> RestRequest:
        """GET /api/v3/depth; the weight grows with the limit, which is 5000 at the most."""
        limit, weight = next(
            ((limit, weight) for limit, weight in _DEPTH_WEIGHTS if depth <= limit),
            _DEPTH_WEIGHTS[-1],
        )
        return RestRequest(
            "/api/v3/depth", weight, {"symbol": native_symbol, "limit": str(min(depth, limit))}
        )

    def decode_snapshot(self, body: bytes, request: RestRequest) -> BookSnapshot:
        """Decode a depth answer."""
        return decode_depth(self.exchange, body, request)

    def trades_request(self, native_symbol: str, first_id: int, count: int) -> RestRequest:
        """GET /api/v3/trades: the latest 1000; older ones need an API key and are not asked for."""
        return RestRequest("/api/v3/trades", 25, {"symbol": native_symbol, "limit": "1000"})

    def decode_trades(self, body: bytes, native_symbol: str) -> list[TradePrint]:
        """Decode past trades, oldest first."""
        return decode_trades(self.exchange, body, native_symbol)

    # Synchronisation

    def covered(self, diff: BookDiff, snapshot_id: int) -> bool:
        """Drop any event where `u` is not above the snapshot's lastUpdateId."""
        return diff.last <= snapshot_id

    def bridges(self, diff: BookDiff, snapshot_id: int) -> bool:
        """Require U <= lastUpdateId + 1 <= u of the first event that is kept."""
        return diff.first <= snapshot_id + 1 <= diff.last

    def repeats(self, diff: BookDiff, book_id: int) -> bool:
        """Ids only grow: what ends at or below the book's id is in it."""
        return diff.last <= book_id

    def book_checksum(self) -> BookChecksum | None:
        """No checksums on spot."""
        return None

    # Names

    def infer_instrument(self, native_symbol: str) -> InstrumentSpec:
        """Split a name at the longest known quote currency that ends it."""
        base, quote = split_pair(native_symbol)
        symbol = f"{base}-{quote}" if quote else native_symbol
        return InstrumentSpec(self.exchange, symbol, native_symbol, base, quote)
