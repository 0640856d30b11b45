"""Tells kept answers of rows that came late: a backlog, trades fetched afterwards, the ledger."""

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from google.protobuf.message import DecodeError, Message

from services.shared.wire import varint
from services.storage.http_cache import Answers
from services.storage.ingest import Ingest
from services.storage.ingest_batch import Rows
from services.storage.tables import TABLES, Table
from services.storage.validators import NANOS
from services.storage.wire import stored_ns

__all__ = ["Freshness", "late_instruments"]

# Trade.backfilled = true; what holds these bytes by chance is decoded and found not to be.
_BACKFILLED: Final = varint(TABLES["trade"].descriptor.fields_by_name["backfilled"].number << 3) + (
    b"\x01"
)
_LOOK_SECONDS: Final = 0.2


class Freshness:
    """Watches what ingestion stores.

    `stored_until` is for `Answers`: a range that the broker still holds events of is not settled.
    `on_stored` is for ingestion, and `run` a task of the service.
    """

    def __init__(self, settling_seconds: float, *, now: Callable[[], int] = time.time_ns) -> None:
        """Rows older than `settling_seconds` are late; `now` gives nanoseconds since 1970."""
        self._settling = round(settling_seconds * NANOS)
        self._now = now
        self._until = 0
        self._looked = 0.0
        self._ingest: Ingest | None = None
        self._late: dict[tuple[str, str], int] = {}
        self._wake = asyncio.Event()

    def watch(self, ingest: Ingest) -> None:
        """Ask this ingestion how far it is; without one, everything counts as stored."""
        self._ingest = ingest

    def stored_until(self) -> int:
        """Give the instant up to which everything received is stored, nanoseconds since 1970.

        While the broker is away that is where it was when it was last seen.
        """
        if self._ingest is None:
            return self._now()
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
            self._looked = time.monotonic()
            states = [each.consumer.status for each in self._ingest.tables.values()]
            if all(state.live for state in states):
                waiting = [round(s.oldest_waiting * NANOS) for s in states if s.oldest_waiting]
                self._until = min([self._now(), *waiting])
        return self._until

    def on_stored(self, table: Table, rows: Rows) -> None:
        """Take note of rows that can be read now; cheap for those of the present."""
        found = late_instruments(table, rows.payloads, self._now() - self._settling)
        for instrument, oldest in found.items():
            self._late[instrument] = min(oldest, self._late.get(instrument, oldest))
        if found:
            self._wake.set()

    async def run(self, answers: Answers) -> None:
        """Make answers void as rows come late; never returns."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            late, self._late = self._late, {}
            for (exchange, symbol), oldest in late.items():
                if symbol:
                    await answers.rows_inserted(exchange, symbol, oldest)
                else:
                    await answers.begin()


def late_instruments(
    table: Table, payloads: Iterable[bytes], settled: int
) -> dict[tuple[str, str], int]:
    """Give the instruments of rows that answers about the settled past may lack, with their oldest.

    `settled` is the instant before which the past is settled, nanoseconds since 1970. A batch is in
    the order of the stream, so its first event tells whether it is late; what was fetched
    afterwards stands between others, and says so. An entry of the ledger is about the past always;
    one of a whole connection has no symbol.
    """
    found: dict[tuple[str, str], int] = {}
    all_late: bool | None = None
    for payload in payloads:
        if all_late is None:
            event = _decoded(table, payload)
            all_late = event is not None and _time(table, event) < settled
        is_candidate = (
            all_late
            or table.name == "integrity"
            or (table.name == "trade" and _BACKFILLED in payload)
        )
        if not is_candidate or (event := _decoded(table, payload)) is None:
            continue
        moment = 0 if table.name == "integrity" else _time(table, event)
        if moment < settled:
            instrument = (event.exchange, event.symbol)
            found[instrument] = min(moment, found.get(instrument, moment))
    return found


def _decoded(table: Table, payload: bytes) -> Any:
    try:
        message: Message = table.message.FromString(payload)
    except DecodeError:
        # The database has refused it too.
        return None
    return message


def _time(table: Table, event: Any) -> int:
    for name in (table.time.field, table.time.fallback):
        if name and event.HasField(name):
            return stored_ns(getattr(event, name))
    return 0
