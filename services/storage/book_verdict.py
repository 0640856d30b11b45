"""Says what a rebuilt book is worth, and why.

The chain is the judge: a book is the venue's at an instant when every update until then is held,
and something later continues it (the next update, the collector's word that it is in step). What
nothing continues was perhaps overtaken by something that never came, unless it is as young as a
book of the present is.
"""

from dataclasses import dataclass
from typing import Final

from marketprism.collector.v1 import integrity_event_pb2 as integrity
from marketprism.history.v1 import order_book_history_pb2 as pb
from marketprism.market.v1 import common_pb2, order_book_pb2

from services.storage.book_store import STALE, SYNCED, BookStore, Held, Place, Status
from services.storage.book_walk import BookWalk
from services.storage.gaps import gaps_touching
from services.storage.validators import MAX_TIME, NANOS

__all__ = ["BookJudge"]

# As long as a collector waits before it calls a book silent.
_SILENCE: Final = 10 * NANOS
_CONTINUOUS: Final = pb.ORDER_BOOK_CONTINUITY_CONTINUOUS
_BROKEN: Final = pb.ORDER_BOOK_CONTINUITY_BROKEN
_OUT_OF_STEP: Final = pb.ORDER_BOOK_CONTINUITY_OUT_OF_STEP
_STALE: Final = pb.ORDER_BOOK_CONTINUITY_STALE

_LIFE: Final = (
    integrity.INTEGRITY_KIND_COLLECTOR_STOPPED,
    integrity.INTEGRITY_KIND_TAKEN_OVER,
    integrity.INTEGRITY_KIND_HANDED_OVER,
    integrity.INTEGRITY_KIND_COLLECTOR_STARTED,
)
# What explains a verdict, the best first; kinds that are not named explain nothing.
_EXPLAINS: Final = {
    _BROKEN: (
        integrity.INTEGRITY_KIND_DROPPED, *_LIFE, integrity.INTEGRITY_KIND_DISCONNECTED,
        integrity.INTEGRITY_KIND_RESYNC_BEGUN, integrity.INTEGRITY_KIND_GAP,
    ),
    _OUT_OF_STEP: (
        integrity.INTEGRITY_KIND_RESYNC_BEGUN, integrity.INTEGRITY_KIND_GAP,
        integrity.INTEGRITY_KIND_DISCONNECTED, integrity.INTEGRITY_KIND_MALFORMED_FRAME,
        integrity.INTEGRITY_KIND_SUBSCRIPTION_REFUSED, *_LIFE,
        integrity.INTEGRITY_KIND_RESYNC_FINISHED,
    ),
    _STALE: (
        integrity.INTEGRITY_KIND_SILENT, integrity.INTEGRITY_KIND_DISCONNECTED, *_LIFE,
        integrity.INTEGRITY_KIND_RESYNC_BEGUN, integrity.INTEGRITY_KIND_GAP,
        integrity.INTEGRITY_KIND_DROPPED,
    ),
}  # fmt: skip


@dataclass(slots=True)
class _Finding:
    """A verdict without what has to be looked up for it."""

    continuity: "pb.OrderBookContinuity.ValueType"
    detail: str
    missing: tuple[int, int] = (0, 0)
    until: int = MAX_TIME
    """Ledger entries of the time until then may explain it, nanoseconds since 1970."""
    goes_on: int = 0
    """When the same epoch goes on, nanoseconds since 1970; 0 when it does not."""


