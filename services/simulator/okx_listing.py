"""Instruments of OKX by their names: `BTC-USDT`, `BTC-USDT-SWAP`, dated futures, options.

Follows "Get instruments" of the OKX API v5 documentation. Contract sizes of well-known instruments
are the venue's; a name that is not well known is made up from the name alone.
"""

import random
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from services.simulator.fixed import SCALE, to_units
from services.simulator.instrument import InstrumentKind, Listed, SymbolSpec

__all__ = ["INSTRUMENT_TYPES", "default_symbols", "instrument_type", "listed", "more_symbols"]

INSTRUMENT_TYPES = {
    InstrumentKind.SPOT: "SPOT",
    InstrumentKind.PERPETUAL: "SWAP",
    InstrumentKind.FUTURE: "FUTURES",
    InstrumentKind.OPTION: "OPTION",
}
"""The venue's `instType` by kind."""

_NAME = re.compile(
    r"(?P<base>[^\s\-:,*]+)-(?P<quote>[^\s\-:,*]+)"
    r"(?:-(?P<swap>SWAP)|-(?P<date>\d{6})(?:-(?P<strike>\d+(?:\.\d+)?)-(?P<right>[CP]))?)?\Z"
)
_LONGEST = 64
_BASES = {
    # base: price, spot tick, spot lot, linear contract, inverse contract, usual size
    "BTC": ("64250", "0.1", "0.00000001", "0.01", "100", "0.15"),
    "ETH": ("2683.8", "0.01", "0.000001", "0.1", "10", "2.5"),
    "SOL": ("148.35", "0.01", "0.000001", "1", "10", "45"),
    "XRP": ("2.4315", "0.0001", "0.000001", "100", "10", "1800"),
    "DOGE": ("0.1942", "0.00001", "0.000001", "1000", "10", "21000"),
    "ADA": ("0.6812", "0.0001", "0.000001", "100", "10", "5200"),
    "LTC": ("91.4", "0.01", "0.000001", "1", "10", "35"),
    "LINK": ("15.842", "0.001", "0.000001", "1", "10", "210"),
}
_DOLLARS = ("USD", "USDT", "USDC")


def instrument_type(spec: SymbolSpec) -> str:
    """`SPOT`, `SWAP`, `FUTURES` or `OPTION`."""
    return INSTRUMENT_TYPES[spec.kind]


def default_symbols(now: datetime | None = None) -> tuple[str, ...]:
    """Two pairs, three swaps, a future and two options, of which the dated expire in a quarter."""
    date = _quarter_end(now or datetime.now(UTC)).strftime("%y%m%d")
    return (
        "BTC-USDT",
        "ETH-USDT",
        "BTC-USDT-SWAP",
        "ETH-USDT-SWAP",
        "BTC-USD-SWAP",
        f"BTC-USD-{date}",
        f"BTC-USD-{date}-65000-C",
        f"BTC-USD-{date}-60000-P",
    )


def more_symbols(count: int, have: Iterable[str]) -> tuple[str, ...]:
    """`have`, continued to `count` names: well-known pairs and swaps, then made-up ones."""
    names = list(dict.fromkeys(have))
    known = [f"{base}-USDT{kind}" for base in _BASES for kind in ("", "-SWAP")]
    names += [name for name in known if name not in names][: max(0, count - len(names))]
    number = 0
    while len(names) < count:
        number += 1
        for name in (f"SIM{number:04d}-USDT", f"SIM{number:04d}-USDT-SWAP"):
            if name not in names and len(names) < count:
                names.append(name)
    return tuple(names[:count]) if count < len(names) else tuple(names)


