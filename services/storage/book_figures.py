"""Figures of a book, exact: the spread, and how much lies near the middle."""

from collections.abc import Sequence

from marketprism.history.v1 import order_book_history_pb2 as pb

from services.storage.book_levels import DIGITS, BookSide, decimal_text, units
from services.storage.book_walk import BookWalk

__all__ = ["depth_point", "spread_point"]

_BPS = 10_000


def spread_point(walk: BookWalk | None, time: int) -> pb.SpreadPoint:
    """Give the spread of a book; of none a point without prices."""
    point = pb.SpreadPoint()
    point.time.FromNanoseconds(time)
    if walk is None:
        return point
    for bid_price, bid_quantity in walk.bids.best(1):
        point.bid_price, point.bid_quantity = bid_price, bid_quantity
    for ask_price, ask_quantity in walk.asks.best(1):
        point.ask_price, point.ask_quantity = ask_price, ask_quantity
    if point.bid_price and point.ask_price:
        bid, ask = units(point.bid_price), units(point.ask_price)
        point.spread = decimal_text(ask - bid)
        point.mid_price = _middle(bid, ask)
        if bid + ask > 0:
            # To 4 digits after the point, a half away from zero.
            ten_thousandths = (ask - bid) * 2 * _BPS * 10_000
            rounded = (2 * abs(ten_thousandths) + bid + ask) // (2 * (bid + ask))
            rounded = rounded if ten_thousandths >= 0 else -rounded
            sign = "-" if rounded < 0 else ""
            whole, part = divmod(abs(rounded), 10_000)
            point.spread_bps = f"{sign}{whole}.{part:04d}"
    return point


def depth_point(
    walk: BookWalk | None, time: int, distances: Sequence[int], *, in_quote: bool
) -> pb.DepthPoint:
    """Give what lies within distances of the middle, in basis points of it.

    `in_quote` says that quantities are of the quote currency, so that they are the value too.
    """
    point = pb.DepthPoint()
    point.time.FromNanoseconds(time)
    if walk is None:
        return point
    bid = next(walk.bids.from_best(), None)
    ask = next(walk.asks.from_best(), None)
    if bid is None or ask is None:
        return point
    twice = bid[0] + ask[0]
    point.mid_price = _middle(bid[0], ask[0])
    low, high = walk.horizons()
    bids = _within(walk.bids, twice, distances, sign=-1)
    asks = _within(walk.asks, twice, distances, sign=1)
    for distance in distances:
        band = point.bands.add(distance_bps=distance)
        for side, (quantity, value) in (("bid", bids[distance]), ("ask", asks[distance])):
            setattr(band, f"{side}_quantity", decimal_text(quantity))
            notional = decimal_text(quantity) if in_quote else decimal_text(value, 2 * DIGITS)
            setattr(band, f"{side}_notional", notional)
        band.beyond_horizon = bool(
            (low and 2 * _BPS * units(low) > twice * (_BPS - distance))
            or (high and 2 * _BPS * units(high) < twice * (_BPS + distance))
        )
    return point


def _middle(bid: int, ask: int) -> str:
    return decimal_text((bid + ask) * 5, DIGITS + 1)


def _within(
    side: BookSide, twice: int, distances: Sequence[int], *, sign: int
) -> dict[int, tuple[int, int]]:
    """Give quantity and value within each distance; `twice` is the middle times two."""
    found: dict[int, tuple[int, int]] = {}
    quantity = value = 0
    levels = side.from_best()
    level = next(levels, None)
    for distance in sorted(set(distances)):
        # Multiplied out, so that the edge is exact.
        edge = twice * (_BPS + sign * distance)
        while level is not None and (2 * _BPS * level[0] - edge) * sign <= 0:
            quantity += level[1]
            value += level[0] * level[1]
            level = next(levels, None)
        found[distance] = quantity, value
    return found
