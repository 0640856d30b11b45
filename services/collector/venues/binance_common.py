"""What Binance's protocols share: types, times, requests, answers and names."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, NamedTuple, TypeAlias

import msgspec
from google.protobuf.timestamp_pb2 import Timestamp

from services.collector.venues.base import (
    Acknowledgement,
    BookSnapshot,
    InstrumentSpec,
    MalformedFrameError,
    RestRequest,
    TradePrint,
    VenueFault,
    VenueRequest,
)
from services.shared.decimals import InvalidDecimalError, canonical_decimal

__all__ = [
    "COMBINED",
    "DECODE_ERRORS",
    "INTERVALS",
    "NO_STEPS",
    "Id",
    "Levels",
    "Snapshot",
    "Steps",
    "Time",
    "decode_aggregates",
    "decode_answer",
    "decode_depth",
    "decode_trades",
    "nanoseconds",
    "read_steps",
    "rest_refusal",
    "split_pair",
    "step",
    "stream_of",
    "stream_requests",
    "timestamp",
    "unique",
]

Levels = list[tuple[str, str]]
# What does not fit the contracts' int64 and Timestamp is refused here, and nowhere behind.
Id: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Time: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=253_402_300_799_999_999)]
COMBINED = b'{"stream":"'
DECODE_ERRORS = (msgspec.DecodeError, UnicodeError, RecursionError, InvalidDecimalError)
_STREAMS_PER_FRAME = 150
_MICROSECONDS = 10**14  # a time above this is in microseconds (timeUnit=microsecond), not milli
_TOO_MANY_REQUESTS = -1003
# Lengths of candles in seconds, as Binance calls them; `1M` has no length. Spot alone has `1s`.
INTERVALS = {
    1: "1s", 60: "1m", 180: "3m", 300: "5m", 900: "15m", 1800: "30m", 3600: "1h", 7200: "2h",
    14400: "4h", 21600: "6h", 28800: "8h", 43200: "12h", 86400: "1d", 259200: "3d", 604800: "1w",
}  # fmt: skip


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
    symbol: str = ""
    """Instrument; only COIN-M tells it."""


class Steps(NamedTuple):
    """Steps and least sizes of an instrument's orders, canonical, empty when not told."""

    tick_size: str
    """Smallest price step."""
    lot_size: str
    """Smallest quantity step."""
    min_quantity: str
    """Smallest order."""
    min_notional: str
    """Smallest order value in quote currency."""


NO_STEPS = Steps("", "", "", "")


class _RestTrade(msgspec.Struct, gc=False, frozen=True, rename="camel"):
    id: Id
    price: str
    qty: str
    time: Time
    is_buyer_maker: bool


class _RestAggregate(msgspec.Struct, gc=False, frozen=True):
    a: Id
    p: str
    q: str
    f: Id
    l: Id  # noqa: E741 - as the venue spells it
    T: Time
    m: bool

    def __post_init__(self) -> None:
        if self.l < self.f:
            raise ValueError(f"expected f <= l, got {self.f} and {self.l}")


_decode_snapshot = msgspec.json.Decoder(Snapshot).decode
_decode_trades = msgspec.json.Decoder(list[_RestTrade]).decode
_decode_aggregates = msgspec.json.Decoder(list[_RestAggregate]).decode
_decode_any = msgspec.json.Decoder().decode


def nanoseconds(time: int) -> int:
    """Turn a time as sent, milliseconds or microseconds, into nanoseconds."""
    return time * (1_000 if time > _MICROSECONDS else 1_000_000)


