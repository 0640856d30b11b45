"""What a market tells beside book and trades: marks, funding, open interest, greeks, listings.

Numbers are integers in units of 1e-8, also rates and greeks; times are microseconds since the
epoch. `symbol` is the instrument, or the venue's name of an index where that is what is told.
"""

import enum
from typing import NamedTuple

from services.simulator.instrument import SymbolSpec

__all__ = [
    "FundingRate",
    "IndexPrice",
    "InstrumentChange",
    "InstrumentEvent",
    "Liquidation",
    "LongShortKind",
    "LongShortRatio",
    "MarkPrice",
    "OpenInterest",
    "OptionGreeks",
    "VolatilityIndex",
]


class MarkPrice(NamedTuple):
    """The price at which positions are valued."""

    symbol: str
    time_us: int
    mark: int
    index_price: int
    """Price of the index that the instrument follows."""
    settlement: int
    """Estimated settlement price."""


class IndexPrice(NamedTuple):
    """An index: the price of an asset over several markets."""

    symbol: str
    """Name of the index."""
    time_us: int
    price: int
    open: int
    """A day ago, or as long ago as is known."""
    high: int
    low: int


class FundingRate(NamedTuple):
    """What the holders of a perpetual pay each other."""

    symbol: str
    time_us: int
    rate: int
    """Of the running interval."""
    next_rate: int
    """As predicted for the next interval."""
    settled_rate: int
    """Of the last interval."""
    premium: int
    """Mark over index, as a fraction."""
    interest: int
    """Interest part of the rate."""
    funding_us: int
    """When the running interval ends and is paid."""
    next_funding_us: int
    """When the one after it ends."""
    interval_us: int
    """Length of an interval."""


class OpenInterest(NamedTuple):
    """Contracts that are open."""

    symbol: str
    time_us: int
    contracts: int
    """In the venue's own unit of quantity."""
    base: int
    """In the base asset."""
    quote: int
    """In the quote asset."""


class Liquidation(NamedTuple):
    """A position that was closed by force; the trade is among the trades as well."""

    symbol: str
    time_us: int
    trade_id: int
    """Of the trade that closed it."""
    sell: bool
    """Whether the order of the liquidation was a sale (a long position was closed)."""
    price: int
    """At which it traded."""
    bankruptcy: int
    """Price at which the position's margin was gone; the limit of the order."""
    quantity: int


class OptionGreeks(NamedTuple):
    """Sensitivities and volatilities of one option."""

    symbol: str
    time_us: int
    mark: int
    """Mark price, in the unit of the option's prices."""
    underlying: int
    """Price of the underlying."""
    delta: int
    gamma: int
    vega: int
    """For one point of volatility, in the quote asset."""
    theta: int
    """For one day, in the quote asset."""
    rho: int
    mark_iv: int
    """Implied volatility as a fraction: 0.55 is 55 %."""
    bid_iv: int
    """0 where there is no bid."""
    ask_iv: int
    """0 where there is no offer."""
    rate: int
    """Interest rate used."""


class VolatilityIndex(NamedTuple):
    """An index of implied volatility, such as DVOL."""

    symbol: str
    """Name of the index."""
    time_us: int
    value: int
    """In points: 52.31 is 52.31 % a year."""


class LongShortKind(enum.StrEnum):
    """Whose positions a long/short ratio counts."""

    TOP_ACCOUNTS = "top_accounts"
    TOP_POSITIONS = "top_positions"
    ALL_ACCOUNTS = "all_accounts"


class LongShortRatio(NamedTuple):
    """How many are long for each that is short; told over REST only."""

    symbol: str
    time_us: int
    """Begin of the interval."""
    kind: LongShortKind
    long: int
    """Share that is long; with `short` it is 1."""
    short: int
    ratio: int
    """`long` / `short`."""


class InstrumentEvent(enum.StrEnum):
    """What happened to an instrument."""

    LISTED = "listed"
    EXPIRED = "expired"
    TICK = "tick"
    """Its price step changed."""


class InstrumentChange(NamedTuple):
    """An instrument appeared, expired or changed."""

    symbol: str
    time_us: int
    change: InstrumentEvent
    spec: SymbolSpec
    """As it is from now on; for an expired one, as it was."""
