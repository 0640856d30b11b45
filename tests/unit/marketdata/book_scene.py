"""A live book, its views, and clients that check each event against what the book truly was."""

import asyncio
from collections.abc import Callable, Coroutine
from decimal import Decimal
from fractions import Fraction
from math import ceil, floor
from typing import Any

from marketprism.market.v1 import market_data_service_pb2 as pb
from marketprism.market.v1 import market_event_pb2, order_book_pb2

from services.marketdata.book_views import MarketBookViews
from services.marketdata.live_book import LiveBook, Opening
from services.marketdata.market import Market
from services.marketdata.settings import LogBounds, MarketDataSettings
from services.marketdata.views import BookView, BookWish
from tests.unit.marketdata.truth import Collected

__all__ = [
    "INCREMENTAL",
    "TOP",
    "Client",
    "FakeTimeLoop",
    "Scene",
    "advance",
    "grouped",
    "on_fake_time",
]

S = order_book_pb2
INCREMENTAL = int(pb.ORDER_BOOK_MODE_INCREMENTAL)
TOP = int(pb.ORDER_BOOK_MODE_TOP)
KEY = ("binance", "BTC-USDT")
Side = list[tuple[str, str]]


class FakeTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose time goes on only when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__()

    def time(self) -> float:
        return self.now


