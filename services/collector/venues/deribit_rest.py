"""Deribit's REST interface: `public/get_instruments`, `get_order_book`, `get_last_trades_...`.

Answers are JSON-RPC: `{"result": ...}`, or `{"error": {"code": ..., "message": ...}}` with a status
of 400.
"""

from typing import Annotated

import msgspec
from marketprism.market.v1 import instrument_pb2 as pb

from services.collector.venues.base import (
    BookSnapshot,
    InstrumentSpec,
    RestRequest,
    TradePrint,
)
from services.collector.venues.deribit_book import Id, Milliseconds, book_side
from services.collector.venues.deribit_events import Trade, trade_print
from services.collector.venues.deribit_names import LISTED_KINDS, read_name
from services.collector.venues.deribit_numbers import NULL, optional_number
from services.shared.decimals import InvalidDecimalError

__all__ = [
    "MOST_TRADES",
    "RETRY_CODES",
    "decode_instruments",
    "decode_order_book",
    "decode_trades",
    "instrument_requests",
    "order_book_request",
    "refusal",
    "trades_request",
]

RETRY_CODES = frozenset({10028, 10040, 10041, 10047, 10066, 11051, 13028, 13888})
"""Codes of errors that say to come again later: too many requests, a queue that is full, a
settlement or maintenance under way."""

_PREFIX = "/api/v2/public"
_LIST_WEIGHT = 10
_DEPTHS = (1, 5, 10, 20, 50, 100, 1000, 10_000)
MOST_TRADES = 1000
"""Trades that an answer holds at the most."""
_RIGHTS = {"call": pb.OPTION_RIGHT_CALL, "put": pb.OPTION_RIGHT_PUT}


class _Instrument(msgspec.Struct, gc=False, frozen=True):
    native_symbol: str = msgspec.field(name="instrument_name")
    kind: str
    base: str = msgspec.field(name="base_currency")
    quote: str = msgspec.field(name="quote_currency")
    settlement: str | None = msgspec.field(name="settlement_currency", default=None)
    settlement_period: str | None = None
    type: str | None = msgspec.field(name="instrument_type", default=None)
    is_active: bool = True
    state: str | None = None
    tick_size: msgspec.Raw = NULL
    min_trade_amount: msgspec.Raw = NULL
    expiry: Annotated[int, msgspec.Meta(ge=0, le=10**14)] | None = msgspec.field(
        name="expiration_timestamp", default=None
    )
    strike: msgspec.Raw = NULL
    option_type: str | None = None
    price_index: str | None = None


class _Instruments(msgspec.Struct, gc=False, frozen=True):
    result: list[_Instrument]


class _Book(msgspec.Struct, gc=False, frozen=True):
    last: Id = msgspec.field(name="change_id")
    bids: msgspec.Raw
    asks: msgspec.Raw
    time: Milliseconds = msgspec.field(name="timestamp", default=0)
    native_symbol: str = msgspec.field(name="instrument_name", default="")


class _BookAnswer(msgspec.Struct, gc=False, frozen=True):
    result: _Book


class _Trades(msgspec.Struct, gc=False, frozen=True):
    trades: list[Trade]


class _TradesAnswer(msgspec.Struct, gc=False, frozen=True):
    result: _Trades


class _Error(msgspec.Struct, gc=False, frozen=True):
    code: int


class _ErrorAnswer(msgspec.Struct, gc=False, frozen=True):
    error: _Error


_decode_instruments = msgspec.json.Decoder(_Instruments).decode
_decode_book = msgspec.json.Decoder(_BookAnswer).decode
_decode_trades = msgspec.json.Decoder(_TradesAnswer).decode
_decode_error = msgspec.json.Decoder(_ErrorAnswer).decode


def instrument_requests() -> list[RestRequest]:
    """Give GET public/get_instruments of all currencies, one request a kind.

    The venue allows this method about one call a second, so that each weighs as much as ten others.
    """
    return [
        RestRequest(
            f"{_PREFIX}/get_instruments",
            _LIST_WEIGHT,
            {"currency": "any", "kind": kind, "expired": "false"},
        )
        for kind in LISTED_KINDS
    ]


def decode_instruments(exchange: str, body: bytes) -> list[InstrumentSpec]:
    """Decode a list of instruments.

    Combinations (`future_combo`, `option_combo`) are left out, for which the contract has no kind.
    A malformed step or strike is left empty.
    """
    return [
        _spec(exchange, item)
        for item in _decode_instruments(body).result
        if item.kind in LISTED_KINDS
    ]


