"""What is written by hand is what the protobuf library itself would write, byte for byte."""

from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from marketprism.market.v1 import common_pb2, events_pb2
from marketprism.market.v1 import order_book_pb2 as pb

from services.collector.book import OrderBook
from services.collector.encoding import BestBidOfferEncoder, OrderBookEncoder, TradeEncoder
from services.collector.wire import message_field, text_field, timestamp_field, uint_field
from services.shared.wire import varint

int64 = st.integers(-(2**63), 2**63 - 1)
uint64 = st.integers(0, 2**64 - 1)
times = st.one_of(
    st.just(0),
    st.integers(-(2**62), -1),
    st.integers(1, 4 * 10**18),
    st.integers(1, 4 * 10**12).map(lambda ms: ms * 1_000_000),
)
names = st.text("aZ09-_éж€", min_size=1, max_size=150)
levels = st.lists(
    st.tuples(
        st.decimals("0.00000001", 10**12, places=8).map(str),
        st.decimals(0, 10**12, places=8).map(str),
    ),
    max_size=20,
)


def _time(message: Any, field: str, nanoseconds: int) -> None:
    if nanoseconds > 0:
        getattr(message, field).FromNanoseconds(nanoseconds)


def _same(payload: bytes, message: Any) -> None:
    assert payload == message.SerializeToString(deterministic=True)
    assert type(message).FromString(payload) == message


@given(uint64)
def test_varint(value: int) -> None:
    assert uint_field(3, value) == pb.OrderBookUpdate(epoch=value).SerializeToString()


@given(int64)
def test_negative_ids_are_ten_bytes_as_the_library_writes_them(value: int) -> None:
    assert uint_field(7, value) == pb.OrderBookUpdate(venue_sequence=value).SerializeToString()
    assert len(varint(value)) == 10 or value >= 0


@given(st.text(max_size=300))
def test_text_field(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    assert text_field(12, text) == pb.OrderBookSnapshot(bid_horizon=text).SerializeToString()


@given(times)
def test_timestamp_field(nanoseconds: int) -> None:
    message = pb.OrderBookUpdate()
    _time(message, "exchange_time", nanoseconds)
    assert timestamp_field(b"\x2a", nanoseconds) == message.SerializeToString()


@given(st.integers(0, 999), st.integers(0, 2_000_000_000))
def test_timestamps_of_whole_milliseconds(millis: int, second: int) -> None:
    nanoseconds = second * 1_000_000_000 + millis * 1_000_000
    message = pb.OrderBookUpdate()
    _time(message, "receive_time", nanoseconds)
    assert timestamp_field(b"\x32", nanoseconds) == message.SerializeToString()


def test_an_empty_message_is_present_all_the_same() -> None:
    update = pb.OrderBookUpdate()
    update.exchange_time.CopyFrom(Timestamp())
    assert message_field(5, b"") == update.SerializeToString()


@given(
    names, names, uint64, st.integers(1, 2**63), times, times, int64, int64, int64, levels, levels
)
def test_update(
    exchange: str,
    symbol: str,
    epoch: int,
    sequence: int,
    exchange_time: int,
    receive_time: int,
    last: int,
    first: int,
    previous: int,
    bids: list[tuple[str, str]],
    asks: list[tuple[str, str]],
) -> None:
    encoder = OrderBookEncoder(exchange, symbol)
    encoder.begin_epoch(epoch)
    sequence = max(sequence, 1)  # an update is never the zeroth
    encoded = OrderBook().apply(bids, asks)
    changed = pb.OrderBookUpdate.FromString(encoded)
    expected = pb.OrderBookUpdate(
        exchange=exchange,
        symbol=symbol,
        epoch=epoch,
        sequence=sequence,
        venue_sequence=last,
        first_venue_sequence=first,
        previous_venue_sequence=previous,
        bids=changed.bids,
        asks=changed.asks,
    )
    _time(expected, "exchange_time", exchange_time)
    _time(expected, "receive_time", receive_time)
    payload = encoder.update(sequence, exchange_time, receive_time, last, first, previous, encoded)
    _same(payload, expected)


@given(names, names, uint64, uint64, times, times, int64, st.integers(0, 2), levels, levels,
       st.sampled_from(["", "0.5", "123456.75"]), st.sampled_from(["", "7"]))  # fmt: skip
def test_snapshot(
    exchange: str,
    symbol: str,
    epoch: int,
    sequence: int,
    exchange_time: int,
    receive_time: int,
    last: int,
    reason: int,
    bids: list[tuple[str, str]],
    asks: list[tuple[str, str]],
    bid_horizon: str,
    ask_horizon: str,
) -> None:
    encoder = OrderBookEncoder(exchange, symbol)
    encoder.begin_epoch(epoch)
    book = OrderBook()
    book.replace(bids, asks)
    expected = pb.OrderBookSnapshot(
        exchange=exchange,
        symbol=symbol,
        epoch=epoch,
        sequence=sequence,
        venue_sequence=last,
        reason=reason,  # type: ignore[arg-type]
        bids=[common_pb2.PriceLevel(price=p, quantity=q) for p, q in book.bids()],
        asks=[common_pb2.PriceLevel(price=p, quantity=q) for p, q in book.asks()],
        bid_horizon=bid_horizon,
        ask_horizon=ask_horizon,
    )
    _time(expected, "exchange_time", exchange_time)
    _time(expected, "receive_time", receive_time)
    payload = encoder.snapshot(
        sequence, exchange_time, receive_time, last, reason, book.encode_levels(),
        bid_horizon, ask_horizon,
    )  # fmt: skip
    _same(payload, expected)


@given(names, names, int64, times, times, st.booleans(), st.booleans())
def test_trade(
    exchange: str,
    symbol: str,
    number: int,
    exchange_time: int,
    receive_time: int,
    sold: bool,
    backfilled: bool,
) -> None:
    side = common_pb2.SIDE_SELL if sold else common_pb2.SIDE_BUY
    expected = events_pb2.Trade(
        exchange=exchange,
        symbol=symbol,
        trade_id=str(number),
        price="1.5",
        quantity="2",
        side=side,
        backfilled=backfilled,
    )
    _time(expected, "exchange_time", exchange_time)
    _time(expected, "receive_time", receive_time)
    payload = TradeEncoder(exchange, symbol).trade(
        str(number), exchange_time, receive_time, "1.5", "2", side, backfilled=backfilled
    )
    _same(payload, expected)


@given(names, names, int64, times, times, st.booleans(), st.booleans())
def test_best_bid_offer(
    exchange: str,
    symbol: str,
    number: int,
    exchange_time: int,
    receive_time: int,
    has_bid: bool,
    has_ask: bool,
) -> None:
    bid = ("99.5", "3") if has_bid else ("", "")
    ask = ("100", "0.25") if has_ask else ("", "")
    expected = events_pb2.BestBidOffer(
        exchange=exchange,
        symbol=symbol,
        venue_sequence=number,
        bid_price=bid[0],
        bid_quantity=bid[1],
        ask_price=ask[0],
        ask_quantity=ask[1],
    )
    _time(expected, "exchange_time", exchange_time)
    _time(expected, "receive_time", receive_time)
    payload = BestBidOfferEncoder(exchange, symbol).best_bid_offer(
        number, exchange_time, receive_time, bid, ask
    )
    _same(payload, expected)
