"""A local order book kept from MarketPrism's events, by the two rules of the stream.

A snapshot replaces everything. An update is right only if it has the same epoch and continues the
sequence. Everything else that may happen is told by a status, and the book knows whether it may be
trusted. Follows docs/streaming.md.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from decimal import Decimal
from typing import NamedTuple

from marketprism.market.v1 import order_book_pb2
from marketprism.market.v1.common_pb2 import PriceLevel
from marketprism.market.v1.market_event_pb2 import MarketEvent

__all__ = ["BrokenBookError", "Level", "OrderBook"]

_SYNCED = order_book_pb2.ORDER_BOOK_STATE_SYNCED


class BrokenBookError(Exception):
    """An update does not continue the book: what is held must not be used until a snapshot."""


class Level(NamedTuple):
    """A price and the quantity resting there, exact."""

    price: Decimal
    """Price in quote currency."""
    quantity: Decimal
    """Quantity in the unit that Instrument.quantity_unit names."""


class _Side:
    """One side, sorted by price in ascending order."""

    def __init__(self) -> None:
        self.prices: list[Decimal] = []
        self.quantities: dict[Decimal, Decimal] = {}

    def replace(self, levels: Iterable[PriceLevel]) -> None:
        self.quantities = {Decimal(each.price): Decimal(each.quantity) for each in levels}
        self.prices = sorted(self.quantities)

    def apply(self, levels: Iterable[PriceLevel]) -> None:
        for each in levels:
            price, quantity = Decimal(each.price), Decimal(each.quantity)
            known = price in self.quantities
            if quantity:
                self.quantities[price] = quantity
                if not known:
                    insort(self.prices, price)
            elif known:
                del self.quantities[price]
                del self.prices[bisect_left(self.prices, price)]

    def best_first(self, depth: int | None, *, highest: bool) -> list[Level]:
        prices = self.prices
        if highest:
            chosen = prices[::-1] if depth is None else prices[: -depth - 1 : -1]
        else:
            chosen = prices if depth is None else prices[:depth]
        return [Level(price, self.quantities[price]) for price in chosen]


class OrderBook:
    """The book of one instrument.

    `epoch` and `sequence` say where it stands, `state` and `detail` what the server last told of
    it (`OrderBookState`, and why). `received` is the receive time of the last event, nanoseconds
    since 1970. `connected` tells that the present connection carries it, `doubtful` that the server
    says events may be missing on their way. `gaps` counts updates that did not continue it.
    """

    def __init__(self, exchange: str, symbol: str) -> None:
        self.exchange = exchange
        self.symbol = symbol
        self.epoch = 0
        self.sequence = 0
        self.venue_sequence = 0
        self.state = order_book_pb2.ORDER_BOOK_STATE_SYNCING
        self.detail = ""
        self.received = 0
        self.gaps = 0
        self.bid_horizon = ""
        self.ask_horizon = ""
        self.connected = False
        self.doubtful = False
        self._broken = False
        self._bids = _Side()
        self._asks = _Side()

    def __repr__(self) -> str:
        bid, ask = self.best_bid(), self.best_ask()
        return (
            f"<OrderBook {self.exchange}/{self.symbol} {self.epoch}.{self.sequence} "
            f"{bid.price if bid else '-'} / {ask.price if ask else '-'}"
            f"{'' if self.is_trusted else ' not to be trusted'}>"
        )

    @property
    def is_trusted(self) -> bool:
        """Whether the book equals the venue's at `venue_sequence`, as far as is known here."""
        return (
            self.connected
            and not self.doubtful
            and not self._broken
            and self.epoch > 0
            and self.state == _SYNCED
        )

    @property
    def can_resume(self) -> bool:
        """Whether the updates after `sequence` would continue what is held."""
        return self.epoch > 0 and not self._broken

    def bids(self, depth: int | None = None) -> list[Level]:
        """Bids, best (highest) first; all of them without `depth`."""
        return self._bids.best_first(depth, highest=True)

    def asks(self, depth: int | None = None) -> list[Level]:
        """Asks, best (lowest) first; all of them without `depth`."""
        return self._asks.best_first(depth, highest=False)

    def best_bid(self) -> Level | None:
        """Highest bid, None when there is none."""
        return next(iter(self.bids(1)), None)

    def best_ask(self) -> Level | None:
        """Lowest ask, None when there is none."""
        return next(iter(self.asks(1)), None)

    @property
    def mid(self) -> Decimal | None:
        """Half way between the best bid and the best ask; None when a side is empty."""
        bid, ask = self.best_bid(), self.best_ask()
        return None if bid is None or ask is None else (bid.price + ask.price) / 2

    @property
    def spread(self) -> Decimal | None:
        """Best ask less best bid; None when a side is empty."""
        bid, ask = self.best_bid(), self.best_ask()
        return None if bid is None or ask is None else ask.price - bid.price

    def apply(self, event: MarketEvent) -> bool:
        """Apply one event; tells whether it was one of this book.

        Raises BrokenBookError when an update does not continue the book, which is then not to be
        trusted until the next snapshot.
        """
        kind = event.WhichOneof("event")
        if kind == "order_book_update":
            return self._update(event.order_book_update)
        if kind == "order_book_snapshot":
            return self._snapshot(event.order_book_snapshot)
        if kind == "order_book_status":
            status = event.order_book_status
            if not self._is_mine(status.exchange, status.symbol):
                return False
            self.state = status.state
            self.detail = status.detail
            return True
        return False

    def _is_mine(self, exchange: str, symbol: str) -> bool:
        return exchange == self.exchange and symbol == self.symbol

    def _snapshot(self, snapshot: order_book_pb2.OrderBookSnapshot) -> bool:
        if not self._is_mine(snapshot.exchange, snapshot.symbol):
            return False
        self._bids.replace(snapshot.bids)
        self._asks.replace(snapshot.asks)
        self.epoch, self.sequence = snapshot.epoch, snapshot.sequence
        self.venue_sequence = snapshot.venue_sequence
        self.bid_horizon, self.ask_horizon = snapshot.bid_horizon, snapshot.ask_horizon
        self.received = snapshot.receive_time.ToNanoseconds()
        self._broken = False
        return True

    def _update(self, update: order_book_pb2.OrderBookUpdate) -> bool:
        if not self._is_mine(update.exchange, update.symbol):
            return False
        if self._broken or not self.epoch:
            return True
        # Updates of an interval may be merged: then the first of them has to continue the book.
        first = update.first_sequence or update.sequence
        if update.epoch != self.epoch or first != self.sequence + 1:
            self._broken = True
            self.gaps += 1
            raise BrokenBookError(
                f"{self.exchange}/{self.symbol}: expected an update that continues "
                f"{self.epoch}.{self.sequence}, got {update.epoch}.{first}"
            )
        self._bids.apply(update.bids)
        self._asks.apply(update.asks)
        self.sequence = update.sequence
        self.venue_sequence = update.venue_sequence
        self.received = update.receive_time.ToNanoseconds()
        return True