def _spec(exchange: str, item: _Instrument) -> InstrumentSpec:
    name = read_name(item.native_symbol)
    perpetual = item.settlement_period == "perpetual"
    kinds = {
        "spot": pb.INSTRUMENT_KIND_SPOT,
        "option": pb.INSTRUMENT_KIND_OPTION,
        "future": pb.INSTRUMENT_KIND_PERPETUAL if perpetual else pb.INSTRUMENT_KIND_FUTURE,
    }
    kind = kinds[item.kind]
    # Lists of 2021 do not tell the type; there the name does.
    reversed_ = item.type == "reversed" if item.type else name.inverse
    inverse = item.kind == "future" and reversed_
    smallest = _positive(item.min_trade_amount)
    # A perpetual's expiry is told too, a date a thousand years away.
    expires = kind in (pb.INSTRUMENT_KIND_FUTURE, pb.INSTRUMENT_KIND_OPTION)
    option = item.kind == "option"
    return InstrumentSpec(
        exchange=exchange,
        symbol=name.symbol,
        native_symbol=item.native_symbol,
        base=item.base,
        quote=item.quote,
        tick_size=_positive(item.tick_size),
        lot_size=smallest,
        min_quantity=smallest,
        trading=item.is_active and item.state in (None, "open"),
        kind=kind,
        settlement="" if item.kind == "spot" else item.settlement or name.settlement,
        quantity_unit=pb.QUANTITY_UNIT_QUOTE if inverse else pb.QUANTITY_UNIT_BASE,
        expiry_time=(item.expiry or 0) * 1_000_000 if expires else 0,
        strike=_positive(item.strike) if option else "",
        option_right=(
            _RIGHTS.get(item.option_type or "", name.right)
            if option
            else pb.OPTION_RIGHT_UNSPECIFIED
        ),
        underlying="" if item.kind == "spot" else item.price_index or name.price_index,
        family=item.settlement or "",
    )


def _positive(raw: msgspec.Raw) -> str:
    try:
        text = optional_number(raw)
    except (InvalidDecimalError, UnicodeError):
        return ""
    return "" if text == "0" or text.startswith("-") else text


def order_book_request(native_symbol: str, depth: int) -> RestRequest:
    """Give GET public/get_order_book, at the next depth that the venue has."""
    size = next((each for each in _DEPTHS if each >= depth), _DEPTHS[-1])
    query = {"instrument_name": native_symbol, "depth": str(size)}
    return RestRequest(f"{_PREFIX}/get_order_book", 1, query)


def decode_order_book(body: bytes, request: RestRequest) -> BookSnapshot:
    """Decode a book."""
    book = _decode_book(body).result
    depth = request.query.get("depth", "")
    return BookSnapshot(
        book.last,
        book_side(book.bids),
        book_side(book.asks),
        int(depth) if depth.isascii() and depth.isdigit() else 0,
        book.time * 1_000_000,
        0,
        request.query.get("instrument_name") or book.native_symbol,
    )


def trades_request(native_symbol: str, first_id: int, count: int) -> RestRequest:
    """Give GET public/get_last_trades_by_instrument from a `trade_seq` on, at most 1000.

    From 0 on means the latest ones.
    """
    count = max(1, min(count, MOST_TRADES))
    query = {"instrument_name": native_symbol, "count": str(count), "sorting": "desc"}
    if first_id > 0:
        query |= {
            "start_seq": str(first_id),
            "end_seq": str(first_id + count - 1),
            "sorting": "asc",
        }
    return RestRequest(f"{_PREFIX}/get_last_trades_by_instrument", 1, query)


def decode_trades(body: bytes) -> list[TradePrint]:
    """Decode past trades, oldest first."""
    trades = [trade_print(trade) for trade in _decode_trades(body).result.trades]
    return sorted(trades, key=lambda trade: trade.trade_id)


def refusal(status: int, body: bytes) -> float | None:
    """Tell whether an answer says to come again later; the venue does not say when."""
    if status == 429:
        return 0.0
    if status < 400 and not body.lstrip()[:400].count(b'"error"'):
        return None
    try:
        code = _decode_error(body).error.code
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return 0.0 if code in RETRY_CODES else None
