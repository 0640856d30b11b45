"""What can go wrong with any REST request: faults and maintenance, told in no venue's words."""

import asyncio
import enum
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from services.simulator.faults import FaultKind
from services.simulator.market import AggregateTrade, Trade

if TYPE_CHECKING:
    from services.simulator.server import SimulatedVenue

__all__ = ["RestTrouble", "TroubleKind", "past_trades", "rest_trouble"]

_Past = TypeVar("_Past", Trade, AggregateTrade)


class TroubleKind(enum.StrEnum):
    """Why a request is not answered as it should be."""

    LIMITED = "limited"
    """Too many requests: 429, `retry_after`."""
    BANNED = "banned"
    """Banned for too many requests: 418, `retry_after`."""
    ERROR = "error"
    """The server failed: `status` of 500 to 599."""
    MAINTENANCE = "maintenance"
    """The venue is closed: 503, `retry_after` is when it opens."""


@dataclass(frozen=True, slots=True)
class RestTrouble:
    """A request that is to be turned away; the protocol puts it in the venue's words."""

    kind: TroubleKind
    status: int
    """HTTP status."""
    retry_after: int
    """Whole seconds until it is worth asking again; 0 where nobody can tell."""


async def rest_trouble(
    venue: "SimulatedVenue", path: str, symbol: str | None
) -> RestTrouble | None:
    """Hold a request against maintenance and the faults in force; wait where it is to be slow."""
    left = venue.maintenance_until - time.monotonic()
    if left > 0:
        return RestTrouble(TroubleKind.MAINTENANCE, 503, int(left) + 1)
    faults = venue.faults
    if slow := faults.first(FaultKind.REST_SLOW, symbol=symbol, path=path):
        await asyncio.sleep(slow.spec.seconds)
    if limit := faults.first(FaultKind.REST_LIMIT, symbol=symbol, path=path):
        return RestTrouble(TroubleKind.LIMITED, 429, limit.spec.retry_after)
    if ban := faults.first(FaultKind.REST_BAN, symbol=symbol, path=path):
        return RestTrouble(TroubleKind.BANNED, 418, ban.spec.retry_after)
    if error := faults.first(FaultKind.REST_ERROR, symbol=symbol, path=path):
        return RestTrouble(TroubleKind.ERROR, error.spec.status, 0)
    return None


def past_trades(
    venue: "SimulatedVenue", path: str, symbol: str, trades: Iterable[_Past]
) -> list[_Past]:
    """Give what a request for past trades is told: all of them, or those that a fault leaves."""
    fault = venue.faults.first(FaultKind.REST_HOLES, symbol=symbol, path=path)
    if fault is None:
        return list(trades)
    every = fault.spec.ids
    return [trade for trade in trades if not _holds_multiple(trade, every)]


def _holds_multiple(trade: Trade | AggregateTrade, every: int) -> bool:
    if isinstance(trade, Trade):
        return trade.trade_id % every == 0
    return trade.last_trade_id // every > (trade.first_trade_id - 1) // every
