"""How whole a UTC day of an instrument is, from the gap ledger and the counts of what is held.

Pure: `services.storage.integrity` reads the ledger and the tables. Times are nanoseconds since
1970.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from marketprism.collector.v1 import integrity_event_pb2 as ledger
from marketprism.history.v1 import store_pb2
from marketprism.market.v1 import common_pb2

from services.shared.ranges import Ranges

__all__ = ["DAY", "Counts", "DayLedger", "Held", "day_entry"]

DAY: Final = 86_400 * 1_000_000_000
"""Nanoseconds of a day."""

_TRADE: Final = common_pb2.EVENT_KIND_TRADE
_BOOK: Final = common_pb2.EVENT_KIND_ORDER_BOOK
_STALE: Final = 300 * 1_000_000_000
_MILLION: Final = 1_000_000

_LOSSES: Final = frozenset({
    ledger.INTEGRITY_KIND_GAP,
    ledger.INTEGRITY_KIND_DISCONNECTED,
    ledger.INTEGRITY_KIND_SILENT,
    ledger.INTEGRITY_KIND_MALFORMED_FRAME,
    ledger.INTEGRITY_KIND_DROPPED,
    ledger.INTEGRITY_KIND_SUBSCRIPTION_REFUSED,
})  # fmt: skip
_OUTAGES: Final = {
    ledger.INTEGRITY_KIND_CONNECTED: 0,
    ledger.INTEGRITY_KIND_SPEAKING: _BOOK,
    ledger.INTEGRITY_KIND_RESYNC_FINISHED: _BOOK,
}
"""Entries whose begin and end enclose a time without a working feed, and of which kind; 0: all."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What is held of one kind of one day."""

    rows: int = 0
    """Events."""
    duplicates: int = 0
    """Events beyond the first of each id of the venue."""
    backfilled: int = 0
    """Events that were fetched afterwards."""


@dataclass(frozen=True, slots=True)
class Held:
    """From when to when events of one kind are held."""

    first: int
    """Time of the first."""
    last: int
    """Time of the last."""


@dataclass(slots=True)
class DayLedger:
    """The ledger's entries of one instrument, its connections and its venue, read once."""

    entries: Sequence[ledger.IntegrityEvent]
    """In the order in which they were noticed."""
    last_rows: Sequence[tuple[int, int]] = ()
    """(start of a collector, when anything of the instrument was received last before it)."""
    outages: Ranges = field(default_factory=Ranges)
    """Times without a feed of any kind."""
    book_outages: Ranges = field(default_factory=Ranges)
    """Times when the book was out of step or silent."""
    losses: list[ledger.IntegrityEvent] = field(default_factory=list)
    """Entries that tell of something missing."""
    resyncs: list[int] = field(default_factory=list)
    """When rebuilds of the book began."""
    missing: list[tuple[int, int, int]] = field(default_factory=list)
    """(begin, end, how many ids) of what the ledger names and no later entry mends."""

    def __post_init__(self) -> None:
        connections = {
            each.connection_id for each in self.entries if each.symbol and each.connection_id
        }
        runs = _TradeRuns()
        stopped: dict[str, int] = {}
        before = dict(self.last_rows)
        for each in self.entries:
            elsewhere = each.connection_id and each.connection_id not in connections
            if connections and elsewhere and not each.symbol:
                # Another connection of the venue carries other instruments.
                continue
            noticed = each.receive_time.ToNanoseconds()
            begin = each.begin_time.ToNanoseconds() or noticed
            end = each.end_time.ToNanoseconds() or noticed
            if each.kind == ledger.INTEGRITY_KIND_COLLECTOR_STOPPED:
                stopped[each.collector_id] = noticed
            elif each.kind == ledger.INTEGRITY_KIND_COLLECTOR_STARTED:
                since = max(before.get(noticed, 0), stopped.pop(each.collector_id, 0))
                if since:
                    self.outages.add(since, noticed - 1)
            elif each.kind in _OUTAGES:
                of = self.book_outages if _OUTAGES[each.kind] else self.outages
                of.add(begin, end - 1)
            elif (
                each.kind == ledger.INTEGRITY_KIND_RESYNC_BEGUN
                and each.cause != ledger.INTEGRITY_CAUSE_PROCESS
            ):
                self.resyncs.append(noticed)
            if each.event_kind == _TRADE:
                runs.take(each, begin, end)
            if each.kind in _LOSSES and not _is_told_again(each):
                self.losses.append(each)
        self.missing = runs.missing()

    def losses_of(self, kind: int, begin: int, end: int) -> list[ledger.IntegrityEvent]:
        """Give the entries about a kind that touch begin..end (exclusive)."""
        return [
            each
            for each in self.losses
            if each.event_kind in (0, kind) and _touches(each, begin, end)
        ]


