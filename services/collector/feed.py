"""Everything that is collected of one instrument, and the subjects it is published on."""

import asyncio
from collections.abc import Callable, Sequence

from marketprism.collector.v1 import integrity_event_pb2 as integrity
from marketprism.market.v1 import common_pb2
from marketprism.market.v1 import order_book_pb2 as pb

from services.collector.contracts import ContractSize
from services.collector.encoding import BestBidOfferEncoder
from services.collector.lanes import BookLanes
from services.collector.ledger import CAUSE_OF_REASON, Ledger
from services.collector.losses import BrokerLosses
from services.collector.synchroniser import BookSynchroniser, SnapshotPolicy
from services.collector.trade_ledger import Debt, TradeLedger
from services.collector.trades import Filled, TradeTape
from services.collector.venues.base import (
    BookDiff,
    BookHeartbeat,
    BookSnapshot,
    InstrumentSpec,
    SkippedTrade,
    TopOfBook,
    TradePrint,
    VenueAdapter,
)
from services.shared.publisher import Publisher
from services.shared.ranges import Ranges

__all__ = ["InstrumentFeed", "contract_size"]

_TOP_CHECK_SECONDS = 1.0
_STABLE_SECONDS = 10.0
_MOST_RELAPSES = 3
_MOST_RELAPSES_SCARCE = 8
_TOPS_KEPT = 256
_BOOK_KINDS = common_pb2.EVENT_KIND_ORDER_BOOK
_TRADE_KIND = common_pb2.EVENT_KIND_TRADE


