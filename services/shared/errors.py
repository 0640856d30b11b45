"""One root for every error of the mesh, and one table from error to gRPC code and HTTP status.

A handler raises one of these; the shared interceptor answers with `google.rpc.Status` carrying
`ErrorInfo` (reason, domain, metadata), `BadRequest` field violations and `RequestInfo`.
"""

# ruff: noqa: N818 - the names are those of the gRPC codes, which everybody knows

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import (  # type: ignore[import-untyped]  # the package ships no type stubs
    error_details_pb2,
    status_pb2,
)

from services.shared.masking import mask_text, mask_value

__all__ = [
    "DOMAIN",
    "STATUS_TABLE",
    "Aborted",
    "AlreadyExists",
    "Cancelled",
    "ConfigError",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "FieldViolation",
    "Internal",
    "InvalidArgument",
    "MarketPrismError",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "ResourceExhausted",
    "StartupError",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unknown",
    "from_rpc_error",
    "grpc_code",
    "http_status",
]

DOMAIN = "marketprism"
"""`ErrorInfo.domain` of every error that comes from the mesh."""

STATUS_DETAILS_KEY = "grpc-status-details-bin"

# Status travels in HTTP/2 trailers, which clients and proxies limit to about 8 KiB in all.
_MAX_MESSAGE = 1024
_MAX_STATUS_BYTES = 4096
_MAX_VIOLATIONS = 32


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of a request that is wrong."""

    field: str
    """Path of the field in the request, dotted: `filter.symbols[2].exchange`."""

    description: str
    """What was expected and what came."""

    reason: str = ""
    """UPPER_SNAKE kind of the violation, for programs: `REQUIRED`, `OUT_OF_RANGE`."""


class MarketPrismError(Exception):
    """Root of every error that MarketPrism raises on purpose.

    `message` is for a person: what was expected, what came, what to do. `reason` is for a program
    (UPPER_SNAKE, stable), `metadata` gives the facts as strings, `violations` names the fields,
    `retry_after` says after how many seconds a retry makes sense.
    """

    default_reason: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, object] | None = None,
        violations: Iterable[FieldViolation] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata: dict[str, str] = {k: str(v) for k, v in (metadata or {}).items()}
        self.violations: tuple[FieldViolation, ...] = tuple(violations)
        self.retry_after = retry_after

    def to_status(self, request_id: str = "") -> status_pb2.Status:
        """Give the `google.rpc.Status` a client receives, secrets masked and its size bounded."""
        status = status_pb2.Status(
            code=grpc_code(self).value[0],
            message=_shorten_message(mask_text(self.message)),
        )
        _add_detail(
            status,
            error_details_pb2.ErrorInfo(
                reason=self.reason,
                domain=DOMAIN,
                metadata={
                    k: _shorten(str(mask_value(k, v)), 256) for k, v in self.metadata.items()
                },
            ),
        )
        if request_id:
            _add_detail(status, error_details_pb2.RequestInfo(request_id=request_id))
        if self.retry_after is not None:
            delay = duration_pb2.Duration()
            delay.FromNanoseconds(round(self.retry_after * 1e9))
            _add_detail(status, error_details_pb2.RetryInfo(retry_delay=delay))
        if self.violations:
            _add_detail(status, _bad_request(self.violations, status.ByteSize()))
        return status


class InvalidArgument(MarketPrismError):
    """The request is wrong by itself, whatever the state of the system."""

    default_reason = "INVALID_ARGUMENT"


class OutOfRange(MarketPrismError):
    """The request reaches past what exists, such as a page or an instant beyond the data."""

    default_reason = "OUT_OF_RANGE"


class NotFound(MarketPrismError):
    """What the request names does not exist."""

    default_reason = "NOT_FOUND"


class AlreadyExists(MarketPrismError):
    """What the request would create exists already."""

    default_reason = "ALREADY_EXISTS"


class FailedPrecondition(MarketPrismError):
    """The system is not in the state that the request needs; retrying alone does not help."""

    default_reason = "FAILED_PRECONDITION"


class Aborted(MarketPrismError):
    """A conflict with another request; retry from the start of the read-modify-write."""

    default_reason = "ABORTED"


class Unauthenticated(MarketPrismError):
    """No valid credentials came with the request."""

    default_reason = "UNAUTHENTICATED"


class PermissionDenied(MarketPrismError):
    """The caller is known and may not do this."""

    default_reason = "PERMISSION_DENIED"


class ResourceExhausted(MarketPrismError):
    """A limit or a quota is reached; `retry_after` says when to come back, when known."""

    default_reason = "RESOURCE_EXHAUSTED"


class Unavailable(MarketPrismError):
    """A dependency is away for now; the same request may succeed later."""

    default_reason = "UNAVAILABLE"


class DeadlineExceeded(MarketPrismError):
    """The work did not finish in the time it was given."""

    default_reason = "DEADLINE_EXCEEDED"


class Cancelled(MarketPrismError):
    """The caller went away or the service ended the work."""

    default_reason = "CANCELLED"


class Unimplemented(MarketPrismError):
    """The contract has it, this service does not."""

    default_reason = "UNIMPLEMENTED"


class DataLoss(MarketPrismError):
    """Data is lost or corrupt beyond repair."""

    default_reason = "DATA_LOSS"


class Internal(MarketPrismError):
    """An invariant is broken: a bug here."""

    default_reason = "INTERNAL"


class Unknown(MarketPrismError):
    """An error of which nothing better is known, such as one from a foreign server."""

    default_reason = "UNKNOWN"


class ConfigError(FailedPrecondition):
    """The configuration is wrong; the message lists every problem with file and key."""

    default_reason = "CONFIG_INVALID"


class StartupError(FailedPrecondition):
    """A service or a child process could not start; the message says why and what to do."""

    default_reason = "STARTUP_FAILED"


STATUS_TABLE: Mapping[type[MarketPrismError], tuple[grpc.StatusCode, int]] = {
    InvalidArgument: (grpc.StatusCode.INVALID_ARGUMENT, 400),
    OutOfRange: (grpc.StatusCode.OUT_OF_RANGE, 400),
    FailedPrecondition: (grpc.StatusCode.FAILED_PRECONDITION, 400),
    Unauthenticated: (grpc.StatusCode.UNAUTHENTICATED, 401),
    PermissionDenied: (grpc.StatusCode.PERMISSION_DENIED, 403),
    NotFound: (grpc.StatusCode.NOT_FOUND, 404),
    AlreadyExists: (grpc.StatusCode.ALREADY_EXISTS, 409),
    Aborted: (grpc.StatusCode.ABORTED, 409),
    ResourceExhausted: (grpc.StatusCode.RESOURCE_EXHAUSTED, 429),
    Cancelled: (grpc.StatusCode.CANCELLED, 499),
    DataLoss: (grpc.StatusCode.DATA_LOSS, 500),
    Internal: (grpc.StatusCode.INTERNAL, 500),
    Unknown: (grpc.StatusCode.UNKNOWN, 500),
    Unimplemented: (grpc.StatusCode.UNIMPLEMENTED, 501),
    Unavailable: (grpc.StatusCode.UNAVAILABLE, 503),
    DeadlineExceeded: (grpc.StatusCode.DEADLINE_EXCEEDED, 504),
}
"""Error class to gRPC code and HTTP status (as google.rpc.Code maps them)."""

_BY_CODE = {code: error for error, (code, _) in STATUS_TABLE.items()}


def grpc_code(error: MarketPrismError | type[MarketPrismError]) -> grpc.StatusCode:
    """Give the gRPC code of an error; a subclass has the code of its nearest listed base."""
    return _row(error)[0]


def http_status(error: MarketPrismError | type[MarketPrismError]) -> int:
    """Give the HTTP status of an error; a subclass has the status of its nearest listed base."""
    return _row(error)[1]


def from_rpc_error(error: grpc.aio.AioRpcError) -> MarketPrismError:
    """Rebuild our error from what a call to another service raised.

    A status without details (a foreign server, a broken connection) gives the class of its code
    with that class's own reason.
    """
    kind = _BY_CODE.get(error.code(), Unknown)
    message = error.details() or error.code().name
    raw = next((v for k, v in error.trailing_metadata() or () if k == STATUS_DETAILS_KEY), None)
    if not isinstance(raw, bytes):
        return kind(message)
    status = status_pb2.Status.FromString(raw)
    info, bad, retry = (
        error_details_pb2.ErrorInfo(),
        error_details_pb2.BadRequest(),
        error_details_pb2.RetryInfo(),
    )
    has_retry = False
    for detail in status.details:
        if not detail.Unpack(info) and not detail.Unpack(bad):
            has_retry = detail.Unpack(retry) or has_retry
    return kind(
        status.message,
        reason=info.reason or None,
        metadata=dict(info.metadata),
        violations=[FieldViolation(v.field, v.description, v.reason) for v in bad.field_violations],
        retry_after=retry.retry_delay.ToNanoseconds() / 1e9 if has_retry else None,
    )


def _row(error: MarketPrismError | type[MarketPrismError]) -> tuple[grpc.StatusCode, int]:
    kind = error if isinstance(error, type) else type(error)
    for base in kind.__mro__:
        if base in STATUS_TABLE:
            return STATUS_TABLE[base]
    return STATUS_TABLE[Internal]


def _shorten(text: str, limit: int) -> str:
    """Cut a text to so many bytes of UTF-8."""
    data = text.encode(errors="replace")
    return text if len(data) <= limit else data[: limit - 3].decode(errors="ignore") + "…"


def _shorten_message(text: str) -> str:
    """Cut a text to the bytes that it may take as `grpc-message`, which is percent-encoded."""
    text = _shorten(text, _MAX_MESSAGE)
    left = _MAX_MESSAGE - len("…".encode()) * 3
    for index, char in enumerate(text):
        left -= 1 if " " <= char <= "~" and char != "%" else 3 * len(char.encode())
        if left < 0:
            return text[:index] + "…"
    return text


def _add_detail(
    status: status_pb2.Status,
    detail: error_details_pb2.ErrorInfo
    | error_details_pb2.RequestInfo
    | error_details_pb2.RetryInfo
    | error_details_pb2.BadRequest,
) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)


def _bad_request(
    violations: tuple[FieldViolation, ...], used_bytes: int
) -> error_details_pb2.BadRequest:
    bad = error_details_pb2.BadRequest()
    for violation in violations[:_MAX_VIOLATIONS]:
        entry = error_details_pb2.BadRequest.FieldViolation(
            field=_shorten(violation.field, 256),
            description=_shorten(mask_text(violation.description), 512),
            reason=violation.reason,
        )
        if used_bytes + bad.ByteSize() + entry.ByteSize() > _MAX_STATUS_BYTES:
            break
        bad.field_violations.append(entry)
    return bad
