"""Marks, indices, funding, open interest, greeks and ratios of a generated market.

All of it is a function of the seed, the name, the time and the books: nothing is kept, nothing
disturbs the chance by which the books move, and what nobody asks for costs nothing. It is made to
be plausible and exact to compare with, not to be a model of prices.
"""

import math
import random
from collections.abc import Iterable, Mapping
from functools import lru_cache

from services.simulator.fixed import SCALE
from services.simulator.instrument import InstrumentKind
from services.simulator.market import Event
from services.simulator.reference import (
    FundingRate,
    IndexPrice,
    LongShortKind,
    LongShortRatio,
    MarkPrice,
    OpenInterest,
    OptionGreeks,
    VolatilityIndex,
)
from services.simulator.walk import SymbolMarket

__all__ = ["Derivatives"]

_FUNDING_US = 8 * 3600 * 1_000_000
_YEAR_SECONDS = 365 * 86_400.0
_RATE = 0.0
_SHARE_STEP = SCALE // 10_000


@lru_cache(maxsize=50_000)
def _phase(seed: int, name: str) -> float:
    return random.Random(f"phase {seed} {name}").random() * 2 * math.pi  # noqa: S311


class Derivatives:
    """What a generated market tells of its instruments beside books and trades."""

    def __init__(self, seed: int, markets: Mapping[str, SymbolMarket]) -> None:
        """`markets` is looked at whenever something is asked, and may change meanwhile."""
        self._seed = seed
        self._markets = markets
        self._anchors: dict[str, str] = {}
        self.relisted()

    def relisted(self) -> None:
        """Take note that instruments appeared or expired."""
        order = {kind: rank for rank, kind in enumerate(InstrumentKind)}
        self._anchors = {}
        for market in sorted(self._markets.values(), key=lambda each: order[each.spec.kind]):
            if market.spec.index:
                self._anchors.setdefault(market.spec.index, market.spec.symbol)

    @property
    def indices(self) -> Iterable[str]:
        """Names of the indices that the listed instruments follow."""
        return self._anchors.keys()

    def events(self, market: SymbolMarket, time_us: int) -> list[Event]:
        """Return what is told once a second of an instrument, and of the index it leads."""
        spec = market.spec
        out: list[Event] = []
        if spec.derivative:
            out.append(self.mark(market, time_us))
            out.append(self.open_interest(market, time_us))
            if spec.kind is InstrumentKind.PERPETUAL:
                out.append(self.funding(market, time_us))
            elif spec.kind is InstrumentKind.OPTION:
                out.append(self.greeks(market, time_us))
        if spec.index and self._anchors.get(spec.index) == spec.symbol:
            out.append(self.index(spec.index, time_us))
            out.append(self.volatility(spec.index, time_us))
        return out

    def index(self, name: str, time_us: int) -> IndexPrice:
        """Return an index's price: near the middle of the instrument that leads it.

        Raises:
            KeyError: if nothing that is listed follows an index of that name.

        """
        market = self._markets[self._anchors[name]]
        day = market.day
        price, open_price, high, low = (
            self._underlying(market, value)
            for value in (_middle(market), day.first_bar.open, day.high, day.low)
        )
        price += round(price * 1e-4 * self._wave(name, time_us, 40))
        return IndexPrice(
            name, time_us, price, open_price, max(high, price), min(low, price, open_price)
        )

    def _underlying(self, market: SymbolMarket, price: int) -> int:
        # An option's own price says nothing of its underlying, its strike does.
        return price if market.spec.strike is None else market.spec.strike

    def _index_of(self, market: SymbolMarket, time_us: int) -> int:
        name = market.spec.index
        if name in self._anchors:
            return self.index(name, time_us).price
        return self._underlying(market, _middle(market))

    def mark(self, market: SymbolMarket, time_us: int) -> MarkPrice:
        """Return the mark price: the middle of the book, drawn to the index a little."""
        middle, index = _middle(market), self._index_of(market, time_us)
        mark = middle
        if market.spec.kind is not InstrumentKind.OPTION:
            mark = (7 * middle + index) // 8
        return MarkPrice(market.spec.symbol, time_us, max(1, mark), index, index)

    def funding(self, market: SymbolMarket, time_us: int) -> FundingRate:
        """Return the funding rate: near 0.01 % for eight hours, now and then negative."""
        name = market.spec.symbol
        mark = self.mark(market, time_us)
        ends = (time_us // _FUNDING_US + 1) * _FUNDING_US
        rate, next_rate, settled = (
            round(SCALE * (1e-4 + 1.5e-4 * self._wave(name, at, 30_000)))
            for at in (time_us, ends + _FUNDING_US, ends - _FUNDING_US)
        )
        return FundingRate(
            name,
            time_us,
            rate,
            next_rate,
            settled,
            (mark.mark - mark.index_price) * SCALE // mark.index_price,
            SCALE // 10_000,
            ends,
            ends + _FUNDING_US,
            _FUNDING_US,
        )

    def open_interest(self, market: SymbolMarket, time_us: int) -> OpenInterest:
        """Return the open interest, which trades made."""
        spec = market.spec
        contracts = market.open_contracts
        price = self._underlying(market, _middle(market))
        worth = contracts * spec.contract_size // SCALE * spec.multiplier // SCALE
        if spec.inverse:
            base, quote = worth * SCALE // price, worth
        else:
            base, quote = worth, worth * price // SCALE
        return OpenInterest(spec.symbol, time_us, contracts, base, quote)

    def greeks(self, market: SymbolMarket, time_us: int) -> OptionGreeks:
        """Return an option's greeks by Black's formula from a smile that moves slowly.

        Raises:
            ValueError: if it is not an option.

        """
        spec = market.spec
        if spec.strike is None or spec.expiry_us is None:
            raise ValueError(f"{spec.symbol}: expected an option, it is a {spec.kind.value}")
        forward = self._index_of(market, time_us) / SCALE
        strike = spec.strike / SCALE
        years = max(60.0, (spec.expiry_us - time_us) / 1e6) / _YEAR_SECONDS
        moneyness = math.log(strike / forward)
        iv = 0.52 + 0.25 * moneyness * moneyness + 0.02 * self._wave(spec.symbol, time_us, 600)
        root = iv * math.sqrt(years)
        d1 = (-moneyness + iv * iv / 2 * years) / root
        density = math.exp(-d1 * d1 / 2) / math.sqrt(2 * math.pi)
        delta = (1 + math.erf(d1 / math.sqrt(2))) / 2
        call = spec.right != "P"
        d2 = (1 + math.erf((d1 - root) / math.sqrt(2))) / 2
        rho = strike * years * (d2 if call else d2 - 1) / 100
        return OptionGreeks(
            spec.symbol,
            time_us,
            _middle(market),
            round(forward * SCALE),
            round((delta if call else delta - 1) * SCALE),
            round(density / (forward * root) * SCALE),
            round(forward * density * math.sqrt(years) / 100 * SCALE),
            round(-forward * density * iv / (2 * math.sqrt(years)) / 365 * SCALE),
            round(rho * SCALE),
            round(iv * SCALE),
            round((iv - 0.012) * SCALE),
            round((iv + 0.014) * SCALE),
            round(_RATE * SCALE),
        )

    def volatility(self, name: str, time_us: int) -> VolatilityIndex:
        """Return the volatility index of an index: about 50 points."""
        value = 51 + 4 * self._wave(name, time_us, 7200) + 0.4 * self._wave(name, time_us, 45)
        return VolatilityIndex(name, time_us, round(value * 10_000) * (SCALE // 10_000))

    def long_short(
        self, symbol: str, kind: LongShortKind, time_us: int, interval_us: int, count: int
    ) -> list[LongShortRatio]:
        """Return the ratios of the last `count` intervals that began by `time_us`, oldest first."""
        newest = time_us // interval_us
        told = []
        for number in range(newest - count + 1, newest + 1):
            begin = number * interval_us
            chosen = random.Random(f"{self._seed} {symbol} {kind.value} {begin}")  # noqa: S311
            long = round(10_000 * chosen.uniform(0.42, 0.66)) * _SHARE_STEP
            short = SCALE - long
            ratio = (long * 10_000 + short // 2) // short * _SHARE_STEP
            told.append(LongShortRatio(symbol, begin, kind, long, short, ratio))
        return told

    def _wave(self, name: str, time_us: int, seconds: float) -> float:
        # Between -1 and 1.
        return math.sin(time_us / 1e6 * 2 * math.pi / seconds + _phase(self._seed, name))


def _middle(market: SymbolMarket) -> int:
    return (market.best_bid + market.best_ask) // 2
