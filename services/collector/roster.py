"""The instruments of a venue that are collected: listed, changed and expired while running."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from google.protobuf.message import DecodeError
from marketprism.collector.v1 import integrity_event_pb2 as integrity
from marketprism.market.v1 import events_pb2
from marketprism.market.v1 import order_book_pb2 as pb

from services.collector.connection import backoff
from services.collector.feed import InstrumentFeed
from services.collector.instruments import Chosen, announce, choose, compare
from services.collector.journal import Journal
from services.collector.ledger import Ledger
from services.collector.pool import ConnectionPool
from services.collector.recall import Ledgered, Recall, Recalled, last_trade
from services.collector.rest import Priority, RestClient, RestError
from services.collector.settings import ExchangeSettings
from services.collector.snapshots import FeedRequests
from services.collector.synchroniser import SnapshotPolicy
from services.collector.trade_ledger import Debt
from services.collector.venues.base import (
    InstrumentSpec,
    MalformedFrameError,
    Poll,
    Subscription,
    VenueAdapter,
)
from services.shared.publisher import Publisher

__all__ = ["Roster"]

_FLOORS_AT_ONCE = 32
_SOON_SECONDS = 1.0
_EXPIRY_MARGIN = 2.0
_WHOLE_ATTEMPTS = 3
_PARTIAL_SECONDS = 30.0


class Roster:
    """Keeps feeds and subscriptions equal to what is listed, selected and ours.

    `feeds` has the instruments by native symbol, `by_symbol` by canonical symbol; `listed` all that
    are selected at the venue, whoever collects them. `shares(symbol)` tells whether this collector
    does; after it changed its mind `share()` is called. `on_polls(polls)` is told the polls
    that are due now, `on_retired(spec)` what is collected no more. `ready` once everything
    was subscribed to for the first time; until then `detail` says what is waited for. `run` is the
    owner of all changes and ends only with its task.
    """

    def __init__(
        self,
        exchange: str,
        adapter: VenueAdapter,
        settings: ExchangeSettings,
        rest: RestClient,
        publisher: Publisher,
        ledger: Ledger,
        policy: SnapshotPolicy,
        pool: ConnectionPool,
        requests: FeedRequests,
        shares: Callable[[str], bool],
        journal: Journal | None = None,
        recall: Recall | None = None,
    ) -> None:
        self._recall = recall
        self._journal = journal
        self.feeds: dict[str, InstrumentFeed] = {}
        self.by_symbol: dict[str, InstrumentFeed] = {}
        self.listed: dict[str, InstrumentSpec] = {}
        self.ready = False
        self.detail = "starting"
        self.on_polls: Callable[[Sequence[Poll]], None] = lambda polls: None
        self.on_retired: Callable[[InstrumentSpec], None] = lambda spec: None
        self._exchange = exchange
        self._adapter = adapter
        self._settings = settings
        self._rest = rest
        self._publisher = publisher
        self._ledger = ledger
        self._policy = policy
        self._pool = pool
        self._requests = requests
        self._shares = shares
        self._selection = settings.selection(adapter.kinds)
        self._subscriptions: dict[str, list[Subscription]] = {}
        self._shared: dict[str, Subscription] = {}
        self._wake = asyncio.Event()
        self._refresh = False
        self._asked = 0
        self._applied = 0
        self._done = asyncio.Event()
        self._problems: set[str] = set()
        self._lists: set[str] = set()
        self._whole = True
        self._attempts = 0
        self._log = structlog.get_logger(exchange=exchange)

    def subscriptions_of(self, native_symbol: str) -> list[Subscription]:
        """Give the subscriptions of one instrument."""
        return self._subscriptions.get(native_symbol, [])

    def refresh_soon(self, why: str) -> None:
        """Read the venue's list again: it says that it changed."""
        if not self._refresh:
            self._log.info("the venue's list of instruments changed", what=why)
        self._refresh = True
        self._wake.set()

    async def share(self) -> None:
        """Look again at which instruments are ours; returns when that is so."""
        self._asked += 1
        asked = self._asked
        self._wake.set()
        # Before it is ready there may be feeds already, of which others must not tell yet.
        while (self.ready or self.feeds) and self._applied < asked:
            self._done.clear()
            await self._done.wait()

    def give_up(self, is_lost: Callable[[str], bool], *, told: bool = False) -> None:
        """Let go of instruments at once, without waiting for the owner of changes.

        Nothing more is told of them, because somebody else may tell of them already, unless `told`
        says that the end may still be.
        """
        now = time.time_ns()
        for feed in [feed for feed in self.feeds.values() if is_lost(feed.spec.symbol)]:
            self.retire(feed.spec, now, listed=True, told=told)

    async def run(self) -> None:
        """Keep up with the venue's list."""
        self.detail = "reading the list of instruments"
        while not self.listed:
            if not await self._read(first=True):
                self._attempts += 1
                delay = backoff(self._settings, self._attempts)
                self._log.warning(self.detail, retry_seconds=round(delay, 2))
                await asyncio.sleep(delay)
        trouble = "" if self._whole else self.detail
        self.detail = "reading where an earlier collector stopped"
        await self._apply()
        self.ready = True
        self.detail = trouble
        read = time.monotonic()
        while True:
            every = self._settings.instrument_refresh_seconds
            if not self._whole:
                every = min(every, _PARTIAL_SECONDS)
            wait = read + every - time.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, min(wait, self._until_expiry()))):
                    await self._wake.wait()
            if self._refresh:
                # Announcements come in flocks.
                await asyncio.sleep(_SOON_SECONDS)
            due = self._refresh or time.monotonic() - read >= every
            self._wake.clear()
            if due or self._until_expiry() <= 0:
                self._refresh = False
                read = time.monotonic()
                await self._read(first=False)
            await self._apply()

    # What changes feeds; replay calls these with what was noted.

    def announce(self, spec: InstrumentSpec, now: int, *, delisted: bool = False) -> None:
        """Publish what the venue says of an instrument."""
        self._note("announce", now, spec=spec, delisted=delisted)
        announce(self._publisher.publish, spec, now, delisted=delisted)

    def start(
        self,
        spec: InstrumentSpec,
        epoch: int,
        trade_id: int,
        now: int,
        *,
        taken_over: bool,
        trade_time: int = 0,
        debts: Sequence[Debt] = (),
    ) -> None:
        """Begin to collect an instrument, beyond the epoch and trade that were reached before.

        `debts` are missed trades before that one which are still to be fetched.
        """
        self._note(
            "start", now, spec=spec, epoch=epoch, trade_id=trade_id, taken_over=taken_over,
            trade_time=trade_time, debts=list(debts),
        )  # fmt: skip
        feed = InstrumentFeed(
            spec,
            self._adapter,
            self._publisher,
            self._ledger,
            self._policy,
            self._requests.snapshot,
            self._requests.trades.fetch,
            epoch_floor=epoch,
            last_trade_id=trade_id,
            last_trade_time=trade_time,
            debts=debts,
        )
        self.feeds[spec.native_symbol] = feed
        self.by_symbol[spec.symbol] = feed
        self._requests.trades.fetch_owed(feed)
        if taken_over:
            self._ledger.record(
                integrity.INTEGRITY_KIND_TAKEN_OVER,
                integrity.INTEGRITY_CAUSE_LEASE,
                f"an earlier collector reached epoch {epoch} and trade {trade_id}",
                exchange=self._exchange,
                symbol=spec.symbol,
                now=now,
                epoch=epoch,
            )

    def change(self, feed: InstrumentFeed, spec: InstrumentSpec, now: int) -> None:
        """Take what the venue now says of an instrument that is collected."""
        self._note("change", now, spec=spec)
        feed.change(spec, now)

    def retire(self, spec: InstrumentSpec, now: int, *, listed: bool, told: bool = True) -> None:
        """End an instrument here; `listed` when another collector goes on with it.

        Without `told` nothing of it may be let out any more.
        """
        self._note("retire", now, spec=spec, listed=listed, told=told)
        feed = self.feeds.pop(spec.native_symbol)
        self.by_symbol.pop(spec.symbol, None)
        self._requests.end(spec.native_symbol)
        self._pool.remove(each.topic for each in self._subscriptions.pop(spec.native_symbol, ()))
        if not told:
            feed.book.mute()
        feed.retire(
            pb.ORDER_BOOK_REASON_INSTRUMENT_CHANGED,
            "another collector has it now" if listed else "the instrument trades no more",
            now,
        )
        self._ledger.record(
            integrity.INTEGRITY_KIND_HANDED_OVER,
            integrity.INTEGRITY_CAUSE_LEASE
            if listed
            else integrity.INTEGRITY_CAUSE_INSTRUMENT_CHANGED,
            "handed over to another collector" if listed else "the instrument trades no more",
            exchange=self._exchange,
            symbol=spec.symbol,
            now=now,
            epoch=feed.book.epoch,
            sequence=feed.book.sequence,
            venue_sequence=feed.book.venue_sequence,
        )
        self.on_retired(spec)

    def _note(self, what: str, now: int, **data: Any) -> None:
        if self._journal is not None:
            self._journal.note(what, now, **data)

    # Inside

    def _until_expiry(self) -> float:
        times = [spec.expiry_time for spec in self.listed.values() if spec.expiry_time]
        if not times:
            return float("inf")
        return (min(times) - time.time_ns()) / 1e9 + _EXPIRY_MARGIN

    async def _read(self, *, first: bool) -> bool:
        """Read the venue's whole list; what could not be read stays as it was."""
        specs: list[InstrumentSpec] = []
        whole = True
        for request in self._adapter.instrument_requests():
            name = f"{request.path} {sorted(request.query.items())}"
            try:
                body, _ = await self._rest.get(request, priority=Priority.SNAPSHOT)
                told = self._adapter.decode_instruments(body)
            except (RestError, MalformedFrameError) as error:
                whole = False
                self.detail = f"cannot read the list of instruments: {error}"
                if not first:
                    self._log.warning(self.detail)
                continue
            if not told and name in self._lists:
                # A venue that suddenly lists nothing has a trouble of its own.
                whole = False
                self._log.warning("the venue lists nothing, where it did before", list=name)
            elif told:
                self._lists.add(name)
            specs += told
        if whole and not first:
            self.detail = ""
        self._whole = whole
        if first and not whole and (self._attempts < _WHOLE_ATTEMPTS or not specs):
            # One list that cannot be had must not keep the others back for ever.
            return False
        chosen = choose(specs, self._settings.symbols, time.time_ns(), self.listed)
        self._tell_problems(chosen)
        listed = {spec.native_symbol: spec for spec in chosen.specs}
        if first and not listed:
            self.detail = f"no instrument that trades matches {list(self._settings.symbols)}"
            return False
        if not whole:
            now = time.time_ns()
            kept = {
                name: spec
                for name, spec in self.listed.items()
                if name not in listed and not 0 < spec.expiry_time <= now
            }
            listed |= kept
        self._announce(listed, specs)
        self.listed = listed
        return True

    def _tell_problems(self, chosen: Chosen) -> None:
        for problem in chosen.problems:
            if problem not in self._problems:
                self._problems.add(problem)
                self._log.warning("not collected", reason=problem)

    def _announce(self, listed: dict[str, InstrumentSpec], specs: Sequence[InstrumentSpec]) -> None:
        """Publish every instrument that is new or different, and each that is gone."""
        now = time.time_ns()
        changes = compare(self.listed, list(listed.values()))
        told = {spec.native_symbol: spec for spec in specs}
        for spec in changes.removed:
            last = told.get(spec.native_symbol)
            # What is still told of but not chosen any more is halted, not gone.
            here = last is not None and last.symbol == spec.symbol
            self.announce(last if here and last else spec, now, delisted=not here)
        for spec in changes.added:
            self.announce(spec, now)
        for change in changes.changed:
            self._log.info(
                "instrument changed", symbol=change.new.symbol, fields=list(change.fields)
            )
            self.announce(change.new, now)

    async def _apply(self) -> None:
        """Make feeds and subscriptions equal to what is listed and ours."""
        asked = self._asked
        wanted = {name: spec for name, spec in self.listed.items() if self._shares(spec.symbol)}
        gone = [
            feed.spec
            for name, feed in self.feeds.items()
            if name not in wanted or wanted[name].symbol != feed.spec.symbol
        ]
        now = time.time_ns()
        for spec in gone:
            listed = self.listed.get(spec.native_symbol)
            # One that goes by another symbol now is collected no more under this one.
            self.retire(spec, now, listed=listed is not None and listed.symbol == spec.symbol)
        new = [spec for name, spec in wanted.items() if name not in self.feeds]
        for name, feed in self.feeds.items():
            if feed.spec != wanted[name]:
                self.change(feed, wanted[name], now)
        await self._add(new)
        self._share_out()
        polls = self._adapter.polls([feed.spec for feed in self.feeds.values()], self._selection)
        self.on_polls(polls)
        self._applied = asked
        self._done.set()
        if new or gone:
            self._log.info(
                "instruments", collected=len(self.feeds), added=len(new), removed=len(gone)
            )

    async def _add(self, specs: Sequence[InstrumentSpec]) -> None:
        slots = asyncio.Semaphore(_FLOORS_AT_ONCE)
        ledgered = await self._recall.ledger() if self._recall is not None and specs else {}

        async def make(spec: InstrumentSpec) -> None:
            async with slots:
                epoch, trades = await self._floors(spec, ledgered.get(spec.symbol))
            if not self._shares(spec.symbol):
                # Lost again while the broker was asked.
                return
            self.start(
                spec, epoch, trades.last_id, time.time_ns(), taken_over=self.ready and epoch > 0,
                trade_time=trades.last_time, debts=trades.debts,
            )  # fmt: skip

        async with asyncio.TaskGroup() as group:
            for spec in specs:
                group.create_task(make(spec))
        for spec in specs:
            if spec.native_symbol not in self.feeds:
                continue
            subscriptions = self._adapter.subscriptions(spec, self._selection)
            self._subscriptions[spec.native_symbol] = subscriptions
            self._pool.add(subscriptions)

    def _share_out(self) -> None:
        """Subscribe to what concerns several instruments, or an index, whoever collects them.

        What it tells is published by who collects the instrument, and an index has an owner too.
        """
        specs = list(self.listed.values())
        wanted = {
            each.topic: each for each in self._adapter.shared_subscriptions(specs, self._selection)
        }
        self._pool.remove([topic for topic in self._shared if topic not in wanted])
        self._pool.add(each for topic, each in wanted.items() if topic not in self._shared)
        self._shared = wanted

    async def _floors(
        self, spec: InstrumentSpec, ledgered: Ledgered | None
    ) -> tuple[int, Recalled]:
        """Epoch and trades that an earlier collector reached, 0 where there is none."""
        name = f"{self._exchange}.{spec.symbol}"
        attempt = 0
        while True:
            try:
                trade = await self._publisher.last_message(f"market.trade.{name}")
                status = await self._publisher.last_message(f"market.order_book_status.{name}")
                snapshot = await self._publisher.last_message(f"market.order_book_snapshot.{name}")
                break
            except Exception as error:  # the broker went away again: wait for it
                attempt += 1
                self._log.warning("cannot read from the broker", error=str(error))
                await asyncio.sleep(backoff(self._settings, attempt))
        epoch, trades = 0, Recalled()
        try:
            if trade is not None:
                trades = last_trade(events_pb2.Trade.FromString(trade.payload))
            if self._recall is not None and ledgered is not None:
                trades = await self._recall.trades(spec.symbol, trades, ledgered)
            if snapshot is not None:
                epoch = pb.OrderBookSnapshot.FromString(snapshot.payload).epoch
            if status is not None:
                epoch = max(epoch, pb.OrderBookStatus.FromString(status.payload).epoch)
        except DecodeError as error:
            self._log.error("somebody else published there", symbol=spec.symbol, error=str(error))
        return epoch, trades
