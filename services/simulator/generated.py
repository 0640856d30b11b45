"""A generated market: seeded, deterministic, as many symbols and as fast as asked."""

import asyncio
import heapq
import time
from collections.abc import Callable, Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from services.simulator.listing import DEFAULT_SYMBOLS, listed
from services.simulator.market import (
    BookState,
    Event,
    Market,
    MarketState,
    Sink,
    SymbolSpec,
    Trade,
    UnknownSymbolError,
)
from services.simulator.walk import ChurnTable, SymbolMarket

__all__ = ["GeneratedMarket", "GeneratedSettings"]

_STEP, _TAKE, _SLOW, _CANDLE, _TICKER = range(5)
_LONGEST_LAG_US = 1_000_000
_LONGEST_BATCH_US = 20_000
_SHORTEST_SLEEP = 0.001


class GeneratedSettings(BaseModel):
    """How a generated market behaves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    symbols: tuple[str, ...] = Field(default=DEFAULT_SYMBOLS, min_length=1, max_length=5000)
    """Pairs to list, by the venue's upper-case name; any `BASEQUOTE` name will do."""
    seed: int = 1
    """Same seed, same market: a symbol's events depend on the seed and its name alone."""
    depth_rate: Annotated[float, Field(gt=0, le=2000)] = 10.0
    """Diff frames a second and symbol on the fast depth stream (the venue: 10)."""
    trade_rate: Annotated[float, Field(ge=0, le=10_000)] = 2.0
    """Taker orders a second and symbol; each makes one trade or more."""
    changes_per_side: Annotated[int, Field(ge=0, le=500)] = 6
    """Levels that makers change a side and frame."""
    levels: Annotated[int, Field(ge=20, le=20_000)] = 1200
    """About how many levels a side has; above 1000, so that a REST answer does not hold all."""
    steps_per_frame: Annotated[int, Field(ge=1, le=20)] = 2
    """Moments within a frame at which makers act: best prices may change at each."""
    warmup_seconds: Annotated[float, Field(ge=0, le=60)] = 2.0
    """Market time that has passed before the first client sees it."""
    start_time_us: int | None = None
    """Market time at the start, microseconds since the epoch; None is the wall clock."""
    history: Annotated[int, Field(ge=100)] = 100_000
    """Level changes kept for each symbol, to tell the true book at earlier ids."""
    history_total: Annotated[int, Field(ge=10_000)] = 6_000_000
    """Level changes kept for all symbols together (16 bytes each); shares are equal."""
    trades_kept: Annotated[int, Field(ge=1, le=1_000_000)] = 5000
    """Trades kept for each symbol."""

    @field_validator("symbols")
    @classmethod
    def _known_or_plausible(cls, symbols: tuple[str, ...]) -> tuple[str, ...]:
        for symbol in symbols:
            listed(symbol)
        if len(set(symbols)) != len(symbols):
            raise ValueError("expected every symbol once")
        return symbols


