"""Faults that can be switched on and off while the venue runs, each counted.

| kind | what happens | options beside `count`, `probability`, `skip` |
|---|---|---|
| drop | a frame is not sent | symbol, stream, connection |
| duplicate | a frame is sent twice | symbol, stream, connection |
| reorder | a frame is sent after the next one of its stream | symbol, stream, connection |
| corrupt | a frame is damaged, `mode` says how | symbol, stream, connection, mode |
| wrong_checksum | a book frame carries a checksum that does not fit | symbol, stream, connection |
| delay | a frame and all that follow it wait | symbol, stream, connection, seconds |
| cut | the connection ends | symbol, stream, connection, code, abort, when |
| silence | a subscription is acknowledged, then nothing comes | symbol, stream, connection |
| refuse_subscription | a subscription is answered with an error | symbol, stream, connection |
| refuse_connections | a new connection is refused | status, abort |
| server_shutdown | notice, then the end (24 h) | symbol, stream, connection, seconds |
| maintenance | notice, REST 503, connections closed and refused for `seconds` | seconds, notice |
| heartbeat_refusal | a ping is not answered; test requests come at once (Deribit) | connection |
| sequence_reset | a book's ids begin again lower (chained where the venue chains) | symbol |
| gap | ids of a book are skipped and nothing tells of them | symbol, ids |
| stale_snapshot | a snapshot (REST, or on the stream) is true but old | symbol, behind |
| rest_429 | REST answers that there were too many requests | symbol, path, retry_after |
| rest_418 | REST answers that the address is banned | symbol, path, retry_after |
| rest_5xx | REST answers with a server error | symbol, path, status |
| rest_slow | REST answers late | symbol, path, seconds |

`cut` (with `when` = "now"), `server_shutdown`, `maintenance`, `sequence_reset` and `gap` act when
they are set; all others at the next occasions in their scope.
"""

import enum
import json
import random
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

__all__ = [
    "Fault",
    "FaultError",
    "FaultKind",
    "FaultSet",
    "FaultSpec",
    "corrupted",
    "in_scope",
    "stream_matches",
]


class FaultKind(enum.StrEnum):
    """What can be made to go wrong."""

    DROP = "drop"
    """A frame is not sent."""
    DUPLICATE = "duplicate"
    """A frame is sent twice."""
    REORDER = "reorder"
    """A frame is sent after the next one of its stream."""
    CORRUPT = "corrupt"
    """A frame is damaged; `mode` says how."""
    WRONG_CHECKSUM = "wrong_checksum"
    """A book frame carries a checksum that does not fit the book, where the venue sends any."""
    DELAY = "delay"
    """A frame, and all that follows it on the connection, waits `seconds`."""
    CUT = "cut"
    """The connection ends: close `code`, or `abort` for a broken TCP connection. At once on every
    connection in scope, or in place of the next matching frame with `when` = "frame"."""
    SILENCE = "silence"
    """New subscriptions are acknowledged and then nothing is sent on them."""
    REFUSE_SUBSCRIPTION = "refuse_subscription"
    """A subscription is refused with the venue's error."""
    REFUSE = "refuse_connections"
    """A new WebSocket connection is refused with HTTP `status`, or by `abort`."""
    SHUTDOWN = "server_shutdown"
    """The shutdown event is sent at once to the connections in scope, which end after `seconds`."""
    MAINTENANCE = "maintenance"
    """The venue announces a maintenance, closes its connections `notice` seconds later, and
    refuses new ones and all REST requests (503) for `seconds`."""
    HEARTBEAT = "heartbeat_refusal"
    """A client's ping is not answered; where the server asks for signs of life (Deribit), it asks
    again and again without need."""
    SEQUENCE_RESET = "sequence_reset"
    """The ids of a book begin again, lower: chained to the old ones where the venue does so (OKX),
    else without a hint. At once, for every symbol in scope."""
    GAP = "gap"
    """`ids` ids of a book are skipped, though nothing was lost. At once."""
    STALE_SNAPSHOT = "stale_snapshot"
    """A snapshot is a true but old book: older than any diff the clients were sent, or `behind`
    update ids old. Over REST, or on the stream where the venue sends it there."""
    REST_LIMIT = "rest_429"
    """REST answers 429 with `retry_after`."""
    REST_BAN = "rest_418"
    """REST answers 418 with `retry_after`."""
    REST_ERROR = "rest_5xx"
    """REST answers `status`."""
    REST_SLOW = "rest_slow"
    """REST answers `seconds` late."""
    REST_HOLES = "rest_trades_missing"
    """REST's past trades leave out every trade whose number `ids` divides (Binance, OKX)."""


