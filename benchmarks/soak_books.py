"""Follows everything a collector publishes by the contract alone, and holds it against the venues.

What is kept of each book and each series of trades is bounded: an hour costs what a minute costs.
"""

import asyncio
import contextlib
import dataclasses
import json
import random
import time
from collections import Counter, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from marketprism.collector.v1 import integrity_event_pb2 as integrity
from marketprism.market.v1 import common_pb2, events_pb2, instrument_pb2
from marketprism.market.v1 import order_book_pb2 as pb

from conformance.simulated import SimulatedVenueClient, SimulatorError
from services.shared.jetstream import Message, StartAt, StreamReader

__all__ = ["Book", "Comparer", "Follower", "Trades"]

_WINDOWS = {"okx": 400}
"""Levels a side that a venue keeps up in its stream: what lies beyond is not the client's to know.
"""
_TELLABLE = frozenset({pb.ORDER_BOOK_STATE_SYNCED, pb.ORDER_BOOK_STATE_STALE})
_SYNCED = pb.ORDER_BOOK_STATE_SYNCED
_TRADE = common_pb2.EVENT_KIND_TRADE
_ONE = Decimal(1)
_MOST_TOLD = 200
_STREAMS = ("MARKET_INSTRUMENT", "MARKET_INTEGRITY", "MARKET_ORDER_BOOK", "MARKET_TRADE")


@dataclass(slots=True)
class Book:
    """One book as a subscriber keeps it."""

    exchange: str
    symbol: str
    native: str = ""
    epoch: int = 0
    sequence: int = 0
    venue_sequence: int = 0
    has_book: bool = False
    bids: dict[str, str] = field(default_factory=dict)
    asks: dict[str, str] = field(default_factory=dict)
    bid_horizon: str = ""
    ask_horizon: str = ""
    state: int = 0
    epochs: int = 0
    updates: int = 0
    out_since: float = field(default_factory=time.monotonic)
    """Since when it has not been in step, monotonic; 0 while it is."""
    longest_out: float = 0.0
    """Longest time out of step that has ended, seconds."""
    why_longest: str = ""
    why: str = "its instrument was listed"
    last: deque[str] = field(default_factory=lambda: deque(maxlen=12))
    """The last things said of it, for who has to find out what went wrong."""
    retired: float = 0.0
    """When its instrument expired at the venue, monotonic; 0 while it trades."""

    @property
    def in_step(self) -> bool:
        """Whether it claims to be the venue's book of now."""
        return self.state == _SYNCED and self.has_book

    def on_snapshot(self, message: pb.OrderBookSnapshot) -> str:
        """Take a snapshot; gives what is wrong with it, else nothing."""
        problem = ""
        if message.epoch < self.epoch:
            problem = f"the epoch went back from {self.epoch} to {message.epoch}"
        bids = {level.price: level.quantity for level in message.bids}
        asks = {level.price: level.quantity for level in message.asks}
        if message.epoch != self.epoch:
            self.epochs += 1
        elif self.has_book and message.sequence != self.sequence:
            problem = (
                f"a snapshot at {message.epoch}.{message.sequence} came where the book stands at "
                f"{self.epoch}.{self.sequence}"
            )
        elif self.has_book and not (
            _same(bids, self.bids, message.bid_horizon, 1)
            and _same(asks, self.asks, message.ask_horizon, -1)
        ):
            problem = f"the snapshot at {self.epoch}.{self.sequence} is not what the updates told"
        self.bids, self.asks = bids, asks
        self.bid_horizon, self.ask_horizon = message.bid_horizon, message.ask_horizon
        self.epoch, self.sequence = message.epoch, message.sequence
        self.venue_sequence = message.venue_sequence
        self.has_book = True
        return problem

    def on_update(self, message: pb.OrderBookUpdate) -> str:
        """Take an update; gives what is wrong with it, else nothing."""
        if not self.has_book:
            return ""
        if message.epoch != self.epoch or message.sequence != self.sequence + 1:
            self.has_book = False
            return (
                f"update {message.epoch}.{message.sequence} does not continue "
                f"{self.epoch}.{self.sequence}"
            )
        problem = ""
        if self.state != _SYNCED and self.state != 0:
            problem = f"an update came while the book is {_state(self.state)}"
        elif message.previous_venue_sequence != self.venue_sequence:
            problem = (
                f"update {message.first_venue_sequence}..{message.venue_sequence} continues the "
                f"venue's {message.previous_venue_sequence}, the book stands at "
                f"{self.venue_sequence}"
            )
        self.updates += 1
        self.sequence = message.sequence
        self.venue_sequence = message.venue_sequence
        for side, levels in ((self.bids, message.bids), (self.asks, message.asks)):
            for level in levels:
                quantity = level.quantity
                if quantity == "0":
                    side.pop(level.price, None)
                else:
                    side[level.price] = quantity
        return problem

    def on_status(self, message: pb.OrderBookStatus) -> None:
        """Take a change of state."""
        now = time.monotonic()
        reason = pb.OrderBookReason.Name(message.reason).removeprefix("ORDER_BOOK_REASON_")
        self.last.append(
            f"{time.strftime('%H:%M:%S')} {_state(message.state)} {reason} {message.detail}"
            f" at {message.epoch}.{message.sequence} ({message.venue_sequence})"
        )
        if message.state == _SYNCED:
            if self.out_since and now - self.out_since > self.longest_out:
                self.longest_out, self.why_longest = now - self.out_since, self.why
            self.out_since = 0.0
        elif not self.out_since:
            self.out_since = now
            self.why = f"{reason}: {message.detail}"
        self.state = message.state

    def moment(self) -> "Book":
        """Give a copy that stands still, to be compared."""
        return Book(
            self.exchange, self.symbol, self.native, self.epoch, self.sequence,
            self.venue_sequence, True, dict(self.bids), dict(self.asks),
            self.bid_horizon, self.ask_horizon, self.state, last=deque(self.last),
        )  # fmt: skip


