"""What a market source is to the simulated venue: symbols, events, and questions about the truth.

Everything here is free of sockets and of any one venue's wire format. Prices and quantities are
integers in units of 1e-8 (see `fixed`), times are integers in microseconds since the Unix epoch.
"""

import enum
import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from services.simulator.fixed import canonical
from services.simulator.instrument import Listed, SymbolSpec
from services.simulator.reference import (
    FundingRate,
    IndexPrice,
    InstrumentChange,
    Liquidation,
    LongShortKind,
    LongShortRatio,
    MarkPrice,
    OpenInterest,
    OptionGreeks,
    VolatilityIndex,
)

__all__ = [
    "AggregateTrade",
    "BestPrices",
    "BookState",
    "Candle",
    "DepthUpdate",
    "Event",
    "Levels",
    "Market",
    "MarketState",
    "NotOfferedError",
    "RawFrame",
    "Sink",
    "SymbolSpec",
    "Ticker",
    "Trade",
    "UnknownSymbolError",
    "UpdateIdUnavailableError",
]

Levels = Sequence[tuple[int, int]]
"""(price, quantity) pairs in units of 1e-8, best first."""


class UnknownSymbolError(LookupError):
    """A symbol that this market does not list."""

    def __init__(self, symbol: str, listed: Collection[str]) -> None:
        self.symbol = symbol
        some = ", ".join(sorted(listed)[:8])
        super().__init__(f"unknown symbol {symbol!r}; this market lists {len(listed)}: {some}")


class UpdateIdUnavailableError(LookupError):
    """A book was asked for at an update id that the market cannot answer for.

    It lies ahead of the market, before the history that is kept, or, in a capture, inside a frame.
    """

    def __init__(self, symbol: str, update_id: int, why: str) -> None:
        self.symbol = symbol
        self.update_id = update_id
        super().__init__(f"{symbol} at update id {update_id}: {why}")


class NotOfferedError(LookupError):
    """Something that this market does not have or cannot do; the text says what and why."""