class InstrumentFeed:
    """Book, trades and best bid-offer of one instrument. It is the `BookOutput` of its book.

    `fetch_snapshot(feed, reason)` and `fetch_trades(feed, first, last)` start the REST requests
    whose answers come back to `book` and `on_history`. `lanes` are the connections that carry the
    book. `synced` is set while the book is in step; `expects_snapshot` tells that one is to come in
    the stream, because its subscription has just begun; `revivals` counts how often a book that was
    behind was subscribed to anew. `oldest_trade` is the venue's last trade while nothing had come,
    `trades_since` when trades were first subscribed to (nanoseconds, 0 when never).
    `refusals` says by kind why nothing comes. `debts` are the missed trades that an earlier process
    owed, `last_trade_id` and `last_trade_time` the last one that it published.
    """

    def __init__(
        self,
        spec: InstrumentSpec,
        adapter: VenueAdapter,
        publisher: Publisher,
        ledger: Ledger,
        policy: SnapshotPolicy,
        fetch_snapshot: Callable[["InstrumentFeed", int], None],
        fetch_trades: Callable[["InstrumentFeed", int, int], None],
        *,
        epoch_floor: int = 0,
        last_trade_id: int = 0,
        last_trade_time: int = 0,
        debts: Sequence[Debt] = (),
    ) -> None:
        self.spec = spec
        self.sizes = contract_size(spec)
        self.key = f"{spec.exchange}/{spec.symbol}"
        self.top_checks = 0
        self.top_mismatches = 0
        self.synced = asyncio.Event()
        self.expects_snapshot = False
        self.early: set[str] = set()
        self.revivals = 0
        self.probes = 0
        self.probe_mismatches = 0
        self.tops = 0
        self.refusals: dict[int, str] = {}
        self.book = BookSynchroniser(
            spec.exchange,
            spec.symbol,
            adapter,
            self,
            policy,
            epoch_floor=epoch_floor,
            sizes=self.sizes,
        )
        self.lanes = BookLanes(self.book, adapter)
        self.trades = TradeTape(
            spec.exchange,
            spec.symbol,
            self._publish_trade,
            self._request_history,
            sizes=self.sizes,
        )
        self.trades.last_id = last_trade_id
        self.trades.last_time = self.trades.last_received = last_trade_time
        self.debts = debts
        for debt in debts:
            self.trades.owed.add(debt.first, debt.last)
        self._hole = (0, 0)
        self.last_trade_time = 0
        self.oldest_trade = 0
        self.trades_since = 0
        self.last_top: TopOfBook | None = None
        self._raw_top: TopOfBook | None = None
        self._ordered = adapter.ordered_ids
        # Where subscribing anew is counted by the hour, patience has to be longer.
        scarce = adapter.connection_rules.requests_per_hour > 0
        self._most_relapses = _MOST_RELAPSES_SCARCE if scarce else _MOST_RELAPSES
        self._publisher = publisher
        self._ledger = ledger
        self.losses = BrokerLosses(spec.exchange, spec.symbol, ledger)
        self._trade_ledger = TradeLedger(
            spec.exchange, spec.symbol, ledger, lambda: self.connection_id
        )
        self._trade_ledger.remember(debts)
        self._fetch_snapshot = fetch_snapshot
        self._fetch_trades = fetch_trades
        self._top_encoder = BestBidOfferEncoder(spec.exchange, spec.symbol)
        name = f"{spec.exchange}.{spec.symbol}"
        self._update_subject = f"market.order_book_update.{name}"
        self._snapshot_subject = f"market.order_book_snapshot.{name}"
        self._status_subject = f"market.order_book_status.{name}"
        self._trade_subject = f"market.trade.{name}"
        self._top_subject = f"market.best_bid_offer.{name}"
        self._top_key = f"top:{self.key}"
        # A stream holds all instruments, and JetStream drops a message whose id came before.
        self._id = f"{name}."
        self._messages = 0
        self._next_top_check = 0
        self._tops: dict[int, TopOfBook] | None = None
        self.last_top_time = 0
        self._ahead = (0, 0)
        self._begun = ""
        self._silent = ""
        self._attempts = 0
        self._relapses = 0
        self._synced_at = 0
        self._renumbered = 0

    # Frames

    @property
    def connection_id(self) -> str:
        """The connection that carries the book; the oldest where there are two."""
        names = self.lanes.names
        return names[0] if names else ""

    def on_diff(self, lane: str, diff: BookDiff, now: int) -> None:
        """Take a change of the book, and now and then hold the book against the venue's own top."""
        book = self.book
        self.lanes.on_diff(lane, diff, now)
        tops = self._tops
        if tops is None:
            if now >= self._next_top_check:
                self._tops = {}
        elif (top := tops.get(book.venue_sequence)) is not None and book.in_step:
            self._tops = None
            self._next_top_check = now + int(_TOP_CHECK_SECONDS * 1e9)
            self._check_top(top, now)
        elif len(tops) > _TOPS_KEPT:
            self._tops = {}

    def on_book_message(self, lane: str, message: BookSnapshot | BookHeartbeat, now: int) -> None:
        """Take what a venue sends of the book beside its changes."""
        if isinstance(message, BookSnapshot):
            self.expects_snapshot = False
            self.lanes.on_snapshot(lane, message, now)
        else:
            self.lanes.on_heartbeat(lane, message, now)

    def on_trade(self, trade: TradePrint | SkippedTrade, now: int) -> None:
        """Take a trade."""
        tape = self.trades
        self.last_trade_time = now
        before = tape.last_id
        tape.on_trade(trade, now)
        if tape.is_full and tape.missing is not None:
            self.release_trades(tape.missing[0], "too many came before an answer", now)
        elif tape.renumbered != self._renumbered:
            self._renumbered = tape.renumbered
            self._trade_ledger.renumbered(before, tape.last_id, now)

    def on_top(self, top: TopOfBook, now: int) -> None:
        """Take a best bid and offer; one that is not newer than the last is dropped."""
        last = self._raw_top
        if last is not None and not _is_newer(top, last):
            return
        self._raw_top = top
        if self.sizes is not None:
            top = _converted(top, self.sizes)
        self.last_top = top
        self.tops += 1
        self.last_top_time = now
        if self._ahead[0] <= self.book.venue_sequence:
            self._ahead = (top.venue_sequence, now)
        tops = self._tops
        if tops is not None and top.venue_sequence:
            if len(tops) > _TOPS_KEPT:
                tops.clear()
            tops[top.venue_sequence] = top
        self._publisher.publish(
            self._top_subject,
            self._top_encoder.best_bid_offer(
                top.venue_sequence, top.exchange_time, now, top.bid, top.ask
            ),
            f"{self._id}{top.venue_sequence or _name(top)}",
            droppable_key=self._top_key,
        )

    def on_malformed(self, lane: str, detail: str, now: int, *, concerns_book: bool = True) -> None:
        """Take note of a frame of this instrument that could not be read.

        What a frame of another kind held is missed by the next id of its kind, where there is one.
        """
        if concerns_book:
            self._record(
                integrity.INTEGRITY_KIND_MALFORMED_FRAME,
                pb.ORDER_BOOK_REASON_MALFORMED_FRAME,
                detail,
                now,
                count=1,
            )
            self.lanes.on_malformed(lane, detail, now)
            return
        self._ledger.record(
            integrity.INTEGRITY_KIND_MALFORMED_FRAME,
            integrity.INTEGRITY_CAUSE_UNDECODABLE,
            detail,
            exchange=self.spec.exchange,
            symbol=self.spec.symbol,
            now=now,
            count=1,
            connection_id=self.connection_id,
        )

    def on_disconnected(self, lane: str, detail: str, now: int) -> None:
        """Take note that a connection ended; the book is over when no other one carries it."""
        self.early.discard(lane)
        if self.lanes.leave(lane, now):
            return
        self._forget_tops()
        self.book.on_disconnected(detail, now)

    def change(self, spec: InstrumentSpec, now: int) -> None:
        """Take what the venue now says of the instrument; other units begin a new epoch."""
        before, self.spec = self.spec, spec
        if (before.contract_size, before.quantity_unit) == (spec.contract_size, spec.quantity_unit):
            return
        self.sizes = self.book.sizes = self.trades.sizes = contract_size(spec)
        # What was told in the old unit is nothing to hold the book against.
        self._tops = None
        self.book.rebuild(
            pb.ORDER_BOOK_REASON_INSTRUMENT_CHANGED,
            f"a contract stood for {before.contract_size} and stands for {spec.contract_size} now",
            now,
        )

    def retire(self, reason: "pb.OrderBookReason.ValueType", detail: str, now: int) -> None:
        """Say that nothing more will be told of the book by this collector."""
        for lane in self.lanes.names:
            self.lanes.leave(lane, now)
        self.book.on_silence(detail, now, reason)

    def on_probe(self, sequence: int, before: int, now: int) -> bool:
        """Take at which id the venue's book stands, as asked for while nothing came.

        `before` is where this book stood when it was asked. Tells whether the two agree; when they
        do not the book is STALE at once.
        """
        book = self.book
        if not book.in_step or book.venue_sequence != before:
            return True
        self.probes += 1
        if sequence == before:
            return True
        self.probe_mismatches += 1
        book.on_silence(
            f"the venue's book stands at {sequence}, and nothing came since {before}", now
        )
        return False

    def lag_behind_top(self, now: int) -> float:
        """Seconds for which the book has been behind the venue's own best bid and offer."""
        top, sequence = self.last_top, self.book.venue_sequence
        if not self._ordered or top is None or top.venue_sequence <= sequence:
            return 0.0
        # The first top that the book has not reached yet, when it is known, else the last.
        since = self._ahead[1] if self._ahead[0] > sequence else self.last_top_time
        return (now - since) / 1e9

    # Answers

    def next_attempt(self, now: int) -> int:
        """Count a request for the venue's snapshot; gives how many came before it in a row.

        A book that was in step but for a moment counts too, so that a feed full of holes does not
        use up the request weight of all the others.
        """
        if self._synced_at:
            stable = now - self._synced_at > _STABLE_SECONDS * 1e9
            self._relapses = 0 if stable else min(self._relapses + 1, self._most_relapses)
            self._synced_at = 0
            self._attempts = self._relapses
        attempt = self._attempts
        self._attempts += 1
        return attempt

    def on_history(
        self, first: int, trades: Sequence[TradePrint | SkippedTrade], detail: str, now: int
    ) -> None:
        """Take all that the venue's history has of the trades missing from `first` on.

        `detail` says why it is less than all. An answer about a hole that is closed is dropped.
        """
        hole = self.trades.missing
        if hole is None or hole[0] != first:
            return
        begin, end = self._hole
        found, _, lost = self.trades.fill(trades, now)
        self._trade_ledger.filled(*hole, found, now)
        self._trade_ledger.lost(lost, hole, detail, now, begin, end)

    def on_past_trades(
        self, first: int, last: int, trades: Sequence[TradePrint | SkippedTrade], now: int
    ) -> None:
        """Take what a page of the venue's history has of the trades first..last.

        What others wait for is kept for its place; what is owed is published now.
        """
        tape = self.trades
        paid = Ranges(tape.owed.within(first, last))
        tape.take(trades, now)
        for run in tape.owed.within(first, last):
            paid.discard(*run)
        numbers = [each.trade_id for each in trades if not isinstance(each, SkippedTrade)]
        self._trade_ledger.paid(tuple(paid), numbers, now)

    def release_trades(self, first: int, why: str, now: int) -> None:
        """Publish the trades that wait for the hole that begins with `first`: `why` tells."""
        hole = self.trades.missing
        if hole is None or hole[0] != first:
            return
        begin, end = self._hole

        def tell(filled: Filled) -> None:
            self._trade_ledger.filled(*hole, filled.found, now)
            self._trade_ledger.owed(filled.runs, why, now, begin, end)

        self.trades.release(now, tell)

    def on_history_end(
        self, first: int, last: int, detail: str, now: int, *, told: bool = False
    ) -> None:
        """Take note that nothing more comes of the trades first..last, and why.

        `told` says that the ledger has it already what is missing.
        """
        missing = self.trades.missing
        if missing is not None and missing[0] == first:
            self.on_history(first, (), detail, now)
            return
        lost = self.trades.give_up(first, last)
        if not told:
            self._trade_ledger.lost(lost, (first, last), detail, now)
        self._trade_ledger.forget(first, last)

    # The broker

    def on_broker(self, connected: bool, now: int) -> None:
        """Take note that the broker came or went."""
        self.losses.on_broker(connected, now, muted=self.book.muted)

    def on_dropped(self, key: str, count: int) -> None:
        """Take note that the broker's buffer gave up what was unsent under a key of ours."""
        if key != self.key:
            self.losses.tops += count
            return
        self.losses.updates += count
        if not self.book.muted:
            self.book.mute()
            self.losses.since = self.losses.since or self.book.receive_time
            self._tell_muted()

    def on_rejected(self, subject: str, message_id: str) -> None:
        """Take note that a trade found no room in the broker's buffer."""
        if subject == self._trade_subject:
            self.losses.on_trade_rejected(int(message_id.rpartition(".")[2]))

    def report_drops(self, now: int) -> None:
        """Write to the ledger what the buffer could not hold, once there is room again."""
        self.losses.report(self.book.unpublished, now)

    # BookOutput

    def publish_update(self, payload: bytes, epoch: int, sequence: int) -> None:
        """Publish an encoded update."""
        self._publisher.publish(
            self._update_subject, payload, f"{self._id}{epoch}.{sequence}", droppable_key=self.key
        )

    def publish_snapshot(self, payload: bytes, epoch: int, sequence: int) -> None:
        """Publish an encoded snapshot."""
        self._messages += 1
        self._publisher.publish(
            self._snapshot_subject,
            payload,
            f"{self._id}{epoch}.{sequence}.{self._messages}",
            droppable_key=self.key,
        )

    def publish_status(self, status: pb.OrderBookStatus) -> None:
        """Publish a change of state, and write it to the ledger."""
        self._messages += 1
        self.synced.clear()
        if status.reason == pb.ORDER_BOOK_REASON_VENUE_RESET:
            self._forget_tops()
        now = status.time.ToNanoseconds()
        if not self.book.muted:
            self._publisher.publish(
                self._status_subject,
                status.SerializeToString(),
                f"{self._id}{now}.{self._messages}",
                droppable_key=self.key,
            )
        if status.state == pb.ORDER_BOOK_STATE_SYNCED:
            self.synced.set()
            self._synced_at = now
            if self._silent:
                self._record(
                    integrity.INTEGRITY_KIND_SPEAKING, status.reason, status.detail, now,
                    begin=now - status.outage_ms * 1_000_000, previous=self._silent,
                )  # fmt: skip
                self._silent = ""
            if self._begun:
                self._record(
                    integrity.INTEGRITY_KIND_RESYNC_FINISHED, status.reason, status.detail, now,
                    begin=now - status.outage_ms * 1_000_000, previous=self._begun,
                )  # fmt: skip
                self._begun = ""
        elif status.reason == pb.ORDER_BOOK_REASON_INSTRUMENT_CHANGED and not self.lanes.names:
            pass  # the end: told as such
        elif status.state == pb.ORDER_BOOK_STATE_STALE:
            self._silent = self._record(
                integrity.INTEGRITY_KIND_SILENT, status.reason, status.detail, now
            )
        elif not self._begun:
            if status.reason == pb.ORDER_BOOK_REASON_VENUE_GAP:
                self._record(integrity.INTEGRITY_KIND_GAP, status.reason, status.detail, now)
            self._begun = self._record(
                integrity.INTEGRITY_KIND_RESYNC_BEGUN, status.reason, status.detail, now,
                previous=self._silent,
            )  # fmt: skip
            self._silent = ""

    def request_snapshot(self, reason: "pb.OrderBookReason.ValueType") -> None:
        """Fetch the venue's snapshot."""
        self._fetch_snapshot(self, reason)

    # Inside

    def _forget_tops(self) -> None:
        """Take the next best bid and offer whatever its id: it has nothing to do with the last."""
        self.last_top = self._raw_top = None
        self._ahead = (0, 0)
        self._tops = None

    def _publish_trade(self, payload: bytes, trade_id: int) -> None:
        self._publisher.publish(self._trade_subject, payload, f"{self._id}{trade_id}")

    def _request_history(self, first: int, last: int) -> None:
        self._hole = (self.trades.last_received, self.last_trade_time)
        self._fetch_trades(self, first, last)

    def _check_top(self, top: TopOfBook, now: int) -> None:
        book = self.book.book
        bid, ask = book.best_bid() or ("", ""), book.best_ask() or ("", "")
        self.top_checks += 1
        if bid != top.bid or ask != top.ask:
            self.top_mismatches += 1
            self.book.rebuild(
                pb.ORDER_BOOK_REASON_CHECKSUM_MISMATCH,
                f"at {top.venue_sequence} the venue's best is {top.bid} / {top.ask}, "
                f"the book's is {tuple(bid)} / {tuple(ask)}",
                now,
            )

    def _tell_muted(self) -> None:
        """Tell who follows the book that its updates are not to be had, as soon as anything is."""
        status = self.book.status(self.book.receive_time)
        if self.book.state in (pb.ORDER_BOOK_STATE_SYNCED, pb.ORDER_BOOK_STATE_STALE):
            status.state = pb.ORDER_BOOK_STATE_STALE
            status.reason = pb.ORDER_BOOK_REASON_BROKER_BACKPRESSURE
            status.detail = "updates were given up, the broker took too few; a new epoch follows"
        self._messages += 1
        # Without a key: what is published under the book's is given up with the book.
        self._publisher.publish(
            self._status_subject,
            status.SerializeToString(),
            f"{self._id}{self.book.receive_time}.{self._messages}",
        )

    def _record(
        self,
        kind: "integrity.IntegrityKind.ValueType",
        reason: int,
        detail: str,
        now: int,
        *,
        count: int = 0,
        begin: int = 0,
        previous: str = "",
    ) -> str:
        book = self.book
        return self._ledger.record(
            kind,
            CAUSE_OF_REASON.get(reason, integrity.INTEGRITY_CAUSE_UNSPECIFIED),
            detail,
            exchange=self.spec.exchange,
            symbol=self.spec.symbol,
            now=now,
            event_kind=_BOOK_KINDS,
            begin=begin or book.receive_time,
            end=now,
            count=count,
            epoch=book.epoch,
            sequence=book.sequence,
            venue_sequence=book.venue_sequence,
            connection_id=self.connection_id,
            previous_event_id=previous,
        )


