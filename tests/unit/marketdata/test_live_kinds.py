"""Every kind beside books and trades: the latest is kept, and who listens misses nothing."""

import gc

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from marketprism.market.v1 import common_pb2, events_pb2, market_data_service_pb2

from services.marketdata.live_kinds import INDEX_KINDS, KIND_OF_SUBJECT, KINDS
from services.marketdata.market import Market
from services.marketdata.settings import MarketDataSettings
from services.shared.errors import NotFound
from tests.unit.marketdata.test_market import Stored

C = common_pb2
KEY = ("okx", "BTC-USDT-PERP")


@pytest.fixture
def market() -> Market:
    made = Market(MarketDataSettings(max_instruments=3))
    made.catalog.ready = True
    return made


def send(market: Market, kind: int, *events: Message, key: tuple[str, str] = KEY) -> None:
    subject = f"market.{KINDS[kind].name}.{key[0]}.{key[1]}"
    market.on_reference([Stored(subject, each.SerializeToString()) for each in events])


def event_of(number: int, /, **values: object) -> Message:
    return KINDS[number].message(exchange=KEY[0], symbol=KEY[1], **values)


def decoded(*items: bytes) -> list[Message]:
    response = market_data_service_pb2.SubscribeResponse.FromString(b"".join(items))
    return [getattr(each, str(each.WhichOneof("event"))) for each in response.events]


def test_every_kind_of_the_contract_is_known_by_its_subject() -> None:
    names = {v.name.removeprefix("EVENT_KIND_").lower() for v in C.EventKind.DESCRIPTOR.values}
    assert set(KIND_OF_SUBJECT) == names - {"unspecified", "order_book"}


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {C.EVENT_KIND_TRADE}))
def test_the_latest_of_each_kind_is_kept_as_its_own_bytes(market: Market, kind: int) -> None:
    first, second = event_of(kind), event_of(kind)
    first.receive_time.seconds, second.receive_time.seconds = 1, 2  # type: ignore[attr-defined]
    send(market, kind, first, second)
    assert decoded(*market.latest(kind, KEY)) == [second]
    assert market.latest_payloads(kind, KEY) == [second.SerializeToString()]
    assert market.keys(kind) == [KEY]
    assert market.tally.malformed == 0


def test_candles_are_kept_by_interval_and_ratios_by_whose(market: Market) -> None:
    candles = [event_of(C.EVENT_KIND_CANDLE, interval=Duration(seconds=s)) for s in (60, 300, 60)]
    send(market, C.EVENT_KIND_CANDLE, *candles)
    assert decoded(*market.latest(C.EVENT_KIND_CANDLE, KEY)) == [candles[2], candles[1]]
    ratios = [event_of(C.EVENT_KIND_LONG_SHORT_RATIO, kind=kind) for kind in (1, 2, 3, 2)]
    send(market, C.EVENT_KIND_LONG_SHORT_RATIO, *ratios)
    assert len(market.latest(C.EVENT_KIND_LONG_SHORT_RATIO, KEY)) == 3


def test_who_holds_a_log_gets_every_event_and_the_log_goes_with_the_last_holder(
    market: Market,
) -> None:
    kind = C.EVENT_KIND_FUNDING_RATE
    events = [event_of(kind, funding_rate=f"0.{number}") for number in range(1, 4)]
    send(market, kind, events[0])
    log = market.kind_log(kind, KEY)
    assert market.kind_log(kind, KEY) is log
    send(market, kind, *events[1:])
    assert decoded(*log.items(log.first)) == events[1:]
    assert market.kinds.log_bytes > 0
    del log
    gc.collect()
    assert market.kinds.log_bytes == 0
    send(market, kind, *events)
    assert market.kind_log(kind, KEY).end == 0


def test_what_cannot_be_decoded_or_is_another_s_is_counted_and_not_kept(market: Market) -> None:
    kind = C.EVENT_KIND_MARK_PRICE
    market.on_reference([Stored("market.mark_price.okx.BTC-USDT-PERP", b"\xff")])
    send(market, kind, events_pb2.MarkPrice(exchange="okx", symbol="ANOTHER"))
    assert market.tally.malformed == 2
    assert market.latest(kind, KEY) == []


@pytest.mark.parametrize("kind", sorted(INDEX_KINDS))
def test_an_index_is_no_instrument(market: Market, kind: int) -> None:
    key = ("okx", "BTC-USD")
    send(market, C.EVENT_KIND_MARK_PRICE, event_of(C.EVENT_KIND_MARK_PRICE))
    send(market, kind, KINDS[kind].message(exchange=key[0], symbol=key[1]), key=key)
    assert len(market.latest(kind, key)) == 1
    assert len(market.catalog) == 1
    with pytest.raises(NotFound, match="is an index"):
        market.book(key)
    with pytest.raises(NotFound, match="no instrument"):
        market.kind_log(kind, ("okx", "DOGE-USD"))


def test_who_listens_for_new_ones_hears_of_each_once_and_before_its_first_event(
    market: Market,
) -> None:
    kind = C.EVENT_KIND_TICKER
    heard = []
    logs = []

    def listen(new_kind: int, key: tuple[str, str]) -> None:
        heard.append((new_kind, key))
        logs.append(market.kind_log(new_kind, key))

    end = market.on_new(listen)
    send(market, kind, event_of(kind), event_of(kind))
    assert heard == [(kind, KEY)]
    assert logs[0].end == 2
    end()
    send(market, C.EVENT_KIND_CANDLE, event_of(C.EVENT_KIND_CANDLE))
    assert len(heard) == 1


def test_logs_end_with_the_market(market: Market) -> None:
    send(market, C.EVENT_KIND_TICKER, event_of(C.EVENT_KIND_TICKER))
    log = market.kind_log(C.EVENT_KIND_TICKER, KEY)
    market.close()
    assert log.closed
    send(market, C.EVENT_KIND_MARK_PRICE, event_of(C.EVENT_KIND_MARK_PRICE))
    assert market.kind_log(C.EVENT_KIND_MARK_PRICE, KEY).closed
