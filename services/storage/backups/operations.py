"""What takes a while: one operation at a time, which goes on when its caller leaves.

Operations are kept in memory: after a restart of the service nothing is known of them. A backup
that was cut short has no manifest then, and a restore goes on when it is asked for again.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from typing import Any, Final

from google.protobuf.timestamp_pb2 import Timestamp
from marketprism.archive.v1 import archive_pb2 as pb

from services.shared.errors import FailedPrecondition, MarketPrismError, NotFound
from services.shared.log import get_logger
from services.shared.masking import mask_text
from services.storage.backups.errors import OperationConflict
from services.storage.backups.progress import Progress, Report

__all__ = ["ENDED", "Operations", "Spawn", "Work"]

Work = Callable[[Report], Awaitable[str]]
"""Does it, and gives in a sentence what was done."""

Spawn = Callable[[Coroutine[Any, Any, Any], str], "asyncio.Task[Any]"]
"""Runs a task that the service owns."""

ENDED: Final = frozenset(
    {
        pb.OPERATION_STATE_SUCCEEDED,
        pb.OPERATION_STATE_FAILED,
        pb.OPERATION_STATE_CANCELLED,
    }
)
"""States that an operation does not leave."""

_MOST_KEPT = 1000
_NEWS_SECONDS = 0.1


class _Entry:
    """One operation, and who waits for its next change."""

    def __init__(self, operation: pb.Operation) -> None:
        self.operation = operation
        self.task: asyncio.Task[Any] | None = None
        self.changed = asyncio.Event()

    def tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    @property
    def has_ended(self) -> bool:
        return self.operation.state in ENDED


class Operations:
    """The operations of one service."""

    def __init__(self, spawn: Spawn, stopping: asyncio.Event) -> None:
        self._spawn = spawn
        self._stopping = stopping
        self._entries: dict[str, _Entry] = {}
        self._log = get_logger()

    @property
    def running(self) -> pb.Operation | None:
        """The operation that is being done, None when there is none."""
        for entry in reversed(self._entries.values()):
            if not entry.has_ended:
                return _copy(entry.operation)
        return None

    def begin(self, kind: int, target: str, work: Work) -> pb.Operation:
        """Begin an operation; raises `OperationConflict` while another one is being done."""
        running = self.running
        if running is not None:
            name = pb.OperationKind.Name(running.kind).removeprefix("OPERATION_KIND_").lower()
            raise OperationConflict(
                f"operation {running.operation_id} ({name} of {running.target}) is being done: "
                "wait for its end, or cancel it",
                metadata={"operation_id": running.operation_id},
                retry_after=10.0,
            )
        now = datetime.now(UTC)
        operation = pb.Operation(
            operation_id=f"{now:%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(3)}",
            kind=kind,  # type: ignore[arg-type]  # a number of the enum
            state=pb.OPERATION_STATE_RUNNING,
            target=target,
            create_time=_stamp(now),
            start_time=_stamp(now),
        )
        entry = _Entry(operation)
        self._entries[operation.operation_id] = entry
        while len(self._entries) > _MOST_KEPT:
            del self._entries[next(iter(self._entries))]
        entry.task = self._spawn(self._run(entry, work), f"operation {operation.operation_id}")
        # A task that is cancelled before its first step never gets to say so itself.
        entry.task.add_done_callback(lambda _: self._stopped(entry))
        return _copy(operation)

    def get(self, operation_id: str) -> pb.Operation:
        """Give an operation; raises `NotFound`."""
        return _copy(self._entry(operation_id).operation)

    def all(self) -> list[pb.Operation]:
        """Give all, newest first."""
        return [_copy(entry.operation) for entry in reversed(self._entries.values())]

    def cancel(self, operation_id: str) -> pb.Operation:
        """End one; raises `NotFound`, and FAILED_PRECONDITION for one that has ended."""
        entry = self._entry(operation_id)
        if entry.has_ended or entry.task is None:
            state = pb.OperationState.Name(entry.operation.state)
            raise FailedPrecondition(
                f"operation {operation_id} has ended ({state.removeprefix('OPERATION_STATE_')})",
                reason="OPERATION_ENDED",
                metadata={"operation_id": operation_id},
            )
        entry.task.cancel()
        return _copy(entry.operation)

    async def watch(
        self, operation_id: str, heartbeat: float
    ) -> AsyncIterator[pb.Operation | None]:
        """Give an operation now and after changes, at most ten times a second, until it has ended.

        It ends before that when the service stops. None stands for a heartbeat: nothing has changed
        for so many seconds. Raises `NotFound`.
        """
        entry = self._entry(operation_id)
        while True:
            changed = entry.changed
            told = _copy(entry.operation)
            yield told
            # It may have ended while this was on its way: the end is told too.
            if told.state in ENDED or self._stopping.is_set():
                return
            while not await _first_of(heartbeat, changed, self._stopping):
                yield None
            if not entry.has_ended:
                await _first_of(_NEWS_SECONDS, self._stopping)

    def _entry(self, operation_id: str) -> _Entry:
        entry = self._entries.get(operation_id)
        if entry is None:
            raise NotFound(
                f"there is no operation {operation_id!r}: expected the id of one begun since the "
                "service was started",
                reason="OPERATION_NOT_FOUND",
                metadata={"operation_id": operation_id},
            )
        return entry

    async def _run(self, entry: _Entry, work: Work) -> None:
        operation = entry.operation

        def report(progress: Progress) -> None:
            operation.items_total = progress.items_total
            operation.items_done = progress.items_done
            operation.rows_done = progress.rows_done
            operation.bytes_done = progress.bytes_done
            operation.message = f"{progress.phase} {progress.detail}".strip()
            entry.tell()

        try:
            message = await work(report)
        except MarketPrismError as error:
            self._end(entry, pb.OPERATION_STATE_FAILED, error.reason, error.message)
        except Exception as error:
            # The service lives on: the operation alone has failed.
            self._log.error("operation failed", operation=operation.operation_id, exc_info=True)
            told = f"a fault in MarketPrism: {type(error).__name__}; the log of storage has more"
            self._end(entry, pb.OPERATION_STATE_FAILED, "INTERNAL", told)
        else:
            self._end(entry, pb.OPERATION_STATE_SUCCEEDED, "", message)

    def _stopped(self, entry: _Entry) -> None:
        if not entry.has_ended:
            self._end(entry, pb.OPERATION_STATE_CANCELLED, "CANCELLED", "ended by somebody")

    def _end(self, entry: _Entry, state: int, reason: str, message: str) -> None:
        operation = entry.operation
        operation.state = state  # type: ignore[assignment]  # a number of the enum
        operation.reason = reason
        operation.message = mask_text(message)
        operation.end_time.CopyFrom(_stamp(datetime.now(UTC)))
        entry.tell()
        log = self._log.warning if reason else self._log.info
        log(
            "operation ended",
            operation=operation.operation_id,
            kind=pb.OperationKind.Name(operation.kind),
            target=operation.target,
            reason=reason,
            message=operation.message,
        )


async def _first_of(seconds: float, *events: asyncio.Event) -> bool:
    """Wait until one of the events is set; tells whether that was in time."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        done, _ = await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)
    finally:
        for wait in waits:
            wait.cancel()


def _copy(operation: pb.Operation) -> pb.Operation:
    copy = pb.Operation()
    copy.CopyFrom(operation)
    return copy


def _stamp(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp
