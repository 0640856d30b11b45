"""What collectors tell of each venue, for `marketprism status`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import grpc
from marketprism.collector.v1 import collector_service_pb2 as pb
from marketprism.collector.v1 import collector_service_pb2_grpc as pb_grpc
from marketprism.market.v1 import order_book_pb2 as book_pb
from marketprism.market.v1.common_pb2 import EventKind

from services.cli.book_keeper import enum_name
from services.cli.client import connect
from services.shared.errors import from_rpc_error

__all__ = ["LeaseRow", "Refusal", "VenueRow", "Venues", "collect_venues"]

_CALL_SECONDS = 5.0
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class VenueRow:
    """One venue at one collector."""

    exchange: str
    """Venue id."""

    collector: str
    """Name of the collector."""

    instruments: int
    """Instruments that this collector has of it."""

    in_step: int
    """Books of them that are SYNCED."""

    connections: int
    """WebSocket connections."""

    connected: int
    """Those that are up."""

    subscriptions: int
    """Streams subscribed to, on all of them."""

    refused: int
    """Subscriptions that the venue refused."""

    frames_per_second: float
    """Frames read, over the last few seconds."""

    reconnects: int
    """Times that a connection had to be opened again."""

    kinds: tuple[str, ...]
    """Kinds of event that came of any instrument."""

    weight_pool: str
    """Name of the REST limit; venues with the same name share it."""

    weight_used: int
    """Weight used in its window."""

    weight_limit: int
    """Weight that the collector allows itself in the window."""

    weight_seconds: float
    """Length of the window."""

    requests_waiting: int
    """REST requests that wait for their turn."""


@dataclass(frozen=True, slots=True)
class LeaseRow:
    """The share of one collector where several divide the instruments."""

    collector: str
    """Name of the collector."""

    held: int
    """Leases that it has."""

    total: int
    """Leases that there are."""

    taken_over: int
    """Leases that it took over from collectors that had died."""

    members: tuple[str, ...]
    """Collectors that it knows to be alive."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A kind of event that a venue refuses for an instrument."""

    exchange: str
    """Venue id."""

    symbol: str
    """Canonical symbol."""

    kind: str
    """Kind of event."""

    why: str
    """What the venue said."""


@dataclass(frozen=True, slots=True)
class Venues:
    """What all collectors tell."""

    rows: tuple[VenueRow, ...] = ()
    """Venues, by exchange and collector."""

    leases: tuple[LeaseRow, ...] = ()
    """Shares, of collectors that share."""

    refusals: tuple[Refusal, ...] = ()
    """What venues refuse."""

    problems: tuple[str, ...] = ()
    """Sentences on collectors that could not be asked."""


async def collect_venues(addresses: Sequence[str]) -> Venues:
    """Ask the collectors at these addresses."""
    rows: list[VenueRow] = []
    leases: list[LeaseRow] = []
    refusals: list[Refusal] = []
    problems = []
    for address in addresses:
        try:
            status, instruments = await _ask(address)
        except grpc.aio.AioRpcError as error:
            said = from_rpc_error(error).message.splitlines()
            problems.append(f"cannot ask {address} for the venues: {said[0] if said else error}")
            continue
        rows += _rows(status, instruments)
        refusals += _refusals(instruments)
        if status.HasField("leases"):
            told = status.leases
            leases.append(
                LeaseRow(
                    status.collector_id,
                    told.held,
                    told.total,
                    told.taken_over,
                    tuple(told.members),
                )
            )
    rows.sort(key=lambda row: (row.exchange, row.collector))
    return Venues(tuple(rows), tuple(leases), tuple(refusals), tuple(problems))


async def _ask(address: str) -> tuple[pb.GetStatusResponse, list[pb.InstrumentState]]:
    instruments: list[pb.InstrumentState] = []
    token = ""
    async with connect(address) as channel:
        stub = pb_grpc.CollectorServiceStub(channel)
        status = await stub.GetStatus(pb.GetStatusRequest(), timeout=_CALL_SECONDS)
        while True:
            answer = await stub.ListInstrumentStates(
                pb.ListInstrumentStatesRequest(page_size=_PAGE, page_token=token),
                timeout=_CALL_SECONDS,
            )
            instruments += answer.instruments
            token = answer.next_page_token
            if not token:
                return status, instruments


def _rows(
    status: pb.GetStatusResponse, instruments: Sequence[pb.InstrumentState]
) -> Iterator[VenueRow]:
    # Every venue has a budget, also one that has neither connections nor instruments yet.
    for budget in status.rest_budgets:
        connections = [each for each in status.connections if each.exchange == budget.exchange]
        collected = [each for each in instruments if each.exchange == budget.exchange]
        kinds = {state.kind for each in collected for state in each.kinds if state.events}
        yield VenueRow(
            exchange=budget.exchange,
            collector=status.collector_id,
            instruments=len(collected),
            in_step=sum(each.book.state == book_pb.ORDER_BOOK_STATE_SYNCED for each in collected),
            connections=len(connections),
            connected=sum(each.state == pb.CONNECTION_STATE_CONNECTED for each in connections),
            subscriptions=sum(each.subscriptions for each in connections),
            refused=sum(each.refused for each in connections),
            frames_per_second=round(sum(each.frames_per_second for each in connections), 1),
            reconnects=sum(each.reconnects for each in connections),
            kinds=tuple(_kind(kind) for kind in sorted(kinds)),
            weight_pool=budget.pool,
            weight_used=budget.used,
            weight_limit=budget.limit,
            weight_seconds=budget.window.ToNanoseconds() / 1e9,
            requests_waiting=budget.waiting,
        )


def _refusals(instruments: Sequence[pb.InstrumentState]) -> Iterator[Refusal]:
    for each in instruments:
        for state in each.kinds:
            if state.refusal:
                yield Refusal(each.exchange, each.symbol, _kind(state.kind), state.refusal)


def _kind(kind: int) -> str:
    return enum_name(EventKind, kind, "EVENT_KIND_").lower()
