"""The venues that can be simulated, by exchange id."""

from collections.abc import Callable, Mapping

from services.simulator.binance import BinanceSpot
from services.simulator.protocol import VenueProtocol

__all__ = ["VENUES"]

VENUES: Mapping[str, Callable[[], VenueProtocol]] = {BinanceSpot.name: BinanceSpot}
"""Makes the protocol of an exchange."""
