"""Records every raw frame and REST answer while collecting, in the capture format."""

import asyncio
import base64
import contextlib
import gzip
import time
import zlib
from collections import deque
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import structlog

from services.collector.settings import RecordingSettings
from services.shared.capture import CaptureRecord

__all__ = ["Recorder"]

_FLUSH_SECONDS = 0.5
_OVERHEAD = 200
_FIRST_WAIT = 0.5
_LONGEST_WAIT = 60.0
_encode = msgspec.json.Encoder().encode


class Recorder:
    """Writes capture files `<prefix>-<UTC time>.jsonl.gz` into a directory.

    `record` only appends to a bounded queue; a task hands what has gathered to a thread, which
    compresses and writes. What finds no room, or cannot be written, is dropped and counted.
    Counters: `frames`, `bytes` (raw), `files`, `dropped`.
    """

    def __init__(self, directory: Path, prefix: str, settings: RecordingSettings) -> None:
        self.frames = 0
        self.bytes = 0
        self.files = 0
        self.dropped = 0
        self.last_error = ""
        self.path: Path | None = None
        self._directory = directory
        self._prefix = prefix
        self._rotate = settings.rotate_megabytes * 1024 * 1024
        self._limit = settings.buffer_megabytes * 1024 * 1024
        self._queue: deque[CaptureRecord] = deque()
        self._queued = 0  # bytes in the queue
        self._writing = 0  # bytes on their way to the disk
        self._flushing: asyncio.Task[None] | None = None
        self._file: gzip.GzipFile | None = None
        self._written = 0
        self._failures = 0
        self._again_at = 0.0
        self._log = structlog.get_logger()

    def record(self, kind: str, url: str, connection: str, data: bytes | str, now: int) -> None:
        """Queue one record. `now` is nanoseconds since 1970; bytes that are not text are marked."""
        size = len(data) + _OVERHEAD
        if self._queued + self._writing + size > self._limit:
            self.dropped += 1
            return
        encoding = None
        if isinstance(data, bytes):
            try:
                text = data.decode()
            except UnicodeDecodeError:
                text, encoding = _deflate(data), "b64"
        else:
            text = data
        self._queued += size
        self._queue.append(
            CaptureRecord(
                kind=kind,
                data=text,
                url=url,
                conn=connection,
                ts=now / 1e9,
                ts_ns=now,
                enc=encoding,
            )
        )

    async def run(self) -> None:
        """Write until cancelled; then write what is left and close the file."""
        try:
            while True:
                await asyncio.sleep(_FLUSH_SECONDS)
                # Shielded, because a thread cannot be cancelled: the end waits for it.
                self._flushing = asyncio.ensure_future(self._flush())
                await asyncio.shield(self._flushing)
        finally:
            await asyncio.shield(self._close())

    async def _flush(self) -> None:
        if time.monotonic() < self._again_at:
            # The disk was full, or gone, a moment ago: a new file each time helps nobody.
            return
        records = list(self._queue)
        self._queue.clear()
        if not records:
            return
        self._writing, self._queued = self._queued, 0
        try:
            size = await asyncio.to_thread(self._write, records)
            self.frames += len(records)
            self.bytes += size
            self.last_error = ""
            self._failures = 0
        except OSError as error:
            if str(error) != self.last_error:
                self._log.error("recording failed", path=str(self.path), error=str(error))
            self.last_error = str(error)
            self.dropped += len(records)
            self._failures += 1
            self._again_at = time.monotonic() + min(
                _FIRST_WAIT * 2.0 ** min(self._failures - 1, 16), _LONGEST_WAIT
            )
            self._abandon()
        finally:
            self._writing = 0

    async def _close(self) -> None:
        if self._flushing is not None:
            await asyncio.wait({self._flushing})
        self._again_at = 0.0
        await self._flush()
        file, self._file = self._file, None
        if file is not None:
            await asyncio.to_thread(file.close)

    def _write(self, records: list[CaptureRecord]) -> int:
        size = 0
        if self._file is None or self._written >= self._rotate:
            self._open()
        assert self._file is not None
        for record in records:
            line = _encode(record)
            self._file.write(line + b"\n")
            size += len(line) + 1
        # A crash then costs what came since, not the file.
        self._file.flush()
        self._written += size
        return size

    def _open(self) -> None:
        if self._file is not None:
            self._file.close()
        self._directory.mkdir(parents=True, exist_ok=True)
        stamp = datetime.fromtimestamp(time.time(), UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        self.path = self._directory / f"{self._prefix}-{stamp}.jsonl.gz"
        self._file = gzip.open(self.path, "xb", compresslevel=5)  # noqa: SIM115 - kept open
        self._written = 0
        self.files += 1
        self._log.info("recording", path=str(self.path))

    def _abandon(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()


def _deflate(data: bytes) -> str:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return base64.b64encode(packer.compress(data) + packer.flush()).decode()
