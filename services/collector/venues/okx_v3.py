"""Frames of OKEx version 3, which was switched off in 2022: for recordings only.

Books, tickers, indices and option summaries, as OKEx's v3 documents described them. They carry no
ids, so that a book's checksum alone tells that nothing is missing.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Generic, TypeVar

import msgspec
from marketprism.market.v1 import common_pb2, events_pb2

from services.collector.venues.base import (
    BookSnapshot,
    Ignored,
    Observation,
    TopOfBook,
    VenueMessage,
)
from services.collector.venues.okx_common import finite, is_derivative, is_inverse, number
from services.collector.venues.okx_market import Levels, OkxBookUpdate, one_or_several, pairs
from services.shared.decimals import canonical_decimal

__all__ = ["decode_table"]

_T = TypeVar("_T")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOST_MICROSECONDS = 10**17
_LIMITS = {"depth": 200, "depth_l2_tbt": 400}


class _Table(msgspec.Struct, Generic[_T], gc=False, frozen=True):
    table: str
    data: Annotated[list[_T], msgspec.Meta(min_length=1)]
    action: str = ""


class _Row(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    instrument_id: str
    timestamp: datetime


class _Book(_Row, frozen=True, kw_only=True):
    bids: Levels
    asks: Levels
    checksum: int = 0


class _Ticker(_Row, frozen=True, kw_only=True):
    last: str = ""
    last_qty: str = ""
    open_24h: str = ""
    high_24h: str = ""
    low_24h: str = ""
    best_bid: str = ""
    best_bid_size: str = ""
    best_ask: str = ""
    best_ask_size: str = ""
    # Of spot.
    base_volume_24h: str = ""
    quote_volume_24h: str = ""
    # Of derivatives: contracts, and base currency.
    volume_24h: str = ""
    volume_token_24h: str = ""


class _Index(_Row, frozen=True, kw_only=True):
    last: str


class _Summary(_Row, frozen=True, kw_only=True):
    underlying: str = ""
    delta: str = ""
    gamma: str = ""
    vega: str = ""
    theta: str = ""
    mark_vol: str = ""
    bid_vol: str = ""
    ask_vol: str = ""
    mark_price: str = ""


def _reader(row: type[_T], make: Callable[[str, str, _T], VenueMessage]) -> Any:
    decode = msgspec.json.Decoder(_Table[row]).decode  # type: ignore[valid-type]  # a value here

    def read(data: bytes) -> VenueMessage:
        table = decode(data)
        _, _, name = table.table.partition("/")
        return one_or_several([make(name, table.action, each) for each in table.data])

    return read


def _book(name: str, action: str, book: _Book) -> VenueMessage:
    bids, asks, time = pairs(book.bids), pairs(book.asks), _nanoseconds(book.timestamp)
    if action == "partial":
        return BookSnapshot(0, bids, asks, _LIMITS[name], time, book.checksum, book.instrument_id)
    if action != "update":
        raise msgspec.ValidationError(f"expected action partial or update, got {action[:40]!r}")
    return OkxBookUpdate(book.instrument_id, 0, 0, bids, asks, time, book.checksum)


def _top(name: str, action: str, book: _Book) -> VenueMessage:
    def best(levels: Levels) -> tuple[str, str]:
        if not levels:
            return "", ""
        return canonical_decimal(levels[0].price), canonical_decimal(levels[0].size)

    time = _nanoseconds(book.timestamp)
    return TopOfBook(book.instrument_id, 0, time, best(book.bids), best(book.asks))


def _ticker(name: str, action: str, ticker: _Ticker) -> VenueMessage:
    base, quote = ticker.base_volume_24h, ticker.quote_volume_24h
    contracts: tuple[str, ...] = ()
    if is_derivative(ticker.instrument_id):
        contracts = ("last_quantity", "bid_quantity", "ask_quantity", "quote_volume")
        base = ticker.volume_token_24h
        quote = ticker.volume_24h if is_inverse(ticker.instrument_id) else ""
    message = events_pb2.Ticker(
        last_price=number(ticker.last),
        last_quantity=number(ticker.last_qty),
        open_price=number(ticker.open_24h),
        high_price=number(ticker.high_24h),
        low_price=number(ticker.low_24h),
        base_volume=number(base),
        quote_volume=number(quote),
        bid_price=number(ticker.best_bid),
        bid_quantity=number(ticker.best_bid_size),
        ask_price=number(ticker.best_ask),
        ask_quantity=number(ticker.best_ask_size),
    )
    message.exchange_time.FromNanoseconds(_nanoseconds(ticker.timestamp))
    return Observation(
        common_pb2.EVENT_KIND_TICKER, message, ticker.instrument_id, contracts=contracts
    )


def _index(name: str, action: str, index: _Index) -> VenueMessage:
    message = events_pb2.IndexPrice(index_price=canonical_decimal(index.last))
    message.exchange_time.FromNanoseconds(_nanoseconds(index.timestamp))
    return Observation(common_pb2.EVENT_KIND_INDEX_PRICE, message, symbol=index.instrument_id)


def _summary(name: str, action: str, summary: _Summary) -> VenueMessage:
    # These greeks are in coins; those in quote currency came with version 5.
    message = events_pb2.OptionGreeks(
        delta=finite(summary.delta),
        gamma=finite(summary.gamma),
        vega=finite(summary.vega),
        theta=finite(summary.theta),
        mark_iv=finite(summary.mark_vol),
        bid_iv=finite(summary.bid_vol),
        ask_iv=finite(summary.ask_vol),
        mark_price=finite(summary.mark_price),
        underlying=summary.underlying,
    )
    message.exchange_time.FromNanoseconds(_nanoseconds(summary.timestamp))
    return Observation(common_pb2.EVENT_KIND_OPTION_GREEKS, message, summary.instrument_id)


_books = _reader(_Book, _book)
_READERS: dict[str, Callable[[bytes], VenueMessage]] = {
    "depth": _books,
    "depth_l2_tbt": _books,
    "depth5": _reader(_Book, _top),
    "ticker": _reader(_Ticker, _ticker),
    "summary": _reader(_Summary, _summary),
}
_index_ticker = _reader(_Index, _index)


def decode_table(table: str, data: bytes) -> VenueMessage:
    """Decode a frame of a table such as "spot/depth". Raises what `DECODE_ERRORS` lists."""
    kind, _, name = table.partition("/")
    reader = _index_ticker if table == "index/ticker" else _READERS.get(name)
    if reader is None or kind not in ("spot", "futures", "swap", "option", "index"):
        return Ignored(f"v3 {table}"[:80])
    return reader(data)


def _nanoseconds(time: datetime) -> int:
    if time.tzinfo is not None:
        since = (time - _EPOCH) // timedelta(microseconds=1)
        if 0 <= since < _MOST_MICROSECONDS:
            return since * 1_000
    raise msgspec.ValidationError(f"expected a time since 1970 with its zone, got {time}")
