"""The connections to one venue: subscriptions shared out among them, renewed before they are ended.

A shard is a set of subscriptions of one route, no more than a connection may have. It is served by
one connection, or by two all the time where `redundancy` is 2. A connection that nears the age at
which the venue ends it, or of which the venue says that it will, is replaced without a gap: its
successor subscribes to everything first, and only when the books go on from it is the old one let
go.
"""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Protocol

import structlog

from services.collector.connection import ConnectionHandler, VenueConnectionTask
from services.collector.pacing import RateGate
from services.collector.settings import ExchangeSettings
from services.collector.venues.base import Subscription, VenueAdapter

__all__ = ["ConnectionPool", "PoolHandler"]

_TURN_SECONDS = 0.5


class PoolHandler(ConnectionHandler, Protocol):
    """Who is told what happens on the connections of a pool."""

    def is_aligned(self, connection: VenueConnectionTask) -> bool:
        """Tell whether every book goes on from this connection as well as from the other one."""

    def on_rolled_over(
        self, old: VenueConnectionTask, new: VenueConnectionTask, reason: str, now: int
    ) -> None:
        """Note that `old` is let go; `new` has carried the same subscriptions for a while."""


class _Lane:
    """One connection of a shard and the task that keeps it."""

    def __init__(self, connection: VenueConnectionTask, task: asyncio.Task[Any]) -> None:
        self.connection = connection
        self.task = task
        self.successor: _Lane | None = None
        self.reason = ""
        self.deadline = 0.0
        # Spread, so that connections opened together are not replaced together.
        self.spread = random.uniform(0.9, 1.0)  # noqa: S311 - jitter, not a secret


class _Shard:
    def __init__(self, name: str, route: str) -> None:
        self.name = name
        self.route = route
        self.subscriptions: dict[str, Subscription] = {}
        self.lanes: list[_Lane] = []
        self.numbers = 0

    def connections(self) -> list[VenueConnectionTask]:
        found = []
        for lane in self.lanes:
            found.append(lane.connection)
            if lane.successor is not None:
                found.append(lane.successor.connection)
        return found


