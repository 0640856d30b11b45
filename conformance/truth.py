"""Holds books against the venue's true ones at the very ids that they name."""

import asyncio
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from conformance.followed import Moment
from conformance.simulated import SimulatedVenueClient

__all__ = ["Comparer", "difference"]

_MOST_WAITING = 400
_WAIT_SECONDS = 5.0


class Comparer:
    """Compares in the background, in the order in which books were handed in.

    `natives` has the venue's names by canonical symbol. `compared` counts, `wrong` tells what was
    not the venue's book, `untold` counts what the venue could not answer for (its history is
    bounded), `skipped` what was not compared because too much waited.
    """

    def __init__(self, venue: SimulatedVenueClient, natives: Mapping[str, str]) -> None:
        self.compared = 0
        self.untold = 0
        self.skipped = 0
        self.wrong: list[str] = []
        self._venue = venue
        self._natives = natives
        self._sizes: dict[str, Decimal] = {}
        """By the venue's name, what a unit of its quantities stands for."""
        self._waiting: asyncio.Queue[Moment] = asyncio.Queue(_MOST_WAITING)

    def hand_in(self, moment: Moment) -> None:
        """Have a book compared."""
        try:
            self._waiting.put_nowait(moment)
        except asyncio.QueueFull:
            self.skipped += 1

    def take_wrong(self) -> list[str]:
        """Give the books that were wrong since the last time."""
        wrong, self.wrong = self.wrong, []
        return wrong

    async def settle(self) -> None:
        """Wait until everything handed in is compared."""
        await self._waiting.join()

    async def run(self) -> None:
        """Compare until cancelled."""
        while True:
            moment = await self._waiting.get()
            try:
                await self._compare(moment)
            finally:
                self._waiting.task_done()

    async def _compare(self, moment: Moment) -> None:
        native = self._natives.get(moment.symbol)
        if native is None:
            # The collector was not asked yet what it calls its instruments.
            self.untold += 1
            return
        size = await self._size(native)
        truth = await self._venue.book(native, moment.venue_sequence, wait=_WAIT_SECONDS)
        if truth is None or size is None:
            self.untold += 1
            return
        self.compared += 1
        if told := difference(moment, truth, size):
            self.wrong.append(
                f"{moment.symbol} {moment.epoch}.{moment.sequence} at the venue's "
                f"{moment.venue_sequence}: {told}"
            )

    async def _size(self, native: str) -> Decimal | None:
        if native not in self._sizes:
            listed = (await self._venue.instruments()).get(native)
            if listed is None:
                return None
            self._sizes[native] = Decimal(listed["contract_size"]) * Decimal(listed["multiplier"])
        return self._sizes[native]


def difference(moment: Moment, truth: Mapping[str, Any], size: Decimal) -> str:
    """Tell in which levels a book differs from the truth within its horizon; empty when in none.

    `size` is what one of the venue's contracts stands for in the unit of the book.
    """
    told = []
    for side, mine, horizon, sign in (
        ("bids", moment.bids, moment.bid_horizon, 1),
        ("asks", moment.asks, moment.ask_horizon, -1),
    ):
        theirs = _converted(truth[side], size)
        if horizon:
            edge = sign * Decimal(horizon)
            theirs = {p: q for p, q in theirs.items() if sign * Decimal(p) >= edge}
            mine = {p: q for p, q in mine.items() if sign * Decimal(p) >= edge}
        if mine != theirs:
            levels = sorted(set(mine.items()) ^ set(theirs.items()))
            told.append(f"{len(levels)} {side} differ, such as {levels[:3]}")
    return "; ".join(told)


def _converted(levels: list[list[str]], size: Decimal) -> dict[str, str]:
    if size == 1:
        return dict(levels)
    return {price: _plain(Decimal(quantity) * size) for price, quantity in levels}


def _plain(number: Decimal) -> str:
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
