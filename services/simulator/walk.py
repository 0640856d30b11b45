"""One symbol of a generated market: a book that moves, and takers who trade against it.

Pure and deterministic: the same seed and the same order of calls give the same events.
Every change of a level is one update id, as is every match.
"""

import dataclasses
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from services.simulator.book import TrueBook
from services.simulator.instrument import Listed
from services.simulator.market import (
    AggregateTrade,
    BestPrices,
    DepthUpdate,
    Event,
    Ticker,
    Trade,
)
from services.simulator.reference import Liquidation
from services.simulator.statistics import DayStatistics

__all__ = ["ChurnTable", "SymbolMarket"]

_DENSITY = 0.75
_DELETE_SHARE = 1 / 3  # keeps the density: a hit on an empty price always adds a level
_NEAR_SHARE = 0.7
_NEAR_TICKS = 25
_WANDER_TICKS = 400
_TABLE = 1 << 14
_POOL = 1 << 10
_APART = 24
_LIQUIDATION_EVERY = 41
_LIQUIDATIONS_KEPT = 200
_FEWEST_LEVELS = 20
_LEAST_RESET = 2_000_000


@dataclass(frozen=True, slots=True)
class ChurnTable:
    """Where changes fall, drawn once for all symbols: a step takes a slice at a random place."""

    offsets: Sequence[int]
    """Ticks from the best price of the side."""
    actions: Sequence[int]
    """Index into the symbol's pool of quantities; a negative one deletes a level that is there."""
    span: int
    """Ticks a side reaches from its best price."""

    @classmethod
    def draw(cls, seed: int, levels: int) -> "ChurnTable":
        """Return a table for books of about `levels` levels a side."""
        chosen = random.Random(f"churn {seed}")  # noqa: S311
        span = max(8, round(levels / _DENSITY))
        offsets: list[int] = []
        for _ in range(2 * _TABLE):
            offset = _offset(chosen, span)
            for _ in range(4):
                # A frame tells of a level once: neighbours in the table should differ.
                if offset not in offsets[-_APART:]:
                    break
                offset = _offset(chosen, span)
            offsets.append(offset)
        actions = [
            chosen.randrange(_POOL) - (_POOL if chosen.random() < _DELETE_SHARE else 0)
            for _ in range(2 * _TABLE)
        ]
        return cls(tuple(offsets), tuple(actions), span)


def _offset(chosen: random.Random, span: int) -> int:
    if chosen.random() < _NEAR_SHARE:
        return min(span - 1, int(chosen.expovariate(1 / _NEAR_TICKS)))
    return chosen.randrange(span)


