"""Answers about the past, computed once: kept while they are right, and told to HTTP caches.

How an RPC uses it (`answers` is the service's one `Answers`):

    async def ListTrades(self, request, context) -> bytes:
        check_list_trades(request)                      # refusals are not kept
        return await answers.cached(context, request, lambda: self._list_trades(request))

with `async def _list_trades(self, request) -> ListTradesResponse`. What comes back is the encoded
response; the range's end is read from the request's `end_time`, or `time`. Whoever inserts rows
calls `await answers.rows_inserted(exchange, symbol, oldest_ns)` after the insert.

Three kinds of answers:

- Changing: the range has no end, or one that is not `settling_seconds` ago, or one up to which not
  everything received is stored. It is kept for `changing_seconds`; HTTP caches keep it not at all.
- Settled: kept for `settled_seconds`. Rows that come late all the same (a backlog, trades that were
  missed and fetched afterwards) make the kept answers about their instrument void. HTTP caches
  cannot be told, so they keep it only for `recent_max_age_seconds`.
- Immutable: nothing more can come. HTTP caches, a CDN among them, keep it for `max_age_seconds`.

The entity tag is weak: the envelope of REST has a time and a request id of its own each time, while
`data` is the same byte for byte. A request with `if-none-match` of that tag gets 304, without data.
"""

import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import grpc
from google.protobuf.message import Message
from marketprism.history.v1 import history_service_pb2
from pydantic import Field

from services.shared.cache import EVERYTHING, Cache, CacheSettings, Computed
from services.shared.health import DependencyStatus

__all__ = [
    "NOT_MODIFIED_KEY",
    "AnswerSettings",
    "Answers",
    "Encoded",
    "contract_version",
    "is_rest",
    "mark_immutable",
]

NOT_MODIFIED_KEY: Final = "x-not-modified"
"""Metadata by which a service tells the gateway that the client has the answer already."""

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

# Metadata that only the gateway's transcoder sets: the path as the client of REST wrote it.
_REST_KEY = "x-envoy-original-path"
_NANOS = 1_000_000_000
_WHOLE, _WITH_GAPS = b"\x01", b"\x00"
_ALL_INSTRUMENTS = "*/*"


class AnswerSettings(CacheSettings):
    """How long answers of HistoryService are kept, here and by HTTP caches."""

    changing_seconds: float = Field(default=1.0, ge=0, le=60)
    """How long an answer is kept whose range still changes, seconds; 0 for not at all."""

    settling_seconds: float = Field(default=120.0, ge=1, le=86400)
    """A range that ended longer ago is settled: its events have come and are stored, seconds."""

    settled_seconds: float = Field(default=3600.0, ge=0, le=7 * 86400)
    """How long an answer about a settled range is kept, seconds; 0 for not at all."""

    immutable_after_seconds: float = Field(default=3600.0, ge=1)
    """A range that ended longer ago is immutable when the ledger has no gap in it, seconds."""

    backfill_seconds: float = Field(default=2 * 86400.0, ge=1)
    """A range that ended longer ago is immutable whatever the ledger says: what can be fetched
    afterwards has been, seconds."""

    recent_max_age_seconds: int = Field(default=10, ge=0, le=86400)
    """How long HTTP caches may keep a settled answer that is not immutable yet, seconds."""

    max_age_seconds: int = Field(default=86400, ge=0, le=31_536_000)
    """How long HTTP caches may keep an immutable answer, seconds. What the retention deletes or an
    operator corrects is seen after this time at the latest."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A response whose bytes were put together."""

    data: bytes
    """The encoded response."""

    whole: bool
    """Whether it names no gap that could still be filled."""


