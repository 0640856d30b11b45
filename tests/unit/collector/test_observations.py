"""What a venue tells beside books and trades is published once, in order, under one id."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marketprism.market.v1 import common_pb2, events_pb2, market_event_pb2

from services.collector.contracts import ContractSize
from services.collector.observations import ObservationTape, kind_name
from services.collector.venues.base import Observation

TICKER = common_pb2.EVENT_KIND_TICKER
MARK = common_pb2.EVENT_KIND_MARK_PRICE
CANDLE = common_pb2.EVENT_KIND_CANDLE
LIQUIDATION = common_pb2.EVENT_KIND_LIQUIDATION
OPEN_INTEREST = common_pb2.EVENT_KIND_OPEN_INTEREST
INDEX = common_pb2.EVENT_KIND_INDEX_PRICE

SECOND = 1_000_000_000
T0 = 1_700_000_000 * SECOND


@dataclass
class Sent:
    """One published message."""

    subject: str
    payload: bytes
    message_id: str
    droppable_key: str | None


class Broker:
    """Keeps what is published, and the ids as JetStream does; takes nothing when `full`."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.stored: dict[str, Sent] = {}
        self.full = False

    def publish(
        self, subject: str, payload: bytes, message_id: str, *, droppable_key: str | None = None
    ) -> bool:
        if self.full:
            return False
        message = Sent(subject, payload, message_id, droppable_key)
        self.sent.append(message)
        self.stored.setdefault(message_id, message)
        return True


INSTRUMENTS = {
    "BTCUSDT": ("BTC-USDT-PERP", ContractSize("1")),
    "BTC-USD-SWAP": ("BTC-USD-PERP", ContractSize("100")),
}


def make_tape(broker: Broker) -> ObservationTape:
    return ObservationTape("venue", broker.publish, INSTRUMENTS.get)


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def tape(broker: Broker) -> ObservationTape:
    return make_tape(broker)


def observe(kind: Any, message: Any, seconds: float = 0, **more: Any) -> Observation:
    """An observation whose exchange_time is `seconds` after T0; none when 0."""
    if seconds:
        message.exchange_time.FromNanoseconds(T0 + int(seconds * SECOND))
    return Observation(kind, message, **({"native_symbol": "BTCUSDT"} | more))


def mark(price: str, seconds: float = 0) -> Observation:
    return observe(MARK, events_pb2.MarkPrice(mark_price=price), seconds)


def candle(minute: int, close: str, seconds: float = 0, *, closed: bool = False) -> Observation:
    message = events_pb2.Candle(close_price=close, closed=closed)
    message.interval.FromSeconds(60)
    message.open_time.FromNanoseconds(T0 + minute * 60 * SECOND)
    return observe(CANDLE, message, seconds, key="60")


def liquidation(quantity: str, seconds: float = 0, event_id: str = "") -> Observation:
    return observe(
        LIQUIDATION, events_pb2.Liquidation(quantity=quantity), seconds, event_id=event_id
    )


def prices(broker: Broker) -> list[str]:
    return [events_pb2.MarkPrice.FromString(one.payload).mark_price for one in broker.sent]


def closes(broker: Broker) -> list[tuple[str, bool]]:
    candles = [events_pb2.Candle.FromString(one.payload) for one in broker.sent]
    return [(one.close_price, one.closed) for one in candles]


def test_an_observation_is_completed_and_published_on_its_subject(
    tape: ObservationTape, broker: Broker
) -> None:
    assert tape.on_observation(mark("97000.5", 1), T0 + 2 * SECOND)
    (sent,) = broker.sent
    assert sent.subject == "market.mark_price.venue.BTC-USDT-PERP"
    expected = events_pb2.MarkPrice(exchange="venue", symbol="BTC-USDT-PERP", mark_price="97000.5")
    expected.exchange_time.FromNanoseconds(T0 + SECOND)
    expected.receive_time.FromNanoseconds(T0 + 2 * SECOND)
    assert events_pb2.MarkPrice.FromString(sent.payload) == expected
    assert tape.published == {"mark_price": 1}


def test_every_kind_has_the_subject_that_is_named_as_its_field_of_market_event() -> None:
    fields = set(market_event_pb2.MarketEvent.DESCRIPTOR.fields_by_name)
    kinds = set(common_pb2.EventKind.values()) - {0, common_pb2.EVENT_KIND_ORDER_BOOK}
    assert {kind_name(kind) for kind in kinds} <= fields