def _state(number: int) -> str:
    return pb.OrderBookState.Name(number).removeprefix("ORDER_BOOK_STATE_")  # type: ignore[arg-type]


def _same(told: dict[str, str], held: dict[str, str], horizon: str, sign: int) -> bool:
    if told == held:
        return True
    if not horizon:
        return False
    # Levels that only updates told of may lie beyond the horizon.
    edge = sign * Decimal(horizon)
    return _within(told, edge, sign) == _within(held, edge, sign)


def _within(side: Mapping[str, str], edge: Decimal, sign: int) -> dict[str, str]:
    return {price: size for price, size in side.items() if sign * Decimal(price) >= edge}


@dataclass(slots=True)
class Trades:
    """The numbers of one instrument's trades as they were published."""

    first: int = 0
    last: int = 0
    count: int = 0
    backfilled: int = 0
    holes: list[tuple[int, int]] = field(default_factory=list)
    """Numbers (first, last) that did not come."""
    ended: int = 0
    """The newest number when the instrument ended; holes behind it are not judged. 0 before."""
    told_lost: list[tuple[int, int]] = field(default_factory=list)
    """Numbers (first, last) that the ledger says are missing."""

    def on_trade(self, message: events_pb2.Trade) -> str:
        """Take a trade; gives what is wrong with it, else nothing."""
        number = message.venue_sequence or int(message.trade_id)
        begin = number - max(message.trade_count, 1) + 1
        if self.last and begin <= self.last:
            if not (message.backfilled and self._fill(begin, number)):
                return f"trade {begin}..{number} came after {self.last}"
        else:
            if self.last and begin > self.last + 1:
                self.holes.append((self.last + 1, begin - 1))
            self.first = self.first or begin
            self.last = number
        self.count += 1
        self.backfilled += message.backfilled
        return ""

    def _fill(self, begin: int, end: int) -> bool:
        """Take what came late, behind newer trades; False when it was not missing."""
        for place, (first, last) in enumerate(self.holes):
            if first <= begin and end <= last:
                parts = ((first, begin - 1), (end + 1, last))
                self.holes[place : place + 1] = [part for part in parts if part[0] <= part[1]]
                return True
        return False

    def unexplained(self) -> list[tuple[int, int]]:
        """Holes of which the ledger does not say that they are missing."""
        return [
            hole
            for hole in self.holes
            if not (self.ended and hole[0] > self.ended)
            and not any(first <= hole[0] and hole[1] <= last for first, last in self.told_lost)
        ]

    def excuse(self, made: Sequence[int]) -> None:
        """Forget holes of numbers that were no trades: some venues use numbers up otherwise."""
        known = set(made)
        self.holes = [
            (first, last)
            for first, last in self.holes
            if not made or first < made[0] or not known.isdisjoint(range(first, last + 1))
        ]


