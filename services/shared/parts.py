"""Puts the RPCs of a service together from the parts that answer them.

A response may be encoded already: then it goes to the wire as it is.
"""

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, TypeAlias

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from services.shared.errors import Unimplemented

__all__ = ["Context", "PartsServicer"]

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
"""What a handler gets beside the request."""


class PartsServicer:
    """Registers what the parts answer.

    A part is any object with methods that are named as RPCs of the contract: a coroutine function
    for a unary answer, an asynchronous generator function for a stream, both giving responses,
    encoded or not. RPCs of the contract without a method answer UNIMPLEMENTED with reason
    NOT_IMPLEMENTED; two parts with a method for the same RPC are a mistake, a `ValueError`.
    """

    def __init__(self, service: ServiceDescriptor, parts: Iterable[object]) -> None:
        self._service = service
        self._behaviors: dict[str, Callable[..., Any]] = {}
        for part in parts:
            for method in self._service.methods:
                behavior = getattr(part, method.name, None)
                if behavior is None:
                    continue
                if method.name in self._behaviors:
                    raise ValueError(f"two parts answer {method.name}, expected one")
                self._behaviors[method.name] = behavior

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register every RPC of the contract."""
        handlers = {}
        for method in self._service.methods:
            kind = (
                ("stream" if method.client_streaming else "unary")
                + "_"
                + ("stream" if method.server_streaming else "unary")
            )
            behavior = self._behaviors.get(method.name) or _not_implemented(
                method.name, streaming=method.server_streaming
            )
            make: Callable[..., Any] = getattr(grpc, f"{kind}_rpc_method_handler")
            handlers[method.name] = make(
                behavior,
                request_deserializer=GetMessageClass(method.input_type).FromString,
                response_serializer=_encoded,
            )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(self._service.full_name, handlers),)
        )


def _encoded(response: Message | bytes) -> bytes:
    return response if isinstance(response, bytes) else response.SerializeToString()


def _not_implemented(name: str, *, streaming: bool) -> Callable[..., Any]:
    error = Unimplemented(
        f"{name} is in the contract and not served yet",
        reason="NOT_IMPLEMENTED",
        metadata={"method": name},
    )

    async def refuse(_request: object, _context: Context) -> bytes:
        raise error

    async def refuse_stream(_request: object, _context: Context) -> AsyncIterator[bytes]:
        raise error
        yield b""

    return refuse_stream if streaming else refuse
