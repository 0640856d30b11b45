"""What Deribit lists, and what can be told from an instrument's name alone.

Follows "Naming" and `public/get_instruments` of the Deribit documentation: `BTC-PERPETUAL`,
`SOL_USDC-PERPETUAL`, `BTC-25DEC26`, `BTC-25DEC26-100000-C`, `XRP_USDC-25DEC26-1d02-C`.
"""

import calendar
import datetime
import math
import random
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from services.simulator.deribit_numbers import Float, rounded
from services.simulator.fixed import SCALE, to_units
from services.simulator.instrument import InstrumentKind, Listed, SymbolSpec

__all__ = [
    "Asset",
    "DeribitInstrument",
    "default_names",
    "expiry_text",
    "instrument",
    "listed",
    "more_names",
    "strike_text",
]

_NEVER_MS = 32_503_708_800_000
_LISTED_MS = 1_534_242_287_000
_NAME = re.compile(
    r"^(?P<base>[A-Z0-9]{2,12})(?:_(?P<quote>USDC|USDT))?"
    r"-(?:(?P<perpetual>PERPETUAL)|(?P<day>[1-9]|[12]\d|3[01])(?P<month>[A-Z]{3})(?P<year>\d{2})"
    r"(?:-(?P<strike>\d{1,12}(?:d\d{1,8})?)-(?P<side>[CP]))?)$"
)
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_AHEAD_YEARS = 0.25
_FORWARD = 1.01
_COMMISSION = to_units("0.0003")
_FUTURE_COMMISSION = to_units("0.0005")
_LIQUIDATION_COMMISSION = to_units("0.0075")
_LEAST_DAYS_AHEAD = 30


@dataclass(frozen=True, slots=True)
class Asset:
    """A base currency with what plausible markets need."""

    price: str
    """In US dollars."""
    volatility: float
    """A year's, at the money."""
    inverse_tick: str
    """Price step of the inverse perpetual."""
    inverse_contract: str
    """US dollars of an inverse contract."""
    linear_tick: str
    """Price step of the linear perpetual."""
    linear_contract: str
    """Base currency of a linear contract, also its least order."""
    option_contract: str
    """Base currency of a linear option contract."""


_ASSETS = {
    "BTC": Asset("64250", 0.52, "0.5", "10", "0.1", "0.0001", "0.01"),
    "ETH": Asset("2683.8", 0.68, "0.05", "1", "0.01", "0.001", "0.1"),
    "SOL": Asset("148.35", 0.85, "0.01", "1", "0.01", "0.1", "10"),
    "XRP": Asset("2.4315", 0.95, "0.0001", "1", "0.0001", "1", "1000"),
    "DOGE": Asset("0.1942", 1.05, "0.00001", "1", "0.00001", "1", "10000"),
    "AVAX": Asset("24.315", 0.9, "0.001", "1", "0.001", "0.1", "10"),
    "LINK": Asset("15.842", 0.9, "0.001", "1", "0.001", "0.1", "10"),
}


