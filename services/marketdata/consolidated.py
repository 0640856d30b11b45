"""The book of a pair across venues: the best levels of every venue's spot book, side by side.

Only spot instruments are legs: a perpetual of the same pair is another thing to own, priced by its
funding. Levels are not netted: a bid of one venue above an ask of another is normal, and told as it
is.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from heapq import merge
from itertools import islice
from typing import Final, TypeAlias

from marketprism.market.v1 import common_pb2, instrument_pb2, order_book_pb2
from marketprism.market.v1 import market_data_service_pb2 as pb

from services.marketdata.book_state import SYNCED, SYNCING
from services.marketdata.catalog import Key
from services.marketdata.levels import MalformedLevelError
from services.marketdata.live_book import LiveBook
from services.marketdata.market import Market
from services.marketdata.wire import timestamp
from services.shared.errors import NotFound
from services.shared.wire import field

__all__ = ["ConsolidatedBooks", "Pair", "Put"]

_REFRESH_SECONDS = 1.0
_SHOWN = 8
_REQUESTED: Final = int(order_book_pb2.SNAPSHOT_REASON_REQUESTED)
_SPOT: Final = int(instrument_pb2.INSTRUMENT_KIND_SPOT)
_EXPIRED: Final = int(instrument_pb2.INSTRUMENT_STATUS_EXPIRED)
_QUOTE: Final = int(instrument_pb2.QUANTITY_UNIT_QUOTE)
_BIDS: Final = pb.ConsolidatedOrderBook.DESCRIPTOR.fields_by_name["bids"].number
_ASKS: Final = pb.ConsolidatedOrderBook.DESCRIPTOR.fields_by_name["asks"].number

_Level: TypeAlias = tuple[Decimal, bytes]


@dataclass(frozen=True, slots=True)
class Pair:
    """Which consolidated book is wanted."""

    base: str
    """Base currency."""

    quote: str
    """Quote currency."""

    depth: int
    """Levels a side."""

    exchanges: frozenset[str] = frozenset()
    """Only these venues; empty means all."""


@dataclass(frozen=True, slots=True)
class Put:
    """A consolidated book that was put together."""

    encoded: bytes
    """The ConsolidatedOrderBook."""

    content: tuple[object, ...]
    """What has to differ for the book to count as another one: not its time, nor its ages."""


class ConsolidatedBooks:
    """Finds the legs of pairs, and puts their books together.

    A leg whose last change is older than `max_age` seconds is left out, like one that is not
    SYNCED. `monotonic` gives seconds.
    """

    def __init__(self, market: Market, max_age: float, monotonic: Callable[[], float]) -> None:
        self._market = market
        self._max_age_ms = int(max_age * 1000)
        self._monotonic = monotonic
        self._pairs: dict[tuple[str, str], dict[Key, None]] = {}
        self._seen: dict[Key, instrument_pb2.Instrument] = {}
        self._refresh_at = float("-inf")

    def check(self, pair: Pair) -> None:
        """Raise `NotFound` when no venue lists the pair, or a venue is unknown.

        `Unavailable` while nothing is known yet.
        """
        catalog = self._market.catalog
        catalog.check_ready()
        for exchange in sorted(pair.exchanges):
            catalog.check_exchange(exchange)
        if not self.legs(pair):
            self._refresh_at = float("-inf")
            if not self.legs(pair):
                raise self._not_found(pair)

    def legs(self, pair: Pair) -> list[Key]:
        """Give the spot instruments of a pair, by exchange and then symbol."""
        self._refresh()
        found = self._pairs.get((pair.base, pair.quote), {})
        return sorted(key for key in found if not pair.exchanges or key[0] in pair.exchanges)

    def state(self, pair: Pair) -> tuple[object, ...]:
        """Give what has changed when the book may have changed; it costs little."""
        books = self._market.books
        return tuple(
            (key, book.state, book.epoch, book.sequence, self._is_included(book))
            if (book := books.get(key)) is not None
            else (key,)
            for key in self.legs(pair)
        )

    def put(self, pair: Pair) -> Put:
        """Put the book together as it is now."""
        bids: list[list[_Level]] = []
        asks: list[list[_Level]] = []
        legs = []
        for key in self.legs(pair):
            book = self._market.books.get(key)
            levels = self._levels(book, pair.depth) if book is not None else None
            legs.append(_leg(key, book, included=levels is not None))
            if levels is not None:
                bids.append(levels[0])
                asks.append(levels[1])
        encoded_bids = _merged(_BIDS, bids, pair.depth, descending=True)
        encoded_asks = _merged(_ASKS, asks, pair.depth, descending=False)
        head = pb.ConsolidatedOrderBook(
            base=pair.base, quote=pair.quote, time=timestamp(self._market.now())
        )
        tail = pb.ConsolidatedOrderBook(legs=legs)
        states = tuple(
            (leg.exchange, leg.symbol, leg.state, leg.epoch, leg.included) for leg in legs
        )
        return Put(
            head.SerializeToString() + encoded_bids + encoded_asks + tail.SerializeToString(),
            (encoded_bids, encoded_asks, states),
        )

    # ---- inside

    def _is_included(self, book: LiveBook) -> bool:
        return book.has_levels and book.state == SYNCED and book.age_ms() <= self._max_age_ms

    def _levels(self, book: LiveBook, depth: int) -> tuple[list[_Level], list[_Level]] | None:
        """Give the best levels of a leg, None when it is left out."""
        if not self._is_included(book):
            return None
        whose = field(3, book.exchange.encode()) + field(4, book.symbol.encode())
        try:
            snapshot = order_book_pb2.OrderBookSnapshot.FromString(
                book.order_book(depth, _REQUESTED)
            )
            return _encoded(snapshot.bids, whose), _encoded(snapshot.asks, whose)
        except (MalformedLevelError, InvalidOperation):
            return None

    def _refresh(self) -> None:
        """Look for instruments that are new, or are described otherwise than before."""
        now = self._monotonic()
        if now < self._refresh_at:
            return
        self._refresh_at = now + _REFRESH_SECONDS
        seen = self._seen
        for key, instrument, _ in self._market.catalog.described():
            before = seen.get(key)
            if before is instrument:
                continue
            if before is not None:
                self._pairs.get((before.base, before.quote), {}).pop(key, None)
            seen[key] = instrument
            if (
                instrument.kind == _SPOT
                and instrument.status != _EXPIRED
                and instrument.quantity_unit != _QUOTE
            ):
                self._pairs.setdefault((instrument.base, instrument.quote), {})[key] = None

    def _not_found(self, pair: Pair) -> NotFound:
        where = f"of {', '.join(sorted(pair.exchanges)[:_SHOWN])} " if pair.exchanges else ""
        if self._pairs.get((pair.base.upper(), pair.quote.upper())):
            hint = f"; did you mean {pair.base.upper()}/{pair.quote.upper()}?"
            if (pair.base, pair.quote) == (pair.base.upper(), pair.quote.upper()):
                hint = "; other venues do"
        else:
            quotes = sorted(q for (b, q), keys in self._pairs.items() if b == pair.base and keys)
            shown = ", ".join(quotes[:_SHOWN])
            hint = f"; {pair.base} is traded against {shown}" if quotes else ""
        return NotFound(
            f"no spot market {where}trades {pair.base[:40]}/{pair.quote[:40]}{hint}; see "
            "ListInstruments",
            reason="INSTRUMENT_NOT_FOUND",
            metadata={"base": pair.base[:40], "quote": pair.quote[:40]},
        )


def _leg(key: Key, book: LiveBook | None, *, included: bool) -> pb.ConsolidatedLeg:
    return pb.ConsolidatedLeg(
        exchange=key[0],
        symbol=key[1],
        state=book.state if book is not None else SYNCING,  # type: ignore[arg-type]  # an int
        epoch=book.epoch if book is not None else 0,
        sequence=book.sequence if book is not None else 0,
        age_ms=book.age_ms() if book is not None and book.has_levels else 0,
        included=included,
    )


def _encoded(levels: Iterable[common_pb2.PriceLevel], whose: bytes) -> list[_Level]:
    """Give each level's price, and its ConsolidatedLevel."""
    return [
        (
            Decimal(level.price),
            field(1, level.price.encode()) + field(2, level.quantity.encode()) + whose,
        )
        for level in levels
    ]


def _merged(number: int, legs: list[list[_Level]], depth: int, *, descending: bool) -> bytes:
    """Merge the legs' levels, best first; at one price in the order of the venues."""
    best = islice(merge(*legs, key=lambda level: level[0], reverse=descending), depth)
    return b"".join(field(number, level) for _, level in best)
