"""Which pairs a generated market lists, and what can be told from a symbol's name alone."""

import random
import re
from collections.abc import Iterable

from services.simulator.fixed import to_units
from services.simulator.instrument import Listed, SymbolSpec

__all__ = ["DEFAULT_SYMBOLS", "Listed", "listed", "more_symbols", "split_symbol"]

_QUOTES = (
    "FDUSD",
    "USDT",
    "USDC",
    "BUSD",
    "TUSD",
    "BTC",
    "ETH",
    "BNB",
    "EUR",
    "TRY",
    "BRL",
    "GBP",
    "JPY",
    "USD",
)


def _listed(base: str, quote: str, tick: str, lot: str, price: str, quantity: str) -> Listed:
    spec = SymbolSpec(base + quote, base, quote, to_units(tick), to_units(lot))
    return Listed(spec, to_units(price), to_units(quantity))


_KNOWN = {
    entry.spec.symbol: entry
    for entry in (
        _listed("BTC", "USDT", "0.01", "0.00001", "64250.00", "0.15"),
        _listed("ETH", "USDT", "0.01", "0.0001", "2683.80", "2.5"),
        _listed("SOL", "USDT", "0.01", "0.001", "148.35", "45"),
        _listed("BNB", "USDT", "0.01", "0.001", "571.20", "8"),
        _listed("XRP", "USDT", "0.0001", "0.1", "2.4315", "1800"),
        _listed("DOGE", "USDT", "0.00001", "1", "0.19420", "21000"),
        _listed("ADA", "USDT", "0.0001", "0.1", "0.6812", "5200"),
        _listed("AVAX", "USDT", "0.001", "0.01", "24.315", "130"),
        _listed("LINK", "USDT", "0.001", "0.01", "15.842", "210"),
        _listed("LTC", "USDT", "0.01", "0.001", "91.40", "35"),
        _listed("ETH", "BTC", "0.00001", "0.0001", "0.04177", "6"),
        _listed("BTC", "EUR", "0.01", "0.00001", "59120.00", "0.08"),
    )
}

DEFAULT_SYMBOLS = ("BTCUSDT", "ETHUSDT", "SOLUSDT", "BNBUSDT", "XRPUSDT")
"""What a generated market lists when nothing else is asked for."""

_NAME = re.compile(r"^[^\W_a-z]{2,40}$")


def split_symbol(symbol: str) -> tuple[str, str]:
    """Return (base, quote) by the usual quote assets: BTCUSDT is BTC and USDT.

    An unknown quote asset is taken to be the last three characters.
    """
    for quote in _QUOTES:
        if symbol.endswith(quote) and len(symbol) > len(quote):
            return symbol[: -len(quote)], quote
    return symbol[:-3] or symbol, symbol[-3:]


def listed(symbol: str) -> Listed:
    """Return the pair of that name: well-known ones as the venue lists them, others made up.

    What is made up depends on the name alone, never on a seed or on other symbols.

    Raises:
        ValueError: if the name is not 5 to 40 upper-case letters and digits of any script.

    """
    if known := _KNOWN.get(symbol):
        return known
    if not _NAME.match(symbol) or len(symbol) < 5 or symbol != symbol.upper():
        raise ValueError(
            f"expected a symbol of 5 to 40 upper-case letters and digits such as BTCUSDT, "
            f"got {symbol!r}"
        )
    base, quote = split_symbol(symbol)
    chosen = random.Random(symbol)  # noqa: S311 - a plausible price, not a secret
    tick, lot, low, high = chosen.choice(
        (
            ("0.01", "0.001", 60, 900),
            ("0.001", "0.01", 8, 60),
            ("0.0001", "0.1", 1, 8),
        )
    )
    price = f"{chosen.uniform(low, high):.2f}"
    return _listed(base, quote, tick, lot, price, f"{2000 / float(price):.1f}")


def more_symbols(count: int, have: Iterable[str] = DEFAULT_SYMBOLS) -> tuple[str, ...]:
    """`have`, continued to `count` symbols: well-known ones first, then made-up names."""
    names = list(dict.fromkeys(have))
    names += [name for name in _KNOWN if name not in names][: max(0, count - len(names))]
    number = 0
    while len(names) < count:
        number += 1
        name = f"SIM{number:04d}USDT"
        if name not in names:
            names.append(name)
    return tuple(names[:count]) if count < len(names) else tuple(names)