class Follower:
    """Keeps every book and every series of trades of all venues, by exchange and canonical symbol.

    `breaches` has what broke the contract, `entries` counts the gap ledger's entries by exchange
    and kind, `renewed` are the books that have just come in step. Call `expire` when an instrument
    ends at the venue: its book is no longer expected to be in step.
    """

    def __init__(self, url: str) -> None:
        self.books: dict[tuple[str, str], Book] = {}
        self.trades: dict[tuple[str, str], Trades] = defaultdict(Trades)
        self.breaches: list[str] = []
        self.breach_count = 0
        self.entries: Counter[tuple[str, str]] = Counter()
        self.renewed: deque[Book] = deque(maxlen=400)
        self.updates = 0
        self.interruptions = 0
        self._readers = [
            StreamReader(
                url, stream, start=StartAt.all(), name="soak",
                on_batch=getattr(self, f"_on_{stream.lower()}"), on_interruption=self._interrupted,
            )
            for stream in _STREAMS
        ]  # fmt: skip

    async def start(self) -> None:
        """Begin to follow."""
        for reader in self._readers:
            await reader.start()

    async def stop(self) -> None:
        """End."""
        for reader in self._readers:
            await reader.stop()

    def expected(self, exchange: str = "") -> list[Book]:
        """Books of instruments that trade."""
        return [
            book
            for book in self.books.values()
            if not book.retired and (not exchange or book.exchange == exchange)
        ]

    def in_step_share(self, exchange: str = "") -> float:
        """Share of those books that are in step."""
        books = self.expected(exchange)
        return sum(book.in_step for book in books) / len(books) if books else 0.0

    def forget_outages(self) -> None:
        """Count times out of step from now on."""
        for book in self.books.values():
            book.longest_out = 0.0

    def expire(self, exchange: str, native: str) -> None:
        """Note that an instrument has ended at the venue."""
        for book in self.books.values():
            if (book.exchange, book.native) == (exchange, native):
                book.retired = time.monotonic()
                tape = self.trades[exchange, book.symbol]
                tape.ended = tape.last

    # Inside

    def _interrupted(self, _: str) -> None:
        self.interruptions += 1

    def _breach(self, where: str, problem: str, book: Book | None = None) -> None:
        self.breach_count += 1
        if len(self.breaches) < _MOST_TOLD:
            told = f"; said before: {' | '.join(book.last)}" if book is not None else ""
            self.breaches.append(f"{time.strftime('%H:%M:%S')} {where}: {problem}{told}")

    def _on_market_order_book(self, messages: list[Message]) -> None:
        for message in messages:
            _, kind, exchange, symbol = message.subject.split(".", 3)
            book = self.books.get((exchange, symbol))
            if book is None:
                book = self.books[exchange, symbol] = Book(exchange, symbol)
            problem = ""
            if kind == "order_book_update":
                self.updates += 1
                problem = book.on_update(pb.OrderBookUpdate.FromString(message.payload))
            elif kind == "order_book_snapshot":
                epoch = book.epoch
                problem = book.on_snapshot(pb.OrderBookSnapshot.FromString(message.payload))
                if book.epoch != epoch:
                    self.renewed.append(book)
            else:
                book.on_status(pb.OrderBookStatus.FromString(message.payload))
            if problem:
                self._breach(f"book {exchange}/{symbol}", problem, book)

    def _on_market_trade(self, messages: list[Message]) -> None:
        for message in messages:
            trade = events_pb2.Trade.FromString(message.payload)
            key = (trade.exchange, trade.symbol)
            if problem := self.trades[key].on_trade(trade):
                self._breach(f"trades {key[0]}/{key[1]}", problem)

    def _on_market_integrity(self, messages: list[Message]) -> None:
        for message in messages:
            entry = integrity.IntegrityEvent.FromString(message.payload)
            kind = integrity.IntegrityKind.Name(entry.kind).removeprefix("INTEGRITY_KIND_")
            self.entries[entry.exchange, kind] += 1
            lost = entry.kind in (integrity.INTEGRITY_KIND_GAP, integrity.INTEGRITY_KIND_DROPPED)
            if lost and entry.event_kind == _TRADE and entry.last_missing_id:
                self.trades[entry.exchange, entry.symbol].told_lost.append(
                    (entry.first_missing_id, entry.last_missing_id)
                )

    def _on_market_instrument(self, messages: list[Message]) -> None:
        for message in messages:
            told = instrument_pb2.Instrument.FromString(message.payload)
            key = (told.exchange, told.symbol)
            if key not in self.books:
                self.books[key] = Book(*key)
            self.books[key].native = told.native_symbol


