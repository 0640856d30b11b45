"""Names of Deribit's channels, read: `book.BTC-PERPETUAL.100ms` and its kin.

Follows "Subscriptions" of the Deribit documentation.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

__all__ = ["CURRENCIES", "KINDS", "RESOLUTIONS", "Channel", "ChannelKind", "parse_channel"]

KINDS = ("future", "option", "spot", "future_combo", "option_combo", "any")
"""Kinds of instruments that a channel or a list may be about."""
CURRENCIES = ("BTC", "ETH", "USDC", "USDT", "EURR", "any")
"""Settlement currencies that a channel or a list may be about."""
RESOLUTIONS: Mapping[str, int] = {
    **{str(minutes): minutes for minutes in (1, 3, 5, 10, 15, 30, 60, 120, 180, 360, 720)},
    "1D": 1440,
}
"""Minutes of a candle by the channel's spelling."""

_LONGEST_NAME = 100
_DEPTHS = ("1", "10", "20")
_GROUPS = ("none", "1", "2", "5", "10", "25", "100", "250")
_INTERVALS = ("100ms", "agg2", "raw")
_INSTRUMENT = re.compile(r"^[A-Z0-9_]+(?:-[A-Za-z0-9]+)*$")
_INDEX = re.compile(r"^[a-z0-9]+_[a-z0-9]+$")


class ChannelKind(StrEnum):
    """What a channel tells."""

    BOOK = "book"
    """A snapshot, then changes."""
    BOOK_LEVELS = "book levels"
    """The best levels, whole every time."""
    TICKER = "ticker"
    TRADES = "trades"
    """Of one instrument."""
    TRADES_OF_KIND = "trades of a kind"
    """Of all instruments of a kind and currency."""
    QUOTE = "quote"
    PERPETUAL = "perpetual"
    CHART = "chart"
    PRICE_INDEX = "price index"
    VOLATILITY_INDEX = "volatility index"
    OPTION_MARKS = "option marks"
    INSTRUMENT_STATE = "instrument state"


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel's name, taken apart."""

    name: str
    kind: ChannelKind
    instrument: str | None = None
    """The instrument that it is about; None for what is about many or about an index."""
    index: str | None = None
    """The index that it is about, such as `btc_usd`."""
    interval: str = ""
    """`100ms`, `agg2` or `raw`; empty where there is no choice."""
    depth: int | None = None
    """Levels a side of a grouped book."""
    group: int = 0
    """Grouping of a grouped book's prices, in the venue's steps; 0 is none."""
    instrument_kind: str | None = None
    """`future`, `option`, ... or `any`."""
    currency: str | None = None
    """Settlement currency or `any`."""
    resolution: str | None = None
    """Of a chart."""

    @property
    def needs_authentication(self) -> bool:
        """Whether the public may not have it."""
        return self.interval == "raw"


def parse_channel(name: str) -> Channel | None:
    """Return the channel of that name; None for what the venue does not know.

    Whether the instrument or the index is listed is not looked at.
    """
    return _parse(name) if len(name) <= _LONGEST_NAME else None


@lru_cache(maxsize=50_000)
def _parse(name: str) -> Channel | None:
    parts = name.split(".")
    reader = _READERS.get(parts[0])
    return reader(name, parts) if reader is not None else None


def _book(name: str, parts: list[str]) -> Channel | None:
    if len(parts) == 3 and _instrument(parts[1]) and parts[2] in _INTERVALS:
        return Channel(name, ChannelKind.BOOK, parts[1], interval=parts[2])
    if (
        len(parts) == 5
        and _instrument(parts[1])
        and parts[2] in _GROUPS
        and parts[3] in _DEPTHS
        and parts[4] in _INTERVALS
    ):
        return Channel(
            name,
            ChannelKind.BOOK_LEVELS,
            parts[1],
            interval=parts[4],
            depth=int(parts[3]),
            group=0 if parts[2] == "none" else int(parts[2]),
        )
    return None


def _of_instrument(kind: ChannelKind) -> "_Reader":
    def read(name: str, parts: list[str]) -> Channel | None:
        if len(parts) == 3 and _instrument(parts[1]) and parts[2] in _INTERVALS:
            return Channel(name, kind, parts[1], interval=parts[2])
        return None

    return read


def _trades(name: str, parts: list[str]) -> Channel | None:
    if len(parts) == 4 and parts[1] in KINDS and parts[2] in CURRENCIES and parts[3] in _INTERVALS:
        return Channel(
            name,
            ChannelKind.TRADES_OF_KIND,
            interval=parts[3],
            instrument_kind=parts[1],
            currency=parts[2],
        )
    return _of_instrument(ChannelKind.TRADES)(name, parts)


def _quote(name: str, parts: list[str]) -> Channel | None:
    if len(parts) == 2 and _instrument(parts[1]):
        return Channel(name, ChannelKind.QUOTE, parts[1])
    return None


def _chart(name: str, parts: list[str]) -> Channel | None:
    if (
        len(parts) == 4
        and parts[1] == "trades"
        and _instrument(parts[2])
        and parts[3] in RESOLUTIONS
    ):
        return Channel(name, ChannelKind.CHART, parts[2], resolution=parts[3])
    return None


def _of_index(kind: ChannelKind) -> "_Reader":
    def read(name: str, parts: list[str]) -> Channel | None:
        if len(parts) == 2 and _INDEX.match(parts[1]):
            return Channel(name, kind, index=parts[1])
        return None

    return read


def _option_marks(name: str, parts: list[str]) -> Channel | None:
    if len(parts) == 3 and parts[1] == "options" and _INDEX.match(parts[2]):
        return Channel(name, ChannelKind.OPTION_MARKS, index=parts[2])
    return None


def _state(name: str, parts: list[str]) -> Channel | None:
    if len(parts) == 4 and parts[1] == "state" and parts[2] in KINDS and parts[3] in CURRENCIES:
        return Channel(
            name,
            ChannelKind.INSTRUMENT_STATE,
            instrument_kind=parts[2],
            currency=parts[3],
        )
    return None


def _instrument(text: str) -> bool:
    return _INSTRUMENT.match(text) is not None


_Reader = Callable[[str, list[str]], Channel | None]

_READERS: Mapping[str, _Reader] = {
    "book": _book,
    "ticker": _of_instrument(ChannelKind.TICKER),
    "trades": _trades,
    "quote": _quote,
    "perpetual": _of_instrument(ChannelKind.PERPETUAL),
    "chart": _chart,
    "deribit_price_index": _of_index(ChannelKind.PRICE_INDEX),
    "deribit_volatility_index": _of_index(ChannelKind.VOLATILITY_INDEX),
    "markprice": _option_marks,
    "instrument": _state,
}