class _TradeRuns:
    """Which trades are missing, by what the ledger tells in its order."""

    def __init__(self) -> None:
        self._gaps: list[tuple[int, int, Ranges]] = []
        self._uncounted: list[tuple[int, int, int]] = []

    def take(self, event: ledger.IntegrityEvent, begin: int, end: int) -> None:
        first, last = event.first_missing_id, event.last_missing_id
        if event.kind == ledger.INTEGRITY_KIND_BACKFILLED:
            for _, _, run in self._gaps:
                run.discard(first, last)
        elif event.kind in (ledger.INTEGRITY_KIND_GAP, ledger.INTEGRITY_KIND_DROPPED):
            if 0 < first <= last and event.count == last - first + 1:
                run = Ranges([(first, last)])
                for _, _, known in self._gaps:
                    # Told again, when it was given up: it is missing once.
                    for each in known:
                        run.discard(*each)
                self._gaps.append((begin, end, run))
            elif event.count:
                self._uncounted.append((begin, end, event.count))

    def missing(self) -> list[tuple[int, int, int]]:
        told = [(begin, end, run.count) for begin, end, run in self._gaps if run]
        return told + self._uncounted


def day_entry(
    exchange: str,
    symbol: str,
    kind: int,
    day: int,
    counts: Counts,
    read: DayLedger,
    held: Held,
    now: int,
    last_row: int,
) -> store_pb2.IntegrityDay:
    """Judge one UTC day, which begins at `day`, of one kind.

    `held` is what is held of the kind at all: before its first event nothing was collected.
    `last_row` is when anything of the instrument was received last: long ago means that nobody
    collects it any more. Of today only the time until `now` counts.
    """
    end = min(day + DAY, max(now, day + 1))
    away = Ranges(read.outages.within(day, end - 1))
    if kind == _BOOK:
        for run in read.book_outages.within(day, end - 1):
            away.add(*run)
    away.add(day, min(held.first, end) - 1)
    is_over = end - last_row > _STALE
    if is_over:
        away.add(max(last_row, day), end - 1)
    covered = end - day - Ranges(away.within(day, end - 1)).count
    losses = read.losses_of(kind, day, end)
    missing = 0
    unmended = False
    if kind == _TRADE:
        for begin, until, count in read.missing:
            # A loss over midnight is told with the day that it begins in, and spoils both.
            missing += count if day <= begin < end else 0
            unmended = unmended or (begin < end and until >= day)
        # Numbers tell: after an outage what it cost is in the ledger, and mended or not.
        whole = not unmended and held.first < day + _STALE and not is_over
    else:
        whole = covered == end - day and not losses
    entry = store_pb2.IntegrityDay(
        exchange=exchange,
        symbol=symbol,
        kind=kind,  # type: ignore[arg-type]  # the enum's value is an int
        rows=counts.rows,
        gaps=len(losses),
        missing_ids=missing,
        backfilled=counts.backfilled,
        duplicates=counts.duplicates,
        covered_share=_share(covered, end - day),
        resyncs=sum(day <= time < end for time in read.resyncs) if kind == _BOOK else 0,
        whole=bool(counts.rows) and whole and not counts.duplicates,
    )
    entry.day.FromNanoseconds(day)
    entry.covered.FromNanoseconds(covered)
    return entry


def _is_told_again(event: ledger.IntegrityEvent) -> bool:
    return event.kind == ledger.INTEGRITY_KIND_GAP and bool(event.previous_event_id)


def _touches(event: ledger.IntegrityEvent, begin: int, end: int) -> bool:
    noticed = event.receive_time.ToNanoseconds()
    since = event.begin_time.ToNanoseconds() or noticed
    until = event.end_time.ToNanoseconds() or noticed
    return since < end and until >= begin


def _share(covered: int, length: int) -> str:
    millionths = covered * _MILLION // length
    if millionths >= _MILLION:
        return "1"
    return f"0.{millionths:06d}".rstrip("0").rstrip(".")
