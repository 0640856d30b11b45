"""Which futures a simulated Binance lists, and what follows from a contract's name alone."""

import random
import re
import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import date

from services.simulator.binance_futures_contracts import delivery_us, name_parts, next_delivery
from services.simulator.fixed import SCALE, to_units
from services.simulator.instrument import InstrumentKind, Listed, SymbolSpec

__all__ = [
    "COIN_M_SYMBOLS",
    "USD_M_SYMBOLS",
    "coin_m_listed",
    "default_coin_m",
    "default_usd_m",
    "more_coin_m",
    "more_usd_m",
    "usd_m_listed",
]

USD_M_SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT")
"""Perpetuals that USD-M lists when nothing else is asked for."""
COIN_M_SYMBOLS = ("BTCUSD_PERP", "ETHUSD_PERP")
"""Perpetuals that COIN-M lists when nothing else is asked for."""

_QUOTES = ("USDT", "USDC", "BUSD", "BTC")
_SPREAD_A_QUARTER = 1.012
_NAME = re.compile(r"^[^\W_]{4,40}$")

# base: tick, lot of USD-M, tick of COIN-M, price, usual size of a level in the base asset
_KNOWN = {
    "BTC": ("0.10", "0.001", "0.1", "77490.0", "2.4"),
    "ETH": ("0.01", "0.001", "0.01", "2476.20", "28"),
    "SOL": ("0.0100", "0.01", "0.001", "148.35", "160"),
    "BNB": ("0.010", "0.01", "0.001", "571.20", "18"),
    "XRP": ("0.0001", "0.1", "0.0001", "2.4315", "9000"),
    "DOGE": ("0.00001", "1", "0.00001", "0.19420", "60000"),
    "ADA": ("0.0001", "1", "0.0001", "0.6812", "15000"),
    "LINK": ("0.001", "0.01", "0.001", "15.842", "700"),
    "AVAX": ("0.0010", "1", "0.001", "24.315", "400"),
    "LTC": ("0.01", "0.001", "0.01", "91.40", "90"),
}


def default_usd_m(now_us: int | None = None) -> tuple[str, ...]:
    """Return `USD_M_SYMBOLS` and BTCUSDT of the next quarterly delivery."""
    return (*USD_M_SYMBOLS, f"BTCUSDT_{_quarter(now_us)}")


def default_coin_m(now_us: int | None = None) -> tuple[str, ...]:
    """Return `COIN_M_SYMBOLS` and BTCUSD of the next quarterly delivery."""
    return (*COIN_M_SYMBOLS, f"BTCUSD_{_quarter(now_us)}")


def _quarter(now_us: int | None) -> str:
    return next_delivery(time.time_ns() // 1000 if now_us is None else now_us).strftime("%y%m%d")


def usd_m_listed(symbol: str) -> Listed:
    """Return the USD-M contract of that name: BTCUSDT, BTCUSDT_261225, and others made up.

    Raises:
        ValueError: if the venue would have no such name.

    """
    pair, day = name_parts(symbol)
    wanted = "expected a USD-M contract such as BTCUSDT or BTCUSDT_261225"
    if not _NAME.match(pair) or symbol != symbol.upper() or symbol.endswith("_PERP"):
        raise ValueError(f"{wanted}, got {symbol!r}")
    quote = next((q for q in _QUOTES if pair.endswith(q) and len(pair) > len(q)), None)
    if quote is None:
        raise ValueError(f"{wanted}, whose pair ends with {', '.join(_QUOTES)}; got {symbol!r}")
    base = pair.removesuffix(quote)
    tick, lot, _, price, quantity = _terms(base)
    spec = SymbolSpec(
        symbol,
        base,
        quote,
        to_units(tick),
        to_units(lot),
        kind=InstrumentKind.PERPETUAL,
        settlement=quote,
        underlying=pair,
        family=pair,
        index=pair,
    )
    return _dated(Listed(spec, to_units(price), to_units(quantity)), day)


def coin_m_listed(symbol: str) -> Listed:
    """Return the COIN-M contract of that name: BTCUSD_PERP, BTCUSD_261225, and others made up.

    Raises:
        ValueError: if the venue would have no such name.

    """
    pair, day = name_parts(symbol)
    base = pair.removesuffix("USD")
    if (
        not _NAME.match(pair)
        or symbol != symbol.upper()
        or base == pair
        or not base
        or (day is None and not symbol.endswith("_PERP"))
    ):
        raise ValueError(
            f"expected a COIN-M contract such as BTCUSD_PERP or BTCUSD_261225, got {symbol!r}"
        )
    _, _, tick, price, quantity = _terms(base)
    size = 100 if base == "BTC" else 10
    contracts = max(1, round(float(quantity) * float(price) / size))
    spec = SymbolSpec(
        symbol,
        base,
        "USD",
        to_units(tick),
        SCALE,
        kind=InstrumentKind.PERPETUAL,
        contract_size=size * SCALE,
        contract_currency="USD",
        settlement=base,
        inverse=True,
        underlying=pair,
        family=pair,
        index=pair,
    )
    return _dated(Listed(spec, to_units(price), contracts * SCALE), day)


def _dated(listing: Listed, day: date | None) -> Listed:
    if day is None:
        return listing
    spec = listing.spec
    price = round(listing.price * _SPREAD_A_QUARTER) // spec.tick * spec.tick
    dated = replace(spec, kind=InstrumentKind.FUTURE, expiry_us=delivery_us(day))
    return Listed(dated, price, max(spec.lot, listing.quantity // 8 // spec.lot * spec.lot))


def _terms(base: str) -> tuple[str, str, str, str, str]:
    if known := _KNOWN.get(base):
        return known
    chosen = random.Random(base)  # noqa: S311 - a plausible price, not a secret
    tick, lot, low, high = chosen.choice(
        (
            ("0.01", "0.001", 60, 900),
            ("0.001", "0.01", 8, 60),
            ("0.0001", "1", 1, 8),
        )
    )
    price = f"{chosen.uniform(low, high):.2f}"
    return tick, lot, tick, price, f"{20_000 / float(price):.0f}"


def more_usd_m(count: int, have: Iterable[str]) -> tuple[str, ...]:
    """Return `have`, continued to `count` names: well-known perpetuals first, then made-up ones."""
    return _more(count, have, "USDT")


def more_coin_m(count: int, have: Iterable[str]) -> tuple[str, ...]:
    """Return `have`, continued to `count` names: well-known perpetuals first, then made-up ones."""
    return _more(count, have, "USD_PERP")


def _more(count: int, have: Iterable[str], suffix: str) -> tuple[str, ...]:
    names = dict.fromkeys(have)
    for base in _KNOWN:
        if len(names) < count:
            names[base + suffix] = None
    number = 0
    while len(names) < count:
        number += 1
        names[f"SIM{number:04d}{suffix}"] = None
    return tuple(names)[:count]
