"""The market in Deribit's terms: tickers, order books, trades and indices, as values to write.

Follows `public/ticker`, `public/get_order_book` and the ticker channels of the Deribit
documentation. The result of each is ready for `deribit_numbers.dumps`.
"""

from collections.abc import Mapping

from services.simulator.deribit_instruments import DeribitInstrument, instrument
from services.simulator.deribit_numbers import Float
from services.simulator.deribit_trades import TradeLog
from services.simulator.fixed import SCALE
from services.simulator.market import BookState, Market, NotOfferedError, Ticker
from services.simulator.reference import MarkPrice, OptionGreeks

__all__ = ["DeribitView", "base_volume"]

_BAND = 15  # thousandths of the mark price that trading may be away from it
_GREEK_STEP = SCALE // 100_000
_PERCENT_STEP = SCALE // 100
_CENT = SCALE // 100
_OPTION_STEP = SCALE // 10_000


def base_volume(listed: DeribitInstrument, quantity: int, value: int) -> int:
    """Return what traded in the base currency; `value` is the sum of price times quantity.

    An inverse future's quantity is in US dollars, and so divided by the average price.
    """
    if not listed.whole_amounts:
        return quantity
    return quantity * quantity // value if value else 0


class DeribitView:
    """Puts what the market knows into the venue's fields."""

    def __init__(self, market: Market, trades_kept: int) -> None:
        self.market = market
        self.trades = TradeLog(market, self.trade_marks, trades_kept)

    def trade_marks(self, symbol: str) -> tuple[int, int, int | None]:
        """(index price, mark price, implied volatility in percent or None) now."""
        listed = instrument(symbol)
        mark = self.market.mark_price(symbol)
        volatility = None
        if listed.kind == "option":
            volatility = _percent(self.market.greeks(symbol).mark_iv)
        return _index(mark.index_price), _mark(listed, mark.mark), volatility

    def ticker(self, symbol: str) -> dict[str, object]:
        """Return all fields of the ticker, in the venue's order.

        Raises:
            UnknownSymbolError: for an unlisted symbol.

        """
        listed = instrument(symbol)
        day = self.market.ticker(symbol)
        mark = self.market.mark_price(symbol)
        told: dict[str, object] = {
            "timestamp": day.time_us // 1000,
            "state": "open",
            "stats": self._statistics(listed, day, mark),
        }
        greeks = self.market.greeks(symbol) if listed.kind == "option" else None
        if greeks is not None:
            told["greeks"] = {
                "delta": _stepped(greeks.delta, _GREEK_STEP),
                "gamma": _stepped(greeks.gamma, _GREEK_STEP),
                "vega": _stepped(greeks.vega, _GREEK_STEP),
                "theta": _stepped(greeks.theta, _GREEK_STEP),
                "rho": _stepped(greeks.rho, _GREEK_STEP),
            }
        price = _mark(listed, mark.mark)
        told |= {
            "index_price": Float(_index(mark.index_price)),
            "instrument_name": symbol,
            "last_price": Float(day.last) if day.trades else None,
            "settlement_price": Float(day.open),
            "min_price": Float(_banded(listed, price, -_BAND)),
            "max_price": Float(_banded(listed, price, _BAND)),
            "open_interest": self._open_interest(listed),
            "mark_price": Float(price),
        }
        if listed.perpetual:
            funding = self.market.funding_rate(symbol)
            told["interest_value"] = Float(funding.premium)
            told["current_funding"] = Float(funding.rate)
        if greeks is not None:
            told["interest_rate"] = Float(greeks.rate)
        told["estimated_delivery_price"] = Float(_index(mark.index_price))
        if listed.perpetual:
            told["funding_8h"] = Float(funding.settled_rate)
        told["best_ask_price"] = Float(day.ask)
        told["best_bid_price"] = Float(day.bid)
        if greeks is not None:
            told |= self._volatilities(listed, greeks)
        told["best_ask_amount"] = Float(day.ask_quantity)
        told["best_bid_amount"] = Float(day.bid_quantity)
        return told

    def _statistics(
        self, listed: DeribitInstrument, day: Ticker, mark: MarkPrice
    ) -> dict[str, object]:
        traded = day.trades > 0
        volume = base_volume(listed, day.volume, day.quote_volume)
        dollars = day.volume if listed.whole_amounts else day.quote_volume
        if listed.kind == "option" and listed.inverse:
            dollars = day.quote_volume * mark.index_price // SCALE
        told: dict[str, object] = {
            "high": Float(day.high) if traded else None,
            "low": Float(day.low) if traded else None,
            "price_change": (
                _stepped((day.last - day.open) * 100 * SCALE // day.open, SCALE // 10_000)
                if traded
                else None
            ),
            "volume": Float(volume),
            "volume_usd": Float(dollars),
        }
        if listed.kind == "future":
            told["volume_notional"] = Float(dollars)
        return told

    def _open_interest(self, listed: DeribitInstrument) -> object:
        contracts = self.market.open_interest(listed.name).contracts
        return contracts // SCALE if listed.whole_amounts else Float(contracts)

    def _volatilities(self, listed: DeribitInstrument, greeks: OptionGreeks) -> dict[str, object]:
        future = listed.name.rsplit("-", 2)[0]
        named = future if future in self.market.symbols else f"SYN.{future}"
        return {
            "mark_iv": Float(_percent(greeks.mark_iv)),
            "bid_iv": Float(_percent(greeks.bid_iv)),
            "ask_iv": Float(_percent(greeks.ask_iv)),
            "underlying_price": Float(_index(greeks.underlying)),
            "underlying_index": named,
        }

    def order_book(self, book: BookState) -> dict[str, object]:
        """Return the answer to `public/get_order_book` of a book that was cut to its depth."""
        told = self.ticker(book.symbol)
        for side, levels in (("bid", book.bids), ("ask", book.asks)):
            price, amount = levels[0] if levels else (0, 0)
            told[f"best_{side}_price"] = Float(price)
            told[f"best_{side}_amount"] = Float(amount)
        told["change_id"] = book.update_id
        told["bids"] = [[Float(price), Float(amount)] for price, amount in book.bids]
        told["asks"] = [[Float(price), Float(amount)] for price, amount in book.asks]
        return told

    def option_mark(self, greeks: OptionGreeks) -> Mapping[str, object]:
        """Return a row of `markprice.options`."""
        return {
            "timestamp": greeks.time_us // 1000,
            "iv": _stepped(greeks.mark_iv, SCALE // 10_000),
            "instrument_name": greeks.symbol,
            "mark_price": Float(_mark(instrument(greeks.symbol), greeks.mark)),
        }

    def index_of(self, name: str) -> int:
        """Return the price of an index now.

        Raises:
            LookupError: for an index that there is not.

        """
        if name not in self.market.indices:
            raise NotOfferedError(f"index {name}")
        return _index(self.market.index_price(name).price)


def _mark(listed: DeribitInstrument, price: int) -> int:
    if listed.kind == "option" and listed.inverse:
        return _to_step(price, _OPTION_STEP)
    return _to_step(price, max(1, min(_CENT, listed.tick // 10)))


def _index(price: int) -> int:
    return _to_step(price, _CENT if price > 10 * SCALE else _CENT // 100)


def _banded(listed: DeribitInstrument, price: int, thousandths: int) -> int:
    if listed.kind == "option" and listed.inverse:
        banded = price // 2 if thousandths < 0 else price + SCALE // 50
    else:
        banded = price + price * thousandths // 1000
    return max(listed.tick, banded // listed.tick * listed.tick)


def _percent(fraction: int) -> int:
    return _to_step(fraction * 100, _PERCENT_STEP)


def _stepped(units: int, step: int) -> Float:
    return Float(_to_step(units, step))


def _to_step(units: int, step: int) -> int:
    return (units + step // 2) // step * step
