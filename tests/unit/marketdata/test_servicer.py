"""The servicer registers what its parts answer, and refuses the rest by name."""

import pytest

from services.marketdata.servicer import MarketDataServicer


class Tickers:
    async def GetTicker(self, _request: object, _context: object) -> bytes:  # noqa: N802
        return b""


def test_two_parts_for_one_rpc_are_a_mistake() -> None:
    MarketDataServicer([Tickers(), object()])
    with pytest.raises(ValueError, match="two parts answer GetTicker"):
        MarketDataServicer([Tickers(), Tickers()])
