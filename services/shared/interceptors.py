"""What every RPC of every service goes through, in one interceptor.

Request id, metrics, access log, REQUIRED fields, deadlines, errors and spans. It is one and not a
chain, and a method's handler is wrapped once and kept, because each layer of a chain costs every
call; a stream's responses go from the handler's generator straight to the wire.

Streaming handlers are async generators. The request id is bound to structlog's context variables
for everything the handler logs, and is sent back as trailing metadata `x-request-id`: initial
metadata would cost a unary call a round through the event loop of its own, a fifth of the calls
that a process can answer, and would keep a gateway from giving a refused stream its HTTP status.
"""

import asyncio
import contextlib
import inspect
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
import structlog
from google.protobuf.message import DecodeError, Message
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from structlog.typing import FilteringBoundLogger

from services.shared.errors import (
    STATUS_DETAILS_KEY,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    MarketPrismError,
    ResourceExhausted,
    Unimplemented,
    grpc_code,
)
from services.shared.field_behavior import RequiredFields
from services.shared.telemetry import Metrics

__all__ = ["REQUEST_ID_KEY", "CallInterceptor", "current_request_id"]

REQUEST_ID_KEY = "x-request-id"
"""Metadata key of the request id, in requests and in responses."""

_MAX_REQUEST_ID = 128
_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
# Called by infrastructure every few seconds: their log lines would drown the others.
_QUIET = ("/grpc.health.", "/grpc.reflection.")
_CALL_OVER = (grpc.aio.AbortError, grpc.aio.InternalError)
_BUG_CODES = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS}


def current_request_id() -> str:
    """Give the id of the request that is being handled here, empty outside of one."""
    value = structlog.contextvars.get_contextvars().get("request_id", "")
    return str(value)


@dataclass(slots=True)
class _Method:
    """One wrapped method: its names and its metric children, looked up once."""

    path: str
    service: str
    name: str
    response_streaming: bool
    handled: dict[grpc.StatusCode, Callable[[], None]]
    started: Callable[[], None]
    observe: Callable[[float], None]
    open_streams: Any
    quiet: bool


@dataclass(frozen=True, slots=True)
class _Undecodable:
    """Stands for a request whose bytes are not a message of the method's type."""

    reason: str


