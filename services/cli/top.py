"""`marketprism top`: many instruments at a glance: tops, spreads, rates, states, latency."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from marketprism.client import AsyncClient, ClientError, OrderBook
from marketprism.market.v1 import order_book_pb2
from marketprism.market.v1.market_event_pb2 import MarketEvent
from rich.live import Live
from rich.table import Table

from services.cli.console import wide_console
from services.shared.errors import InvalidArgument

__all__ = ["Board", "top"]

_REFRESH_SECONDS = 0.5
_CONFLATION_SECONDS = 0.25
_DECAY = 0.7
_STATES = {
    order_book_pb2.ORDER_BOOK_STATE_SYNCED: ("SYNCED", "green"),
    order_book_pb2.ORDER_BOOK_STATE_STALE: ("STALE", "yellow"),
    order_book_pb2.ORDER_BOOK_STATE_RESYNCING: ("RESYNCING", "red"),
    order_book_pb2.ORDER_BOOK_STATE_SYNCING: ("SYNCING", "red"),
}


@dataclass(slots=True)
class _Row:
    book: OrderBook
    last: str = ""
    trades: int = 0
    changes: int = 0
    trade_rate: float = 0.0
    change_rate: float = 0.0
    latency_ms: float = 0.0


class Board:
    """What is known of each instrument. `turn` is called between two refreshes."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], _Row] = {}
        self._turned = time.monotonic()
        self.events = 0

    def take(self, event: MarketEvent, now: int) -> None:
        """Take an event; `now` is nanoseconds since 1970."""
        kind = event.WhichOneof("event")
        if kind == "trade":
            row = self._row(event.trade.exchange, event.trade.symbol)
            row.last = event.trade.price
            row.trades += 1
        elif kind in ("order_book_snapshot", "order_book_status"):
            told = getattr(event, kind)
            row = self._row(told.exchange, told.symbol)
            row.book.connected = True
            row.book.apply(event)
            if kind == "order_book_snapshot":
                row.changes += 1
                row.latency_ms = max(now - row.book.received, 0) / 1e6
        else:
            return
        self.events += 1

    def turn(self) -> None:
        """Bring the rates up to date."""
        now = time.monotonic()
        seconds, self._turned = now - self._turned, now
        if seconds <= 0:
            return
        for row in self._rows.values():
            row.trade_rate = _DECAY * row.trade_rate + (1 - _DECAY) * row.trades / seconds
            row.change_rate = _DECAY * row.change_rate + (1 - _DECAY) * row.changes / seconds
            row.trades = row.changes = 0

    def table(self, limit: int) -> Table:
        """Show the busiest `limit` instruments."""
        table = Table(title=f"{len(self._rows)} instruments", title_justify="left", box=None)
        table.add_column("instrument")
        table.add_column("state")
        for heading in (
            "bid", "ask", "spread bp", "last", "trades/s", "changes/s", "latency ms",
        ):  # fmt: skip
            table.add_column(heading, justify="right")
        busiest = sorted(
            self._rows.items(),
            key=lambda item: (-item[1].trade_rate - item[1].change_rate, item[0]),
        )
        for (exchange, symbol), row in busiest[:limit]:
            state, colour = _STATES.get(row.book.state, ("UNKNOWN", "red"))
            bid, ask = row.book.best_bid(), row.book.best_ask()
            table.add_row(
                f"{exchange}/{symbol}",
                f"[{colour}]{state}[/]",
                format(bid.price, "f") if bid else "-",
                format(ask.price, "f") if ask else "-",
                _basis_points(row.book),
                row.last or "-",
                f"{row.trade_rate:.1f}",
                f"{row.change_rate:.1f}",
                f"{row.latency_ms:.1f}",
            )
        return table

    def _row(self, exchange: str, symbol: str) -> _Row:
        key = (exchange, symbol)
        if key not in self._rows:
            self._rows[key] = _Row(OrderBook(exchange, symbol))
        return self._rows[key]


async def top(address: str, instruments: Sequence[str], *, limit: int, once: bool) -> None:
    """Show the board until cancelled; into a pipe, or `once`, one table and the end.

    Raises InvalidArgument when the server refuses what is asked for.
    """
    board = Board()
    console = wide_console()
    reading = asyncio.ensure_future(_read(address, instruments, board))
    try:
        if once or not console.is_terminal:
            await asyncio.wait({reading}, timeout=2.0)
            board.turn()
            if reading.done():
                reading.result()
            console.print(board.table(limit))
            return
        with Live(console=console, auto_refresh=False, screen=False) as live:
            while not reading.done():
                await asyncio.wait({reading}, timeout=_REFRESH_SECONDS)
                board.turn()
                live.update(board.table(limit), refresh=True)
        reading.result()
    finally:
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({reading})


async def _read(address: str, instruments: Sequence[str], board: Board) -> None:
    try:
        async with AsyncClient(address) as client:
            async for event in client.subscribe(
                instruments,
                ["order_book", "trade"],
                depth=1,
                conflation_seconds=_CONFLATION_SECONDS,
            ):
                board.take(event, time.time_ns())
    except (ClientError, ValueError) as error:
        raise InvalidArgument(str(error)) from error


def _basis_points(book: OrderBook) -> str:
    mid, spread = book.mid, book.spread
    if not mid or spread is None:
        return "-"
    return f"{spread / mid * Decimal(10_000):.2f}"
