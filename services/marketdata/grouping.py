"""A book by price steps: bids rounded down, asks rounded up, quantities summed exactly.

A group's price is never better than any price in it: who counts on a bid of the group finds one at
least as high. Sums are kept, not made anew: an update costs what it changes.
"""

from collections.abc import Mapping
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import Final

from services.marketdata.ladder import ASKS, BIDS, Changes, Ladder, OrderedSide
from services.marketdata.levels import MalformedLevelError

__all__ = ["GroupedLadder", "plain_text", "rounded"]

# Numbers have at most 30 digits on either side of the point; nothing of them is ever rounded away.
_EXACT: Final = Context(prec=200, traps=[InvalidOperation, Inexact])
_ZERO: Final = Decimal(0)
_REMEMBERED = 65_536  # prices whose group is known


def rounded(price: Decimal, step: Decimal, *, up: bool) -> Decimal:
    """Give the multiple of `step` that is nearest to `price` and not beyond it."""
    rest = _EXACT.remainder(price, step)
    if not rest:
        return price
    if rest < 0:
        rest = _EXACT.add(rest, step)
    below = _EXACT.subtract(price, rest)
    return _EXACT.add(below, step) if up else below


def plain_text(number: Decimal) -> str:
    """Give the canonical spelling of a number."""
    if not number:
        return "0"
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


class _Groups:
    """The sums of one side."""

    __slots__ = ("_names", "_step", "_sums", "_up")

    def __init__(self, step: Decimal, *, up: bool) -> None:
        self._step = step
        self._up = up
        self._names: dict[str, str] = {}
        self._sums: dict[str, Decimal] = {}

    def load(self, levels: Mapping[str, str]) -> dict[str, str]:
        """Replace all by these levels, and give the groups."""
        self._sums = {}
        self._add({}, levels)
        return {name: plain_text(total) for name, total in self._sums.items()}

    def take(self, held: Mapping[str, str], changes: Mapping[str, str]) -> dict[str, str]:
        """Take changes of the levels that are `held`, and give the groups that they touch."""
        touched = self._add(held, changes)
        sums = self._sums
        result = {}
        for name in touched:
            total = sums[name]
            result[name] = plain_text(total)
            if not total:
                del sums[name]
        return result

    def _add(self, held: Mapping[str, str], changes: Mapping[str, str]) -> dict[str, None]:
        sums, names = self._sums, self._names
        touched: dict[str, None] = {}
        try:
            for price, quantity in changes.items():
                before = held.get(price, "0")
                if before == quantity:
                    continue
                name = names.get(price) or self._name(price)
                total = _EXACT.add(sums.get(name, _ZERO), Decimal(quantity))
                sums[name] = _EXACT.subtract(total, Decimal(before))
                touched[name] = None
        except (InvalidOperation, Inexact):
            shown = f"{price[:40]!r}: {quantity[:40]!r}"
            raise MalformedLevelError(f"expected a decimal level, got {shown}") from None
        return touched

    def _name(self, price: str) -> str:
        names = self._names
        if len(names) >= _REMEMBERED:
            names.clear()
        name = names[price] = plain_text(rounded(Decimal(price), self._step, up=self._up))
        return name


class GroupedLadder:
    """A book grouped by one price step, made from the one that is published.

    Raises `MalformedLevelError` where a level is not made of numbers.
    """

    __slots__ = ("_ask_groups", "_bid_groups", "_raw", "_step", "asks", "bids")

    def __init__(self, raw: Ladder, step: str) -> None:
        self._raw = raw
        self._step = Decimal(step)
        self._bid_groups = _Groups(self._step, up=False)
        self._ask_groups = _Groups(self._step, up=True)
        self.bids = OrderedSide(BIDS, descending=True)
        self.asks = OrderedSide(ASKS, descending=False)

    def load(self) -> None:
        """Make everything anew from the book as it is."""
        self.bids.load(self._bid_groups.load(self._raw.bids.levels))
        self.asks.load(self._ask_groups.load(self._raw.asks.levels))

    def take(self, changes: Changes) -> Changes:
        """Take changes that the book itself has not taken yet, and give those of the groups."""
        bids = _changed(self.bids, self._bid_groups.take(self._raw.bids.levels, changes.bids))
        asks = _changed(self.asks, self._ask_groups.take(self._raw.asks.levels, changes.asks))
        grouped = Changes(bids, asks, changes.first, changes.last)
        grouped.note_old(self.bids.levels, self.asks.levels)
        self.bids.take(bids)
        self.asks.take(asks)
        return grouped

    def horizons(self) -> tuple[str, str]:
        """Give the horizons: groups beyond one may be known in part, or not at all."""
        bid, ask = self._raw.horizons()
        return self._horizon(bid, up=True), self._horizon(ask, up=False)

    def _horizon(self, price: str, *, up: bool) -> str:
        if not price:
            return ""
        try:
            return plain_text(rounded(Decimal(price), self._step, up=up))
        except (InvalidOperation, Inexact):
            raise MalformedLevelError(f"expected a decimal horizon, got {price[:40]!r}") from None


def _changed(side: OrderedSide, groups: dict[str, str]) -> dict[str, str]:
    levels = side.levels
    return {name: total for name, total in groups.items() if levels.get(name, "0") != total}
