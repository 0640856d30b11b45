"""What an earlier collector left behind in the broker: the trades it told, and those it owed."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import structlog
from google.protobuf.message import DecodeError
from marketprism.collector.v1 import integrity_event_pb2 as integrity
from marketprism.market.v1 import common_pb2, events_pb2

from services.collector.trade_ledger import Debt
from services.shared.jetstream import Message, StartAt, StreamReader
from services.shared.ranges import Ranges

__all__ = ["Ledgered", "Recall", "Recalled", "last_trade"]

_LEDGER = "MARKET_INTEGRITY"
_TRADES = "MARKET_TRADE"
_SECONDS = 30.0
_TRADE = common_pb2.EVENT_KIND_TRADE
_GAP = integrity.INTEGRITY_KIND_GAP
_BACKFILLED = integrity.INTEGRITY_KIND_BACKFILLED
_RENUMBERED = integrity.INTEGRITY_CAUSE_VENUE_MAINTENANCE


@dataclass(frozen=True, slots=True)
class Recalled:
    """How far the trades of one instrument had come."""

    last_id: int = 0
    """Highest number published, 0 when none is known."""
    last_time: int = 0
    """When that trade was made, nanoseconds since 1970; 0 when not known."""
    backfilled: bool = False
    """Whether it is marked so, and newer ones may have been published before it."""
    debts: Sequence[Debt] = ()
    """What is still owed."""


@dataclass(slots=True)
class Ledgered:
    """What the ledger says of the trades of one instrument."""

    owed: Ranges = field(default_factory=Ranges)
    """Numbers that are missing."""
    gaps: list[Debt] = field(default_factory=list)
    """The entries that said so, oldest first; some may have been fetched since."""
    times: list[int] = field(default_factory=list)
    """When each of them was written, nanoseconds since 1970."""


class Recall:
    """Reads back what one venue's collector published in the last `hours`.

    `url` is the broker's. Nothing is raised: what cannot be read within 30 s is taken for nothing,
    and stays in the ledger.
    """

    def __init__(self, url: str, exchange: str, hours: float) -> None:
        self._url = url
        self._exchange = exchange
        self._hours = hours
        self._log = structlog.get_logger(exchange=exchange)

    async def ledger(self) -> dict[str, Ledgered]:
        """Give what the ledger says of missing trades, by symbol."""
        found: dict[str, Ledgered] = {}

        def take(message: Message) -> None:
            event = integrity.IntegrityEvent.FromString(message.payload)
            if event.event_kind == _TRADE and event.symbol:
                _take(found.setdefault(event.symbol, Ledgered()), event)

        since = datetime.now(UTC) - timedelta(hours=self._hours)
        complete = await self._read(_LEDGER, f"market.integrity.{self._exchange}.>", since, take)
        return {symbol: each for symbol, each in found.items() if each.gaps} if complete else {}

    async def trades(self, symbol: str, last: Recalled, ledgered: Ledgered) -> Recalled:
        """Tell how far trades had come; `last` is the one stored last.

        Owed trades are published behind newer ones: which of them were, and which is the newest,
        only the trades since then tell.
        """
        gaps = zip(ledgered.gaps, ledgered.times, strict=True)
        since = [
            time
            for gap, time in gaps
            if ledgered.owed.within(gap.first, gap.last)
            or (last.backfilled and gap.first <= last.last_id <= gap.last)
        ]
        if not since:
            return last
        owed = Ranges(ledgered.owed)
        newest = last

        def take(message: Message) -> None:
            nonlocal newest
            trade = events_pb2.Trade.FromString(message.payload)
            told = last_trade(trade)
            owed.discard(told.last_id - max(trade.trade_count, 1) + 1, told.last_id)
            if told.last_id > newest.last_id:
                newest = told

        begin = datetime.fromtimestamp(min(since) / 1e9, UTC) - timedelta(seconds=1)
        subject = f"market.trade.{self._exchange}.{symbol}"
        if not await self._read(_TRADES, subject, begin, take):
            # Nothing may be told twice: what is owed stays in the ledger.
            highest = max((gap.last for gap in ledgered.gaps), default=0)
            return newest if newest.last_id > highest else replace(newest, last_id=highest)
        debts = []
        for gap in ledgered.gaps:
            # Later entries tell again what became of the first.
            for first, end in owed.within(gap.first, gap.last):
                debts.append(replace(gap, first=first, last=end))
                owed.discard(first, end)
        return replace(newest, debts=tuple(debts))

    async def _read(
        self, stream: str, subject: str, since: datetime, take: Callable[[Message], None]
    ) -> bool:
        """Give every message of a subject to `take`; False when that could not be done in time."""
        at_end = asyncio.Event()

        def on_batch(messages: list[Message]) -> None:
            for message in messages:
                try:
                    take(message)
                except DecodeError as error:
                    self._log.error("somebody else published there", error=str(error))
            if not reader.status.pending:
                at_end.set()

        reader = StreamReader(
            self._url,
            stream,
            filter_subjects=[subject],
            start=StartAt.time(since),
            name=f"recall {self._exchange}",
            on_batch=on_batch,
        )
        await reader.start()
        try:
            async with asyncio.timeout(_SECONDS):
                await reader.wait_live()
                if reader.status.pending:
                    await at_end.wait()
        except TimeoutError:
            self._log.warning(
                "cannot read what an earlier collector left undone",
                subject=subject,
                seconds=_SECONDS,
                error=reader.status.last_error,
            )
            return False
        finally:
            await reader.stop()
        return True


def last_trade(trade: events_pb2.Trade) -> Recalled:
    """Give the number and the time of a trade as it was published."""
    text = trade.trade_id
    number = int(text) if text.isdecimal() and text.isascii() else 0
    return Recalled(
        trade.venue_sequence or number, trade.exchange_time.ToNanoseconds(), trade.backfilled
    )


def _take(ledgered: Ledgered, event: integrity.IntegrityEvent) -> None:
    first, last = event.first_missing_id, event.last_missing_id
    if event.kind == _GAP and event.cause == _RENUMBERED:
        ledgered.owed = Ranges()
        ledgered.gaps.clear()
        ledgered.times.clear()
    elif event.kind == _BACKFILLED and first > 0:
        ledgered.owed.discard(first, last)
    elif event.kind == _GAP and first > 0 and event.count == last - first + 1:
        ledgered.owed.add(first, last)
        begin = event.begin_time.ToNanoseconds()
        ledgered.gaps.append(Debt(first, last, begin, event.event_id))
        ledgered.times.append(event.receive_time.ToNanoseconds())
