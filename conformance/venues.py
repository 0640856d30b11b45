"""What the suite knows of each venue: its streams by kind, its REST paths, its ways of resetting.

Streams are patterns of the simulated venue's names (`/sim/faults`, option `stream`), wide enough
that it does not matter which of several streams of a kind a collector subscribes to.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["VENUES", "VenueFacts"]


@dataclass(frozen=True, slots=True)
class VenueFacts:
    """One venue as the cases need it."""

    name: str
    """Exchange id."""
    title: str
    """Name for people."""
    chosen: tuple[int, ...]
    """Which of the simulated venue's usual symbols are listed; one of each sort."""
    book: str
    """Pattern of the streams of a book's changes."""
    trade: str
    """Pattern of the streams of trades."""
    ticker: str
    """Pattern of the streams of tickers."""
    top: str
    """Pattern of the streams of best bids and offers."""
    mark: str
    """Pattern of the streams of mark prices; empty where the venue has none of its own."""
    book_path: str
    """REST path of a book."""
    trade_paths: tuple[str, ...]
    """REST paths of past trades."""
    from_stream: bool
    """Whether the snapshot of a book comes in its stream, at each new subscription."""
    ws_path: str = ""
    """What the WebSocket address has behind host and port."""
    resets_chain: bool = False
    """Whether the first change after a reset of the ids names the last id before it."""
    notice: bool = True
    """Whether the venue tells in time that it is going to end a connection."""
    weights: Mapping[str, int] = field(default_factory=dict)
    """Request weight by path, for the suite's own count; 1 where nothing is told."""

    def stream(self, kind: str) -> str:
        """Give the pattern of a kind: `book`, `trade`, `ticker`, `top` or `mark`."""
        pattern: str = getattr(self, kind)
        return pattern

    @property
    def repair_paths(self) -> tuple[str, ...]:
        """REST paths of the requests that mend something: books and past trades."""
        return (self.book_path, *self.trade_paths)


def _binance(name: str, title: str, prefix: str, **more: object) -> VenueFacts:
    values: dict[str, object] = {
        "ws_path": "/stream",
        "chosen": (0, 1, 2),
        "mark": "*@markPrice*",
        "weights": {f"{prefix}/depth": 10, f"{prefix}/trades": 5},
        **more,
    }
    return VenueFacts(
        name=name,
        title=title,
        book="*@depth*",
        trade="*rade",
        ticker="*@ticker",
        top="*@bookTicker",
        book_path=f"{prefix}/depth",
        trade_paths=(f"{prefix}/trades", f"{prefix}/historicalTrades", f"{prefix}/aggTrades"),
        from_stream=False,
        **values,  # type: ignore[arg-type]
    )


VENUES: Mapping[str, VenueFacts] = {
    each.name: each
    for each in (
        _binance(
            "binance", "Binance", "/api/v3", mark="",
            weights={"/api/v3/depth": 25, "/api/v3/trades": 25},
        ),
        _binance(
            "binance_usdm", "Binance USD-M", "/fapi/v1",
            ws_path="", chosen=(0, 1, 3),
        ),
        _binance("binance_coinm", "Binance COIN-M", "/dapi/v1"),
        VenueFacts(
            name="okx",
            title="OKX",
            chosen=(0, 2, 4, 6),
            book="books:*",
            trade="trades*",
            ticker="tickers:*",
            top="bbo-tbt:*",
            mark="mark-price:*",
            book_path="/api/v5/market/books",
            trade_paths=("/api/v5/market/trades", "/api/v5/market/history-trades"),
            from_stream=True,
            resets_chain=True,
        ),
        VenueFacts(
            name="deribit",
            title="Deribit",
            chosen=(0, 2, 4, 5),
            book="book.*",
            trade="trades.*",
            ticker="ticker.*",
            top="quote.*",
            mark="",
            book_path="/api/v2/public/get_order_book",
            trade_paths=(
                "/api/v2/public/get_last_trades_by_instrument",
                "/api/v2/public/get_last_trades_by_instrument_and_time",
            ),
            from_stream=True,
            ws_path="/ws/api/v2",
            notice=False,
        ),
    )
}  # fmt: skip
"""The venues by exchange id."""
