"""MarketDataService by name, and what its handlers get."""

from typing import Final

from marketprism.market.v1 import market_data_service_pb2 as pb

from services.shared.parts import Context

__all__ = ["SERVICE", "Context"]

SERVICE: Final = pb.DESCRIPTOR.services_by_name["MarketDataService"]
"""Descriptor of the service."""
