"""What a listed instrument is: its kind, its steps and what one contract of it is worth."""

import enum
from dataclasses import dataclass

from services.simulator.fixed import SCALE

__all__ = ["InstrumentKind", "Listed", "SymbolSpec"]


class InstrumentKind(enum.StrEnum):
    """What is traded."""

    SPOT = "spot"
    PERPETUAL = "perpetual"
    FUTURE = "future"
    """Dated."""
    OPTION = "option"


@dataclass(frozen=True, slots=True)
class SymbolSpec:
    """One listed instrument. Prices and quantities are in units of 1e-8."""

    symbol: str
    """The venue's own name, exactly."""
    base: str
    """Base asset."""
    quote: str
    """Quote asset."""
    tick: int
    """Price step."""
    lot: int
    """Quantity step, in the venue's own unit of quantity (contracts for most derivatives)."""
    kind: InstrumentKind = InstrumentKind.SPOT
    """What is traded."""
    contract_size: int = SCALE
    """What one unit of quantity is worth, in `contract_currency`; 1 for spot."""
    multiplier: int = SCALE
    """A further factor on the contract size (OKX `ctMult`)."""
    contract_currency: str = ""
    """The currency in which `contract_size` counts; empty is the base asset."""
    settlement: str = ""
    """Settlement currency; empty for spot."""
    inverse: bool = False
    """Settled in the base asset, with a contract worth so much of the quote asset."""
    listed_us: int = 1_548_133_413_000_000
    """When it was listed, microseconds since the epoch."""
    expiry_us: int | None = None
    """When it expires, microseconds since the epoch; None for spot and perpetuals."""
    strike: int | None = None
    """Strike price of an option."""
    right: str | None = None
    """`C` or `P` for an option."""
    underlying: str = ""
    """The venue's name of what it is a derivative of (OKX `uly`, Binance `pair`)."""
    family: str = ""
    """The venue's name of the group of instruments it belongs to (OKX `instFamily`)."""
    index: str = ""
    """The venue's name of the index that it follows; empty for none."""

    @property
    def derivative(self) -> bool:
        """Whether it is anything but spot."""
        return self.kind is not InstrumentKind.SPOT


@dataclass(frozen=True, slots=True)
class Listed:
    """An instrument with what the generator needs to make a plausible market of it."""

    spec: SymbolSpec
    """The instrument."""
    price: int
    """Where the price begins and tends back to, units of 1e-8."""
    quantity: int
    """A usual size of a level, units of 1e-8 of the venue's own unit."""
