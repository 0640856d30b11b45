"""What the gateway itself serves over gRPC: reflection and health of the whole mesh."""

from collections.abc import Callable, Iterable

import grpc
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from services.shared.health import GrpcHealth

__all__ = ["MeshHealth", "add_mesh_reflection", "make_pool"]

_REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"


class MeshHealth(GrpcHealth):
    """The gRPC health of the gateway (`""`) and of every service that is reached through it."""

    def __init__(self, services: Iterable[str], is_up: Callable[[str], bool]) -> None:
        """Serve the health of these services; `is_up` tells whether one can be reached now."""
        super().__init__(services)
        self._is_up = is_up

    def set_all(self, *, live: bool, ready: bool) -> None:
        """Refresh every status; a service is ready when the gateway is and its upstream is."""
        if self._closed:
            return
        serving = health_pb2.HealthCheckResponse
        statuses = {
            name: serving.SERVING
            if (ready and self._is_up(name) if name else live)
            else serving.NOT_SERVING
            for name in self._status
        }
        if statuses != self._status:
            self._status = statuses
            self._wake()


class _Reflection(reflection.aio.ReflectionServicer):
    """Finds methods and fields too, which the pool of protobuf looks up only by their parent."""

    def _file_containing_symbol(
        self, request: reflection_pb2.ServerReflectionRequest, symbol: str
    ) -> reflection_pb2.ServerReflectionResponse:
        answer: reflection_pb2.ServerReflectionResponse = super()._file_containing_symbol(  # type: ignore[no-untyped-call]
            request, symbol
        )
        parent, _, _ = symbol.rpartition(".")
        if answer.HasField("error_response") and parent:
            found: reflection_pb2.ServerReflectionResponse = super()._file_containing_symbol(  # type: ignore[no-untyped-call]
                request, parent
            )
            if found.HasField("file_descriptor_response"):
                return found
        return answer


def make_pool(files: descriptor_pb2.FileDescriptorSet) -> DescriptorPool:
    """Make a pool of all contracts, and of health and reflection themselves."""
    pool = DescriptorPool()
    known = set()
    for file in files.file:
        pool.AddSerializedFile(file.SerializeToString())
        known.add(file.name)
    for own in (health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        if own.name not in known:
            pool.AddSerializedFile(own.serialized_pb)
    return pool


def add_mesh_reflection(
    server: grpc.aio.Server, pool: DescriptorPool, services: Iterable[str]
) -> None:
    """Serve reflection of these services, as v1alpha and as v1, whose messages are the same."""
    names = (
        *services,
        health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
        reflection.SERVICE_NAME,
    )
    servicer = _Reflection(names, pool=pool)  # type: ignore[no-untyped-call]
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for name in (reflection.SERVICE_NAME, _REFLECTION_V1):
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": handler}),)
        )
