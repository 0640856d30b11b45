"""The capture format: every raw frame and REST answer of a venue, one JSON object a line.

Keys of a line: `ts` (receive time, Unix seconds, or null), `ts_ns` (the same in nanoseconds, where
known), `kind` (`ws`, `ws_send`, `ws_open`, `http`, `config`), `url`, `conn` (connection id within
the capture), `data` (the raw payload as text; `"enc": "b64"` marks base64 of raw deflate). Files
may be gzip-compressed. The recorder writes it, `verify`, replay and the simulated venue read it.
"""

import base64
import binascii
import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from services.shared.errors import InvalidArgument

__all__ = ["CaptureRecord", "read_capture", "read_numbered"]


class CaptureRecord(msgspec.Struct, gc=False, frozen=True, omit_defaults=True):
    """One line of a capture."""

    kind: str
    """`ws` a frame received, `ws_send` a frame sent, `ws_open`, `http` a REST answer, `config`."""
    data: str
    """The raw payload."""
    url: str | None = None
    """WebSocket or REST URL, as called."""
    conn: str | None = None
    """Connection id within the capture."""
    ts: float | None = None
    """Receive time, Unix seconds."""
    ts_ns: int | None = None
    """Receive time, Unix nanoseconds."""
    enc: str | None = None
    """`b64` when `data` is base64 of raw deflate."""

    @property
    def receive_time(self) -> int:
        """Receive time in nanoseconds since 1970; 0 when unknown."""
        if self.ts_ns is not None:
            return self.ts_ns
        return 0 if self.ts is None else round(self.ts * 1e6) * 1000

    def payload(self) -> bytes:
        """Return the raw payload. Raises ValueError when its encoding is broken."""
        if self.enc is None:
            return self.data.encode()
        if self.enc != "b64":
            raise ValueError(f"unknown encoding {self.enc!r}; expected 'b64'")
        try:
            return zlib.decompress(base64.b64decode(self.data, validate=True), -zlib.MAX_WBITS)
        except (binascii.Error, zlib.error) as error:
            raise ValueError(f"broken base64 or deflate: {error}") from error


_decode = msgspec.json.Decoder(CaptureRecord).decode


def read_capture(
    path: Path, on_malformed: Callable[[int, str], None] | None = None
) -> Iterator[CaptureRecord]:
    """Read a capture's records; see `read_numbered`."""
    for _, record in read_numbered(path, on_malformed):
        yield record


def read_numbered(
    path: Path, on_malformed: Callable[[int, str], None] | None = None
) -> Iterator[tuple[int, CaptureRecord]]:
    """Read a capture line by line, compressed or not; gives line numbers and records.

    A malformed line is told to `on_malformed(line number, what)` and skipped; so is a file that
    ends in the middle of its compressed data, after everything that could be read. Raises
    InvalidArgument when there is no such file or nothing of it can be read.
    """

    def complain(number: int, what: str) -> None:
        if on_malformed is not None:
            on_malformed(number, what)

    try:
        with path.open("rb") as head:
            compressed = head.read(2) == b"\x1f\x8b"
    except OSError as error:
        raise InvalidArgument(
            f"capture {path}: {error.strerror or error}; expected a .jsonl or .jsonl.gz file"
        ) from error
    number = 0
    with gzip.open(path, "rb") if compressed else path.open("rb") as lines:
        while True:
            try:
                line = lines.readline()
            except (EOFError, OSError, zlib.error) as error:
                complain(number + 1, f"the compressed data is broken or cut short: {error}")
                return
            if not line:
                return
            number += 1
            if not line.strip():
                continue
            try:
                record = _decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                complain(number, f"expected a capture record, got {line[:80]!r}: {error}")
                continue
            yield number, record