class Answers:
    """Answers unary calls from a cache, and says to HTTP caches what they may keep."""

    def __init__(
        self,
        cache: Cache,
        settings: AnswerSettings | None = None,
        *,
        now: Callable[[], int] = time.time_ns,
        stored_until: Callable[[], int] | None = None,
    ) -> None:
        """Keep answers in `cache`.

        `now` gives nanoseconds since the epoch. `stored_until` gives the instant up to which
        everything received is stored, which a backlog holds back; absent means now.
        """
        self.settings = settings or AnswerSettings()
        self._cache = cache
        self._now = now
        self._stored_until = stored_until or now

    async def cached(
        self,
        context: _Context,
        request: Message,
        compute: Callable[[], Awaitable[Message | Encoded]],
        *,
        end_ns: int | None = None,
        may_be_filled: bool = True,
    ) -> bytes:
        """Give the encoded answer to a checked request, from the cache or by `compute`.

        `end_ns` is the end of the range asked for, nanoseconds since the epoch, where it is not the
        request's `end_time` or `time`. `may_be_filled` is False for what is never fetched
        afterwards, such as books. Equal requests at one time share one computation.
        """
        end = _end_of(request) if end_ns is None else end_ns
        age = self._age(end)
        settings = self.settings
        seconds = (
            settings.settled_seconds
            if age >= settings.settling_seconds
            else settings.changing_seconds
        )

        async def make() -> Computed:
            response = await compute()
            if not isinstance(response, Encoded):
                response = Encoded(response.SerializeToString(), whole=_names_no_gap(response))
            whole = not may_be_filled or response.whole
            return Computed((_WHOLE if whole else _WITH_GAPS) + response.data, seconds)

        kept = await self._cache.get_or_compute(_key(request), make, scopes=(_scope(request),))
        answer = kept[1:]
        if age < settings.settling_seconds:
            return answer
        final = settings.immutable_after_seconds
        if kept[:1] != _WHOLE:
            final = max(final, settings.backfill_seconds)
        max_age = settings.max_age_seconds if age >= final else settings.recent_max_age_seconds
        if await mark_immutable(context, answer, max_age, forever=age >= final):
            return b""
        return answer

    async def begin(self) -> None:
        """Make everything void that was kept before; call it when the service begins.

        A process that died may have inserted rows without coming to say so.
        """
        await self._cache.void(EVERYTHING)

    async def rows_inserted(self, exchange: str, symbol: str, oldest_ns: int) -> None:
        """Say that rows of an instrument can be read now, the oldest of which is of this time.

        Cheap for rows of the present, and to be called after every insert.
        """
        if self._now() - oldest_ns >= self.settings.settling_seconds * _NANOS:
            await self._cache.void(f"{exchange}/{symbol}")
            await self._cache.void(_ALL_INSTRUMENTS)

    def stored_until(self) -> int:
        """Give the instant up to which everything received is stored, nanoseconds since 1970."""
        return min(self._now(), self._stored_until())

    def status(self) -> DependencyStatus:
        """Tell the state of the cache, for the service's `dependencies`."""
        return self._cache.status()

    def _age(self, end: int | None) -> float:
        """Give how long ago a range has ended, seconds; negative when it has not."""
        return -1.0 if end is None else (self.stored_until() - end) / _NANOS


async def mark_immutable(
    context: _Context, etag_source: bytes, max_age: int, *, forever: bool = True
) -> bool:
    """Let HTTP caches keep the answer for `max_age` seconds; `forever` says that it never changes.

    Whatever is not marked goes out as `cache-control: no-store`. Tells whether the client has the
    answer already: then send an empty one, the gateway makes a 304 of it. Only calls of REST are
    marked: nobody else reads it, and it costs a unary call a round of its own.
    """
    if not is_rest(context):
        return False
    metadata = {key: value for key, value in context.invocation_metadata() or ()}  # noqa: C416
    digest = hashlib.blake2b(etag_source, digest_size=12).hexdigest()
    tag = f'W/"{digest}"'
    matches = _matches(str(metadata.get("if-none-match", "")), digest)
    await context.send_initial_metadata(
        (
            ("cache-control", f"public, max-age={max_age}{', immutable' if forever else ''}"),
            ("etag", tag),
            # Answers differ by it in the headers of CORS.
            ("vary", "origin"),
            *(((NOT_MODIFIED_KEY, "1"),) if matches else ()),
        )
    )
    return matches


def is_rest(context: _Context) -> bool:
    """Tell whether a call came as REST: then initial metadata is headers to the client."""
    return any(key == _REST_KEY for key, _ in context.invocation_metadata() or ())


def contract_version(schema: str = "") -> str:
    """Give what keys begin with: it changes with the contract, and with the tables' schema."""
    digest = hashlib.blake2b(digest_size=6)
    ahead = [history_service_pb2.DESCRIPTOR]
    seen = set()
    while ahead:
        file = ahead.pop()
        if file.name not in seen:
            seen.add(file.name)
            digest.update(file.serialized_pb)
            ahead += file.dependencies
    digest.update(schema.encode())
    return digest.hexdigest()


def _end_of(request: Message) -> int | None:
    for name in ("end_time", "time"):
        if name in request.DESCRIPTOR.fields_by_name and request.HasField(name):
            nanoseconds: int = getattr(request, name).ToNanoseconds()
            return nanoseconds
    return None


def _scope(request: Message) -> str:
    exchange, symbol = getattr(request, "exchange", ""), getattr(request, "symbol", "")
    return f"{exchange}/{symbol}" if exchange and symbol else _ALL_INSTRUMENTS


def _key(request: Message) -> str:
    # Each RPC has a request message of its own.
    name = request.DESCRIPTOR.name
    digest = hashlib.blake2b(request.SerializeToString(deterministic=True), digest_size=16)
    return f"{name}:{digest.hexdigest()}"


def _names_no_gap(response: Message) -> bool:
    """Tell whether the answer says that nothing is missing; one that cannot say does not."""
    return "gaps" in response.DESCRIPTOR.fields_by_name and not getattr(response, "gaps", ())


def _matches(if_none_match: str, digest: str) -> bool:
    tags = [tag.strip().removeprefix("W/").strip('"') for tag in if_none_match.split(",")]
    return digest in tags or tags == ["*"]
