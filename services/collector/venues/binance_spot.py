"""Binance spot, and sites that speak the same protocol (Binance.US).

Follows Binance's "WebSocket Streams" and "REST API" documents for spot as of 2026: combined
streams, `SUBSCRIBE` requests, diff depth with `U` and `u`, the rules under "How to manage a local
order book correctly".
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, TypeAlias

import msgspec

from services.collector.venues.base import (
    Acknowledgement,
    BookDiff,
    BookSnapshot,
    Goodbye,
    Ignored,
    InstrumentSpec,
    MalformedFrameError,
    RestRequest,
    TopOfBook,
    TradePrint,
    VenueFault,
    VenueMessage,
)
from services.shared.decimals import InvalidDecimalError, canonical_decimal

__all__ = ["BinanceSpot", "DepthUpdate"]

_LEVELS = list[tuple[str, str]]
# What does not fit the contracts' int64 and Timestamp is refused here, and nowhere behind.
_Id: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Time: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=253_402_300_799_999_999)]
_COMBINED = b'{"stream":"'
_STREAMS = ("depth@100ms", "trade", "bookTicker")
_STREAMS_PER_FRAME = 150
_MICROSECONDS = 10**14  # a time above this is in microseconds (timeUnit=microsecond), not milli
_DEPTH_WEIGHTS = ((100, 5), (500, 25), (1000, 50), (5000, 250))
_QUOTES = (
    "USDT", "FDUSD", "USDC", "TUSD", "BUSD", "USDP", "USD1", "DAI", "BTC", "ETH", "BNB", "EUR",
    "TRY", "BRL", "GBP", "AUD", "USD", "JPY", "MXN", "ARS", "PLN", "RUB", "UAH", "NGN", "ZAR",
    "IDRT", "BIDR", "PAX", "TRX", "XRP", "DOGE", "DOT",
)  # fmt: skip


class DepthUpdate(msgspec.Struct, gc=False, frozen=True):
    """The `depthUpdate` payload."""

    native_symbol: str = msgspec.field(name="s")
    """Instrument."""
    first: _Id = msgspec.field(name="U")
    """First update id in the event."""
    last: _Id = msgspec.field(name="u")
    """Final update id in the event."""
    bids: _LEVELS = msgspec.field(name="b")
    """Changed bids."""
    asks: _LEVELS = msgspec.field(name="a")
    """Changed asks."""
    event_time: _Time = msgspec.field(name="E", default=0)
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
        return _nanoseconds(self.event_time)


class _Trade(msgspec.Struct, gc=False, frozen=True):
    native_symbol: str = msgspec.field(name="s")
    trade_id: _Id = msgspec.field(name="t")
    price: str = msgspec.field(name="p")
    quantity: str = msgspec.field(name="q")
    time: _Time = msgspec.field(name="T")
    buyer_is_maker: bool = msgspec.field(name="m")


class _BookTicker(msgspec.Struct, gc=False, frozen=True):
    native_symbol: str = msgspec.field(name="s")
    update_id: _Id = msgspec.field(name="u")
    bid_price: str = msgspec.field(name="b")
    bid_quantity: str = msgspec.field(name="B")
    ask_price: str = msgspec.field(name="a")
    ask_quantity: str = msgspec.field(name="A")
    event_time: _Time = msgspec.field(name="E", default=0)


class _DepthFrame(msgspec.Struct, gc=False, frozen=True):
    data: DepthUpdate


class _TradeFrame(msgspec.Struct, gc=False, frozen=True):
    data: _Trade


class _BookTickerFrame(msgspec.Struct, gc=False, frozen=True):
    data: _BookTicker


class _Snapshot(msgspec.Struct, gc=False, frozen=True):
    last: _Id = msgspec.field(name="lastUpdateId")
    bids: _LEVELS
    asks: _LEVELS


class _RestTrade(msgspec.Struct, gc=False, frozen=True, rename="camel"):
    id: _Id
    price: str
    qty: str
    time: _Time
    is_buyer_maker: bool


class _Symbol(msgspec.Struct, gc=False, frozen=True, rename="camel"):
    symbol: str
    status: str
    base_asset: str
    quote_asset: str
    filters: list[dict[str, Any]] = []


class _ExchangeInfo(msgspec.Struct, gc=False, frozen=True):
    symbols: list[_Symbol]


_decode_any = msgspec.json.Decoder().decode
_decode_snapshot = msgspec.json.Decoder(_Snapshot).decode
_decode_trades = msgspec.json.Decoder(list[_RestTrade]).decode
_decode_info = msgspec.json.Decoder(_ExchangeInfo).decode
_DECODE_ERRORS = (msgspec.DecodeError, UnicodeError, RecursionError, InvalidDecimalError)


def _nanoseconds(time: int) -> int:
    return time * (1_000 if time > _MICROSECONDS else 1_000_000)


def _trade(data: _Trade) -> TradePrint:
    return TradePrint(
        data.native_symbol,
        data.trade_id,
        _nanoseconds(data.time),
        canonical_decimal(data.price),
        canonical_decimal(data.quantity),
        data.buyer_is_maker,
    )


def _top_of_book(data: _BookTicker) -> TopOfBook:
    bid = (canonical_decimal(data.bid_price), canonical_decimal(data.bid_quantity))
    ask = (canonical_decimal(data.ask_price), canonical_decimal(data.ask_quantity))
    # An empty side comes as price 0, quantity 0.
    return TopOfBook(
        data.native_symbol,
        data.update_id,
        _nanoseconds(data.event_time),
        ("", "") if bid[1] == "0" else bid,
        ("", "") if ask[1] == "0" else ask,
    )


def _combined_decoders() -> dict[bytes, Callable[[bytes], VenueMessage]]:
    depth = msgspec.json.Decoder(_DepthFrame).decode
    trade = msgspec.json.Decoder(_TradeFrame).decode
    ticker = msgspec.json.Decoder(_BookTickerFrame).decode
    decoders: dict[bytes, Callable[[bytes], VenueMessage]] = {
        b"trade": lambda frame: _trade(trade(frame).data),
        b"bookTicker": lambda frame: _top_of_book(ticker(frame).data),
    }
    for name in (b"depth", b"depth@100ms", b"depth@1000ms"):
        decoders[name] = lambda frame: depth(frame).data
    return decoders


class BinanceSpot:
    """Adapter of Binance spot; see `VenueAdapter`."""

    def __init__(self, exchange: str = "binance") -> None:
        self.exchange = exchange
        self._decoders = _combined_decoders()

    # Frames

    def decode(self, frame: bytes | str) -> VenueMessage:
        """Decode a combined or raw stream frame, or the answer to a request."""
        data = frame.encode("utf-8", "surrogatepass") if isinstance(frame, str) else frame
        try:
            if data.startswith(_COMBINED):
                # The stream's name tells the type before any JSON is read:
                # {"stream":"btcusdt@depth@100ms","data":{...}}
                end = data.find(b'"', len(_COMBINED))
                decoder = self._decoders.get(data[data.find(b"@", 11, end) + 1 : end])
                if decoder is not None:
                    return decoder(data)
            return self._decode_slow(data)
        except _DECODE_ERRORS as error:
            symbol, kind = self._stream_of(data)
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
            return _top_of_book(msgspec.convert(message, _BookTicker))
        if kind is not None:
            return Ignored(str(kind))
        request_id = message.get("id")
        error = message.get("error", message if "code" in message else None)
        if isinstance(error, dict):
            return VenueFault(
                request_id if isinstance(request_id, int) else None,
                str(error.get("code", "")),
                str(error.get("msg", "")),
            )
        if "result" in message and isinstance(request_id, int):
            return Acknowledgement(request_id)
        raise MalformedFrameError(f"{self.exchange}: a frame of no known kind: {data[:160]!r}")

    @staticmethod
    def _stream_of(data: bytes) -> tuple[str, str]:
        """Give the instrument and the kind of stream, as far as a damaged frame tells them."""
        if not data.startswith(_COMBINED):
            return "", ""
        name, _, _ = data[len(_COMBINED) : len(_COMBINED) + 80].partition(b'"')
        symbol, at, kind = name.decode(errors="ignore").partition("@")
        return (symbol.upper(), kind) if at else ("", "")

    def subscribe_frames(
        self, native_symbols: Iterable[str], first_request_id: int
    ) -> list[tuple[int, Sequence[str], str]]:
        """SUBSCRIBE requests, at most 150 streams in each to keep frames small."""
        symbols = list(native_symbols)
        per_frame = _STREAMS_PER_FRAME // len(_STREAMS)
        frames: list[tuple[int, Sequence[str], str]] = []
        for start in range(0, len(symbols), per_frame):
            part = symbols[start : start + per_frame]
            request_id = first_request_id + len(frames)
            request = {
                "method": "SUBSCRIBE",
                "params": [f"{symbol.lower()}@{name}" for symbol in part for name in _STREAMS],
                "id": request_id,
            }
            frames.append((request_id, part, msgspec.json.encode(request).decode()))
        return frames

    # REST

    def instruments_request(self) -> RestRequest:
        """GET /api/v3/exchangeInfo, weight 20."""
        return RestRequest("/api/v3/exchangeInfo", 20)

    def decode_instruments(self, body: bytes) -> list[InstrumentSpec]:
        """Decode exchangeInfo; a symbol whose filters are malformed keeps empty steps."""
        try:
            info = _decode_info(body)
        except _DECODE_ERRORS as error:
            raise MalformedFrameError(f"{self.exchange}: exchangeInfo: {error}") from error
        return [self._instrument(symbol) for symbol in info.symbols]

    def _instrument(self, symbol: _Symbol) -> InstrumentSpec:
        filters = {str(item.get("filterType")): item for item in symbol.filters}

        def step(kind: str, key: str) -> str:
            value = filters.get(kind, {}).get(key, "")
            try:
                number = canonical_decimal(value) if isinstance(value, str) and value else ""
            except InvalidDecimalError:
                return ""
            return "" if number == "0" else number

        return InstrumentSpec(
            exchange=self.exchange,
            symbol=f"{symbol.base_asset}-{symbol.quote_asset}",
            native_symbol=symbol.symbol,
            base=symbol.base_asset,
            quote=symbol.quote_asset,
            tick_size=step("PRICE_FILTER", "tickSize"),
            lot_size=step("LOT_SIZE", "stepSize"),
            min_quantity=step("LOT_SIZE", "minQty"),
            min_notional=step("NOTIONAL", "minNotional") or step("MIN_NOTIONAL", "minNotional"),
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
        try:
            snapshot = _decode_snapshot(body)
        except _DECODE_ERRORS as error:
            raise MalformedFrameError(
                f"{self.exchange}: depth: {error} in {body[:160]!r}",
                request.query.get("symbol", ""),
            ) from error
        return BookSnapshot(
            snapshot.last, snapshot.bids, snapshot.asks, int(request.query.get("limit", "0"))
        )

    def trades_request(self, native_symbol: str, first_id: int, count: int) -> RestRequest:
        """GET /api/v3/trades: the latest 1000; older ones need an API key and are not asked for."""
        return RestRequest("/api/v3/trades", 25, {"symbol": native_symbol, "limit": "1000"})

    def decode_trades(self, body: bytes, native_symbol: str) -> list[TradePrint]:
        """Decode past trades, oldest first."""
        try:
            return [
                TradePrint(
                    native_symbol,
                    trade.id,
                    _nanoseconds(trade.time),
                    canonical_decimal(trade.price),
                    canonical_decimal(trade.qty),
                    trade.is_buyer_maker,
                )
                for trade in sorted(_decode_trades(body), key=lambda trade: trade.id)
            ]
        except _DECODE_ERRORS as error:
            raise MalformedFrameError(
                f"{self.exchange}: trades: {error} in {body[:160]!r}", native_symbol
            ) from error

    # Synchronisation

    def covered(self, diff: BookDiff, snapshot_id: int) -> bool:
        """Drop any event where `u` is not above the snapshot's lastUpdateId."""
        return diff.last <= snapshot_id

    def bridges(self, diff: BookDiff, snapshot_id: int) -> bool:
        """Require U <= lastUpdateId + 1 <= u of the first event that is kept."""
        return diff.first <= snapshot_id + 1 <= diff.last

    # Names

    def infer_instrument(self, native_symbol: str) -> InstrumentSpec:
        """Split a name at the longest known quote currency that ends it."""
        for quote in sorted(_QUOTES, key=len, reverse=True):
            base = native_symbol.removesuffix(quote)
            if base and base != native_symbol:
                return InstrumentSpec(self.exchange, f"{base}-{quote}", native_symbol, base, quote)
        return InstrumentSpec(self.exchange, native_symbol, native_symbol, native_symbol, "")
