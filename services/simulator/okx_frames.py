"""Frames of OKX API v5, byte for byte as the venue writes them.

Numbers are strings without trailing zeros. Sizes are the venue's: contracts but for spot.
"""

import json
import zlib
from collections.abc import Iterable, Sequence

from services.simulator.fixed import SCALE, canonical
from services.simulator.instrument import InstrumentKind, SymbolSpec
from services.simulator.market import AggregateTrade, BestPrices, Candle, Ticker, Trade
from services.simulator.okx_listing import instrument_type
from services.simulator.reference import (
    FundingRate,
    IndexPrice,
    Liquidation,
    MarkPrice,
    OpenInterest,
    OptionGreeks,
)

__all__ = ["OkxFrames", "argument", "dumps", "instrument"]

_CACHED = 400_000
_BEST = 25


def dumps(message: object) -> bytes:
    """Return JSON as the venue writes it: no spaces, characters of any script as they are."""
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()


def argument(channel: str, key: str, name: str = "instId") -> str:
    """Return the `arg` of a channel as text."""
    return f'{{"channel":"{channel}","{name}":"{key}"}}'


class _Numbers(dict[int, str]):
    """Plain decimals by units of 1e-8; formatting is the dearest part of a book frame."""

    def __missing__(self, units: int) -> str:
        if len(self) >= _CACHED:
            self.clear()
        text = canonical(units)
        self[units] = text
        return text