def test_contracts_are_converted_and_what_was_not_told_stays_empty(
    tape: ObservationTape, broker: Broker
) -> None:
    message = events_pb2.OpenInterest(open_interest="12.5", open_interest_base="3")
    observation = observe(
        OPEN_INTEREST,
        message,
        native_symbol="BTC-USD-SWAP",
        contracts=("open_interest", "open_interest_quote"),
    )
    assert tape.on_observation(observation, T0)
    told = events_pb2.OpenInterest.FromString(broker.sent[0].payload)
    assert told.open_interest == "1250"
    assert told.open_interest_base == "3", "expected only the fields that count contracts"
    assert told.open_interest_quote == ""


@pytest.mark.parametrize("text", ["-1", "many"])
def test_contracts_that_are_no_number_are_counted_and_not_told(
    tape: ObservationTape, broker: Broker, text: str
) -> None:
    observation = observe(
        OPEN_INTEREST,
        events_pb2.OpenInterest(open_interest=text),
        native_symbol="BTC-USD-SWAP",
        contracts=("open_interest",),
    )
    assert not tape.on_observation(observation, T0)
    assert not broker.sent
    assert tape.malformed == {"open_interest": 1}


def test_an_instrument_that_is_not_collected_is_dropped_and_counted(
    tape: ObservationTape, broker: Broker
) -> None:
    observation = observe(TICKER, events_pb2.Ticker(), native_symbol="DOGEUSDT")
    assert not tape.on_observation(observation, T0)
    assert not broker.sent
    assert tape.unresolved == {"ticker": 1}


def test_an_index_needs_no_instrument(tape: ObservationTape, broker: Broker) -> None:
    message = events_pb2.IndexPrice(index_price="97000")
    assert tape.on_observation(Observation(INDEX, message, symbol="BTC-USD"), T0)
    assert broker.sent[0].subject == "market.index_price.venue.BTC-USD"
    assert events_pb2.IndexPrice.FromString(broker.sent[0].payload).symbol == "BTC-USD"


@pytest.mark.parametrize("symbol", ["BTC.USD", "BTC USD", "*", ">", "a\u2028b", "x" * 101])
def test_an_index_whose_name_is_no_word_of_a_subject_is_refused(
    tape: ObservationTape, broker: Broker, symbol: str
) -> None:
    message = events_pb2.IndexPrice(index_price="97000")
    assert not tape.on_observation(Observation(INDEX, message, symbol=symbol), T0)
    assert not broker.sent
    assert tape.unresolved == {"index_price": 1}


# Duplicates of states


def test_the_same_over_two_connections_is_published_once(
    tape: ObservationTape, broker: Broker
) -> None:
    for seconds in (1, 2, 3):
        assert tape.on_observation(mark(f"{seconds}", seconds), T0 + seconds * SECOND)
        assert not tape.on_observation(mark(f"{seconds}", seconds), T0 + seconds * SECOND + 5)
    assert prices(broker) == ["1", "2", "3"]
    assert tape.duplicates == {"mark_price": 3}


def test_what_is_older_than_the_last_is_a_duplicate(tape: ObservationTape, broker: Broker) -> None:
    tape.on_observation(mark("2", 2), T0)
    assert not tape.on_observation(mark("1", 1), T0)
    assert prices(broker) == ["2"]


def test_at_one_time_of_the_venue_only_what_it_says_decides(
    tape: ObservationTape, broker: Broker
) -> None:
    for price in ("1", "1", "2", "2", "1"):
        tape.on_observation(mark(price, 5), T0)
    assert prices(broker) == ["1", "2", "1"]
    assert len(broker.stored) == 3, "expected an id of its own for the state that came back"


def test_without_a_time_of_the_venue_only_what_it_says_decides(
    tape: ObservationTape, broker: Broker
) -> None:
    for index, price in enumerate(("1", "1", "2", "1", "1")):
        tape.on_observation(mark(price), T0 + index)
    assert prices(broker) == ["1", "2", "1"]
    assert len(broker.stored) == 3, "expected JetStream to keep the state that came back"


def test_what_stands_side_by_side_does_not_displace_each_other(
    tape: ObservationTape, broker: Broker
) -> None:
    kind = common_pb2.EVENT_KIND_LONG_SHORT_RATIO
    for key, seconds in (("top_accounts", 300), ("all_accounts", 60), ("top_positions", 120)):
        assert tape.on_observation(
            observe(kind, events_pb2.LongShortRatio(ratio="1"), seconds, key=key), T0
        )
    assert len(broker.stored) == 3


def test_two_collectors_give_the_same_ids(broker: Broker) -> None:
    one, other = make_tape(broker), make_tape(broker)
    for tape, delay in ((one, 0), (other, 1_000_000)):
        tape.on_observation(mark("1", 1), T0 + delay)
        tape.on_observation(candle(1, "5", closed=True), T0 + delay)
        tape.on_observation(liquidation("1", 1, "id-1"), T0 + delay)
        tape.on_observation(liquidation("1", 1), T0 + delay)
    assert len(broker.sent) == 8
    assert len(broker.stored) == 4, "expected a restarted collector's messages to be dropped"


