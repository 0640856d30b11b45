"""The simulated venue: one aiohttp server for REST, WebSocket streams and questions about truth."""

import asyncio
import contextlib
import itertools
import logging
import time
from collections import Counter
from types import TracebackType
from typing import Annotated, cast

from aiohttp import WSMsgType, web
from pydantic import BaseModel, ConfigDict, Field

from services.simulator.binance import BinanceSpot
from services.simulator.connection import Connection, websocket_frame
from services.simulator.control import control_routes
from services.simulator.faults import Fault, FaultError, FaultKind, FaultSet, FaultSpec
from services.simulator.hub import Hub
from services.simulator.limits import MessageRate, WeightPool
from services.simulator.market import Market, UnknownSymbolError
from services.simulator.protocol import BadHandshakeError, VenueProtocol

__all__ = ["SimulatedVenue", "VenueSettings"]

_log = logging.getLogger(__name__)

_LONGEST_URL = 64 * 1024  # a thousand streams in one URL

_Positive = Annotated[float, Field(gt=0)]
_AtLeastOne = Annotated[int, Field(ge=1)]


class VenueSettings(BaseModel):
    """The venue's limits and timings; the defaults are Binance spot's own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ping_interval_seconds: _Positive = 20.0
    """Between the server's ping frames."""
    pong_timeout_seconds: _Positive = 60.0
    """Without a pong this long after a ping, the connection is ended."""
    connection_life_seconds: _Positive = 86_400.0
    """A connection's longest life."""
    shutdown_notice_seconds: Annotated[float, Field(ge=0)] = 600.0
    """The shutdown event comes this long before the end of life."""
    max_streams: _AtLeastOne = 1024
    """Streams a connection may subscribe to."""
    inbound_per_second: _AtLeastOne = 5
    """Messages, pings and pongs that a client may send a second; one more ends the connection."""
    connects_per_five_minutes: _AtLeastOne = 300
    """WebSocket connections that may be opened in five minutes."""
    weight_limit: _AtLeastOne = 6000
    """REST request weight a minute."""
    ban_after: _AtLeastOne = 20
    """Requests refused with 429 within a minute that are put up with before the ban."""
    ban_seconds: _Positive = 120.0
    """Length of the first ban; each further one is twice as long."""
    max_send_buffer_bytes: _AtLeastOne = 8 * 1024 * 1024
    """Unsent bytes at which a slow client is disconnected."""
    backpressure_bytes: _AtLeastOne = 256 * 1024
    """Unsent bytes at which a capture played as fast as possible waits for the client."""
    sent_ids_kept: _AtLeastOne = 200_000
    """Newest trade ids kept a stream, of those that were sent."""
    fault_seed: int = 0
    """Seed of the chance in faults with a probability."""


