"""What Binance says of a futures contract: pair, type, delivery, contract size, decimals.

BTCUSDT and BTCUSD_PERP never end; BTCUSDT_261225 and BTCUSD_261225 are delivered on that day, the
last Friday of a quarter, at 8:00 UTC.
"""

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from services.simulator.fixed import DECIMALS, SCALE, canonical
from services.simulator.instrument import InstrumentKind, SymbolSpec

__all__ = [
    "NEVER_MS",
    "Contract",
    "base_amount",
    "contract_of",
    "decimal",
    "decimals_of",
    "delivery_days",
    "delivery_us",
    "name_parts",
    "next_delivery",
]

NEVER_MS = 4_133_404_800_000
"""The `deliveryDate` of a perpetual: Christmas of the year 2100."""

_DELIVERY_HOUR = 8
_DATED = re.compile(r"^(?P<pair>[^_]+)_(?P<day>[0-9]{6})$")


@dataclass(frozen=True, slots=True)
class Contract:
    """One futures contract as Binance describes it."""

    spec: SymbolSpec
    """The instrument."""
    pair: str
    """What it is a future of: BTCUSDT, BTCUSD."""
    kind: str
    """`contractType`: PERPETUAL, CURRENT_QUARTER or NEXT_QUARTER."""
    delivery_ms: int
    """When it is delivered, milliseconds since the epoch; `NEVER_MS` for a perpetual."""
    price_decimals: int
    """Decimals with which the venue prints prices."""
    quantity_decimals: int
    """Decimals with which the venue prints quantities."""

    @property
    def inverse(self) -> bool:
        """COIN-M: quantities are contracts, each worth `size` of the quote asset."""
        return self.spec.inverse

    @property
    def size(self) -> int:
        """Quote asset that an inverse contract stands for, 100 or 10; else 1."""
        return int(self.spec.contract_size // SCALE)

    @property
    def perpetual(self) -> bool:
        """Whether it never ends, and so pays funding."""
        return self.kind == "PERPETUAL"

    def price(self, units: int) -> str:
        """Print a price as the venue does."""
        return decimal(units, self.price_decimals)

    def quantity(self, units: int) -> str:
        """Print a quantity as the venue does."""
        return decimal(units, self.quantity_decimals)

    def amount(self, units: int) -> str:
        """Print what a candle's `q` sums up: quote asset, or base asset of inverse contracts."""
        if self.inverse:
            return decimal(units, DECIMALS)
        return decimal(units, min(DECIMALS, self.price_decimals + self.quantity_decimals))

    def other_volume(self, volume: int, value: int) -> int:
        """Return what the venue tells beside the volume of a candle or a day, units of 1e-8.

        For linear contracts that is `value`, the sum of price times quantity. For inverse ones it
        is the base asset that the contracts stood for, at the average price that follows from it.
        """
        if not self.inverse:
            return value
        return base_amount(volume, value * SCALE // volume, self.size) if volume else 0


def contract_of(spec: SymbolSpec, now_us: int) -> Contract:
    """Return the contract as the venue describes it at that time."""
    pair = spec.underlying or name_parts(spec.symbol)[0]
    kind, delivery_ms = "PERPETUAL", NEVER_MS
    if spec.kind is InstrumentKind.FUTURE and spec.expiry_us is not None:
        delivery_ms = spec.expiry_us // 1000
        current = delivery_us(next_delivery(now_us))
        kind = "CURRENT_QUARTER" if spec.expiry_us <= current else "NEXT_QUARTER"
    price, quantity = decimals_of(spec.tick), decimals_of(spec.lot)
    return Contract(spec, pair, kind, delivery_ms, price, quantity)


def name_parts(symbol: str) -> tuple[str, date | None]:
    """Split a name into its pair and its delivery day, None for what has no such day."""
    dated = _DATED.match(symbol)
    if dated:
        try:
            day = datetime.strptime(dated["day"], "%y%m%d").replace(tzinfo=UTC).date()
        except ValueError:
            return symbol, None
        return dated["pair"], day
    return symbol.removesuffix("_PERP"), None


def delivery_us(day: date) -> int:
    """When what is delivered on that day is delivered, microseconds since the epoch."""
    instant = datetime(day.year, day.month, day.day, _DELIVERY_HOUR, tzinfo=UTC)
    return int(instant.timestamp()) * 1_000_000


def next_delivery(now_us: int) -> date:
    """Return the next quarterly delivery that is still ahead."""
    year = datetime.fromtimestamp(now_us / 1e6, UTC).year
    return next(day for day in delivery_days(year) if delivery_us(day) > now_us)


def delivery_days(year: int) -> list[date]:
    """Return the quarterly delivery days of a year and of the one after it."""
    return [_last_friday(year + later, month) for later in (0, 1) for month in (3, 6, 9, 12)]


def _last_friday(year: int, month: int) -> date:
    last = date(year + month // 12, month % 12 + 1, 1) - timedelta(days=1)
    return last - timedelta(days=(last.weekday() - 4) % 7)


def decimals_of(step: int) -> int:
    """Decimals that a step of so many units of 1e-8 needs: 2 for 0.05, 0 for 1 and 10."""
    _, dot, fraction = canonical(step).partition(".")
    return len(fraction) if dot else 0


def decimal(units: int, decimals: int) -> str:
    """Print units of 1e-8 with that many decimals; with all it has when it has more."""
    if units < 0:
        return "-" + decimal(-units, decimals)
    whole, fraction = divmod(units, SCALE)
    step = 10 ** (DECIMALS - decimals)
    if fraction % step:
        return canonical(units)
    return f"{whole}.{fraction // step:0{decimals}d}" if decimals else str(whole)


def base_amount(contracts: int, price: int, size: int) -> int:
    """Return the base asset that inverse contracts stand for at a price, rounded down."""
    return contracts * size * SCALE // price if price else 0
