"""A recorded market: a capture file played to whoever subscribes, with the truth it implies."""

import asyncio
import math
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from services.simulator.book import TrueBook
from services.simulator.capture_file import (
    CapturedFrame,
    CapturedInfo,
    CapturedSnapshot,
    CaptureError,
    CaptureItem,
    CaptureReader,
)
from services.simulator.fixed import DECIMALS, to_units
from services.simulator.listing import split_symbol
from services.simulator.market import (
    BookState,
    Market,
    MarketState,
    RawFrame,
    Sink,
    SymbolSpec,
    Trade,
    UnknownSymbolError,
    UpdateIdUnavailableError,
)

__all__ = ["CaptureError", "CaptureMarket"]

_BATCH_FRAMES = 64
_BATCH_SECONDS = 0.002


class _Symbol:
    """One captured symbol: its snapshot, the book that follows from it, its trades."""

    def __init__(self, name: str, history: int, trades_kept: int) -> None:
        self.name = name
        self.snapshot: CapturedSnapshot | None = None
        self.first_frames: list[tuple[int, int]] = []
        self.first_id: int | None = None
        self.digits: list[int] = [0, 0]
        self.history = history
        self.trades: deque[Trade] = deque(maxlen=trades_kept)
        self.begin()

    def begin(self) -> None:
        """Forget what was played."""
        self.book = TrueBook(self.name, self.first_id - 1 if self.first_id else 0, self.history)
        self.synchronised = False
        self.reached_snapshot = False
        self.requested = asyncio.Event()
        self.last_sent_id = self.book.update_id
        self.frames = 0
        self.gaps = 0
        self.trades.clear()

    def learn(self, *numbers: int) -> None:
        """Note how fine prices (first) and quantities (second) are."""
        for index, number in enumerate(numbers):
            self.digits[index] = max(self.digits[index], _decimals(number))

    def spec(self) -> SymbolSpec:
        """The listing that the symbol's name and numbers suggest."""
        base, quote = split_symbol(self.name)
        tick, lot = (10 ** (DECIMALS - digits) for digits in self.digits)
        return SymbolSpec(self.name, base, quote, tick, lot)


