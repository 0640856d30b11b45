"""Read-only SQL for administrators, with limits that the database enforces.

A statement gets a client of its own that is thrown away: readonly cannot be taken back from one,
and an answer that failed half way would stand before the next.
"""
# ruff: noqa: N802 - methods are named as in the contract

import asyncio
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from google.protobuf.struct_pb2 import ListValue, Value
from marketprism.history.v1 import history_service_pb2 as pb
from marketprism.history.v1 import query_pb2

from services.shared.errors import (
    DeadlineExceeded,
    FieldViolation,
    InvalidArgument,
    MarketPrismError,
    PermissionDenied,
    ResourceExhausted,
)
from services.shared.log import get_logger
from services.shared.masking import mask_text
from services.shared.parts import Context
from services.storage.engine import Engine
from services.storage.errors import StoreUnavailable, classify
from services.storage.sql_guard import guarded
from services.storage.sql_settings import SqlSettings
from services.storage.validators import NANOS, duration_ns, invalid

__all__ = ["SqlCalls"]

_FORMAT: Final = "JSONCompactStrings"
# How that format writes NULL; a text that says the same cannot be told from it.
_NULL: Final = "ᴺᵁᴸᴸ"
_DEFAULT_ROWS, _MOST_ROWS = 1000, 100_000
_DEFAULT_SECONDS, _MOST_SECONDS = 10, 60
_MOST_PARAMETERS: Final = 100
_MOST_PARAMETER_BYTES: Final = 64 * 1024
# A statement that does not look at the clock is given up after this long.
_OVERDUE_SECONDS: Final = 2.0
_MOST_LOGGED: Final = 2000

_TIMEOUT: Final = 159
_NOT_ALLOWED: Final = {164: "READONLY", 497: "ACCESS_DENIED", 392: "QUERY_IS_PROHIBITED"}
_LIMITS: Final = {
    158: "TOO_MANY_ROWS",
    160: "TOO_SLOW",
    161: "TOO_MANY_COLUMNS",
    162: "TOO_DEEP_SUBQUERIES",
    167: "TOO_DEEP_AST",
    168: "TOO_BIG_AST",
    191: "SET_SIZE_LIMIT_EXCEEDED",
    241: "MEMORY_LIMIT_EXCEEDED",
    306: "TOO_DEEP_RECURSION",
    307: "TOO_MANY_BYTES",
    396: "TOO_MANY_ROWS_OR_BYTES",
}


class SqlCalls:
    """Answers RunQuery."""

    def __init__(self, engine: Engine, settings: SqlSettings) -> None:
        self._engine = engine
        self._settings = settings
        self._log = get_logger()
        self._at_work = 0
        self._table_functions: frozenset[str] = frozenset()
        self._threads = ThreadPoolExecutor(settings.max_concurrent, thread_name_prefix="sql")

    async def RunQuery(self, request: pb.RunQueryRequest, context: Context) -> pb.RunQueryResponse:
        """Run one statement, and write to the audit log who asked what, and what came of it."""
        peer = context.peer()
        audit = self._log.bind(audit="sql", peer=peer, sql=mask_text(request.sql[:_MOST_LOGGED]))
        try:
            response = await self._run(request)
        except MarketPrismError as error:
            audit.warning("sql refused", reason=error.reason, error=error.message[:_MOST_LOGGED])
            raise
        audit.info(
            "sql answered",
            rows=len(response.rows),
            rows_read=response.rows_read,
            seconds=response.elapsed.ToNanoseconds() / NANOS,
        )
        return response

    async def _run(self, request: pb.RunQueryRequest) -> pb.RunQueryResponse:
        if not self._settings.enabled:
            raise PermissionDenied(
                "SQL is switched off here; whoever runs the mesh can set sql.enabled: true in "
                "config/storage.yaml (MARKETPRISM__STORAGE__SQL__ENABLED=true)",
                reason="SQL_DISABLED",
            )
        rows, seconds = _bounds(request)
        parameters = _parameters(request)
        if not self._table_functions:
            names = await self._engine.query("SELECT lower(name) FROM system.table_functions")
            self._table_functions = frozenset(str(name) for (name,) in names)
        sql = guarded(request.sql, self._table_functions)
        if self._at_work >= self._settings.max_concurrent:
            raise ResourceExhausted(
                f"{self._at_work} statements are at work, which is the limit; try again later",
                reason="QUERY_LIMIT_REACHED",
                retry_after=1.0,
            )
        self._at_work += 1
        loop = asyncio.get_running_loop()
        # Given back when the thread is done, and not when the caller has gone.
        work = loop.run_in_executor(
            self._threads, self._execute, sql, parameters, self._limits(rows, seconds)
        )
        work.add_done_callback(self._done)
        try:
            answer = await asyncio.wait_for(asyncio.shield(work), seconds + _OVERDUE_SECONDS)
        except TimeoutError:
            raise _too_long(seconds) from None
        except MarketPrismError:
            raise
        except Exception as error:
            raise _explained(error, seconds) from error
        if len(answer) > self._settings.max_result_bytes:
            # The database counts a value that is the same in every row once.
            raise ResourceExhausted(
                f"sql: the result has {len(answer)} bytes and may have "
                f"{self._settings.max_result_bytes}; ask for fewer rows or columns",
                reason="QUERY_LIMIT_REACHED",
                metadata={"field": "sql", "limit": "TOO_MANY_BYTES"},
            )
        return await asyncio.to_thread(_response, answer, rows)

    def _done(self, work: "asyncio.Future[bytes]") -> None:
        self._at_work -= 1
        if not work.cancelled():
            work.exception()  # told to the caller, if that is still there

    def _limits(self, rows: int, seconds: float) -> dict[str, Any]:
        settings = self._settings
        return {
            "max_execution_time": seconds,
            "timeout_overflow_mode": "throw",
            "max_memory_usage": settings.max_memory_bytes,
            "max_rows_to_read": settings.max_rows_read,
            "read_overflow_mode": "throw",
            # One more than is given tells whether there were more.
            "limit": rows + 1,
            "max_result_rows": rows + 1,
            "max_result_bytes": settings.max_result_bytes,
            "result_overflow_mode": "throw",
            "max_threads": settings.max_threads,
            "max_temporary_data_on_disk_size_for_query": 1,
            "readonly": 1,
        }

    def _execute(self, sql: str, parameters: Mapping[str, str], limits: Mapping[str, Any]) -> bytes:
        client = self._engine.connect()
        try:
            given: dict[str, Any] = dict(limits)
            if self._engine.is_embedded:
                pairs = ", ".join(
                    f"{name} = '{value}'" if isinstance(value, str) else f"{name} = {value}"
                    for name, value in limits.items()
                )
                client.command(f"SET {pairs}")
                given = {}
            return bytes(
                client.raw_query(sql, parameters=dict(parameters), settings=given, fmt=_FORMAT)
            )
        finally:
            client.close()