_ON_FRAMES = frozenset(
    {
        FaultKind.DROP,
        FaultKind.DUPLICATE,
        FaultKind.REORDER,
        FaultKind.CORRUPT,
        FaultKind.WRONG_CHECKSUM,
        FaultKind.DELAY,
        FaultKind.CUT,
    }
)
_ON_REST = frozenset(
    {
        FaultKind.STALE_SNAPSHOT,
        FaultKind.REST_LIMIT,
        FaultKind.REST_BAN,
        FaultKind.REST_ERROR,
        FaultKind.REST_SLOW,
        FaultKind.REST_HOLES,
    }
)
_STREAMED = frozenset({"symbol", "stream", "connection"})
_OPTIONS: dict[FaultKind, frozenset[str]] = {
    FaultKind.DROP: _STREAMED,
    FaultKind.DUPLICATE: _STREAMED,
    FaultKind.REORDER: _STREAMED,
    FaultKind.CORRUPT: _STREAMED | {"mode"},
    FaultKind.WRONG_CHECKSUM: _STREAMED,
    FaultKind.DELAY: _STREAMED | {"seconds"},
    FaultKind.CUT: _STREAMED | {"code", "abort", "when"},
    FaultKind.SILENCE: _STREAMED,
    FaultKind.REFUSE_SUBSCRIPTION: _STREAMED,
    FaultKind.REFUSE: frozenset({"status", "abort"}),
    FaultKind.MAINTENANCE: frozenset({"seconds", "notice"}),
    FaultKind.HEARTBEAT: frozenset({"connection"}),
    FaultKind.SEQUENCE_RESET: frozenset({"symbol"}),
    FaultKind.GAP: frozenset({"symbol", "ids"}),
    FaultKind.SHUTDOWN: _STREAMED | {"seconds"},
    FaultKind.STALE_SNAPSHOT: frozenset({"symbol", "behind"}),
    FaultKind.REST_LIMIT: frozenset({"symbol", "path", "retry_after"}),
    FaultKind.REST_BAN: frozenset({"symbol", "path", "retry_after"}),
    FaultKind.REST_ERROR: frozenset({"symbol", "path", "status"}),
    FaultKind.REST_SLOW: frozenset({"symbol", "path", "seconds"}),
    FaultKind.REST_HOLES: frozenset({"symbol", "path", "ids"}),
}
_ALWAYS = frozenset({"kind", "count", "probability", "skip"})


class FaultError(ValueError):
    """A fault request that makes no sense; the text says what was expected."""