@dataclass(frozen=True, slots=True)
class DeribitInstrument:
    """One listed instrument; money and amounts in units of 1e-8."""

    name: str
    """The venue's name."""
    kind: str
    """`future` (perpetuals included) or `option`."""
    base: str
    """Base currency."""
    quote: str
    """What prices are in: USD, USDC, or the base currency of an inverse option."""
    counter: str
    """The other side of the pair: USD or USDC."""
    settlement: str
    """What profit is paid in."""
    inverse: bool
    """Settled in the base currency; futures then count amounts in US dollars."""
    perpetual: bool
    """Never expires, pays funding."""
    expiration_ms: int
    """End of trading, Unix milliseconds."""
    strike: int | None
    """Of an option, in the counter currency."""
    call: bool
    """Of an option: right to buy."""
    tick: int
    """Price step."""
    tick_steps: tuple[tuple[int, int], ...]
    """(price above which it applies, coarser step)."""
    contract: int
    """Size of a contract in the unit of amounts."""
    least_amount: int
    """Smallest order, and the step of amounts."""
    price: int
    """Where the price begins and tends back to."""
    amount: int
    """A usual amount of a level."""

    @property
    def index(self) -> str:
        """Name of the price index, such as `btc_usd`."""
        return f"{self.base}_{self.counter}".lower()

    @property
    def grid(self) -> int:
        """The coarsest price step: a price on it is valid however high it rises."""
        return max(self.tick, *(step for _, step in self.tick_steps), 0)

    @property
    def whole_amounts(self) -> bool:
        """Whether amounts are whole US dollars."""
        return self.inverse and self.kind == "future"

    @property
    def settlement_period(self) -> str:
        """`perpetual`, or by how the expiration lies."""
        return "perpetual" if self.perpetual else "month"

    @property
    def number(self) -> int:
        """The venue's numeric id; here it comes of the name."""
        return zlib.crc32(self.name.encode()) % 900_000 + 100_000

    def describe(self, tick: int, state: str = "open") -> dict[str, object]:
        """Return what `public/get_instruments` tells, ready for `deribit_numbers.dumps`.

        `tick` is the price step in force; the steps by price hold until it is changed.
        """
        unchanged = tick == self.grid
        told: dict[str, object] = {
            "price_index": self.index,
            "kind": self.kind,
            "instrument_name": self.name,
            "maker_commission": Float(_COMMISSION if self.kind == "option" else 0),
            "taker_commission": Float(_COMMISSION if self.kind == "option" else _FUTURE_COMMISSION),
            "instrument_type": "reversed" if self.inverse else "linear",
            "expiration_timestamp": self.expiration_ms,
            "creation_timestamp": _LISTED_MS,
            "is_active": state == "open",
            "state": state,
            "rfq": False,
            "tick_size": Float(self.tick if unchanged else tick),
            "tick_size_steps": [
                {"tick_size": Float(step), "above_price": Float(above)}
                for above, step in (self.tick_steps if unchanged else ())
            ],
            "contract_size": Float(self.contract),
            "instrument_id": self.number,
            "min_trade_amount": Float(self.least_amount),
            "block_trade_commission": Float(_COMMISSION),
            "block_trade_min_trade_amount": Float(self.least_amount * 1000),
            "block_trade_tick_size": Float(self.tick),
            "settlement_currency": self.settlement,
            "settlement_period": self.settlement_period,
            "base_currency": self.base,
            "counter_currency": self.counter,
            "quote_currency": self.quote,
        }
        if self.strike is not None:
            told["strike"] = Float(self.strike)
            told["option_type"] = "call" if self.call else "put"
        else:
            told["future_type"] = told["instrument_type"]
            told["max_leverage"] = 50
            told["max_liquidation_commission"] = Float(_LIQUIDATION_COMMISSION)
        return told

    def listed(self) -> Listed:
        """Return it as the generated market takes it."""
        kind = InstrumentKind.OPTION if self.kind == "option" else InstrumentKind.FUTURE
        spec = SymbolSpec(
            symbol=self.name,
            base=self.base,
            quote=self.quote,
            tick=self.grid,
            lot=self.least_amount,
            kind=InstrumentKind.PERPETUAL if self.perpetual else kind,
            contract_currency="USD" if self.whole_amounts else "",
            settlement=self.settlement,
            inverse=self.whole_amounts,
            listed_us=_LISTED_MS * 1000,
            expiry_us=None if self.perpetual else self.expiration_ms * 1000,
            strike=self.strike,
            right=None if self.strike is None else "C" if self.call else "P",
            underlying=self.name.rsplit("-", 2)[0] if self.strike is not None else self.index,
            family=self.index,
            index=self.index,
        )
        return Listed(spec, self.price, self.amount)


