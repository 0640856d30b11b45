"""Keeps one book in step with its venue, or says that it is not. Pure: no sockets, no clocks.

Frames and snapshots go in; encoded updates, snapshots and statuses come out through `BookOutput`,
in the order in which a subscriber must see them. The same object runs live, in replay and in
`marketprism verify`.

The life of a book:

    SYNCING --snapshot bridges--> SYNCED --gap, cut, malformed frame--> RESYNCING --> SYNCED ...

Every way into SYNCED begins a new epoch with a snapshot at sequence 0. While the book is not in
step a snapshot is asked for through `BookOutput`. Where the snapshot answers a request, the diffs
are buffered (bounded) and fitted to it by the venue's rules; where it comes in the stream, whatever
came before it is over and the next diff has to continue it.
"""

from collections import deque
from typing import TypeAlias

from marketprism.market.v1 import order_book_pb2 as pb

from services.collector.book import OrderBook
from services.collector.book_output import BookOutput, SnapshotPolicy
from services.collector.contracts import ContractSize
from services.collector.encoding import OrderBookEncoder
from services.collector.venues.base import (
    BookDiff,
    BookHeartbeat,
    BookSnapshot,
    SnapshotSource,
    VenueAdapter,
)
from services.shared.decimals import InvalidDecimalError

__all__ = ["BookOutput", "BookSynchroniser", "SnapshotPolicy"]

_SYNCING = pb.ORDER_BOOK_STATE_SYNCING
_SYNCED = pb.ORDER_BOOK_STATE_SYNCED
_RESYNCING = pb.ORDER_BOOK_STATE_RESYNCING
_STALE = pb.ORDER_BOOK_STATE_STALE

_Why: TypeAlias = tuple["pb.OrderBookReason.ValueType", str]

# Diffs in a row that lie behind the book: a snapshot a little ahead of the stream explains some.
_MOST_BEHIND = 100
# Those that are newer than the book by the venue's own time are explained by nothing else than ids
# that began again; one may be a whim of a clock.
_MOST_ANEW = 3