class CaptureMarket(Market):
    """Plays a capture in the Binance spot format; it begins at the first live subscription.

    `speed` is a factor on the recorded pace, or None to send as fast as clients take it. Frames are
    sent unchanged, also those from before the capture's own REST snapshot. Until that snapshot's
    place is reached, REST answers with it; from then on with the book that follows from it.

    With `hold_at_snapshots` (by default when `speed` is None) play waits at a captured snapshot
    until a client which follows the symbol's diffs has asked for it, at most `hold_seconds`: else
    a capture played in no time would be over before a client could fetch its first book.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        speed: float | None = 1.0,
        loop: bool = False,
        hold_at_snapshots: bool | None = None,
        hold_seconds: float = 5.0,
        history: int = 200_000,
        trades_kept: int = 100_000,
    ) -> None:
        """Read the capture once, to learn its symbols, snapshots and listing.

        Raises:
            CaptureError: if the file cannot be read or holds nothing that can be played.
            ValueError: if `speed` is not above 0.

        """
        if speed is not None and not (speed > 0 and math.isfinite(speed)):
            raise ValueError(f"speed: expected a number above 0, or None, got {speed}")
        self.speed = speed
        self.loop = loop
        self._hold = speed is None if hold_at_snapshots is None else hold_at_snapshots
        self._hold_seconds = hold_seconds
        self._history = history
        self._trades_kept = trades_kept
        self._reader = CaptureReader(Path(path))
        self._known: dict[str, _Symbol] = {}
        self._info: bytes | None = None
        self._state = MarketState.WAITING
        self._finished = asyncio.Event()
        self._frames_in_file = 0
        self._played = 0
        self._rounds = 0
        self._scan()

    def _scan(self) -> None:
        for item in self._reader:
            if isinstance(item, CapturedInfo):
                self._info = self._info or item.body
                continue
            symbol = self._known.get(item.symbol)
            if symbol is None:
                symbol = _Symbol(item.symbol, self._history, self._trades_kept)
                self._known[item.symbol] = symbol
            if isinstance(item, CapturedSnapshot):
                for price, quantity in [*item.bids.items(), *item.asks.items()]:
                    symbol.learn(price, quantity)
                # The first snapshot that overlaps with the diffs is the one to follow from.
                follows = not symbol.first_frames or item.update_id + 1 >= symbol.first_frames[0][0]
                if follows and symbol.snapshot is None:
                    symbol.snapshot = item
                continue
            self._frames_in_file += 1
            if item.depth is not None:
                if symbol.first_id is None:
                    symbol.first_id = item.depth.first_id
                    symbol.first_frames.append((item.depth.first_id, item.depth.last_id))
                for price, quantity in item.depth.bids + item.depth.asks:
                    symbol.learn(price, quantity)
            elif item.trade is not None:
                symbol.learn(item.trade.price, item.trade.quantity)
        if not self._frames_in_file:
            raise CaptureError(
                f"{self._reader.path}: no Binance spot frame in it that can be played "
                f"({self._reader.malformed} malformed lines: "
                f"{'; '.join(self._reader.complaints[:3]) or 'none'})"
            )
        for symbol in self._known.values():
            symbol.begin()
        self._symbols = {name: self._spec(symbol) for name, symbol in self._known.items()}

    def _spec(self, symbol: _Symbol) -> SymbolSpec:
        told = _listing(self._info).get(symbol.name)
        return told or symbol.spec()

    async def run(self, sink: Sink) -> None:
        """Play once a client subscribes; return never, so that connections stay open."""
        await sink.wait_subscribed()
        while True:
            self._state = MarketState.RUNNING
            await self._play(sink)
            self._rounds += 1
            if not self.loop:
                break
            for symbol in self._known.values():
                symbol.begin()
        self._state = MarketState.FINISHED
        self._finished.set()
        await asyncio.Event().wait()

    async def finished(self) -> None:
        """Return once the capture was played to its end."""
        await self._finished.wait()

    async def _play(self, sink: Sink) -> None:
        clock = asyncio.get_running_loop().time
        begun: float | None = None
        origin = clock()
        batch: list[RawFrame] = []
        batched_at = clock()
        for item in self._items():
            if isinstance(item, CapturedInfo):
                continue
            if self.speed is not None and item.time is not None:
                begun = item.time if begun is None else begun
                wait = origin + (item.time - begun) / self.speed - clock()
                if wait > _BATCH_SECONDS / 2:
                    self._send(sink, batch)
                    await asyncio.sleep(wait)
            if isinstance(item, CapturedSnapshot):
                self._send(sink, batch)
                await self._reach_snapshot(item, sink)
                continue
            batch.append(self._apply(item))
            if len(batch) >= _BATCH_FRAMES or clock() - batched_at > _BATCH_SECONDS:
                self._send(sink, batch)
                await sink.wait_capacity()
                batched_at = clock()
        self._send(sink, batch)
        await sink.wait_capacity()

    def _items(self) -> Iterator[CaptureItem]:
        return iter(self._reader)

    def _send(self, sink: Sink, batch: list[RawFrame]) -> None:
        if batch:
            sink.publish(batch)
            self._played += len(batch)
            batch.clear()

    def _apply(self, item: CapturedFrame) -> RawFrame:
        symbol = self._known[item.symbol]
        depth = item.depth
        if depth is not None and item.stream.endswith(("@depth", "@depth@100ms")):
            symbol.frames += 1
            if symbol.frames > 1 and depth.first_id != symbol.last_sent_id + 1:
                symbol.gaps += 1
            symbol.last_sent_id = depth.last_id
            self._follow(symbol, depth.first_id, depth.last_id, depth.bids, depth.asks)
        trade = item.trade
        if trade is not None:
            symbol.trades.append(
                Trade(
                    item.symbol,
                    trade.time_us,
                    trade.trade_id,
                    trade.price,
                    trade.quantity,
                    trade.buyer_is_maker,
                )
            )
        return RawFrame(item.symbol, item.stream, item.payload, item.wrapped, item.event_id)

    def _follow(
        self,
        symbol: _Symbol,
        first_id: int,
        last_id: int,
        bids: list[tuple[int, int]],
        asks: list[tuple[int, int]],
    ) -> None:
        snapshot = symbol.snapshot
        if snapshot is None:
            return
        if not symbol.synchronised:
            if last_id <= snapshot.update_id:
                return
            symbol.book.reset(snapshot.update_id, dict(snapshot.bids), dict(snapshot.asks))
            symbol.synchronised = True
        if last_id > symbol.book.update_id:
            symbol.book.apply(last_id, bids, asks)

    async def _reach_snapshot(self, item: CapturedSnapshot, sink: Sink) -> None:
        symbol = self._known[item.symbol]
        if symbol.reached_snapshot or item is None:
            return
        symbol.reached_snapshot = True
        followed = any(
            sink.subscribed(f"{item.symbol.lower()}@{kind}") for kind in ("depth@100ms", "depth")
        )
        if not self._hold or not followed:
            return
        try:
            async with asyncio.timeout(self._hold_seconds):
                await symbol.requested.wait()
        except TimeoutError:
            return

    @property
    def symbols(self) -> Mapping[str, SymbolSpec]:
        """The symbols seen in the capture, by name."""
        return self._symbols

    @property
    def state(self) -> MarketState:
        """WAITING for a subscription, RUNNING, FINISHED."""
        return self._state

    @property
    def malformed(self) -> int:
        """Lines of the file which could not be used."""
        return self._reader.malformed

    def _symbol(self, name: str) -> _Symbol:
        try:
            return self._known[name]
        except KeyError:
            raise UnknownSymbolError(name, self._known) from None

    def update_id(self, symbol: str) -> int:
        """The book's id: of the snapshot before it is reached, then of the last frame sent."""
        known = self._symbol(symbol)
        if known.synchronised or known.snapshot is None:
            return known.book.update_id
        return known.snapshot.update_id

    def pending_id(self, symbol: str) -> int:
        """The first update id of the next frame, as far as ids are contiguous."""
        known = self._symbol(symbol)
        return known.last_sent_id + 1

    def book(self, symbol: str, depth: int | None = None) -> BookState:
        """The captured snapshot until its place is reached, then the book that follows from it."""
        known = self._symbol(symbol)
        if known.synchronised:
            return known.book.state(depth)
        snapshot = known.snapshot
        if snapshot is None:
            return BookState(symbol, max(0, known.last_sent_id), (), ())
        return _state_of(snapshot).top(depth)

    def book_at(self, symbol: str, update_id: int, depth: int | None = None) -> BookState:
        """The exact book at the end of a captured frame, or at the snapshot."""
        known = self._symbol(symbol)
        snapshot = known.snapshot
        if snapshot is None:
            raise UpdateIdUnavailableError(symbol, update_id, "the capture holds no snapshot of it")
        if update_id == snapshot.update_id:
            return _state_of(snapshot).top(depth)
        if not known.synchronised:
            raise UpdateIdUnavailableError(
                symbol, update_id, f"only the snapshot at {snapshot.update_id} is known so far"
            )
        return known.book.at(update_id, depth)

    async def true_book(
        self, symbol: str, update_id: int, depth: int | None = None, timeout_seconds: float = 10.0
    ) -> BookState:
        """As `book_at`, waiting for an id that was not played yet."""
        known = self._symbol(symbol)
        if known.snapshot is not None and update_id > known.snapshot.update_id:
            await known.book.wait_for(update_id, timeout_seconds)
        return self.book_at(symbol, update_id, depth)

    def stale_book(self, symbol: str, before: int | None, depth: int | None = None) -> BookState:
        """An older book; where the capture knows none, the oldest with an older id put on it."""
        known = self._symbol(symbol)
        oldest = known.book.oldest_id if known.synchronised else math.inf
        if before is not None and oldest < before:
            return known.book.at(known.book.known_before(before), depth)
        book = self.book(symbol, depth)
        forged = min(book.update_id, known.first_id or book.update_id) - 2
        return BookState(symbol, max(0, forged), book.bids, book.asks)

    def snapshot_requested(self, symbol: str) -> None:
        """A client fetched the book: play that waits for that goes on."""
        self._symbol(symbol).requested.set()

    def recent_trades(self, symbol: str, limit: int) -> list[Trade]:
        """The last `limit` trades sent, oldest first."""
        trades = self._symbol(symbol).trades
        return [trades[i] for i in range(max(0, len(trades) - limit), len(trades))]

    def exchange_info(self) -> bytes | None:
        """The captured listing, None when the capture has none."""
        return self._info

    def stats(self) -> dict[str, object]:
        """Counters, JSON-ready."""
        return {
            "source": "capture",
            "file": self._reader.path.name,
            "state": self._state.value,
            "speed": "max" if self.speed is None else self.speed,
            "frames_in_file": self._frames_in_file,
            "frames_played": self._played,
            "rounds": self._rounds,
            "malformed_lines": self._reader.malformed,
            "malformed": list(self._reader.complaints),
            "symbols": {
                symbol.name: {
                    "update_id": self.update_id(symbol.name),
                    "oldest_id": symbol.book.oldest_id,
                    "synchronised": symbol.synchronised,
                    "bids": len(symbol.book.bids),
                    "asks": len(symbol.book.asks),
                    "trades": len(symbol.trades),
                    "gaps": symbol.gaps,
                }
                for symbol in self._known.values()
            },
        }


