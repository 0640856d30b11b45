"""What books as subscribers want them cost, beside books as they come.

`python -m benchmarks.book_views` prints one JSON line a wish, and one for five wishes at once. The
floor is what every book costs without any view: the rule of continuity and the log that all plain
subscribers are sent from. A view is made once whatever the number of its subscribers, so that none
are needed here; what sending costs is measured by `benchmarks.fanout`.

Time is simulated, one millisecond a turn, so that as many updates fall into an interval as would
live: the books of the measurement get `--rate` updates a second each. What is measured is processor
time. After each measurement every view is held against the book.
"""

import argparse
import asyncio
import json
import random
import time
from decimal import Decimal

from marketprism.market.v1 import market_data_service_pb2 as pb
from marketprism.market.v1 import order_book_pb2

from services.marketdata.book_views import MarketBookViews
from services.marketdata.catalog import Key
from services.marketdata.market import Market
from services.marketdata.settings import LogBounds, MarketDataSettings
from services.marketdata.views import BookView, BookWish
from services.marketdata.wire import ORDER_BOOK_SNAPSHOT, event_kind, event_payload
from services.shared.log import configure_logging
from services.shared.settings import LogSettings

_TOP = int(pb.ORDER_BOOK_MODE_TOP)
_WISHES = {
    "conflated 100 ms": BookWish(interval=0.1),
    "top 1": BookWish(mode=_TOP, depth=1),
    "top 20": BookWish(mode=_TOP, depth=20),
    "top 20, 100 ms": BookWish(mode=_TOP, depth=20, interval=0.1),
    "grouped, 100 ms": BookWish(grouping="10", interval=0.1),
}
_TICK = Decimal("0.1")


class _SimulatedTime(asyncio.SelectorEventLoop):
    """A loop whose time goes on by turns."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__()

    def time(self) -> float:
        return self.now


class _Books:
    """Ready-made snapshots and updates: most changes near the top, as live."""

    def __init__(self, books: int, levels: int, changes: int, turns: int) -> None:
        self.keys: list[Key] = [("binance", f"C{number:02}-USDT") for number in range(books)]
        chance = random.Random(1)
        self.snapshots = [self._snapshot(key, levels, chance) for key in self.keys]
        self.updates = [
            [self._update(key, number + 1, changes, levels, chance) for number in range(turns)]
            for key in self.keys
        ]

    def _snapshot(self, key: Key, levels: int, chance: random.Random) -> bytes:
        message = order_book_pb2.OrderBookSnapshot(exchange=key[0], symbol=key[1], epoch=1)
        for number in range(levels):
            message.bids.add(price=_price(-1, number), quantity=_quantity(chance))
            message.asks.add(price=_price(1, number), quantity=_quantity(chance))
        return message.SerializeToString()

    def _update(
        self, key: Key, sequence: int, changes: int, levels: int, chance: random.Random
    ) -> bytes:
        now = time.time_ns()
        message = order_book_pb2.OrderBookUpdate(
            exchange=key[0], symbol=key[1], epoch=1, sequence=sequence, venue_sequence=sequence
        )
        message.exchange_time.FromNanoseconds(now)
        message.receive_time.FromNanoseconds(now)
        for number in range(changes):
            side = message.bids if number % 2 else message.asks
            away = min(int(chance.expovariate(1 / 40)), levels - 1)
            quantity = "0" if chance.random() < 0.3 else _quantity(chance)
            side.add(price=_price(-1 if number % 2 else 1, away), quantity=quantity)
        return message.SerializeToString()


def _price(side: int, number: int) -> str:
    return f"{(Decimal(60000) + side * (number + 1) * _TICK).normalize():f}"


def _quantity(chance: random.Random) -> str:
    return f"0.{chance.randrange(1, 10**5)}1"


def _measure(books: _Books, wishes: list[BookWish], rate: int, repeats: int) -> dict[str, float]:
    """Measure some times, and give the least: other work on the machine only ever adds."""
    results = []
    for _ in range(repeats):
        loop = _SimulatedTime()
        try:
            results.append(loop.run_until_complete(_run(loop, books, wishes, rate)))
        finally:
            loop.close()
    return min(results, key=lambda result: result["us_per_update"])


async def _run(
    loop: _SimulatedTime, books: _Books, wishes: list[BookWish], rate: int
) -> dict[str, float]:
    bounds = LogBounds()
    market = Market(MarketDataSettings())
    market.catalog.ready = True
    lives = []
    for key, snapshot in zip(books.keys, books.snapshots, strict=True):
        market.catalog.add(key)
        live = market.book(key)
        live.on_snapshot(snapshot)
        status = order_book_pb2.OrderBookStatus(
            exchange=key[0], symbol=key[1], epoch=1, state=order_book_pb2.ORDER_BOOK_STATE_SYNCED
        )
        live.on_status(status.SerializeToString())
        lives.append(live)
    views = MarketBookViews(market, bounds)
    opened = [(key, wish, views.open(key, wish)) for wish in wishes for key in books.keys]
    turns = len(books.updates[0])
    took = 0.0
    for turn in range(turns):
        began = time.process_time()
        for live, updates in zip(lives, books.updates, strict=True):
            live.on_update(updates[turn])
        loop.now += 1 / rate
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        took += time.process_time() - began
    loop.now += 1.0
    for _ in range(4):
        await asyncio.sleep(0)
    for key, wish, view in opened:
        _check(market, key, wish, view)
    count = turns * len(books.keys)
    items = sum(view.log.end for _, _, view in opened)
    for _, _, view in opened:
        view.close()
    return {
        "us_per_update": round(took / count * 1e6, 2),
        "items_per_update": round(items / count, 3),
    }


def _check(market: Market, key: Key, wish: BookWish, view: BookView) -> None:
    """Hold what a newcomer is given against the book itself."""
    if wish.grouping:
        return
    item = view.open().items[0]
    assert event_kind(item) == ORDER_BOOK_SNAPSHOT
    given = order_book_pb2.OrderBookSnapshot.FromString(event_payload(item))
    truth = order_book_pb2.OrderBookSnapshot.FromString(
        market.book(key).order_book(wish.depth, int(given.reason))
    )
    if (list(given.bids), list(given.asks)) != (list(truth.bids), list(truth.asks)):
        raise AssertionError(f"{key} as {wish} has it is not the book")


def main() -> None:
    """Measure each wish, and all at a time."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--books", type=int, default=20)
    parser.add_argument("--levels", type=int, default=1000, help="a side")
    parser.add_argument("--changes", type=int, default=8, help="levels an update")
    parser.add_argument("--rate", type=int, default=1000, help="updates a second and book")
    parser.add_argument("--turns", type=int, default=1000, help="updates of each book")
    parser.add_argument("--repeats", type=int, default=3, help="the least of so many is told")
    options = parser.parse_args()
    configure_logging(LogSettings(level="warning"))
    books = _Books(options.books, options.levels, options.changes, options.turns)
    floor = _measure(books, [], options.rate, options.repeats)
    cases = {
        **{name: [wish] for name, wish in _WISHES.items()},
        "all five": list(_WISHES.values()),
    }
    print(json.dumps({"measurement": "floor: as they come", **floor}), flush=True)
    for name, wishes in cases.items():
        result = _measure(books, wishes, options.rate, options.repeats)
        above = result["us_per_update"] - floor["us_per_update"]
        share = above * options.books * options.rate / 1e6
        result |= {"us_above_floor": round(above, 2), "cores_above_floor": round(share, 3)}
        print(json.dumps({"measurement": name, **result}), flush=True)


if __name__ == "__main__":
    main()