class CallInterceptor(grpc.aio.ServerInterceptor):
    """The interceptor of one service's gRPC server."""

    def __init__(
        self,
        metrics: Metrics,
        log: FilteringBoundLogger,
        *,
        unary_deadline: float,
        max_concurrent_calls: int,
        tracer: trace.Tracer | None = None,
    ) -> None:
        # Bound once: an unbound logger assembles itself anew for every line.
        self._log = log.bind()
        self._unary_deadline = unary_deadline
        self._max_concurrent_calls = max_concurrent_calls
        self._tracer = tracer
        self._required = RequiredFields()
        self._wrapped: dict[str, tuple[_Handler, _Handler]] = {}
        self._active = 0
        labels = ("grpc_service", "grpc_method", "grpc_type")
        self._started = metrics.counter("grpc_requests_started", "RPCs that arrived.", labels)
        self._handled = metrics.counter(
            "grpc_requests_handled", "RPCs that ended, by status code.", (*labels, "grpc_code")
        )
        self._seconds = metrics.histogram(
            "grpc_request_duration_seconds", "Time from arrival to end of an RPC.", labels
        )
        self._open = metrics.gauge("grpc_streams_open", "Streams in progress.", labels)
        self._unknown = metrics.counter(
            "grpc_unknown_methods", "RPCs to a method that this server does not have."
        )

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["_Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        """Give the wrapped handler of the called method."""
        handler = await continuation(handler_call_details)
        path = handler_call_details.method
        if handler is None:
            self._unknown.inc()
            return self._unknown_method(path)
        known = self._wrapped.get(path)
        if known is not None and known[0] is handler:
            return known[1]
        wrapped = self._wrap(path, handler)
        self._wrapped[path] = (handler, wrapped)
        return wrapped

    # ---- wrapping, once a method

    def _wrap(self, path: str, handler: _Handler) -> _Handler:
        service, _, name = path.lstrip("/").rpartition("/")
        kind = (
            ("stream" if handler.request_streaming else "unary")
            + "_"
            + ("stream" if handler.response_streaming else "unary")
        )
        labels = (service, name, kind)
        method = _Method(
            path=path,
            service=service,
            name=name,
            response_streaming=handler.response_streaming,
            handled=_CodeCounters(self._handled, labels),
            started=self._started.labels(*labels).inc,
            observe=self._seconds.labels(*labels).observe,
            open_streams=None if kind == "unary_unary" else self._open.labels(*labels),
            quiet=path.startswith(_QUIET),
        )
        behavior = getattr(handler, kind)
        if handler.response_streaming:
            wrapped = self._wrap_stream_response(method, behavior, handler.request_streaming)
        else:
            wrapped = self._wrap_unary_response(method, behavior, handler.request_streaming)
        make: Any = getattr(grpc, f"{kind}_rpc_method_handler")
        rebuilt: _Handler = make(
            wrapped,
            request_deserializer=_decoder(handler.request_deserializer),
            response_serializer=handler.response_serializer,
        )
        return rebuilt

    def _wrap_unary_response(
        self, method: _Method, behavior: Any, request_streaming: bool
    ) -> Callable[[Any, _Context], Awaitable[Any]]:
        check = self._check
        deadline = None if request_streaming else self._unary_deadline
        call = self._traced(method, behavior) if self._tracer else behavior

        async def handle(request: Any, context: _Context) -> Any:
            if request_streaming:
                request = self._checked(request)
            else:
                check(request)
            if deadline is None or context.time_remaining() is not None:
                return await call(request, context)
            timeout = asyncio.timeout(deadline)
            try:
                async with timeout:
                    return await call(request, context)
            except TimeoutError:
                if not timeout.expired():
                    raise
                raise DeadlineExceeded(
                    f"{method.name} did not finish within {deadline:g} s, the default deadline; "
                    "set a longer deadline in the client if the work needs it",
                    metadata={"method": method.path, "deadline_seconds": deadline},
                ) from None

        async def unary_response(request: Any, context: _Context) -> Any:
            return await self._run(method, context, handle(request, context))

        return unary_response

    def _wrap_stream_response(
        self, method: _Method, behavior: Any, request_streaming: bool
    ) -> Callable[[Any, _Context], Awaitable[None]]:
        check = self._check
        if not inspect.isasyncgenfunction(behavior):
            raise Internal(
                f"{method.path}: expected an async generator as a streaming handler, "
                f"got {behavior!r}; write `async def` with `yield`"
            )

        async def handle(request: Any, context: _Context) -> None:
            if request_streaming:
                request = self._checked(request)
            else:
                check(request)
            write = context.write
            # Closing here, and not by garbage collection, runs the handler's `finally` before
            # the RPC ends, also when the client went away in the middle of a write.
            async with contextlib.aclosing(behavior(request, context)) as responses:
                async for response in responses:
                    await write(response)

        async def stream_response(request: Any, context: _Context) -> None:
            await self._run(method, context, handle(request, context))

        return stream_response

    def _check(self, request: Message | _Undecodable) -> None:
        if isinstance(request, _Undecodable):
            raise InvalidArgument(
                f"the request cannot be decoded: {request.reason}",
                reason="REQUEST_MALFORMED",
            )
        self._required.check(request)

    async def _checked(self, requests: AsyncIterator[Message]) -> AsyncIterator[Message]:
        check = self._check
        async for request in requests:
            check(request)
            yield request

    def _traced(self, method: _Method, behavior: Any) -> Callable[[Any, _Context], Awaitable[Any]]:
        tracer = self._tracer
        assert tracer is not None
        propagator = TraceContextTextMapPropagator()

        async def traced(request: Any, context: _Context) -> Any:
            carrier = {k: v for k, v in context.invocation_metadata() or () if isinstance(v, str)}
            parent = propagator.extract(carrier, context=otel_context.Context())
            with tracer.start_as_current_span(
                f"{method.service}/{method.name}",
                context=parent,
                kind=trace.SpanKind.SERVER,
                attributes={
                    "rpc.system": "grpc",
                    "rpc.service": method.service,
                    "rpc.method": method.name,
                    "marketprism.request_id": current_request_id(),
                },
                record_exception=False,
                set_status_on_exception=False,
            ) as span:
                try:
                    return await behavior(request, context)
                except MarketPrismError as error:
                    span.set_attribute("rpc.grpc.status_code", grpc_code(error).value[0])
                    span.set_status(trace.StatusCode.ERROR, error.reason)
                    raise
                except Exception as error:
                    span.set_status(trace.StatusCode.ERROR, type(error).__name__)
                    raise

        return traced

    def _unknown_method(self, path: str) -> _Handler:
        # Its metric labels would come from the client, so it is not run like the others.
        async def refuse(_requests: Any, context: _Context) -> None:
            request_id = _request_id(context)
            self._log.info("rpc to an unknown method", method=path[:200], request_id=request_id)
            error = Unimplemented(
                f"this server has no method {path[:200]}; list what it has by reflection",
                reason="METHOD_UNKNOWN",
                metadata={"method": path[:200]},
            )
            context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
            await _abort(context, error, request_id)

        # A streaming handler need not read a message before it answers.
        make: Any = grpc.stream_stream_rpc_method_handler
        handler: _Handler = make(refuse)
        return handler

    # ---- each call

    async def _run(self, method: _Method, context: _Context, work: Any) -> Any:
        """Run one RPC's work, and answer whatever it raises."""
        began = time.perf_counter()
        request_id = _request_id(context)
        structlog.contextvars.bind_contextvars(request_id=request_id)
        method.started()
        if method.open_streams is not None:
            method.open_streams.inc()
        self._active += 1
        code = grpc.StatusCode.CANCELLED
        reason = ""
        try:
            try:
                if self._active > self._max_concurrent_calls:
                    raise ResourceExhausted(
                        f"{self._max_concurrent_calls} calls and streams are in progress, which is "
                        "the limit of this server; retry later or end streams you do not need",
                        reason="TOO_MANY_CALLS",
                        metadata={"limit": self._max_concurrent_calls},
                        retry_after=1.0,
                    )
                # Trailing, because an error sent after initial metadata is not trailers-only: a
                # gateway would have answered 200 to a REST client before it saw the error.
                context.set_trailing_metadata(((REQUEST_ID_KEY, request_id),))
                response = await work
            except MarketPrismError as error:
                code, reason = grpc_code(error), error.reason
                if code in _BUG_CODES:
                    self._log.error("rpc failed", method=method.path, reason=reason, exc_info=True)
                await _abort(context, error, request_id)
            except asyncio.CancelledError:
                if context.time_remaining() == 0:
                    code = grpc.StatusCode.DEADLINE_EXCEEDED
                raise
            except _CALL_OVER:
                # The handler aborted by itself, or the connection broke under it.
                code = _code_of(context, grpc.StatusCode.CANCELLED)
                raise
            except Exception:
                code, reason = grpc.StatusCode.INTERNAL, "INTERNAL"
                self._log.error("rpc failed by a bug", method=method.path, exc_info=True)
                await _abort(context, _internal(request_id), request_id)
            code = _code_of(context, grpc.StatusCode.OK)
            return response
        finally:
            work.close()
            self._active -= 1
            if method.open_streams is not None:
                method.open_streams.dec()
            seconds = time.perf_counter() - began
            method.observe(seconds)
            method.handled[code]()
            if not method.quiet:
                write = self._log.debug if code is grpc.StatusCode.OK else self._log.info
                write(
                    "rpc",
                    method=method.path,
                    code=code.name,
                    seconds=round(seconds, 6),
                    **({"reason": reason} if reason else {}),
                )


class _CodeCounters(dict[grpc.StatusCode, Callable[[], None]]):
    """Counter children by status code, made when a code first occurs."""

    def __init__(self, counter: Any, labels: tuple[str, ...]) -> None:
        super().__init__()
        self._counter = counter
        self._labels = labels

    def __missing__(self, code: grpc.StatusCode) -> Callable[[], None]:
        increment: Callable[[], None] = self._counter.labels(*self._labels, code.name).inc
        self[code] = increment
        return increment


def _decoder(decode: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """Let a request that cannot be decoded reach the handler, which answers it like any other.

    grpc itself would tell the client UNKNOWN and the name of a Python class.
    """
    if decode is None:
        return None

    def decode_or_tell(data: bytes) -> Any:
        try:
            return decode(data)
        except DecodeError as error:
            return _Undecodable(str(error))

    return decode_or_tell


def _request_id(context: _Context) -> str:
    for key, value in context.invocation_metadata() or ():
        if (
            key == REQUEST_ID_KEY
            and isinstance(value, str)
            and 0 < len(value) <= _MAX_REQUEST_ID
            and value.isascii()
            and value.isprintable()
        ):
            return value
    return os.urandom(16).hex()


def _internal(request_id: str) -> Internal:
    return Internal(
        "an internal error; the service's log tells more under this request id",
        metadata={"request_id": request_id},
    )


def _code_of(context: _Context, default: grpc.StatusCode) -> grpc.StatusCode:
    code: Any = context.code()
    if code is None or code == 0:
        return default
    if isinstance(code, grpc.StatusCode):
        return code
    return next((c for c in grpc.StatusCode if c.value[0] == code), grpc.StatusCode.UNKNOWN)


async def _abort(context: _Context, error: MarketPrismError, request_id: str) -> None:
    status = error.to_status(request_id)
    await context.abort(
        grpc_code(error),
        status.message,
        (
            *(context.trailing_metadata() or ()),
            (STATUS_DETAILS_KEY, status.SerializeToString()),
        ),
    )
