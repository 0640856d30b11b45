"""Files out of the store, streamed in pieces that fit in memory however long the range is."""
# ruff: noqa: N802 - methods are named as in the contract

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

from google.api import httpbody_pb2  # type: ignore[import-untyped]  # ships no type stubs
from marketprism.history.v1 import history_service_pb2 as pb
from marketprism.history.v1 import query_pb2

from services.shared.parts import Context
from services.storage.engine import Engine
from services.storage.export_files import SUFFIXES, ExportFile, export_file
from services.storage.export_rows import ExportKind, Piece, export_kind
from services.storage.http_cache import is_rest
from services.storage.known import KnownInstruments
from services.storage.validators import (
    NANOS,
    check_enum,
    check_event_kind,
    check_instrument,
    invalid,
    time_range,
)

__all__ = ["Export"]

_CHUNK: Final = 1024 * 1024
_DAY: Final = 86_400 * NANOS
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_.-]+")


class Export:
    """Answers ExportEvents."""

    def __init__(
        self,
        engine: Engine,
        known: KnownInstruments,
        *,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        """Read from `engine`; `now` gives nanoseconds since 1970."""
        self._engine = engine
        self._known = known
        self._now = now

    async def ExportEvents(
        self, request: pb.ExportEventsRequest, context: Context
    ) -> AsyncIterator[pb.ExportEventsResponse]:
        """Give the file in chunks; whatever is wrong with the request is told before the first."""
        exchange, symbol = check_instrument(request)
        check_event_kind(request.kind)
        check_enum(query_pb2.ExportFormat.DESCRIPTOR, request.format, "format", unset="CSV")
        fmt = request.format or query_pb2.EXPORT_FORMAT_CSV
        if request.end_line and fmt != query_pb2.EXPORT_FORMAT_CSV:
            raise invalid("end_line", "expected false, only CSV has lines", "true")
        asked = time_range(request, self._now())
        kind = export_kind(request.kind)
        columns = kind.narrowed(request.columns)
        await self._known.check(exchange, symbol)
        piece = Piece(exchange, symbol, asked.start, asked.end)
        file = export_file(fmt, end_line=request.end_line)
        sql = kind.rows_sql(columns)
        empty = Piece(exchange, symbol, 0, 0)
        schema = await self._engine.raw(sql, file.fmt, empty.parameters, file.settings)
        pending = await asyncio.to_thread(file.begin, schema, [name for name, _ in columns])
        if is_rest(context):
            name = _UNSAFE.sub("_", f"{exchange}_{symbol}_{kind.name}.{SUFFIXES[fmt]}")
            await context.send_initial_metadata(
                (("content-disposition", f'attachment; filename="{name}"'),)
            )
        content_type = file.content_type
        async for data in self._pieces(kind, piece, sql, file):
            pending += data
            while len(pending) > _CHUNK:
                yield _response(pending[:_CHUNK], file, content_type)
                content_type, pending = "", pending[_CHUNK:]
        pending += await asyncio.to_thread(file.end)
        while len(pending) > _CHUNK:
            yield _response(pending[:_CHUNK], file, content_type)
            content_type, pending = "", pending[_CHUNK:]
        yield _response(pending, file, content_type, complete=True)

    async def _pieces(
        self, kind: ExportKind, asked: Piece, sql: str, file: ExportFile
    ) -> AsyncIterator[bytes]:
        first = await self._time(kind.edge_sql(), asked)
        last = await self._time(kind.edge_sql(last=True), asked)
        if first is None or last is None:
            return
        start, end = first, last + 1
        while start < end:
            day = Piece(asked.exchange, asked.symbol, start, min(end, start - start % _DAY + _DAY))
            bound = await self._time(kind.bound_sql(), day)
            piece_end = day.end if bound is None else bound + 1
            piece = Piece(asked.exchange, asked.symbol, start, piece_end)
            data = await self._engine.raw(sql, file.fmt, piece.parameters, file.settings)
            yield await asyncio.to_thread(file.add, data)
            if bound is not None:
                start = piece_end
            else:
                rest = Piece(asked.exchange, asked.symbol, piece_end, end)
                start = await self._time(kind.edge_sql(), rest) or end

    async def _time(self, sql: str, piece: Piece) -> int | None:
        ((count, nanoseconds),) = await self._engine.query(sql, piece.parameters)
        return int(nanoseconds) if count else None


def _response(
    data: bytes, file: ExportFile, content_type: str, *, complete: bool = False
) -> pb.ExportEventsResponse:
    return pb.ExportEventsResponse(
        chunk=httpbody_pb2.HttpBody(content_type=content_type, data=data),
        rows=file.rows,
        complete=complete,
    )
