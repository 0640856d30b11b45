"""What Binance's tests share: adapters, and messages in a form that can be compared."""

from collections.abc import Mapping
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from marketprism.market.v1 import common_pb2

from services.collector.venues.base import Observation, Several, VenueMessage
from services.collector.venues.binance_adapter import BinanceAdapter
from services.collector.venues.binance_futures import COINM as COINM_MARKET
from services.collector.venues.binance_futures import USDM as USDM_MARKET
from services.collector.venues.binance_futures import BinanceFutures
from services.collector.venues.binance_spot import BINANCE, BINANCE_US, BinanceSpot

SPOT = BinanceSpot(BINANCE)
US = BinanceSpot(BINANCE_US)
USDM = BinanceFutures(USDM_MARKET)
COINM = BinanceFutures(COINM_MARKET)
ADAPTERS: Mapping[str, BinanceAdapter] = {
    adapter.exchange: adapter for adapter in (SPOT, US, USDM, COINM)
}


def fields(message: Message) -> dict[str, Any]:
    """Fields that are set, by name; times in nanoseconds, durations in seconds."""
    told: dict[str, Any] = {}
    for field, value in message.ListFields():
        if isinstance(value, Timestamp):
            told[field.name] = value.seconds * 10**9 + value.nanos
        elif isinstance(value, Duration):
            told[field.name] = value.seconds
        else:
            told[field.name] = value
    return told


def plain(message: VenueMessage) -> Any:
    """A message as a value: observations as a tuple with a dict, several of them as a list."""
    if isinstance(message, Several):
        return [plain(each) for each in message.messages]
    if isinstance(message, Observation):
        return (
            common_pb2.EventKind.Name(message.kind).removeprefix("EVENT_KIND_"),
            message.native_symbol,
            message.symbol,
            fields(message.message),
            message.contracts,
            message.key,
            message.event_id,
        )
    return message
