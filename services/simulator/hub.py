"""Who subscribed to what, and how an event becomes bytes on their sockets, faults included."""

import asyncio
from collections import Counter, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from services.simulator.connection import Connection, websocket_frame
from services.simulator.faults import FaultKind, FaultSet, corrupted, in_scope, stream_matches
from services.simulator.market import Event, Market, UpdateIdUnavailableError
from services.simulator.protocol import VenueProtocol

__all__ = ["Hub", "SentIds"]

_POLL_SECONDS = 0.001


@dataclass(slots=True)
class SentIds:
    """Ids of the trades that were sent to at least one connection."""

    count: int = 0
    ids: deque[int] = field(default_factory=deque)
    """The newest ids, oldest first."""


class Hub:
    """The venue's fan-out: encodes an event once and shares the bytes among connections."""

    def __init__(
        self,
        protocol: VenueProtocol,
        market: Market,
        faults: FaultSet,
        *,
        sent_ids_kept: int,
        backpressure_bytes: int,
    ) -> None:
        self.connections: dict[str, Connection] = {}
        self.frames: Counter[str] = Counter()
        """By stream: frames sent to at least one connection."""
        self.deliveries = 0
        """Frames written, every connection counted."""
        self.slow_disconnects = 0
        self.unwritten = 0
        """Frames which could not be written, because the book before them is no longer kept."""
        self.sent: dict[str, SentIds] = {}
        """By stream, for streams of trades."""
        self._protocol = protocol
        self._market = market
        self._faults = faults
        self._sent_ids_kept = sent_ids_kept
        self._backpressure = backpressure_bytes
        self._subscribers: dict[str, list[Connection]] = {}
        self._any = asyncio.Event()
        self._reference_streams = 0
        self._reordered: dict[tuple[Connection, str], list[bytes]] = {}

    def add(self, connection: Connection) -> None:
        """Take a new connection in."""
        self.connections[connection.name] = connection

    def remove(self, connection: Connection) -> None:
        """Forget a connection and its subscriptions."""
        for stream in list(connection.streams):
            self.unsubscribe(connection, stream)
        self.connections.pop(connection.name, None)
        connection.forget()

    def subscribe(self, connection: Connection, stream: str, *, mute: bool = False) -> bool:
        """Subscribe; whether anything will be sent.

        A silence fault in scope makes it look so and nothing more; so does `mute`, for venues
        which acknowledge what they will never send.
        """
        if stream in connection.streams:
            return connection.streams[stream]
        symbol = self._protocol.symbol_of(stream)
        live = not mute and not self._faults.first(
            FaultKind.SILENCE, symbol=symbol, stream=stream, connection=connection.name
        )
        connection.streams[stream] = live
        if not live:
            return False
        if symbol and symbol in self._market.symbols and self._protocol.is_depth(stream):
            connection.first_ids.setdefault(symbol, self._market.pending_id(symbol))
        self._subscribers.setdefault(stream, []).append(connection)
        self._reference_streams += self._protocol.is_reference(stream)
        self._any.set()
        return True

    def unsubscribe(self, connection: Connection, stream: str) -> bool:
        """End a subscription; whether there was one."""
        known = stream in connection.streams
        live = connection.streams.pop(stream, False)
        self._reordered.pop((connection, stream), None)
        symbol = self._protocol.symbol_of(stream)
        if symbol is not None and self._protocol.is_depth(stream):
            connection.first_ids.pop(symbol, None)
        if live:
            self._reference_streams -= self._protocol.is_reference(stream)
            left = self._subscribers[stream]
            left.remove(connection)
            if not left:
                del self._subscribers[stream]
                if not self._subscribers:
                    self._any.clear()
        return known

    def wants_reference(self) -> bool:
        """Whether any live subscription is to marks, funding, greeks, listings and their like."""
        return self._reference_streams > 0

    def renumbered(self, symbol: str) -> None:
        """Note that the ids of a symbol began again."""
        for connection in self.connections.values():
            if symbol in connection.first_ids:
                connection.first_ids[symbol] = self._market.pending_id(symbol)

    def subscribed(self, stream: str) -> bool:
        """Whether any connection holds a live subscription to the stream."""
        return stream in self._subscribers

    async def wait_subscribed(self) -> None:
        """Return once any connection holds a live subscription."""
        await self._any.wait()

    async def wait_capacity(self) -> None:
        """Return once every connection's unsent bytes are few."""
        await asyncio.sleep(0)
        # A transport tells nobody outside aiohttp when it has drained, hence the polling.
        while any(  # noqa: ASYNC110
            connection.unsent > self._backpressure and not connection.ended
            for connection in self.connections.values()
        ):
            await asyncio.sleep(_POLL_SECONDS)

    def stale_before(self, symbol: str) -> int:
        """Return the id below which a REST book overlaps with no diff that a client gets or got."""
        firsts = [
            connection.first_ids[symbol]
            for connection in self.connections.values()
            if symbol in connection.first_ids
        ]
        return min(firsts, default=self._market.pending_id(symbol)) - 1

    def publish(self, events: Sequence[Event]) -> None:
        """Send events to whoever subscribed, in this order."""
        protocol, subscribers = self._protocol, self._subscribers
        touched: dict[Connection, None] = {}
        for event in events:
            for stream in protocol.streams_of(event):
                connections = subscribers.get(stream)
                if connections is not None:
                    self._send(event, stream, connections, touched)
        for connection in touched:
            self.flush(connection)

    def _send(
        self,
        event: Event,
        stream: str,
        connections: list[Connection],
        touched: dict[Connection, None],
    ) -> None:
        protocol = self._protocol
        try:
            payload = protocol.encode(event, stream)
        except UpdateIdUnavailableError:
            # The history is too short for what the stream has to tell.
            self.unwritten += 1
            return
        if payload is None:
            return
        sent = False
        if self._faults.on_frames or self._reordered:
            texts = {
                connection: protocol.frame(event, stream, payload, connection.variant)
                for connection in connections
            }
            sent = self._send_faulted(event.symbol, stream, texts, touched)
        else:
            by_variant: dict[Hashable, bytes] = {}
            for connection in connections:
                variant = connection.variant
                frame = by_variant.get(variant)
                if frame is None:
                    frame = websocket_frame(protocol.frame(event, stream, payload, variant))
                    by_variant[variant] = frame
                if connection.queue(frame):
                    sent = True
                    self.deliveries += 1
                    touched[connection] = None
        if sent:
            self.frames[stream] += 1
            for event_id in protocol.event_ids(event, stream):
                self._note_sent(stream, event_id)

    def reply(self, connection: Connection, text: bytes, stream: str, symbol: str) -> None:
        """Queue a frame for one connection, which faults on frames may hit."""
        if not (self._faults.on_frames or self._reordered):
            connection.queue(websocket_frame(text))
        else:
            self._send_faulted(symbol, stream, {connection: text}, {})

    def flush(self, connection: Connection) -> None:
        """Write what is queued for one connection; counts it when it is too slow."""
        if not connection.flush():
            self.slow_disconnects += 1

    def _note_sent(self, stream: str, event_id: int) -> None:
        sent = self.sent.get(stream)
        if sent is None:
            sent = self.sent[stream] = SentIds(ids=deque(maxlen=self._sent_ids_kept))
        sent.count += 1
        sent.ids.append(event_id)

    def _send_faulted(
        self,
        symbol: str,
        stream: str,
        texts: dict[Connection, bytes],
        touched: dict[Connection, None],
    ) -> bool:
        connections = list(texts)
        frames = {connection: [websocket_frame(text)] for connection, text in texts.items()}
        swapped: set[Connection] = set()
        for fault in list(self._faults.on_frames):
            spec = fault.spec
            targets = [c for c in connections if spec.connection in (None, c.name)]
            if spec.kind is FaultKind.REORDER:
                # A frame that is to overtake another one cannot itself be held back.
                targets = [c for c in targets if (c, stream) not in self._reordered]
            if spec.kind is FaultKind.WRONG_CHECKSUM and not self._protocol.is_depth(stream):
                continue
            if not targets or not in_scope(spec, symbol, stream) or not self._faults.fires(fault):
                continue
            for connection in targets:
                if spec.kind is FaultKind.DROP:
                    frames[connection] = []
                elif spec.kind is FaultKind.DUPLICATE:
                    frames[connection] = frames[connection] * 2
                elif spec.kind is FaultKind.CORRUPT:
                    frames[connection] = [websocket_frame(*corrupted(texts[connection], spec.mode))]
                elif spec.kind is FaultKind.WRONG_CHECKSUM:
                    wrong = self._protocol.wrong_checksum(texts[connection])
                    frames[connection] = [websocket_frame(wrong)]
                elif spec.kind is FaultKind.DELAY:
                    connection.flush()
                    connection.hold(spec.seconds)
                elif spec.kind is FaultKind.REORDER:
                    swapped.add(connection)
                elif spec.kind is FaultKind.CUT:
                    frames[connection] = []
                    self.cut(connection, spec.code, abort=spec.abort)
        sent = False
        for connection, mine in frames.items():
            if connection in swapped:
                self._reordered[connection, stream] = mine
                sent = True
                continue
            for frame in mine + self._reordered.pop((connection, stream), []):
                if connection.queue(frame):
                    touched[connection] = None
                    self.deliveries += 1
                    sent = sent or bool(mine)
        return sent

    def cut(self, connection: Connection, code: int, *, abort: bool) -> None:
        """End a connection, by a close frame or by breaking TCP."""
        if abort:
            connection.abort("fault: TCP connection broken")
        else:
            connection.close(code, "fault: cut")

    def in_scope(
        self, symbol: str | None, stream: str | None, name: str | None
    ) -> list[Connection]:
        """Return the connections with that name that subscribed to the symbol or stream."""
        return [
            connection
            for connection in self.connections.values()
            if name in (None, connection.name)
            and (
                (symbol is None and stream is None)
                or any(
                    (symbol is None or self._protocol.symbol_of(mine) == symbol)
                    and (stream is None or stream_matches(stream, mine))
                    for mine in connection.streams
                )
            )
        ]
