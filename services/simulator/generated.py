"""A generated market: seeded, deterministic, as many symbols and as fast as asked."""

import asyncio
import heapq
import time
from collections.abc import Callable, Collection, Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from services.simulator.derivatives import Derivatives
from services.simulator.fixed import canonical
from services.simulator.instrument import InstrumentKind, Listed, SymbolSpec
from services.simulator.listing import DEFAULT_SYMBOLS, listed
from services.simulator.market import (
    BookState,
    Candle,
    Event,
    Market,
    MarketState,
    NotOfferedError,
    Sink,
    Ticker,
    Trade,
    UnknownSymbolError,
)
from services.simulator.reference import (
    FundingRate,
    IndexPrice,
    InstrumentChange,
    InstrumentEvent,
    Liquidation,
    LongShortKind,
    LongShortRatio,
    MarkPrice,
    OpenInterest,
    OptionGreeks,
    VolatilityIndex,
)
from services.simulator.walk import ChurnTable, SymbolMarket

__all__ = ["GeneratedMarket", "GeneratedSettings"]

_STEP, _TAKE, _SLOW, _CANDLE, _TICKER = range(5)
_LONGEST_LAG_US = 1_000_000
_LONGEST_BATCH_US = 20_000
_SHORTEST_SLEEP = 0.001
_FEWEST_TICKS = 50
_EXPIRED_KEPT = 20


