"""What one venue's protocol must tell the simulated venue; each venue is a module of its own."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

from aiohttp import web

from services.simulator.connection import Connection, Variant
from services.simulator.market import Event

if TYPE_CHECKING:
    from services.simulator.server import SimulatedVenue

__all__ = ["BadHandshakeError", "VenueProtocol"]


class BadHandshakeError(ValueError):
    """A WebSocket URL that the venue refuses; the text is the HTTP 400 answer's body."""


class VenueProtocol(ABC):
    """A venue's wire format: names of streams, frames, requests, REST."""

    name: str
    """The exchange id, lower case."""
    websocket_paths: Sequence[str]
    """aiohttp route patterns at which a WebSocket is opened."""

    @abstractmethod
    def open(self, request: web.Request) -> tuple[Variant, list[str]]:
        """How a new connection wants its frames, and the streams that its URL names.

        Raises:
            BadHandshakeError: when the venue refuses the URL.

        """

    @abstractmethod
    def stream_of(self, event: Event) -> str:
        """Return the stream on which the event is published."""

    @abstractmethod
    def symbol_of(self, stream: str) -> str | None:
        """Return the upper-case symbol that a stream's name begins with; None if it has none."""

    @abstractmethod
    def is_depth(self, stream: str) -> bool:
        """Whether the stream carries book diffs."""

    @abstractmethod
    def event_id(self, event: Event) -> int | None:
        """Return the id by which tests recognise a trade; None for events without such an id."""

    @abstractmethod
    def encode(self, event: Event) -> bytes:
        """Return the bare event as the venue writes it, times in milliseconds."""

    @abstractmethod
    def frame(self, event: Event, stream: str, payload: bytes, variant: Variant) -> bytes:
        """Return the text of the frame for one kind of connection."""

    @abstractmethod
    def request(self, venue: "SimulatedVenue", connection: Connection, text: str) -> bytes:
        """Perform a client's request and return the reply's text. Never raises for bad input."""

    @abstractmethod
    def shutdown_event(self, time_us: int) -> bytes:
        """Return the notice that the server is about to end the connection."""

    @abstractmethod
    def rest_routes(self, venue: "SimulatedVenue") -> list[web.RouteDef]:
        """Return the REST surface."""