class BookJudge:
    """Judges books of one instrument; one for a request: what was looked up is kept."""

    def __init__(self, store: BookStore) -> None:
        self._store = store
        self._gaps: dict[tuple[int, int], list[integrity.IntegrityEvent]] = {}
        self._next: dict[tuple[int, int], tuple[int, Place | None]] = {}

    async def verdict(self, walk: BookWalk, at: int) -> pb.OrderBookVerdict:
        """Judge the book of an instant, which `walk` was moved to."""
        base = walk.base
        found = await self._find(walk, at)
        first, last = found.missing
        verdict = pb.OrderBookVerdict(
            continuity=found.continuity,
            detail=found.detail,
            base_epoch=base.epoch,
            base_sequence=base.sequence,
            updates_applied=walk.applied,
            first_missing_sequence=first,
            last_missing_sequence=last,
        )
        verdict.base_time.FromNanoseconds(base.time)
        verdict.age.FromNanoseconds(at - walk.receive_time)
        if found.continuity != _CONTINUOUS:
            place = (base.epoch, max(last, first, walk.sequence))
            await self._explain(verdict, walk.reached, found.until, at, place, found.goes_on)
        return verdict

    async def continuity(self, walk: BookWalk, at: int) -> "pb.OrderBookContinuity.ValueType":
        """Give the verdict's word alone."""
        return (await self._find(walk, at)).continuity

    async def without_book(self, at: int) -> pb.OrderBookVerdict:
        """Judge an instant before which no book is held."""
        told = await self._store.statuses_before(at)
        verdict = pb.OrderBookVerdict(
            continuity=_BROKEN,
            detail="expected a snapshot received until this instant, the store holds none",
        )
        if told and told[-1].state not in (SYNCED, STALE):
            verdict.continuity = _OUT_OF_STEP
            verdict.detail = _words("the collector has no book yet", told[-1])
        await self._explain(verdict, at, at + 1, at, (0, 0), 0)
        return verdict

    # ---- the finding

    async def _find(self, walk: BookWalk, at: int) -> _Finding:
        status = walk.status_at(at)
        epoch, sequence = walk.base.epoch, walk.sequence
        is_out = status is not None and status.state not in (SYNCED, STALE)
        claimed = max(
            (told.sequence for told in walk.statuses if told.epoch == epoch and told.time <= at),
            default=0,
        )
        # What was received at this very instant needs no proof.
        is_new = at == walk.reached and claimed <= sequence and not is_out
        following = Held(sequence + 1, at) if is_new else await walk.following()
        if (hole := _hole(walk, following, claimed)) is not None:
            return hole
        if status is not None and is_out:
            return _Finding(
                _OUT_OF_STEP,
                _words("the collector was out of step and rebuilt the book", status),
                until=status.time + 1,
            )
        if (begun := _other_epoch(walk, status, at)) is not None:
            return begun
        if status is not None and status.state == STALE:
            return _Finding(
                _STALE,
                _words("right until its own time, then the feed was silent", status),
                until=status.time + 1,
                goes_on=await self._goes_on(walk, following, at),
            )
        if following is not None:
            return _Finding(_CONTINUOUS, f"{walk.applied} updates chained, and continued")
        return await self._unproved(walk, at)

    async def _unproved(self, walk: BookWalk, at: int) -> _Finding:
        """Judge a book that no update continues."""
        epoch = walk.base.epoch
        said = [told for told in walk.statuses if told.state == SYNCED and told.epoch == epoch]
        proved = max([walk.reached, *(told.time for told in said if told.time <= at)])
        later = min(
            (told for told in walk.statuses if told.time > at),
            key=lambda told: told.time,
            default=None,
        )
        if later in said and later is not None and later.sequence == walk.sequence:
            return _Finding(_CONTINUOUS, f"{walk.applied} updates chained; later still in step")
        if proved == at:
            return _Finding(_CONTINUOUS, f"{walk.applied} updates chained")
        silent = (at - walk.receive_time) / NANOS
        if later is not None:
            words = (
                f"no update came in the {silent:.3f} s before this instant, and then it was told"
            )
            return _Finding(_STALE, _words(words, later), until=later.time + 1)
        place = await self._next_snapshot(proved, (epoch, walk.sequence))
        if place is not None and place.time > at and place.epoch > epoch:
            return _Finding(
                _STALE,
                f"no update came in the {silent:.3f} s before this instant, and the next that is "
                f"held is the beginning of epoch {place.epoch}",
                until=place.time + 1,
            )
        if at - proved > _SILENCE:
            return _Finding(
                _STALE,
                f"no update came in the {silent:.3f} s before this instant, and nothing that is "
                "held tells whether the venue went on",
            )
        return _Finding(_CONTINUOUS, f"{walk.applied} updates chained, the last {silent:.3f} s old")

    async def _goes_on(self, walk: BookWalk, following: Held | None, at: int) -> int:
        times = [
            told.time
            for told in walk.statuses
            if told.time > at and told.state == SYNCED and told.epoch == walk.base.epoch
        ]
        if following is not None and following.time > at:
            times.append(following.time)
        return min(times, default=0)

    # ---- what is looked up

    async def _explain(
        self,
        verdict: pb.OrderBookVerdict,
        begin: int,
        until: int,
        at: int,
        place: tuple[int, int],
        goes_on: int,
    ) -> None:
        entries = self._gaps.get((begin, until))
        if entries is None:
            entries = self._gaps[begin, until] = await gaps_touching(
                self._store.engine,
                self._store.exchange,
                self._store.symbol,
                [common_pb2.EVENT_KIND_ORDER_BOOK],
                begin,
                until,
            )
        ranks = {kind: rank for rank, kind in enumerate(_EXPLAINS[verdict.continuity])}
        found = [
            (ranks[entry.kind], -entry.receive_time.ToNanoseconds(), index)
            for index, entry in enumerate(entries)
            if entry.kind in ranks and _begin(entry) <= at
        ]
        if found:
            verdict.gap.CopyFrom(entries[min(found)[2]])
        following = await self._next_snapshot(at, place)
        times = [time for time in (goes_on, following.time if following else 0) if time]
        if times:
            verdict.next_right_time.FromNanoseconds(min(times))

    async def _next_snapshot(self, at: int, place: tuple[int, int]) -> Place | None:
        asked, found = self._next.get(place, (0, None))
        if place in self._next and asked <= at and (found is None or found.time > at):
            return found
        found = await self._store.next_snapshot(at, *place)
        self._next[place] = (at, found)
        return found