# The venue's clock


def feed(tape: ObservationTape, start: int, count: int, ahead: int) -> list[bool]:
    """A mark price a second, the venue's clock `ahead` seconds of ours."""
    return [
        tape.on_observation(mark(f"{now + 1}", now + ahead + 1), T0 + now * SECOND)
        for now in range(start, start + count)
    ]


def test_a_clock_that_steps_back_mutes_a_kind_for_a_minute_at_the_most(
    tape: ObservationTape,
) -> None:
    assert all(feed(tape, 0, 10, 7200))
    after = feed(tape, 10, 120, 3600)
    assert after.index(True) == 59
    assert all(after[59:])


def test_a_small_step_back_is_waited_out(tape: ObservationTape) -> None:
    feed(tape, 0, 10, 100)
    after = feed(tape, 10, 60, 80)
    assert after.index(True) == 19, "expected it at the last one's time again"
    assert all(after[19:])


def test_an_old_answer_that_is_repeated_is_not_a_step_of_the_clock(tape: ObservationTape) -> None:
    tape.on_observation(mark("300", 300), T0)
    for minute in range(1, 20):
        assert not tape.on_observation(mark("1", 1), T0 + minute * 60 * SECOND)
    assert tape.on_observation(mark("600", 600), T0 + 1200 * SECOND)


def test_a_second_connection_that_is_far_behind_is_never_followed(
    tape: ObservationTape, broker: Broker
) -> None:
    for now in range(300):
        assert tape.on_observation(mark(f"{now}", now + 1001), T0 + now * SECOND)
        assert not tape.on_observation(mark(f"{now}", now + 901), T0 + now * SECOND)


# Candles


def test_a_candle_opens_moves_and_closes(tape: ObservationTape, broker: Broker) -> None:
    tape.on_observation(candle(1, "5", 61), T0)
    tape.on_observation(candle(1, "6", 62), T0)
    tape.on_observation(candle(1, "7", 120, closed=True), T0)
    tape.on_observation(candle(2, "8", 121), T0)
    assert closes(broker) == [("5", False), ("6", False), ("7", True), ("8", False)]
    assert [one.droppable_key for one in broker.sent] == [
        "candle:venue/BTC-USDT-PERP",
        "candle:venue/BTC-USDT-PERP",
        None,
        "candle:venue/BTC-USDT-PERP",
    ]


def test_a_closed_candle_is_told_although_the_next_one_has_begun(
    tape: ObservationTape, broker: Broker
) -> None:
    tape.on_observation(candle(2, "8", 121), T0)
    assert tape.on_observation(candle(1, "7", 120, closed=True), T0)


def test_nothing_but_a_closed_candle_follows_a_closed_one(
    tape: ObservationTape, broker: Broker
) -> None:
    tape.on_observation(candle(1, "7", 120, closed=True), T0)
    assert not tape.on_observation(candle(1, "6", 130), T0)
    assert not tape.on_observation(candle(1, "6"), T0)
    assert not tape.on_observation(candle(1, "7", 125, closed=True), T0), "expected one at any time"
    assert tape.on_observation(candle(1, "7.1", 118, closed=True), T0), "expected the correction"
    assert closes(broker) == [("7", True), ("7.1", True)]


def test_candles_without_a_time_of_the_venue_close_once(
    tape: ObservationTape, broker: Broker
) -> None:
    for _ in range(2):
        tape.on_observation(candle(1, "6"), T0)
        tape.on_observation(candle(1, "7", closed=True), T0)
        tape.on_observation(candle(2, "8"), T0)
    assert closes(broker) == [("6", False), ("7", True), ("8", False)]


# Happenings


def test_each_happening_is_told_once_however_late(tape: ObservationTape, broker: Broker) -> None:
    assert tape.on_observation(liquidation("1", 10, "a"), T0)
    assert tape.on_observation(liquidation("1", 5, "b"), T0), "expected an older one to count"
    assert not tape.on_observation(liquidation("1", 10, "a"), T0)
    assert [one.droppable_key for one in broker.sent] == [None, None]


def test_liquidations_without_an_id_are_told_apart_by_all_they_say(
    tape: ObservationTape, broker: Broker
) -> None:
    assert tape.on_observation(liquidation("1", 10), T0)
    assert tape.on_observation(liquidation("2", 10), T0)
    assert tape.on_observation(liquidation("1", 9), T0)
    assert not tape.on_observation(liquidation("2", 10), T0)
    assert len(broker.stored) == 3