class OkxFrames:
    """Writes events; keeps nothing but numbers that were written before."""

    def __init__(self) -> None:
        self._number = _Numbers()

    def levels(self, levels: Iterable[tuple[int, int]]) -> str:
        """`["price","size","0","orders"]` of each level, joined."""
        number = self._number
        return ",".join(
            [
                f'["{number[price]}","{number[size]}","0","{_orders(size)}"]'
                for price, size in levels
            ]
        )

    def checksum(self, bids: Sequence[tuple[int, int]], asks: Sequence[tuple[int, int]]) -> int:
        """CRC32 of the best 25 levels, bid and ask in turn, as a signed number."""
        number = self._number
        parts: list[str] = []
        for index in range(_BEST):
            for side in (bids, asks):
                if index < len(side):
                    price, size = side[index]
                    parts += (number[price], number[size])
        crc = zlib.crc32(":".join(parts).encode())
        return crc - (1 << 32) if crc >= 1 << 31 else crc

    def book(
        self,
        symbol: str,
        action: str,
        bids: Iterable[tuple[int, int]],
        asks: Iterable[tuple[int, int]],
        *,
        time_us: int,
        checksum: int,
        sequence: int,
        previous: int,
        channel: str = "books",
    ) -> bytes:
        """Channel `books` and the faster ones of its kind: a snapshot or an update."""
        return (
            f'{{"arg":{argument(channel, symbol)},"action":"{action}","data":[{{'
            f'"asks":[{self.levels(asks)}],"bids":[{self.levels(bids)}],'
            f'"ts":"{time_us // 1000}","checksum":{checksum},"seqId":{sequence},'
            f'"prevSeqId":{previous}}}]}}'
        ).encode()

    def few_levels(
        self,
        symbol: str,
        bids: Iterable[tuple[int, int]],
        asks: Iterable[tuple[int, int]],
        time_us: int,
        sequence: int,
    ) -> bytes:
        """Channel `books5`: the best five levels, whole."""
        return (
            f'{{"arg":{argument("books5", symbol)},"data":[{{'
            f'"asks":[{self.levels(asks)}],"bids":[{self.levels(bids)}],"instId":"{symbol}",'
            f'"ts":"{time_us // 1000}","seqId":{sequence}}}]}}'
        ).encode()

    def best(self, event: BestPrices, time_us: int) -> bytes:
        """Channel `bbo-tbt`."""
        return (
            f'{{"arg":{argument("bbo-tbt", event.symbol)},"data":[{{'
            f'"asks":[{self.levels([(event.ask, event.ask_quantity)])}],'
            f'"bids":[{self.levels([(event.bid, event.bid_quantity)])}],'
            f'"ts":"{time_us // 1000}","seqId":{event.update_id}}}]}}'
        ).encode()

    def trade(self, event: AggregateTrade, sequence: int) -> bytes:
        """Channel `trades`: the matches of one order at one price."""
        number = self._number
        count = event.last_trade_id - event.first_trade_id + 1
        return (
            f'{{"arg":{argument("trades", event.symbol)},"data":[{{"instId":"{event.symbol}",'
            f'"tradeId":"{event.last_trade_id}","px":"{number[event.price]}",'
            f'"sz":"{number[event.quantity]}","side":"{_side(event.buyer_is_maker)}",'
            f'"ts":"{event.time_us // 1000}","count":"{count}","source":"0",'
            f'"seqId":{sequence}}}]}}'
        ).encode()

    def each_trade(self, event: Trade) -> bytes:
        """Channel `trades-all`: one match."""
        number = self._number
        return (
            f'{{"arg":{argument("trades-all", event.symbol)},"data":[{{"instId":"{event.symbol}",'
            f'"tradeId":"{event.trade_id}","px":"{number[event.price]}",'
            f'"sz":"{number[event.quantity]}","side":"{_side(event.buyer_is_maker)}",'
            f'"ts":"{event.time_us // 1000}","source":"0"}}]}}'
        ).encode()

    def candle(self, spec: SymbolSpec, channel: str, candle: Candle) -> bytes:
        """Channels `candle1m` and longer."""
        row = self.candle_row(spec, candle)
        return f'{{"arg":{argument(channel, spec.symbol)},"data":[{row}]}}'.encode()

    def candle_row(self, spec: SymbolSpec, candle: Candle) -> str:
        """`["ts","o","h","l","c","vol","volCcy","volCcyQuote","confirm"]`."""
        number = self._number
        base, quote = _volumes(spec, candle.volume, candle.quote_volume, candle.close)
        # `volCcy` counts the quote asset for spot, the base asset for derivatives.
        in_currency = base if spec.derivative else quote
        return (
            f'["{candle.open_us // 1000}","{number[candle.open]}","{number[candle.high]}",'
            f'"{number[candle.low]}","{number[candle.close]}","{number[candle.volume]}",'
            f'"{number[in_currency]}","{number[quote]}","{int(candle.closed)}"]'
        )

    def ticker(self, spec: SymbolSpec, event: Ticker) -> dict[str, str]:
        """Return what channel `tickers` and REST tell of the last day."""
        number = self._number
        base, quote = _volumes(spec, event.volume, event.quote_volume, event.last)
        return {
            "instType": instrument_type(spec),
            "instId": spec.symbol,
            "last": number[event.last],
            "lastSz": number[event.last_quantity],
            "askPx": number[event.ask],
            "askSz": number[event.ask_quantity],
            "bidPx": number[event.bid],
            "bidSz": number[event.bid_quantity],
            "open24h": number[event.open],
            "high24h": number[event.high],
            "low24h": number[event.low],
            "sodUtc0": number[event.open],
            "sodUtc8": number[event.open],
            "volCcy24h": number[base if spec.derivative else quote],
            "vol24h": number[event.volume],
            "ts": str(event.time_us // 1000),
        }

    def mark(self, spec: SymbolSpec, event: MarkPrice) -> dict[str, str]:
        """Return what channel `mark-price` and REST tell."""
        return {
            "instId": spec.symbol,
            "instType": instrument_type(spec),
            "markPx": self._number[event.mark],
            "ts": str(event.time_us // 1000),
        }

    def index(self, event: IndexPrice) -> dict[str, str]:
        """Return what channel `index-tickers` and REST tell."""
        number = self._number
        return {
            "instId": event.symbol,
            "idxPx": number[event.price],
            "open24h": number[event.open],
            "high24h": number[event.high],
            "low24h": number[event.low],
            "sodUtc0": number[event.open],
            "sodUtc8": number[event.open],
            "ts": str(event.time_us // 1000),
        }

    def funding(self, spec: SymbolSpec, event: FundingRate) -> dict[str, str]:
        """Return what channel `funding-rate` and REST tell."""
        return {
            "formulaType": "withRate",
            "fundingRate": _rate(event.rate),
            "fundingTime": str(event.funding_us // 1000),
            "impactValue": "20000.0000000000000000",
            "instId": spec.symbol,
            "instType": instrument_type(spec),
            "interestRate": _rate(event.interest),
            "maxFundingRate": "0.00375",
            "method": "current_period",
            "minFundingRate": "-0.00375",
            "nextFundingRate": "",
            "nextFundingTime": str(event.next_funding_us // 1000),
            "premium": _rate(event.premium),
            "prevFundingTime": str((event.funding_us - event.interval_us) // 1000),
            "settFundingRate": _rate(event.settled_rate),
            "settState": "settled",
            "ts": str(event.time_us // 1000),
        }

    def open_interest(self, spec: SymbolSpec, event: OpenInterest) -> dict[str, str]:
        """Return what channel `open-interest` and REST tell."""
        number = self._number
        return {
            "instId": spec.symbol,
            "instType": instrument_type(spec),
            "oi": number[event.contracts],
            "oiCcy": number[event.base],
            "oiUsd": number[event.quote],
            "ts": str(event.time_us // 1000),
        }

    def greeks(self, spec: SymbolSpec, event: OptionGreeks) -> dict[str, str]:
        """Return what channel `opt-summary` and REST tell; `...BS` in dollars, else in coins."""
        number = self._number
        forward = event.underlying
        leverage = forward * abs(event.delta) // max(1, event.mark * forward // SCALE)
        return {
            "instType": "OPTION",
            "instId": spec.symbol,
            "uly": spec.underlying,
            "delta": number[event.delta - event.mark],
            "gamma": number[event.gamma * forward // SCALE],
            "vega": number[event.vega * SCALE // forward],
            "theta": number[event.theta * SCALE // forward],
            "lever": number[leverage],
            "markVol": number[event.mark_iv],
            "bidVol": number[event.bid_iv] if event.bid_iv else "",
            "askVol": number[event.ask_iv] if event.ask_iv else "",
            "realVol": "",
            "deltaBS": number[event.delta],
            "gammaBS": number[event.gamma],
            "thetaBS": number[event.theta],
            "vegaBS": number[event.vega],
            "volLv": number[event.mark_iv],
            "fwdPx": number[forward],
            "ts": str(event.time_us // 1000),
        }

    def liquidation(self, spec: SymbolSpec, event: Liquidation) -> dict[str, object]:
        """Return what channel `liquidation-orders` tells."""
        return {
            "details": [
                {
                    "bkLoss": "0",
                    "bkPx": self._number[event.bankruptcy],
                    "ccy": "",
                    "posSide": "long" if event.sell else "short",
                    "side": "sell" if event.sell else "buy",
                    "sz": self._number[event.quantity],
                    "ts": str(event.time_us // 1000),
                }
            ],
            "instFamily": spec.family,
            "instId": spec.symbol,
            "instType": instrument_type(spec),
            "uly": spec.underlying,
        }

    def trade_row(self, event: Trade) -> dict[str, str]:
        """Return what REST tells of a trade."""
        return {
            "instId": event.symbol,
            "side": _side(event.buyer_is_maker),
            "sz": self._number[event.quantity],
            "source": "0",
            "px": self._number[event.price],
            "tradeId": str(event.trade_id),
            "ts": str(event.time_us // 1000),
        }


def instrument(spec: SymbolSpec, state: str = "live") -> dict[str, object]:
    """Return an instrument as channel `instruments` and REST tell it."""
    contract = spec.derivative
    contract_type = ""
    if spec.kind in (InstrumentKind.PERPETUAL, InstrumentKind.FUTURE):
        contract_type = "inverse" if spec.inverse else "linear"
    return {
        "alias": "quarter" if spec.kind is InstrumentKind.FUTURE else "",
        "auctionEndTime": "",
        "baseCcy": "" if contract else spec.base,
        "category": "1",
        "contTdSwTime": "",
        "ctMult": canonical(spec.multiplier) if contract else "",
        "ctType": contract_type,
        "ctVal": canonical(spec.contract_size) if contract else "",
        "ctValCcy": (spec.contract_currency or spec.base) if contract else "",
        "expTime": "" if spec.expiry_us is None else str(spec.expiry_us // 1000),
        "futureSettlement": False,
        "groupId": "1",
        "instCategory": "1",
        "instFamily": spec.family,
        "instId": spec.symbol,
        "instIdCode": zlib.crc32(spec.symbol.encode()) % 10**9,
        "instType": instrument_type(spec),
        "lever": "" if spec.kind is InstrumentKind.OPTION else "10",
        "listTime": str(spec.listed_us // 1000),
        "lotSz": canonical(spec.lot),
        "maxIcebergSz": "9999999999.0000000000000000",
        "maxLmtAmt": "20000000",
        "maxLmtSz": "9999999999",
        "maxMktAmt": "" if contract else "1000000",
        "maxMktSz": "1000000",
        "maxStopSz": "1000000",
        "maxTriggerSz": "9999999999.0000000000000000",
        "maxTwapSz": "9999999999.0000000000000000",
        "minSz": canonical(spec.lot if contract else max(spec.lot, 1000)),
        "openType": "",
        "optType": spec.right or "",
        "preMktSwTime": "",
        "quoteCcy": "" if contract else spec.quote,
        "ruleType": "normal",
        "settleCcy": spec.settlement,
        "state": state,
        "stk": "" if spec.strike is None else canonical(spec.strike),
        "tickSz": canonical(spec.tick),
        "tradeQuoteCcyList": [] if contract else [spec.quote],
        "uly": spec.underlying,
        "upcChg": [],
    }


def _volumes(spec: SymbolSpec, volume: int, quote_volume: int, price: int) -> tuple[int, int]:
    # (base, quote) of a volume that the market counts in the venue's own unit.
    if not spec.derivative:
        return volume, quote_volume
    worth = volume * spec.contract_size // SCALE * spec.multiplier // SCALE
    if spec.inverse:
        return worth * SCALE // max(1, price), worth
    return worth, quote_volume * spec.contract_size // SCALE * spec.multiplier // SCALE


def _orders(size: int) -> int:
    # How many orders make up a level: made up from its size.
    return 1 + (size * 2654435761 >> 11) % 7 if size else 0


def _side(buyer_is_maker: bool) -> str:
    return "sell" if buyer_is_maker else "buy"


def _rate(units: int) -> str:
    sign = "-" if units < 0 else ""
    return f"{sign}{abs(units) // SCALE}.{abs(units) % SCALE:08d}00000000"
