"""The venues that can be simulated, by exchange id."""

from collections.abc import Callable, Mapping

from services.simulator.binance import BinanceSpot
from services.simulator.binance_futures import BinanceCoinM, BinanceFuturesProtocol, BinanceUsdM
from services.simulator.binance_futures_market import FuturesMarket
from services.simulator.deribit import Deribit
from services.simulator.generated import GeneratedMarket, GeneratedSettings
from services.simulator.okx import Okx
from services.simulator.protocol import VenueProtocol

__all__ = ["VENUES", "generated_market"]


class _BinanceUs(BinanceSpot):
    """Binance.US: the protocol of Binance spot under another name."""

    name = "binance_us"
    title = "Binance.US"


VENUES: Mapping[str, Callable[[], VenueProtocol]] = {
    "binance": BinanceSpot,
    "binance_us": _BinanceUs,
    "okx": Okx,
    "binance_usdm": BinanceUsdM,
    "binance_coinm": BinanceCoinM,
    "deribit": Deribit,
}
"""Makes the protocol of an exchange."""


def generated_market(protocol: VenueProtocol, **options: object) -> GeneratedMarket:
    """Return a generated market of the venue's instruments, with the venue's own defaults.

    `options` are fields of `GeneratedSettings`.

    Raises:
        ValueError: if an option or a symbol makes no sense; says what was expected.

    """
    values = {"symbols": tuple(protocol.default_symbols), **protocol.market_defaults, **options}
    make = FuturesMarket if isinstance(protocol, BinanceFuturesProtocol) else GeneratedMarket
    return make(GeneratedSettings.model_validate(values), listing=protocol.listed)