def timestamp(time: int) -> Timestamp | None:
    """Give a time in nanoseconds as message; None, which leaves a field unset, for 0."""
    return Timestamp(seconds=time // 10**9, nanos=time % 10**9) if time else None


def stream_of(data: bytes) -> tuple[str, str]:
    """Give the instrument and the kind of stream, as far as a damaged frame tells them."""
    if not data.startswith(COMBINED):
        return "", ""
    name, _, _ = data[len(COMBINED) : len(COMBINED) + 80].partition(b'"')
    symbol, at, kind = name.decode(errors="ignore").partition("@")
    return (symbol.upper(), kind) if at else ("", "")


# Requests and answers


def stream_requests(
    method: str, streams: Sequence[str], first_request_id: int
) -> list[VenueRequest]:
    """SUBSCRIBE or UNSUBSCRIBE requests, at most 150 streams in each to keep frames small."""
    requests: list[VenueRequest] = []
    for start in range(0, len(streams), _STREAMS_PER_FRAME):
        part = tuple(streams[start : start + _STREAMS_PER_FRAME])
        number = first_request_id + len(requests)
        frame = msgspec.json.encode({"method": method, "params": part, "id": number})
        requests.append(VenueRequest(number, part, frame.decode()))
    return requests


def decode_answer(
    exchange: str, message: dict[Any, Any], data: bytes
) -> Acknowledgement | VenueFault:
    """Decode the answer to a request; `data` is its text. Raises MalformedFrameError."""
    request_id = message.get("id")
    number = request_id if isinstance(request_id, int) else None
    error = message.get("error", message if "code" in message else None)
    if isinstance(error, dict):
        code = error.get("code", "")
        return VenueFault(
            number,
            str(code),
            str(error.get("msg", "")),
            rate_limited=code == _TOO_MANY_REQUESTS,
        )
    if "result" in message and number is not None:
        return Acknowledgement(number)
    raise MalformedFrameError(f"{exchange}: a frame of no known kind: {data[:160]!r}")


def rest_refusal(status: int, body: bytes) -> float | None:
    """Tell of 429 and 418, and of error -1003 under any status; see `VenueAdapter`.

    Binance tells the time to wait in the header `Retry-After`; that of a body is a point in time.
    """
    if status in (418, 429):
        return 0.0
    if len(body) > 1000 or b'"code"' not in body:
        return None
    try:
        answer = _decode_any(body)
    except DECODE_ERRORS:
        return None
    code = answer.get("code") if isinstance(answer, dict) else None
    return 0.0 if code == _TOO_MANY_REQUESTS else None


def decode_depth(exchange: str, body: bytes, request: RestRequest) -> BookSnapshot:
    """Decode the answer to a depth request. Raises MalformedFrameError."""
    try:
        snapshot = _decode_snapshot(body)
        return BookSnapshot(
            snapshot.last,
            snapshot.bids,
            snapshot.asks,
            int(request.query.get("limit", "0")),
            nanoseconds(snapshot.event_time),
        )
    except (*DECODE_ERRORS, ValueError) as error:
        raise MalformedFrameError(
            f"{exchange}: depth: {error} in {body[:160]!r}", request.query.get("symbol", "")
        ) from error


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


def decode_aggregates(exchange: str, body: bytes, native_symbol: str) -> list[TradePrint]:
    """Decode past aggregate trades, oldest first. Raises MalformedFrameError.

    Each is named by its own id and numbered by the last of the trades that it stands for.
    """
    try:
        return [
            TradePrint(
                native_symbol,
                trade.l,
                nanoseconds(trade.T),
                canonical_decimal(trade.p),
                canonical_decimal(trade.q),
                trade.m,
                trade_count=trade.l - trade.f + 1,
                venue_id=str(trade.a),
            )
            for trade in sorted(_decode_aggregates(body), key=lambda trade: trade.l)
        ]
    except DECODE_ERRORS as error:
        raise MalformedFrameError(
            f"{exchange}: aggTrades: {error} in {body[:160]!r}", native_symbol
        ) from error


# Instruments


def step(value: object) -> str:
    """Canonical spelling of a filter's number; empty when it is none above 0."""
    try:
        number = canonical_decimal(value) if isinstance(value, str) and value else ""
    except InvalidDecimalError:
        return ""
    return "" if number == "0" or number.startswith("-") else number


def read_steps(filters: Sequence[dict[str, Any]]) -> Steps:
    """Read an instrument's filters; of a malformed one the steps stay empty."""
    by_type = {str(item.get("filterType")): item for item in filters}
    price, lot = by_type.get("PRICE_FILTER", {}), by_type.get("LOT_SIZE", {})
    notional, least = by_type.get("NOTIONAL", {}), by_type.get("MIN_NOTIONAL", {})
    return Steps(
        step(price.get("tickSize")),
        step(lot.get("stepSize")),
        step(lot.get("minQty")),
        step(notional.get("minNotional"))
        or step(least.get("minNotional"))
        or step(least.get("notional")),
    )


def unique(specs: Sequence[InstrumentSpec]) -> list[InstrumentSpec]:
    """Let each symbol name one instrument: that which trades, else the first of the list.

    Another of the same symbol (a listing of old, not yet taken off) goes by its native name.
    """
    chosen: dict[str, InstrumentSpec] = {}
    for spec in specs:
        other = chosen.get(spec.symbol)
        if other is None or (spec.trading and not other.trading):
            chosen[spec.symbol] = spec
    return [
        spec if chosen[spec.symbol] is spec else replace(spec, symbol=spec.native_symbol)
        for spec in specs
    ]


def split_pair(pair: str, quotes: Sequence[str]) -> tuple[str, str]:
    """Split a name at the first of `quotes` that ends it; ("ABC", "") when none does."""
    for quote in quotes:
        base = pair.removesuffix(quote)
        if base and base != pair:
            return base, quote
    return pair, ""
