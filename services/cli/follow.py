"""Follows streams of the gateway for a person: reconnects, resumes, notices silence."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
from google.protobuf.duration_pb2 import Duration
from marketprism.market.v1 import market_data_service_pb2 as pb
from marketprism.market.v1 import market_data_service_pb2_grpc as pb_grpc
from marketprism.market.v1 import market_event_pb2 as event_pb

from services.cli.book_keeper import BookKeeper, enum_name
from services.shared.errors import Unavailable, from_rpc_error

__all__ = ["Link", "follow_book", "follow_trades"]

_HEARTBEAT_SECONDS = 2.0
_SILENCE_SECONDS = 3 * _HEARTBEAT_SECONDS
_FIRST_BACKOFF, _LONGEST_BACKOFF = 0.2, 5.0

# What a retry cannot cure: the request is wrong, or the server will never have it.
_FINAL = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)


@dataclass(slots=True)
class Link:
    """The state of the way to the gateway, for whoever shows it."""

    connected: bool = False
    """Whether a stream is open."""

    detail: str = "connecting"
    """What is going on while there is none."""

    reconnects: int = 0
    """How often a stream had to be opened again."""

    dropped_events: int = 0
    """Events that the server left out because this reader was too slow."""

    counts: Counter[str] = field(default_factory=Counter)
    """Messages of the stream about itself, by state."""


async def follow_book(
    channel: grpc.aio.Channel,
    exchange: str,
    symbol: str,
    keeper: BookKeeper,
    link: Link,
    on_change: Callable[[], None],
) -> None:
    """Keep `keeper` in step with the server for ever; `on_change` is called after each message.

    A stream that ends is opened again and resumed; one that breaks the rules of continuity is
    opened again from a snapshot. Raises AioRpcError for what a retry cannot cure, and when
    nothing answers the very first time.
    """
    stub = pb_grpc.MarketDataServiceStub(channel)

    def open_stream() -> _Stream:
        if keeper.needs_snapshot:
            keeper.reset()
        request = pb.StreamOrderBookRequest(
            exchange=exchange,
            symbol=symbol,
            resume=keeper.resume_point,
            heartbeat_interval=_heartbeat(),
        )
        return stub.StreamOrderBook(request)

    def handle(response: pb.StreamOrderBookResponse) -> bool:
        for event in response.events:
            if event.WhichOneof("event") == "stream_status":
                _note(event.stream_status, link)
                continue
            keeper.apply(event)
            if keeper.needs_snapshot:
                link.detail = keeper.why
                return False
        return True

    await _follow(open_stream, handle, link, on_change)


async def follow_trades(
    channel: grpc.aio.Channel,
    exchange: str,
    symbol: str,
    link: Link,
    on_event: Callable[[event_pb.MarketEvent], None],
) -> None:
    """Hand every event of `StreamTrades` to `on_event`, for ever; errors as in `follow_book`."""
    stub = pb_grpc.MarketDataServiceStub(channel)
    request = pb.StreamTradesRequest(
        exchange=exchange, symbol=symbol, heartbeat_interval=_heartbeat()
    )

    def handle(response: pb.StreamTradesResponse) -> bool:
        for event in response.events:
            if event.WhichOneof("event") == "stream_status":
                _note(event.stream_status, link)
            on_event(event)
        return True

    await _follow(lambda: stub.StreamTrades(request), handle, link, lambda: None)


async def _follow(
    open_stream: "Callable[[], _Stream]",
    handle: Callable[[Any], bool],
    link: Link,
    on_change: Callable[[], None],
) -> None:
    answered = False
    backoff = _FIRST_BACKOFF
    while True:
        call = open_stream()
        try:
            while True:
                async with asyncio.timeout(_SILENCE_SECONDS):
                    response = await call.read()
                if response is grpc.aio.EOF:
                    link.detail = "the server ended the stream"
                    break
                answered = link.connected = True
                backoff = _FIRST_BACKOFF
                goes_on = handle(response)
                on_change()
                if not goes_on:
                    break
        except TimeoutError:
            link.detail = f"nothing came for {_SILENCE_SECONDS:g} s"
        except grpc.aio.AioRpcError as error:
            known = from_rpc_error(error)
            unreachable = error.code() is grpc.StatusCode.UNAVAILABLE and (
                known.reason == Unavailable.default_reason
            )
            if error.code() in _FINAL or (unreachable and not answered):
                raise
            link.detail = known.message.splitlines()[0] if known.message else error.code().name
        finally:
            call.cancel()
            link.connected = False
        link.reconnects += 1
        on_change()
        await asyncio.sleep(backoff * random.uniform(0.7, 1.0))  # noqa: S311 - no secret depends on it
        backoff = min(_LONGEST_BACKOFF, backoff * 2)


class _Stream(Protocol):
    """What is used of a server stream's call."""

    async def read(self) -> object: ...

    def cancel(self) -> bool: ...


def _note(status: event_pb.StreamStatus, link: Link) -> None:
    link.counts[enum_name(event_pb.StreamState, status.state, "STREAM_STATE_")] += 1
    link.dropped_events += status.dropped_events


def _heartbeat() -> Duration:
    heartbeat = Duration()
    heartbeat.FromMilliseconds(round(_HEARTBEAT_SECONDS * 1000))
    return heartbeat
