"""The simulated venue: one aiohttp server for REST, WebSocket streams and questions about truth."""

import asyncio
import contextlib
import itertools
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import cast

from aiohttp import WSMsgType, web

from services.simulator.binance import BinanceSpot
from services.simulator.connection import Connection, websocket_frame
from services.simulator.control import control_routes
from services.simulator.faults import Fault, FaultError, FaultKind, FaultSet, FaultSpec
from services.simulator.hub import Hub
from services.simulator.keeper import Keeper
from services.simulator.limits import MessageRate, WeightPool
from services.simulator.market import BookState, Market, NotOfferedError, UnknownSymbolError
from services.simulator.protocol import BadHandshakeError, Reply, VenueProtocol
from services.simulator.rest_trouble import RestTrouble, rest_trouble
from services.simulator.settings import VenueSettings

__all__ = ["SimulatedVenue", "VenueSettings"]

_log = logging.getLogger(__name__)

_LONGEST_URL = 64 * 1024  # a thousand streams in one URL


class SimulatedVenue:
    """A venue on loopback. Use as `async with SimulatedVenue(market) as venue:`."""

    def __init__(
        self,
        market: Market,
        host: str = "127.0.0.1",
        port: int = 0,
        settings: VenueSettings | None = None,
        protocol: VenueProtocol | None = None,
        weights: WeightPool | None = None,
    ) -> None:
        """`port` 0 takes a free one; `protocol` is Binance spot unless another is given.

        `settings` must be of the protocol's `settings_type`, which is also the default. `weights`
        is the pool of another simulated venue (its `weights`) to share, in place of one of its own:
        Binance counts USD-M and COIN-M requests of an address together.
        """
        self.market = market
        self.protocol = protocol or BinanceSpot()
        self.settings = settings or self.protocol.settings_type()
        if not isinstance(self.settings, self.protocol.settings_type):
            raise TypeError(
                f"settings: expected {self.protocol.settings_type.__name__} for "
                f"{self.protocol.name}, got {type(self.settings).__name__}"
            )
        self.faults = FaultSet(self.settings.fault_seed)
        self.hub = Hub(
            self.protocol,
            market,
            self.faults,
            sent_ids_kept=self.settings.sent_ids_kept,
            backpressure_bytes=self.settings.backpressure_bytes,
        )
        self.weights = weights or WeightPool(
            self.settings.weight_limit, self.settings.ban_after, self.settings.ban_seconds
        )
        self.host = host
        self.port = port
        self.counters: Counter[str] = Counter()
        """Connections opened, refused and ended by reason; REST requests by path."""
        self._numbers = itertools.count(1)
        self.protocol.bind(self)
        self.maintenance_until = 0.0
        """Monotonic time until which the venue is closed."""
        self._connects = [
            MessageRate(limit, seconds)
            for limit, seconds in (
                (self.settings.connects_per_second, 1.0),
                (self.settings.connects_per_five_minutes, 300.0),
            )
            if limit is not None
        ]
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
        if spec.kind is FaultKind.SHUTDOWN or (spec.kind is FaultKind.CUT and spec.when == "now"):
            self._end_connections(fault)
        elif spec.kind is FaultKind.MAINTENANCE and self.faults.fires(fault):
            self._begin_maintenance(spec)
        elif spec.kind in (FaultKind.SEQUENCE_RESET, FaultKind.GAP):
            self._disturb_ids(fault)
        return fault

    def _end_connections(self, fault: Fault) -> None:
        spec = fault.spec
        for connection in self.hub.in_scope(spec.symbol, spec.stream, spec.connection):
            if not self.faults.fires(fault):
                continue
            if spec.kind is FaultKind.SHUTDOWN:
                self.announce(connection, self.protocol.shutdown_event)
                asyncio.get_running_loop().call_later(
                    spec.seconds, connection.close, 1001, "server shutdown"
                )
            else:
                self.hub.cut(connection, spec.code, abort=spec.abort)

    def _begin_maintenance(self, spec: FaultSpec) -> None:
        for connection in self.hub.connections.values():
            self.announce(connection, self.protocol.maintenance_event)

        def close() -> None:
            self.maintenance_until = time.monotonic() + spec.seconds
            for connection in list(self.hub.connections.values()):
                connection.close(1001, "maintenance")

        if spec.notice:
            asyncio.get_running_loop().call_later(spec.notice, close)
        else:
            close()

    def _disturb_ids(self, fault: Fault) -> None:
        spec = fault.spec
        symbols = list(self.market.symbols) if spec.symbol is None else [spec.symbol]
        try:
            for symbol in symbols:
                if spec.kind is FaultKind.GAP:
                    self.market.skip_ids(symbol, spec.ids)
                else:
                    self.market.reset_sequence(symbol, chained=self.protocol.resets_chain)
                    self.hub.renumbered(symbol)
        except NotOfferedError as error:
            self.faults.remove(fault.id)
            raise FaultError(str(error)) from error
        self.faults.happened(fault)

    def announce(self, connection: Connection, event: Callable[[int], bytes | None]) -> None:
        """Send a notice of the protocol's (its shutdown or maintenance event) at once."""
        text = event(time.time_ns() // 1000)
        if text is not None:
            self.send(connection, text)

    def send(self, connection: Connection, text: bytes) -> None:
        """Send a frame to one connection at once; faults on frames do not touch it."""
        connection.queue(websocket_frame(text))
        self.hub.flush(connection)

    def subscribe(self, connection: Connection, stream: str, *, mute: bool = False) -> bool:
        """Subscribe a connection; whether anything will be sent (see `Hub.subscribe`)."""
        return self.hub.subscribe(connection, stream, mute=mute)

    def unsubscribe(self, connection: Connection, stream: str) -> bool:
        """End a subscription; whether there was one."""
        return self.hub.unsubscribe(connection, stream)

    def subscription_refused(self, connection: Connection, stream: str) -> bool:
        """Whether a fault makes the venue refuse this subscription; ask once for each."""
        fault = self.faults.first(
            FaultKind.REFUSE_SUBSCRIPTION,
            symbol=self.protocol.symbol_of(stream),
            stream=stream,
            connection=connection.name,
        )
        return fault is not None

    def heartbeat_refused(self, connection: Connection) -> bool:
        """Whether a fault leaves this ping of the client unanswered; ask once for each."""
        return self.faults.first(FaultKind.HEARTBEAT, connection=connection.name) is not None

    def rest_book(self, symbol: str, depth: int | None, path: str | None = None) -> BookState:
        """Return the book as REST answers it: the newest, or an old one by a stale snapshot fault.

        Raises:
            UnknownSymbolError: for an unlisted symbol.

        """
        self.market.snapshot_requested(symbol)
        stale = self.faults.first(FaultKind.STALE_SNAPSHOT, symbol=symbol, path=path)
        if stale is None:
            return self.market.book(symbol, depth).top(depth)
        behind = stale.spec.behind
        if behind is not None:
            before = self.market.update_id(symbol) - behind + 1
        else:
            before = self.hub.stale_before(symbol)
        return self.market.stale_book(symbol, before).top(depth)

    def stale_snapshot(self, symbol: str) -> BookState | None:
        """Return the old book that a fault puts in place of a snapshot on a stream, else None.

        Raises:
            UnknownSymbolError: for an unlisted symbol.

        """
        stale = self.faults.first(FaultKind.STALE_SNAPSHOT, symbol=symbol)
        if stale is None:
            return None
        before = self.market.frame_id(symbol) - (stale.spec.behind or 1) + 1
        return self.market.stale_book(symbol, before)

    async def rest_trouble(self, path: str, symbol: str | None = None) -> RestTrouble | None:
        """Return why a REST request is to be turned away, None when it may be answered.

        Waits where a fault makes REST slow. The venue's own request limits are the protocol's.
        """
        return await rest_trouble(self, path, symbol)

    async def _websocket(self, request: web.Request) -> web.StreamResponse:
        if time.monotonic() < self.maintenance_until:
            self.counters["connections refused"] += 1
            return web.Response(status=503, text="maintenance")
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
        most = self.settings.max_connections
        if most is not None and len(self.hub.connections) >= most:
            self.counters["connections refused"] += 1
            return web.Response(status=429, text=f"more than {most} connections")
        if not all(rate.allow() for rate in self._connects):
            self.counters["connections refused"] += 1
            return web.Response(
                status=429, text="too many connections", headers={"Retry-After": "1"}
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
            Keeper(self, connection, socket).run(), name=f"keeper {connection.name}"
        )
        try:
            self._answer(connection, self.protocol.opened(self, connection))
            for stream in streams:
                self.hub.subscribe(connection, stream)
            await self._read(connection, socket, keeper)
        finally:
            self.hub.remove(connection)
            self.protocol.closed(self, connection)
            keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await keeper
            self.counters[f"ended: {connection.end_reason or 'client left'}"] += 1
        return socket

    async def _read(
        self, connection: Connection, socket: web.WebSocketResponse, keeper: asyncio.Task[None]
    ) -> None:
        limit = self.settings.inbound_per_second
        rate = None if limit is None else MessageRate(limit, 1.0)
        accepted = (WSMsgType.TEXT, WSMsgType.PING, WSMsgType.PONG, WSMsgType.BINARY)
        async for message in socket:
            if message.type not in accepted:
                break
            connection.heard_at = time.monotonic()
            if rate is not None and not rate.allow():
                connection.close(1008, "Too many requests")
            elif message.type is WSMsgType.PONG:
                connection.ponged_at = time.monotonic()
            elif message.type is WSMsgType.PING:
                if self.heartbeat_refused(connection):
                    continue
                with contextlib.suppress(ConnectionError):
                    await socket.pong(message.data)
            elif message.type is WSMsgType.TEXT:
                self._answer(connection, self.protocol.request(self, connection, message.data))
            else:
                connection.close(1003, "binary messages are not accepted")

    def _answer(self, connection: Connection, frames: Iterable[bytes | Reply]) -> None:
        for frame in frames:
            if isinstance(frame, Reply):
                self.hub.reply(connection, *frame)
            else:
                connection.queue(websocket_frame(frame))
        self.hub.flush(connection)

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
            "unwritten_frames": self.hub.unwritten,
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