def contract_size(spec: InstrumentSpec) -> ContractSize | None:
    """Give what converts the quantities of an instrument; None where there is nothing to do."""
    sizes = ContractSize(spec.contract_size)
    return None if sizes.is_one else sizes


def _is_newer(top: TopOfBook, last: TopOfBook) -> bool:
    """Tell whether a top came after another one at the venue; ids only identify on some."""
    if top.venue_sequence and last.venue_sequence > top.venue_sequence:
        # Counted anew after maintenance, when it is newer by its time.
        return top.exchange_time > last.exchange_time
    if top.venue_sequence:
        return top.venue_sequence > last.venue_sequence
    if top.exchange_time:
        return top.exchange_time >= last.exchange_time and top != last
    return top != last


def _name(top: TopOfBook) -> str:
    """Tell a top apart that has no id of the venue: several may come within a millisecond."""
    return f"{top.exchange_time}.{'_'.join(top.bid)}.{'_'.join(top.ask)}"


def _converted(top: TopOfBook, sizes: ContractSize) -> TopOfBook:
    def side(level: tuple[str, str]) -> tuple[str, str]:
        return (level[0], sizes.sizes[level[1]]) if level[0] else level

    return TopOfBook(
        top.native_symbol,
        top.venue_sequence,
        top.exchange_time,
        side(top.bid),
        side(top.ask),
    )
