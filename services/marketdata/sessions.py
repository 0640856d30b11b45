"""One stream's subscriptions: which instruments they mean, now and as more appear."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from services.marketdata.catalog import Key
from services.marketdata.outgoing import Outgoing
from services.marketdata.settings import StreamSettings, SubscriptionLimits
from services.marketdata.sources import BookSource, KindSource, LiveSources, Source
from services.marketdata.subscriptions import ORDER_BOOK, Subscription
from services.marketdata.tally import Tally
from services.shared.errors import (
    AlreadyExists,
    FailedPrecondition,
    MarketPrismError,
    NotFound,
    ResourceExhausted,
)

__all__ = ["Session", "Sessions"]

_AT_ONCE: Final = 512  # sources made, between two looks at the event loop
_SUGGESTED: Final = 8  # unknown instruments of a subscription, for which a name is looked for


class Session(Outgoing):
    """The subscriptions of one stream, and what comes of them.

    A wildcard means every instrument that something of the kind ever came of, also when that is
    later; an instrument named in full is waited for. What several subscriptions mean is sent once.
    """

    def __init__(
        self,
        live: LiveSources,
        limits: SubscriptionLimits,
        settings: StreamSettings,
        tally: Tally,
        *,
        heartbeat: float,
        clock: Callable[[], int] = time.time_ns,
        troubles: Mapping[str, tuple[str, str]] = MappingProxyType({}),
    ) -> None:
        super().__init__(settings, tally, heartbeat=heartbeat, clock=clock)
        self._live = live
        self._limits = limits
        # Each as the tuple that the sources of it alone share.
        self._subscriptions: dict[str, tuple[Subscription]] = {}
        self._sources: dict[tuple[int, Key], Source] = {}
        self._resolving: tuple[Subscription, dict[tuple[int, Key], None]] | None = None
        self._complaints: set[tuple[str, str]] = set()
        # What interrupts at present, and which venues it is told of.
        self._troubles = troubles
        self._exchanges: set[str] = set()
        self._tell_trouble("")

    @property
    def sources(self) -> int:
        """Pairs of instrument and kind that it gets events of."""
        return len(self._sources)

    async def add(self, subscription: Subscription, *, all_known: bool = False) -> None:
        """Begin a subscription; one at a time.

        Raises `AlreadyExists` (DUPLICATE_SUBSCRIPTION_ID), `ResourceExhausted`
        (TOO_MANY_SUBSCRIPTIONS, TOO_MANY_PATTERNS, TOO_MANY_SOURCES), `FailedPrecondition`
        (BOOK_OPTIONS_CONFLICT), and with `all_known` what is said of an unknown instrument; nothing
        has changed then.
        """
        self._check_room_for(subscription)
        unknown = sorted(key for key in subscription.literals if not self._live.knows(key))
        if all_known:
            for key in unknown:
                self._live.check(key)
        found = await self._resolve(subscription, unknown)
        self._check_sources(subscription, found)
        held = self._subscriptions[subscription.id] = (replace(subscription, resumes={}),)
        count = len({key for _, key in found})
        message = f"{count} instrument{'s' * (count != 1)} at present"
        self.tell("ADDED", message, subscription.id)
        for number, key in enumerate(key for key in unknown if not self._live.knows(key)):
            self.tell("NO_SUCH_INSTRUMENT", self._unknown(key, number), subscription.id, key)
            await asyncio.sleep(0)
        for number, (kind, key) in enumerate(found, 1):
            self._claim(held, kind, key, resume=subscription.resumes.get(key))
            if not number % _AT_ONCE:
                await asyncio.sleep(0)

    def remove(self, subscription_id: str) -> None:
        """End a subscription; raises `NotFound` (NO_SUCH_SUBSCRIPTION)."""
        held = self._subscriptions.pop(subscription_id, None)
        if held is None:
            raise NotFound(
                f"this stream has no subscription {subscription_id[:128]!r}",
                reason="NO_SUCH_SUBSCRIPTION",
            )
        self._complaints -= {each for each in self._complaints if each[0] == subscription_id}
        gone = []
        for place, source in self._sources.items():
            if held[0] in source.claims:
                source.claims = tuple(claim for claim in source.claims if claim is not held[0])
                if not source.claims:
                    source.close()
                    gone.append(place)
        for place in gone:
            del self._sources[place]
        self.tell("REMOVED", "", subscription_id)

    def on_new(self, kind: int, key: Key) -> None:
        """Take note that events of a kind of an instrument begin to come."""
        if self._resolving is not None and self._resolving[0].covers(kind, key):
            self._resolving[1][kind, key] = None
        for held in self._subscriptions.values():
            if held[0].covers(kind, key):
                obstacle = self._obstacle(held[0], kind, key)
                if obstacle is None:
                    self._claim(held, kind, key, announced=False)
                elif (held[0].id, obstacle.reason) not in self._complaints:
                    self._complaints.add((held[0].id, obstacle.reason))
                    self.tell(obstacle.reason, f"left out: {obstacle.message}", held[0].id, key)

    def on_trouble(self, exchange: str) -> None:
        """Tell that a venue's events, or all, are interrupted or come again."""
        if exchange and exchange not in self._exchanges:
            return
        if exchange in self._troubles:
            self._tell_trouble(exchange)
        else:
            self.resume("events follow again", exchange)

    def close(self) -> None:
        """Give everything back."""
        super().close()
        for source in self._sources.values():
            source.close()
        self._sources.clear()

    # ---- what is allowed

    def _check_room_for(self, subscription: Subscription) -> None:
        limits = self._limits
        if subscription.id in self._subscriptions:
            raise AlreadyExists(
                f"this stream has a subscription {subscription.id!r} already; remove it first, or "
                "choose another subscription_id",
                reason="DUPLICATE_SUBSCRIPTION_ID",
            )
        if len(self._subscriptions) >= limits.max_subscriptions:
            raise ResourceExhausted(
                f"expected at most {limits.max_subscriptions} subscriptions in a stream; name more "
                "instruments in each, or open another stream",
                reason="TOO_MANY_SUBSCRIPTIONS",
            )
        everything = [subscription, *(held[0] for held in self._subscriptions.values())]
        size = sum(each.size for each in everything)
        if size > limits.max_patterns:
            raise ResourceExhausted(
                f"expected at most {limits.max_patterns} instruments and patterns in a stream, got "
                f"{size}; use a pattern, or open another stream",
                reason="TOO_MANY_PATTERNS",
            )
        wildcards = sum(len(each.patterns) for each in everything)
        if wildcards > limits.max_wildcards:
            raise ResourceExhausted(
                f'expected at most {limits.max_wildcards} patterns with a "*" in a stream, got '
                f"{wildcards}; use wider ones, or open another stream",
                reason="TOO_MANY_PATTERNS",
            )

    def _check_sources(self, subscription: Subscription, found: Iterable[tuple[int, Key]]) -> None:
        count = len(self._sources)
        for place in found:
            source = self._sources.get(place)
            count += source is None
            if isinstance(source, BookSource) and source.wish != subscription.wish:
                raise _conflict(source)
        if count > self._limits.max_sources:
            raise self._too_many_sources(count)

    def _obstacle(self, subscription: Subscription, kind: int, key: Key) -> MarketPrismError | None:
        """Tell what keeps an instrument that has just appeared out of a subscription."""
        source = self._sources.get((kind, key))
        if source is None and len(self._sources) >= self._limits.max_sources:
            return self._too_many_sources(len(self._sources) + 1)
        if isinstance(source, BookSource) and source.wish != subscription.wish:
            return _conflict(source)
        return None

    def _too_many_sources(self, count: int) -> ResourceExhausted:
        return ResourceExhausted(
            f"expected at most {self._limits.max_sources} pairs of instrument and kind in a "
            f"stream, got {count}; subscribe to less, or open another stream",
            reason="TOO_MANY_SOURCES",
        )

    # ---- what is meant

    def _unknown(self, key: Key, number: int) -> str:
        """Say of an unknown instrument what may have been meant."""
        said = f"{'/'.join(key)} is not known"
        # Looking for a name that is like it takes milliseconds.
        if number < _SUGGESTED:
            try:
                self._live.check(key)
            except MarketPrismError as error:
                said = error.message
        return f"{said}; events follow when there is one"

    async def _resolve(
        self, subscription: Subscription, unknown: Sequence[Key]
    ) -> dict[tuple[int, Key], None]:
        """Give every kind of every instrument that is meant at present."""
        found: dict[tuple[int, Key], None] = {}
        for key in subscription.literals.difference(unknown):
            found.update(((kind, key), None) for kind in subscription.kinds)
        self._resolving = (subscription, found)
        try:
            for pattern in subscription.patterns:
                for kind in subscription.kinds:
                    keys = pattern.matching(self._live.keys(kind))
                    found.update(((kind, key), None) for key in keys)
                    # There may be thousands of instruments.
                    await asyncio.sleep(0)
        finally:
            self._resolving = None
        return found

    def _claim(
        self,
        held: tuple[Subscription],
        kind: int,
        key: Key,
        *,
        resume: tuple[int, int] | None = None,
        announced: bool = True,
    ) -> None:
        source = self._sources.get((kind, key))
        if source is None:
            try:
                source = self._make(held[0], kind, key, resume)
            except NotFound:
                # An index has no trades, an instrument no index price: nothing will come.
                return
            source.announced = announced
            source.claims = held
            self._sources[kind, key] = source
            if key[0] not in self._exchanges:
                self._exchanges.add(key[0])
                self._tell_trouble(key[0])
            self.on_ready(source)
        elif held[0] not in source.claims:
            source.claims = (*source.claims, held[0])

    def _make(
        self, subscription: Subscription, kind: int, key: Key, resume: tuple[int, int] | None
    ) -> Source:
        if kind != ORDER_BOOK:
            return KindSource(self, kind, key, self._live)
        view = self._live.book(key, subscription.wish)
        return BookSource(self, kind, key, view, subscription.wish, resume)

    def _tell_trouble(self, exchange: str) -> None:
        trouble = self._troubles.get(exchange)
        if trouble is not None:
            self.interrupt(*trouble, exchange)


