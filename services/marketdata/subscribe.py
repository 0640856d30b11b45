"""Subscribe and StreamMarketData: requests in, messages of a session out."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc
from marketprism.market.v1 import market_data_service_pb2 as pb

from services.marketdata.servicer import Context
from services.marketdata.sessions import Session, Sessions
from services.marketdata.settings import StreamSettings, SubscriptionLimits
from services.marketdata.subscriptions import read_subscription
from services.marketdata.validators import heartbeat_seconds
from services.shared.errors import InvalidArgument, MarketPrismError
from services.shared.field_behavior import RequiredFields

__all__ = ["SubscriptionCalls"]

_END: Final[Any] = grpc.aio.EOF
_SHOWN = 128


class SubscriptionCalls:
    """The RPCs that any mix of instruments and kinds comes by.

    Each call is one generator without another around it, because of what a message may cost.
    """

    def __init__(
        self, sessions: Sessions, limits: SubscriptionLimits, settings: StreamSettings
    ) -> None:
        self._sessions = sessions
        self._limits = limits
        self._settings = settings
        self._required = RequiredFields()

    async def StreamMarketData(  # noqa: N802 - the name is the contract's
        self, request: pb.StreamMarketDataRequest, _context: Context
    ) -> AsyncIterator[bytes]:
        """Stream one subscription; what is wrong with it ends the call before it begins."""
        subscription = read_subscription(request, self._limits)
        asked = request.heartbeat_interval if request.HasField("heartbeat_interval") else None
        heartbeat = heartbeat_seconds(asked, self._settings.heartbeat_seconds)
        session = self._sessions.open(heartbeat)
        try:
            await session.add(subscription, all_known=True)
            while True:
                message = session.take()
                if message:
                    yield message
                elif session.error is not None:
                    raise session.error
                else:
                    await session.wait()
        finally:
            self._sessions.close(session)

    async def Subscribe(  # noqa: N802
        self, _requests: object, context: Context
    ) -> AsyncIterator[bytes]:
        """Stream subscriptions that come and go; what is wrong with one is told in the stream."""
        session = self._sessions.open(self._settings.heartbeat_seconds)
        reader = asyncio.create_task(self._read(session, context))
        reader.add_done_callback(lambda _: session.nudge())
        try:
            while True:
                message = session.take()
                if message:
                    yield message
                elif session.error is not None:
                    raise session.error
                elif reader.done() and reader.exception() is not None:
                    reader.result()
                else:
                    await session.wait()
        finally:
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await reader
            self._sessions.close(session)

    async def _read(self, session: Session, context: Context) -> None:
        # Not by the iterator of requests, which ends at the first one without a required field.
        read: Any = context.read
        while True:
            await session.room()
            request = await read()
            if request is _END:
                return
            try:
                await self._act(session, request)
            except MarketPrismError as error:
                session.refuse(error, _identity(request))

    async def _act(self, session: Session, request: object) -> None:
        if not isinstance(request, pb.SubscribeRequest):
            raise InvalidArgument(
                "the request cannot be decoded; expected a SubscribeRequest",
                reason="REQUEST_MALFORMED",
            )
        self._required.check(request)
        action = request.WhichOneof("action")
        if action == "add":
            await session.add(read_subscription(request.add, self._limits, "add."))
        elif action == "remove":
            session.remove(request.remove)
        elif action == "heartbeat_interval":
            seconds = _heartbeat(request)
            session.set_heartbeat(seconds)
            session.tell("HEARTBEAT_INTERVAL_SET", f"{seconds:g} s")
        else:
            raise InvalidArgument(
                "expected one of add, remove and heartbeat_interval, got none",
                reason="NO_ACTION",
            )


def _heartbeat(request: pb.SubscribeRequest) -> float:
    try:
        return heartbeat_seconds(request.heartbeat_interval, 0)
    except InvalidArgument as error:
        raise InvalidArgument(error.message, reason="INVALID_HEARTBEAT_INTERVAL") from None


def _identity(request: object) -> str:
    """Give the subscription that a request speaks of, as far as it says so."""
    if not isinstance(request, pb.SubscribeRequest):
        return ""
    action = request.WhichOneof("action")
    if action == "add":
        return request.add.subscription_id[:_SHOWN]
    return request.remove[:_SHOWN] if action == "remove" else ""
