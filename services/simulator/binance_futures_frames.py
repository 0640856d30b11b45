"""Binance futures market streams, frame by frame, as the venue writes them in 2026.

Follows "Websocket Market Streams" of the USD-M and the COIN-M documents and frames received from
both in August and September 2026: since then payloads carry `st`, 1 for USD-M and 2 for COIN-M.
Pure: an event and a contract in, bytes out.
"""

from collections.abc import Sequence

from services.simulator.binance_futures_contracts import Contract, decimal
from services.simulator.binance_futures_market import OtherTrade
from services.simulator.fixed import SCALE, eight_decimals
from services.simulator.market import (
    AggregateTrade,
    BestPrices,
    BookState,
    Candle,
    DepthUpdate,
    Levels,
    Ticker,
    Trade,
)
from services.simulator.reference import (
    FundingRate,
    IndexPrice,
    InstrumentChange,
    InstrumentEvent,
    Liquidation,
    MarkPrice,
)

__all__ = ["COIN_M", "USD_M", "FuturesFrames"]

USD_M = 1
"""`st` of USD-M payloads."""
COIN_M = 2
"""`st` of COIN-M payloads."""

_CACHED = 200_000
_BRACKETS = (
    '[{"bs":1,"bnf":0,"bnc":50000,"mmr":0.004,"cf":0,"mi":51,"ma":125},'
    '{"bs":2,"bnf":50000,"bnc":600000,"mmr":0.005,"cf":50,"mi":21,"ma":50}]'
)


class _Texts(dict[int, bytes]):
    """Numbers as parts of a level, by units of 1e-8; making them is the dearest of a frame."""

    def __init__(self, decimals: int, before: str, after: str) -> None:
        super().__init__()
        self._decimals = decimals
        self._before = before
        self._after = after

    def __missing__(self, units: int) -> bytes:
        if len(self) >= _CACHED:
            self.clear()
        text = f"{self._before}{decimal(units, self._decimals)}{self._after}".encode()
        self[units] = text
        return text


