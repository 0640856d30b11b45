"""The local order book of one instrument: pure, exact, and already half encoded.

Prices are kept as the encoded protobuf field of their `PriceLevel` (one character a byte), so that
applying an update and encoding it is one pass over its levels, and a snapshot is a sort and a join.
They compare by value, through Decimal, only where an order is asked for.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Sequence
from decimal import Decimal
from typing import Any, NamedTuple, TypeAlias

from services.shared.decimals import InvalidDecimalError, canonical_decimal

__all__ = ["Level", "OrderBook", "book_digest"]

_CHAR = tuple(chr(value) for value in range(256))
_SHORT = _CHAR[:32]  # lengths of the numbers that the usual way takes: at most 30 digits
_PLAIN = _CHAR[:31]  # and those of numbers that may have no point
_FRAME = 3  # characters of a price's field that are not the price
_CACHE_LIMIT = 50_000
_BIDS_TAG = "R"  # field 10, length-delimited, of OrderBookSnapshot and OrderBookUpdate
_ASKS_TAG = "Z"  # field 11


_Changes: TypeAlias = Sequence[tuple[str, str]]


class Level(NamedTuple):
    """A price and the quantity resting there, both canonical decimal strings."""

    price: str
    quantity: str


class _IrregularError(Exception):
    """A side is not spelt the way that was tried: the next way decides about it."""


class _PriceFields(dict[str, str]):
    """From a venue's spelling of a price to its encoded field; forgets all when it is full.

    Prices come again and again, so that a look-up beats reading them; quantities do not. The tag of
    the quantity that follows is part of it.
    """

    def __missing__(self, text: str) -> str:
        price = canonical_decimal(text)
        if len(self) >= _CACHE_LIMIT:
            self.clear()
        # Fields 1 and 2 of PriceLevel, both length-delimited.
        field = self[text] = f"\n{_CHAR[len(price)]}{price}\x12"
        return field


class _QuantityFields(dict[str, str]):
    """From a venue's spelling of a quantity to its encoded field; forgets all when it is full.

    Worth it where quantities are round: contracts, lots, dollars. The tag is part of the price's.
    """

    def __missing__(self, text: str) -> str:
        quantity = _quantity(text)
        if len(self) >= _CACHE_LIMIT:
            self.clear()
        field = self[text] = f"{_CHAR[len(quantity)]}{quantity}"
        return field


_PRICES = _PriceFields()
_QUANTITIES = _QuantityFields()
_NOTHING = "\x010"


def _quantity(text: str) -> str:
    quantity = canonical_decimal(text)
    if quantity[0] == "-":
        raise InvalidDecimalError(f"expected a quantity of 0 or more, got {text!r}")
    return quantity


def _encode(tag: str, price: str, quantity: str) -> str:
    """Encode a level: `price` is its encoded field, `quantity` is canonical."""
    size = len(quantity)
    return f"{tag}{_CHAR[len(price) + size + 1]}{price}{_CHAR[size]}{quantity}"


def _decimal(field: str) -> Decimal:
    return Decimal(field[2:-1])


def _float(field: str) -> float:
    return float(field[2:-1])


def _order_key(prices: Collection[str]) -> Callable[[str], Any]:
    """Give the key that puts these price fields in order: a float's, when that is exact.

    Decimal numbers of at most 15 digits and the doubles nearest to them are in the same order, no
    two of them equal (IEEE 754), and doubles compare several times as fast.
    """
    return _float if max(map(len, prices), default=0) <= 15 + _FRAME else _decimal


def _sorted(prices: Collection[str], *, descending: bool) -> list[str]:
    return sorted(prices, key=_order_key(prices), reverse=descending)


def _apply_usual(tag: str, side: dict[str, str], changes: _Changes, out: list[str]) -> None:
    """Apply and encode one side, every quantity spelt with eight decimals as Binance does.

    This loop is most of what the collector does: it reads each quantity with as few steps as can
    be while still refusing what is not a number. Raises _IrregularError, IndexError or
    UnicodeEncodeError when the side is not spelt so, possibly half applied; applying it again is
    harmless, because a level's quantity is absolute.
    """
    quantities = "".join([quantity for _, quantity in changes])
    # Nothing but digits, and one point each.
    if quantities.encode("ascii").translate(None, b"0123456789") != b"." * len(changes):
        raise _IrregularError
    append = out.append
    prices = _PRICES
    char = _CHAR
    short = _SHORT
    for raw_price, raw_quantity in changes:
        price = prices[raw_price]
        if raw_quantity == "0.00000000":
            side.pop(price, None)
            append(f"{tag}{char[len(price) + 2]}{price}\x010")
            continue
        quantity = raw_quantity.rstrip("0")
        if quantity[-1] == ".":
            quantity = quantity[:-1]
        # The point in its place, and neither ".5" nor "007.5".
        if raw_quantity[-9] != "." or (quantity[0] <= "0" and quantity[1] != "."):
            raise _IrregularError
        side[price] = quantity
        size = len(quantity)
        append(f"{tag}{char[len(price) + size + 1]}{price}{short[size]}{quantity}")


def _apply_plain(tag: str, side: dict[str, str], changes: _Changes, out: list[str]) -> None:
    """Apply and encode one side, every quantity spelt without exponent, sign or leading zeros.

    As `_apply_usual`, for whatever number of decimals: 1.66317, 40.0, 12; at most 30 characters.
    Raises the same.
    """
    quantities = "".join([quantity for _, quantity in changes])
    points = quantities.count(".")
    # Nothing but digits and points; below, each number that has a point takes one of these.
    if quantities.encode("ascii").translate(None, b"0123456789") != b"." * points:
        raise _IrregularError
    append = out.append
    prices = _PRICES
    char = _CHAR
    short = _PLAIN
    for raw_price, quantity in changes:
        price = prices[raw_price]
        if "." in quantity:
            points -= 1
            if len(quantity) > 30:
                raise _IrregularError
            quantity = quantity.rstrip("0")
            if quantity[-1] == ".":
                quantity = quantity[:-1]
        if quantity == "0":
            side.pop(price, None)
            append(f"{tag}{char[len(price) + 2]}{price}\x010")
            continue
        # Neither ".5" nor "007.5".
        if quantity[0] <= "0" and quantity[1] != ".":
            raise _IrregularError
        side[price] = quantity
        size = len(quantity)
        append(f"{tag}{char[len(price) + size + 1]}{price}{short[size]}{quantity}")
    if points:
        raise _IrregularError


def _apply_any(tag: str, side: dict[str, str], changes: _Changes, out: list[str]) -> None:
    """Apply and encode one side, however its numbers are spelt."""
    append = out.append
    prices = _PRICES
    quantities = _QUANTITIES
    char = _CHAR
    for raw_price, raw_quantity in changes:
        price = prices[raw_price]
        field = quantities[raw_quantity]
        if field == _NOTHING:
            side.pop(price, None)
        else:
            side[price] = field[1:]
        append(f"{tag}{char[len(price) + len(field)]}{price}{field}")


def _tried(
    way: Callable[[str, dict[str, str], _Changes, list[str]], None],
    tag: str,
    side: dict[str, str],
    changes: _Changes,
    out: list[str],
) -> bool:
    """Apply and encode one side in a quick way; False when its numbers are spelt in another."""
    begin = len(out)
    try:
        way(tag, side, changes, out)
    except (_IrregularError, IndexError, UnicodeEncodeError):
        del out[begin:]
        return False
    return True


class OrderBook:
    """Bids and asks of one instrument.

    `bid_horizon` and `ask_horizon` are the prices beyond which the venue's snapshot told nothing:
    there the book is unknown, not empty. Empty text means that the whole side is known.
    """

    __slots__ = ("_asks", "_bids", "_usual", "ask_horizon", "bid_horizon")

    def __init__(self) -> None:
        self._usual = True
        self._bids: dict[str, str] = {}
        self._asks: dict[str, str] = {}
        self.bid_horizon = ""
        self.ask_horizon = ""

    @property
    def bid_count(self) -> int:
        """Number of bid levels."""
        return len(self._bids)

    @property
    def ask_count(self) -> int:
        """Number of ask levels."""
        return len(self._asks)

    def replace(
        self,
        bids: Iterable[tuple[str, str]],
        asks: Iterable[tuple[str, str]],
        *,
        limit: int = 0,
    ) -> None:
        """Take the venue's snapshot, best levels first, in place of everything.

        `limit` is the number of levels a side that was asked for: a side that came full ends at a
        horizon. Raises InvalidDecimalError, and leaves the book as it was, on a malformed level.
        """
        self._usual = True
        new_bids = {_PRICES[price]: _quantity(quantity) for price, quantity in bids}
        new_asks = {_PRICES[price]: _quantity(quantity) for price, quantity in asks}
        self.bid_horizon = self.ask_horizon = ""
        if limit and len(new_bids) >= limit:
            self.bid_horizon = min(new_bids, key=_order_key(new_bids))[2:-1]
        if limit and len(new_asks) >= limit:
            self.ask_horizon = max(new_asks, key=_order_key(new_asks))[2:-1]
        self._bids = {price: quantity for price, quantity in new_bids.items() if quantity != "0"}
        self._asks = {price: quantity for price, quantity in new_asks.items() if quantity != "0"}

    def apply(self, bids: Sequence[tuple[str, str]], asks: Sequence[tuple[str, str]]) -> bytes:
        """Apply changed levels (quantity 0 deletes) and return them encoded.

        The result is fields 10 and 11 of an OrderBookUpdate. Raises InvalidDecimalError on a
        malformed level; the book is then half changed and has to be rebuilt.
        """
        out: list[str] = []
        for tag, side, changes in ((_BIDS_TAG, self._bids, bids), (_ASKS_TAG, self._asks, asks)):
            if self._usual:
                # A venue spells its numbers in one way: when these do not fit, the next will not.
                self._usual = _tried(_apply_usual, tag, side, changes, out)
                if self._usual:
                    continue
            if not _tried(_apply_plain, tag, side, changes, out):
                _apply_any(tag, side, changes, out)
        return "".join(out).encode("ascii")

    def encode_levels(self) -> bytes:
        """Encode the whole book, best first, as fields 10 and 11 of an OrderBookSnapshot."""
        out: list[str] = []
        for tag, side, descending in (
            (_BIDS_TAG, self._bids, True),
            (_ASKS_TAG, self._asks, False),
        ):
            out.extend(
                _encode(tag, price, side[price]) for price in _sorted(side, descending=descending)
            )
        return "".join(out).encode("ascii")

    def bids(self, depth: int | None = None) -> list[Level]:
        """Bid levels, best (highest) first."""
        return self._levels(self._bids, depth, descending=True)

    def asks(self, depth: int | None = None) -> list[Level]:
        """Ask levels, best (lowest) first."""
        return self._levels(self._asks, depth, descending=False)

    def best_bid(self) -> Level | None:
        """Return the highest bid, None when there is none. Linear in the number of levels."""
        key = _order_key(self._bids)
        return self._best(self._bids, max(self._bids, key=key, default=None))

    def best_ask(self) -> Level | None:
        """Return the lowest ask, None when there is none. Linear in the number of levels."""
        key = _order_key(self._asks)
        return self._best(self._asks, min(self._asks, key=key, default=None))

    def crossed(self) -> bool:
        """Tell whether the best bid is not below the best ask: such a book is wrong."""
        bid, ask = self.best_bid(), self.best_ask()
        return bid is not None and ask is not None and Decimal(bid.price) >= Decimal(ask.price)

    def levels_within_horizon(self) -> tuple[int, int]:
        """Count the bid and ask levels that lie within the published horizon."""
        bids, asks = len(self._bids), len(self._asks)
        if self.bid_horizon:
            edge = _PRICES[self.bid_horizon]
            key = _order_key((*self._bids, edge))
            limit = key(edge)
            bids = sum(1 for price in self._bids if key(price) >= limit)
        if self.ask_horizon:
            edge = _PRICES[self.ask_horizon]
            key = _order_key((*self._asks, edge))
            limit = key(edge)
            asks = sum(1 for price in self._asks if key(price) <= limit)
        return bids, asks

    def slide(self, limit: int) -> None:
        """Move the horizons of a book of which the venue keeps exactly the best `limit` levels up.

        A side that is full ends at its worst level now, whatever it ended at before.
        """
        full = len(self._bids) >= limit, len(self._asks) >= limit
        self.bid_horizon = min(self._bids, key=_order_key(self._bids))[2:-1] if full[0] else ""
        self.ask_horizon = max(self._asks, key=_order_key(self._asks))[2:-1] if full[1] else ""

    def trim(self, limit: int) -> int:
        """Keep the best `limit` levels a side, moving the horizon; return how many went."""
        dropped = 0
        if len(self._bids) > limit:
            order = _sorted(self._bids, descending=True)
            for price in order[limit:]:
                del self._bids[price]
            dropped += len(order) - limit
            self.bid_horizon = order[limit - 1][2:-1]
        if len(self._asks) > limit:
            order = _sorted(self._asks, descending=False)
            for price in order[limit:]:
                del self._asks[price]
            dropped += len(order) - limit
            self.ask_horizon = order[limit - 1][2:-1]
        return dropped

    @staticmethod
    def _levels(side: dict[str, str], depth: int | None, *, descending: bool) -> list[Level]:
        prices = _sorted(side, descending=descending)
        return [Level(price[2:-1], side[price]) for price in prices[:depth]]

    @staticmethod
    def _best(side: dict[str, str], price: str | None) -> Level | None:
        return None if price is None else Level(price[2:-1], side[price])


def book_digest(bids: Iterable[tuple[str, str]], asks: Iterable[tuple[str, str]]) -> str:
    """Fingerprint of a book: SHA-256 (hex) of its best 50 levels a side, best first.

    The text hashed is one line a level, bids before asks: `bid PRICE QUANTITY` and
    `ask PRICE QUANTITY`, each ended by a newline, numbers as canonical decimals.
    """
    lines = []
    for side, levels in (("bid", bids), ("ask", asks)):
        for count, (price, quantity) in enumerate(levels):
            if count == 50:
                break
            lines.append(f"{side} {price} {quantity}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()