class GeneratedMarket(Market):
    """Books that move, trades that hit them, at rates of choice.

    Market time is virtual: `advance` plays it without any clock, `run` ties it to one. A host too
    slow for the rates asked for makes market time fall behind by at most a second; then it is
    shifted, and `stats()["shifted_seconds"]` tells by how much.
    """

    def __init__(
        self,
        settings: GeneratedSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings or GeneratedSettings()
        self._clock = clock
        start = self.settings.start_time_us
        self._start_us = int(time.time() * 1e6) if start is None else start
        self._now_us = self._start_us - int(self.settings.warmup_seconds * 1e6)
        self._state = MarketState.WAITING
        self._shifted_us = 0
        self._events = 0
        table = ChurnTable.draw(self.settings.seed, self.settings.levels)
        count = len(self.settings.symbols)
        history = max(100, min(self.settings.history, self.settings.history_total // count))
        self._markets = [
            SymbolMarket(
                listed(symbol),
                self.settings.seed,
                table,
                self._now_us,
                history,
                self.settings.trades_kept,
            )
            for symbol in self.settings.symbols
        ]
        self._by_symbol = {market.spec.symbol: market for market in self._markets}
        self._symbols = {market.spec.symbol: market.spec for market in self._markets}
        self._step_us = max(
            1, round(1e6 / self.settings.depth_rate / self.settings.steps_per_frame)
        )
        self._steps = [0] * count
        self._due = self._schedule()
        self.advance(self._start_us)

    def _schedule(self) -> list[tuple[int, int, int]]:
        due: list[tuple[int, int, int]] = []
        for index, market in enumerate(self._markets):
            # Symbols are spread over the interval, each by its own chance.
            due.append((self._now_us + 1 + market.random.randrange(self._step_us), index, _STEP))
            due.append((self._now_us + 1 + market.random.randrange(1_000_000), index, _SLOW))
            due.append((self._now_us + 1 + market.random.randrange(1_000_000), index, _TICKER))
            due.append((_next_candle(self._now_us), index, _CANDLE))
            if self.settings.trade_rate:
                due.append((self._now_us + self._pause(market), index, _TAKE))
        heapq.heapify(due)
        return due

    def _pause(self, market: SymbolMarket) -> int:
        return 1 + int(market.random.expovariate(self.settings.trade_rate) * 1e6)

    def advance(self, until_us: int) -> list[Event]:
        """Play market time up to `until_us` (microseconds since the epoch) and return the events.

        Deterministic: how the time is cut into calls makes no difference to the events.
        """
        out: list[Event] = []
        due = self._due
        steps_per_frame = self.settings.steps_per_frame
        changes = self.settings.changes_per_side
        while due[0][0] <= until_us:
            time_us, index, kind = due[0]
            market = self._markets[index]
            if kind == _STEP:
                step = self._steps[index]
                share = changes * (step + 1) // steps_per_frame - changes * step // steps_per_frame
                market.step(time_us, share, out)
                step += 1
                if step == steps_per_frame:
                    market.flush(time_us, out)
                    step = 0
                self._steps[index] = step
                again = time_us + self._step_us
            elif kind == _TAKE:
                market.take(time_us, out)
                again = time_us + self._pause(market)
            elif kind == _SLOW:
                market.flush_slow(time_us, out)
                again = time_us + 1_000_000
            elif kind == _TICKER:
                out.append(market.ticker(time_us))
                again = time_us + 1_000_000
            else:
                market.roll(time_us, out)
                again = _next_candle(time_us)
            heapq.heapreplace(due, (again, index, kind))
        self._now_us = max(self._now_us, until_us)
        self._events += len(out)
        return out

    async def run(self, sink: Sink) -> None:
        """Publish in step with the clock until cancelled."""
        self._state = MarketState.RUNNING
        origin_us = self._now_us - int(self._clock() * 1e6)
        while True:
            wall_us = origin_us + int(self._clock() * 1e6)
            lag = wall_us - self._now_us
            if lag > _LONGEST_LAG_US:
                origin_us -= lag
                self._shifted_us += lag
                wall_us = self._now_us
            until = min(wall_us, self._now_us + _LONGEST_BATCH_US)
            events = self.advance(until)
            if events:
                sink.publish(events)
            if until < wall_us:
                await asyncio.sleep(0)
                continue
            pause = (self._due[0][0] - origin_us) / 1e6 - self._clock()
            await asyncio.sleep(max(_SHORTEST_SLEEP, pause))

    @property
    def symbols(self) -> Mapping[str, SymbolSpec]:
        """The listed symbols by name."""
        return self._symbols

    @property
    def state(self) -> MarketState:
        """WAITING until the venue runs it, then RUNNING."""
        return self._state

    @property
    def now_us(self) -> int:
        """Market time, microseconds since the epoch."""
        return self._now_us

    def _market(self, symbol: str) -> SymbolMarket:
        try:
            return self._by_symbol[symbol]
        except KeyError:
            raise UnknownSymbolError(symbol, self._symbols) from None

    def update_id(self, symbol: str) -> int:
        """Return the id of the newest book event."""
        return self._market(symbol).book.update_id

    def pending_id(self, symbol: str) -> int:
        """Return the first update id of the next frame of the slower diff stream."""
        return self._market(symbol).pending_id

    def book(self, symbol: str, depth: int | None = None) -> BookState:
        """Return the book now."""
        return self._market(symbol).book.state(depth)

    def book_at(self, symbol: str, update_id: int, depth: int | None = None) -> BookState:
        """Return the exact book after any update id within the history."""
        return self._market(symbol).book.at(update_id, depth)

    async def true_book(
        self, symbol: str, update_id: int, depth: int | None = None, timeout_seconds: float = 10.0
    ) -> BookState:
        """As `book_at`, waiting for an id that is still ahead."""
        book = self._market(symbol).book
        await book.wait_for(update_id, timeout_seconds)
        return book.at(update_id, depth)

    def stale_book(self, symbol: str, before: int | None, depth: int | None = None) -> BookState:
        """Return the newest book below `before`, or the oldest that is kept."""
        book = self._market(symbol).book
        return book.at(book.oldest_id if before is None else book.known_before(before), depth)

    def recent_trades(self, symbol: str, limit: int) -> list[Trade]:
        """Return the last `limit` trades, oldest first."""
        trades = self._market(symbol).trades
        return [trades[i] for i in range(max(0, len(trades) - limit), len(trades))]

    def exchange_info(self) -> bytes | None:
        """None: the protocol writes the listing from `symbols`."""
        return None

    def stats(self) -> dict[str, object]:
        """Counters, JSON-ready."""
        return {
            "source": "generated",
            "state": self._state.value,
            "seed": self.settings.seed,
            "time_us": self._now_us,
            "shifted_seconds": self._shifted_us / 1e6,
            "events": self._events,
            "symbols": {
                market.spec.symbol: {
                    "update_id": market.book.update_id,
                    "oldest_id": market.book.oldest_id,
                    "bids": len(market.book.bids),
                    "asks": len(market.book.asks),
                    "trades": market.next_trade_id - market.first_trade_id,
                    "last_trade_id": market.next_trade_id - 1,
                }
                for market in self._markets
            },
        }


def _next_candle(time_us: int) -> int:
    # Every two seconds, and so at every full minute too, as the venue does.
    return (time_us // 2_000_000 + 1) * 2_000_000