class GeneratedSettings(BaseModel):
    """How a generated market behaves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    symbols: tuple[str, ...] = Field(default=DEFAULT_SYMBOLS, min_length=1, max_length=5000)
    """Instruments to list, by the venue's own names."""
    seed: int = 1
    """Same seed, same market: a symbol's events depend on the seed and its name alone."""
    depth_rate: Annotated[float, Field(gt=0, le=2000)] = 10.0
    """Diff frames a second and symbol on the fast depth stream (the venue: 10)."""
    trade_rate: Annotated[float, Field(ge=0, le=10_000)] = 2.0
    """Taker orders a second and symbol; each makes one trade or more."""
    slow_interval_ms: Annotated[int, Field(ge=100, le=10_000)] = 1000
    """Between two frames of the slower diff stream (Binance spot: 1000, its futures: 250)."""
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
    def _each_once(cls, symbols: tuple[str, ...]) -> tuple[str, ...]:
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
        listing: Callable[[str], Listed] = listed,
    ) -> None:
        """Make the market; `listing` (`VenueProtocol.listed`) says what a name stands for.

        Raises:
            ValueError: if the venue would have no instrument of one of the names.

        """
        self.settings = settings or GeneratedSettings()
        self.reference = False
        """Whether `advance` also returns marks, funding, greeks and their like."""
        self._clock = clock
        self._listing = listing
        start = self.settings.start_time_us
        self._start_us = int(time.time() * 1e6) if start is None else start
        self._now_us = self._start_us - int(self.settings.warmup_seconds * 1e6)
        self._state = MarketState.WAITING
        self._shifted_us = 0
        self._events = 0
        self._table = ChurnTable.draw(self.settings.seed, self.settings.levels)
        count = len(self.settings.symbols)
        self._history = max(100, min(self.settings.history, self.settings.history_total // count))
        self._markets: list[SymbolMarket | None] = []
        self._by_symbol: dict[str, SymbolMarket] = {}
        self._expired: dict[str, SymbolMarket] = {}
        self._symbols: dict[str, SymbolSpec] = {}
        self._steps: list[int] = []
        self._due: list[tuple[int, int, int]] = []
        self._told: list[Event] = []
        self._step_us = max(
            1, round(1e6 / self.settings.depth_rate / self.settings.steps_per_frame)
        )
        for symbol in self.settings.symbols:
            self._add(listing(symbol))
        self._derivatives = Derivatives(self.settings.seed, self._by_symbol)
        self.advance(self._start_us)

    def _add(self, listing: Listed) -> None:
        market = SymbolMarket(
            listing,
            self.settings.seed,
            self._table,
            self._now_us,
            self._history,
            self.settings.trades_kept,
            self.settings.slow_interval_ms,
        )
        index = len(self._markets)
        self._markets.append(market)
        self._steps.append(0)
        self._by_symbol[market.spec.symbol] = market
        self._symbols[market.spec.symbol] = market.spec
        # Symbols are spread over the interval, each by its own chance.
        chance, soon = market.random.randrange, self._now_us + 1
        slow_us = self.settings.slow_interval_ms * 1000
        heapq.heappush(self._due, (soon + chance(self._step_us), index, _STEP))
        heapq.heappush(self._due, (soon + chance(slow_us), index, _SLOW))
        heapq.heappush(self._due, (soon + chance(1_000_000), index, _TICKER))
        heapq.heappush(self._due, (_next_candle(self._now_us), index, _CANDLE))
        if self.settings.trade_rate:
            heapq.heappush(self._due, (self._now_us + self._pause(market), index, _TAKE))

    def _pause(self, market: SymbolMarket) -> int:
        return 1 + int(market.random.expovariate(self.settings.trade_rate) * 1e6)

    def advance(self, until_us: int) -> list[Event]:
        """Play market time up to `until_us` (microseconds since the epoch) and return the events.

        Deterministic: how the time is cut into calls makes no difference to the events.
        """
        out, self._told = self._told, []
        due = self._due
        slow_us = self.settings.slow_interval_ms * 1000
        steps_per_frame = self.settings.steps_per_frame
        changes = self.settings.changes_per_side
        while due and due[0][0] <= until_us:
            time_us, index, kind = due[0]
            market = self._markets[index]
            if market is None:
                heapq.heappop(due)
                continue
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
                again = time_us + slow_us
            elif kind == _TICKER:
                out.append(market.ticker(time_us))
                if self.reference:
                    out += self._derivatives.events(market, time_us)
                again = time_us + 1_000_000
                expiry = market.spec.expiry_us
                if expiry is not None and time_us >= expiry:
                    self._end(market.spec.symbol, time_us, out)
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
            self.reference = sink.wants_reference()
            events = self.advance(until)
            if events:
                sink.publish(events)
            if until < wall_us:
                await asyncio.sleep(0)
                continue
            next_us = self._due[0][0] if self._due else self._now_us + _LONGEST_BATCH_US
            pause = (next_us - origin_us) / 1e6 - self._clock()
            await asyncio.sleep(max(_SHORTEST_SLEEP, pause))

    @property
    def symbols(self) -> Mapping[str, SymbolSpec]:
        """The listed instruments by name."""
        return self._symbols

    @property
    def state(self) -> MarketState:
        """WAITING until the venue runs it, then RUNNING."""
        return self._state

    @property
    def time_us(self) -> int:
        """Market time, microseconds since the epoch."""
        return self._now_us

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

    def frame_id(self, symbol: str, interval_ms: int = 100) -> int:
        """Return the id at which the newest frame of the diff stream ended."""
        return self._market(symbol).frame_id(interval_ms)

    def book(self, symbol: str, depth: int | None = None) -> BookState:
        """Return the book now."""
        return self._market(symbol).book.state(depth)

    def book_at(self, symbol: str, update_id: int, depth: int | None = None) -> BookState:
        """Return the exact book after any update id within the history."""
        return self._known(symbol).book.at(update_id, depth)

    async def true_book(
        self, symbol: str, update_id: int, depth: int | None = None, timeout_seconds: float = 10.0
    ) -> BookState:
        """As `book_at`, waiting for an id that is still ahead."""
        book = self._known(symbol).book
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

    def ticker(self, symbol: str) -> Ticker:
        """Return the rolling statistics of the last day."""
        return self._market(symbol).ticker(self._now_us)

    def candles(self, symbol: str, count: int) -> list[Candle]:
        """Return the last `count` one-minute candles, the running one last."""
        bars = self._market(symbol).day.bars(count)
        return [bar.candle(symbol, self._now_us, closed=bar is not bars[-1]) for bar in bars]

    def mark_price(self, symbol: str) -> MarkPrice:
        """Return the mark price now."""
        return self._derivatives.mark(self._derivative(symbol), self._now_us)

    def funding_rate(self, symbol: str) -> FundingRate:
        """Return the funding rate of a perpetual now."""
        market = self._derivative(symbol, InstrumentKind.PERPETUAL)
        return self._derivatives.funding(market, self._now_us)

    def open_interest(self, symbol: str) -> OpenInterest:
        """Return the open interest of a derivative now."""
        return self._derivatives.open_interest(self._derivative(symbol), self._now_us)

    def greeks(self, symbol: str) -> OptionGreeks:
        """Return the greeks of an option now."""
        market = self._derivative(symbol, InstrumentKind.OPTION)
        return self._derivatives.greeks(market, self._now_us)

    @property
    def indices(self) -> Collection[str]:
        """Names of the indices that the listed instruments follow."""
        return list(self._derivatives.indices)

    def index_price(self, name: str) -> IndexPrice:
        """Return the price of an index now."""
        self._check_index(name)
        return self._derivatives.index(name, self._now_us)

    def volatility_index(self, name: str) -> VolatilityIndex:
        """Return the volatility index that goes with an index of that name."""
        self._check_index(name)
        return self._derivatives.volatility(name, self._now_us)

    def long_short(
        self, symbol: str, kind: LongShortKind, interval_us: int, count: int
    ) -> list[LongShortRatio]:
        """Return the ratios of the last `count` intervals, oldest first."""
        self._derivative(symbol)
        return self._derivatives.long_short(symbol, kind, self._now_us, interval_us, count)

    def liquidations(self, symbol: str, limit: int) -> list[Liquidation]:
        """Return the last `limit` liquidations, oldest first."""
        known = self._derivative(symbol).liquidations
        return [known[i] for i in range(max(0, len(known) - limit), len(known))]

    def _known(self, symbol: str) -> SymbolMarket:
        return self._expired[symbol] if symbol in self._expired else self._market(symbol)

    def _derivative(self, symbol: str, kind: InstrumentKind | None = None) -> SymbolMarket:
        market = self._market(symbol)
        have = market.spec.kind
        if have is InstrumentKind.SPOT or kind not in (None, have):
            wanted = "a derivative" if kind is None else f"of kind {kind.value}"
            raise NotOfferedError(f"{symbol}: expected {wanted}, it is of kind {have.value}")
        return market

    def _check_index(self, name: str) -> None:
        if name not in self._derivatives.indices:
            raise UnknownSymbolError(name, self.indices)

    def list_instrument(self, listing: Listed) -> None:
        """Begin trading an instrument."""
        symbol = listing.spec.symbol
        if symbol in self._by_symbol:
            raise NotOfferedError(f"{symbol} is listed already")
        self._expired.pop(symbol, None)
        self._add(listing)
        self._derivatives.relisted()
        self._told.append(
            InstrumentChange(symbol, self._now_us, InstrumentEvent.LISTED, listing.spec)
        )

    def expire(self, symbol: str) -> None:
        """End trading an instrument; its book stays known to `book_at`."""
        self._market(symbol)
        self._end(symbol, self._now_us, self._told)

    def _end(self, symbol: str, time_us: int, out: list[Event]) -> None:
        market = self._by_symbol.pop(symbol)
        market.flush(time_us, out)
        market.flush_slow(time_us, out)
        self._expired[symbol] = market
        while len(self._expired) > _EXPIRED_KEPT:
            del self._expired[next(iter(self._expired))]
        self._markets[self._markets.index(market)] = None
        del self._symbols[symbol]
        self._derivatives.relisted()
        out.append(InstrumentChange(symbol, time_us, InstrumentEvent.EXPIRED, market.spec))

    def change_tick(self, symbol: str, tick: int) -> None:
        """Change the price step; levels off the new grid are removed."""
        market = self._market(symbol)
        if not 0 < tick * _FEWEST_TICKS <= market.best_bid:
            raise NotOfferedError(
                f"{symbol}: expected a tick above 0 and at most a {_FEWEST_TICKS}th of the price, "
                f"got {canonical(tick)}"
            )
        market.change_tick(tick, self._told)
        self._symbols[symbol] = market.spec
        self._told.append(InstrumentChange(symbol, self._now_us, InstrumentEvent.TICK, market.spec))

    def reset_sequence(self, symbol: str, *, chained: bool) -> None:
        """Begin the book's ids again, lower."""
        self._market(symbol).renumber(self._now_us, self._told, chained=chained)

    def skip_ids(self, symbol: str, count: int) -> None:
        """Leave out ids without any change of the book."""
        self._market(symbol).skip(self._now_us, count, self._told)

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
                for market in self._by_symbol.values()
            },
        }


def _next_candle(time_us: int) -> int:
    # Every two seconds, and so at every full minute too, as the venue does.
    return (time_us // 2_000_000 + 1) * 2_000_000
