"""Puts leases into effect: which instruments this collector has, and what it may let out."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from marketprism.collector.v1 import collector_service_pb2 as pb

from services.collector.leases import LeaseChange, LeaseManager, LeaseSettings
from services.collector.venue import Venue
from services.shared.log import get_logger
from services.shared.publisher import Publisher

__all__ = ["Sharing"]

_SETTLE_SECONDS = 1.0


class Sharing:
    """The part of one collector in a group of them.

    `venues` is the list of the service, filled after this was made. `publisher` is set before
    `run`. `spawn(coroutine, name)` starts a task that the service owns.
    """

    def __init__(
        self,
        nats_url: str | Sequence[str],
        collector_id: str,
        exchanges: Sequence[str],
        settings: LeaseSettings,
        venues: list[Venue],
        spawn: Callable[[Coroutine[Any, Any, Any], str], asyncio.Task[Any]],
    ) -> None:
        self.publisher: Publisher | None = None
        self.manager = LeaseManager(
            nats_url,
            collector_id,
            dict.fromkeys(exchanges, settings.slots),
            settings,
            self._on_change,
            self._on_suspended,
        )
        self._slots = settings.slots
        self._venues = venues
        self._spawn = spawn
        self._leaving = False
        self._left = False
        self._handed: list[LeaseChange] = []
        self._log = get_logger()

    def shares(self, exchange: str, symbol: str) -> bool:
        """Tell whether this collector collects an instrument, or tells of an index."""
        manager = self.manager
        return manager.slot_of(exchange, symbol) in manager.assigned(exchange)

    def may_publish(self) -> bool:
        """Tell whether anything may be let out at this instant."""
        return self._left or self.manager.is_confirmed

    def message(self) -> pb.LeaseStatus:
        """Build what the status tells of it."""
        status = self.manager.status()
        message = pb.LeaseStatus(
            members=status.members,
            held=status.held,
            total=status.total,
            taken_over=status.taken_over,
        )
        if status.renew_time:
            message.renew_time.FromNanoseconds(status.renew_time)
        return message

    async def leave(self) -> None:
        """Hand everything over, for the end of this collector."""
        self._leaving = True
        stopping = asyncio.ensure_future(self.manager.stop())
        # Its first step tells what is to be handed over.
        await asyncio.sleep(0)
        if self._handed:
            await self._settle(self._handed)
        for change in self._handed:
            self.manager.release_done(change.exchange, change.handed_over)
        await stopping
        # No instrument is left of which anything could be told.
        self._left = True

    # Inside

    def _on_change(self, change: LeaseChange) -> None:
        venue = next((each for each in self._venues if each.exchange == change.exchange), None)
        if venue is None:
            return
        venue.note_shares(self._slots, change.assigned, time.time_ns())
        if change.lost:
            self._give_up(venue, change)
        if self._leaving:
            # The owner of the instruments has ended already.
            slot_of = self.manager.slot_of
            venue.roster.give_up(
                lambda symbol: slot_of(change.exchange, symbol) in change.handed_over, told=True
            )
            self._handed.append(change)
            return
        self._spawn(self._follow(venue, change), f"{change.exchange}: leases")

    def _give_up(self, venue: Venue, change: LeaseChange) -> None:
        """Nothing of these may be let out, also not what waits for the broker."""
        slot_of = self.manager.slot_of
        venue.roster.give_up(lambda symbol: slot_of(change.exchange, symbol) in change.lost)
        self._log.warning(
            "leases lost: others have these instruments",
            exchange=change.exchange,
            slots=len(change.lost),
            unsent=self._discard(change.exchange, change.lost),
        )

    async def _follow(self, venue: Venue, change: LeaseChange) -> None:
        await venue.roster.share()
        if not change.handed_over:
            return
        await self._settle([change])
        self.manager.release_done(change.exchange, change.handed_over)

    async def _settle(self, changes: Sequence[LeaseChange]) -> None:
        """See that what was told of these is stored before another one goes on, or never will."""
        if self.publisher is None or await self.publisher.settle(_SETTLE_SECONDS):
            return
        for change in changes:
            count = self._discard(change.exchange, change.handed_over)
            self._log.warning(
                "the broker is too slow: what it has not stored is given up with the leases",
                exchange=change.exchange,
                unsent=count,
            )

    def _discard(self, exchange: str, slots: frozenset[int]) -> int:
        """Let go of what is not stored of the instruments of these slots; give the count.

        The ledger is this collector's own, and goes on.
        """
        if self.publisher is None:
            return 0
        slot_of = self.manager.slot_of

        def concerns(subject: str) -> bool:
            _, kind, *name = subject.split(".", 3)
            return (
                kind != "integrity"
                and name[:1] == [exchange]
                and len(name) == 2
                and slot_of(exchange, name[1]) in slots
            )

        return self.publisher.discard(concerns)

    def _on_suspended(self, suspended: bool) -> None:
        if not suspended and self.publisher is not None:
            self.publisher.resume()
