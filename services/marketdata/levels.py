"""The levels of a book, put together only when somebody asks for them.

A book that nobody looks at costs nothing but its log. One that is looked at is kept, and brought
forward by the updates that came since.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation

from marketprism.market.v1 import common_pb2, order_book_pb2

from services.shared.wire import field

__all__ = ["BookLevels", "MalformedLevelError", "Side"]

_BIDS = 10
_ASKS = 11
_RESORT_SHARE = 8


class MalformedLevelError(ValueError):
    """A price is not a decimal number."""


class Side:
    """One side of a book: price to quantity, both canonical decimal strings.

    `number` is that of its field in OrderBookSnapshot.
    """

    __slots__ = ("_descending", "_keys", "_names", "_number", "_pending", "levels")

    def __init__(self, number: int, *, descending: bool) -> None:
        self._number = number
        self._descending = descending
        self.levels: dict[str, str] = {}
        """Quantity at each price."""
        # Prices in rising order, as numbers and as text, as of when they were last asked for;
        # prices that came or went since are pending.
        self._keys: list[Decimal] = []
        self._names: list[str] = []
        self._pending: set[str] = set()

    def apply(self, changes: Iterable[common_pb2.PriceLevel]) -> None:
        """Set the quantity at each price, delete where it is 0."""
        levels = self.levels
        pending = self._pending
        for change in changes:
            price = change.price
            quantity = change.quantity
            if quantity == "0":
                if levels.pop(price, None) is not None:
                    pending.add(price)
            else:
                if price not in levels:
                    pending.add(price)
                levels[price] = quantity

    def best(self, depth: int) -> list[str]:
        """Give the best `depth` prices, best first; all when 0.

        Raises `MalformedLevelError`.
        """
        if self._pending:
            try:
                self._sort()
            except InvalidOperation:
                bad = next((p for p in self.levels if not _is_number(p)), "?")
                raise MalformedLevelError(f"expected a decimal price, got {bad[:40]!r}") from None
        names = self._names
        if self._descending:
            return names[: -depth - 1 : -1] if depth else names[::-1]
        return names[:depth] if depth else names

    def worst_within(self, horizon: str) -> str:
        """Give the worst price held that is not beyond a horizon; the horizon when there is none.

        Raises `MalformedLevelError`.
        """
        self.best(1)
        try:
            edge = Decimal(horizon)
        except InvalidOperation:
            return horizon
        if self._descending:
            index = bisect_left(self._keys, edge)
            return self._names[index] if index < len(self._names) else horizon
        index = bisect_right(self._keys, edge)
        return self._names[index - 1] if index else horizon

    def encode(self, depth: int) -> bytes:
        """Encode the best `depth` levels, best first, as the repeated field; all when 0.

        Raises `MalformedLevelError`.
        """
        tag = chr(self._number << 3 | 2)
        levels = self.levels
        out = []
        for price in self.best(depth):
            quantity = levels[price]
            length = len(price) + len(quantity) + 4
            if length > 127:
                return self._encode_long(depth)
            out.append(
                f"{tag}{chr(length)}\n{chr(len(price))}{price}\x12{chr(len(quantity))}{quantity}"
            )
        return "".join(out).encode("latin-1")

    def _encode_long(self, depth: int) -> bytes:
        return b"".join(
            field(self._number, field(1, price.encode()) + field(2, self.levels[price].encode()))
            for price in self.best(depth)
        )

    def _sort(self) -> None:
        pending = self._pending
        if len(pending) * _RESORT_SHARE > len(self.levels) or not self._merge(pending):
            pairs = sorted(zip(map(Decimal, self.levels), self.levels, strict=True))
            self._keys = [key for key, _ in pairs]
            self._names = [name for _, name in pairs]
        pending.clear()

    def _merge(self, pending: set[str]) -> bool:
        """Bring the order forward; False when two spellings of one number stand in its way."""
        keys, names, levels = self._keys, self._names, self.levels
        for price in pending:
            key = Decimal(price)
            index = bisect_left(keys, key)
            if index < len(keys) and keys[index] == key:
                if names[index] != price:
                    return False
                if price not in levels:
                    del keys[index], names[index]
            elif price in levels:
                keys.insert(index, key)
                names.insert(index, price)
        return True


class BookLevels:
    """A whole book at (epoch, sequence), made of an encoded snapshot and brought forward.

    Raises `MalformedLevelError` where a price has to be compared and is none.
    """

    __slots__ = ("_horizons", "_last", "_moves", "asks", "bids", "position", "sequence")

    def __init__(self, snapshot: bytes, position: int) -> None:
        message = order_book_pb2.OrderBookSnapshot.FromString(snapshot)
        self.position = position
        """Place in the book's log up to which updates are contained."""
        self.sequence = message.sequence
        """Sequence of the last update contained."""
        self.bids = Side(_BIDS, descending=True)
        self.asks = Side(_ASKS, descending=False)
        self.bids.apply(message.bids)
        self.asks.apply(message.asks)
        self._horizons = message.bid_horizon, message.ask_horizon
        # A horizon beyond the worst level is one that does not move with it.
        self._moves = (
            bool(message.bids) and message.bids[-1].price == message.bid_horizon,
            bool(message.asks) and message.asks[-1].price == message.ask_horizon,
        )
        self._last = order_book_pb2.OrderBookUpdate(
            exchange=message.exchange,
            symbol=message.symbol,
            epoch=message.epoch,
            sequence=message.sequence,
            exchange_time=message.exchange_time if message.HasField("exchange_time") else None,
            receive_time=message.receive_time if message.HasField("receive_time") else None,
            venue_sequence=message.venue_sequence,
        )

    def apply(self, update: bytes) -> None:
        """Apply an encoded OrderBookUpdate, the next one."""
        message = order_book_pb2.OrderBookUpdate.FromString(update)
        self.bids.apply(message.bids)
        self.asks.apply(message.asks)
        self.sequence = message.sequence
        self._last = message

    def encode(self, reason: int, depth: int = 0) -> bytes:
        """Encode the book as an OrderBookSnapshot, cut to `depth` levels a side; all when 0."""
        last = self._last
        head = order_book_pb2.OrderBookSnapshot(
            exchange=last.exchange,
            symbol=last.symbol,
            epoch=last.epoch,
            sequence=last.sequence,
            exchange_time=last.exchange_time if last.HasField("exchange_time") else None,
            receive_time=last.receive_time if last.HasField("receive_time") else None,
            venue_sequence=last.venue_sequence,
            reason=reason,  # type: ignore[arg-type]  # the enum's value is an int
        )
        return b"".join(
            (
                head.SerializeToString(),
                self.bids.encode(depth),
                self.asks.encode(depth),
                self._tail(),
            )
        )

    def _tail(self) -> bytes:
        """Encode the horizons.

        A venue that keeps the best so many levels up takes the worst away when better ones come:
        what it took away is unknown, and only the collector's next snapshot tells. So nothing is
        claimed to be known beyond the worst level that is held within the horizon; where a level
        was in truth deleted there, that claims a little less than is known, and never more.
        """
        bid, ask = self._horizons
        bid_moves, ask_moves = self._moves
        return order_book_pb2.OrderBookSnapshot(
            bid_horizon=self.bids.worst_within(bid) if bid_moves else bid,
            ask_horizon=self.asks.worst_within(ask) if ask_moves else ask,
        ).SerializeToString()


def _is_number(text: str) -> bool:
    try:
        return Decimal(text).is_finite()
    except InvalidOperation:
        return False
