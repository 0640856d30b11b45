"""A recorded market: a capture file played to whoever subscribes, with the truth it implies."""

import asyncio
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import msgspec

from services.simulator.capture_file import CaptureError, CaptureReader
from services.simulator.captured import CapturedFrame, CapturedInfo, CapturedSnapshot, CaptureParser
from services.simulator.captured_binance import binance_item, binance_listing
from services.simulator.captured_deribit import deribit_item, deribit_listing
from services.simulator.captured_okx import OkxParser, okx_listing
from services.simulator.captured_symbol import CapturedSymbol, SymbolSeen
from services.simulator.instrument import SymbolSpec
from services.simulator.listing import listed, split_symbol
from services.simulator.market import (
    BookState,
    Market,
    MarketState,
    RawFrame,
    Sink,
    Trade,
    UnknownSymbolError,
)
from services.simulator.protocol import VenueProtocol

__all__ = ["CaptureError", "CaptureMarket"]

_BATCH_FRAMES = 64
_BATCH_SECONDS = 0.002

_PARSERS: Mapping[str, Callable[[], CaptureParser]] = {
    "okx": OkxParser,
    "deribit": lambda: deribit_item,
}
_LISTINGS: Mapping[str, Callable[[bytes], dict[str, dict[str, object]]]] = {
    "okx": okx_listing,
    "deribit": deribit_listing,
}


def _binance() -> CaptureParser:
    return binance_item


