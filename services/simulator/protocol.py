"""What one venue's protocol must tell the simulated venue; each venue is a module of its own.

A protocol names streams as its clients do (or as it likes, where clients name several things),
says which events go out on which streams, writes them, and answers requests. Everything else is
the core's: connections, fan-out, faults, limits, the market and the questions about the truth.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from aiohttp import web

from services.simulator.connection import Connection
from services.simulator.instrument import Listed
from services.simulator.listing import DEFAULT_SYMBOLS, listed, more_symbols
from services.simulator.market import Event
from services.simulator.settings import VenueSettings

if TYPE_CHECKING:
    from services.simulator.server import SimulatedVenue

__all__ = ["BadHandshakeError", "Reply", "VenueProtocol"]


class BadHandshakeError(ValueError):
    """A WebSocket URL that the venue refuses; the text is the HTTP 400 answer's body."""


class Reply(NamedTuple):
    """A frame for one connection only, which faults on frames may hit as they hit any other.

    What must never be lost or damaged (an acknowledgement, a pong) is plain bytes instead.
    """

    text: bytes
    """The frame's text."""
    stream: str
    """The stream that it belongs to, for the scope of faults."""
    symbol: str
    """The symbol that it tells of, for the scope of faults."""


class VenueProtocol(ABC):
    """A venue's wire format: names of streams, frames, requests, REST."""

    name: str
    """The exchange id, lower case."""
    title: str = ""
    """The venue's name for people; empty is `name`."""
    websocket_paths: Sequence[str]
    """aiohttp route patterns at which a WebSocket is opened."""
    settings_type: ClassVar[type[VenueSettings]] = VenueSettings
    """Its limits and timings, with the venue's own defaults."""
    market_defaults: ClassVar[Mapping[str, object]] = {}
    """Fields of `GeneratedSettings` for which the venue has other defaults."""
    default_symbols: Sequence[str] = DEFAULT_SYMBOLS
    """What a generated market lists when nothing else is asked for."""
    resets_chain: bool = False
    """Whether the venue chains the first frame after a reset of the sequence to the last one
    before (OKX); else ids begin again without any hint."""

    silence_close: tuple[int, str] = (4004, "No data received in time.")
    """Close code and reason for a client that was silent for too long."""

    def bind(self, venue: "SimulatedVenue") -> None:  # noqa: B027 - not all need it
        """Take note of the venue that speaks this protocol; called once, when it is made."""

    def listed(self, symbol: str) -> Listed:
        """Return the instrument of that name; what is not well known is made up from its name.

        Raises:
            ValueError: if the venue would have no such name; says what was expected.

        """
        return listed(symbol)

    def more_symbols(self, count: int, have: Iterable[str]) -> tuple[str, ...]:
        """Return `have`, continued to `count` names."""
        return more_symbols(count, have)

    def addresses(self, venue: "SimulatedVenue") -> list[tuple[str, str]]:
        """Return (what, URL) of what a client connects to, for people."""
        return [("REST", venue.rest_url), ("WebSocket", venue.ws_url)]

    @abstractmethod
    def open(self, request: web.Request) -> tuple[Hashable, list[str]]:
        """How a new connection wants its frames (its variant), and the streams its URL names.

        Frames are written once for all connections of equal variant.

        Raises:
            BadHandshakeError: when the venue refuses the URL.

        """

    def opened(self, venue: "SimulatedVenue", connection: Connection) -> Iterable[bytes | Reply]:
        """Return what a new connection is sent first; a place to set `connection.state`."""
        return ()

    def closed(self, venue: "SimulatedVenue", connection: Connection) -> None:  # noqa: B027
        """Forget what was kept of a connection that is over."""

    @abstractmethod
    def streams_of(self, event: Event) -> Sequence[str]:
        """Return the streams on which the event is published; none for what the venue lacks."""

    @abstractmethod
    def symbol_of(self, stream: str) -> str | None:
        """Return the one symbol that a stream tells of; None if it is none or several."""

    @abstractmethod
    def is_depth(self, stream: str) -> bool:
        """Whether the stream carries book diffs."""

    def is_reference(self, stream: str) -> bool:
        """Whether the stream carries what `reference` holds: marks, funding, greeks, listings."""
        return not self.is_depth(stream)

    def event_id(self, event: Event) -> int | None:
        """Return the id by which tests recognise a trade; None for events without such an id."""
        return None

    def event_ids(self, event: Event, stream: str) -> Sequence[int]:
        """Return the ids of all trades in the frame that the event just made on the stream."""
        event_id = self.event_id(event)
        return () if event_id is None else (event_id,)

    @abstractmethod
    def encode(self, event: Event, stream: str) -> bytes | None:
        """Return the bare event as the venue writes it on that stream; None to send nothing.

        Called only when somebody is subscribed, once for all connections, in the market's order.
        """

    def frame(self, event: Event, stream: str, payload: bytes, variant: Hashable) -> bytes:
        """Return the text of the frame for one kind of connection."""
        return payload

    @abstractmethod
    def request(
        self, venue: "SimulatedVenue", connection: Connection, text: str
    ) -> Iterable[bytes | Reply]:
        """Perform a client's request; return the frames that answer it, in order.

        Never raises for bad input. Subscribes by `venue.subscribe`; a book's snapshot, where the
        venue sends it on the stream, is a `Reply` after the acknowledgement, and is left out when
        `venue.subscribe` says that the subscription is silent.
        """

    def keep(self, venue: "SimulatedVenue", connection: Connection, now: float) -> float:
        """Do what is due on a connection by itself: keepalives, heartbeats, their deadlines.

        Called first when the connection opened, then at the time returned and after each
        `connection.wake()`. Sends by `venue.send`, ends the connection by `connection.close`.
        Times are those of `time.monotonic`.

        Returns:
            When to call again; infinity for never.

        """
        return math.inf

    @abstractmethod
    def shutdown_event(self, time_us: int) -> bytes | None:
        """Return the notice that the server is about to end the connection; None for none."""

    def maintenance_event(self, time_us: int) -> bytes | None:
        """Return the notice of a maintenance; the same as of a shutdown where there is no other."""
        return self.shutdown_event(time_us)

    def wrong_checksum(self, text: bytes) -> bytes:
        """Return the frame with a checksum that does not fit; unchanged where it has none."""
        return text

    @abstractmethod
    def rest_routes(self, venue: "SimulatedVenue") -> list[web.RouteDef]:
        """Return the REST surface. `venue.rest_trouble` holds the faults and limits for it."""