class SimulatedVenue:
    """A venue on loopback. Use as `async with SimulatedVenue(market) as venue:`."""

    def __init__(
        self,
        market: Market,
        host: str = "127.0.0.1",
        port: int = 0,
        settings: VenueSettings | None = None,
        protocol: VenueProtocol | None = None,
    ) -> None:
        """`port` 0 takes a free one; `protocol` is Binance spot unless another is given."""
        self.market = market
        self.settings = settings or VenueSettings()
        self.protocol = protocol or BinanceSpot()
        self.faults = FaultSet(self.settings.fault_seed)
        self.hub = Hub(
            self.protocol,
            market,
            self.faults,
            sent_ids_kept=self.settings.sent_ids_kept,
            backpressure_bytes=self.settings.backpressure_bytes,
        )
        self.weights = WeightPool(
            self.settings.weight_limit, self.settings.ban_after, self.settings.ban_seconds
        )
        self.host = host
        self.port = port
        self.counters: Counter[str] = Counter()
        """Connections opened, refused and ended by reason; REST requests by path."""
        self._numbers = itertools.count(1)
        self._connects = MessageRate(self.settings.connects_per_five_minutes, 300.0)
        self._runner: web.AppRunner | None = None
        self._playing: asyncio.Task[None] | None = None
        self._started = 0.0

    @property
    def rest_url(self) -> str:
        """`http://host:port`, in place of the venue's REST base URL."""
        return f"http://{self.host}:{self.port}"

    @property
    def ws_url(self) -> str:
        """`ws://host:port`, in place of the venue's WebSocket base URL."""
        return f"ws://{self.host}:{self.port}"

    async def start(self) -> None:
        """Listen, then let the market run.

        Raises:
            OSError: when the port cannot be had.

        """
        app = web.Application()
        app.add_routes(self.protocol.rest_routes(self))
        app.add_routes(control_routes(self))
        app.add_routes([web.get(path, self._websocket) for path in self.protocol.websocket_paths])
        runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=0.2, max_line_size=_LONGEST_URL
        )
        await runner.setup()
        try:
            site = web.TCPSite(runner, self.host, self.port)
            await site.start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        self.port = cast("tuple[str, int]", runner.addresses[0])[1]
        self._started = time.monotonic()
        self._playing = asyncio.create_task(self._play(), name="simulated-market")

    async def stop(self) -> None:
        """End every connection at once and release the port."""
        if self._playing is not None:
            self._playing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._playing
            self._playing = None
        for connection in list(self.hub.connections.values()):
            connection.abort("venue stopped")
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def __aenter__(self) -> "SimulatedVenue":
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def _play(self) -> None:
        try:
            await self.market.run(self.hub)
        except asyncio.CancelledError:
            raise
        except Exception:
            self.counters["market_failures"] += 1
            _log.exception("the simulated market stopped; connections stay open and silent")

    def count_rest(self, path: str) -> None:
        """Count a REST request."""
        known = path if len(self.counters) < 1000 else "other"
        self.counters[f"rest {known}"] += 1

    def fault(self, kind: str, **options: object) -> Fault:
        """Put a fault in force: `venue.fault("drop", symbol="BTCUSDT", count=2)`.

        Raises:
            FaultError: when the options make no sense for the kind.

        """
        return self.inject(self.faults.parse({"kind": kind, **options}))

    def inject(self, spec: FaultSpec) -> Fault:
        """Put a fault in force; those that act at once have acted when this returns.

        Raises:
            FaultError: when it names a symbol or a connection that there is not.

        """
        if spec.symbol is not None and spec.symbol not in self.market.symbols:
            raise FaultError(f"symbol: {UnknownSymbolError(spec.symbol, self.market.symbols)}")
        if spec.connection is not None and spec.connection not in self.hub.connections:
            names = ", ".join(self.hub.connections) or "none, for none is open"
            raise FaultError(f"connection: expected one of {names}, got {spec.connection!r}")
        fault = self.faults.add(spec)
        at_once = spec.kind is FaultKind.SHUTDOWN or (
            spec.kind is FaultKind.CUT and spec.when == "now"
        )
        if at_once:
            for connection in self.hub.in_scope(spec.symbol, spec.stream, spec.connection):
                if not self.faults.fires(fault):
                    continue
                if spec.kind is FaultKind.SHUTDOWN:
                    self._announce_shutdown(connection)
                    asyncio.get_running_loop().call_later(
                        spec.seconds, connection.close, 1001, "server shutdown"
                    )
                else:
                    self.hub.cut(connection, spec.code, abort=spec.abort)
        return fault

    def _announce_shutdown(self, connection: Connection) -> None:
        connection.queue(websocket_frame(self.protocol.shutdown_event(time.time_ns() // 1000)))
        self.hub.flush(connection)

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        refusal = self.faults.first(FaultKind.REFUSE)
        if refusal is not None:
            self.counters["connections refused"] += 1
            if refusal.spec.abort and request.transport is not None:
                request.transport.abort()
            return web.Response(status=refusal.spec.status, text="refused")
        try:
            variant, streams = self.protocol.open(request)
        except BadHandshakeError as error:
            self.counters["connections refused"] += 1
            return web.Response(status=400, text=str(error), content_type="application/json")
        if len(streams) > self.settings.max_streams:
            self.counters["connections refused"] += 1
            return web.Response(
                status=400, text=f"more than {self.settings.max_streams} streams: {len(streams)}"
            )
        if not self._connects.allow():
            self.counters["connections refused"] += 1
            return web.Response(
                status=429, text="too many connections", headers={"Retry-After": "300"}
            )
        socket = web.WebSocketResponse(
            autoping=False, compress=False, timeout=2.0, max_msg_size=64 * 1024
        )
        await socket.prepare(request)
        transport = request.transport
        if transport is None:
            return socket
        connection = Connection(
            f"c{next(self._numbers)}",
            request.remote or "",
            variant,
            transport,
            self.settings.max_send_buffer_bytes,
        )
        self.counters["connections opened"] += 1
        self.hub.add(connection)
        keeper = asyncio.create_task(
            _Keeper(self, connection, socket).run(), name=f"keeper {connection.name}"
        )
        try:
            for stream in streams:
                self.hub.subscribe(connection, stream)
            await self._read(connection, socket, keeper)
        finally:
            self.hub.remove(connection)
            keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeper
            self.counters[f"ended: {connection.end_reason or 'client left'}"] += 1
        return socket

    async def _read(
        self, connection: Connection, socket: web.WebSocketResponse, keeper: asyncio.Task[None]
    ) -> None:
        rate = MessageRate(self.settings.inbound_per_second, 1.0)
        accepted = (WSMsgType.TEXT, WSMsgType.PING, WSMsgType.PONG, WSMsgType.BINARY)
        async for message in socket:
            if message.type not in accepted:
                break
            if not rate.allow():
                connection.close(1008, "Too many requests")
            elif message.type is WSMsgType.PONG:
                connection.ponged_at = time.monotonic()
            elif message.type is WSMsgType.PING:
                with contextlib.suppress(ConnectionError):
                    await socket.pong(message.data)
            elif message.type is WSMsgType.TEXT:
                reply = self.protocol.request(self, connection, message.data)
                connection.queue(websocket_frame(reply))
                self.hub.flush(connection)
            else:
                connection.close(1003, "binary messages are not accepted")

    def stats(self) -> dict[str, object]:
        """Counters of everything, JSON-ready."""
        return {
            "venue": self.protocol.name,
            "uptime_seconds": round(time.monotonic() - self._started, 3),
            "market": self.market.stats(),
            "connections": len(self.hub.connections),
            "frames": sum(self.hub.frames.values()),
            "deliveries": self.hub.deliveries,
            "slow_disconnects": self.hub.slow_disconnects,
            "streams": dict(self.hub.frames),
            "counters": dict(self.counters),
            "weight": {
                "used": self.weights.used,
                "limit": self.weights.limit,
                "refused": self.weights.refused,
                "banned": self.weights.banned,
            },
            "faults": dict(self.faults.totals),
        }


class _Keeper:
    """Keeps one connection to the venue's rules: pings, pongs, life, and the end when it is due."""

    def __init__(
        self, venue: SimulatedVenue, connection: Connection, socket: web.WebSocketResponse
    ) -> None:
        self._venue = venue
        self._connection = connection
        self._socket = socket

    async def run(self) -> None:
        """Return when the connection has been closed by the venue."""
        settings, connection = self._venue.settings, self._connection
        begun = time.monotonic()
        ends = begun + settings.connection_life_seconds
        notice = ends - settings.shutdown_notice_seconds
        ping = begun + settings.ping_interval_seconds
        pinged: float | None = None
        while not connection.closing.done():
            now = time.monotonic()
            if pinged is not None and connection.ponged_at >= pinged:
                pinged = None
            if pinged is not None and now >= pinged + settings.pong_timeout_seconds:
                connection.close(1008, "Pong timeout")
            elif now >= ends:
                connection.close(1001, "24 hours are over")
            elif now >= notice:
                notice = float("inf")
                self._venue._announce_shutdown(connection)
            elif now >= ping:
                ping = now + settings.ping_interval_seconds
                pinged = now if pinged is None else pinged
                with contextlib.suppress(ConnectionError):
                    await self._socket.ping(str(time.time_ns() // 1_000_000).encode())
            due = min(ping, notice, ends)
            if pinged is not None:
                due = min(due, pinged + settings.pong_timeout_seconds)
            await asyncio.wait([connection.closing], timeout=max(0.0, due - time.monotonic()))
        closing = connection.closing.result()
        await self._socket.close(code=closing.code, message=closing.reason.encode())
