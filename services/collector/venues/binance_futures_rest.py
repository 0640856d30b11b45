"""What Binance's futures tell by REST: instruments, open interest, ratios, terms of funding.

Follows the "Market Data" pages of Binance's "USDⓈ-M Futures" and "COIN-M Futures" documents.
"""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec
from google.protobuf.duration_pb2 import Duration
from marketprism.market.v1 import common_pb2, events_pb2, instrument_pb2

from services.collector.contracts import ContractSize
from services.collector.venues.base import InstrumentSpec, MalformedFrameError, Observation
from services.collector.venues.binance_common import (
    DECODE_ERRORS,
    NO_STEPS,
    Steps,
    Time,
    nanoseconds,
    read_steps,
    split_pair,
    step,
    timestamp,
    unique,
)
from services.shared.decimals import InvalidDecimalError, canonical_decimal

__all__ = [
    "RATIOS",
    "Contracts",
    "OpenInterest",
    "decode_contracts",
    "decode_interest_rates",
    "decode_intervals",
    "decode_open_interest",
    "decode_ratios",
    "open_interest",
]

RATIOS = {
    "topLongShortAccountRatio": events_pb2.LONG_SHORT_RATIO_KIND_TOP_ACCOUNTS,
    "topLongShortPositionRatio": events_pb2.LONG_SHORT_RATIO_KIND_TOP_POSITIONS,
    "globalLongShortAccountRatio": events_pb2.LONG_SHORT_RATIO_KIND_ALL_ACCOUNTS,
}
"""Names of the endpoints, and whose ratio each of them tells."""
_PERIOD = Duration(seconds=300)
_DAY = re.compile(r"[0-9]{6}\Z", re.ASCII)
_DELIVERY_HOUR = 8  # UTC, of all dated futures
# Settled, or about to be: nothing of such a contract comes any more, and it has no book.
_OVER = frozenset(("DELIVERED", "SETTLING", "CLOSE"))
_LINEAR_QUOTES = ("FDUSD", "RLUSD", "USDT", "USDC", "BUSD", "USD1", "BTC", "USD", "U")
_PERPETUAL = instrument_pb2.INSTRUMENT_KIND_PERPETUAL
_FUTURE = instrument_pb2.INSTRUMENT_KIND_FUTURE
_BASE = instrument_pb2.QUANTITY_UNIT_BASE
_QUOTE = instrument_pb2.QUANTITY_UNIT_QUOTE
_Answer = TypeVar("_Answer")
# Sent as a number or as text, as it pleases the endpoint.
_LooseTime: TypeAlias = Time | Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,14}\Z")]


class _Symbol(msgspec.Struct, gc=False, frozen=True, rename="camel"):
    symbol: str
    base_asset: str
    quote_asset: str
    margin_asset: str = ""
    pair: str = ""
    contract_type: str = ""
    delivery_date: Time = 0
    # USD-M says `status`, COIN-M `contractStatus`.
    status: str = ""
    contract_status: str = ""
    contract_size: int | str = 0
    filters: list[dict[str, Any]] = []


class _ExchangeInfo(msgspec.Struct, gc=False, frozen=True):
    symbols: list[_Symbol]


class OpenInterest(msgspec.Struct, gc=False, frozen=True, rename="camel"):
    """The answer to a request for the open interest of one instrument."""

    symbol: str
    """Instrument."""
    open_interest: str
    """Open interest in base currency; COIN-M: in contracts."""
    time: Time = 0
    """When it was so; absent from answers of 2019."""


class _Ratio(msgspec.Struct, gc=False, frozen=True, rename="camel"):
    long_short_ratio: str
    timestamp: _LooseTime
    long_account: str = ""
    short_account: str = ""
    # What COIN-M says in place of them about positions.
    long_position: str = ""
    short_position: str = ""


class _FundingInfo(msgspec.Struct, gc=False, frozen=True, rename="camel"):
    symbol: str
    funding_interval_hours: Annotated[int, msgspec.Meta(ge=1, le=8760)]


class _PremiumIndex(msgspec.Struct, gc=False, frozen=True, rename="camel"):
    symbol: str
    interest_rate: str = ""


_decode_info = msgspec.json.Decoder(_ExchangeInfo)
_decode_open_interest = msgspec.json.Decoder(OpenInterest)
_decode_ratios = msgspec.json.Decoder(list[_Ratio])
_decode_funding_info = msgspec.json.Decoder(list[_FundingInfo])
_decode_premium_index = msgspec.json.Decoder(list[_PremiumIndex])


