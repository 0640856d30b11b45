"""Binance USD-M and COIN-M futures: one protocol, two hosts.

Follows Binance's "USDⓈ-M Futures" and "COIN-M Futures" documents as of 2026: diff depth with `U`,
`u` and `pu`, and the rules under "How to manage a local order book correctly". Quantities of COIN-M
are contracts, as the venue sends them.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, TypeAlias

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

__all__ = ["BinanceFutures", "FuturesDepthUpdate"]

# -1 before an instrument's first change.
_PreviousId: TypeAlias = Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)]
# All of these are served by the `/public` route of USD-M.
_STREAMS = ("depth@100ms", "trade", "bookTicker")
_DIFF_STREAMS = frozenset(
    ("depth", "depth@0ms", "depth@100ms", "depth@250ms", "depth@500ms", "depth@1000ms")
)
_DEPTH_LIMITS = ((50, 2), (100, 5), (500, 10), (1000, 20))
_TRADES_WEIGHT = 5
# Not trades of the market, but the venue settling its own affairs.
_NOT_OF_THE_MARKET = frozenset(("INSURANCE_FUND", "ADL", "NA"))


class FuturesDepthUpdate(msgspec.Struct, gc=False, frozen=True):
    """The `depthUpdate` payload."""

    native_symbol: str = msgspec.field(name="s")
    """Instrument."""
    first: Id = msgspec.field(name="U")
    """First update id in the event."""
    last: Id = msgspec.field(name="u")
    """Final update id in the event."""
    previous: _PreviousId = msgspec.field(name="pu")
    """Final update id of the event before, which this one continues."""
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
    def exchange_time(self) -> int:
        """Event time in nanoseconds."""
        return nanoseconds(self.event_time)

    @property
    def checksum(self) -> int:
        """None on Binance."""
        return 0


class _Trade(msgspec.Struct, gc=False, frozen=True):
    native_symbol: str = msgspec.field(name="s")
    trade_id: Id = msgspec.field(name="t")
    price: str = msgspec.field(name="p")
    quantity: str = msgspec.field(name="q")
    time: Time = msgspec.field(name="T")
    buyer_is_maker: bool = msgspec.field(name="m")
    execution: str = msgspec.field(name="X", default="MARKET")


class _AggregateTrade(msgspec.Struct, gc=False, frozen=True):
    native_symbol: str = msgspec.field(name="s")
    last_trade_id: Id = msgspec.field(name="l")
    price: str = msgspec.field(name="p")
    quantity: str = msgspec.field(name="q")
    time: Time = msgspec.field(name="T")
    buyer_is_maker: bool = msgspec.field(name="m")
    # Absent from frames of 2019.
    aggregate_id: Id | None = msgspec.field(name="a", default=None)


class _DepthFrame(msgspec.Struct, gc=False, frozen=True):
    data: FuturesDepthUpdate


class _TradeFrame(msgspec.Struct, gc=False, frozen=True):
    data: _Trade


class _AggregateTradeFrame(msgspec.Struct, gc=False, frozen=True):
    data: _AggregateTrade


class _BookTickerFrame(msgspec.Struct, gc=False, frozen=True):
    data: BookTicker


class _Symbol(msgspec.Struct, gc=False, frozen=True, rename="camel"):
    symbol: str
    base_asset: str
    quote_asset: str
    # USD-M says `status`, COIN-M `contractStatus`.
    status: str = ""
    contract_status: str = ""
    filters: list[dict[str, Any]] = []


class _ExchangeInfo(msgspec.Struct, gc=False, frozen=True):
    symbols: list[_Symbol]


_decode_any = msgspec.json.Decoder().decode
_decode_info = msgspec.json.Decoder(_ExchangeInfo).decode


def _trade(data: _Trade) -> TradePrint | Ignored:
    if data.execution in _NOT_OF_THE_MARKET:
        return Ignored(f"trade {data.execution}")
    return TradePrint(
        data.native_symbol,
        data.trade_id,
        nanoseconds(data.time),
        canonical_decimal(data.price),
        canonical_decimal(data.quantity),
        data.buyer_is_maker,
    )


def _aggregate_trade(data: _AggregateTrade) -> TradePrint:
    return TradePrint(
        data.native_symbol,
        data.last_trade_id if data.aggregate_id is None else data.aggregate_id,
        nanoseconds(data.time),
        canonical_decimal(data.price),
        canonical_decimal(data.quantity),
        data.buyer_is_maker,
    )


def _combined_decoders() -> dict[bytes, Callable[[bytes], VenueMessage]]:
    depth = msgspec.json.Decoder(_DepthFrame).decode
    trade = msgspec.json.Decoder(_TradeFrame).decode
    aggregate = msgspec.json.Decoder(_AggregateTradeFrame).decode
    ticker = msgspec.json.Decoder(_BookTickerFrame).decode
    decoders: dict[bytes, Callable[[bytes], VenueMessage]] = {
        b"trade": lambda frame: _trade(trade(frame).data),
        b"aggTrade": lambda frame: _aggregate_trade(aggregate(frame).data),
        b"bookTicker": lambda frame: top_of_book(ticker(frame).data),
    }
    for name in _DIFF_STREAMS:
        decoders[name.encode()] = lambda frame: depth(frame).data
    return decoders


class BinanceFutures:
    """Adapter of Binance USD-M (`prefix` "/fapi/v1") or COIN-M ("/dapi/v1")."""

    snapshot_source = SnapshotSource.REQUEST

    def __init__(self, exchange: str, prefix: str) -> None:
        self.exchange = exchange
        self._prefix = prefix
        self._decoders = _combined_decoders()

    # Frames

    def decode(self, frame: bytes | str) -> VenueMessage:
        """Decode a combined or raw stream frame, or the answer to a request."""
        data = frame.encode("utf-8", "surrogatepass") if isinstance(frame, str) else frame
        try:
            if data.startswith(COMBINED):
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
                concerns_book=not kind or kind in _DIFF_STREAMS,
            ) from error

    def _decode_slow(self, data: bytes) -> VenueMessage:
        message = _decode_any(data)
        if isinstance(message, dict) and "stream" in message and "data" in message:
            stream = str(message["stream"])
            message = message["data"]
            channel = stream.partition("@")[2]
            # `depth5`, `depth10`, `depth20` carry the best levels in the shape of a change.
            partial = channel.startswith("depth") and channel not in _DIFF_STREAMS
            if partial or isinstance(message, list):
                return Ignored(stream[:80])
        if not isinstance(message, dict):
            raise MalformedFrameError(
                f"{self.exchange}: expected a JSON object, got {data[:160]!r}"
            )
        kind = message.get("e")
        if kind == "depthUpdate":
            return msgspec.convert(message, FuturesDepthUpdate)
        if kind == "trade":
            return _trade(msgspec.convert(message, _Trade))
        if kind == "aggTrade":
            return _aggregate_trade(msgspec.convert(message, _AggregateTrade))
        if kind == "bookTicker":
            return top_of_book(msgspec.convert(message, BookTicker))
        if kind == "serverShutdown":
            return Goodbye("serverShutdown")
        if kind is not None:
            return Ignored(str(kind)[:80])
        return decode_answer(self.exchange, message, data)

    def subscribe_frames(
        self, native_symbols: Iterable[str], first_request_id: int
    ) -> list[tuple[int, Sequence[str], str]]:
        """SUBSCRIBE requests for depth, trades and best bid and offer."""
        return subscribe_requests(native_symbols, _STREAMS, first_request_id)

    # REST

    def instruments_request(self) -> RestRequest:
        """GET exchangeInfo, weight 1."""
        return RestRequest(f"{self._prefix}/exchangeInfo", 1)

    def decode_instruments(self, body: bytes) -> list[InstrumentSpec]:
        """Decode exchangeInfo; a symbol whose filters are malformed keeps empty steps."""
        try:
            info = _decode_info(body)
        except DECODE_ERRORS as error:
            raise MalformedFrameError(f"{self.exchange}: exchangeInfo: {error}") from error
        return [
            symbol_spec(
                self._named(symbol.symbol, symbol.base_asset, symbol.quote_asset),
                symbol.filters,
                trading="TRADING" in (symbol.status, symbol.contract_status),
            )
            for symbol in info.symbols
        ]

    def snapshot_request(self, native_symbol: str, depth: int) -> RestRequest:
        """GET depth; only limits 5, 10, 20, 50, 100, 500 and 1000 exist."""
        limit, weight = next(
            ((limit, weight) for limit, weight in _DEPTH_LIMITS if depth <= limit),
            _DEPTH_LIMITS[-1],
        )
        return RestRequest(
            f"{self._prefix}/depth", weight, {"symbol": native_symbol, "limit": str(limit)}
        )

    def decode_snapshot(self, body: bytes, request: RestRequest) -> BookSnapshot:
        """Decode a depth answer."""
        return decode_depth(self.exchange, body, request)

    def trades_request(self, native_symbol: str, first_id: int, count: int) -> RestRequest:
        """GET trades: the latest 1000."""
        return RestRequest(
            f"{self._prefix}/trades", _TRADES_WEIGHT, {"symbol": native_symbol, "limit": "1000"}
        )

    def decode_trades(self, body: bytes, native_symbol: str) -> list[TradePrint]:
        """Decode past trades, oldest first."""
        return decode_trades(self.exchange, body, native_symbol)

    # Synchronisation

    def covered(self, diff: BookDiff, snapshot_id: int) -> bool:
        """Drop any event where `u` is below the snapshot's lastUpdateId."""
        return diff.last < snapshot_id

    def bridges(self, diff: BookDiff, snapshot_id: int) -> bool:
        """Require U <= lastUpdateId <= u of the first event that is kept, or pu == lastUpdateId."""
        return diff.first <= snapshot_id <= diff.last or diff.previous == snapshot_id

    def repeats(self, diff: BookDiff, book_id: int) -> bool:
        """Ids only grow: what ends at or below the book's id is in it."""
        return diff.last <= book_id

    def book_checksum(self) -> BookChecksum | None:
        """No checksums on Binance."""
        return None

    # Names

    def infer_instrument(self, native_symbol: str) -> InstrumentSpec:
        """Split a pair at the longest known quote currency that ends it."""
        base, quote = split_pair(native_symbol.partition("_")[0])
        return self._named(native_symbol, base, quote)

    def _named(self, native_symbol: str, base: str, quote: str) -> InstrumentSpec:
        # BTCUSDT and BTCUSD_PERP never expire, BTCUSDT_261225 does on that day.
        _, _, end = native_symbol.partition("_")
        term = f"20{end}" if len(end) == 6 and end.isdigit() else end or "PERP"
        pair = f"{base}-{quote}" if quote else base
        return InstrumentSpec(self.exchange, f"{pair}-{term}", native_symbol, base, quote)