@pytest.mark.parametrize("event_id", ["a b", "\n", "x" * 5000, "é\ud7ff", "a\u2028"])
def test_any_id_of_a_venue_makes_a_publishable_one(
    tape: ObservationTape, broker: Broker, event_id: str
) -> None:
    assert tape.on_observation(liquidation("1", 1, event_id), T0)
    assert not tape.on_observation(liquidation("1", 1, event_id), T0)
    message_id = broker.sent[0].message_id
    assert message_id.isprintable()
    assert " " not in message_id
    assert len(message_id) < 300


# Backpressure


def test_what_found_no_room_is_told_when_it_comes_again(
    tape: ObservationTape, broker: Broker
) -> None:
    broker.full = True
    assert not tape.on_observation(mark("1", 1), T0)
    assert not tape.on_observation(liquidation("1", 1, "a"), T0)
    assert tape.dropped == {"liquidation": 1}, "expected states to be counted by on_dropped alone"
    broker.full = False
    assert tape.on_observation(mark("1", 1), T0)
    assert tape.on_observation(liquidation("1", 1, "a"), T0)


def test_after_a_drop_the_same_state_is_told_again(tape: ObservationTape, broker: Broker) -> None:
    tape.on_observation(mark("1", 1), T0)
    key = broker.sent[0].droppable_key
    assert key == "mark_price:venue/BTC-USDT-PERP"
    assert tape.on_dropped(key, 7)
    assert tape.dropped == {"mark_price": 7}
    assert tape.on_observation(mark("1", 1), T0)


@pytest.mark.parametrize(
    "key", ["venue/BTC-USDT-PERP", "top:venue/BTC-USDT-PERP", "mark_price:other/BTC-USDT-PERP", ""]
)
def test_a_key_of_somebody_else_is_left_alone(tape: ObservationTape, key: str) -> None:
    tape.on_observation(mark("1", 1), T0)
    assert not tape.on_dropped(key, 7)
    assert not tape.dropped


# What it tells, what it keeps


def test_it_tells_what_came_of_an_instrument(tape: ObservationTape) -> None:
    tape.on_observation(mark("1", 1), T0)
    tape.on_observation(mark("1", 1), T0 + 5)
    tape.on_observation(observe(TICKER, events_pb2.Ticker(last_price="1"), 1), T0 + 3)
    assert tape.states("BTC-USDT-PERP") == [(TICKER, 1, T0 + 3), (MARK, 1, T0 + 5)]
    assert tape.last_receive_time(MARK, "BTC-USDT-PERP") == T0 + 5, (
        "expected a duplicate to show that the stream is not silent"
    )
    assert tape.last_receive_time(CANDLE, "BTC-USDT-PERP") == 0
    assert tape.states("ETH-USDT") == []


def test_what_is_forgotten_begins_anew(tape: ObservationTape) -> None:
    tape.on_observation(mark("2", 2), T0)
    tape.forget("BTC-USDT-PERP")
    assert tape.states("BTC-USDT-PERP") == []
    assert tape.on_observation(mark("1", 1), T0)


def test_memory_stays_bounded_whatever_the_venue_sends(broker: Broker) -> None:
    tape = make_tape(broker)
    for index in range(2000):
        tape.on_observation(liquidation("1", 1, f"id-{index}"), T0)
        tape.on_observation(candle(index, "1", 1), T0)
        tape.on_observation(replace(mark("1", 1), key=f"key-{index}"), T0)
        tape.on_observation(mark(f"{index}", 1), T0)
    kinds = tape._symbols["BTC-USDT-PERP"]
    for told in kinds.values():
        assert len(told.ids) <= 256
        assert len(told.series) <= 32
        assert all(len(series._same_time or ()) <= 17 for series in told.series.values())


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 1, 2, 3, 100, 4000]), st.sampled_from("abc"), st.integers(0, 90)
        ),
        max_size=40,
    )
)
def test_whatever_comes_the_last_state_that_is_not_older_is_the_stored_one(
    arrivals: list[tuple[int, str, int]],
) -> None:
    broker = Broker()
    tape = make_tape(broker)
    now = T0
    for seconds, price, passed in arrivals:
        now += passed * SECOND + 1
        before = len(broker.sent)
        published = tape.on_observation(mark(price, seconds), now)
        assert published == (len(broker.sent) > before)
        told = events_pb2.MarkPrice.FromString(broker.sent[-1].payload)
        assert len(broker.stored) == len(broker.sent), "expected an id of its own for each"
        if seconds == 0 or published:
            assert told.mark_price == price