@dataclass(frozen=True, slots=True)
class BookState:
    """A book at one update id, exact."""

    symbol: str
    update_id: int
    bids: tuple[tuple[int, int], ...]
    """(price, quantity) in units of 1e-8, best first."""
    asks: tuple[tuple[int, int], ...]
    """(price, quantity) in units of 1e-8, best first."""

    def top(self, depth: int | None) -> "BookState":
        """Return the best `depth` levels a side; all of them for None."""
        if depth is None:
            return self
        return BookState(self.symbol, self.update_id, self.bids[:depth], self.asks[:depth])

    def canonical(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """(bids, asks) as pairs of canonical decimal strings, best first."""
        bids = [(canonical(price), canonical(quantity)) for price, quantity in self.bids]
        asks = [(canonical(price), canonical(quantity)) for price, quantity in self.asks]
        return bids, asks

    def digest(self, depth: int = 50) -> str:
        """SHA-256 of the best `depth` levels a side: lines `bid PRICE QUANTITY`, then `ask ...`."""
        bids, asks = self.top(depth).canonical()
        lines = [f"bid {price} {quantity}\n" for price, quantity in bids]
        lines += [f"ask {price} {quantity}\n" for price, quantity in asks]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


class DepthUpdate(NamedTuple):
    """The levels that changed between two update ids, with their quantities at the last one."""

    symbol: str
    interval_ms: int
    """Nominal interval of the stream it belongs to: 100, or that of the slower one."""
    time_us: int
    first_id: int
    last_id: int
    bids: Levels
    """Best first; quantity 0 removes the level."""
    asks: Levels
    previous_id: int = -1
    """`last_id` of the stream's frame before: `first_id` - 1 but for a gap in the ids, and above
    `last_id` after a chained reset of the sequence. -1 where it is not known."""


class BestPrices(NamedTuple):
    """The best bid and offer at an update id."""

    symbol: str
    update_id: int
    bid: int
    bid_quantity: int
    ask: int
    ask_quantity: int


class Trade(NamedTuple):
    """One match between a taker and one maker order."""

    symbol: str
    time_us: int
    trade_id: int
    price: int
    quantity: int
    buyer_is_maker: bool
    liquidation: bool = False
    """Whether the taker was liquidated."""


class AggregateTrade(NamedTuple):
    """The matches of one taker order at one price."""

    symbol: str
    time_us: int
    aggregate_id: int
    first_trade_id: int
    last_trade_id: int
    price: int
    quantity: int
    buyer_is_maker: bool


class Candle(NamedTuple):
    """A one-minute candle as it stands."""

    symbol: str
    time_us: int
    open_us: int
    close_us: int
    first_trade_id: int
    """-1 while nothing traded."""
    last_trade_id: int
    """-1 while nothing traded."""
    open: int
    close: int
    high: int
    low: int
    volume: int
    quote_volume: int
    trades: int
    taker_volume: int
    taker_quote_volume: int
    closed: bool


class Ticker(NamedTuple):
    """Rolling statistics of the (at most) last 24 hours."""

    symbol: str
    time_us: int
    open_us: int
    open: int
    high: int
    low: int
    last: int
    previous_close: int
    last_quantity: int
    bid: int
    bid_quantity: int
    ask: int
    ask_quantity: int
    volume: int
    quote_volume: int
    first_trade_id: int
    last_trade_id: int
    trades: int


class RawFrame(NamedTuple):
    """A captured frame, to be sent as it was received."""

    symbol: str
    stream: str
    payload: bytes
    """The bare event, without the combined stream's wrapper."""
    wrapped: bytes | None
    """The whole frame as captured, when it came on a combined stream."""
    event_id: int
    """Trade id, aggregate trade id or last update id; -1 where the stream has none."""


Event = (
    DepthUpdate
    | BestPrices
    | Trade
    | AggregateTrade
    | Candle
    | Ticker
    | RawFrame
    | MarkPrice
    | IndexPrice
    | FundingRate
    | OpenInterest
    | Liquidation
    | OptionGreeks
    | VolatilityIndex
    | InstrumentChange
)


class MarketState(enum.StrEnum):
    """Where a market source is in its life."""

    WAITING = "waiting"
    """Not begun: a capture waits for its first subscription."""
    RUNNING = "running"
    """Events are being published."""
    FINISHED = "finished"
    """A capture was played to its end."""


class Sink(Protocol):
    """Where a market source publishes: the venue's hub."""

    def publish(self, events: Sequence[Event]) -> None:
        """Send events to whoever subscribed, in this order. Does not block."""

    async def wait_subscribed(self) -> None:
        """Return once any connection holds a live subscription."""

    async def wait_capacity(self) -> None:
        """Return once every connection's unsent bytes are few (backpressure)."""

    def subscribed(self, stream: str) -> bool:
        """Whether any connection holds a live subscription to the stream."""

    def wants_reference(self) -> bool:
        """Whether any connection holds a live subscription that is not to a book or to trades."""


class Market(ABC):
    """A source of market events which can be asked for its true book."""

    @property
    @abstractmethod
    def symbols(self) -> Mapping[str, SymbolSpec]:
        """The listed instruments by the venue's own name."""

    @property
    @abstractmethod
    def state(self) -> MarketState:
        """Where the source is in its life."""

    @property
    def time_us(self) -> int:
        """The market's time, microseconds since the epoch."""
        return time.time_ns() // 1000

    @abstractmethod
    def update_id(self, symbol: str) -> int:
        """Return the id of the newest book event.

        Raises:
            UnknownSymbolError: for an unlisted symbol.

        """

    @abstractmethod
    def pending_id(self, symbol: str) -> int:
        """Return the first update id of the next diff frame: what a new subscriber begins with.

        Raises:
            UnknownSymbolError: for an unlisted symbol.

        """

    @abstractmethod
    def frame_id(self, symbol: str, interval_ms: int = 100) -> int:
        """Return the id at which the newest frame of the diff stream ended.

        A book at that id is continued by the stream's next frame.

        Raises:
            UnknownSymbolError: for an unlisted symbol.

        """

    @abstractmethod
    def book(self, symbol: str, depth: int | None = None) -> BookState:
        """Return the book as the venue's REST answers it now.

        Raises:
            UnknownSymbolError: for an unlisted symbol.

        """

    @abstractmethod
    def book_at(self, symbol: str, update_id: int, depth: int | None = None) -> BookState:
        """Return the exact book after the event `update_id`.

        Raises:
            UnknownSymbolError: for an unlisted symbol.
            UpdateIdUnavailableError: when that id lies ahead, is no longer kept, or is inside a
                captured frame.

        """

    @abstractmethod
    async def true_book(
        self, symbol: str, update_id: int, depth: int | None = None, timeout_seconds: float = 10.0
    ) -> BookState:
        """As `book_at`, but waits for an id that the market has not reached yet.

        Raises:
            UnknownSymbolError: for an unlisted symbol.
            UpdateIdUnavailableError: as `book_at`, and when the id is not reached in time.

        """

    @abstractmethod
    def stale_book(self, symbol: str, before: int | None, depth: int | None = None) -> BookState:
        """Return an old book for a stale REST answer: below `before`, or as old as can be had.

        Raises:
            UnknownSymbolError: for an unlisted symbol.

        """

    @abstractmethod
    def recent_trades(self, symbol: str, limit: int) -> list[Trade]:
        """Return the last `limit` trades, oldest first.

        Raises:
            UnknownSymbolError: for an unlisted symbol.

        """

    @abstractmethod
    def exchange_info(self) -> bytes | None:
        """Return the venue's own listing when the source carries one (a capture), else None."""

    @property
    def raw(self) -> bool:
        """Whether it publishes frames as they were captured, instead of events to be written."""
        return False

    def stream_book(self, symbol: str) -> BookState | None:
        """Return the book that the next frame of the fast diff stream continues.

        None while it is not known, in a capture before its first snapshot.

        Raises:
            UnknownSymbolError: for an unlisted symbol.

        """
        return self.book_at(symbol, self.frame_id(symbol))

    def captured_answer(self, path: str, query: Mapping[str, str]) -> bytes | None:
        """Return what the venue answered to a REST request when it was captured, else None."""
        return None

    def snapshot_requested(self, symbol: str) -> None:  # noqa: B027 - only captures care
        """Note that a client fetched the symbol's book over REST."""

    def ticker(self, symbol: str) -> Ticker:
        """Return the rolling statistics of the last day.

        Raises:
            UnknownSymbolError: for an unlisted symbol.
            NotOfferedError: where the source does not know them.

        """
        raise self._not_offered("the ticker", symbol)

    def candles(self, symbol: str, count: int) -> list[Candle]:
        """Return the last `count` one-minute candles, the running one last; raises as `ticker`."""
        raise self._not_offered("candles", symbol)

    def mark_price(self, symbol: str) -> MarkPrice:
        """Return the mark price now; raises as `ticker`."""
        raise self._not_offered("the mark price", symbol)

    def funding_rate(self, symbol: str) -> FundingRate:
        """Return the funding rate of a perpetual now; raises as `ticker`."""
        raise self._not_offered("the funding rate", symbol)

    def open_interest(self, symbol: str) -> OpenInterest:
        """Return the open interest of a derivative now; raises as `ticker`."""
        raise self._not_offered("the open interest", symbol)

    def greeks(self, symbol: str) -> OptionGreeks:
        """Return the greeks of an option now; raises as `ticker`."""
        raise self._not_offered("greeks", symbol)

    @property
    def indices(self) -> Collection[str]:
        """Names of the indices whose price is known."""
        return ()

    def index_price(self, name: str) -> IndexPrice:
        """Return the price of an index now; raises as `ticker`."""
        raise self._not_offered("the index", name)

    def volatility_index(self, name: str) -> VolatilityIndex:
        """Return the volatility index that goes with an index of that name; raises as `ticker`."""
        raise self._not_offered("the volatility index", name)

    def long_short(
        self, symbol: str, kind: LongShortKind, interval_us: int, count: int
    ) -> list[LongShortRatio]:
        """Return the ratios of the last `count` intervals, oldest first; raises as `ticker`."""
        raise self._not_offered("long/short ratios", symbol)

    def liquidations(self, symbol: str, limit: int) -> list[Liquidation]:
        """Return the last `limit` liquidations, oldest first; raises as `ticker`."""
        raise self._not_offered("liquidations", symbol)

    def list_instrument(self, listing: Listed) -> None:
        """Begin trading an instrument; `InstrumentChange` tells it.

        Raises:
            NotOfferedError: when it is listed already, or the source is a capture.

        """
        raise self._not_offered("listing while running", listing.spec.symbol)

    def expire(self, symbol: str) -> None:
        """End trading an instrument; its book stays known to `book_at`.

        Raises:
            UnknownSymbolError: for an unlisted symbol.
            NotOfferedError: when the source is a capture.

        """
        raise self._not_offered("expiry while running", symbol)

    def change_tick(self, symbol: str, tick: int) -> None:
        """Change the price step; levels off the new grid are removed. Raises as `expire`."""
        raise self._not_offered("a change of the tick size", symbol)

    def reset_sequence(self, symbol: str, *, chained: bool) -> None:
        """Begin the book's ids again, lower; `chained` lets the next frame name the old last id.

        Raises as `expire`.
        """
        raise self._not_offered("a reset of the sequence", symbol)

    def skip_ids(self, symbol: str, count: int) -> None:
        """Leave out ids without any change of the book. Raises as `expire`."""
        raise self._not_offered("a gap in the ids", symbol)

    def _not_offered(self, what: str, symbol: str) -> Exception:
        if symbol in self.symbols or symbol in self.indices:
            return NotOfferedError(f"{what} of {symbol}: this market does not offer it")
        return UnknownSymbolError(symbol, self.symbols)

    @abstractmethod
    def stats(self) -> dict[str, object]:
        """Counters for people and tests, JSON-ready."""

    @abstractmethod
    async def run(self, sink: Sink) -> None:
        """Publish events until cancelled. Called once, by the venue."""