def listed(name: str) -> Listed:
    """Return the instrument of that name as the generated market takes it.

    Raises:
        ValueError: if it is not spelt as the venue spells perpetuals, futures and options.

    """
    return instrument(name).listed()


def strike_text(strike: int) -> str:
    """Return a strike in units of 1e-8 as names spell it: `60000`, and `1d02` for 1.02."""
    whole, fraction = divmod(strike, SCALE)
    return f"{whole}d{fraction:08d}".rstrip("0") if fraction else str(whole)


def expiry_text(day: datetime.date) -> str:
    """Return an expiration day as names spell it: `25DEC26`, `4JUN27`."""
    return f"{day.day}{_MONTHS[day.month - 1]}{day.year % 100:02d}"


def default_names(today: datetime.date) -> tuple[str, ...]:
    """Return what a simulated Deribit lists when nothing else is asked for.

    The dated ones expire on the quarter's last Friday that is thirty days ahead or more.
    """
    dated = expiry_text(_quarter_end(today))
    return (
        "BTC-PERPETUAL",
        "ETH-PERPETUAL",
        "BTC_USDC-PERPETUAL",
        "SOL_USDC-PERPETUAL",
        f"BTC-{dated}",
        f"BTC-{dated}-60000-C",
        f"BTC-{dated}-60000-P",
        f"BTC-{dated}-70000-C",
        f"BTC-{dated}-100000-C",
    )


def more_names(count: int, have: Iterable[str], today: datetime.date) -> tuple[str, ...]:
    """`have`, continued to `count` instruments: well-known ones first, then made-up names."""
    dated = expiry_text(_quarter_end(today))
    known = [
        *default_names(today),
        *(f"{base}_USDC-PERPETUAL" for base in _ASSETS if base not in ("BTC", "SOL")),
        f"ETH-{dated}",
        f"ETH-{dated}-2800-C",
        f"ETH-{dated}-2600-P",
        f"XRP_USDC-{dated}-2d5-C",
        f"XRP_USDC-{dated}-2d2-P",
    ]
    names = list(dict.fromkeys(have))
    names += [name for name in known if name not in names][: max(0, count - len(names))]
    number = 0
    while len(names) < count:
        number += 1
        name = f"SIM{number:04d}_USDC-PERPETUAL"
        if name not in names:
            names.append(name)
    return tuple(names)