def _decoded(
    decoder: "msgspec.json.Decoder[_Answer]", exchange: str, what: str, body: bytes, native: str
) -> _Answer:
    try:
        return decoder.decode(body)
    except DECODE_ERRORS as error:
        raise MalformedFrameError(
            f"{exchange}: {what}: {error} in {body[:160]!r}", native, concerns_book=False
        ) from error


class Contracts:
    """Names of the contracts of one market, from the venue's list where it was read, else inferred.

    `inverse` contracts (COIN-M) are counted in contracts of so many units of the quote currency and
    settle in the base currency.
    """

    def __init__(self, exchange: str, *, inverse: bool) -> None:
        self._exchange = exchange
        self._inverse = inverse
        self._pairs: dict[str, str] = {}

    def learn(self, specs: list[InstrumentSpec]) -> None:
        """Take the names of the venue's list."""
        self._pairs = {spec.underlying: f"{spec.base}-{spec.quote}" for spec in specs}

    def index(self, pair: str) -> str:
        """Canonical name of a pair and its index, "BTC-USDT", by itself or by a contract's name."""
        pair, _, _ = pair.partition("_")
        known = self._pairs.get(pair)
        if known is not None:
            return known
        base, quote = self._split(pair)
        return f"{base}-{quote}" if quote else base

    def infer(self, native_symbol: str) -> InstrumentSpec:
        """Best guess from a name alone."""
        pair, _, _ = native_symbol.partition("_")
        base, quote = self._split(pair)
        return self.spec(native_symbol, base, quote, base if self._inverse else quote)

    def spec(
        self,
        native_symbol: str,
        base: str,
        quote: str,
        settlement: str,
        *,
        pair: str = "",
        contract_type: str = "",
        delivery: int = 0,
        contract_size: str = "",
        trading: bool = True,
        steps: Steps = NO_STEPS,
    ) -> InstrumentSpec:
        """Describe a contract; `delivery` is its delivery date as the venue tells it, nanoseconds.

        BTCUSDT and BTCUSD_PERP never expire, BTCUSDT_261225 does on that day. Of COIN-M's contracts
        those on BTC stand for 100 USD, all others for 10: that counts where no size is told.
        """
        name, _, end = native_symbol.partition("_")
        dated = _DAY.match(end) is not None
        perpetual = "PERPETUAL" in contract_type if contract_type else not dated
        expiry = 0 if perpetual else delivery or _delivery_of(end)
        if not contract_size:
            contract_size = ("100" if base == "BTC" else "10") if self._inverse else "1"
        if dated:
            term = f"20{end}"
        elif perpetual:
            term = "PERP" if end in ("", "PERP") else end
        else:
            term = end or f"{datetime.fromtimestamp(expiry // 10**9, UTC):%Y%m%d}"
        return InstrumentSpec(
            self._exchange,
            f"{base}-{quote}-{term}" if quote else f"{base}-{term}",
            native_symbol,
            base,
            quote,
            trading=trading,
            kind=_PERPETUAL if perpetual else _FUTURE,
            settlement=settlement,
            contract_size=contract_size,
            quantity_unit=_QUOTE if self._inverse else _BASE,
            expiry_time=expiry,
            underlying=pair or name,
            family=pair or name,
            tick_size=steps.tick_size,
            lot_size=_converted(steps.lot_size, contract_size),
            min_quantity=_converted(steps.min_quantity, contract_size),
            min_notional=steps.min_notional,
        )

    def _split(self, pair: str) -> tuple[str, str]:
        # A COIN-M pair may end in what is a currency elsewhere: DOTUSD is no market in TUSD.
        return split_pair(pair, ("USD",) if self._inverse else _LINEAR_QUOTES)


def _converted(contracts: str, size: str) -> str:
    try:
        return ContractSize(size).sizes[contracts] if contracts else ""
    except InvalidDecimalError:
        return ""


def _delivery_of(day: str) -> int:
    try:
        date = datetime.strptime(day, "%y%m%d").replace(hour=_DELIVERY_HOUR, tzinfo=UTC)
    except ValueError:
        return 0
    return int(date.timestamp()) * 10**9


