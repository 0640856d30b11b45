"""The gRPC view of the broker: streams, consumers, servers, use."""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from operator import itemgetter
from typing import Any, NoReturn, TypeAlias

import grpc
from marketprism.broker.v1 import broker_service_pb2 as pb
from marketprism.broker.v1 import broker_service_pb2_grpc

from services.broker import convert
from services.broker.keeper import StreamKeeper
from services.broker.monitor import Monitor
from services.broker.settings import BrokerSettings
from services.shared.errors import (
    FieldViolation,
    InvalidArgument,
    NotFound,
    Unavailable,
    Unimplemented,
)
from services.shared.jetstream import JetStreamError, list_streams, stream_info
from services.shared.jetstream.api import STREAM_NOT_FOUND, api_request, list_consumers
from services.shared.paging import list_page

__all__ = ["BrokerServicer"]

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_CONSUMER_NOT_FOUND = 10014


class BrokerServicer(broker_service_pb2_grpc.BrokerServiceServicer):
    """Answers for `marketprism.broker.v1.BrokerService`."""

    def __init__(self, keeper: StreamKeeper, monitor: Monitor, settings: BrokerSettings) -> None:
        self._keeper = keeper
        self._monitor = monitor
        self._settings = settings

    async def ListStreams(  # noqa: N802 - the contract's name
        self, request: pb.ListStreamsRequest, context: _Context
    ) -> pb.ListStreamsResponse:
        """Give streams by name."""
        connection = self._keeper.connection
        infos = await list_streams(connection, subject=request.subject)
        page, token = _list_page(infos, _stream_name, request, ("streams", request.subject))
        return pb.ListStreamsResponse(
            streams=[
                convert.stream(
                    info,
                    server=connection.server_name,
                    managed=_stream_name(info) in self._settings.stream_names,
                )
                for info in page
            ],
            next_page_token=token,
        )

    async def GetStream(  # noqa: N802
        self, request: pb.GetStreamRequest, context: _Context
    ) -> pb.GetStreamResponse:
        """Give one stream."""
        connection = self._keeper.connection
        info = await stream_info(connection, _name(request.stream, "stream"))
        if info is None:
            raise _no_stream(request.stream)
        return pb.GetStreamResponse(
            stream=convert.stream(
                info,
                server=connection.server_name,
                managed=request.stream in self._settings.stream_names,
            )
        )

    async def ListConsumers(  # noqa: N802
        self, request: pb.ListConsumersRequest, context: _Context
    ) -> pb.ListConsumersResponse:
        """Give the consumers of a stream by name."""
        stream = _name(request.stream, "stream")
        connection = self._keeper.connection
        try:
            infos = await list_consumers(connection, stream)
        except JetStreamError as error:
            if error.code == STREAM_NOT_FOUND:
                raise _no_stream(stream) from None
            raise
        page, token = _list_page(infos, _consumer_name, request, ("consumers", stream))
        return pb.ListConsumersResponse(
            consumers=[convert.consumer(info, server=connection.server_name) for info in page],
            next_page_token=token,
        )

    async def GetConsumer(  # noqa: N802
        self, request: pb.GetConsumerRequest, context: _Context
    ) -> pb.GetConsumerResponse:
        """Give one consumer."""
        stream, name = _name(request.stream, "stream"), _name(request.consumer, "consumer")
        try:
            connection = self._keeper.connection
            info = await api_request(connection, f"CONSUMER.INFO.{stream}.{name}")
        except JetStreamError as error:
            if error.code == STREAM_NOT_FOUND:
                raise _no_stream(stream) from None
            if error.code == _CONSUMER_NOT_FOUND:
                raise NotFound(
                    f"stream {stream} has no consumer {name}; ListConsumers names those it has",
                    reason="CONSUMER_NOT_FOUND",
                    metadata={"stream": stream, "consumer": name},
                ) from None
            raise
        return pb.GetConsumerResponse(
            consumer=convert.consumer(info, server=connection.server_name)
        )

    async def GetCluster(  # noqa: N802
        self, request: pb.GetClusterRequest, context: _Context
    ) -> pb.GetClusterResponse:
        """Give the servers; the one whose monitoring is read."""
        reading = self._monitor.reading
        if reading is None:
            raise Unavailable(
                f"the broker's monitoring does not answer ({self._monitor.last_error}); for an "
                "external broker set monitor_url in config/broker.yaml",
                reason="BROKER_UNAVAILABLE",
                retry_after=self._settings.monitor_seconds,
            )
        return pb.GetClusterResponse(
            name=str((reading.varz.get("cluster") or {}).get("name", "")),
            nodes=[convert.cluster_node(reading.varz, reading.jsz)],
        )

    async def GetAccountUsage(  # noqa: N802
        self, request: pb.GetAccountUsageRequest, context: _Context
    ) -> pb.GetAccountUsageResponse:
        """Give what is used and what may be."""
        info = await api_request(self._keeper.connection, "INFO")
        reading = self._monitor.reading
        server = reading.jsz.get("config", {}) if reading is not None else {}
        return pb.GetAccountUsageResponse(usage=convert.account_usage(info, server))

    async def CreateStream(self, request: Any, context: _Context) -> NoReturn:  # noqa: N802
        """Not offered yet."""
        raise _not_offered("CreateStream")

    async def UpdateStream(self, request: Any, context: _Context) -> NoReturn:  # noqa: N802
        """Not offered yet."""
        raise _not_offered("UpdateStream")

    async def DeleteStream(self, request: Any, context: _Context) -> NoReturn:  # noqa: N802
        """Not offered yet."""
        raise _not_offered("DeleteStream")

    async def PurgeStream(self, request: Any, context: _Context) -> NoReturn:  # noqa: N802
        """Not offered yet."""
        raise _not_offered("PurgeStream")

    async def CreateConsumer(self, request: Any, context: _Context) -> NoReturn:  # noqa: N802
        """Not offered yet."""
        raise _not_offered("CreateConsumer")

    async def UpdateConsumer(self, request: Any, context: _Context) -> NoReturn:  # noqa: N802
        """Not offered yet."""
        raise _not_offered("UpdateConsumer")

    async def DeleteConsumer(self, request: Any, context: _Context) -> NoReturn:  # noqa: N802
        """Not offered yet."""
        raise _not_offered("DeleteConsumer")

    async def Publish(self, request: Any, context: _Context) -> NoReturn:  # noqa: N802
        """Not offered yet."""
        raise _not_offered("Publish")

    async def ListMessages(self, request: Any, context: _Context) -> NoReturn:  # noqa: N802
        """Not offered yet."""
        raise _not_offered("ListMessages")

    async def GetMessage(self, request: Any, context: _Context) -> NoReturn:  # noqa: N802
        """Not offered yet."""
        raise _not_offered("GetMessage")

    async def DeleteMessage(self, request: Any, context: _Context) -> NoReturn:  # noqa: N802
        """Not offered yet."""
        raise _not_offered("DeleteMessage")

    async def ReplayMessages(  # noqa: N802
        self, request: pb.ReplayMessagesRequest, context: _Context
    ) -> AsyncIterator[pb.ReplayMessagesResponse]:
        """Not offered yet."""
        raise _not_offered("ReplayMessages")
        yield pb.ReplayMessagesResponse()


