"""What the tests of broker, publisher and reader share: streams, waiting, a relay to cut."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from services.broker.server import NatsServer
from services.broker.settings import ServerSettings
from services.shared.jetstream import Connection, Message, StartAt, StreamReader, stream_info
from services.shared.jetstream.api import api_request


@contextlib.asynccontextmanager
async def nats_server(directory: Path, **settings: Any) -> AsyncIterator[NatsServer]:
    """Run a real nats-server on free ports."""
    async with NatsServer(directory, ServerSettings(**settings)).running() as server:
        yield server


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[Connection]:
    """Give a connection of the test's own."""
    connection = await Connection.open([url], name="test")
    try:
        yield connection
    finally:
        connection.close("test done")


async def make_stream(url: str, name: str, *subjects: str, **config: Any) -> None:
    """Create a stream as the broker service would, with what a test wants otherwise."""
    wanted = {
        "name": name,
        "subjects": list(subjects),
        "storage": "file",
        "retention": "limits",
        "num_replicas": 1,
        "duplicate_window": 100_000_000,
        "allow_batched": True,
        **config,
    }
    async with connected(url) as connection:
        await api_request(connection, f"STREAM.CREATE.{name}", wanted)


async def call(url: str, verb: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Call one JetStream API verb."""
    async with connected(url) as connection:
        return await api_request(connection, verb, body)


async def read_all(url: str, stream: str) -> list[Message]:
    """Give everything that a stream holds."""
    async with connected(url) as connection:
        info = await stream_info(connection, stream)
    assert info is not None
    messages: list[Message] = []
    reader = StreamReader(url, stream, start=StartAt.all(), on_batch=messages.extend)
    await reader.start()
    await until(lambda: len(messages) >= info["state"]["messages"], "all messages are read")
    await reader.stop()
    return messages


async def until(condition: Callable[[], object], what: str, seconds: float = 20.0) -> None:
    """Wait for a condition, with a deadline."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"within {seconds:g} s: expected that {what}")
        await asyncio.sleep(0.01)


class Relay:
    """A TCP relay before a server: what it answers can be held back, the path can be cut."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._flows = asyncio.Event()
        self._flows.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._open = True
        self.port = 0
        self.held_bytes = 0

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["Relay"]:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self._server.close()
            self._flows.set()
            self.cut()
            await until(lambda: not self._writers, "the relay's connections are closed")

    def hold_answers(self) -> None:
        """Let nothing through from the server to its clients."""
        self._flows.clear()

    def let_through(self) -> None:
        """Undo `hold_answers` and `refuse`."""
        self._open = True
        self._flows.set()

    def refuse(self) -> None:
        """Close new connections at once."""
        self._open = False

    def cut(self) -> None:
        """Break every connection; what was held back is lost."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._open:
            writer.transport.abort()
            return
        try:
            upstream, upstream_writer = await asyncio.open_connection(
                "127.0.0.1", self._target_port
            )
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, upstream_writer}
        try:
            await asyncio.gather(
                self._pump(reader, upstream_writer, held=False),
                self._pump(upstream, writer, held=True),
            )
        finally:
            for each in (writer, upstream_writer):
                each.transport.abort()
                with contextlib.suppress(OSError):
                    await each.wait_closed()
                self._writers.discard(each)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, held: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(256 * 1024):
                if held and not self._flows.is_set():
                    self.held_bytes += len(data)
                    await self._flows.wait()
                if writer.transport.is_closing():
                    break
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