def _state_of(snapshot: CapturedSnapshot) -> BookState:
    return BookState(
        snapshot.symbol,
        snapshot.update_id,
        tuple(sorted(snapshot.bids.items(), reverse=True)),
        tuple(sorted(snapshot.asks.items())),
    )


def _decimals(units: int) -> int:
    digits = DECIMALS
    while digits and units % 10 == 0:
        units //= 10
        digits -= 1
    return digits


class _Filter(msgspec.Struct):
    kind: str = msgspec.field(name="filterType")
    tick: str | None = msgspec.field(name="tickSize", default=None)
    lot: str | None = msgspec.field(name="stepSize", default=None)


class _Entry(msgspec.Struct):
    symbol: str
    base: str = msgspec.field(name="baseAsset")
    quote: str = msgspec.field(name="quoteAsset")
    filters: list[_Filter]


class _Info(msgspec.Struct):
    symbols: list[_Entry]


def _listing(body: bytes | None) -> dict[str, SymbolSpec]:
    if body is None:
        return {}
    listing: dict[str, SymbolSpec] = {}
    for entry in msgspec.json.decode(body, type=_Info).symbols:
        tick = next((f.tick for f in entry.filters if f.kind == "PRICE_FILTER" and f.tick), "0.01")
        lot = next((f.lot for f in entry.filters if f.kind == "LOT_SIZE" and f.lot), "0.00001")
        listing[entry.symbol] = SymbolSpec(
            entry.symbol, entry.base, entry.quote, to_units(tick), to_units(lot)
        )
    return listing
