"""Draws a book for a terminal: depth bars, spread, where it stands, how fast it moves."""

import time
from collections import deque
from dataclasses import dataclass
from decimal import Decimal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from services.cli.book_keeper import BookKeeper, Level, state_name
from services.cli.follow import Link

__all__ = ["BookView", "Rate", "Units", "latency_text", "now_clock", "plain_line", "spread_text"]

_BAR = 24
_STATE_STYLES = {"SYNCED": "bold green", "STALE": "bold yellow", "RESYNCING": "bold red"}


@dataclass(frozen=True, slots=True)
class Units:
    """What the numbers of an instrument are in; empty when unknown."""

    price: str = ""
    """Currency of prices."""

    quantity: str = ""
    """What quantities count: the base currency, or the quote currency of inverse contracts."""


class Rate:
    """Events a second over the last few seconds."""

    def __init__(self, window_seconds: float = 3.0) -> None:
        self._window = window_seconds
        self._marks: deque[tuple[float, int]] = deque()

    def at(self, now: float, total: int) -> float:
        """Give the rate, when the count stands at `total` at this monotonic time."""
        self._marks.append((now, total))
        while len(self._marks) > 2 and now - self._marks[1][0] >= self._window:
            self._marks.popleft()
        since, before = self._marks[0]
        return (total - before) / (now - since) if now > since else 0.0


def spread_text(bid: Level | None, ask: Level | None) -> str:
    """Give the spread, absolute and in basis points of the middle."""
    if bid is None or ask is None:
        return "one side is empty"
    spread = ask.price - bid.price
    middle = (ask.price + bid.price) / 2
    points = f" ({float(spread / middle) * 10_000:.3g} bp)" if middle > 0 else ""
    crossed = "  CROSSED" if spread <= 0 else ""
    return f"spread {spread:f}{points}{crossed}"


def plain_line(keeper: BookKeeper, link: Link, rate: float, clock: str, lag: str) -> str:
    """Give the state of a book in one line, for a pipe."""
    state = state_name(keeper.state) if link.connected else "DISCONNECTED"
    place = f"epoch={keeper.epoch} sequence={keeper.sequence}"
    if not keeper.has_book:
        return f"{clock} {state} no book: {keeper.why or link.detail}"
    bid, ask = _best(keeper.bids(1)), _best(keeper.asks(1))
    best = (
        f"bid={_pair(bid)} ask={_pair(ask)} {spread_text(bid, ask)}"
        if bid or ask
        else "both sides are empty"
    )
    why = "" if keeper.in_step and link.connected else f" not in step: {keeper.why or link.detail}"
    return f"{clock} {state} {place} {best} updates/s={rate:.1f} latency={lag}{why}"


class BookView:
    """The live picture of one book."""

    def __init__(self, exchange: str, symbol: str, depth: int, units: Units | None = None) -> None:
        self._name = f"{exchange} {symbol}"
        self._units = units or Units()
        self._depth = depth

    def render(self, keeper: BookKeeper, link: Link, rate: float, lag: str) -> RenderableType:
        """Draw the book as it is now; `lag` is the latency to show."""
        bids, asks = keeper.bids(self._depth), keeper.asks(self._depth)
        largest = max((level.quantity for level in (*bids, *asks)), default=Decimal(0))
        dim = not (keeper.in_step and link.connected)
        table = Table(box=None, pad_edge=False, padding=(0, 1), show_edge=False)
        price = f"price {self._units.price}".rstrip()
        quantity = f"quantity {self._units.quantity}".rstrip()
        for title, justify in ((price, "right"), (quantity, "right"), ("", "left")):
            table.add_column(title, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        for level in reversed(asks):
            _row(table, level, largest, "red", dim)
        table.add_row("", "", Text(spread_text(_best(bids), _best(asks)), style="bold"))
        for level in bids:
            _row(table, level, largest, "green", dim)
        return Group(self._head(keeper, link), table, self._foot(keeper, link, rate, lag))

    def _head(self, keeper: BookKeeper, link: Link) -> Text:
        text = Text(f"{self._name}  ", style="bold")
        if not link.connected:
            text.append("NOT CONNECTED", style="bold red")
            text.append(f"  {link.detail}", style="red")
            return text
        name = state_name(keeper.state) if keeper.has_book else "NO BOOK"
        text.append(name, style=_STATE_STYLES.get(name, "bold red"))
        if not keeper.in_step:
            text.append(f"  not in step: {keeper.why}", style="yellow")
        return text

    def _foot(self, keeper: BookKeeper, link: Link, rate: float, lag: str) -> Text:
        bid_levels, ask_levels = keeper.level_counts
        parts = [
            f"epoch {keeper.epoch}",
            f"sequence {keeper.sequence}",
            f"venue {keeper.venue_sequence}",
            f"{bid_levels}+{ask_levels} levels",
            f"{rate:.1f} updates/s",
            f"latency {lag}",
        ]
        bid_edge, ask_edge = keeper.known()
        if bid_edge or ask_edge:
            parts.append(f"known {bid_edge or '...'} to {ask_edge or '...'}")
        for count, name in (
            (link.reconnects, "reconnects"),
            (keeper.counts["rebuilds"], "rebuilds"),
            (keeper.counts["breaks"], "breaks"),
            (link.dropped_events, "left out"),
        ):
            if count:
                parts.append(f"{count} {name}")
        return Text("  ".join(parts), style="dim")


def latency_text(keeper: BookKeeper, now_ns: int) -> str:
    """Give how old the last change was when it was applied, from the collector's socket read."""
    if not keeper.receive_time_ns:
        return "unknown"
    return f"{(now_ns - keeper.receive_time_ns) / 1e6:.1f} ms"


def now_clock() -> str:
    """Give the wall-clock time for a line."""
    return time.strftime("%H:%M:%S")


def _best(levels: list[Level]) -> Level | None:
    return levels[0] if levels else None


def _pair(level: Level | None) -> str:
    return f"{level.price:f}x{level.quantity:f}" if level else "none"


def _row(table: Table, level: Level, largest: Decimal, colour: str, dim: bool) -> None:
    width = int(level.quantity / largest * _BAR) if largest else 0
    style = f"dim {colour}" if dim else colour
    table.add_row(
        Text(f"{level.price:f}", style=style),
        Text(f"{level.quantity:f}", style="dim" if dim else ""),
        Text("█" * max(1, width), style=style),
    )