class Sessions:
    """Every stream's session, and what concerns all of them."""

    def __init__(
        self,
        live: LiveSources,
        limits: SubscriptionLimits,
        settings: StreamSettings,
        tally: Tally,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._live = live
        self._limits = limits
        self._settings = settings
        self._tally = tally
        self._clock = clock
        self._open: dict[Session, None] = {}
        self._stopping = False
        # By venue, or by nothing for all of them: (reason, why).
        self._troubles: dict[str, tuple[str, str]] = {}
        live.on_new(self._on_new)
        live.on_trouble(self._on_trouble)
        live.on_close(self.stop)

    def __len__(self) -> int:
        return len(self._open)

    def open(self, heartbeat: float) -> Session:
        """Begin a session, to be given back with `close`.

        Raises `Unavailable` (STARTING) and `ResourceExhausted` (TOO_MANY_STREAMS).
        """
        self._live.check_ready()
        if len(self._open) >= self._limits.max_streams:
            raise ResourceExhausted(
                f"{len(self._open)} streams of subscriptions are open, which is the limit of this "
                "server; retry later, or put several subscriptions into one stream",
                reason="TOO_MANY_STREAMS",
                metadata={"limit": self._limits.max_streams},
                retry_after=1.0,
            )
        session = Session(
            self._live,
            self._limits,
            self._settings,
            self._tally,
            heartbeat=heartbeat,
            clock=self._clock,
            troubles=self._troubles,
        )
        self._open[session] = None
        if self._stopping:
            session.stop()
        return session

    def close(self, session: Session) -> None:
        """End a session."""
        self._open.pop(session, None)
        session.close()

    def stop(self) -> None:
        """End every stream, because the server stops."""
        self._stopping = True
        for session in list(self._open):
            session.stop()

    def _on_new(self, kind: int, key: Key) -> None:
        for session in list(self._open):
            session.on_new(kind, key)

    def _on_trouble(self, exchange: str, reason: str, why: str) -> None:
        if why:
            self._troubles[exchange] = (reason, why)
        elif self._troubles.pop(exchange, None) is None:
            return
        for session in list(self._open):
            session.on_trouble(exchange)


def _conflict(source: BookSource) -> FailedPrecondition:
    exchange, symbol = source.key
    return FailedPrecondition(
        f"the book of {exchange}/{symbol} is in subscription {source.claims[0].id!r} of this "
        "stream with other options, and its events could not be told apart; use another stream",
        reason="BOOK_OPTIONS_CONFLICT",
        metadata={"exchange": exchange, "symbol": symbol},
    )