@lru_cache(maxsize=20_000)
def instrument(name: str) -> DeribitInstrument:
    """Return the instrument of that name; what is made up depends on the name alone.

    Raises:
        ValueError: if it is not spelt as the venue spells perpetuals, futures and options.

    """
    parts = _NAME.match(name)
    if parts is None:
        raise ValueError(
            "expected an instrument such as BTC-PERPETUAL, SOL_USDC-PERPETUAL, BTC-25DEC26, "
            f"BTC-25DEC26-100000-C or XRP_USDC-25DEC26-2d5-P, got {name!r}"
        )
    base, quote = parts["base"], parts["quote"]
    inverse = quote is None
    if inverse and base not in ("BTC", "ETH"):
        raise ValueError(f"expected BTC or ETH for an inverse instrument, got {name!r}")
    asset = _asset(base)
    counter = quote or "USD"
    expiration_ms = _NEVER_MS if parts["perpetual"] else _expiration(name, parts)
    # A name alone must settle the price, so the clock may not: all that is dated begins as if its
    # last day were a quarter of a year ahead.
    forward = to_units(asset.price) * (1.0 if parts["perpetual"] else _FORWARD)
    if parts["strike"] is None:
        tick = to_units(asset.inverse_tick if inverse else asset.linear_tick)
        contract = to_units(asset.inverse_contract if inverse else asset.linear_contract)
        dollars = 60_000 if base in ("BTC", "ETH") else 8_000
        worth = SCALE * dollars
        amount = worth if inverse else int(worth * SCALE / forward)
        return DeribitInstrument(
            name=name,
            kind="future",
            base=base,
            quote=counter,
            counter=counter,
            settlement=base if inverse else counter,
            inverse=inverse,
            perpetual=parts["perpetual"] is not None,
            expiration_ms=expiration_ms,
            strike=None,
            call=False,
            tick=tick,
            tick_steps=(),
            contract=contract,
            least_amount=contract,
            price=max(tick * 50, int(forward) // tick * tick),
            amount=max(contract, amount // contract * contract),
        )
    strike = to_units(parts["strike"].replace("d", "."))
    if not strike:
        raise ValueError(f"expected a strike above 0, got {name!r}")
    call = parts["side"] == "C"
    volatility = _smile(asset.volatility, forward, strike)
    value = _option_value(forward, strike, volatility, call=call)
    steps: tuple[tuple[int, int], ...]
    if inverse:
        tick, steps = to_units("0.0001"), ((to_units("0.005"), to_units("0.0005")),)
        contract, least = SCALE, to_units("0.1" if base == "BTC" else "1")
        price = int(value / forward * SCALE)
    else:
        tick, steps = to_units(asset.linear_tick) * 5, ()
        contract = least = to_units(asset.option_contract)
        price = int(value)
    grid = max(tick, *(step for _, step in steps), 0)
    return DeribitInstrument(
        name=name,
        kind="option",
        base=base,
        quote=base if inverse else counter,
        counter=counter,
        settlement=base if inverse else counter,
        inverse=inverse,
        perpetual=False,
        expiration_ms=expiration_ms,
        strike=strike,
        call=call,
        tick=tick,
        tick_steps=steps,
        contract=contract,
        least_amount=least,
        price=max(grid * 4, price // grid * grid),
        amount=least * 40,
    )


def _asset(base: str) -> Asset:
    if known := _ASSETS.get(base):
        return known
    chosen = random.Random(base)  # noqa: S311 - a plausible price, not a secret
    tick, contract, low, high = chosen.choice(
        (("0.01", "0.01", 60, 900), ("0.001", "0.1", 8, 60), ("0.0001", "1", 1, 8))
    )
    price = rounded(chosen.uniform(low, high), 2)
    return Asset(f"{price / SCALE:.2f}", 0.9, tick, "1", tick, contract, contract)


def _smile(volatility: float, forward: float, strike: int) -> float:
    moneyness = strike / forward - 1
    return volatility * (1 + 0.35 * moneyness * moneyness - 0.08 * moneyness)


def _option_value(forward: float, strike: float, volatility: float, *, call: bool) -> float:
    # Black's formula of 1976, by which the venue marks its options.
    spread = volatility * math.sqrt(_AHEAD_YEARS)
    d1 = (math.log(forward / strike) + spread * spread / 2) / spread
    value = forward * _normal(d1) - strike * _normal(d1 - spread)
    return value if call else value - forward + strike


def _normal(x: float) -> float:
    return (1.0 + math.erf(x / math.sqrt(2.0))) / 2


def _quarter_end(today: datetime.date) -> datetime.date:
    year, month = today.year, (today.month - 1) // 3 * 3 + 3
    while True:
        day = datetime.date(year, month, calendar.monthrange(year, month)[1])
        day -= datetime.timedelta(days=(day.weekday() - calendar.FRIDAY) % 7)
        if (day - today).days >= _LEAST_DAYS_AHEAD:
            return day
        year, month = (year, month + 3) if month < 12 else (year + 1, 3)


def _expiration(name: str, parts: re.Match[str]) -> int:
    try:
        month = _MONTHS.index(parts["month"]) + 1
        day = datetime.datetime(
            2000 + int(parts["year"]), month, int(parts["day"]), 8, tzinfo=datetime.UTC
        )
    except ValueError:
        raise ValueError(f"expected a day that there is, such as 25DEC26, got {name!r}") from None
    return int(day.timestamp()) * 1000
