"""Answers about books of the past: at one instant, and at every instant of a grid."""
# ruff: noqa: N802 - methods are named as in the contract

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from marketprism.history.v1 import history_service_pb2 as pb
from marketprism.history.v1 import order_book_history_pb2 as books

from services.shared.errors import NotFound
from services.shared.parts import Context
from services.shared.wire import field
from services.storage.book_figures import depth_point, spread_point
from services.storage.book_store import BASE_WINDOW, BookStore, base_among
from services.storage.book_verdict import BookJudge
from services.storage.book_walk import BookWalk
from services.storage.engine import Engine
from services.storage.http_cache import Answers, Encoded
from services.storage.known import KnownInstruments
from services.storage.paging import bad_token, read_token, write_token
from services.storage.validators import (
    NANOS,
    check_instrument,
    duration_ns,
    invalid,
    page_size,
    time_ns,
    time_range,
)

__all__ = ["BookHistory"]

_MOST_BYTES: Final = 12 * 1024**2
_PAGE_SECONDS: Final = 5.0
_CHUNK: Final = 600 * NANOS
_DEFAULT_DISTANCES: Final = (10, 50, 100)
_MOST_DISTANCES: Final = 20


@dataclass(frozen=True, slots=True)
class _Grid:
    """The instants of a page, nanoseconds since 1970."""

    first: int
    end: int
    step: int
    size: int

    def instants(self) -> range:
        return range(self.first, min(self.end, self.first + self.size * self.step), self.step)


