"""Streams are resumed, repaired and given up by rule, against a real gRPC server."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
import pytest
from marketprism.market.v1 import events_pb2
from marketprism.market.v1 import market_data_service_pb2 as pb
from marketprism.market.v1 import market_data_service_pb2_grpc as pb_grpc
from marketprism.market.v1 import market_event_pb2 as event_pb
from marketprism.market.v1 import order_book_pb2 as book_pb
from marketprism.market.v1.common_pb2 import SIDE_BUY, PriceLevel

from services.cli import follow
from services.cli.book import print_trades
from services.cli.book_keeper import BookKeeper
from services.cli.client import connect
from services.cli.follow import Link, follow_book

DEADLINE = 20.0


def snapshot(epoch: int, sequence: int) -> event_pb.MarketEvent:
    return event_pb.MarketEvent(
        order_book_snapshot=book_pb.OrderBookSnapshot(
            epoch=epoch, sequence=sequence, bids=[PriceLevel(price="1", quantity="2")]
        )
    )


def update(epoch: int, sequence: int) -> event_pb.MarketEvent:
    return event_pb.MarketEvent(
        order_book_update=book_pb.OrderBookUpdate(epoch=epoch, sequence=sequence)
    )


class Scripted(pb_grpc.MarketDataServiceServicer):
    """Answers each call with the next script: events, then silence, an end, or an error."""

    def __init__(self, scripts: Sequence[Sequence[Any]]) -> None:
        self.scripts = list(scripts)
        self.requests: list[pb.StreamOrderBookRequest] = []

    async def StreamOrderBook(  # type: ignore[override]  # noqa: N802
        self,
        request: pb.StreamOrderBookRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[pb.StreamOrderBookResponse]:
        self.requests.append(request)
        for step in self.scripts.pop(0) if self.scripts else ["hang"]:
            if step == "hang":
                await asyncio.Event().wait()
            elif isinstance(step, grpc.StatusCode):
                await context.abort(step, f"scripted {step.name}")
            else:
                yield pb.StreamOrderBookResponse(events=[step])

    async def StreamTrades(  # type: ignore[override]  # noqa: N802
        self, request: pb.StreamTradesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.StreamTradesResponse]:
        for number in range(5):
            trade = events_pb2.Trade(
                exchange=request.exchange,
                symbol=request.symbol,
                trade_id=str(number),
                price="100.5",
                quantity="2",
                side=SIDE_BUY,
            )
            trade.exchange_time.FromMilliseconds(1_700_000_000_123)
            yield pb.StreamTradesResponse(events=[event_pb.MarketEvent(trade=trade)])
        lagging = event_pb.StreamStatus(
            state=event_pb.STREAM_STATE_LAGGING, reason="SLOW_READER", dropped_events=7
        )
        yield pb.StreamTradesResponse(events=[event_pb.MarketEvent(stream_status=lagging)])
        await asyncio.Event().wait()


async def _serve(servicer: Scripted) -> tuple[grpc.aio.Server, str]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    pb_grpc.add_MarketDataServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, f"127.0.0.1:{port}"


async def following(
    scripts: Sequence[Sequence[Any]], until: Callable[[BookKeeper, Link, Scripted], bool]
) -> tuple[BookKeeper, Link, Scripted]:
    """Follow a scripted server until a condition holds."""
    servicer = Scripted(scripts)
    server, address = await _serve(servicer)
    keeper, link, changed = BookKeeper(), Link(), asyncio.Event()
    try:
        async with connect(address) as channel:
            task = asyncio.ensure_future(
                follow_book(channel, "binance", "BTC-USDT", keeper, link, changed.set)
            )
            try:
                async with asyncio.timeout(DEADLINE):
                    while not until(keeper, link, servicer):
                        waiting = asyncio.ensure_future(changed.wait())
                        await asyncio.wait({waiting, task}, return_when=asyncio.FIRST_COMPLETED)
                        waiting.cancel()
                        if task.done():
                            task.result()
                        changed.clear()
            finally:
                task.cancel()
                await asyncio.wait({task})
    finally:
        await server.stop(None)
    return keeper, link, servicer


async def test_a_stream_that_ends_is_resumed_from_where_the_book_stands() -> None:
    keeper, link, servicer = await following(
        [[snapshot(3, 10), update(3, 11)], [update(3, 12), "hang"]],
        lambda keeper, _link, _s: keeper.sequence == 12,
    )
    assert keeper.in_step
    assert link.reconnects == 1
    assert not servicer.requests[0].HasField("resume")
    resume = servicer.requests[1].resume
    assert (resume.epoch, resume.sequence) == (3, 11)


async def test_a_stream_with_a_hole_is_opened_anew_without_a_resume_point() -> None:
    keeper, link, servicer = await following(
        [[snapshot(3, 10), update(3, 12), "hang"], [snapshot(3, 20), "hang"]],
        lambda keeper, link, _s: keeper.sequence == 20 and link.connected,
    )
    assert keeper.in_step
    assert keeper.counts["breaks"] == 1
    assert link.reconnects == 1
    assert not servicer.requests[1].HasField("resume")


async def test_a_stream_that_fails_later_is_tried_again() -> None:
    keeper, link, _ = await following(
        [[snapshot(3, 10), grpc.StatusCode.UNAVAILABLE], [update(3, 11), "hang"]],
        lambda keeper, _link, _s: keeper.sequence == 11,
    )
    assert keeper.in_step
    assert link.reconnects == 1


async def test_silence_longer_than_the_heartbeat_is_a_dead_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(follow, "_SILENCE_SECONDS", 0.2)
    keeper, link, servicer = await following(
        [[snapshot(3, 10), "hang"], [update(3, 11), "hang"]],
        lambda keeper, _link, _s: keeper.sequence == 11,
    )
    assert link.reconnects >= 1
    assert servicer.requests[0].heartbeat_interval.ToMilliseconds() == 2000
    assert keeper.in_step


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAVAILABLE,
    ],
)
async def test_what_a_retry_cannot_cure_ends_it(code: grpc.StatusCode) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await following([[code]], lambda *_: False)
    assert caught.value.code() is code


async def test_what_the_server_left_out_is_counted() -> None:
    lagging = event_pb.MarketEvent(
        stream_status=event_pb.StreamStatus(state=event_pb.STREAM_STATE_LAGGING, dropped_events=12)
    )
    _, link, _ = await following(
        [[snapshot(1, 1), lagging, "hang"]], lambda _k, link, _s: bool(link.dropped_events)
    )
    assert link.dropped_events == 12
    assert link.counts["LAGGING"] == 1


async def test_trades_are_printed_until_there_are_enough(
    capsys: pytest.CaptureFixture[str],
) -> None:
    server, address = await _serve(Scripted([]))
    try:
        async with asyncio.timeout(DEADLINE):
            await print_trades(address, "binance", "BTC-USDT", as_json=False, count=3)
    finally:
        await server.stop(None)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "22:13:20.123 binance BTC-USDT buy  100.5 x 2 #0"
    assert len(lines) == 3
