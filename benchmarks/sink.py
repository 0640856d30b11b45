"""A gRPC client that costs almost nothing: opens streams with endless windows, and counts.

A client in Python costs as much a message as the server that is measured. This one speaks the few
HTTP/2 frames (RFC 9113) that a server needs to see, and looks at nothing but frame heads.
"""

import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable

__all__ = ["Sink", "read_all"]

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_MOST = 2**31 - 1
_HEAD = struct.Struct(">I")


class Sink:
    """One connection with many server streams of one method.

    `bytes` counts the payload of gRPC messages and their 5-byte prefixes, `frames` the DATA frames.
    `window` is what each stream may send before `allow` lets it send more. Of one in `every` DATA
    frames that hold whole messages, `sample` gets the messages and the time, nanoseconds.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        window: int = _MOST,
        every: int = 0,
        sample: Callable[[bytes, int], None] = lambda _message, _now: None,
    ) -> None:
        self._every = every
        self._sample = sample
        self._socket = socket.create_connection((host, port))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * 1024 * 1024)
        self._buffer = b""
        self._next_stream = 1
        self.bytes = 0
        self.frames = 0
        self.ended = 0
        settings = struct.pack(">HIHI", 4, window, 3, 0)
        self._socket.sendall(
            _PREFACE
            + _frame(_SETTINGS, 0, 0, settings)
            + _frame(_WINDOW, 0, 0, struct.pack(">I", _MOST - 65535))
        )

    def open(self, count: int, path: str, request: bytes, authority: str) -> None:
        """Open `count` streams of one method with one request."""
        head = b"".join(
            _literal(name, value)
            for name, value in (
                (":method", "POST"),
                (":scheme", "http"),
                (":path", path),
                (":authority", authority),
                ("content-type", "application/grpc"),
                ("te", "trailers"),
            )
        )
        body = b"\x00" + struct.pack(">I", len(request)) + request
        for _ in range(count):
            stream, self._next_stream = self._next_stream, self._next_stream + 2
            self._socket.sendall(_frame(_HEADERS, 4, stream, head) + _frame(_DATA, 1, stream, body))

    def read(self, seconds: float) -> float:
        """Read for so long; gives the seconds it took."""
        began = time.monotonic()
        end = began + seconds
        self._socket.settimeout(0.2)
        while (now := time.monotonic()) < end:
            try:
                data = self._socket.recv(1 << 20)
            except TimeoutError:
                continue
            if not data:
                raise SystemExit("the server closed the connection")
            self._parse(data, time.time_ns())
        return now - began

    def read_once(self) -> None:
        """Read what is there."""
        data = self._socket.recv(1 << 20)
        if not data:
            raise SystemExit("the server closed the connection")
        self._parse(data, time.time_ns())

    def fileno(self) -> int:
        """Give the socket's number, for a selector."""
        return self._socket.fileno()

    def allow(self, size: int) -> None:
        """Let every stream send so many bytes more."""
        more = struct.pack(">I", size)
        for stream in range(1, self._next_stream, 2):
            self._socket.sendall(_frame(_WINDOW, 0, stream, more))

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _parse(self, data: bytes, now: int) -> None:
        data = self._buffer + data if self._buffer else data
        position = 0
        size = len(data)
        unpack = _HEAD.unpack_from
        while position + 9 <= size:
            # The length has 24 bits: what is read with it is the type, and goes.
            length = unpack(data, position)[0] >> 8
            end = position + 9 + length
            if end > size:
                break
            kind = data[position + 3]
            if kind == _DATA:
                self.bytes += length
                self.frames += 1
                if self._every and not self.frames % self._every:
                    self._take_sample(data, position + 9, end, now)
            elif kind != _HEADERS:
                self._control(kind, data[position:end])
            position = end
        self._buffer = data[position:]

    def _take_sample(self, data: bytes, position: int, end: int, now: int) -> None:
        # A frame in the middle of a message that was cut looks like anything.
        while position + 5 <= end and not data[position]:
            behind = position + 5 + int(_HEAD.unpack_from(data, position + 1)[0])
            if behind > end:
                return
            self._sample(data[position + 5 : behind], now)
            position = behind

    def _control(self, kind: int, frame: bytes) -> None:
        acknowledged = frame[4] & 1
        if kind == _SETTINGS and not acknowledged:
            self._socket.sendall(_frame(_SETTINGS, 1, 0, b""))
        elif kind == _PING and not acknowledged:
            self._socket.sendall(_frame(_PING, 1, 0, frame[9:]))
        elif kind in (_RESET, _GOAWAY):
            print(f"the server ended a stream: {frame[9:]!r}", file=sys.stderr)
            self.ended += 1


def read_all(sinks: Iterable[Sink], seconds: float) -> float:
    """Read several connections for so long; gives the seconds it took."""
    began = time.monotonic()
    end = began + seconds
    with selectors.DefaultSelector() as selector:
        for sink in sinks:
            selector.register(sink, selectors.EVENT_READ)
        while (now := time.monotonic()) < end:
            for key, _ in selector.select(min(0.05, end - now)):
                assert isinstance(key.fileobj, Sink)
                key.fileobj.read_once()
    return now - began


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return (
        struct.pack(">I", len(payload))[1:]
        + bytes((kind, flags))
        + struct.pack(">I", stream)
        + payload
    )


def _literal(name: str, value: str) -> bytes:
    """Encode a header without indexing and without Huffman (RFC 7541, 6.2.2)."""
    return bytes((0, len(name))) + name.encode() + bytes((len(value),)) + value.encode()