def _bounds(request: pb.RunQueryRequest) -> tuple[int, float]:
    if not 0 <= request.max_rows <= _MOST_ROWS:
        raise invalid(
            "max_rows", f"expected 1 to {_MOST_ROWS}, or 0 for {_DEFAULT_ROWS}", request.max_rows
        )
    seconds = float(_DEFAULT_SECONDS)
    if request.HasField("timeout"):
        longest = _MOST_SECONDS * NANOS
        seconds = duration_ns(
            request.timeout, "timeout", least=NANOS // 100, most=longest,
            expected=f"10 ms to {_MOST_SECONDS} s",
        ) / NANOS  # fmt: skip
    return request.max_rows or _DEFAULT_ROWS, seconds


def _parameters(request: pb.RunQueryRequest) -> dict[str, str]:
    found = dict(request.parameters)
    if len(found) > _MOST_PARAMETERS:
        raise invalid("parameters", f"expected at most {_MOST_PARAMETERS}", len(found))
    for name, value in found.items():
        if not name.isidentifier() or not name.isascii():
            raise invalid("parameters", "expected names of letters, digits and _", repr(name[:64]))
        if len(value.encode(errors="replace")) > _MOST_PARAMETER_BYTES:
            raise invalid(
                f"parameters.{name}", f"expected at most {_MOST_PARAMETER_BYTES} bytes", len(value)
            )
    return found


def _response(answer: bytes, most: int) -> pb.RunQueryResponse:
    document = json.loads(answer)
    columns = [
        query_pb2.QueryColumn(name=each["name"], type=each["type"]) for each in document["meta"]
    ]
    rows = document["data"]
    statistics = document.get("statistics", {})
    response = pb.RunQueryResponse(
        columns=columns,
        rows=[ListValue(values=[_value(text) for text in row]) for row in rows[:most]],
        truncated=len(rows) > most,
        rows_read=int(statistics.get("rows_read", 0)),
        bytes_read=int(statistics.get("bytes_read", 0)),
    )
    response.elapsed.FromNanoseconds(round(float(statistics.get("elapsed", 0)) * NANOS))
    return response


def _value(text: str) -> Value:
    return Value(null_value=0) if text == _NULL else Value(string_value=text)  # type: ignore[arg-type]


def _explained(error: Exception, seconds: float) -> MarketPrismError:
    wrong = classify(error, "sql")
    if isinstance(wrong, StoreUnavailable):
        return wrong
    text = " ".join(str(error).split())[:500]
    if wrong.code == _TIMEOUT:
        return _too_long(seconds)
    facts = {"code": wrong.code, "field": "sql"}
    if wrong.code in _NOT_ALLOWED:
        return PermissionDenied(
            f"sql: only reading is allowed here, without settings: {text}",
            reason="SQL_NOT_ALLOWED",
            metadata=facts,
        )
    if wrong.code in _LIMITS:
        return ResourceExhausted(
            f"sql: the statement takes more than it may: {text}; ask for less at a time",
            reason="QUERY_LIMIT_REACHED",
            metadata={**facts, "limit": _LIMITS[wrong.code]},
        )
    return InvalidArgument(
        f"sql: the database does not take it: {text}",
        metadata=facts,
        violations=[FieldViolation("sql", text, "SQL_INVALID")],
    )


def _too_long(seconds: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"the statement did not finish within {seconds:g} s; ask for less, or set timeout, up to "
        f"{_MOST_SECONDS} s",
        reason="QUERY_TIMEOUT",
        metadata={"seconds": seconds},
    )