def _hole(walk: BookWalk, following: Held | None, claimed: int) -> _Finding | None:
    sequence = walk.sequence
    if following is not None and following.sequence == sequence + 1:
        return None
    if following is None and claimed <= sequence:
        return None
    last = following.sequence - 1 if following is not None else claimed
    held = (
        f"update {following.sequence} or a snapshot at {last} is the next that is held"
        if following is not None
        else f"the collector published until {claimed}"
    )
    return _Finding(
        _BROKEN,
        f"expected update {sequence + 1} of epoch {walk.base.epoch}, {held}; the book is as of "
        f"{sequence}",
        missing=(sequence + 1, last),
        until=following.time + 1 if following is not None else MAX_TIME,
    )


def _other_epoch(walk: BookWalk, status: Status | None, at: int) -> _Finding | None:
    begun = [(epoch, time) for epoch, time in walk.other_epochs if time <= at]
    if status is not None and status.epoch > walk.base.epoch:
        begun.append((status.epoch, status.time))
    if not begun:
        return None
    epoch, time = min(begun)
    return _Finding(
        _BROKEN,
        f"epoch {epoch} began, and no snapshot of it that was received until this instant is held; "
        f"the book is the last of epoch {walk.base.epoch}",
        until=time + 1,
    )


def _words(what: str, status: Status) -> str:
    state = order_book_pb2.OrderBookState.Name(status.state).removeprefix("ORDER_BOOK_STATE_")  # type: ignore[arg-type]  # the enum's value is an int
    reason = order_book_pb2.OrderBookReason.Name(status.reason)  # type: ignore[arg-type]  # as above
    reason = reason.removeprefix("ORDER_BOOK_REASON_")
    return f"{what}: {state} {reason}{f': {status.detail}' if status.detail else ''}"


def _begin(entry: integrity.IntegrityEvent) -> int:
    received = entry.receive_time.ToNanoseconds()
    told = entry.begin_time.ToNanoseconds()
    return min(told, received) if told else received
