"""OKX's frames of books, trades and best bid and offer: most of what it sends.

Follows the "Order book channel", "Trades channel" and "All trades channel" of OKX's v5 documents.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, TypeAlias

import msgspec

from services.collector.venues.base import (
    BookHeartbeat,
    BookSnapshot,
    Several,
    TopOfBook,
    TradePrint,
    VenueMessage,
)
from services.collector.venues.okx_common import WholeNumber, nanoseconds
from services.shared.decimals import canonical_decimal

__all__ = [
    "BOOK_CHANNELS",
    "Book",
    "Levels",
    "OkxBookUpdate",
    "Trade",
    "TradeFrame",
    "market_decoders",
    "one_or_several",
    "pairs",
    "snapshot",
    "trade_print",
]

BOOK_CHANNELS = {"books": 400, "books-l2-tbt": 400, "books50-l2-tbt": 50}
"""Channels that tell a book by its changes, and how many levels a side they keep up."""

_TOP_CHANNELS = ("bbo-tbt", "books5")
_TRADE_CHANNELS = ("trades", "trades-all")
_Id: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_PreviousId: TypeAlias = Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)]  # -1: a snapshot
_Checksum: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**32 - 1)]


class OkxBookUpdate(msgspec.Struct, gc=False, frozen=True):
    """An `update` of a book channel; see `BookDiff`."""

    native_symbol: str
    """Instrument."""
    previous: int
    """`prevSeqId`; 0 when the recording is older than it."""
    last: int
    """`seqId`; 0 when the recording is older than it."""
    bids: Sequence[tuple[str, str]]
    """Changed bids."""
    asks: Sequence[tuple[str, str]]
    """Changed asks."""
    exchange_time: int
    """`ts` in nanoseconds."""
    checksum: int
    """CRC32 of the book after this; 0 when not told."""

    @property
    def first(self) -> int:
        """OKX names only the last change."""
        return self.last


class _Level(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """[price, size, deprecated, orders]: what follows the size is passed over."""

    price: str
    size: str


Levels: TypeAlias = list[_Level]


class Book(msgspec.Struct, gc=False, frozen=True):
    """The payload of a book channel and of the answer to a request of a book."""

    bids: Levels
    """Bids, best first."""
    asks: Levels
    """Asks, best first."""
    time: str = msgspec.field(name="ts")
    """Milliseconds since 1970."""
    checksum: _Checksum = 0
    """CRC32 of the book; 0 when not told."""
    last: _Id | None = msgspec.field(name="seqId", default=None)
    """Id of the last change; None in recordings that are older than it."""
    previous: _PreviousId | None = msgspec.field(name="prevSeqId", default=None)
    """Id that this continues; -1 in a snapshot, None in recordings that are older than it."""


class _Argument(msgspec.Struct, gc=False, frozen=True):
    channel: str
    native_symbol: str = msgspec.field(name="instId")


class _BookFrame(msgspec.Struct, gc=False, frozen=True):
    arg: _Argument
    action: Literal["snapshot", "update"]
    data: Annotated[list[Book], msgspec.Meta(min_length=1)]


class _Top(msgspec.Struct, gc=False, frozen=True):
    bids: Levels
    asks: Levels
    time: str = msgspec.field(name="ts")
    sequence: _Id = msgspec.field(name="seqId", default=0)


class _TopFrame(msgspec.Struct, gc=False, frozen=True):
    arg: _Argument
    data: Annotated[list[_Top], msgspec.Meta(min_length=1)]


class Trade(msgspec.Struct, gc=False, frozen=True):
    """A trade of a stream or of an answer."""

    native_symbol: str = msgspec.field(name="instId")
    """Instrument."""
    trade_id: WholeNumber = msgspec.field(name="tradeId")
    """Number of the trade, the last one of those that are folded."""
    price: str = msgspec.field(name="px")
    """Price."""
    size: str = msgspec.field(name="sz")
    """Quantity: base currency of spot, contracts of the others."""
    side: Literal["buy", "sell"]
    """The taker's side."""
    time: str = msgspec.field(name="ts")
    """Milliseconds since 1970."""
    count: WholeNumber = "0"
    """Trades that were folded into this; not told where none are."""