class SymbolMarket:
    """The book, the trades and the statistics of one generated symbol."""

    def __init__(
        self,
        listing: Listed,
        seed: int,
        table: ChurnTable,
        time_us: int,
        history: int,
        trades_kept: int,
        slow_interval_ms: int = 1000,
    ) -> None:
        self.spec = listing.spec
        self.liquidations: deque[Liquidation] = deque(maxlen=_LIQUIDATIONS_KEPT)
        self._slow_interval_ms = slow_interval_ms
        self.random = random.Random(f"{seed} {listing.spec.symbol}")  # noqa: S311
        self.trades: deque[Trade] = deque(maxlen=trades_kept)
        self._table = table
        self._listing = listing
        lot = listing.spec.lot
        usual = listing.quantity / lot
        self._pool = [
            max(1, round(usual * self.random.lognormvariate(-0.5, 1.1))) * lot for _ in range(_POOL)
        ]
        self.book = TrueBook(listing.spec.symbol, self.random.randrange(10**9, 5 * 10**10), history)
        self._fill()
        self.day = DayStatistics(time_us, self.best_ask)
        self.next_trade_id = self.random.randrange(10**6, 10**9)
        self.first_trade_id = self.next_trade_id
        self._next_aggregate_id = self.next_trade_id // 2
        self._last_quantity = 0
        self._fast_first = self._slow_first = self.book.update_id + 1
        self._fast_previous = self._slow_previous = self.book.update_id
        self.open_contracts = 0
        """Open interest in the venue's own unit of quantity."""
        if self.spec.derivative:
            usual = max(lot, listing.quantity // lot * lot)
            self.open_contracts = (50 + self.next_trade_id % 450) * 1000 * usual
        # What the next frame of each diff stream has to say: quantity by price.
        self._fast_bids: dict[int, int] = {}
        self._fast_asks: dict[int, int] = {}
        self._slow_bids: dict[int, int] = {}
        self._slow_asks: dict[int, int] = {}
        self._best = self._best_prices()

    def _fill(self) -> None:
        tick = self.spec.tick
        middle = self._listing.price // tick * tick
        self.best_bid, self.best_ask = middle, middle + tick
        for offset in range(self._table.span):
            for book, price in (
                (self.book.bids, middle - offset * tick),
                (self.book.asks, middle + (offset + 1) * tick),
            ):
                if price > 0 and (not offset or self.random.random() < _DENSITY):
                    book[price] = self.random.choice(self._pool)

    def step(self, time_us: int, changes: int, out: list[Event]) -> None:
        """Let makers act: the price may move, `changes` levels a side change."""
        undo: list[int] = []
        self._move(undo)
        if changes:
            at = int(self.random.random() * _TABLE)
            self._churn_bids(at, changes, undo)
            at = int(self.random.random() * _TABLE)
            self._churn_asks(at, changes, undo)
        if undo:
            self.book.commit(undo, self.book.update_id + len(undo) // 2)
            self._tell_best(out)

    # The two inner loops of the whole simulator: locals, no calls but those of dict and list, and
    # so written out for each side.
    def _churn_bids(self, at: int, count: int, undo: list[int]) -> None:
        book, changed, best, tick = self.book.bids, self._fast_bids, self.best_bid, self.spec.tick
        table, pool, get, put = self._table, self._pool, self.book.bids.get, undo.append
        actions = table.actions[at : at + count]
        for offset, action in zip(table.offsets[at : at + count], actions, strict=True):
            price = best - offset * tick
            if price <= 0:
                continue
            old = get(price, 0)
            put(price)
            put(old)
            if action < 0 and old and offset:
                del book[price]
                changed[price] = 0
            else:
                book[price] = changed[price] = pool[action]

    def _churn_asks(self, at: int, count: int, undo: list[int]) -> None:
        book, changed, best, tick = self.book.asks, self._fast_asks, self.best_ask, self.spec.tick
        table, pool, get, put = self._table, self._pool, self.book.asks.get, undo.append
        actions = table.actions[at : at + count]
        for offset, action in zip(table.offsets[at : at + count], actions, strict=True):
            price = best + offset * tick
            old = get(price, 0)
            put(-price)
            put(old)
            if action < 0 and old and offset:
                del book[price]
                changed[price] = 0
            else:
                book[price] = changed[price] = pool[action]

    def _move(self, undo: list[int]) -> None:
        tick = self.spec.tick
        drift = (self.best_bid - self._listing.price) / (_WANDER_TICKS * tick)
        up = self.random.random() < min(0.95, max(0.05, 0.5 - 0.45 * drift))
        chance = self.random.random()
        if self.best_ask - self.best_bid > tick:
            if chance < 0.6:
                self._improve(up, undo)
        elif chance < 0.15 and min(len(self.book.bids), len(self.book.asks)) > 5:
            if up:
                self._set_ask(self.best_ask, 0, undo)
            else:
                self._set_bid(self.best_bid, 0, undo)
            self._improve(up, undo)

    def _improve(self, up: bool, undo: list[int]) -> None:
        quantity = self.random.choice(self._pool)
        if up:
            self._set_bid(self.best_bid + self.spec.tick, quantity, undo)
        else:
            self._set_ask(self.best_ask - self.spec.tick, quantity, undo)

    def _set_bid(self, price: int, quantity: int, undo: list[int]) -> None:
        book = self.book.bids
        undo += (price, book.get(price, 0))
        self._fast_bids[price] = quantity
        if quantity:
            book[price] = quantity
            self.best_bid = max(self.best_bid, price)
        else:
            book.pop(price, None)
            while self.best_bid not in book:
                self.best_bid -= self.spec.tick

    def _set_ask(self, price: int, quantity: int, undo: list[int]) -> None:
        book = self.book.asks
        undo += (-price, book.get(price, 0))
        self._fast_asks[price] = quantity
        if quantity:
            book[price] = quantity
            self.best_ask = min(self.best_ask, price)
        else:
            book.pop(price, None)
            while self.best_ask not in book:
                self.best_ask += self.spec.tick

    def take(self, time_us: int, out: list[Event]) -> None:
        """Let one taker act: match against the best levels of the other side."""
        drift = (self.best_bid - self._listing.price) / (_WANDER_TICKS * self.spec.tick)
        sells = self.random.random() < min(0.9, max(0.1, 0.5 + 0.4 * drift))
        book = self.book.bids if sells else self.book.asks
        wanted = int(self._listing.quantity * self.random.lognormvariate(-2.0, 1.3))
        left = max(self.spec.lot, wanted // self.spec.lot * self.spec.lot)
        undo: list[int] = []
        for _ in range(4):
            price = self.best_bid if sells else self.best_ask
            there = book[price]
            take = min(left, there)
            if take == there and len(book) <= 5:
                take -= self.spec.lot  # a side never runs empty
            if take <= 0:
                break
            self._match(time_us, price, take, sells, undo, out)
            left -= take
            if not left:
                break
        if undo:
            self.book.commit(undo, self.book.update_id + len(undo) // 2)
            self._tell_best(out)

    def _match(
        self, time_us: int, price: int, take: int, sells: bool, undo: list[int], out: list[Event]
    ) -> None:
        makers = self.random.choice((1, 1, 1, 2, 3))
        first_id = self.next_trade_id
        left = take
        while left:
            makers -= 1
            part = left
            if makers > 0:
                part = max(self.spec.lot, left // 2 // self.spec.lot * self.spec.lot)
            trade = Trade(self.spec.symbol, time_us, self.next_trade_id, price, part, sells)
            if self.spec.derivative:
                trade = self._derivative_trade(trade, out)
            self.next_trade_id += 1
            left -= part
            if sells:
                self._set_bid(price, self.book.bids[price] - part, undo)
            else:
                self._set_ask(price, self.book.asks[price] - part, undo)
            self.day.add(trade)
            self.trades.append(trade)
            self._last_quantity = part
            out.append(trade)
        out.append(
            AggregateTrade(
                self.spec.symbol,
                time_us,
                self._next_aggregate_id,
                first_id,
                self.next_trade_id - 1,
                price,
                take,
                sells,
            )
        )
        self._next_aggregate_id += 1

    def _derivative_trade(self, trade: Trade, out: list[Event]) -> Trade:
        # Every third trade opens contracts, every third closes some; some were forced.
        number = trade.trade_id
        change = (number * 2654435761 >> 9) % 3 - 1
        self.open_contracts = max(trade.quantity, self.open_contracts + change * trade.quantity)
        if number % _LIQUIDATION_EVERY:
            return trade
        sells = trade.buyer_is_maker
        away = (5 + number % 7) * self.spec.tick
        liquidation = Liquidation(
            trade.symbol,
            trade.time_us,
            number,
            sells,
            trade.price,
            max(self.spec.tick, trade.price - away if sells else trade.price + away),
            trade.quantity,
        )
        self.liquidations.append(liquidation)
        out.append(liquidation)
        return trade._replace(liquidation=True)

    def flush(self, time_us: int, out: list[Event]) -> None:
        """Publish what changed since the last flush as one frame of the fast diff stream."""
        if self._fast_first > self.book.update_id:
            return
        out.append(
            DepthUpdate(
                self.spec.symbol,
                100,
                time_us,
                self._fast_first,
                self.book.update_id,
                sorted(self._fast_bids.items(), reverse=True),
                sorted(self._fast_asks.items()),
                self._fast_previous,
            )
        )
        self._slow_bids.update(self._fast_bids)
        self._slow_asks.update(self._fast_asks)
        self._fast_bids.clear()
        self._fast_asks.clear()
        self._fast_previous = self.book.update_id
        self._fast_first = self.book.update_id + 1

    def flush_slow(self, time_us: int, out: list[Event]) -> None:
        """Publish what changed since the last call as one frame of the slower diff stream."""
        if self._slow_first > self.book.update_id:
            return
        bids = self._slow_bids | self._fast_bids
        asks = self._slow_asks | self._fast_asks
        out.append(
            DepthUpdate(
                self.spec.symbol,
                self._slow_interval_ms,
                time_us,
                self._slow_first,
                self.book.update_id,
                sorted(bids.items(), reverse=True),
                sorted(asks.items()),
                self._slow_previous,
            )
        )
        self._slow_bids.clear()
        self._slow_asks.clear()
        self._slow_previous = self.book.update_id
        self._slow_first = self.book.update_id + 1

    @property
    def pending_id(self) -> int:
        """The first update id that a diff frame still has to tell."""
        return self._slow_first

    def frame_id(self, interval_ms: int) -> int:
        """Return the id at which the newest frame of a diff stream ended."""
        return self._slow_previous if interval_ms == self._slow_interval_ms else self._fast_previous

    def renumber(self, time_us: int, out: list[Event], *, chained: bool) -> None:
        """Let the ids begin again lower, after the frames that are due with the old ones."""
        self._flush_both(time_us, out)
        last = self.book.update_id
        # Far enough below all that were used for hours of ids, and for many such resets.
        lowest = self.book.lowest_id
        step = self.random.randrange(_LEAST_RESET, 3 * _LEAST_RESET)
        self.book.renumber(max(1, lowest - step, lowest // 2))
        self._begin_frames(last if chained else self.book.update_id)

    def skip(self, time_us: int, count: int, out: list[Event]) -> None:
        """Leave out `count` ids, after the frames that are due before them."""
        self._flush_both(time_us, out)
        self.book.commit([], self.book.update_id + count)
        self._begin_frames(self.book.update_id)

    def _flush_both(self, time_us: int, out: list[Event]) -> None:
        self.flush(time_us, out)
        self.flush_slow(time_us, out)

    def _begin_frames(self, previous: int) -> None:
        self._fast_first = self._slow_first = self.book.update_id + 1
        self._fast_previous = self._slow_previous = previous

    def change_tick(self, tick: int, out: list[Event]) -> None:
        """Use another price step: levels which are off the new grid are removed."""
        self.spec = dataclasses.replace(self.spec, tick=tick)
        undo: list[int] = []
        for price in [price for price in self.book.bids if price % tick]:
            undo += (price, self.book.bids.pop(price))
            self._fast_bids[price] = 0
        for price in [price for price in self.book.asks if price % tick]:
            undo += (-price, self.book.asks.pop(price))
            self._fast_asks[price] = 0
        middle = max(2 * tick, (self.best_bid + self.best_ask) // 2 // tick * tick)
        self.best_bid = max(self.book.bids, default=middle - tick)
        self.best_ask = min(self.book.asks, default=max(middle, self.best_bid + tick))
        for number in range(_FEWEST_LEVELS):
            bid, ask = self.best_bid - number * tick, self.best_ask + number * tick
            if bid > 0 and bid not in self.book.bids:
                self._set_bid(bid, self.random.choice(self._pool), undo)
            if ask not in self.book.asks:
                self._set_ask(ask, self.random.choice(self._pool), undo)
        self.book.commit(undo, self.book.update_id + len(undo) // 2)
        self._tell_best(out)

    def roll(self, time_us: int, out: list[Event]) -> None:
        """Publish the candle; when its minute is over, publish it closed and begin the next."""
        closed = self.day.roll(time_us)
        if closed is not None:
            out.append(closed.candle(self.spec.symbol, time_us, closed=True))
        else:
            out.append(self.day.bar.candle(self.spec.symbol, time_us, closed=False))

    def ticker(self, time_us: int) -> Ticker:
        """Return the rolling 24-hour statistics."""
        day = self.day
        return Ticker(
            self.spec.symbol,
            time_us,
            day.first_bar.open_us,
            day.first_bar.open,
            day.high,
            day.low,
            day.bar.close,
            day.first_bar.open,
            self._last_quantity,
            self.best_bid,
            self.book.bids[self.best_bid],
            self.best_ask,
            self.book.asks[self.best_ask],
            day.volume,
            day.quote_volume,
            self.first_trade_id if day.trades else -1,
            self.next_trade_id - 1 if day.trades else -1,
            day.trades,
        )

    def _best_prices(self) -> tuple[int, int, int, int]:
        book = self.book
        return (
            self.best_bid,
            book.bids[self.best_bid],
            self.best_ask,
            book.asks[self.best_ask],
        )

    def _tell_best(self, out: list[Event]) -> None:
        best = self._best_prices()
        if best != self._best:
            self._best = best
            out.append(BestPrices(self.spec.symbol, self.book.update_id, *best))
