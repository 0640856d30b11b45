"""The trades of each instrument as Deribit tells them, the same over WebSocket and HTTP."""

from collections import deque
from collections.abc import Callable
from itertools import islice

from services.simulator.deribit_frames import DeribitTrade
from services.simulator.deribit_instruments import instrument
from services.simulator.market import Market, Trade

__all__ = ["TradeLog", "TradeMarks"]

_MAKER_LIQUIDATED = 211
_BOTH_LIQUIDATED = 7

TradeMarks = Callable[[str], tuple[int, int, int | None]]
"""(index price, mark price, implied volatility in percent or None) of an instrument now."""


class TradeLog:
    """Each trade is put into the venue's words once; later questions get the same words."""

    def __init__(self, market: Market, marks: TradeMarks, kept: int) -> None:
        self._market = market
        self._marks = marks
        self._kept = kept
        self._told: dict[str, deque[DeribitTrade]] = {}

    def all(self, symbol: str) -> deque[DeribitTrade]:
        """Return the trades that are kept, oldest first.

        Raises:
            UnknownSymbolError: for an unlisted symbol.

        """
        newest = self._market.recent_trades(symbol, 1)
        told = self._told.get(symbol)
        if told is None:
            told = self._told[symbol] = deque(maxlen=self._kept)
        last_seq = told[-1].trade_seq if told else 0
        if newest and newest[0].trade_id > last_seq:
            missing = min(self._kept, newest[0].trade_id - last_seq)
            marks = self._marks(symbol)
            for trade in self._market.recent_trades(symbol, missing):
                told.append(_told(trade, told[-1] if told else None, marks))
        return told

    def forget(self, symbol: str) -> None:
        """Let go of the trades of an instrument that is listed no more."""
        self._told.pop(symbol, None)

    def one(self, symbol: str, trade_seq: int) -> DeribitTrade | None:
        """Return one trade; None when it is no longer kept."""
        told = self.all(symbol)
        back = told[-1].trade_seq - trade_seq if told else -1
        return told[len(told) - 1 - back] if 0 <= back < len(told) else None

    def between(
        self, symbol: str, least: int | None, most: int | None, count: int, *, newest_first: bool
    ) -> tuple[list[DeribitTrade], bool]:
        """(trades, whether there are more) with sequences of at least `least` and at most `most`.

        Counted from the newest when `newest_first`, else from the oldest.
        """
        told = self.all(symbol)
        if not told:
            return [], False
        first = told[0].trade_seq
        begin = max(0, (first if least is None else least) - first)
        end = len(told) if most is None else min(len(told), most - first + 1)
        if end <= begin:
            return [], False
        if newest_first:
            chosen = list(islice(told, max(begin, end - count), end))[::-1]
        else:
            chosen = list(islice(told, begin, min(end, begin + count)))
        return chosen, end - begin > count


def _told(
    trade: Trade, before: DeribitTrade | None, marks: tuple[int, int, int | None]
) -> DeribitTrade:
    listed = instrument(trade.symbol)
    index, mark, iv = marks
    if before is None or trade.price > before.price:
        direction = 0
    elif trade.price < before.price:
        direction = 2
    else:
        direction = 1 if before.tick_direction < 2 else 3
    liquidation = None
    if trade.liquidation:
        liquidation = "T" if trade.trade_id % _BOTH_LIQUIDATED else "MT"
    elif listed.kind == "future" and not trade.trade_id % _MAKER_LIQUIDATED:
        liquidation = "M"
    # The venue puts the currency's name before the id, but for Bitcoin; its ids count the trades of
    # a currency, these those of an instrument, by which the truth can be asked.
    prefix = "" if listed.settlement == "BTC" else f"{listed.settlement}-"
    return DeribitTrade(
        name=trade.symbol,
        time_us=trade.time_us,
        trade_seq=trade.trade_id,
        trade_id=f"{prefix}{trade.trade_id}",
        price=trade.price,
        amount=trade.quantity,
        contracts=trade.quantity * 10**8 // listed.contract,
        sell=trade.buyer_is_maker,
        tick_direction=direction,
        index_price=index,
        mark_price=mark,
        liquidation=liquidation,
        iv=iv,
        match_id=trade.time_us * 128 + trade.trade_id % 128,
    )
