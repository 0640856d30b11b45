"""A true book: the venue's side of the order book, with a bounded history that can be undone."""

import asyncio
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from services.simulator.market import BookState, UpdateIdUnavailableError

__all__ = ["TrueBook"]


class _Block(NamedTuple):
    """What a run of consecutive update ids changed, as it was before: enough to undo it."""

    first_id: int
    last_id: int
    undo: Sequence[int]
    """Flat pairs (key, old quantity); key is +price for a bid and -price for an ask."""
    atomic: bool
    """True when the ids were seen together: the book between them is not known."""
    run: int = 0
    """Which numbering of the ids it belongs to."""


class TrueBook:
    """Levels by price, and the way back to every earlier update id that is still kept.

    The market changes `bids` and `asks` in place and then tells `commit` what they held before.
    One pair in `undo` is one update id, unless the block is atomic.
    """

    __slots__ = (
        "_blocks",
        "_kept",
        "_reached",
        "_runs",
        "asks",
        "bids",
        "history",
        "symbol",
        "update_id",
    )

    def __init__(self, symbol: str, update_id: int, history: int) -> None:
        """`history`: how many level changes are kept for `at`."""
        self.symbol = symbol
        self.update_id = update_id
        self.bids: dict[int, int] = {}
        self.asks: dict[int, int] = {}
        self.history = history
        self._blocks: deque[_Block] = deque()
        self._kept = 0
        self._reached: dict[asyncio.Future[None], int] = {}
        # First and last id of each numbering, the newest last; ids may begin again lower.
        self._runs: list[tuple[int, int]] = [(update_id, update_id)]

    @property
    def oldest_id(self) -> int:
        """The oldest update id of the present numbering that `at` can answer."""
        run = len(self._runs) - 1
        if self._blocks and self._blocks[0].run == run:
            return self._blocks[0].first_id - 1
        return self._runs[run][0]

    @property
    def lowest_id(self) -> int:
        """Below every id that was used in any numbering."""
        return min(first for first, _ in self._runs)

    def renumber(self, update_id: int) -> None:
        """Let ids go on from `update_id`, which must be below all that were used; same book."""
        self._runs[-1] = (self._runs[-1][0], self.update_id)
        self._runs.append((update_id, update_id))
        self.update_id = update_id

    def reset(self, update_id: int, bids: dict[int, int], asks: dict[int, int]) -> None:
        """Begin anew from a known book; the history before it is forgotten."""
        self.bids, self.asks, self.update_id = bids, asks, update_id
        self._blocks.clear()
        self._runs = [(update_id, update_id)]
        self._kept = 0
        self._wake()

    def commit(self, undo: list[int], last_id: int, *, atomic: bool = False) -> None:
        """Record that ids up to `last_id` replaced what `undo` says (flat key, old pairs)."""
        first_id = self.update_id + 1
        packed: Sequence[int]
        try:
            packed = array("q", undo)
        except OverflowError:
            packed = tuple(undo)
        self._blocks.append(_Block(first_id, last_id, packed, atomic, len(self._runs) - 1))
        self._kept += len(packed) // 2
        while self._kept > self.history and len(self._blocks) > 1:
            self._kept -= len(self._blocks.popleft().undo) // 2
        self.update_id = last_id
        if self._reached:
            self._wake()

    def apply(
        self, last_id: int, bids: Sequence[tuple[int, int]], asks: Sequence[tuple[int, int]]
    ) -> None:
        """Apply a whole diff frame atomically; quantity 0 removes a level."""
        undo: list[int] = []
        for book, levels, sign in ((self.bids, bids, 1), (self.asks, asks, -1)):
            for price, quantity in levels:
                undo += (sign * price, book.get(price, 0))
                if quantity:
                    book[price] = quantity
                else:
                    book.pop(price, None)
        self.commit(undo, last_id, atomic=True)

    def state(self, depth: int | None = None) -> BookState:
        """Return the book now."""
        return self._state(self.update_id, self.bids, self.asks, depth)

    def at(self, update_id: int, depth: int | None = None) -> BookState:
        """Return the book right after `update_id`.

        Raises:
            UpdateIdUnavailableError: when the id lies ahead, is no longer kept or inside a frame.

        """
        run = self._run_of(update_id)
        if run == len(self._runs) - 1 and update_id == self.update_id:
            return self.state(depth)
        bids, asks = dict(self.bids), dict(self.asks)
        for block in reversed(self._blocks):
            if block.run < run or (block.run == run and block.last_id <= update_id):
                break
            keep = 0
            if block.run == run and block.first_id <= update_id:
                if block.atomic:
                    raise UpdateIdUnavailableError(
                        self.symbol,
                        update_id,
                        f"inside the frame {block.first_id}..{block.last_id}, whose end is known",
                    )
                keep = 2 * (update_id - block.first_id + 1)
            undo = block.undo
            for i in range(len(undo) - 2, keep - 1, -2):
                key, old = undo[i], undo[i + 1]
                book, price = (bids, key) if key > 0 else (asks, -key)
                if old:
                    book[price] = old
                else:
                    book.pop(price, None)
        return self._state(update_id, bids, asks, depth)

    def _run_of(self, update_id: int) -> int:
        last = len(self._runs) - 1
        for run in range(last, -1, -1):
            first, end = self._runs[run]
            end = self.update_id if run == last else end
            if first <= update_id <= end:
                oldest = self._oldest(run)
                if update_id < oldest:
                    raise UpdateIdUnavailableError(
                        self.symbol, update_id, f"no longer kept, the oldest kept is {oldest}"
                    )
                return run
        if update_id < self._runs[last][0]:
            oldest = self.oldest_id
            raise UpdateIdUnavailableError(
                self.symbol, update_id, f"no longer kept, the oldest kept is {oldest}"
            )
        raise UpdateIdUnavailableError(
            self.symbol, update_id, f"not reached yet, the book is at {self.update_id}"
        )

    def _oldest(self, run: int) -> int:
        end = self.update_id if run == len(self._runs) - 1 else self._runs[run][1]
        for block in self._blocks:
            if block.run == run:
                return block.first_id - 1
            if block.run > run:
                # Undoing all of the next numbering leads back to the end of this one.
                whole = block.run == run + 1 and block.first_id - 1 == self._runs[block.run][0]
                return end if whole else end + 1
        return end

    def known_before(self, update_id: int) -> int:
        """Return the newest known id below `update_id`, or the oldest kept when there is none."""
        if update_id > self.update_id:
            return self.update_id
        blocks = [block for block in self._blocks if block.run == len(self._runs) - 1]
        ends = [block.last_id for block in blocks]
        index = bisect_right(ends, update_id - 1)
        if index < len(ends):
            block = blocks[index]
            if not block.atomic and block.first_id < update_id:
                return update_id - 1
        return ends[index - 1] if index else self.oldest_id

    async def wait_for(self, update_id: int, timeout_seconds: float) -> None:
        """Return once the book is at `update_id` or beyond.

        Raises:
            UpdateIdUnavailableError: if that takes longer than `timeout_seconds`.

        """
        if any(first <= update_id <= last for first, last in self._runs[:-1]):
            return
        if self.update_id >= update_id:
            return
        reached = asyncio.get_running_loop().create_future()
        self._reached[reached] = update_id
        try:
            async with asyncio.timeout(timeout_seconds):
                await reached
        except TimeoutError:
            raise UpdateIdUnavailableError(
                self.symbol,
                update_id,
                f"not reached within {timeout_seconds:g} s, the book is at {self.update_id}",
            ) from None
        finally:
            self._reached.pop(reached, None)

    def _wake(self) -> None:
        for reached, update_id in list(self._reached.items()):
            if self.update_id >= update_id and not reached.done():
                reached.set_result(None)

    def _state(
        self, update_id: int, bids: dict[int, int], asks: dict[int, int], depth: int | None
    ) -> BookState:
        return BookState(
            self.symbol,
            update_id,
            tuple(sorted(bids.items(), reverse=True)[:depth]),
            tuple(sorted(asks.items())[:depth]),
        )