class CaptureMarket(Market):
    """Plays a capture of a venue's traffic; it begins at the first live subscription.

    `speed` is a factor on the recorded pace, or None to send as fast as clients take it; above 1
    the slowest client sets the pace, so that nothing is lost. Frames are sent unchanged, also those
    from before the capture's own REST snapshot. Until the diffs reach that snapshot REST answers
    with it, from then on with the book that follows from it. A capture without one begins with an
    empty book. Where books come whole on the stream (OKX), a client that subscribes later than
    the captured one did is sent the book as it is then.

    With `hold_at_snapshots` (by default when `speed` is None) play waits at a captured snapshot
    until a client which follows the symbol's diffs has asked for it, at most `hold_seconds`: else
    a capture played in no time would be over before a client could fetch its first book.
    """

    def __init__(
        self,
        path: Path | str,
        protocol: VenueProtocol | None = None,
        *,
        speed: float | None = 1.0,
        loop: bool = False,
        hold_at_snapshots: bool | None = None,
        hold_seconds: float = 5.0,
        history: int = 200_000,
        trades_kept: int = 100_000,
    ) -> None:
        """Read the capture once, to learn its symbols, snapshots and listing.

        `protocol` is that of the captured venue, Binance spot unless another is given. `history`
        and `trades_kept` are level changes and trades kept for each symbol.

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
        # Faster than it happened, nothing may be lost on a client that cannot follow; at the
        # recorded pace such a client is cut off, as the venue does.
        self._waits = speed is None or speed > 1
        self._history = history
        self._trades_kept = trades_kept
        exchange = "binance" if protocol is None else protocol.name
        self._listed = listed if protocol is None else protocol.listed
        self._listing = _LISTINGS.get(exchange, binance_listing)
        self._title = "Binance spot" if protocol is None else protocol.title or protocol.name
        self._reader = CaptureReader(Path(path), _PARSERS.get(exchange, _binance))
        self._seen: dict[str, SymbolSeen] = {}
        self._answers: list[CapturedInfo] = []
        self._state = MarketState.WAITING
        self._finished = asyncio.Event()
        self._frames_in_file = 0
        self._played = 0
        self._rounds = 0
        self._scan()
        self._specs = self._read_listing()
        self._symbols: dict[str, CapturedSymbol] = {}
        self._begin()

    def _scan(self) -> None:
        for item in self._reader:
            if isinstance(item, CapturedInfo):
                self._answers.append(item)
                continue
            if not item.symbol:
                self._frames_in_file += 1
                continue
            seen = self._seen.setdefault(item.symbol, SymbolSeen(item.symbol))
            if isinstance(item, CapturedSnapshot):
                seen.see_snapshot(item)
            else:
                self._frames_in_file += 1
                seen.see_frame(item)
        if not self._frames_in_file:
            raise CaptureError(
                f"{self._reader.path}: expected {self._title} frames, found none that can be "
                f"played ({self._reader.malformed} malformed lines: "
                f"{'; '.join(self._reader.complaints[:3]) or 'none'})"
            )

    def _read_listing(self) -> dict[str, SymbolSpec]:
        told: dict[str, dict[str, object]] = {}
        for answer in self._answers:
            try:
                told.update(self._listing(answer.body))
            except (msgspec.MsgspecError, ValueError, RecursionError):
                self._reader.malformed += 1
        return {
            name: seen.spec(self._like(name), told.get(name)) for name, seen in self._seen.items()
        }

    def _like(self, name: str) -> SymbolSpec:
        try:
            return self._listed(name).spec
        except ValueError:
            base, quote = split_symbol(name)
            return SymbolSpec(name, base, quote, 1, 1)

    def _begin(self) -> None:
        self._symbols = {
            name: CapturedSymbol(seen, self._history, self._trades_kept)
            for name, seen in self._seen.items()
        }

    async def run(self, sink: Sink) -> None:
        """Play once a client subscribes; return never, so that connections stay open."""
        await sink.wait_subscribed()
        self._state = MarketState.RUNNING
        await self._play(sink)
        while self.loop:
            self._rounds += 1
            self._begin()
            await self._play(sink)
        self._state = MarketState.FINISHED
        self._finished.set()
        await asyncio.Event().wait()

    async def finished(self) -> None:
        """Return once the capture was played to its end."""
        await self._finished.wait()

    async def _play(self, sink: Sink) -> None:
        clock = asyncio.get_running_loop().time
        origin = batched_at = clock()
        begun: float | None = None
        batch: list[RawFrame] = []
        for item in self._reader:
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
                origin += await self._hold_at(item, sink)
                continue
            batch.append(self._apply(item))
            if len(batch) >= _BATCH_FRAMES or clock() - batched_at > _BATCH_SECONDS:
                self._send(sink, batch)
                await (sink.wait_capacity() if self._waits else asyncio.sleep(0))
                batched_at = clock()
        self._send(sink, batch)
        if self._waits:
            await sink.wait_capacity()

    def _send(self, sink: Sink, batch: list[RawFrame]) -> None:
        if batch:
            sink.publish(batch)
            self._played += len(batch)
            batch.clear()

    def _apply(self, item: CapturedFrame) -> RawFrame:
        if item.symbol:
            self._follow(self._symbols[item.symbol], item)
        return RawFrame(item.symbol, item.stream, item.payload, item.wrapped, item.event_id)

    def _follow(self, symbol: CapturedSymbol, item: CapturedFrame) -> None:
        if item.snapshot is not None and item.stream == symbol.depth_stream:
            symbol.begin(item.snapshot)
        elif item.depth is not None and item.stream == symbol.depth_stream:
            symbol.follow(item.depth)
        if item.trade is not None:
            symbol.trades.append(
                Trade(
                    item.symbol,
                    item.trade.time_us,
                    item.trade.trade_id,
                    item.trade.price,
                    item.trade.quantity,
                    item.trade.buyer_is_maker,
                )
            )

    async def _hold_at(self, item: CapturedSnapshot, sink: Sink) -> float:
        # The seconds that play waited here.
        symbol = self._symbols[item.symbol]
        stream = symbol.depth_stream
        if not self._hold or symbol.synchronised or not stream or not sink.subscribed(stream):
            return 0.0
        clock = asyncio.get_running_loop().time
        begun = clock()
        try:
            async with asyncio.timeout(self._hold_seconds):
                await symbol.requested.wait()
        except TimeoutError:
            pass
        return clock() - begun

    @property
    def symbols(self) -> Mapping[str, SymbolSpec]:
        """The symbols seen in the capture, by name."""
        return self._specs

    @property
    def state(self) -> MarketState:
        """WAITING for a subscription, RUNNING, FINISHED."""
        return self._state

    @property
    def malformed(self) -> int:
        """Lines of the file which could not be used."""
        return self._reader.malformed

    def _symbol(self, name: str) -> CapturedSymbol:
        try:
            return self._symbols[name]
        except KeyError:
            raise UnknownSymbolError(name, self._symbols) from None

    def update_id(self, symbol: str) -> int:
        """Return the id of the book that REST answers with now."""
        return self._symbol(symbol).update_id

    def pending_id(self, symbol: str) -> int:
        """Return the first update id of the next frame, as far as ids are contiguous."""
        return self._symbol(symbol).last_sent_id + 1

    def frame_id(self, symbol: str, interval_ms: int = 100) -> int:
        """Return the id at which the newest frame played ended."""
        return self._symbol(symbol).last_sent_id

    def book(self, symbol: str, depth: int | None = None) -> BookState:
        """Return the captured snapshot, or the book that follows from it once it is reached."""
        return self._symbol(symbol).state(depth)

    def book_at(self, symbol: str, update_id: int, depth: int | None = None) -> BookState:
        """Return the exact book at the end of a captured frame, or at the snapshot."""
        return self._symbol(symbol).at(update_id, depth)

    async def true_book(
        self, symbol: str, update_id: int, depth: int | None = None, timeout_seconds: float = 10.0
    ) -> BookState:
        """As `book_at`, waiting for an id that was not played yet."""
        known = self._symbol(symbol)
        if known.streamed or update_id > known.snapshot.update_id:
            await known.book.wait_for(update_id, timeout_seconds)
        return known.at(update_id, depth)

    def stale_book(self, symbol: str, before: int | None, depth: int | None = None) -> BookState:
        """Return an older book; where the capture knows none, one with an older id put on it."""
        return self._symbol(symbol).stale(before, depth)

    def snapshot_requested(self, symbol: str) -> None:
        """Let play that waits for a client to fetch this book go on."""
        self._symbol(symbol).requested.set()

    def recent_trades(self, symbol: str, limit: int) -> list[Trade]:
        """Return the last `limit` trades sent, oldest first."""
        trades = self._symbol(symbol).trades
        return [trades[i] for i in range(max(0, len(trades) - limit), len(trades))]

    @property
    def raw(self) -> bool:
        """True: frames are sent as they were captured."""
        return True

    def stream_book(self, symbol: str) -> BookState | None:
        """Return the book after the newest frame played, None while it is not known."""
        known = self._symbol(symbol)
        return known.book.state() if known.synchronised else None

    def exchange_info(self) -> bytes | None:
        """Return the captured listing, None when the capture has none."""
        listings = (each for each in self._answers if "/exchangeInfo" in each.url)
        return next((each.body for each in listings), None)

    def captured_answer(self, path: str, query: Mapping[str, str]) -> bytes | None:
        """Return the newest captured answer to that path with that query."""
        for answer in reversed(self._answers):
            url = urlsplit(answer.url)
            if url.path == path and dict(parse_qsl(url.query)) == dict(query):
                return answer.body
        return None

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
            "repeated_frames": self._reader.repeated,
            "malformed_lines": self._reader.malformed,
            "malformed": list(self._reader.complaints),
            "symbols": {
                symbol.name: {
                    "update_id": symbol.update_id,
                    "oldest_id": symbol.book.oldest_id,
                    "synchronised": symbol.synchronised,
                    "bids": len(symbol.book.bids),
                    "asks": len(symbol.book.asks),
                    "trades": len(symbol.trades),
                    "gaps": symbol.gaps,
                }
                for symbol in self._symbols.values()
            },
        }
