"""Payloads of the streams that only Binance's futures have, and what they are turned into.

Follows the "WebSocket Market Streams" pages of Binance's "USDⓈ-M Futures" and "COIN-M Futures"
documents as of 2026. Where COIN-M counts contracts, the function takes `inverse`.
"""

from typing import Annotated, TypeAlias

import msgspec
from google.protobuf.duration_pb2 import Duration
from marketprism.market.v1 import common_pb2, events_pb2

from services.collector.venues.base import (
    InstrumentsChanged,
    Observation,
    Several,
    SkippedTrade,
    TradePrint,
    VenueMessage,
)
from services.collector.venues.binance_common import Id, Levels, Time, nanoseconds, timestamp
from services.shared.decimals import canonical_decimal

__all__ = [
    "ContractInfo",
    "ForceOrder",
    "FuturesDepthUpdate",
    "FuturesTrade",
    "IndexPrice",
    "MarkPrice",
    "contract_info",
    "futures_trade",
    "index_price",
    "liquidation",
    "mark_price",
]

# -1 before an instrument's first change.
_PreviousId: TypeAlias = Annotated[int, msgspec.Meta(ge=-1, le=2**63 - 1)]
# Not trades of the market, but the venue settling its own affairs.
_NOT_OF_THE_MARKET = frozenset(("INSURANCE_FUND", "ADL", "NA"))
_SIDES = {"BUY": common_pb2.SIDE_BUY, "SELL": common_pb2.SIDE_SELL}


class FuturesDepthUpdate(msgspec.Struct, gc=False, frozen=True):
    """The `depthUpdate` payload."""

    native_symbol: str = msgspec.field(name="s")
    """Instrument."""
    first: Id = msgspec.field(name="U")
    """First update id in the event."""
    last: Id = msgspec.field(name="u")
    """Final update id in the event."""
    previous: _PreviousId = msgspec.field(name="pu")
    """Final update id of the event before, which this one continues."""
    bids: Levels = msgspec.field(name="b")
    """Changed bids."""
    asks: Levels = msgspec.field(name="a")
    """Changed asks."""
    event_time: Time = msgspec.field(name="E", default=0)
    """Event time as sent, milliseconds or microseconds."""

    def __post_init__(self) -> None:
        if self.last < self.first:
            raise ValueError(f"expected U <= u, got {self.first} and {self.last}")

    @property
    def exchange_time(self) -> int:
        """Event time in nanoseconds."""
        return nanoseconds(self.event_time)

    @property
    def checksum(self) -> int:
        """None on Binance."""
        return 0


class FuturesTrade(msgspec.Struct, gc=False, frozen=True):
    """The `trade` payload."""

    native_symbol: str = msgspec.field(name="s")
    """Instrument."""
    trade_id: Id = msgspec.field(name="t")
    """Number of the trade."""
    price: str = msgspec.field(name="p")
    """Price."""
    quantity: str = msgspec.field(name="q")
    """Quantity in base currency; COIN-M: in contracts."""
    time: Time = msgspec.field(name="T")
    """When it was matched."""
    buyer_is_maker: bool = msgspec.field(name="m")
    """Whether the taker sold."""
    execution: str = msgspec.field(name="X", default="MARKET")
    """What sort of trade it is; absent from frames of 2019."""


class MarkPrice(msgspec.Struct, gc=False, frozen=True):
    """The `markPriceUpdate` payload."""

    native_symbol: str = msgspec.field(name="s")
    """Instrument."""
    event_time: Time = msgspec.field(name="E")
    """Event time as sent."""
    mark_price: str = msgspec.field(name="p")
    """Mark price."""
    index_price: str = msgspec.field(name="i", default="")
    """Index price; absent from COIN-M's frames before 2025."""
    settlement_price: str = msgspec.field(name="P", default="")
    """Estimated settlement price; absent from frames of 2019."""
    funding_rate: str = msgspec.field(name="r", default="")
    """Funding rate; empty or absent where there is no funding."""
    funding_time: Time = msgspec.field(name="T", default=0)
    """Next funding; 0 or absent where there is none."""


class IndexPrice(msgspec.Struct, gc=False, frozen=True):
    """The `indexPriceUpdate` payload of COIN-M."""

    pair: str = msgspec.field(name="i")
    """Pair, for example BTCUSD."""
    event_time: Time = msgspec.field(name="E")
    """Event time as sent."""
    price: str = msgspec.field(name="p")
    """Price of the index."""