class FuturesFrames:
    """Writes the frames of one of the two futures venues."""

    def __init__(self, symbol_type: int) -> None:
        """`symbol_type` is `USD_M` or `COIN_M`."""
        self._type = symbol_type
        self._prices: dict[int, _Texts] = {}
        self._quantities: dict[int, _Texts] = {}

    def levels(self, contract: Contract, levels: Levels) -> bytes:
        """Return `["PRICE","QUANTITY"]`, comma-separated."""
        price = self._prices.get(contract.price_decimals)
        if price is None:
            price = _Texts(contract.price_decimals, '["', '","')
            self._prices[contract.price_decimals] = price
        quantity = self._quantities.get(contract.quantity_decimals)
        if quantity is None:
            quantity = _Texts(contract.quantity_decimals, "", '"]')
            self._quantities[contract.quantity_decimals] = quantity
        return b",".join([price[p] + quantity[q] for p, q in levels])

    def depth(self, contract: Contract, event: DepthUpdate, first_id: int) -> bytes:
        """`depthUpdate`; `first_id` is its `U`."""
        transaction = event.time_us // 1000
        return b'{"e":"depthUpdate","E":%d,"T":%d,"s":"%b","ps":"%b","U":%d,"u":%d,"pu":%d,' % (
            _event_time(transaction, event.last_id),
            transaction,
            event.symbol.encode(),
            contract.pair.encode(),
            first_id,
            event.last_id,
            event.previous_id,
        ) + b'"b":[%b],"a":[%b],"st":%d}' % (
            self.levels(contract, event.bids),
            self.levels(contract, event.asks),
            self._type,
        )

    def book(self, contract: Contract, book: BookState, time_us: int) -> bytes:
        """Return the REST answer with a book."""
        transaction = time_us // 1000
        named = ""
        if contract.inverse:
            named = f'"symbol":"{book.symbol}","pair":"{contract.pair}",'
        return (
            f'{{"lastUpdateId":{book.update_id},'
            f'"E":{_event_time(transaction, book.update_id)},"T":{transaction},{named}'
        ).encode() + b'"bids":[%b],"asks":[%b]}' % (
            self.levels(contract, book.bids),
            self.levels(contract, book.asks),
        )

    def best(self, contract: Contract, event: BestPrices, time_us: int) -> bytes:
        """`bookTicker`; the event itself tells no time."""
        transaction = time_us // 1000
        return (
            f'{{"e":"bookTicker","u":{event.update_id},"s":"{event.symbol}","ps":"{contract.pair}",'
            f'"b":"{contract.price(event.bid)}","B":"{contract.quantity(event.bid_quantity)}",'
            f'"a":"{contract.price(event.ask)}","A":"{contract.quantity(event.ask_quantity)}",'
            f'"T":{transaction},"E":{_event_time(transaction, event.update_id)},"st":{self._type}}}'
        ).encode()

    def trade(
        self, contract: Contract, event: Trade | OtherTrade, execution: str = "MARKET"
    ) -> bytes:
        """`trade`; `execution` is its `X`, anything but MARKET for what is not of the market."""
        transaction = event.time_us // 1000
        return (
            f'{{"e":"trade","E":{_event_time(transaction, event.trade_id)},"T":{transaction},'
            f'"s":"{event.symbol}","t":{event.trade_id},"p":"{contract.price(event.price)}",'
            f'"q":"{contract.quantity(event.quantity)}","X":"{execution}",'
            f'"m":{_boolean(event.buyer_is_maker)},"st":{self._type}}}'
        ).encode()

    def aggregate(self, contract: Contract, event: AggregateTrade) -> bytes:
        """`aggTrade`."""
        transaction = event.time_us // 1000
        quantity = contract.quantity(event.quantity)
        # What of it met the orders of retail price improvement, none here, is told by USD-M alone.
        normal = "" if contract.inverse else f'"nq":"{quantity}",'
        return (
            f'{{"e":"aggTrade","E":{_event_time(transaction, event.aggregate_id)},'
            f'"a":{event.aggregate_id},"s":"{event.symbol}","p":"{contract.price(event.price)}",'
            f'"q":"{quantity}",{normal}"f":{event.first_trade_id},'
            f'"l":{event.last_trade_id},"T":{transaction},'
            f'"m":{_boolean(event.buyer_is_maker)},"st":{self._type}}}'
        ).encode()

    def candle(self, contract: Contract, event: Candle, interval: str) -> bytes:
        """`kline` of that interval."""
        price, quantity = contract.price, contract.quantity
        value = contract.other_volume(event.volume, event.quote_volume)
        taken = contract.other_volume(event.taker_volume, event.taker_quote_volume)
        return (
            f'{{"e":"kline","E":{event.time_us // 1000},"s":"{event.symbol}",'
            f'"k":{{"t":{event.open_us // 1000},"T":{event.close_us // 1000},'
            f'"s":"{event.symbol}","i":"{interval}",'
            f'"f":{event.first_trade_id},"L":{event.last_trade_id},'
            f'"o":"{price(event.open)}","c":"{price(event.close)}","h":"{price(event.high)}",'
            f'"l":"{price(event.low)}","v":"{quantity(event.volume)}","n":{event.trades},'
            f'"x":{_boolean(event.closed)},"q":"{contract.amount(value)}",'
            f'"V":"{quantity(event.taker_volume)}","Q":"{contract.amount(taken)}","B":"0"}}}}'
        ).encode()

    def ticker(self, contract: Contract, event: Ticker) -> bytes:
        """`24hrTicker`."""
        change = event.last - event.open
        average = event.quote_volume * SCALE // event.volume if event.volume else 0
        percent = change / event.open * 100 if event.open else 0.0
        return (
            f'{{"e":"24hrTicker","E":{event.time_us // 1000},"s":"{event.symbol}",'
            f'"ps":"{contract.pair}","p":"{contract.price(change)}","P":"{percent:.3f}",'
            f'"w":"{_average(contract, average)}","c":"{contract.price(event.last)}",'
            f'"Q":"{contract.quantity(event.last_quantity)}",{_day(contract, event)},'
            f'"O":{event.open_us // 1000},"C":{event.time_us // 1000},'
            f'"F":{event.first_trade_id},"L":{event.last_trade_id},"n":{event.trades},"st":{self._type}}}'
        ).encode()

    def mini_ticker(self, contract: Contract, event: Ticker) -> bytes:
        """`24hrMiniTicker`."""
        return (
            f'{{"e":"24hrMiniTicker","E":{event.time_us // 1000},"s":"{event.symbol}",'
            f'"ps":"{contract.pair}","c":"{contract.price(event.last)}",{_day(contract, event)},'
            f'"st":{self._type}}}'
        ).encode()

    def mark(self, event: MarkPrice, funding: FundingRate | None) -> bytes:
        """`markPriceUpdate`; `funding` is None for what is delivered on a day."""
        rate, due = ("", 0) if funding is None else (funding.rate, funding.funding_us // 1000)
        told = eight_decimals(rate) if isinstance(rate, int) else rate
        mark = eight_decimals(event.mark)
        return (
            f'{{"e":"markPriceUpdate","E":{event.time_us // 1000},"s":"{event.symbol}",'
            f'"p":"{mark}","ap":"{mark}","P":"{eight_decimals(event.settlement)}",'
            f'"i":"{eight_decimals(event.index_price)}","r":"{told}","T":{due},"st":{self._type}}}'
        ).encode()

    def index(self, event: IndexPrice) -> bytes:
        """Write `indexPriceUpdate`, which names the pair; USD-M calls it `IndexUpdate`."""
        time, price = event.time_us // 1000, eight_decimals(event.price)
        if self._type == COIN_M:
            text = f'{{"e":"indexPriceUpdate","E":{time},"i":"{event.symbol}","p":"{price}"}}'
        else:
            text = f'{{"E":{time},"s":"{event.symbol}","p":"{price}","e":"IndexUpdate"}}'
        return text.encode()

    def liquidation(self, contract: Contract, event: Liquidation) -> bytes:
        """`forceOrder`: the order that closed a position, filled."""
        transaction = event.time_us // 1000
        quantity = contract.quantity(event.quantity)
        return (
            f'{{"e":"forceOrder","E":{_event_time(transaction, event.trade_id)},'
            f'"o":{{"s":"{event.symbol}","S":"{"SELL" if event.sell else "BUY"}","o":"LIMIT",'
            f'"f":"IOC","q":"{quantity}","p":"{contract.price(event.bankruptcy)}",'
            f'"ap":"{contract.price(event.price)}","X":"FILLED","l":"{quantity}",'
            f'"z":"{quantity}","T":{transaction},"ps":"{contract.pair}","st":{self._type}}}}}'
        ).encode()

    def contract_info(self, contract: Contract, event: InstrumentChange) -> bytes:
        """`contractInfo`: an instrument was listed, changed, or settles."""
        gone = event.change is InstrumentEvent.EXPIRED
        return (
            f'{{"e":"contractInfo","E":{event.time_us // 1000},"s":"{event.symbol}",'
            f'"ps":"{contract.pair}","ct":"{contract.kind}","dt":{contract.delivery_ms},'
            f'"ot":{contract.spec.listed_us // 1000},"cs":"{"SETTLING" if gone else "TRADING"}",'
            f'"bks":{_BRACKETS},"st":{self._type}}}'
        ).encode()

    def array(self, events: Sequence[bytes]) -> bytes:
        """Return what an all-market stream carries: the bare events of several symbols."""
        return b"[%b]" % b",".join(events)


def _event_time(transaction_ms: int, number: int) -> int:
    # The venue sends a little later than it matched, and not always by as much.
    return transaction_ms + 1 + (number & 3)


def _day(contract: Contract, event: Ticker) -> str:
    other = contract.other_volume(event.volume, event.quote_volume)
    told = eight_decimals(other) if contract.inverse else decimal(other // 10**6 * 10**6, 2)
    return (
        f'"o":"{contract.price(event.open)}","h":"{contract.price(event.high)}",'
        f'"l":"{contract.price(event.low)}","v":"{contract.quantity(event.volume)}","q":"{told}"'
    )


def _average(contract: Contract, average: int) -> str:
    if contract.inverse:
        return eight_decimals(average)
    step = 10 ** (8 - contract.price_decimals)
    return contract.price(average // step * step)


def _boolean(value: bool) -> str:
    return "true" if value else "false"
