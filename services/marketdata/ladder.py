"""The levels of a book that views read: kept up to date, in order where somebody asks for it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as field_of
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from itertools import repeat
from typing import Final, TypeAlias

from marketprism.market.v1 import order_book_pb2

from services.marketdata.levels import MalformedLevelError, Side
from services.shared.wire import field

__all__ = [
    "ASKS",
    "BIDS",
    "Changes",
    "Dated",
    "Ladder",
    "OrderedSide",
    "encode_best",
    "encode_horizons",
    "encode_levels",
    "snapshot_head",
]

BIDS: Final = 10
"""Field of the bids in OrderBookSnapshot and OrderBookUpdate."""

ASKS: Final = 11
"""Field of the asks in the same."""

_BID_HORIZON = 12
_ASK_HORIZON = 13
_SHORT = 127  # bytes whose number takes one byte
_REMEMBERED = 16_384  # encoded levels
_ORDER_AT = 256  # prices that came or went, before they are put in order although nobody asks

Dated: TypeAlias = order_book_pb2.OrderBookSnapshot | order_book_pb2.OrderBookUpdate
"""What tells the place and the times of a book."""


@dataclass(slots=True)
class Changes:
    """What one or more updates in a row change: the last quantity at each price, "0" for none."""

    bids: dict[str, str]
    asks: dict[str, str]

    first: order_book_pb2.OrderBookUpdate
    """The first of the updates; its levels mean nothing."""

    last: order_book_pb2.OrderBookUpdate
    """The last of them."""

    item: bytes = b""
    """The `events` item that says all of it, where there is one; else empty."""

    old_bids: dict[str, str] = field_of(default_factory=dict)
    """What the quantities at these prices were before, "0" for none."""

    old_asks: dict[str, str] = field_of(default_factory=dict)
    """The same of the asks."""

    def note_old(self, bids: Mapping[str, str], asks: Mapping[str, str]) -> None:
        """Keep what the quantities are before the changes are taken."""
        self.old_bids = {price: bids.get(price, "0") for price in self.bids}
        self.old_asks = {price: asks.get(price, "0") for price in self.asks}


class OrderedSide(Side):
    """One side of a book that takes changes by price, and orders prices from the first question."""

    __slots__ = ("_is_ordered",)

    def __init__(self, number: int, *, descending: bool) -> None:
        super().__init__(number, descending=descending)
        self._is_ordered = False

    def load(self, levels: dict[str, str]) -> None:
        """Replace all levels."""
        self.levels = levels
        self._is_ordered = False
        self._pending.clear()

    def take(self, changes: Mapping[str, str]) -> None:
        """Set the quantity at each price, delete where it is "0".

        Raises `MalformedLevelError` when the order is kept and a price is no number.
        """
        levels = self.levels
        before = len(levels)
        came = [price for price in changes if price not in levels] if self._is_ordered else []
        for price, quantity in changes.items():
            if quantity == "0":
                if levels.pop(price, None) is not None and self._is_ordered:
                    self._pending.add(price)
            else:
                levels[price] = quantity
        if came or before != len(levels):
            self._pending.update(came)
            if self._is_ordered and len(self._pending) > _ORDER_AT:
                super().best(1)

    def best(self, depth: int) -> list[str]:
        """See `Side.best`."""
        if not self._is_ordered:
            self._keys, self._names = [], []
            self._pending = set(self.levels)
            self._is_ordered = True
        return super().best(depth)

    def before(self, old: Mapping[str, str]) -> list[tuple[str, str]]:
        """Give the levels best first, with the quantities that some prices had before."""
        levels = {**self.levels, **old}.items()
        try:
            return sorted(
                (level for level in levels if level[1] != "0"),
                key=lambda level: Decimal(level[0]),
                reverse=self._descending,
            )
        except InvalidOperation:
            raise MalformedLevelError("expected a decimal price at every level") from None

    def better(self, one: str, other: str) -> str:
        """Give the better of two prices; an empty one is worse than any."""
        if not one or not other:
            return one or other
        try:
            is_higher = Decimal(one) > Decimal(other)
        except InvalidOperation:
            raise MalformedLevelError(f"expected decimal prices, got {one!r}, {other!r}") from None
        return one if is_higher == self._descending else other


class Ladder:
    """Both sides of a book as it is published."""

    __slots__ = ("_horizons", "_moves", "asks", "bids")

    def __init__(self) -> None:
        self.bids = OrderedSide(BIDS, descending=True)
        self.asks = OrderedSide(ASKS, descending=False)
        self._horizons = "", ""
        self._moves = False, False

    def load(self, snapshot: order_book_pb2.OrderBookSnapshot) -> None:
        """Replace everything."""
        self.bids.load({level.price: level.quantity for level in snapshot.bids})
        self.asks.load({level.price: level.quantity for level in snapshot.asks})
        self._horizons = snapshot.bid_horizon, snapshot.ask_horizon
        # As in `BookLevels`: a horizon at the worst level moves with it, one beyond it does not.
        self._moves = (
            bool(snapshot.bids) and snapshot.bids[-1].price == snapshot.bid_horizon,
            bool(snapshot.asks) and snapshot.asks[-1].price == snapshot.ask_horizon,
        )

    def take(self, changes: Changes) -> None:
        """Bring both sides forward; raises as `OrderedSide.take` does."""
        self.bids.take(changes.bids)
        self.asks.take(changes.asks)

    def horizons(self) -> tuple[str, str]:
        """Give the horizons of bids and asks as they are now, empty where there is none."""
        bid, ask = self._horizons
        bid_moves, ask_moves = self._moves
        return (
            self.bids.worst_within(bid) if bid_moves else bid,
            self.asks.worst_within(ask) if ask_moves else ask,
        )


def encode_level(number: int, price: str, quantity: str) -> bytes:
    """Encode a PriceLevel as one item of the repeated field `number`."""
    first, second = price.encode(), quantity.encode()
    size = len(first) + len(second) + 4
    if size > _SHORT:
        return field(number, field(1, first) + field(2, second))
    tag = number << 3 | 2
    return b"%c%c\n%c%b\x12%c%b" % (tag, size, len(first), first, len(second), second)


# Of the best levels, which are sent again and again, most are as they were.
_remembered = lru_cache(maxsize=_REMEMBERED)(encode_level)


def encode_levels(number: int, levels: Iterable[tuple[str, str]]) -> bytes:
    """Encode prices and quantities as the repeated field `number` of PriceLevels, in this order."""
    return b"".join([encode_level(number, price, quantity) for price, quantity in levels])


def encode_best(number: int, prices: Sequence[str], levels: Mapping[str, str]) -> bytes:
    """Encode the levels at some prices, in this order, as `encode_levels` does."""
    quantities = [levels[price] for price in prices]
    return b"".join(map(_remembered, repeat(number), prices, quantities))


def encode_horizons(bid: str, ask: str) -> bytes:
    """Encode all of an OrderBookSnapshot that comes after its levels."""
    return (field(_BID_HORIZON, bid.encode()) if bid else b"") + (
        field(_ASK_HORIZON, ask.encode()) if ask else b""
    )


def snapshot_head(last: Dated, reason: int) -> bytes:
    """Encode all of an OrderBookSnapshot that comes before its levels, as of `last`."""
    return order_book_pb2.OrderBookSnapshot(
        exchange=last.exchange,
        symbol=last.symbol,
        epoch=last.epoch,
        sequence=last.sequence,
        exchange_time=last.exchange_time if last.HasField("exchange_time") else None,
        receive_time=last.receive_time if last.HasField("receive_time") else None,
        venue_sequence=last.venue_sequence,
        reason=reason,  # type: ignore[arg-type]  # the enum's value is an int
    ).SerializeToString()