class BookHistory:
    """Answers GetOrderBookAt, ListOrderBooks, ListSpreads and ListDepths."""

    def __init__(
        self,
        engine: Engine,
        known: KnownInstruments,
        answers: Answers,
        *,
        now: Callable[[], int] = time.time_ns,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read from `engine`, answer through `answers`.

        `now` gives nanoseconds since 1970, `monotonic` seconds.
        """
        self._engine = engine
        self._known = known
        self._answers = answers
        self._now = now
        self._monotonic = monotonic

    async def GetOrderBookAt(self, request: pb.GetOrderBookAtRequest, context: Context) -> bytes:
        """Answer the book of an instant, with its verdict."""
        exchange, symbol = check_instrument(request)
        at = time_ns(request.time, "time")
        depth = _depth(request.depth, 10_000)

        async def compute() -> Encoded:
            store = BookStore(self._engine, exchange, symbol)
            walk = await _walk_at(store, at)
            if walk is None:
                await self._known.check(exchange, symbol)
                raise await _not_recorded(store, at)
            verdict = await BookJudge(store).verdict(walk, at)
            data = field(1, walk.encode(depth)) + field(2, verdict.SerializeToString())
            return Encoded(data, whole=True)

        return await self._answers.cached(context, request, compute, may_be_filled=False)

    async def ListOrderBooks(self, request: pb.ListOrderBooksRequest, context: Context) -> bytes:
        """Answer the book at every instant of a grid."""
        depth = _depth(request.depth, 1000) or 20
        grid = self._grid(request, page_size(request.page_size, default=100, most=1000))

        async def point(judge: BookJudge, walk: BookWalk | None, at: int) -> bytes:
            if walk is None:
                verdict, book = await judge.without_book(at), b""
            else:
                verdict, book = await judge.verdict(walk, at), field(2, walk.encode(depth))
            head = books.OrderBookPoint()
            head.time.FromNanoseconds(at)
            return head.SerializeToString() + book + field(3, verdict.SerializeToString())

        return await self._series(request, context, grid, lambda _: _same(point))

    async def ListSpreads(self, request: pb.ListSpreadsRequest, context: Context) -> bytes:
        """Answer the spread at every instant of a grid."""
        grid = self._grid(request, page_size(request.page_size))

        async def point(judge: BookJudge, walk: BookWalk | None, at: int) -> bytes:
            made = spread_point(walk, at)
            made.continuity = await _continuity(judge, walk, at)
            return made.SerializeToString()

        return await self._series(request, context, grid, lambda _: _same(point))

    async def ListDepths(self, request: pb.ListDepthsRequest, context: Context) -> bytes:
        """Answer the depth near the middle at every instant of a grid."""
        distances = _distances(request.distances_bps)
        grid = self._grid(request, page_size(request.page_size))

        async def begin(store: BookStore) -> _Point:
            in_quote = await store.is_counted_in_quote()

            async def point(judge: BookJudge, walk: BookWalk | None, at: int) -> bytes:
                made = depth_point(walk, at, distances, in_quote=in_quote)
                made.continuity = await _continuity(judge, walk, at)
                return made.SerializeToString()

            return point

        return await self._series(request, context, grid, begin)

    # ---- series

    def _grid(self, request: Any, size: int) -> _Grid:
        """Check what every series has, and give the instants of the page."""
        check_instrument(request)
        asked = time_range(request, self._now())
        step = duration_ns(
            request.step, "step", least=NANOS // 100, most=86_400 * NANOS,
            expected="10 ms to 1 day",
        )  # fmt: skip
        place = read_token(request)
        first = asked.start
        if place is not None:
            first = place[0] if len(place) == 1 and isinstance(place[0], int) else -1
            if not asked.start <= first < asked.end or (first - asked.start) % step:
                raise bad_token()
        return _Grid(first, asked.end, step, size)

    async def _series(
        self,
        request: Any,
        context: Context,
        grid: _Grid,
        begin: "Callable[[BookStore], Awaitable[_Point]]",
    ) -> bytes:
        async def compute() -> Encoded:
            await self._known.check(request.exchange, request.symbol)
            store = BookStore(self._engine, request.exchange, request.symbol)
            point = await begin(store)
            judge = BookJudge(store)
            deadline = self._monotonic() + _PAGE_SECONDS
            items = bytearray()
            following = grid.first
            async for at, walk in _walks(store, grid.instants()):
                items += field(1, await point(judge, walk, at))
                following = at + grid.step
                # A page ends early rather than becoming too large or too late.
                if len(items) >= _MOST_BYTES or self._monotonic() >= deadline:
                    break
            if following < grid.end:
                items += field(2, write_token(request, [following]).encode())
            return Encoded(bytes(items), whole=True)

        return await self._answers.cached(context, request, compute, may_be_filled=False)


_Point = Callable[[BookJudge, BookWalk | None, int], Awaitable[bytes]]


async def _same(point: _Point) -> _Point:
    return point


async def _walk_at(store: BookStore, at: int) -> BookWalk | None:
    base = await store.base(at)
    if base is None:
        return None
    walk = BookWalk(store, base, at)
    await walk.begin()
    await walk.move_to(at)
    return walk


async def _walks(store: BookStore, instants: range) -> AsyncIterator[tuple[int, BookWalk | None]]:
    """Give the book of every instant: instants of one base are one walk.

    What is read at a time is bounded: the updates of one piece, and the places of the snapshots of
    some minutes.
    """
    index = 0
    while index < len(instants):
        first = instants[index]
        count = min(len(instants) - index, max(1, _CHUNK // instants.step))
        chunk = instants[index : index + count]
        index += count
        places = await store.bases(max(0, first - BASE_WINDOW), chunk[-1])
        bases = [base_among(places, at) or await store.base(at) for at in chunk]
        walk: BookWalk | None = None
        for number, (at, base) in enumerate(zip(chunk, bases, strict=True)):
            if base is None:
                walk = None
            elif walk is None or walk.base != base:
                same = number
                while same + 1 < len(bases) and bases[same + 1] == base:
                    same += 1
                walk = BookWalk(store, base, chunk[same])
                await walk.begin()
            if walk is not None:
                await walk.move_to(at)
            yield at, walk


async def _continuity(
    judge: BookJudge, walk: BookWalk | None, at: int
) -> "books.OrderBookContinuity.ValueType":
    if walk is None:
        return (await judge.without_book(at)).continuity
    return await judge.continuity(walk, at)


async def _not_recorded(store: BookStore, at: int) -> NotFound:
    following = await store.next_snapshot(at, 0, 0)
    when = "none is held at all"
    metadata = {"exchange": store.exchange, "symbol": store.symbol}
    if following is not None:
        stamp = books.OrderBookPoint()
        stamp.time.FromNanoseconds(following.time)
        when = f"the first is of {stamp.time.ToJsonString()}"
        metadata["first_time"] = stamp.time.ToJsonString()
    return NotFound(
        f"no book of {store.exchange}/{store.symbol} was recorded until this instant; {when}",
        reason="ORDER_BOOK_NOT_RECORDED",
        metadata=metadata,
    )


def _depth(depth: int, most: int) -> int:
    if not 0 <= depth <= most:
        raise invalid("depth", f"expected 1 to {most} levels a side, or 0", depth)
    return depth


def _distances(asked: Sequence[int]) -> tuple[int, ...]:
    if len(asked) > _MOST_DISTANCES:
        raise invalid("distances_bps", f"expected at most {_MOST_DISTANCES} of them", len(asked))
    for index, distance in enumerate(asked):
        if not 1 <= distance <= 5000:
            raise invalid(f"distances_bps[{index}]", "expected 1 to 5000 basis points", distance)
    return tuple(asked) or _DEFAULT_DISTANCES
