"""What became of the missed trades of one instrument, told to the gap ledger by their numbers."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from marketprism.collector.v1 import integrity_event_pb2 as integrity
from marketprism.market.v1 import common_pb2

from services.collector.ledger import Ledger

__all__ = ["Debt", "TradeLedger"]

_TRADE = common_pb2.EVENT_KIND_TRADE
_MOST_RUNS = 20

Run = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Debt:
    """Trades that an earlier process published newer ones before, and could not fetch any more."""

    first: int
    """First number that is missing."""
    last: int
    """Last number that is missing."""
    since: int
    """When the trade before them was received, nanoseconds since 1970; 0 when not known."""
    event_id: str
    """The ledger's entry that says so."""


class TradeLedger:
    """Writes the entries that are about the trades of one instrument.

    Entries name exact runs of numbers: BACKFILLED takes away from what GAP said before it. Only
    where a hole falls into more than 20 runs the last entry spans the rest; its count is then less
    than its numbers. `connection()` names the connection. `begin` and `end` of a hole are the
    receive times of the trades around it, nanoseconds since 1970.
    """

    def __init__(
        self, exchange: str, symbol: str, ledger: Ledger, connection: Callable[[], str]
    ) -> None:
        self._exchange = exchange
        self._symbol = symbol
        self._ledger = ledger
        self._connection = connection
        self._owed: list[tuple[int, int, str]] = []

    def remember(self, debts: Iterable[Debt]) -> None:
        """Take over what an earlier process still owed."""
        self._owed += [(debt.first, debt.last, debt.event_id) for debt in debts]

    def filled(self, first: int, last: int, found: int, now: int) -> None:
        """Tell that so many of the trades of a hole are published in their place."""
        if found:
            self._record(
                integrity.INTEGRITY_KIND_BACKFILLED,
                f"{found} of the trades {first}..{last} were fetched from the venue's history",
                now,
                (first, last),
                found,
            )

    def paid(self, runs: Sequence[Run], numbers: Sequence[int], now: int) -> None:
        """Tell that owed runs are no longer owed; `numbers` are the trades published of them."""
        for run in _bounded(runs):
            first, last, _ = run
            count = sum(first <= number <= last for number in numbers)
            self._record(
                integrity.INTEGRITY_KIND_BACKFILLED,
                f"{count} of the trades {first}..{last} were fetched from the venue's history "
                "and published behind newer ones",
                now,
                (first, last),
                count,
                previous=self._named(first, last),
            )

    def owed(self, runs: Sequence[Run], why: str, now: int, begin: int, end: int) -> None:
        """Tell what is missing of a hole while the stream goes on."""
        for first, last, count in _bounded(runs):
            event_id = self._record(
                integrity.INTEGRITY_KIND_GAP,
                f"{count} of the trades {first}..{last} are missing; {why}; "
                "what the venue's history has of them follows",
                now,
                (first, last),
                count,
                begin=begin,
                end=end,
            )
            self._owed.append((first, last, event_id))

    def lost(
        self, runs: Sequence[Run], hole: Run, detail: str, now: int, begin: int = 0, end: int = 0
    ) -> None:
        """Tell what stays missing of a hole, and why."""
        total = sum(last - first + 1 for first, last in runs)
        for first, last, count in _bounded(runs):
            self._record(
                integrity.INTEGRITY_KIND_GAP,
                f"{total} of the trades {hole[0]}..{hole[1]} are missing for good: {detail}",
                now,
                (first, last),
                count,
                begin=begin,
                end=end,
                previous=self._named(first, last),
            )

    def forget(self, first: int, last: int) -> None:
        """Let go of what was owed of first..last: it has been told how it ended."""
        self._owed = [each for each in self._owed if each[1] < first or each[0] > last]

    def renumbered(self, before: int, after: int, now: int) -> None:
        """Tell that the venue's numbers went back."""
        self._owed.clear()
        self._ledger.record(
            integrity.INTEGRITY_KIND_GAP,
            integrity.INTEGRITY_CAUSE_VENUE_MAINTENANCE,
            f"the venue's trade ids went back from {before} to {after} and go on there",
            exchange=self._exchange,
            symbol=self._symbol,
            now=now,
            event_kind=_TRADE,
            connection_id=self._connection(),
        )

    def _named(self, first: int, last: int) -> str:
        """Give the entry that told of these numbers first, empty when there is none."""
        return next((each[2] for each in self._owed if each[0] <= first and last <= each[1]), "")

    def _record(
        self,
        kind: "integrity.IntegrityKind.ValueType",
        detail: str,
        now: int,
        numbers: Run,
        count: int,
        *,
        begin: int = 0,
        end: int = 0,
        previous: str = "",
    ) -> str:
        return self._ledger.record(
            kind,
            integrity.INTEGRITY_CAUSE_VENUE_SEQUENCE,
            detail,
            exchange=self._exchange,
            symbol=self._symbol,
            now=now,
            event_kind=_TRADE,
            begin=begin,
            end=end,
            first_missing_id=numbers[0],
            last_missing_id=numbers[1],
            count=count,
            connection_id=self._connection(),
            previous_event_id=previous,
        )


def _bounded(runs: Sequence[Run]) -> list[tuple[int, int, int]]:
    """Give (first, last, how many numbers) of each run, the last of too many spanning the rest."""
    told = [(first, last, last - first + 1) for first, last in runs]
    if len(told) <= _MOST_RUNS:
        return told
    rest = told[_MOST_RUNS - 1 :]
    return [*told[: _MOST_RUNS - 1], (rest[0][0], rest[-1][1], sum(each[2] for each in rest))]
