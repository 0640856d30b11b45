"""The local order book of one instrument: pure, exact, and already half encoded.

Prices are kept as the encoded protobuf field of their `PriceLevel` (one character a byte), so that
applying an update and encoding it is one pass over its levels, and a snapshot is a sort and a join.
They compare by value, through Decimal, only where an order is asked for.
"""

import hashlib
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import NamedTuple

from services.shared.decimals import InvalidDecimalError, canonical_decimal

__all__ = ["Level", "OrderBook", "book_digest"]

_CHAR = tuple(chr(value) for value in range(256))
_CACHE_LIMIT = 50_000
_ZEROS = frozenset(("0", "0.0", "0.00", "0.000", "0.00000000"))  # how venues delete a level
_BIDS_TAG = "R"  # field 10, length-delimited, of OrderBookSnapshot and OrderBookUpdate
_ASKS_TAG = "Z"  # field 11


class Level(NamedTuple):
    """A price and the quantity resting there, both canonical decimal strings."""

    price: str
    quantity: str


class _PriceFields(dict[str, str]):
    """From a venue's spelling of a price to its encoded field; forgets all when it is full.

    Prices come again and again, so that a look-up beats reading them; quantities do not.
    """

    def __missing__(self, text: str) -> str:
        price = canonical_decimal(text)
        if len(self) >= _CACHE_LIMIT:
            self.clear()
        field = self[text] = f"\n{_CHAR[len(price)]}{price}"  # field 1 of PriceLevel
        return field


_PRICES = _PriceFields()


def _quantity(text: str) -> str:
    quantity = canonical_decimal(text)
    if quantity[0] == "-":
        raise InvalidDecimalError(f"expected a quantity of 0 or more, got {text!r}")
    return quantity


def _encode(tag: str, price: str, quantity: str) -> str:
    """Encode a level: `price` is its encoded field, `quantity` is canonical."""
    return (
        f"{tag}{_CHAR[len(price) + len(quantity) + 2]}{price}\x12{_CHAR[len(quantity)]}{quantity}"
    )


def _price(field: str) -> Decimal:
    return Decimal(field[2:])


class OrderBook:
    """Bids and asks of one instrument.

    `bid_horizon` and `ask_horizon` are the prices beyond which the venue's snapshot told nothing:
    there the book is unknown, not empty. Empty text means that the whole side is known.
    """

    __slots__ = ("_asks", "_bids", "ask_horizon", "bid_horizon")

    def __init__(self) -> None:
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
        new_bids = {_PRICES[price]: _quantity(quantity) for price, quantity in bids}
        new_asks = {_PRICES[price]: _quantity(quantity) for price, quantity in asks}
        self.bid_horizon = min(new_bids, key=_price)[2:] if limit and len(new_bids) >= limit else ""
        self.ask_horizon = max(new_asks, key=_price)[2:] if limit and len(new_asks) >= limit else ""
        self._bids = {price: quantity for price, quantity in new_bids.items() if quantity != "0"}
        self._asks = {price: quantity for price, quantity in new_asks.items() if quantity != "0"}

    def apply(self, bids: Sequence[tuple[str, str]], asks: Sequence[tuple[str, str]]) -> bytes:
        """Apply changed levels (quantity 0 deletes) and return them encoded.

        The result is fields 10 and 11 of an OrderBookUpdate. Raises InvalidDecimalError on a
        malformed level; the book is then half changed and has to be rebuilt.
        """
        out: list[str] = []
        append = out.append
        prices = _PRICES
        char = _CHAR
        zeros = _ZEROS
        try:
            for tag, side, changes in (
                (_BIDS_TAG, self._bids, bids),
                (_ASKS_TAG, self._asks, asks),
            ):
                for raw_price, raw_quantity in changes:
                    price = prices[raw_price]
                    if raw_quantity in zeros:
                        side.pop(price, None)
                        append(f"{tag}{char[len(price) + 3]}{price}\x12\x010")
                        continue
                    # canonical_decimal for what venues nearly always send, without the call
                    head, _, tail = raw_quantity.partition(".")
                    if (
                        tail.isdigit()
                        and head.isdigit()
                        and len(raw_quantity) < 31
                        and (head == "0" or head[0] != "0")
                    ):
                        tail = tail.rstrip("0")
                        quantity = f"{head}.{tail}" if tail else head
                    else:
                        quantity = _quantity(raw_quantity)
                    if quantity == "0":
                        side.pop(price, None)
                    else:
                        side[price] = quantity
                    size = len(quantity)
                    append(f"{tag}{char[len(price) + size + 2]}{price}\x12{char[size]}{quantity}")
            # Digits of other scripts and lengths above 127 show as characters beyond ASCII.
            return "".join(out).encode("ascii")
        except (IndexError, UnicodeEncodeError):
            raise InvalidDecimalError("a price or quantity is too long or not in digits") from None

    def encode_levels(self) -> bytes:
        """Encode the whole book, best first, as fields 10 and 11 of an OrderBookSnapshot."""
        out: list[str] = []
        for tag, side, descending in (
            (_BIDS_TAG, self._bids, True),
            (_ASKS_TAG, self._asks, False),
        ):
            out.extend(
                _encode(tag, price, side[price])
                for price in sorted(side, key=_price, reverse=descending)
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
        return self._best(self._bids, max(self._bids, key=_price, default=None))

    def best_ask(self) -> Level | None:
        """Return the lowest ask, None when there is none. Linear in the number of levels."""
        return self._best(self._asks, min(self._asks, key=_price, default=None))

    def crossed(self) -> bool:
        """Tell whether the best bid is not below the best ask: such a book is wrong."""
        bid, ask = self.best_bid(), self.best_ask()
        return bid is not None and ask is not None and Decimal(bid.price) >= Decimal(ask.price)

    def levels_within_horizon(self) -> tuple[int, int]:
        """Count the bid and ask levels that lie within the published horizon."""
        bids, asks = len(self._bids), len(self._asks)
        if self.bid_horizon:
            edge = Decimal(self.bid_horizon)
            bids = sum(1 for price in self._bids if _price(price) >= edge)
        if self.ask_horizon:
            edge = Decimal(self.ask_horizon)
            asks = sum(1 for price in self._asks if _price(price) <= edge)
        return bids, asks

    def trim(self, limit: int) -> int:
        """Keep the best `limit` levels a side, moving the horizon; return how many went."""
        dropped = 0
        if len(self._bids) > limit:
            order = sorted(self._bids, key=_price, reverse=True)
            for price in order[limit:]:
                del self._bids[price]
            dropped += len(order) - limit
            self.bid_horizon = order[limit - 1][2:]
        if len(self._asks) > limit:
            order = sorted(self._asks, key=_price)
            for price in order[limit:]:
                del self._asks[price]
            dropped += len(order) - limit
            self.ask_horizon = order[limit - 1][2:]
        return dropped

    @staticmethod
    def _levels(side: dict[str, str], depth: int | None, *, descending: bool) -> list[Level]:
        prices = sorted(side, key=_price, reverse=descending)
        return [Level(price[2:], side[price]) for price in prices[:depth]]

    @staticmethod
    def _best(side: dict[str, str], price: str | None) -> Level | None:
        return None if price is None else Level(price[2:], side[price])


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
