"""`status` tells of each venue what its collectors tell, and of those that do not answer."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from marketprism.collector.v1 import collector_service_pb2 as pb
from marketprism.collector.v1 import collector_service_pb2_grpc as pb_grpc
from marketprism.market.v1 import common_pb2
from marketprism.market.v1 import order_book_pb2 as book_pb

from services.cli.status_venues import Refusal, collect_venues

SYNCED = book_pb.ORDER_BOOK_STATE_SYNCED
STALE = book_pb.ORDER_BOOK_STATE_STALE


class Collector(pb_grpc.CollectorServiceServicer):
    """Tells of two venues, a page of one instrument at a time."""

    def __init__(self) -> None:
        self.status = pb.GetStatusResponse(collector_id="left")
        up, down = pb.CONNECTION_STATE_CONNECTED, pb.CONNECTION_STATE_BACKOFF
        for state, refused in ((up, 1), (down, 0)):
            self.status.connections.add(
                exchange="okx", state=state, subscriptions=10, refused=refused,
                frames_per_second=2.5, reconnects=3,
            )  # fmt: skip
        for exchange in ("okx", "deribit"):
            budget = self.status.rest_budgets.add(
                exchange=exchange, pool=exchange, limit=16, used=4, waiting=2
            )
            budget.window.FromSeconds(2)
        self.status.leases.MergeFrom(
            pb.LeaseStatus(members=["left", "right"], held=32, total=64, taken_over=5)
        )
        self.instruments = [
            pb.InstrumentState(exchange="okx", symbol="BTC-USDT"),
            pb.InstrumentState(exchange="okx", symbol="ETH-USDT"),
        ]
        for instrument, state in zip(self.instruments, (SYNCED, STALE), strict=True):
            instrument.book.state = state
        self.instruments[0].kinds.add(kind=common_pb2.EVENT_KIND_TRADE, events=7)
        self.instruments[1].kinds.add(kind=common_pb2.EVENT_KIND_TICKER, events=1)
        self.instruments[1].kinds.add(kind=common_pb2.EVENT_KIND_CANDLE, refusal="60018 no such")

    async def GetStatus(self, request: Any, context: Any) -> pb.GetStatusResponse:  # noqa: N802
        return self.status

    async def ListInstrumentStates(  # noqa: N802
        self, request: Any, context: Any
    ) -> pb.ListInstrumentStatesResponse:
        index = int(request.page_token or 0)
        more = str(index + 1) if index + 1 < len(self.instruments) else ""
        return pb.ListInstrumentStatesResponse(
            instruments=self.instruments[index : index + 1], next_page_token=more
        )


@pytest.fixture
async def address() -> AsyncIterator[str]:
    server = grpc.aio.server()
    pb_grpc.add_CollectorServiceServicer_to_server(Collector(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def test_each_venue_has_a_row_also_one_without_instruments(address: str) -> None:
    venues = await collect_venues([address])
    deribit, okx = venues.rows
    assert (okx.exchange, okx.collector) == ("okx", "left")
    assert (okx.in_step, okx.instruments) == (1, 2)
    assert (okx.connected, okx.connections) == (1, 2)
    assert (okx.subscriptions, okx.refused, okx.reconnects) == (20, 1, 6)
    assert okx.frames_per_second == 5.0
    assert okx.kinds == ("trade", "ticker")
    assert (okx.weight_used, okx.weight_limit, okx.weight_seconds) == (4, 16, 2.0)
    assert okx.requests_waiting == 2
    assert (deribit.exchange, deribit.instruments, deribit.connections) == ("deribit", 0, 0)


async def test_leases_and_refusals_are_told(address: str) -> None:
    venues = await collect_venues([address])
    (lease,) = venues.leases
    assert (lease.collector, lease.held, lease.total, lease.taken_over) == ("left", 32, 64, 5)
    assert lease.members == ("left", "right")
    assert venues.refusals == (Refusal("okx", "ETH-USDT", "candle", "60018 no such"),)


async def test_a_collector_that_does_not_answer_is_told_and_the_others_are_shown(
    address: str, unused_tcp_port: int
) -> None:
    venues = await collect_venues([f"127.0.0.1:{unused_tcp_port}", address])
    assert len(venues.rows) == 2
    (problem,) = venues.problems
    assert f"cannot ask 127.0.0.1:{unused_tcp_port} for the venues" in problem
