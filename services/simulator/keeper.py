"""Keeps one connection to the venue's rules, and ends it when it is due."""

import asyncio
import contextlib
import math
import time
from typing import TYPE_CHECKING

from aiohttp import web

from services.simulator.connection import Connection

if TYPE_CHECKING:
    from services.simulator.server import SimulatedVenue

__all__ = ["Keeper"]


class Keeper:
    """Pings, pongs, silence, the protocol's own heartbeats, life, and the end of one connection."""

    def __init__(
        self, venue: "SimulatedVenue", connection: Connection, socket: web.WebSocketResponse
    ) -> None:
        self._venue = venue
        self._connection = connection
        self._socket = socket
        settings = venue.settings
        begun = time.monotonic()
        self._ends = begun + settings.connection_life_seconds
        self._notice = self._ends - settings.shutdown_notice_seconds
        self._ping = begun + (settings.ping_interval_seconds or math.inf)
        self._pinged: float | None = None
        self._protocol_due = begun

    async def run(self) -> None:
        """Return when the connection has been closed by the venue."""
        connection = self._connection
        while not connection.closing.done():
            await self._act(time.monotonic())
            if connection.closing.done():
                break
            await self._wait(self._due())
        closing = connection.closing.result()
        await self._socket.close(code=closing.code, message=closing.reason.encode())

    async def _act(self, now: float) -> None:
        settings, connection = self._venue.settings, self._connection
        if self._pinged is not None and connection.ponged_at >= self._pinged:
            self._pinged = None
        if self._pinged is not None and now >= self._pinged + settings.pong_timeout_seconds:
            connection.close(1008, "Pong timeout")
        elif now >= self._silent_at():
            connection.close(*self._venue.protocol.silence_close)
        elif now >= self._ends:
            connection.close(1001, "24 hours are over")
        elif now >= self._notice:
            self._notice = math.inf
            self._venue.announce(connection, self._venue.protocol.shutdown_event)
        elif now >= self._ping:
            self._ping = now + (settings.ping_interval_seconds or math.inf)
            self._pinged = now if self._pinged is None else self._pinged
            with contextlib.suppress(ConnectionError):
                await self._socket.ping(str(time.time_ns() // 1_000_000).encode())
        if now >= self._protocol_due or connection.due.is_set():
            connection.due.clear()
            self._protocol_due = self._venue.protocol.keep(self._venue, connection, now)

    def _silent_at(self) -> float:
        silence = self._venue.settings.client_silence_seconds
        return math.inf if silence is None else self._connection.heard_at + silence

    def _due(self) -> float:
        due = min(self._ping, self._notice, self._ends, self._silent_at(), self._protocol_due)
        if self._pinged is not None:
            due = min(due, self._pinged + self._venue.settings.pong_timeout_seconds)
        return due

    async def _wait(self, due: float) -> None:
        woken = asyncio.ensure_future(self._connection.due.wait())
        try:
            timeout = max(0.0, due - time.monotonic())
            await asyncio.wait(
                (self._connection.closing, woken),
                timeout=timeout,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            woken.cancel()