class FaultSpec(BaseModel):
    """One fault: what, where (all of the scopes that are set must match), how often."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: FaultKind
    """What goes wrong."""
    symbol: str | None = None
    """Only this symbol, by the venue's own name."""
    stream: str | None = None
    """Only this stream; every stream of this kind when it begins with `@` (`@depth@100ms`), every
    stream of the pattern when it holds a `*` (`books:*`)."""
    connection: str | None = None
    """Only this connection, by its name in `/sim/connections`."""
    path: str | None = None
    """Only REST requests to this path; None is every venue path."""
    count: Annotated[int, Field(ge=1)] | None = 1
    """How many times it happens; None until it is removed."""
    probability: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Chance at each occasion in scope."""
    skip: Annotated[int, Field(ge=0)] = 0
    """Occasions in scope to let pass first."""
    mode: Literal["json", "truncate", "types", "binary", "utf8", "empty"] = "json"
    """How a frame is damaged: broken JSON, cut in half, wrong types, a binary frame, bytes that
    are not UTF-8, or an empty text."""
    seconds: Annotated[float, Field(ge=0, le=86_400)] = 1.0
    """Length of a delay, a slow answer, a maintenance, or the notice before a shutdown."""
    notice: Annotated[float, Field(ge=0, le=86_400)] = 0.0
    """Seconds between the notice of a maintenance and its begin."""
    ids: Annotated[int, Field(ge=1, le=1_000_000)] = 7
    """Ids that a gap leaves out; or every how many trades one is missing."""
    code: Annotated[int, Field(ge=1000, le=4999)] = 1001
    """WebSocket close code of a cut."""
    abort: bool = False
    """Break the TCP connection instead of closing it properly."""
    when: Literal["now", "frame"] = "now"
    """When a cut happens."""
    status: Annotated[int, Field(ge=400, le=599)] = 503
    """HTTP status of a refusal or of an error."""
    retry_after: Annotated[int, Field(ge=0, le=86_400)] = 1
    """`Retry-After` of a 429 or 418, seconds."""
    behind: Annotated[int, Field(ge=1)] | None = None
    """Update ids that a stale answer is behind."""

    @model_validator(mode="after")
    def _options_belong(self) -> "FaultSpec":
        allowed = _OPTIONS[self.kind] | _ALWAYS
        foreign = sorted(self.model_fields_set - allowed)
        if foreign:
            raise ValueError(
                f"{', '.join(foreign)} does not apply to {self.kind.value}; "
                f"it takes {', '.join(sorted(allowed - {'kind'}))}"
            )
        if self.kind is FaultKind.REST_ERROR and self.status < 500:
            raise ValueError(f"expected a status of 500 to 599 for rest_5xx, got {self.status}")
        return self


class Fault:
    """A fault that was set, and how often it happened."""

    def __init__(self, number: int, spec: FaultSpec) -> None:
        self.id = number
        self.spec = spec
        self.hits = 0
        """How often it happened."""
        self.seen = 0
        """Occasions in scope, whether it happened or not."""

    @property
    def exhausted(self) -> bool:
        """Whether it happened as often as asked."""
        return self.spec.count is not None and self.hits >= self.spec.count

    def describe(self) -> dict[str, Any]:
        """JSON-ready: the request as understood, and its counters."""
        told = self.spec.model_dump(mode="json", include=set(_OPTIONS[self.spec.kind] | _ALWAYS))
        return {
            "id": self.id,
            **told,
            "hits": self.hits,
            "seen": self.seen,
            "exhausted": self.exhausted,
        }


class FaultSet:
    """The faults in force. Chance is seeded, so a run can be repeated."""

    def __init__(self, seed: int = 0) -> None:
        self.totals: dict[str, int] = {kind.value: 0 for kind in FaultKind}
        """How often each kind has happened, removed faults included."""
        self.on_frames: list[Fault] = []
        """The faults which every frame must be held against, oldest first."""
        self._faults: dict[int, Fault] = {}
        self._next = 1
        self._random = random.Random(f"faults {seed}")  # noqa: S311

    def parse(self, request: object) -> FaultSpec:
        """Return a fault from JSON-like data.

        Raises:
            FaultError: with what was expected, field by field.

        """
        if not isinstance(request, dict):
            raise FaultError(
                f"expected a JSON object such as {{'kind': 'drop'}}, got {_kind(request)}"
            )
        try:
            return FaultSpec.model_validate(request)
        except ValidationError as error:
            told = "; ".join(
                f"{'.'.join(map(str, problem['loc'])) or 'fault'}: {problem['msg']}"
                for problem in error.errors()
            )
            raise FaultError(told) from error

    def add(self, spec: FaultSpec) -> Fault:
        """Put a fault in force."""
        fault = Fault(self._next, spec)
        self._next += 1
        self._faults[fault.id] = fault
        self._refresh()
        return fault

    def remove(self, number: int) -> Fault | None:
        """End one fault; None if there is none of that id."""
        fault = self._faults.pop(number, None)
        self._refresh()
        return fault

    def clear(self) -> int:
        """End all faults; how many there were."""
        count = len(self._faults)
        self._faults.clear()
        self._refresh()
        return count

    def all(self) -> list[Fault]:
        """Every fault that was set and not removed, oldest first."""
        return list(self._faults.values())

    def fires(self, fault: Fault) -> bool:
        """Whether the fault happens on this occasion, which must be in its scope; counts it."""
        if fault.exhausted:
            return False
        fault.seen += 1
        if fault.seen <= fault.spec.skip:
            return False
        if fault.spec.probability < 1 and self._random.random() >= fault.spec.probability:
            return False
        self.happened(fault)
        return True

    def happened(self, fault: Fault) -> None:
        """Count one happening."""
        fault.hits += 1
        self.totals[fault.spec.kind.value] += 1
        if fault.exhausted:
            self._refresh()

    def first(
        self,
        kind: FaultKind,
        *,
        symbol: str | None = None,
        stream: str | None = None,
        connection: str | None = None,
        path: str | None = None,
    ) -> Fault | None:
        """Return the oldest fault of that kind in scope that happens now; counted."""
        for fault in self.all():
            spec = fault.spec
            if (
                spec.kind is kind
                and in_scope(spec, symbol, stream)
                and spec.connection in (None, connection)
                and spec.path in (None, path)
                and self.fires(fault)
            ):
                return fault
        return None

    def _refresh(self) -> None:
        self.on_frames = [
            fault
            for fault in self._faults.values()
            if fault.spec.kind in _ON_FRAMES
            and not fault.exhausted
            and (fault.spec.kind is not FaultKind.CUT or fault.spec.when == "frame")
        ]


def in_scope(spec: FaultSpec, symbol: str | None, stream: str | None) -> bool:
    """Whether a symbol and a stream are within what the fault names."""
    if spec.symbol is not None and spec.symbol != symbol:
        return False
    if spec.stream is None or stream is None:
        return spec.stream is None
    return stream_matches(spec.stream, stream)


def stream_matches(pattern: str, stream: str) -> bool:
    """Whether a stream is the one named, or of the kind or the pattern named."""
    if pattern.startswith("@"):
        return "@" + stream.partition("@")[2] == pattern
    if "*" in pattern:
        return fnmatchcase(stream, pattern)
    return stream == pattern


def corrupted(text: bytes, mode: str) -> tuple[bytes, int]:
    """(payload, WebSocket opcode) of a damaged frame."""
    if mode == "truncate":
        return text[: len(text) // 2], 1
    if mode == "binary":
        return b"\x00\xff\xfe" + text[:64], 2
    if mode == "utf8":
        return text[:-2] + b"\xff\xfe", 1
    if mode == "empty":
        return b"", 1
    if mode == "types":
        return json.dumps(_retyped(json.loads(text)), separators=(",", ":")).encode(), 1
    return text[:-1] + b",]", 1


_NAMES = frozenset({"e", "stream", "channel", "jsonrpc", "method", "arg", "instId", "action"})


def _retyped(message: Any) -> Any:
    # Wrong types within the event, while what says which event it is stays.
    if not isinstance(message, dict):
        return "not an object"
    for name in ("data", "params"):
        inner = message.get(name)
        if isinstance(inner, dict):
            message[name] = _retyped(inner)
            return message
        if isinstance(inner, list) and inner and isinstance(inner[0], dict):
            message[name] = [_retyped(each) for each in inner]
            return message
    for key, value in message.items():
        if key in _NAMES:
            continue
        if isinstance(value, list):
            message[key] = "not a list"
        elif isinstance(value, int) and not isinstance(value, bool):
            message[key] = {"not": "a number"}
        else:
            message[key] = None
    return message


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__
