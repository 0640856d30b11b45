"""One connection to a NATS server: the client protocol, and nothing that survives the connection.

nats-py reconnects behind its caller's back and resends what it had buffered, which reorders and
repeats. Here a lost connection is lost for good: who owns it decides what to do, opens another
and sends again exactly what was not stored. It is also several times cheaper a message, because
frames are written in one piece and parsed in the socket callback.

Protocol: https://docs.nats.io/reference/reference-protocols/nats-protocol
"""

import asyncio
import json
import secrets
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from services.shared.errors import InvalidArgument, Unavailable
from services.shared.log import get_logger

__all__ = ["Connection", "ConnectionLost", "Handler", "NoResponders", "server_urls"]

log = get_logger()

Handler = Callable[[bytes, bytes, bytes, bytes], None]
"""Called with (subject, reply subject, header block, payload) of each message; must not block."""

_CONNECT_TIMEOUT = 3.0
_HANDSHAKE_LIMIT = 64 * 1024
_WRITE_HIGH_WATER = 1024 * 1024


class ConnectionLost(Unavailable):
    """The connection to NATS ended, or could not be made."""

    default_reason = "BROKER_UNAVAILABLE"


class NoResponders(Unavailable):
    """Nobody serves the subject: JetStream is off or still starting, or no stream takes it."""

    default_reason = "BROKER_NO_RESPONDERS"


def server_urls(url: str | Sequence[str]) -> tuple[str, ...]:
    """Split `nats://a:4222,nats://b:4222` (or a list of such) into single addresses.

    Raises `InvalidArgument` for anything but nats:// and tls:// addresses with a host.
    """
    parts = url.split(",") if isinstance(url, str) else [p for u in url for p in u.split(",")]
    urls = tuple(part.strip() for part in parts if part.strip())
    if not urls:
        raise InvalidArgument("expected a NATS address such as nats://127.0.0.1:4222, got none")
    for one in urls:
        _address(one)
    return urls


def _address(url: str) -> tuple[str, int, bool]:
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
    except ValueError:
        raise InvalidArgument(
            "expected a NATS address such as nats://127.0.0.1:4222, got one whose host cannot be "
            "read; an IPv6 address stands in [brackets]"
        ) from None
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in {"nats", "tls"} or not parts.hostname or port == -1:
        shown = parts.hostname or "no host"
        raise InvalidArgument(
            f"expected a NATS address such as nats://127.0.0.1:4222, got scheme {parts.scheme!r}, "
            f"host {shown!r} and an unusable port"
            if port == -1
            else f"expected a NATS address such as nats://127.0.0.1:4222 or tls://host:4222, got "
            f"scheme {parts.scheme!r} and host {shown!r}"
        )
    return parts.hostname, port or 4222, parts.scheme == "tls"


