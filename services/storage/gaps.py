"""The entries of the gap ledger that touch a range: what history does not have, and why."""

from collections.abc import Iterable
from typing import Any, Final

from marketprism.collector.v1.integrity_event_pb2 import IntegrityEvent

from services.storage.engine import Engine
from services.storage.tables import TABLES

__all__ = ["MOST_GAPS", "gaps_touching", "touching"]

MOST_GAPS: Final = 1000
"""Entries that come with an answer at the most."""

_TABLE: Final = TABLES["integrity"]
_EPOCH: Final = "toDateTime64(0, 9, 'UTC')"
_BEGIN: Final = f"if(begin_time > {_EPOCH} AND begin_time < time, begin_time, time)"
_END: Final = f"if(end_time > {_EPOCH}, end_time, time)"
# What goes on until another entry names it, which says that it is over, or until the collector
# begins anew: nothing of it is known then.
_GOING_ON: Final = f"""\
(kind IN ('INTEGRITY_KIND_DISCONNECTED', 'INTEGRITY_KIND_RESYNC_BEGUN')
  OR kind = 'INTEGRITY_KIND_SILENT' AND cause != 'INTEGRITY_CAUSE_UNSPECIFIED')
AND end_time = {_EPOCH}
AND event_id GLOBAL NOT IN (SELECT previous_event_id FROM integrity WHERE previous_event_id != '')
AND (exchange, collector_id, time) GLOBAL NOT IN (
  SELECT each.exchange, each.collector_id, each.time FROM integrity AS each GLOBAL INNER JOIN (
    SELECT exchange, collector_id, max(time) AS started FROM integrity
    WHERE kind = 'INTEGRITY_KIND_COLLECTOR_STARTED' GROUP BY exchange, collector_id
  ) AS begun USING (exchange, collector_id) WHERE each.time < begun.started)"""
_TOUCHES: Final = f"""\
({_BEGIN} < fromUnixTimestamp64Nano({{touch_end:Int64}}, 'UTC')
AND ({_END} >= fromUnixTimestamp64Nano({{touch_begin:Int64}}, 'UTC') OR ({_GOING_ON})))"""


def touching(
    exchange: str, symbol: str, event_kinds: Iterable[int], start: int, end: int
) -> tuple[list[str], dict[str, Any]]:
    """Give conditions on the ledger's table, and their parameters, for entries that touch a range.

    `start` (inclusive) and `end` (exclusive) are nanoseconds since 1970. An entry reaches from its
    begin_time, or receive_time where it tells none, to its end_time, or receive_time; what has
    begun and of which no entry says that it ended goes on. Empty words and kinds mean all; entries
    of the whole connection or venue, and those about every kind, are always among them.
    """
    conditions = [_TOUCHES]
    parameters: dict[str, Any] = {"touch_begin": start, "touch_end": end}
    if exchange:
        conditions.append("exchange = {touch_exchange:String}")
        parameters["touch_exchange"] = exchange
    if symbol:
        conditions.append("symbol IN ('', {touch_symbol:String})")
        parameters["touch_symbol"] = symbol
    if kinds := sorted({0, *event_kinds}):
        parameters["touch_kinds"] = kinds
    if len(kinds) > 1:
        conditions.append("CAST(event_kind AS Int16) IN {touch_kinds:Array(Int16)}")
    return conditions, parameters


async def gaps_touching(
    engine: Engine,
    exchange: str,
    symbol: str,
    kinds: Iterable[int],
    start: int,
    end: int,
    limit: int = MOST_GAPS,
) -> list[IntegrityEvent]:
    """Give the ledger's entries that touch a range, in the order in which they were noticed.

    See `touching`; `kinds` are numbers of `EventKind`. Of more than `limit` the first are given.
    Raises as `Engine.query` does.
    """
    conditions, parameters = touching(exchange, symbol, kinds, start, end)
    rows = await engine.query(
        f"SELECT {_TABLE.event_sql()} AS event FROM integrity FINAL "
        f"WHERE {' AND '.join(conditions)} ORDER BY time, event_id LIMIT {{touch_limit:UInt32}}",
        {**parameters, "touch_limit": limit},
        events_of=_TABLE,
    )
    return [IntegrityEvent.FromString(event) for (event,) in rows]
