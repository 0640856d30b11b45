"""One client's WebSocket connection as the venue sees it: ready-made frames straight to the socket.

aiohttp does the handshake, reads, and answers control frames; data frames are built once for all
connections and written to the transport in batches, which is what carries thousands a second.
"""

import asyncio
import struct
import time
from collections.abc import Hashable
from typing import Any, NamedTuple

__all__ = ["Closing", "Connection", "Variant", "websocket_frame"]

_TEXT = 0x1


def websocket_frame(payload: bytes, opcode: int = _TEXT) -> bytes:
    """Return a whole unmasked WebSocket frame (RFC 6455, section 5.2)."""
    length = len(payload)
    if length < 126:
        return bytes((0x80 | opcode, length)) + payload
    if length < 65536:
        return struct.pack(">BBH", 0x80 | opcode, 126, length) + payload
    return struct.pack(">BBQ", 0x80 | opcode, 127, length) + payload


class Variant(NamedTuple):
    """How a connection of Binance wants its frames."""

    combined: bool
    """Wrapped with the stream's name."""
    microseconds: bool
    """Times in microseconds instead of milliseconds."""


class Closing(NamedTuple):
    """How a connection is to end."""

    code: int
    reason: str


class Connection:
    """What is kept of one connection; all sending goes through `queue` and `flush`."""

    def __init__(
        self,
        name: str,
        peer: str,
        variant: Hashable,
        transport: asyncio.Transport,
        max_send_buffer: int,
    ) -> None:
        self.name = name
        self.peer = peer
        self.variant = variant
        self.opened_at = time.time()
        self.streams: dict[str, bool] = {}
        """Subscribed streams in order; False where nothing is sent though it was acknowledged."""
        self.first_ids: dict[str, int] = {}
        """By symbol: the first update id that its diff stream told, or will tell, this client."""
        self.frames = 0
        self.bytes = 0
        self.ponged_at = 0.0
        """Monotonic time of the last pong."""
        self.heard_at = time.monotonic()
        """Monotonic time of the last message, ping or pong from the client."""
        self.state: Any = None
        """Whatever the venue's protocol keeps of a connection."""
        self.due = asyncio.Event()
        """Set when the protocol has something new to keep to; see `wake`."""
        self.closing: asyncio.Future[Closing] = asyncio.get_running_loop().create_future()
        self.end_reason: str | None = None
        self._transport = transport
        self._max_send_buffer = max_send_buffer
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._held = False
        self._release_at = 0.0
        self._release: asyncio.TimerHandle | None = None

    def queue(self, frame: bytes) -> bool:
        """Add a whole WebSocket frame to what the next `flush` writes; False once it is ending."""
        if self.closing.done() or self.ended:
            return False
        self._pending.append(frame)
        self._pending_bytes += len(frame)
        self.frames += 1
        self.bytes += len(frame)
        return True

    def flush(self) -> bool:
        """Write what is queued; False when the client is so slow that it was disconnected."""
        if not self._pending:
            return True
        if self.ended:
            self._drop_pending()
            return True
        if self.unsent > self._max_send_buffer:
            self._drop_pending()
            self.abort("slow client: send buffer full")
            return False
        if not self._held:
            data = self._pending[0] if len(self._pending) == 1 else b"".join(self._pending)
            self._drop_pending()
            self._transport.write(data)
        return True

    def hold(self, seconds: float) -> None:
        """Write nothing for `seconds`; what is queued meanwhile keeps its order."""
        loop = asyncio.get_running_loop()
        self._held = True
        self._release_at = max(self._release_at, loop.time() + seconds)
        if self._release is not None:
            self._release.cancel()
        self._release = loop.call_at(self._release_at, self._let_go)

    def _let_go(self) -> None:
        self._held = False
        self._release = None
        self.flush()

    @property
    def unsent(self) -> int:
        """Bytes which the client's side has not taken yet."""
        return self._pending_bytes + self._transport.get_write_buffer_size()

    @property
    def ended(self) -> bool:
        """Whether the socket is closed or closing."""
        return self._transport.is_closing()

    def close(self, code: int, reason: str) -> None:
        """Ask for a WebSocket close; the connection's own task performs it."""
        if not self.closing.done():
            self._held = False
            self.flush()
            self.end_reason = self.end_reason or reason
            self.closing.set_result(Closing(code, reason))

    def wake(self) -> None:
        """Let the protocol's `keep` be called soon, because what it waits for has changed."""
        self.due.set()

    def abort(self, reason: str) -> None:
        """Break the TCP connection at once, without a close frame."""
        self.end_reason = self.end_reason or reason
        self._transport.abort()

    def forget(self) -> None:
        """Let go of timers once the connection is over."""
        if self._release is not None:
            self._release.cancel()
            self._release = None
        if not self.closing.done():
            self.closing.cancel()

    def _drop_pending(self) -> None:
        self._pending = []
        self._pending_bytes = 0

    def describe(self) -> dict[str, object]:
        """JSON-ready state, for people and tests."""
        variant = self.variant
        return {
            "connection": self.name,
            "peer": self.peer,
            **(variant._asdict() if isinstance(variant, Variant) else {"variant": str(variant)}),
            "streams": list(self.streams),
            "silenced": [stream for stream, live in self.streams.items() if not live],
            "frames": self.frames,
            "bytes": self.bytes,
            "unsent_bytes": self.unsent,
            "age_seconds": round(time.time() - self.opened_at, 3),
        }