class Connection(asyncio.Protocol):
    """A live connection; made by `await Connection.open(...)`.

    `closed` is a future that ends with the reason when the connection is gone. `max_payload` is
    what the server takes in one message, header included, bytes. `on_readable_end`, when set, is
    called after each chunk of the socket was parsed, so that an owner handles messages in batches.
    `on_writable`, when set, is called when a full socket takes data again.
    """

    def __init__(self, name: str, url: str, ping_interval: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._name = name
        self._url = url
        self._ping_interval = ping_interval
        self._transport: asyncio.Transport | None = None
        self._handlers: dict[bytes, Handler] = {}
        self._last_sid = 0
        self._chunks: list[bytes] = []
        self._held = 0
        self._need = 0
        self._info: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._pongs: deque[asyncio.Future[None]] = deque()
        self._pings_unanswered = 0
        self._ping_timer: asyncio.TimerHandle | None = None
        self._reason = ""
        self._reading = True
        self._inbox = f"_INBOX.{secrets.token_hex(11)}"
        self._requests: dict[bytes, asyncio.Future[tuple[bytes, bytes]]] = {}
        self._last_request = 0
        self._requests_subscribed = False
        self.closed: asyncio.Future[str] = self._loop.create_future()
        self.writable = True
        self.max_payload = 1024 * 1024
        self.server_name = ""
        self.on_readable_end: Callable[[], None] | None = None
        self.on_writable: Callable[[], None] | None = None

    @classmethod
    async def open(
        cls,
        urls: Sequence[str],
        *,
        name: str,
        timeout: float = _CONNECT_TIMEOUT,  # noqa: ASYNC109 - it is a limit for each address
        ping_interval: float = 2.0,
    ) -> "Connection":
        """Connect to the first address that answers; raises `ConnectionLost` when none does.

        `name` is what NATS monitoring shows. User and password, or a token, are taken from the
        address. A server that is silent for three `ping_interval` seconds counts as gone.
        """
        problems: list[str] = []
        for url in urls:
            host, port, tls = _address(url)
            connection = cls(name, url, ping_interval)
            try:
                async with asyncio.timeout(timeout):
                    await connection._handshake(host, port, tls)
                return connection
            except (OSError, TimeoutError, ConnectionLost) as error:
                what = str(error) or f"no answer within {timeout:g} s"
                problems.append(f"{host}:{port}: {connection._reason or what}")
                connection.close("could not connect")
            except BaseException:
                connection.close("could not connect")
                raise
        raise ConnectionLost(
            f"NATS cannot be reached ({'; '.join(problems)}); is the broker running there?"
        )

    @property
    def inbox(self) -> str:
        """Prefix of reply subjects that belong to this connection alone."""
        return self._inbox

    @property
    def is_closed(self) -> bool:
        """Whether the connection is gone."""
        return self.closed.done()

    @property
    def address(self) -> str:
        """`host:port` of the server, without credentials."""
        host, port, _ = _address(self._url)
        return f"{host}:{port}"

    def close(self, reason: str) -> None:
        """End the connection now; what was not written is gone."""
        if not self._reason:
            self._reason = reason
        if self._transport is not None:
            self._transport.abort()
        else:
            self._end()

    def subscribe(self, subject: str, handler: Handler) -> bytes:
        """Subscribe and give the subscription id; `handler` gets each message in the callback."""
        self._last_sid += 1
        sid = b"%d" % self._last_sid
        self._handlers[sid] = handler
        self.write(b"SUB %b %b\r\n" % (subject.encode(), sid))
        return sid

    def unsubscribe(self, sid: bytes) -> None:
        """End a subscription; messages on their way are ignored."""
        if self._handlers.pop(sid, None) is not None:
            self.write(b"UNSUB %b\r\n" % sid)

    def publish(self, subject: str, payload: bytes = b"", reply: str = "") -> None:
        """Send one message without headers, at most once."""
        target = f"{subject} {reply}" if reply else subject
        self.write(b"PUB %b %d\r\n%b\r\n" % (target.encode(), len(payload), payload))

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        *,
        timeout: float = 5.0,  # noqa: ASYNC109 - a time-out is part of a request
    ) -> tuple[bytes, bytes]:
        """Ask and give the answer's (header block, payload).

        Raises `NoResponders`, `ConnectionLost`, or `TimeoutError` without an answer in time.
        """
        if self.closed.done():
            raise ConnectionLost(self._reason or "the connection is closed")
        if not self._requests_subscribed:
            self._requests_subscribed = True
            self.subscribe(f"{self._inbox}.r.*", self._on_response)
        self._last_request += 1
        reply = f"{self._inbox}.r.{self._last_request:x}"
        answer: asyncio.Future[tuple[bytes, bytes]] = self._loop.create_future()
        self._requests[reply.encode()] = answer
        try:
            self.publish(subject, payload, reply)
            async with asyncio.timeout(timeout):
                header, body = await answer
        finally:
            self._requests.pop(reply.encode(), None)
        if header.startswith(b"NATS/1.0 503"):
            raise NoResponders(f"nobody answers on {subject}: JetStream is off or still starting")
        return header, body

    async def flush(self) -> None:
        """Wait until the server has read everything that was written so far."""
        if self.closed.done():
            raise ConnectionLost(self._reason or "the connection is closed")
        await self._send_ping()

    def write(self, data: bytes) -> None:
        """Hand bytes of whole protocol frames to the socket; ignored when the connection is gone.

        Never waits: a sender of much looks at `writable` and stops until `on_writable`.
        """
        if self._transport is not None and not self.closed.done():
            self._transport.write(data)

    def pause_reading(self) -> None:
        """Leave what the server sends in the socket: TCP slows the server down."""
        if self._reading and self._transport is not None:
            self._reading = False
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again after `pause_reading`."""
        if not self._reading and self._transport is not None and not self.closed.done():
            self._reading = True
            self._pings_unanswered = 0
            self._transport.resume_reading()

    async def _handshake(self, host: str, port: int, tls: bool) -> None:
        await self._loop.create_connection(lambda: self, host, port)
        info = await self._wait_for(self._info)
        if tls or info.get("tls_required"):
            assert self._transport is not None
            upgraded = await self._loop.start_tls(
                self._transport, self, ssl.create_default_context(), server_hostname=host
            )
            self._transport = upgraded
        assert self._transport is not None
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_WATER)
        self.write(self._connect_frame())
        await self._wait_for(self._send_ping())
        self._ping_timer = self._loop.call_later(self._ping_interval, self._ping)

    def _connect_frame(self) -> bytes:
        options: dict[str, Any] = {
            "verbose": False,
            "pedantic": False,
            "lang": "python-marketprism",
            "version": "1",
            "protocol": 1,
            "headers": True,
            "no_responders": True,
            "name": self._name,
        }
        parts = urlsplit(self._url if "://" in self._url else f"nats://{self._url}")
        if parts.password is not None:
            options["user"] = unquote(parts.username or "")
            options["pass"] = unquote(parts.password)
        elif parts.username:
            options["auth_token"] = unquote(parts.username)
        return b"CONNECT %b\r\n" % json.dumps(options).encode()

    async def _wait_for(self, answer: asyncio.Future[Any]) -> Any:
        await asyncio.wait({answer, self.closed}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ConnectionLost(self.closed.result())
        return answer.result()

    def _ping(self) -> None:
        self._ping_timer = self._loop.call_later(self._ping_interval, self._ping)
        if not self._reading:
            return
        if self._pings_unanswered >= 2:
            silent = self._ping_interval * (self._pings_unanswered + 1)
            self.close(f"NATS at {self.address} has been silent for {silent:g} s")
            return
        self._pings_unanswered += 1
        self._send_ping()

    def _send_ping(self) -> asyncio.Future[None]:
        pong: asyncio.Future[None] = self._loop.create_future()
        self._pongs.append(pong)
        self.write(b"PING\r\n")
        return pong

    def _on_response(self, subject: bytes, _reply: bytes, header: bytes, payload: bytes) -> None:
        answer = self._requests.get(subject)
        if answer is not None and not answer.done():
            answer.set_result((header, payload))

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell everybody who waits."""
        if not self._reason:
            self._reason = (
                f"NATS at {self.address} broke the connection: {exc}"
                if exc
                else f"NATS at {self.address} closed the connection"
            )
        self._end()

    def pause_writing(self) -> None:
        """Note that the socket is full."""
        self.writable = False

    def resume_writing(self) -> None:
        """Tell the owner that the socket takes data again."""
        self.writable = True
        if self.on_writable is not None:
            self.on_writable()

    def data_received(self, data: bytes) -> None:
        """Parse whole frames, keep the rest."""
        self._pings_unanswered = 0
        if self._held:
            self._chunks.append(data)
            self._held += len(data)
            if self._held < self._need:
                return
            data = b"".join(self._chunks)
        try:
            used, self._need = self._parse(data)
        except Exception as error:
            log.exception("cannot handle what NATS sent")
            self.close(f"cannot handle what NATS at {self.address} sent: {error!r}")
            return
        if used == len(data):
            self._chunks = []
            self._held = 0
        else:
            self._chunks = [data[used:]]
            self._held = len(data) - used
        if self.on_readable_end is not None:
            self.on_readable_end()

    def _parse(self, data: bytes) -> tuple[int, int]:
        """Handle the whole frames in `data`; give bytes used and bytes needed for the next one."""
        position = 0
        size = len(data)
        handlers = self._handlers
        find = data.find
        while True:
            eol = find(b"\r\n", position)
            if eol < 0:
                if size - position > _HANDSHAKE_LIMIT:
                    raise ValueError("a control line without an end")
                return position, 0
            kind = data[position]
            if kind == 72:  # HMSG subject sid [reply] header-size total-size
                words = data[position + 5 : eol].split(b" ")
                body = eol + 2
                end = body + int(words[-1])
                if end + 2 > size:
                    return position, end + 2 - position
                handler = handlers.get(words[1])
                if handler is not None:
                    split = body + int(words[-2])
                    reply = words[2] if len(words) == 5 else b""
                    handler(words[0], reply, data[body:split], data[split:end])
                position = end + 2
            elif kind == 77:  # MSG subject sid [reply] size
                words = data[position + 4 : eol].split(b" ")
                body = eol + 2
                end = body + int(words[-1])
                if end + 2 > size:
                    return position, end + 2 - position
                handler = handlers.get(words[1])
                if handler is not None:
                    reply = words[2] if len(words) == 4 else b""
                    handler(words[0], reply, b"", data[body:end])
                position = end + 2
            else:
                self._control(data[position:eol])
                position = eol + 2

    def _control(self, line: bytes) -> None:
        if line == b"PING":
            self.write(b"PONG\r\n")
        elif line == b"PONG":
            if self._pongs:
                pong = self._pongs.popleft()
                if not pong.done():
                    pong.set_result(None)
        elif line.startswith(b"INFO "):
            info = json.loads(line[5:])
            self.max_payload = int(info.get("max_payload", self.max_payload))
            self.server_name = str(info.get("server_name", ""))
            if not self._info.done():
                self._info.set_result(info)
        elif line.startswith(b"-ERR"):
            text = line[4:].strip().strip(b"'").decode(errors="replace")
            log.warning("NATS says", address=self.address, text=text)
            # A refused subject leaves the connection usable; everything else ends it.
            if not text.lower().startswith("permissions violation"):
                self._reason = self._reason or f"NATS at {self.address} says: {text}"
        elif line != b"+OK":
            raise ValueError(f"expected a NATS frame, got {line[:80]!r}")

    def _end(self) -> None:
        if self.closed.done():
            return
        self.closed.set_result(self._reason)
        self.writable = False
        if self._ping_timer is not None:
            self._ping_timer.cancel()
        lost = ConnectionLost(self._reason)
        waiting: list[asyncio.Future[Any]] = [*self._requests.values(), *self._pongs]
        for answer in waiting:
            if not answer.done():
                answer.set_exception(lost)
                answer.exception()  # retrieved: the one who waited may have been cancelled
        self._handlers.clear()
        self.on_readable_end = None
        self.on_writable = None
