"""What `make gen` would write for `test/echo/v1/echo.proto`, built without protoc."""

from typing import Any

import grpc
from google.api import field_behavior_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

NAME = "test.echo.v1.EchoService"
_METHODS = {"Echo": (0, 0), "StreamEcho": (0, 1), "Collect": (1, 0), "Chat": (1, 1)}


def _file() -> descriptor_pb2.FileDescriptorProto:
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="test/echo/v1/echo.proto",
        package="test.echo.v1",
        syntax="proto3",
        dependency=["google/api/field_behavior.proto"],
    )
    request = file.message_type.add(name="EchoRequest")
    text = request.field.add(name="text", number=1, type=field.TYPE_STRING, label=1)
    text.options.Extensions[field_behavior_pb2.field_behavior].append(field_behavior_pb2.REQUIRED)
    request.field.add(name="count", number=2, type=field.TYPE_INT32, label=1)
    request.field.add(name="fail", number=3, type=field.TYPE_STRING, label=1)
    response = file.message_type.add(name="EchoResponse")
    response.field.add(name="text", number=1, type=field.TYPE_STRING, label=1)
    service = file.service.add(name="EchoService")
    for name, (requests, responses) in _METHODS.items():
        service.method.add(
            name=name,
            input_type=".test.echo.v1.EchoRequest",
            output_type=".test.echo.v1.EchoResponse",
            client_streaming=bool(requests),
            server_streaming=bool(responses),
        )
    return file


_pool = descriptor_pool.Default()
_pool.AddSerializedFile(_file().SerializeToString())
_descriptor = _pool.FindFileByName("test/echo/v1/echo.proto")

ECHO_SERVICE = _descriptor.services_by_name["EchoService"]
EchoRequest: Any = message_factory.GetMessageClass(_descriptor.message_types_by_name["EchoRequest"])
EchoResponse: Any = message_factory.GetMessageClass(
    _descriptor.message_types_by_name["EchoResponse"]
)


def _kind(name: str) -> str:
    requests, responses = _METHODS[name]
    return f"{'stream' if requests else 'unary'}_{'stream' if responses else 'unary'}"


def add_EchoServiceServicer_to_server(servicer: Any, server: grpc.aio.Server) -> None:  # noqa: N802
    handlers = {}
    for name in _METHODS:
        make = getattr(grpc, f"{_kind(name)}_rpc_method_handler")
        handlers[name] = make(
            getattr(servicer, name), EchoRequest.FromString, EchoResponse.SerializeToString
        )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(NAME, handlers),))


class EchoServiceStub:
    def __init__(self, channel: grpc.aio.Channel) -> None:
        for name in _METHODS:
            call = getattr(channel, _kind(name))(
                f"/{NAME}/{name}",
                request_serializer=EchoRequest.SerializeToString,
                response_deserializer=EchoResponse.FromString,
            )
            setattr(self, name, call)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)