def on_fake_time(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario to its end."""
    loop = FakeTimeLoop()
    try:
        loop.run_until_complete(scenario())
    finally:
        loop.close()


async def advance(seconds: float = 0.0) -> None:
    """Let time pass, and everything run that is due."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, FakeTimeLoop)
    loop.now += seconds
    for _ in range(4):
        await asyncio.sleep(0)


class Fractional(Collected):
    """A book whose quantities have many digits."""

    def _quantity(self) -> str:
        whole, rest = divmod(self._random.randrange(1, 10**20), 10**12)
        return f"{whole}.{rest:012}".rstrip("0").rstrip(".")


def grouped(levels: Side, step: str, *, up: bool) -> Side:
    """Group levels the slow way: by fractions."""
    if not step:
        return levels
    sums: dict[Fraction, Fraction] = {}
    for price, quantity in levels:
        times = Fraction(price) / Fraction(step)
        group = Fraction(step) * (ceil(times) if up else floor(times))
        sums[group] = sums.get(group, Fraction(0)) + Fraction(quantity)
    order = sorted(sums.items(), reverse=not up)
    return [(_text(price), _text(quantity)) for price, quantity in order]


def _text(number: Fraction) -> str:
    """Write a decimal fraction in full."""
    scaled = number * 10**40
    assert scaled.denominator == 1, "expected a decimal number"
    text = str(abs(scaled.numerator)).rjust(41, "0")
    text = f"{text[:-40]}.{text[-40:]}".rstrip("0").rstrip(".")
    return f"-{text}" if number < 0 else text


class Scene:
    """One book in a market, and its whole history."""

    def __init__(self, seed: int = 1, *, levels: int = 12, bounds: LogBounds | None = None) -> None:
        bounds = bounds or LogBounds(max_events=64)
        self.market = Market(MarketDataSettings(order_book_log=bounds))
        self.market.catalog.add(KEY)
        self.market.catalog.ready = True
        self.views = MarketBookViews(self.market, bounds)
        self.book = Fractional(*KEY, seed=seed, levels=levels)
        self.history: dict[tuple[int, int], tuple[Side, Side]] = {}

    @property
    def live(self) -> LiveBook:
        return self.market.book(KEY)

    def begin(self) -> "Scene":
        """Publish a new epoch and its status."""
        self.snapshot(self.book.rebuild())
        self.status(self.book.synced())
        return self

    def updates(self, count: int = 1, changes: int = 4) -> "Scene":
        for _ in range(count):
            self.live.on_update(self.hidden_update(changes))
        return self

    def hidden_update(self, changes: int = 4) -> bytes:
        """Make an update that is not published yet."""
        payload = self.book.update(changes)
        self._note()
        return payload

    def snapshot(self, payload: bytes) -> None:
        self._note()
        self.live.on_snapshot(payload)

    def status(self, payload: bytes) -> None:
        self.live.on_status(payload)

    def client(self, wish: BookWish, resume: "Client | None" = None) -> "Client":
        return Client(self, wish, resume)

    def truth(self, wish: BookWish, place: tuple[int, int]) -> tuple[Side, Side]:
        """Give the book as a wish has it, computed anew."""
        bids, asks = self.history[place]
        bids = grouped(bids, wish.grouping, up=False)
        asks = grouped(asks, wish.grouping, up=True)
        return (bids[: wish.depth], asks[: wish.depth]) if wish.depth else (bids, asks)

    @property
    def place(self) -> tuple[int, int]:
        return self.book.epoch, self.book.sequence

    def _note(self) -> None:
        self.history[self.place] = self.book.best()


class Client:
    """Keeps a book as the contract tells a client to; after each event it must be a true one."""

    def __init__(self, scene: Scene, wish: BookWish, resume: "Client | None" = None) -> None:
        self.scene = scene
        self.wish = wish
        self.bids: dict[str, str] = {}
        self.asks: dict[str, str] = {}
        self.epoch, self.sequence = 0, -1
        self.statuses: list[order_book_pb2.OrderBookStatus] = []
        self.snapshots: list[order_book_pb2.OrderBookSnapshot] = []
        self.updates: list[order_book_pb2.OrderBookUpdate] = []
        self.kinds: list[str] = []
        self.lagged = 0
        self.view: BookView = scene.views.open(KEY, wish)
        place = None
        if resume is not None and resume.epoch:
            self.bids, self.asks = dict(resume.bids), dict(resume.asks)
            self.epoch, self.sequence = resume.epoch, resume.sequence
            place = (resume.epoch, resume.sequence)
        self.opening: Opening = self.view.open(place)
        self.position = self.opening.position
        self._take(self.opening.joined())

    def close(self) -> None:
        self.view.close()

    def read(self) -> "Client":
        """Read everything that is there."""
        log = self.view.log
        if self.position < log.first:
            self.lagged += 1
            opening = self.view.open(conflated=True)
            self._take(opening.joined())
            self.position = opening.position
        while self.position < log.end:
            message, self.position = log.read(self.position, 1000)
            self._take(message)
        return self

    @property
    def place(self) -> tuple[int, int]:
        return self.epoch, self.sequence

    def best(self) -> tuple[Side, Side]:
        return (
            sorted(self.bids.items(), key=lambda level: Decimal(level[0]), reverse=True),
            sorted(self.asks.items(), key=lambda level: Decimal(level[0])),
        )

    def check(self) -> None:
        """Compare with the book as it truly was where this one stands."""
        assert self.best() == self.scene.truth(self.wish, self.place), (
            f"expected the true book at {self.place} as {self.wish} has it"
        )

    def _take(self, message: bytes) -> None:
        for event in pb.StreamOrderBookResponse.FromString(message).events:
            self._on(event)

    def _on(self, event: market_event_pb2.MarketEvent) -> None:
        kind = event.WhichOneof("event")
        assert kind is not None, "expected an event in every item"
        self.kinds.append(kind)
        if kind == "order_book_status":
            self.statuses.append(event.order_book_status)
            return
        if kind == "order_book_snapshot":
            snapshot = event.order_book_snapshot
            self.snapshots.append(snapshot)
            self.bids = {level.price: level.quantity for level in snapshot.bids}
            self.asks = {level.price: level.quantity for level in snapshot.asks}
            assert list(self.bids.items()) == self.best()[0], "expected bids best first"
            assert list(self.asks.items()) == self.best()[1], "expected asks best first"
            self.epoch, self.sequence = snapshot.epoch, snapshot.sequence
        else:
            update = event.order_book_update
            self.updates.append(update)
            first = update.first_sequence or update.sequence
            if not self.snapshots and not self.opening.resumed:
                # Who came while there was no book to be given waits for one.
                assert self.statuses[-1].state not in (0, S.ORDER_BOOK_STATE_SYNCED)
                return
            assert (update.epoch, first) == (self.epoch, self.sequence + 1), (
                f"expected an update from {self.sequence + 1} of epoch {self.epoch}, "
                f"got {first} to {update.sequence} of {update.epoch}"
            )
            for held, changes in ((self.bids, update.bids), (self.asks, update.asks)):
                for level in changes:
                    if level.quantity == "0":
                        held.pop(level.price, None)
                    else:
                        held[level.price] = level.quantity
            self.sequence = update.sequence
        self.check()