class BookSynchroniser:
    """One instrument's book and its continuity.

    Times are nanoseconds since 1970, taken by the caller at the socket read. Counters are public
    and only grow: `frames` (diffs received), `applied`, `duplicates` (diffs already contained),
    `gaps` (breaks of the venue's sequence), `resyncs` (rebuilds after having been in step),
    `malformed`, `unpublished` (updates applied while muted), `checksums_ok` and `checksums_bad`
    (comparisons with the venue's checksum).

    `sizes` converts the venue's quantities; None where it counts in the instrument's unit already.
    """

    def __init__(
        self,
        exchange: str,
        symbol: str,
        adapter: VenueAdapter,
        output: BookOutput,
        policy: SnapshotPolicy,
        *,
        epoch_floor: int = 0,
        sizes: ContractSize | None = None,
    ) -> None:
        self.exchange = exchange
        self.symbol = symbol
        self.book = OrderBook()
        self.state: pb.OrderBookState.ValueType = _SYNCING
        self.reason: pb.OrderBookReason.ValueType = pb.ORDER_BOOK_REASON_STARTUP
        self.detail = ""
        self.epoch = 0
        self.sequence = 0
        self.venue_sequence = 0
        self.exchange_time = 0
        self.receive_time = 0
        self.frames = 0
        self.applied = 0
        self.duplicates = 0
        self.gaps = 0
        self.resyncs = 0
        self.malformed = 0
        self.unpublished = 0
        self.checksums_ok = 0
        self.checksums_bad = 0
        self.muted = False
        self.sizes = sizes
        self._adapter = adapter
        self._from_stream = adapter.snapshot_source is SnapshotSource.STREAM
        self._checksum = adapter.book_checksum()
        self._output = output
        self._policy = policy
        self._encoder = OrderBookEncoder(exchange, symbol)
        self._epoch_floor = epoch_floor
        self._buffer: deque[tuple[BookDiff, int]] = deque(maxlen=policy.max_buffered)
        self._out_of_step_since = 0
        self._updates_since_snapshot = 0
        self._snapshot_time = 0
        self._waiting = False
        self._behind = 0
        self._anew = 0
        # Levels a side that the venue keeps up, where the snapshot comes in the stream.
        self._window = 0

    # What comes in

    def begin(self, now: int) -> None:
        """Start synchronising: the diffs of this instrument flow from now on.

        Whatever was asked for before belongs to another connection and will not be answered.
        """
        if self._from_stream and self.state == _SYNCED:
            # Its snapshot came before the acknowledgement, or another connection carries it.
            return
        self._waiting = False
        if self._out_of_step_since == 0:
            self._out_of_step_since = now
        if self.state == _SYNCING and self.epoch == 0:
            self._publish_status(now)
        self._ask(self.reason)

    def on_diff(self, diff: BookDiff, receive_time: int) -> None:
        """Take the next diff as it was received."""
        self.frames += 1
        state = self.state
        if state == _SYNCED:
            # By far the most frequent case first.
            if diff.previous == self.venue_sequence:
                self._apply(diff, receive_time)
                return
        elif state != _STALE:
            self._keep(diff, receive_time)
            return
        if self._continues(diff):
            if state == _STALE:
                self._transition(_SYNCED, pb.ORDER_BOOK_REASON_SYNCHRONISED, "", receive_time)
            self._apply(diff, receive_time)
        elif self._adapter.repeats(diff, self.venue_sequence):
            self.duplicates += 1
            self._behind += 1
            # Before the first diff the time is the snapshot's, which is no time of the stream.
            if self.sequence and 0 < self.exchange_time < diff.exchange_time:
                self._anew += 1
            if self._behind > _MOST_BEHIND or self._anew >= _MOST_ANEW:
                newer = f", {self._anew} of them newer by their time" if self._anew else ""
                self._lose(
                    pb.ORDER_BOOK_REASON_VENUE_RESET,
                    f"{self._behind} diffs in a row lie behind {self.venue_sequence}{newer}; "
                    f"the last is {diff.first}..{diff.last}",
                    receive_time,
                )
                self._keep(diff, receive_time)
        else:
            self.gaps += 1
            silence = "after silence: " if state == _STALE else ""
            detail = (
                f"{silence}expected a diff that continues {self.venue_sequence}, "
                f"got {diff.first}..{diff.last} that continues {diff.previous}"
            )
            self._lose(pb.ORDER_BOOK_REASON_VENUE_GAP, detail, receive_time)
            self._keep(diff, receive_time)

    def on_overlap(self, diff: BookDiff, receive_time: int) -> None:
        """Take a diff that begins before the book's id and ends behind it.

        Another connection may cut the changes elsewhere. Where ids are ordered, levels are
        absolute, so that it makes of this book the venue's at its last id.
        """
        self.frames += 1
        self._apply(diff, receive_time)

    def on_heartbeat(self, heartbeat: BookHeartbeat, receive_time: int) -> None:
        """Take the venue's word that the book stands at an id: it does, or changes are missing."""
        state = self.state
        if state not in (_SYNCED, _STALE):
            return
        if heartbeat.last != self.venue_sequence:
            self.gaps += 1
            self._lose(
                pb.ORDER_BOOK_REASON_VENUE_GAP,
                f"the venue's book stands at {heartbeat.last}, this one at {self.venue_sequence}",
                receive_time,
            )
        elif not self._agrees(heartbeat.checksum):
            self._lose(*self._disagreement(heartbeat.checksum), receive_time)
        elif state == _STALE:
            self._transition(_SYNCED, pb.ORDER_BOOK_REASON_SYNCHRONISED, "", receive_time)

    def on_stream_snapshot(self, snapshot: BookSnapshot, receive_time: int) -> None:
        """Take a snapshot that came among the diffs: it replaces everything, in step or not."""
        self._waiting = False
        self._buffer.clear()
        refusal = self._replace(snapshot)
        if refusal is None:
            self._begin(snapshot, receive_time)
        elif self.state in (_SYNCED, _STALE):
            self._lose(*refusal, receive_time)
        else:
            self.on_snapshot_failed(*refusal, receive_time)

    def on_snapshot(self, snapshot: BookSnapshot, receive_time: int) -> None:
        """Take the venue's answer to `request_snapshot`."""
        self._waiting = False
        if self.state in (_SYNCED, _STALE):
            return
        covered = self._adapter.covered
        buffer = self._buffer
        while buffer and covered(buffer[0][0], snapshot.last):
            buffer.popleft()
        if buffer and not self._adapter.bridges(buffer[0][0], snapshot.last):
            first = buffer[0][0]
            self.on_snapshot_failed(
                pb.ORDER_BOOK_REASON_SNAPSHOT_STALE,
                f"the venue's snapshot at {snapshot.last} does not reach "
                f"the first buffered diff {first.first}..{first.last}",
                receive_time,
            )
            return
        refusal = self._replace(snapshot)
        if refusal is not None:
            self.on_snapshot_failed(*refusal, receive_time)
            return
        self._begin(snapshot, receive_time)
        pending = list(buffer)
        buffer.clear()
        for diff, received in pending:
            # `frames` counted these when they came; a hole among them leads back to RESYNCING,
            # and then the rest is buffered again.
            self.frames -= 1
            self.on_diff(diff, received)

    def on_snapshot_failed(
        self, reason: "pb.OrderBookReason.ValueType", detail: str, now: int
    ) -> None:
        """Note why there is no snapshot yet, tell it, and ask again."""
        self._waiting = False
        if self.state in (_SYNCED, _STALE):
            return
        self.reason = reason
        self.detail = detail
        self._publish_status(now)
        self._ask(reason)

    def on_malformed(self, detail: str, now: int) -> None:
        """Note that a frame of this book could not be read: what it held is missing."""
        self.malformed += 1
        self._lose(pb.ORDER_BOOK_REASON_MALFORMED_FRAME, detail, now)

    def on_disconnected(self, detail: str, now: int) -> None:
        """Note that the connection that carried the diffs has ended; nothing continues it."""
        self._buffer.clear()
        self._waiting = False
        if self.state in (_SYNCED, _STALE):
            self._transition(_RESYNCING, pb.ORDER_BOOK_REASON_VENUE_DISCONNECTED, detail, now)
            self.resyncs += 1

    def on_silence(
        self,
        detail: str,
        now: int,
        reason: "pb.OrderBookReason.ValueType" = pb.ORDER_BOOK_REASON_FEED_SILENT,
    ) -> None:
        """Note that nothing tells any more whether the venue's book is still this one."""
        if self.state == _SYNCED:
            self._transition(_STALE, reason, detail, now)

    def rebuild(self, reason: "pb.OrderBookReason.ValueType", detail: str, now: int) -> None:
        """Give the book up and build it again from a fresh snapshot."""
        if self.state in (_SYNCED, _STALE):
            self._lose(reason, detail, now)
        else:
            self._ask(reason)

    def mute(self) -> None:
        """Publish nothing from now on; the book itself goes on. For a broker that is away."""
        self.muted = True

    def unmute(self, now: int) -> None:
        """Publish again: what was not published cannot be continued, so a new epoch begins."""
        if not self.muted:
            return
        self.muted = False
        state, reason, detail = self.state, self.reason, self.detail
        if state not in (_SYNCED, _STALE):
            self._publish_status(now)
            return
        self._out_of_step_since = self._out_of_step_since or now
        self._begin_epoch(now)
        if state == _STALE:
            self._transition(_STALE, reason, detail, now)

    def tick(self, now: int) -> bool:
        """Look after what time alone brings: periodic snapshots, the horizon, the size.

        Tells whether there was something to do: that takes a millisecond or two.
        """
        if self.state != _SYNCED or self.muted:
            return False
        age = (now - self._snapshot_time) / 1e9
        due = (
            self._policy.every_seconds
            if self._updates_since_snapshot
            else (self._policy.refresh_seconds)
        )
        # A clock set back must not keep a quiet book from repeating itself.
        if 0 <= age < due:
            return False
        self._periodic(now)
        return True

    # What is told

    @property
    def in_step(self) -> bool:
        """Whether the book equals the venue's at `venue_sequence`."""
        return self.state == _SYNCED

    def status(self, now: int, *, outage_ns: int = 0) -> pb.OrderBookStatus:
        """Build the status message of this moment."""
        status = pb.OrderBookStatus(
            exchange=self.exchange,
            symbol=self.symbol,
            epoch=self.epoch,
            sequence=self.sequence,
            venue_sequence=self.venue_sequence,
            state=self.state,
            reason=self.reason,
            detail=self.detail,
            outage_ms=outage_ns // 1_000_000,
        )
        status.time.FromNanoseconds(now)
        return status

    # Inside

    def _keep(self, diff: BookDiff, receive_time: int) -> None:
        # No snapshot in the stream reaches back to what came before it.
        if not self._from_stream:
            self._buffer.append((diff, receive_time))

    def _replace(self, snapshot: BookSnapshot) -> _Why | None:
        """Put the snapshot in place of the book, or give why it cannot be."""
        try:
            bids, asks = snapshot.bids, snapshot.asks
            if self.sizes is not None:
                bids, asks = self.sizes.levels(bids), self.sizes.levels(asks)
            self.book.replace(bids, asks, limit=snapshot.limit)
        except InvalidDecimalError as error:
            return pb.ORDER_BOOK_REASON_SNAPSHOT_FAILED, f"malformed snapshot: {error}"
        if self._checksum is not None:
            self._checksum.replace(snapshot.bids, snapshot.asks)
            if not self._agrees(snapshot.checksum):
                return self._disagreement(snapshot.checksum)
        return None

    def _begin(self, snapshot: BookSnapshot, receive_time: int) -> None:
        self._window = snapshot.limit if self._from_stream else 0
        self.venue_sequence = snapshot.last
        self.exchange_time = snapshot.exchange_time
        self.receive_time = receive_time
        self._begin_epoch(receive_time)

    def _agrees(self, checksum: int) -> bool:
        """Hold the book against the venue's checksum, where there is one."""
        if not checksum or self._checksum is None:
            return True
        if self._checksum.value() == checksum:
            self.checksums_ok += 1
            return True
        self.checksums_bad += 1
        return False

    def _disagreement(self, checksum: int) -> _Why:
        computed = self._checksum.value() if self._checksum is not None else 0
        return (
            pb.ORDER_BOOK_REASON_CHECKSUM_MISMATCH,
            f"the venue's checksum is {checksum}, that of this book {computed}",
        )

    def _continues(self, diff: BookDiff) -> bool:
        if diff.previous == self.venue_sequence:
            return True
        # A snapshot that came ahead of every buffered diff: this is the first to continue it.
        return self.sequence == 0 and self._adapter.bridges(diff, self.venue_sequence)

    def _apply(self, diff: BookDiff, receive_time: int) -> None:
        try:
            sizes = self.sizes
            levels = (
                self.book.apply(diff.bids, diff.asks)
                if sizes is None
                else self.book.apply(sizes.levels(diff.bids), sizes.levels(diff.asks))
            )
        except InvalidDecimalError as error:
            self.on_malformed(str(error), receive_time)
            return
        if self._checksum is not None:
            self._checksum.apply(diff.bids, diff.asks)
            if not self._agrees(diff.checksum):
                self._lose(*self._disagreement(diff.checksum), receive_time)
                return
        self.applied += 1
        self._behind = self._anew = 0
        self.sequence = sequence = self.sequence + 1
        previous = self.venue_sequence
        self.venue_sequence = last = diff.last
        self.exchange_time = exchange_time = diff.exchange_time
        self.receive_time = receive_time
        if self.muted:
            self.unpublished += 1
            return
        self._output.publish_update(
            self._encoder.update(
                sequence, exchange_time, receive_time, last, diff.first, previous, levels
            ),
            self.epoch,
            sequence,
        )
        self._updates_since_snapshot += 1
        if self._updates_since_snapshot >= self._policy.every_updates:
            self._periodic(receive_time)

    def _begin_epoch(self, now: int) -> None:
        outage = now - self._out_of_step_since if self._out_of_step_since else 0
        # Microseconds since 1970, so that it grows across restarts without being stored; the floor
        # keeps it growing when a clock is set back.
        self.epoch = max(self.epoch + 1, self._epoch_floor + 1, now // 1000)
        self.sequence = 0
        self._behind = self._anew = 0
        self._encoder.begin_epoch(self.epoch)
        self.state = _SYNCED
        self.reason = pb.ORDER_BOOK_REASON_SYNCHRONISED
        self.detail = ""
        self._out_of_step_since = 0
        self._publish_snapshot(pb.SNAPSHOT_REASON_EPOCH_START, now)
        self._output.publish_status(self.status(now, outage_ns=max(outage, 0)))

    def _lose(self, reason: "pb.OrderBookReason.ValueType", detail: str, now: int) -> None:
        if self.state in (_SYNCED, _STALE):
            self.resyncs += 1
            self._transition(_RESYNCING, reason, detail, now)
        self._buffer.clear()
        self._ask(reason)

    def _transition(
        self,
        state: "pb.OrderBookState.ValueType",
        reason: "pb.OrderBookReason.ValueType",
        detail: str,
        now: int,
    ) -> None:
        outage = 0
        if state == _SYNCED:
            outage = now - self._out_of_step_since if self._out_of_step_since else 0
            self._out_of_step_since = 0
        elif self._out_of_step_since == 0:
            self._out_of_step_since = now
        self.state = state
        self.reason = reason
        self.detail = detail
        self._output.publish_status(self.status(now, outage_ns=max(outage, 0)))

    def _ask(self, reason: "pb.OrderBookReason.ValueType") -> None:
        if not self._waiting:
            self._waiting = True
            self._output.request_snapshot(reason)

    def _publish_status(self, now: int) -> None:
        self._output.publish_status(self.status(now))

    def _publish_snapshot(self, reason: "pb.SnapshotReason.ValueType", now: int) -> None:
        self._snapshot_time = now
        self._updates_since_snapshot = 0
        if self.muted:
            return
        if self._window:
            self.book.slide(self._window)
        self._output.publish_snapshot(
            self._encoder.snapshot(
                self.sequence,
                self.exchange_time,
                self.receive_time,
                self.venue_sequence,
                reason,
                self.book.encode_levels(),
                self.book.bid_horizon,
                self.book.ask_horizon,
            ),
            self.epoch,
            self.sequence,
        )

    def _periodic(self, now: int) -> None:
        if self._window:
            self.book.slide(self._window)
        if self.book.crossed():
            self._lose(
                pb.ORDER_BOOK_REASON_CROSSED,
                f"best bid {self.book.best_bid()} is not below best ask {self.book.best_ask()}",
                now,
            )
            return
        bids, asks = self.book.levels_within_horizon()
        if (self.book.bid_horizon and bids < self._policy.min_levels) or (
            self.book.ask_horizon and asks < self._policy.min_levels
        ):
            self._lose(
                pb.ORDER_BOOK_REASON_HORIZON_REACHED,
                f"only {bids} bids and {asks} asks are left within the snapshot's horizon",
                now,
            )
            return
        self.book.trim(self._policy.max_levels)
        self._publish_snapshot(pb.SNAPSHOT_REASON_PERIODIC, now)
