"""`marketprism book` and `marketprism trades`: one instrument, live in the terminal."""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Callable

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from marketprism.market.v1 import instrument_pb2
from marketprism.market.v1 import market_data_service_pb2 as pb
from marketprism.market.v1 import market_data_service_pb2_grpc as pb_grpc
from marketprism.market.v1 import market_event_pb2 as event_pb
from marketprism.market.v1.common_pb2 import Side
from rich.console import Console
from rich.live import Live

from services.cli.book_keeper import BookKeeper, enum_name
from services.cli.book_view import BookView, Rate, Units, latency_text, now_clock, plain_line
from services.cli.client import connect
from services.cli.console import wide_console
from services.cli.follow import Link, follow_book, follow_trades

__all__ = ["print_book", "print_trades", "watch_book"]

_CALL_SECONDS = 10.0
_UNIT_SECONDS = 3.0
_DRAWS_A_SECOND = 8
_PLAIN_SECONDS = 1.0


async def print_book(
    address: str, exchange: str, symbol: str, depth: int, *, as_json: bool
) -> None:
    """Print the book as it is now; raises AioRpcError."""
    async with connect(address) as channel:
        stub = pb_grpc.MarketDataServiceStub(channel)
        answer = await stub.GetOrderBook(
            pb.GetOrderBookRequest(exchange=exchange, symbol=symbol, depth=depth),
            timeout=_CALL_SECONDS,
        )
        units = await _units(stub, exchange, symbol)
    if as_json:
        print(_json(answer))
        return
    keeper = BookKeeper()
    keeper.apply(event_pb.MarketEvent(order_book_snapshot=answer.order_book))
    keeper.apply(event_pb.MarketEvent(order_book_status=answer.status))
    view = BookView(exchange, symbol, depth, units)
    age = f"{answer.age_ms} ms since the last change"
    wide_console().print(view.render(keeper, Link(connected=True), 0.0, age))


async def watch_book(address: str, exchange: str, symbol: str, depth: int) -> None:
    """Show the book as it moves until cancelled; raises AioRpcError."""
    keeper, link = BookKeeper(), Link()
    lag, measured_at = "unknown", 0

    def on_change() -> None:
        nonlocal lag, measured_at
        if keeper.receive_time_ns != measured_at:
            # A heartbeat changes nothing and tells nothing of how old the book is.
            measured_at = keeper.receive_time_ns
            lag = latency_text(keeper, time.time_ns())

    async with connect(address) as channel:
        units = await _units(pb_grpc.MarketDataServiceStub(channel), exchange, symbol)
        following = asyncio.ensure_future(
            follow_book(channel, exchange, symbol, keeper, link, on_change)
        )
        showing = asyncio.ensure_future(
            _show(keeper, link, BookView(exchange, symbol, depth, units), lambda: lag)
        )
        try:
            await asyncio.wait({following, showing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (showing, following):
                task.cancel()
            await asyncio.wait({showing, following})
        for task in (following, showing):
            if not task.cancelled():
                task.result()


async def _units(stub: "pb_grpc.MarketDataServiceAsyncStub", exchange: str, symbol: str) -> Units:
    """Ask what prices and quantities are in; what is not known is not shown."""
    try:
        answer = await stub.GetInstrument(
            pb.GetInstrumentRequest(exchange=exchange, symbol=symbol), timeout=_UNIT_SECONDS
        )
    except grpc.aio.AioRpcError:
        # What is wrong is told by the call that is the point of the command.
        return Units()
    instrument = answer.instrument
    counted = {
        instrument_pb2.QUANTITY_UNIT_BASE: instrument.base,
        instrument_pb2.QUANTITY_UNIT_QUOTE: instrument.quote,
    }
    return Units(instrument.quote, counted.get(instrument.quantity_unit, ""))


async def _show(keeper: BookKeeper, link: Link, view: BookView, lag: Callable[[], str]) -> None:
    rate = Rate()
    if not sys.stdout.isatty():
        while True:
            if link.connected or link.reconnects:
                speed = rate.at(time.monotonic(), keeper.counts["updates"])
                print(plain_line(keeper, link, speed, now_clock(), lag()), flush=True)
            await asyncio.sleep(_PLAIN_SECONDS if link.connected else 0.1)
    console = Console(highlight=False)
    with Live(console=console, auto_refresh=False, screen=True) as live:
        while True:
            speed = rate.at(time.monotonic(), keeper.counts["updates"])
            live.update(view.render(keeper, link, speed, lag()), refresh=True)
            await asyncio.sleep(1 / _DRAWS_A_SECOND)


async def print_trades(
    address: str, exchange: str, symbol: str, *, as_json: bool, count: int | None
) -> None:
    """Print trades as they happen, `count` of them or until cancelled; raises AioRpcError."""
    link, units = Link(), Units()
    done = asyncio.Event()
    printed = 0

    def on_event(event: event_pb.MarketEvent) -> None:
        nonlocal printed
        kind = event.WhichOneof("event")
        if kind == "trade" and not done.is_set():
            print(_json(event.trade) if as_json else _trade_line(event, units), flush=True)
            printed += 1
            if count is not None and printed >= count:
                done.set()
        elif kind == "stream_status":
            told = _status_line(event.stream_status)
            if told:
                print(told, file=sys.stderr)

    async with connect(address) as channel:
        if not as_json:
            units = await _units(pb_grpc.MarketDataServiceStub(channel), exchange, symbol)
        following = asyncio.ensure_future(follow_trades(channel, exchange, symbol, link, on_event))
        waiting = asyncio.ensure_future(done.wait())
        try:
            await asyncio.wait({following, waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (waiting, following):
                task.cancel()
            await asyncio.wait({waiting, following})
        if not done.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                following.result()


def _trade_line(event: event_pb.MarketEvent, units: Units) -> str:
    trade = event.trade
    side = enum_name(Side, trade.side, "SIDE_").lower()
    moment = trade.exchange_time if trade.HasField("exchange_time") else trade.receive_time
    marks = "".join(
        f" {name}"
        for name, is_set in (("liquidation", trade.liquidation), ("backfilled", trade.backfilled))
        if is_set
    )
    clock = moment.ToDatetime().strftime("%H:%M:%S.%f")[:-3]
    unit = f" {units.quantity}" if units.quantity else ""
    return (
        f"{clock} {trade.exchange} {trade.symbol} {side:<4} {trade.price} x {trade.quantity}{unit} "
        f"#{trade.trade_id}{marks}"
    )


def _status_line(status: event_pb.StreamStatus) -> str:
    """Give what a person must know of the stream; empty for what is only a sign of life."""
    quiet = (event_pb.STREAM_STATE_OPEN, event_pb.STREAM_STATE_HEARTBEAT)
    if status.state in quiet:
        return ""
    name = enum_name(event_pb.StreamState, status.state, "STREAM_STATE_")
    dropped = f", {status.dropped_events} events left out" if status.dropped_events else ""
    return f"stream {name}: {status.message or status.reason}{dropped}"


def _json(message: Message) -> str:
    return json.dumps(
        MessageToDict(
            message,
            preserving_proto_field_name=True,
            always_print_fields_with_no_presence=True,
        )
    )