def listed(symbol: str) -> Listed:
    """Return the instrument of that name.

    Raises:
        ValueError: if OKX would have no such name.

    """
    match = _NAME.match(symbol) if len(symbol) <= _LONGEST else None
    if match is None:
        raise ValueError(
            "expected an OKX instId such as BTC-USDT, BTC-USDT-SWAP, BTC-USD-261225 or "
            f"BTC-USD-261225-65000-C, got {symbol!r}"
        )
    base, quote = match["base"], match["quote"]
    price, tick, lot, linear, inverse, size = _BASES.get(base) or _made_up(base)
    if not (match["swap"] or match["date"]):
        spec = SymbolSpec(symbol, base, quote, to_units(tick), to_units(lot), index=symbol)
        return Listed(spec, to_units(price), to_units(size))
    # `USD_UM` and its like (margined in dollars) are linear, plain `USD` is inverse.
    coin_margined = quote == "USD"
    family = f"{base}-{quote}"
    dollars = quote.split("_")[0]
    if match["strike"]:
        return _option(symbol, base, family, match, price)
    spec = SymbolSpec(
        symbol,
        base,
        dollars,
        to_units(tick),
        SCALE if coin_margined else SCALE // 100,
        InstrumentKind.PERPETUAL if match["swap"] else InstrumentKind.FUTURE,
        to_units(inverse if coin_margined else linear),
        SCALE,
        dollars if coin_margined else base,
        base if coin_margined else dollars,
        inverse=coin_margined,
        listed_us=1_611_916_828_000_000,
        expiry_us=None if match["swap"] else _expiry_us(match["date"]),
        underlying=family,
        family=family,
        index=f"{base}-{dollars}",
    )
    # A usual level: as much as on spot, in contracts.
    usual = to_units(size) * (to_units(price) if coin_margined else SCALE) // spec.contract_size
    return Listed(spec, to_units(price), max(spec.lot, usual))


def _option(symbol: str, base: str, family: str, match: re.Match[str], price: str) -> Listed:
    strike, forward = to_units(match["strike"]), to_units(price)
    spec = SymbolSpec(
        symbol,
        base,
        "USD",
        SCALE // 10_000,
        SCALE,
        InstrumentKind.OPTION,
        SCALE,
        SCALE // 100 if base == "BTC" else SCALE // 10,
        base,
        base,
        expiry_us=_expiry_us(match["date"]),
        strike=strike,
        right=match["right"],
        underlying=family,
        family=family,
        index=family,
    )
    # Prices of options are in the base asset: what it is in the money, and some time value.
    inside = forward - strike if match["right"] == "C" else strike - forward
    value = max(0, inside) * SCALE // forward + SCALE * 6 // 100
    return Listed(spec, value // spec.tick * spec.tick, 80 * SCALE)


def _made_up(base: str) -> tuple[str, str, str, str, str, str]:
    chosen = random.Random(base)  # noqa: S311 - a plausible price, not a secret
    tick, low, high, contract = chosen.choice(
        (("0.01", 60, 900, "1"), ("0.001", 8, 60, "1"), ("0.0001", 1, 8, "10"))
    )
    price = f"{chosen.uniform(low, high):.2f}"
    return price, tick, "0.000001", contract, "10", f"{2000 / float(price):.1f}"


def _expiry_us(date: str) -> int:
    try:
        day = datetime.strptime(date, "%y%m%d").replace(hour=8, tzinfo=UTC)
    except ValueError:
        raise ValueError(f"expected a date as in BTC-USD-261225, got {date!r}") from None
    return int(day.timestamp()) * 1_000_000


def _quarter_end(now: datetime) -> datetime:
    # The last Friday of a quarter that is at least two weeks ahead.
    soonest = now + timedelta(days=14)
    year, month = soonest.year, (soonest.month - 1) // 3 * 3 + 3
    while True:
        after = datetime(year + month // 12, month % 12 + 1, 1, 8, tzinfo=UTC)
        friday = after - timedelta(days=(after.weekday() - 4) % 7 or 7)
        if friday > soonest:
            return friday
        year, month = (year, month + 3) if month < 12 else (year + 1, 3)
