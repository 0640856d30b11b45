"""Deribit's names of instruments and indexes, and what they say by themselves.

Follows Deribit's "Naming" article: BTC-PERPETUAL and BTC-26DEC25 are inverse (settled in BTC,
priced in USD), BTC_USDC-PERPETUAL is linear, BTC_USDC is spot, BTC-27MAR26-60000-C is an option
with its price in BTC, XRP_USDC-26DEC25-1d02-C one with its price in USDC and a strike of 1.02.

Every canonical symbol comes from one native name only. What is named in no known way (combinations
such as BTC-FS-30SEP22_PERP) keeps the venue's name: no known name leads there.
"""

import re
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

from marketprism.market.v1 import instrument_pb2 as pb

from services.collector.venues.base import InstrumentSpec
from services.shared.decimals import canonical_decimal

__all__ = ["LISTED_KINDS", "DeribitName", "index_symbol", "read_name", "spec_of_name"]

LISTED_KINDS = ("future", "option", "spot")
"""The venue's kinds of instruments that are collected: perpetuals are futures there. Combinations
are not: they come and go by the minute, and their books follow from those of their legs."""

_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_EXPIRY_HOUR = 8  # UTC, of futures and options alike
# One spelling only of each day, so that no two names give one symbol.
_NAME = re.compile(
    r"(?P<base>[A-Z0-9]+)(?:_(?P<quote>[A-Z0-9]+))?"
    r"(?:-(?P<perpetual>PERPETUAL)"
    r"|-(?P<day>[1-9][0-9]?)(?P<month>[A-Z]{3})(?P<year>[0-9]{2})"
    r"(?:-(?P<strike>[0-9]{1,12}(?:d[0-9]{1,12})?)-(?P<right>[CP]))?)?",
    re.ASCII,
)
_CANONICAL = re.compile(
    r"[A-Z0-9]+-[A-Z0-9]+(?:-PERP|-[0-9]{8}(?:-[0-9]{1,12}(?:d[0-9]{1,12})?-[CP])?)?_*", re.ASCII
)
_RIGHTS = {"C": pb.OPTION_RIGHT_CALL, "P": pb.OPTION_RIGHT_PUT}


class DeribitName(NamedTuple):
    """What a name says. `kind` is UNSPECIFIED for a name of no known form."""

    symbol: str
    """Canonical symbol."""
    kind: "pb.InstrumentKind.ValueType"
    """What it is."""
    base: str
    """Base currency."""
    quote: str
    """What prices are in; the base currency for inverse options."""
    settlement: str
    """What it settles in; empty for spot."""
    inverse: bool
    """Whether it is an inverse perpetual or future, counted in units of the quote currency."""
    expiry_time: int
    """Nanoseconds since 1970; 0 when it does not expire."""
    strike: str
    """Strike price; empty when it is no option."""
    right: "pb.OptionRight.ValueType"
    """Right of an option."""
    price_index: str
    """Name of the index that it refers to."""


def _unknown(native_symbol: str) -> DeribitName:
    unspecified = pb.INSTRUMENT_KIND_UNSPECIFIED
    base = native_symbol.partition("-")[0].partition("_")[0]
    right = pb.OPTION_RIGHT_UNSPECIFIED
    # A name that reads like a symbol must not be mistaken for the instrument that has it.
    symbol = f"{native_symbol}_" if _CANONICAL.fullmatch(native_symbol) else native_symbol
    return DeribitName(symbol, unspecified, base, "", "", False, 0, "", right, "")


@lru_cache(maxsize=16_384)
def read_name(native_symbol: str) -> DeribitName:
    """Take a name apart; never raises."""
    match = _NAME.fullmatch(native_symbol)
    if match is None:
        return _unknown(native_symbol)
    base, quote = match["base"], match["quote"] or ""
    perpetual, day = match["perpetual"], match["day"]
    linear = bool(quote)
    index = f"{base}_{quote or 'USD'}".lower()
    none = pb.OPTION_RIGHT_UNSPECIFIED
    if not perpetual and not day:
        if not linear:
            return _unknown(native_symbol)
        spot = pb.INSTRUMENT_KIND_SPOT
        return DeribitName(f"{base}-{quote}", spot, base, quote, "", False, 0, "", none, index)
    if quote == "USD":
        # Would be mistaken for the inverse instrument, whose name has no quote currency.
        return _unknown(native_symbol)
    pair = f"{base}-{quote or 'USD'}"
    settlement = quote or base
    if perpetual:
        kind = pb.INSTRUMENT_KIND_PERPETUAL
        return DeribitName(
            f"{pair}-PERP", kind, base, quote or "USD", settlement, not linear, 0, "", none, index
        )
    try:
        month = _MONTHS.index(match["month"]) + 1
        expiry = datetime(2000 + int(match["year"]), month, int(day), _EXPIRY_HOUR, tzinfo=UTC)
    except ValueError:
        return _unknown(native_symbol)
    expiry_time = int(expiry.timestamp()) * 1_000_000_000
    dated = f"{pair}-{expiry:%Y%m%d}"
    if match["strike"] is None:
        kind = pb.INSTRUMENT_KIND_FUTURE
        return DeribitName(
            dated, kind, base, quote or "USD", settlement, not linear, expiry_time, "", none, index
        )
    return DeribitName(
        # A symbol is one word of a NATS subject: the strike's point stays spelt with a d.
        f"{dated}-{match['strike']}-{match['right']}",
        pb.INSTRUMENT_KIND_OPTION,
        base,
        settlement,
        settlement,
        False,
        expiry_time,
        canonical_decimal(match["strike"].replace("d", ".")),
        _RIGHTS[match["right"]],
        index,
    )


def spec_of_name(exchange: str, native_symbol: str) -> InstrumentSpec:
    """Describe an instrument by its name alone; of one of no known form the kind stays unknown."""
    name = read_name(native_symbol)
    spot = name.kind == pb.INSTRUMENT_KIND_SPOT
    return InstrumentSpec(
        exchange=exchange,
        symbol=name.symbol,
        native_symbol=native_symbol,
        base=name.base,
        quote=name.quote,
        kind=name.kind,
        settlement=name.settlement,
        quantity_unit=pb.QUANTITY_UNIT_QUOTE if name.inverse else pb.QUANTITY_UNIT_BASE,
        expiry_time=name.expiry_time,
        strike=name.strike,
        option_right=name.right,
        underlying="" if spot else name.price_index,
        family=name.settlement,
    )


def index_symbol(index_name: str) -> str:
    """Canonical name of an index: `btc_usd` is BTC-USD."""
    return index_name.upper().replace("_", "-")
