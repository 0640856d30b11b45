"""What the shape of the messages makes possible, on the generated classes."""

import importlib
from pathlib import Path

import pytest
from google.protobuf.internal import encoder
from marketprism.collector.v1 import integrity_event_pb2
from marketprism.history.v1 import history_service_pb2
from marketprism.market.v1 import (
    common_pb2,
    events_pb2,
    market_data_service_pb2,
    market_event_pb2,
    order_book_pb2,
)

from tools.buf import ROOT

LENGTH_DELIMITED = 2


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field as it lies on the wire."""
    tag: bytes = encoder.TagBytes(number, LENGTH_DELIMITED)
    length: bytes = encoder._VarintBytes(len(content))
    return tag + length + content


@pytest.mark.parametrize(
    "response",
    [
        market_data_service_pb2.StreamOrderBookResponse,
        market_data_service_pb2.StreamTradesResponse,
        market_data_service_pb2.StreamMarketDataResponse,
        market_data_service_pb2.SubscribeResponse,
        history_service_pb2.StreamEventsResponse,
        history_service_pb2.ReplayMarketDataResponse,
    ],
)
def test_a_stream_response_is_spliced_of_encoded_events(response: type) -> None:
    """The bytes that the collector encoded are put into a response without decoding one."""
    trade = events_pb2.Trade(exchange="binance", symbol="BTC-USDT", trade_id="1", price="60000.5")
    update = order_book_pb2.OrderBookUpdate(
        exchange="binance",
        symbol="BTC-USDT",
        epoch=3,
        sequence=8,
        bids=[common_pb2.PriceLevel(price="60000.5", quantity="0")],
    )
    event = market_event_pb2.MarketEvent.DESCRIPTOR.fields_by_name
    spliced = b"".join(
        field(1, field(event[name].number, message.SerializeToString()))
        for name, message in (("trade", trade), ("order_book_update", update))
    )
    whole = response(
        events=[
            market_event_pb2.MarketEvent(trade=trade),
            market_event_pb2.MarketEvent(order_book_update=update),
        ]
    )
    assert spliced == whole.SerializeToString()
    assert response.FromString(spliced) == whole  # type: ignore[attr-defined]


def test_every_stream_of_events_has_them_in_field_one() -> None:
    """So that one splicing routine serves all streams."""
    for module in (market_data_service_pb2, history_service_pb2):
        for message in module.DESCRIPTOR.message_types_by_name.values():
            for each in message.fields:
                if each.message_type is market_event_pb2.MarketEvent.DESCRIPTOR:
                    assert (each.name, each.number) == ("events", 1), message.full_name
                    assert each.is_repeated, message.full_name


def test_the_ledger_serves_the_message_that_the_collector_sent() -> None:
    served = history_service_pb2.ListIntegrityEventsResponse.DESCRIPTOR.fields_by_name["events"]
    assert served.message_type is integrity_event_pb2.IntegrityEvent.DESCRIPTOR


def test_every_generated_module_can_be_imported() -> None:
    root = Path(ROOT / "gen/python")
    names = [
        ".".join(path.relative_to(root).with_suffix("").parts)
        for path in sorted(root.rglob("*_pb2*.py"))
    ]
    assert len(names) > 20
    for name in names:
        importlib.import_module(name)


def test_hand_written_modules_can_join_the_generated_package() -> None:
    """`marketprism` is a namespace: no __init__.py claims it for generated code."""
    assert list((ROOT / "gen/python").rglob("__init__.py")) == []
    assert importlib.import_module("marketprism").__file__ is None