class Comparer:
    """Holds books against the venue's true ones at the very ids at which they stand.

    `compared` counts by exchange; `untold` counts what a venue could not answer (its history is
    bounded), `wrong` what was not the venue's book, with the evidence written to `directory`.
    """

    def __init__(
        self,
        follower: Follower,
        venues: Mapping[str, SimulatedVenueClient],
        directory: Path,
        rng: random.Random,
    ) -> None:
        self.compared: Counter[str] = Counter()
        self.levels = 0
        self.untold: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._follower = follower
        self._venues = venues
        self._directory = directory
        self._rng = rng
        self._sizes: dict[tuple[str, str], Decimal] = {}

    async def run(self, rate: float) -> None:
        """Compare about `rate` books a second, at random moments, until cancelled."""
        while True:
            await asyncio.sleep(self._rng.expovariate(rate))
            book = self._pick()
            if book is not None:
                await self.compare(book)

    async def excuse_holes(self) -> None:
        """Ask the venues which missing trades were none. Their memory is bounded: ask in time."""
        for book in self._follower.expected():
            await self._excuse(book)

    async def before_expiry(self, exchange: str, native: str) -> None:
        """Ask the same of an instrument that is about to end, and of which nobody knows then."""
        for book in self._follower.expected(exchange):
            if book.native == native:
                await self._excuse(book)

    async def _excuse(self, book: Book) -> None:
        tape = self._follower.trades.get((book.exchange, book.symbol))
        if tape is not None and tape.unexplained():
            with contextlib.suppress(SimulatorError):
                tape.excuse(await self._venues[book.exchange].trades(book.native))

    async def compare(self, book: Book) -> bool:
        """Compare one book as it stands; True when it is the venue's."""
        moment = book.moment()
        try:
            truth = await self._venues[book.exchange].book(
                book.native, moment.venue_sequence, wait=5
            )
        except SimulatorError:
            truth = None
        if truth is None:
            self.untold[book.exchange] += 1
            return True
        size = await self._size(book.exchange, book.native)
        self.compared[book.exchange] += 1
        told = self._difference(moment, truth, size)
        if told:
            self._tell(moment, truth, told)
        return not told

    def _pick(self) -> Book | None:
        renewed = self._follower.renewed
        # A book that was just built anew is the likeliest to be wrong.
        if renewed and self._rng.random() < 0.5:
            book = renewed.popleft()
            if book.state in _TELLABLE and book.has_book and book.native:
                return book
        books: Sequence[Book] = [
            book
            for book in self._follower.books.values()
            if book.has_book and book.state in _TELLABLE and book.native
        ]
        return self._rng.choice(books) if books else None

    async def _size(self, exchange: str, native: str) -> Decimal:
        """Give what one of the venue's units of quantity stands for."""
        sizes = self._sizes
        if (exchange, native) not in sizes:
            for name, told in (await self._venues[exchange].instruments()).items():
                size = Decimal(told["contract_size"]) * Decimal(told["multiplier"])
                sizes[exchange, name] = size
        return sizes.get((exchange, native), _ONE)

    def _difference(self, moment: Book, truth: Mapping[str, Any], size: Decimal) -> str:
        window = _WINDOWS.get(moment.exchange)
        told = []
        for name, mine, horizon, sign in (
            ("bids", moment.bids, moment.bid_horizon, 1),
            ("asks", moment.asks, moment.ask_horizon, -1),
        ):
            levels = truth[name]
            edges = [sign * Decimal(horizon)] if horizon else []
            if window and len(levels) >= window:
                edges.append(sign * Decimal(levels[window - 1][0]))
            theirs = self._converted(levels, size)
            if edges:
                edge = max(edges)
                theirs, mine = _within(theirs, edge, sign), _within(mine, edge, sign)
            self.levels += len(theirs)
            if mine != theirs:
                differ = sorted(set(mine.items()) ^ set(theirs.items()))
                told.append(f"{len(differ)} of {len(theirs)} {name} differ, such as {differ[:3]}")
        return "; ".join(told)

    def _converted(self, levels: list[list[str]], size: Decimal) -> dict[str, str]:
        if size == _ONE:
            return dict(levels)  # type: ignore[arg-type]
        return {price: _plain(Decimal(quantity) * size) for price, quantity in levels}

    def _tell(self, moment: Book, truth: Mapping[str, Any], told: str) -> None:
        text = (
            f"{time.strftime('%H:%M:%S')} {moment.exchange}/{moment.symbol} "
            f"{moment.epoch}.{moment.sequence} at the venue's {moment.venue_sequence}, "
            f"{_state(moment.state)}: {told}; said before: {' | '.join(moment.last)}"
        )
        self.wrong.append(text)
        if len(self.wrong) <= 50:
            evidence = {"problem": text, "followed": _evidence(moment), "truth": truth}
            path = self._directory / f"wrong-{len(self.wrong)}.json"
            path.write_text(json.dumps(evidence, indent=1))


def _plain(number: Decimal) -> str:
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _evidence(moment: Book) -> dict[str, Any]:
    told = dataclasses.asdict(moment)
    told["last"] = list(moment.last)
    return told
