"""A cache of finished answers: one computation for equal calls, scopes to make old ones void."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from services.shared.cache.store import Store
from services.shared.health import DependencyStatus
from services.shared.telemetry import Metrics

__all__ = ["EVERYTHING", "Cache", "Computed"]

EVERYTHING: Final = "*"
"""The scope of every value of a cache."""

_TOKEN_BYTES = 8
_TOKEN_SECONDS = 7 * 86400.0
# Scopes that could not be made void because Redis was away.
_MAX_OVERDUE = 10_000


@dataclass(frozen=True, slots=True)
class Computed:
    """A value, and how long it stays right."""

    value: bytes
    """The value."""

    seconds: float
    """How long it may be given to others, seconds; 0 for not at all, at most seven days."""


@dataclass(slots=True)
class _Flight:
    """One computation, and how many wait for it."""

    task: asyncio.Task[bytes]
    scopes: Sequence[str]
    waiting: int = 0


class Cache:
    """Keeps values by key, in any store.

    A scope is a name for what values are about, such as an instrument. `void` makes every value of
    a scope void at once, in all processes that share the store: each value carries its scope's
    present token, and `void` changes the token. A value whose computation began before is void too.

    Every key and every scope is below the cache's name and version.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        version: str,
        *,
        metrics: Metrics,
        max_entry_bytes: int = 4 * 1024 * 1024,
    ) -> None:
        self._store = store
        self._prefix = f"marketprism:{name}:{version}"
        self._max_entry_bytes = max_entry_bytes
        self._flights: dict[str, _Flight] = {}
        self._overdue: set[str] = set()
        self._hits = self._misses = 0
        labels = ("cache", "store")
        where = (name, store.kind)
        self._count_hit = metrics.counter("cache_hits", "Answers that were kept.", labels).labels(
            *where
        )
        self._count_miss = metrics.counter(
            "cache_misses", "Answers that had to be made.", labels
        ).labels(*where)
        self._count_shared = metrics.counter(
            "cache_shared", "Calls that got the answer of an equal one in progress.", labels
        ).labels(*where)
        self._count_void = metrics.counter(
            "cache_voided", "Scopes whose answers were made void.", labels
        ).labels(*where)
        for metric, text, read in (
            ("cache_hit_ratio", "Hits of all lookups since the start.", self.hit_ratio),
            ("cache_bytes", "Bytes kept in this process.", store.bytes_kept),
            ("cache_entries", "Answers kept in this process.", store.entries_kept),
            ("cache_evictions", "Answers pushed out to keep the bound.", lambda: store.evictions),
            ("cache_errors", "Reads and writes that the store failed.", lambda: store.errors),
        ):
            metrics.gauge(metric, text, labels).labels(*where).set_function(read)

    def hit_ratio(self) -> float:
        """Give hits by lookups since the start, 0 before the first."""
        lookups = self._hits + self._misses
        return self._hits / lookups if lookups else 0.0

    def status(self) -> DependencyStatus:
        """Tell the state of the store, degraded when it is away."""
        return self._store.status()

    async def get_or_compute(
        self,
        key: str,
        compute: Callable[[], Awaitable[Computed]],
        *,
        scopes: Sequence[str] = (),
    ) -> bytes:
        """Give the value of `key`, made by `compute` when none is kept.

        Equal calls at one time share one computation, and what it raises. It is cancelled when all
        of them have gone.
        """
        flight = self._flights.get(key)
        if flight is None:
            task = asyncio.create_task(self._fly(key, compute, tuple(scopes)), name="cache: miss")
            flight = self._flights[key] = _Flight(task, scopes)
            task.add_done_callback(lambda _: self._land(key, flight))
        else:
            self._count_shared.inc()
        flight.waiting += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiting -= 1
            if flight.waiting == 0 and not flight.task.done():
                self._land(key, flight)
                flight.task.cancel()

    async def void(self, scope: str) -> None:
        """Make every value of a scope void; call it once the change can be read.

        While Redis is away this is made up for before anything is read from it again.
        """
        self._count_void.inc()
        for key, flight in list(self._flights.items()):
            # Whoever asks from now on gets the change; those who wait already asked before it.
            if scope in flight.scopes or scope == EVERYTHING:
                self._land(key, flight)
        await self._settle_overdue()
        if not await self._write_token(scope):
            self._overdue.add(scope if len(self._overdue) < _MAX_OVERDUE else EVERYTHING)

    async def _fly(
        self, key: str, compute: Callable[[], Awaitable[Computed]], scopes: tuple[str, ...]
    ) -> bytes:
        place = f"{self._prefix}:value:{key}"
        await self._settle_overdue()
        scopes = (EVERYTHING, *scopes)
        kept, *found = await self._store.read([place, *map(self._token_key, scopes)])
        tokens = await self._with_new(scopes, found)
        if kept is not None and tokens is not None and kept.startswith(tokens):
            self._hits += 1
            self._count_hit.inc()
            return kept[len(tokens) :]
        self._misses += 1
        self._count_miss.inc()
        computed = await compute()
        fits = len(computed.value) <= self._max_entry_bytes
        if fits and tokens is not None and computed.seconds > 0:
            seconds = min(computed.seconds, _TOKEN_SECONDS)
            await self._store.write(place, tokens + computed.value, seconds)
        return computed.value

    async def _with_new(
        self, scopes: Sequence[str], tokens: Sequence[bytes | None]
    ) -> bytes | None:
        """Give the tokens of scopes in one piece, making what is missing; None when that fails.

        Without a token nothing is kept: a scope whose token was lost must not look as it did before
        its first change.
        """
        if None in tokens:
            for scope, token in zip(scopes, tokens, strict=True):
                if token is None:
                    await self._store.write(
                        self._token_key(scope),
                        os.urandom(_TOKEN_BYTES),
                        _TOKEN_SECONDS * 2,
                        only_if_absent=True,
                    )
            tokens = await self._store.read([self._token_key(scope) for scope in scopes])
        whole = [token for token in tokens if token is not None]
        return b"".join(whole) if len(whole) == len(tokens) else None

    async def _settle_overdue(self) -> None:
        while self._overdue:
            scope = next(iter(self._overdue))
            if not await self._write_token(scope):
                return
            self._overdue.discard(scope)

    async def _write_token(self, scope: str) -> bool:
        token = os.urandom(_TOKEN_BYTES)
        return await self._store.write(self._token_key(scope), token, _TOKEN_SECONDS * 2)

    def _token_key(self, scope: str) -> str:
        return f"{self._prefix}:scope:{scope}"

    def _land(self, key: str, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
        if flight.task.done() and not flight.task.cancelled():
            flight.task.exception()  # told to those who waited, if any were left