class TradeFrame(msgspec.Struct, gc=False, frozen=True):
    """A push of trades, or the answer to a request of them."""

    data: Annotated[list[Trade], msgspec.Meta(min_length=1)]
    """The trades."""


def pairs(levels: Levels) -> list[tuple[str, str]]:
    """Give levels as (price, size), as they are spelt."""
    return [(level.price, level.size) for level in levels]


def one_or_several(messages: Sequence[VenueMessage]) -> VenueMessage:
    """Wrap what one frame told."""
    return messages[0] if len(messages) == 1 else Several(tuple(messages))


def snapshot(book: Book, native_symbol: str, limit: int) -> BookSnapshot:
    """Make a snapshot of a book that has at most `limit` levels a side."""
    return BookSnapshot(
        book.last or 0,
        pairs(book.bids),
        pairs(book.asks),
        limit,
        nanoseconds(book.time),
        book.checksum,
        native_symbol,
    )


def trade_print(trade: Trade) -> TradePrint:
    """Make the trade."""
    return TradePrint(
        trade.native_symbol,
        int(trade.trade_id),
        nanoseconds(trade.time),
        canonical_decimal(trade.price),
        canonical_decimal(trade.size),
        trade.side == "sell",
        int(trade.count),
    )


def market_decoders() -> dict[str, Callable[[bytes], VenueMessage]]:
    """Give the decoders of whole frames, by channel. They raise what `DECODE_ERRORS` lists."""
    book = msgspec.json.Decoder(_BookFrame).decode
    top = msgspec.json.Decoder(_TopFrame).decode
    trade = msgspec.json.Decoder(TradeFrame).decode

    def books(data: bytes) -> VenueMessage:
        frame = book(data)
        pushed = frame.data
        if len(pushed) == 1:
            return _book(frame.arg, frame.action, pushed[0])
        return Several(tuple(_book(frame.arg, frame.action, each) for each in pushed))

    def tops(data: bytes) -> VenueMessage:
        frame = top(data)
        name = frame.arg.native_symbol
        return one_or_several([_top(name, each) for each in frame.data])

    def trades(data: bytes) -> VenueMessage:
        return one_or_several([trade_print(each) for each in trade(data).data])

    return {
        **dict.fromkeys(BOOK_CHANNELS, books),
        **dict.fromkeys(_TOP_CHANNELS, tops),
        **dict.fromkeys(_TRADE_CHANNELS, trades),
    }


def _book(arg: _Argument, action: str, book: Book) -> VenueMessage:
    if action == "snapshot":
        return snapshot(book, arg.native_symbol, BOOK_CHANNELS.get(arg.channel, 0))
    last, previous = book.last, book.previous
    if last is None or previous is None:
        if last is not previous:
            raise msgspec.ValidationError(
                f"expected both seqId and prevSeqId or none, got {last} and {previous}"
            )
        last = previous = 0
    elif previous < 0:
        raise msgspec.ValidationError(f"expected the prevSeqId of an update, got {previous}")
    elif last == previous and not book.bids and not book.asks:
        return BookHeartbeat(arg.native_symbol, last, book.checksum)
    return OkxBookUpdate(
        arg.native_symbol,
        previous,
        last,
        [(level.price, level.size) for level in book.bids],
        [(level.price, level.size) for level in book.asks],
        nanoseconds(book.time),
        book.checksum,
    )


def _top(native_symbol: str, top: _Top) -> TopOfBook:
    def best(levels: Levels) -> tuple[str, str]:
        if not levels:
            return "", ""
        return canonical_decimal(levels[0].price), canonical_decimal(levels[0].size)

    return TopOfBook(
        native_symbol, top.sequence, nanoseconds(top.time), best(top.bids), best(top.asks)
    )