class ConnectionPool:
    """Keeps the connections of a venue. `spawn(coroutine, name)` starts a task of the service.

    `run` is the owner: it lets connections come and go until it is cancelled. Counter:
    `rollovers`.
    """

    def __init__(
        self,
        exchange: str,
        adapter: VenueAdapter,
        settings: ExchangeSettings,
        handler: PoolHandler,
        spawn: Callable[[Coroutine[Any, Any, Any], str], asyncio.Task[Any]],
    ) -> None:
        self.rollovers = 0
        self._exchange = exchange
        self._adapter = adapter
        self._settings = settings
        self._handler = handler
        self._spawn = spawn
        rules = adapter.connection_rules
        self._connects = RateGate(rules.connects, rules.connect_seconds)
        self._capacity = min(settings.topics_per_connection or rules.topics, rules.topics)
        self._life = settings.rollover_seconds or 0.98 * rules.life_seconds
        self._shards: list[_Shard] = []
        self._shard_of: dict[str, _Shard] = {}
        self._numbers = 0
        self._log = structlog.get_logger(exchange=exchange)

    # Subscriptions

    @property
    def connections(self) -> list[VenueConnectionTask]:
        """All connections, successors included."""
        return [each for shard in self._shards for each in shard.connections()]

    def connections_of(self, topic: str) -> list[VenueConnectionTask]:
        """Give the connections that carry a subscription."""
        shard = self._shard_of.get(topic)
        return shard.connections() if shard is not None else []

    def add(self, subscriptions: Iterable[Subscription]) -> None:
        """Subscribe to these too; one that there is already is left alone."""
        by_shard: dict[_Shard, list[Subscription]] = {}
        for each in subscriptions:
            if each.topic in self._shard_of:
                continue
            shard = self._room(each.route)
            shard.subscriptions[each.topic] = each
            self._shard_of[each.topic] = shard
            by_shard.setdefault(shard, []).append(each)
        for shard, added in by_shard.items():
            for connection in shard.connections():
                connection.add(added)
            while len(shard.lanes) < self._settings.redundancy:
                shard.lanes.append(self._open(shard))

    def remove(self, topics: Iterable[str]) -> None:
        """End these subscriptions."""
        by_shard: dict[_Shard, list[str]] = {}
        for topic in topics:
            shard = self._shard_of.pop(topic, None)
            if shard is not None:
                del shard.subscriptions[topic]
                by_shard.setdefault(shard, []).append(topic)
        for shard, removed in by_shard.items():
            for connection in shard.connections():
                connection.remove(removed)

    def renew(self, topic: str) -> bool:
        """Begin a subscription anew on a connection where it stands; False when there is none."""
        return any(connection.renew(topic) for connection in self.connections_of(topic))

    def roll_over(self, connection: VenueConnectionTask, reason: str) -> None:
        """Replace a connection by a new one without a gap."""
        for shard in self._shards:
            for lane in shard.lanes:
                if lane.connection is connection and lane.successor is None:
                    self._log.info(
                        "connection is replaced",
                        connection=connection.connection_id,
                        reason=reason,
                    )
                    lane.successor = self._open(shard)
                    lane.reason = reason
                    lane.deadline = time.monotonic() + self._settings.overlap_seconds

    def rollover_time(self, connection: VenueConnectionTask) -> int:
        """When a connection will be replaced, nanoseconds since 1970; 0 when it will not."""
        for shard in self._shards:
            for lane in shard.lanes:
                if lane.connection is connection and self._life and connection.open_time:
                    return connection.open_time + int(self._life * lane.spread * 1e9)
        return 0

    # Life

    async def run(self) -> None:
        """Let connections come and go."""
        try:
            while True:
                await asyncio.sleep(_TURN_SECONDS)
                for shard in list(self._shards):
                    await self._look_after(shard)
        finally:
            await self._end([lane for shard in self._shards for lane in shard.lanes])

    # Inside

    def _room(self, route: str) -> _Shard:
        for shard in self._shards:
            if shard.route == route and len(shard.subscriptions) < self._capacity:
                return shard
        self._numbers += 1
        name = "-".join(part for part in (self._exchange, route, str(self._numbers)) if part)
        shard = _Shard(name, route)
        self._shards.append(shard)
        return shard

    def _open(self, shard: _Shard) -> _Lane:
        shard.numbers += 1
        name = shard.name if shard.numbers == 1 else f"{shard.name}.{shard.numbers}"
        connection = VenueConnectionTask(
            name,
            self._adapter,
            self._settings,
            self._handler,
            route=shard.route,
            connects=self._connects,
        )
        connection.add(shard.subscriptions.values())
        return _Lane(connection, self._spawn(connection.run(), name))

    async def _look_after(self, shard: _Shard) -> None:
        if not shard.subscriptions:
            self._shards.remove(shard)
            await self._end(shard.lanes)
            return
        now = time.monotonic()
        replaced = any(lane.successor is not None for lane in shard.lanes)
        for index, lane in enumerate(shard.lanes):
            old, successor = lane.connection, lane.successor
            if successor is None:
                # One at a time, so that two connections of a shard are never both new.
                if not replaced and self._life and old.age > self._life * lane.spread:
                    self.roll_over(old, f"it is {old.age:.0f} s old")
                    replaced = True
                continue
            new = successor.connection
            ready = _carries_all(shard, old, new) and self._handler.is_aligned(new)
            if ready or (new.is_open and new.settled and now > lane.deadline) or not old.is_open:
                if not new.is_open:
                    continue
                shard.lanes[index] = successor
                self.rollovers += 1
                self._handler.on_rolled_over(old, new, lane.reason, time.time_ns())
                await self._end([lane], successors=False)

    async def _end(self, lanes: Sequence[_Lane], *, successors: bool = True) -> None:
        tasks = []
        for lane in lanes:
            tasks.append(lane.task)
            if successors and lane.successor is not None:
                tasks.append(lane.successor.task)
        for task in tasks:
            task.cancel()
        if tasks:
            # Unlike awaiting each, this ends when it is cancelled itself. How they ended is for
            # their owner to look at.
            await asyncio.wait(tasks)


def _carries_all(shard: _Shard, old: VenueConnectionTask, new: VenueConnectionTask) -> bool:
    """Tell whether the venue sends on the new connection whatever it sends on the old one."""
    return new.settled and all(
        new.is_active(topic) for topic in shard.subscriptions if old.is_active(topic)
    )
