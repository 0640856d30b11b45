"""A gRPC client that costs almost nothing: opens streams with endless windows, and counts.

A client in Python costs as much a message as the server that is measured. This one speaks the few
HTTP/2 frames (RFC 9113) that a server needs to see, and looks at nothing but frame heads.
"""

import socket
import struct
import sys
import time

__all__ = ["Sink"]

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_MOST = 2**31 - 1
_HEAD = struct.Struct(">I")


class Sink:
    """One connection with many server streams of one method.

    `bytes` counts the payload of gRPC messages and their 5-byte prefixes, `frames` the DATA frames.
    """

    def __init__(self, host: str, port: int) -> None:
        self._socket = socket.create_connection((host, port))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * 1024 * 1024)
        self._buffer = b""
        self._next_stream = 1
        self.bytes = 0
        self.frames = 0
        self.ended = 0
        settings = struct.pack(">HIHI", 4, _MOST, 3, 0)
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
            self._parse(data)
        return now - began

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _parse(self, data: bytes) -> None:
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
            elif kind != _HEADERS:
                self._control(kind, data[position:end])
            position = end
        self._buffer = data[position:]

    def _control(self, kind: int, frame: bytes) -> None:
        acknowledged = frame[4] & 1
        if kind == _SETTINGS and not acknowledged:
            self._socket.sendall(_frame(_SETTINGS, 1, 0, b""))
        elif kind == _PING and not acknowledged:
            self._socket.sendall(_frame(_PING, 1, 0, frame[9:]))
        elif kind in (_RESET, _GOAWAY):
            print(f"the server ended a stream: {frame[9:]!r}", file=sys.stderr)
            self.ended += 1


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
