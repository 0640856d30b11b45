"""What a case sees and does while it runs: faults, the place of the venue, what was told since."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any

from conformance.followed import Said
from conformance.follower import Entry, until
from conformance.rig import Rig
from services.simulator.venues import VENUES as SIMULATED

__all__ = ["Missed", "Scene"]


class Missed(Exception):  # noqa: N818 - a finding, not a failure of the suite
    """Something that a case waited for did not happen; the text says what."""


@dataclass
class Scene:
    """One run of one case on one instrument."""

    rig: Rig
    symbol: str
    """Canonical symbol of the instrument that faults are aimed at."""
    began: float = 0.0
    """When the case began, by the monotonic clock."""
    struck_at: float = 0.0
    """When the fault happened; 0 before."""
    positions: dict[str, int] = field(default_factory=dict)
    """By symbol, where the venue's book stood when the fault happened."""
    resets: dict[str, int] = field(default_factory=dict)
    """By symbol whose ids began again, where they ended before."""
    trade_at: int = 0
    """The venue's newest trade of the instrument when the fault happened."""
    seen: list[str] = field(default_factory=list)
    """What a case waited for by itself and found, for the report."""
    took: float | None = None
    """Seconds until it was as it should be, where a case measures that by itself."""
    _entries: int = 0
    _said: dict[str, int] = field(default_factory=dict)
    _epochs: dict[str, int] = field(default_factory=dict)

    @property
    def native(self) -> str:
        """The venue's name of the instrument."""
        return self.rig.natives[self.symbol]

    def begin(self) -> None:
        """Note where everything stands before the fault."""
        self.began = time.monotonic()
        follower = self.rig.follower
        self._entries = len(follower.entries)
        for symbol in self.rig.natives:
            book = follower.books[symbol]
            self._said[symbol] = len(book.said)
            self._epochs[symbol] = len(book.epochs)

    # Doing

    async def fault(self, kind: str, *, stream: str = "", **options: Any) -> int:
        """Put a fault in force; `stream` names a kind (`book`, `trade`, ...) of the instrument."""
        if stream:
            options = {"stream": self.rig.facts.stream(stream), "symbol": self.native, **options}
        return await self.rig.venue.fault(kind, **options)

    async def happened(self, fault: int, times: int = 1, seconds: float = 30.0) -> None:
        """Wait until a fault happened so often, and note the moment."""
        deadline = time.monotonic() + seconds
        while await self.rig.venue.hits(fault) < times:
            if time.monotonic() > deadline:
                raise Missed(f"within {seconds:g} s the fault did not happen {times} times")
            await asyncio.sleep(0.02)
        await self.struck()

    async def struck(self) -> None:
        """Note that the fault happens now, and where the venue stands."""
        self.struck_at = time.monotonic()
        venue = self.rig.venue
        self.trade_at = max(await venue.trades(self.native), default=0)
        for symbol, native in self.rig.natives.items():
            self.positions[symbol] = await venue.position(native)

    async def cut(self) -> None:
        """End every connection."""
        await self.rig.venue.fault("cut", count=None)

    def unused_symbol(self, listed: set[str], used: set[str]) -> str:
        """Give the venue's name of an instrument that it has not listed yet."""
        have = [*sorted(listed), *sorted(used)]
        names = SIMULATED[self.rig.facts.name]().more_symbols(len(have) + 4, have)
        return next(name for name in names if name not in listed and name not in used)

    # Seeing

    def entries(self, symbol: str | None = None) -> list[Entry]:
        """Give what the ledger told since the begin, of one symbol and of the whole venue."""
        wanted = ("", self.symbol if symbol is None else symbol)
        return [e for e in self.rig.follower.entries[self._entries :] if e.event.symbol in wanted]

    def said(self, symbol: str | None = None) -> list[Said]:
        """Give the statuses of a book since the begin."""
        name = self.symbol if symbol is None else symbol
        return self.rig.follower.books[name].said[self._said.get(name, 0) :]

    def new_epochs(self, symbol: str) -> int:
        """Count the epochs of a book that began since the begin."""
        return len(self.rig.follower.books[symbol].epochs) - self._epochs.get(symbol, 0)

    def words(self) -> dict[str, float]:
        """Give everything told of the instrument since the begin, and when it was first told.

        Words are `GAP`, `GAP:VENUE_SEQUENCE` and `GAP@TRADE` of the ledger, `RESYNCING` and
        `RESYNCING:VENUE_GAP` of the book's statuses.
        """
        found: dict[str, float] = {}
        for entry in self.entries():
            for word in (
                entry.kind,
                f"{entry.kind}:{entry.cause}",
                f"{entry.kind}@{entry.event_kind}",
            ):
                found.setdefault(word, entry.at)
        for each in self.said():
            for word in (each.state, f"{each.state}:{each.reason}"):
                found.setdefault(word, each.at)
        return found

    def is_beyond(self, symbol: str) -> bool:
        """Tell whether a book is in step beyond the place where the fault happened."""
        book = self.rig.follower.books[symbol]
        return book.in_step and self._is_beyond(symbol, book.venue_sequence)

    def _is_beyond(self, symbol: str, sequence: int) -> bool:
        position = self.positions.get(symbol, 0)
        end = self.resets.get(symbol)
        return sequence > position if end is None else position < sequence < end

    def recovered_at(self, symbol: str) -> float | None:
        """Give when the book was in step again beyond the fault; None while it is not."""
        if not self.is_beyond(symbol):
            return None
        book = self.rig.follower.books[symbol]
        first = next(
            (at for at, sequence in book.reached
             if at >= self.struck_at and self._is_beyond(symbol, sequence)),
            None,
        )  # fmt: skip
        synced = book.said[-1].at if book.said else 0.0
        return None if first is None else max(first, min(synced, time.monotonic()))

    async def wait(self, word: str, seconds: float = 30.0) -> None:
        """Wait until one of the words (`A|B`) is told."""
        wanted = word.split("|")
        if not await until(lambda: self.words().keys() & set(wanted), seconds):
            raise Missed(f"within {seconds:g} s {word} was not told")
