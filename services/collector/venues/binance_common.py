"""What Binance's protocols share: the shape of streams, requests, answers and names."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, TypeAlias

import msgspec

from services.collector.venues.base import (
    Acknowledgement,
    BookSnapshot,
    InstrumentSpec,
    MalformedFrameError,
    RestRequest,
    TopOfBook,
    TradePrint,
    VenueFault,
)
from services.shared.decimals import InvalidDecimalError, canonical_decimal

__all__ = [
    "COMBINED",
    "DECODE_ERRORS",
    "BookTicker",
    "Id",
    "Levels",
    "Snapshot",
    "Time",
    "decode_answer",
    "decode_depth",
    "decode_trades",
    "nanoseconds",
    "split_pair",
    "stream_of",
    "subscribe_requests",
    "symbol_spec",
    "top_of_book",
]

Levels = list[tuple[str, str]]
# What does not fit the contracts' int64 and Timestamp is refused here, and nowhere behind.
Id: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Time: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=253_402_300_799_999_999)]
COMBINED = b'{"stream":"'
DECODE_ERRORS = (msgspec.DecodeError, UnicodeError, RecursionError, InvalidDecimalError)
_STREAMS_PER_FRAME = 150
_MICROSECONDS = 10**14  # a time above this is in microseconds (timeUnit=microsecond), not milli
_QUOTES = (
    "USDT", "FDUSD", "USDC", "TUSD", "BUSD", "USDP", "USD1", "DAI", "BTC", "ETH", "BNB", "EUR",
    "TRY", "BRL", "GBP", "AUD", "USD", "JPY", "MXN", "ARS", "PLN", "RUB", "UAH", "NGN", "ZAR",
    "IDRT", "BIDR", "PAX", "TRX", "XRP", "DOGE", "DOT",
)  # fmt: skip
_BY_LENGTH = sorted(_QUOTES, key=len, reverse=True)


class BookTicker(msgspec.Struct, gc=False, frozen=True):
    """The `bookTicker` payload."""

    native_symbol: str = msgspec.field(name="s")
    """Instrument."""
    update_id: Id = msgspec.field(name="u")
    """Order book update id."""
    bid_price: str = msgspec.field(name="b")
    """Best bid."""
    bid_quantity: str = msgspec.field(name="B")
    """Quantity of the best bid."""
    ask_price: str = msgspec.field(name="a")
    """Best ask."""
    ask_quantity: str = msgspec.field(name="A")
    """Quantity of the best ask."""
    event_time: Time = msgspec.field(name="E", default=0)
    """Event time as sent."""


class Snapshot(msgspec.Struct, gc=False, frozen=True):
    """The answer to a depth request."""

    last: Id = msgspec.field(name="lastUpdateId")
    """Last update id contained."""
    bids: Levels
    """Bids, best first."""
    asks: Levels
    """Asks, best first."""
    event_time: Time = msgspec.field(name="E", default=0)
    """Time of the answer as sent; 0 on spot, which tells none."""


class _RestTrade(msgspec.Struct, gc=False, frozen=True, rename="camel"):
    id: Id
    price: str
    qty: str
    time: Time
    is_buyer_maker: bool


_decode_snapshot = msgspec.json.Decoder(Snapshot).decode
_decode_trades = msgspec.json.Decoder(list[_RestTrade]).decode


def nanoseconds(time: int) -> int:
    """Turn a time as sent, milliseconds or microseconds, into nanoseconds."""
    return time * (1_000 if time > _MICROSECONDS else 1_000_000)


def top_of_book(data: BookTicker) -> TopOfBook:
    """Give the best bid and offer of a `bookTicker`."""
    bid = (canonical_decimal(data.bid_price), canonical_decimal(data.bid_quantity))
    ask = (canonical_decimal(data.ask_price), canonical_decimal(data.ask_quantity))
    # An empty side comes as price 0, quantity 0.
    return TopOfBook(
        data.native_symbol,
        data.update_id,
        nanoseconds(data.event_time),
        ("", "") if bid[1] == "0" else bid,
        ("", "") if ask[1] == "0" else ask,
    )


def stream_of(data: bytes) -> tuple[str, str]:
    """Give the instrument and the kind of stream, as far as a damaged frame tells them."""
    if not data.startswith(COMBINED):
        return "", ""
    name, _, _ = data[len(COMBINED) : len(COMBINED) + 80].partition(b'"')
    symbol, at, kind = name.decode(errors="ignore").partition("@")
    return (symbol.upper(), kind) if at else ("", "")


def decode_answer(
    exchange: str, message: dict[Any, Any], data: bytes
) -> Acknowledgement | VenueFault:
    """Decode the answer to a request; `data` is its text. Raises MalformedFrameError."""
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
    raise MalformedFrameError(f"{exchange}: a frame of no known kind: {data[:160]!r}")


def subscribe_requests(
    native_symbols: Iterable[str], streams: Sequence[str], first_request_id: int
) -> list[tuple[int, Sequence[str], str]]:
    """SUBSCRIBE requests, at most 150 streams in each to keep frames small."""
    symbols = list(native_symbols)
    per_frame = _STREAMS_PER_FRAME // len(streams)
    frames: list[tuple[int, Sequence[str], str]] = []
    for start in range(0, len(symbols), per_frame):
        part = symbols[start : start + per_frame]
        request_id = first_request_id + len(frames)
        request = {
            "method": "SUBSCRIBE",
            "params": [f"{symbol.lower()}@{name}" for symbol in part for name in streams],
            "id": request_id,
        }
        frames.append((request_id, part, msgspec.json.encode(request).decode()))
    return frames


def decode_depth(exchange: str, body: bytes, request: RestRequest) -> BookSnapshot:
    """Decode the answer to a depth request. Raises MalformedFrameError."""
    try:
        snapshot = _decode_snapshot(body)
    except DECODE_ERRORS as error:
        raise MalformedFrameError(
            f"{exchange}: depth: {error} in {body[:160]!r}", request.query.get("symbol", "")
        ) from error
    return BookSnapshot(
        snapshot.last,
        snapshot.bids,
        snapshot.asks,
        int(request.query.get("limit", "0")),
        nanoseconds(snapshot.event_time),
    )


def decode_trades(exchange: str, body: bytes, native_symbol: str) -> list[TradePrint]:
    """Decode past trades, oldest first. Raises MalformedFrameError."""
    try:
        return [
            TradePrint(
                native_symbol,
                trade.id,
                nanoseconds(trade.time),
                canonical_decimal(trade.price),
                canonical_decimal(trade.qty),
                trade.is_buyer_maker,
            )
            for trade in sorted(_decode_trades(body), key=lambda trade: trade.id)
        ]
    except DECODE_ERRORS as error:
        raise MalformedFrameError(
            f"{exchange}: trades: {error} in {body[:160]!r}", native_symbol
        ) from error


def symbol_spec(
    identity: InstrumentSpec, filters: Sequence[dict[str, Any]], *, trading: bool
) -> InstrumentSpec:
    """Complete an instrument from its filters; a malformed filter leaves its steps empty."""
    by_type = {str(item.get("filterType")): item for item in filters}

    def step(kind: str, key: str) -> str:
        value = by_type.get(kind, {}).get(key, "")
        try:
            number = canonical_decimal(value) if isinstance(value, str) and value else ""
        except InvalidDecimalError:
            return ""
        return "" if number == "0" else number

    return InstrumentSpec(
        exchange=identity.exchange,
        symbol=identity.symbol,
        native_symbol=identity.native_symbol,
        base=identity.base,
        quote=identity.quote,
        tick_size=step("PRICE_FILTER", "tickSize"),
        lot_size=step("LOT_SIZE", "stepSize"),
        min_quantity=step("LOT_SIZE", "minQty"),
        min_notional=step("NOTIONAL", "minNotional")
        or step("MIN_NOTIONAL", "minNotional")
        or step("MIN_NOTIONAL", "notional"),
        trading=trading,
    )


def split_pair(pair: str) -> tuple[str, str]:
    """Split a name at the longest known quote currency that ends it; ("ABC", "") when none does."""
    for quote in _BY_LENGTH:
        base = pair.removesuffix(quote)
        if base and base != pair:
            return base, quote
    return pair, ""