def _not_offered(method: str) -> Unimplemented:
    return Unimplemented(
        f"BrokerService.{method} is part of the contract and this version does not offer it",
        reason="UNIMPLEMENTED",
        metadata={"method": f"/marketprism.broker.v1.BrokerService/{method}"},
    )


def _no_stream(stream: str) -> NotFound:
    return NotFound(
        f"there is no stream {stream}; ListStreams names those there are",
        reason="STREAM_NOT_FOUND",
        metadata={"stream": stream},
    )


def _name(value: str, field: str) -> str:
    # A name becomes a word of a NATS subject: anything else would reach another one.
    if len(value) > 255 or not value.replace("-", "").replace("_", "").isalnum():
        raise _invalid(field, "expected letters, digits, - and _", value)
    return value


def _stream_name(info: Mapping[str, Any]) -> str:
    return str(info["config"]["name"])


def _consumer_name(info: Mapping[str, Any]) -> str:
    return str(info["name"])


def _list_page(
    infos: Iterable[Mapping[str, Any]],
    name_of: Callable[[Mapping[str, Any]], str],
    request: pb.ListStreamsRequest | pb.ListConsumersRequest,
    scope: object,
) -> tuple[list[Mapping[str, Any]], str]:
    """Give a page of what JetStream told, by name, and the token of the next."""
    by_name = sorted((((name_of(info),), info) for info in infos), key=itemgetter(0))
    return list_page(by_name, request.page_size, request.page_token, scope)


def _invalid(field: str, expected: str, value: object) -> InvalidArgument:
    text = f"{expected}, got {str(value)[:80]!r}"
    return InvalidArgument(
        f"{field}: {text}", violations=[FieldViolation(field, text, "OUT_OF_RANGE")]
    )
