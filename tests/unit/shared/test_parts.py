"""The servicer registers what its parts answer, and refuses the rest by name."""

import pytest
from marketprism.market.v1 import market_data_service_pb2

from services.shared.parts import PartsServicer

SERVICE = market_data_service_pb2.DESCRIPTOR.services_by_name["MarketDataService"]


class Tickers:
    async def GetTicker(self, _request: object, _context: object) -> bytes:  # noqa: N802
        return b""


def test_two_parts_for_one_rpc_are_a_mistake() -> None:
    PartsServicer(SERVICE, [Tickers(), object()])
    with pytest.raises(ValueError, match="two parts answer GetTicker"):
        PartsServicer(SERVICE, [Tickers(), Tickers()])