class _Order(msgspec.Struct, gc=False, frozen=True):
    native_symbol: str = msgspec.field(name="s")
    side: str = msgspec.field(name="S")
    quantity: str = msgspec.field(name="q")
    price: str = msgspec.field(name="p")
    average_price: str = msgspec.field(name="ap")
    filled: str = msgspec.field(name="z")
    time: Time = msgspec.field(name="T")


class ForceOrder(msgspec.Struct, gc=False, frozen=True):
    """The `forceOrder` payload: the last liquidation of an instrument within a second."""

    order: _Order = msgspec.field(name="o")
    """The order that closes the position."""


class ContractInfo(msgspec.Struct, gc=False, frozen=True):
    """The `contractInfo` payload: something about a contract is not what it was."""

    native_symbol: str = msgspec.field(name="s")
    """Instrument."""
    status: str = msgspec.field(name="cs", default="")
    """Its status now."""


def futures_trade(data: FuturesTrade) -> TradePrint | SkippedTrade:
    """Give a trade, or the number that the venue's own affairs used up."""
    if data.execution in _NOT_OF_THE_MARKET:
        return SkippedTrade(data.native_symbol, data.trade_id)
    return TradePrint(
        data.native_symbol,
        data.trade_id,
        nanoseconds(data.time),
        canonical_decimal(data.price),
        canonical_decimal(data.quantity),
        data.buyer_is_maker,
    )


def mark_price(
    data: MarkPrice, index: str, funding_hours: int | None, interest_rate: str
) -> VenueMessage:
    """Give a mark price, and of a perpetual contract the index price and the funding rate.

    `index` names the index, empty when it is told elsewhere; only perpetual contracts tell it, so
    that dated ones do not repeat it. `funding_hours` between two fundings, None when not known, and
    `interest_rate`, empty when not known, are what the stream does not tell.
    """
    time = timestamp(nanoseconds(data.event_time))
    at_index = _optional(data.index_price)
    told = [
        Observation(
            common_pb2.EVENT_KIND_MARK_PRICE,
            events_pb2.MarkPrice(
                exchange_time=time,
                mark_price=canonical_decimal(data.mark_price),
                index_price=at_index,
                estimated_settlement_price=_optional(data.settlement_price),
            ),
            data.native_symbol,
        )
    ]
    if "_" in data.native_symbol and not data.native_symbol.endswith("_PERP"):
        return told[0]
    if index and at_index:
        told.append(
            Observation(
                common_pb2.EVENT_KIND_INDEX_PRICE,
                events_pb2.IndexPrice(exchange_time=time, index_price=at_index),
                symbol=index,
            )
        )
    if data.funding_rate:
        told.append(
            Observation(
                common_pb2.EVENT_KIND_FUNDING_RATE,
                events_pb2.FundingRate(
                    exchange_time=time,
                    funding_rate=canonical_decimal(data.funding_rate),
                    funding_time=timestamp(nanoseconds(data.funding_time)),
                    funding_interval=Duration(seconds=funding_hours * 3600)
                    if funding_hours is not None
                    else None,
                    interest_rate=interest_rate,
                ),
                data.native_symbol,
            )
        )
    return Several(tuple(told)) if len(told) > 1 else told[0]


def index_price(data: IndexPrice, index: str) -> Observation:
    """Give the price of the index of this canonical name."""
    return Observation(
        common_pb2.EVENT_KIND_INDEX_PRICE,
        events_pb2.IndexPrice(
            exchange_time=timestamp(nanoseconds(data.event_time)),
            index_price=canonical_decimal(data.price),
        ),
        symbol=index,
    )


def liquidation(data: ForceOrder, *, inverse: bool) -> Observation:
    """Give a liquidation. Binance numbers none: time, side, price and quantity tell it apart."""
    order = data.order
    price, quantity = canonical_decimal(order.price), canonical_decimal(order.quantity)
    return Observation(
        common_pb2.EVENT_KIND_LIQUIDATION,
        events_pb2.Liquidation(
            exchange_time=timestamp(nanoseconds(order.time)),
            side=_SIDES.get(order.side, common_pb2.SIDE_UNSPECIFIED),
            price=price,
            quantity=quantity,
            average_price=canonical_decimal(order.average_price),
            filled_quantity=canonical_decimal(order.filled),
            sampled=True,
        ),
        order.native_symbol,
        contracts=("quantity", "filled_quantity") if inverse else (),
        event_id=f"{order.time}-{order.side[:8]}-{price}-{quantity}",
    )


def contract_info(data: ContractInfo) -> InstrumentsChanged:
    """Say which contract changed."""
    return InstrumentsChanged(f"{data.native_symbol[:40]} {data.status[:40]}".rstrip())


def _optional(text: str) -> str:
    return canonical_decimal(text) if text else ""