def decode_contracts(
    contracts: Contracts, exchange: str, body: bytes, *, inverse: bool
) -> list[InstrumentSpec]:
    """Decode exchangeInfo; a symbol whose filters are malformed keeps empty steps.

    Contracts that are over are left out, which the venue goes on to list for a while.
    """
    info = _decoded(_decode_info, exchange, "exchangeInfo", body, "")
    return unique(
        [
            contracts.spec(
                symbol.symbol,
                symbol.base_asset,
                symbol.quote_asset,
                symbol.margin_asset or (symbol.base_asset if inverse else symbol.quote_asset),
                pair=symbol.pair,
                contract_type=symbol.contract_type,
                delivery=nanoseconds(symbol.delivery_date),
                contract_size=step(str(symbol.contract_size)) if inverse else "1",
                trading="TRADING" in (symbol.status, symbol.contract_status),
                steps=read_steps(symbol.filters),
            )
            for symbol in info.symbols
            if not _OVER.intersection((symbol.status, symbol.contract_status))
        ]
    )


def open_interest(data: OpenInterest, *, inverse: bool) -> Observation:
    """Give the open interest of an instrument. Raises InvalidDecimalError."""
    told = canonical_decimal(data.open_interest)
    message = events_pb2.OpenInterest(
        exchange_time=timestamp(nanoseconds(data.time)), open_interest=told
    )
    if inverse:
        message.open_interest_quote = told
    else:
        message.open_interest_base = told
    return Observation(
        common_pb2.EVENT_KIND_OPEN_INTEREST,
        message,
        data.symbol,
        contracts=("open_interest", "open_interest_quote") if inverse else (),
    )


def decode_open_interest(
    exchange: str, body: bytes, native_symbol: str, *, inverse: bool
) -> list[Observation]:
    """Decode the answer to a request for the open interest of one instrument."""
    data = _decoded(_decode_open_interest, exchange, "openInterest", body, native_symbol)
    try:
        return [open_interest(data, inverse=inverse)]
    except DECODE_ERRORS as error:
        raise MalformedFrameError(
            f"{exchange}: openInterest: {error}", native_symbol, concerns_book=False
        ) from error


def decode_ratios(
    exchange: str,
    body: bytes,
    kind: "events_pb2.LongShortRatioKind.ValueType",
    native_symbol: str,
    symbol: str,
) -> list[Observation]:
    """Decode long/short ratios of 5 minutes, of an instrument or of the pair called `symbol`."""
    name = events_pb2.LongShortRatioKind.Name(kind).removeprefix("LONG_SHORT_RATIO_KIND_")
    ratios = _decoded(_decode_ratios, exchange, f"ratio of {name}", body, native_symbol)
    try:
        return [
            Observation(
                common_pb2.EVENT_KIND_LONG_SHORT_RATIO,
                events_pb2.LongShortRatio(
                    kind=kind,
                    period=_PERIOD,
                    exchange_time=timestamp(nanoseconds(int(ratio.timestamp))),
                    ratio=canonical_decimal(ratio.long_short_ratio),
                    long_share=_optional(ratio.long_account or ratio.long_position),
                    short_share=_optional(ratio.short_account or ratio.short_position),
                ),
                native_symbol,
                symbol,
                key=name,
            )
            for ratio in ratios
        ]
    except DECODE_ERRORS as error:
        raise MalformedFrameError(
            f"{exchange}: ratio of {name}: {error}", native_symbol, concerns_book=False
        ) from error


def decode_intervals(exchange: str, body: bytes) -> dict[str, int]:
    """Decode fundingInfo: hours between fundings, of those instruments that have not the usual."""
    infos = _decoded(_decode_funding_info, exchange, "fundingInfo", body, "")
    return {info.symbol: info.funding_interval_hours for info in infos}


def decode_interest_rates(exchange: str, body: bytes) -> dict[str, str]:
    """Decode premiumIndex of all instruments: the interest part of their funding, canonical."""
    indices = _decoded(_decode_premium_index, exchange, "premiumIndex", body, "")
    try:
        return {
            index.symbol: canonical_decimal(index.interest_rate)
            for index in indices
            if index.interest_rate
        }
    except DECODE_ERRORS as error:
        raise MalformedFrameError(f"{exchange}: premiumIndex: {error}", concerns_book=False) from (
            error
        )


def _optional(text: str) -> str:
    return canonical_decimal(text) if text else ""
