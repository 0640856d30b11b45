"""Every trade is published once, in the order of ids, and every hole is filled or counted."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st
from marketprism.market.v1 import common_pb2, events_pb2

from services.collector.trades import TradeTape
from services.collector.venues.base import SkippedTrade, TradePrint


def trade(number: int, *, buyer_is_maker: bool = False) -> TradePrint:
    return TradePrint("BTCUSDT", number, number * 1_000_000, "1.5", "2", buyer_is_maker)


@dataclass
class Published:
    """What a tape published, decoded, and what it asked for."""

    trades: list[events_pb2.Trade] = field(default_factory=list)
    requests: list[tuple[int, int]] = field(default_factory=list)

    def tape(self, *, last_id: int = 0, max_held: int = 20_000) -> TradeTape:
        tape = TradeTape(
            "binance", "BTC-USDT", self.publish, lambda *hole: self.requests.append(hole), max_held
        )
        tape.last_id = last_id
        return tape

    def publish(self, payload: bytes, trade_id: int) -> None:
        message = events_pb2.Trade.FromString(payload)
        assert (message.venue_sequence or int(message.trade_id)) == trade_id
        self.trades.append(message)

    @property
    def ids(self) -> list[int]:
        return [int(message.trade_id) for message in self.trades]

    @property
    def backfilled(self) -> list[int]:
        return [int(message.trade_id) for message in self.trades if message.backfilled]


def feed(tape: TradeTape, *numbers: int) -> None:
    for number in numbers:
        tape.on_trade(trade(number), number)


def test_trades_are_published_as_they_come() -> None:
    out = Published()
    tape = out.tape()
    tape.on_trade(trade(7, buyer_is_maker=True), 1)
    tape.on_trade(trade(8), 2)
    assert [message.side for message in out.trades] == [common_pb2.SIDE_SELL, common_pb2.SIDE_BUY]
    assert (out.ids, tape.received, tape.last_id) == ([7, 8], 2, 8)


def test_a_hole_holds_what_follows_until_it_is_filled_in_order() -> None:
    out = Published()
    tape = out.tape()
    feed(tape, 1, 2, 5, 6)
    assert (out.ids, out.requests, tape.missing) == ([1, 2], [(3, 4)], (3, 4))
    assert tape.fill([trade(number) for number in range(1, 6)], 9) == (2, 0, ())
    assert (out.ids, out.backfilled) == ([1, 2, 3, 4, 5, 6], [3, 4])
    assert (tape.received, tape.backfilled, tape.missed) == (4, 2, 0)
    feed(tape, 7)
    assert out.ids[-1] == 7


def test_what_history_does_not_have_is_counted_and_named() -> None:
    out = Published()
    tape = out.tape()
    feed(tape, 1, 11)
    filled = tape.fill([trade(7), trade(9)], 9)
    assert filled == (2, 7, ((2, 6), (8, 8), (10, 10)))
    assert (out.ids, tape.missed) == ([1, 7, 9, 11], 7)


def test_an_empty_history_lets_the_stream_go_on() -> None:
    out = Published()
    tape = out.tape()
    feed(tape, 1, 5, 6)
    assert tape.fill([], 9) == (0, 3, ((2, 4),))
    feed(tape, 7)
    assert out.ids == [1, 5, 6, 7]


def test_a_second_hole_among_the_held_is_asked_for_next() -> None:
    out = Published()
    tape = out.tape()
    feed(tape, 1, 4, 5, 9, 10)
    assert out.requests == [(2, 3)]
    tape.fill([trade(2), trade(3)], 9)
    assert (out.ids, out.requests) == ([1, 2, 3, 4, 5], [(2, 3), (6, 8)])
    feed(tape, 11)
    tape.fill([trade(6), trade(7), trade(8)], 9)
    assert out.ids == list(range(1, 12))
    assert tape.received == 6


def test_duplicates_are_dropped_wherever_they_come() -> None:
    out = Published()
    tape = out.tape()
    feed(tape, 1, 2, 2, 1, 5, 5, 2, 6)
    tape.fill([trade(3), trade(4)], 9)
    assert (out.ids, tape.duplicates) == ([1, 2, 3, 4, 5, 6], 4)


def test_a_trade_that_came_late_is_not_lost_though_history_has_it_not() -> None:
    out = Published()
    tape = out.tape()
    feed(tape, 1, 4, 2)
    assert tape.missing == (2, 3)
    assert tape.fill([], 9) == (0, 1, ((3, 3),))
    assert (out.ids, out.backfilled) == ([1, 2, 4], [])


def test_trades_that_were_only_out_of_order_need_no_history() -> None:
    out = Published()
    tape = out.tape()
    feed(tape, 1, 3, 4, 2, 5)
    assert (out.ids, tape.missing, out.backfilled) == ([1, 2, 3, 4, 5], None, [])
    assert tape.fill([trade(2)], 9) == (0, 0, ()), "the answer comes late and means nothing"
    assert out.ids == [1, 2, 3, 4, 5]


def test_what_is_held_is_bounded() -> None:
    out = Published()
    tape = out.tape(max_held=10)
    feed(tape, 1)
    for number in range(3, 100):
        feed(tape, number)
        if tape.is_full:
            break
    assert len(out.ids) == 1
    assert number < 20
    tape.fill([], 9)
    assert (out.ids[-1], tape.missed, tape.is_full) == (number, 1, False)


def test_what_was_traded_while_no_process_ran_is_a_hole_like_any_other() -> None:
    out = Published()
    tape = out.tape(last_id=100)
    feed(tape, 104)
    assert out.requests == [(101, 103)]
    tape.fill([trade(number) for number in range(95, 105)], 9)
    assert (out.ids, out.backfilled) == ([101, 102, 103, 104], [101, 102, 103])


def test_what_an_earlier_process_stored_is_not_published_again() -> None:
    out = Published()
    tape = out.tape(last_id=100)
    feed(tape, 99, 100, 101)
    assert (out.ids, tape.duplicates) == ([101], 2)


def test_a_venue_that_numbers_anew_is_followed_and_loses_nothing() -> None:
    out = Published()
    tape = out.tape(last_id=1_000_000)
    feed(tape, *range(1, 60))
    assert (out.ids, tape.renumbered, tape.duplicates) == (list(range(1, 60)), 1, 0)


def test_repetitions_are_not_a_new_numbering() -> None:
    out = Published()
    tape = out.tape(last_id=100)
    for _ in range(20):
        feed(tape, *range(60, 100))
    assert (out.ids, tape.renumbered) == ([], 0)


@given(st.data())
def test_any_order_any_loss_any_repetition_publishes_each_trade_once_in_order(
    data: st.DataObject,
) -> None:
    """Whatever arrives or is in the venue's history is published exactly once, ids ascending."""
    count = data.draw(st.integers(1, 40))
    arriving = data.draw(st.lists(st.integers(1, count), max_size=80))
    in_history = data.draw(st.sets(st.integers(1, count)))
    out = Published()
    tape = out.tape(last_id=data.draw(st.integers(0, 3)))
    floor = tape.last_id
    first = 0
    for number in arriving:
        first = first or (number if floor == 0 else floor + 1)
        feed(tape, number)
        if tape.missing is not None and data.draw(st.booleans()):
            low, high = tape.missing
            tape.fill([trade(n) for n in sorted(in_history) if data.draw(st.just(True))], 0)
            assert tape.missing is None or tape.missing > (low, high)
    while tape.missing is not None:
        tape.fill([trade(n) for n in sorted(in_history)], 0)
    assert out.ids == sorted(set(out.ids))
    expected_span = set(range(first or 1, max(out.ids, default=0) + 1))
    assert len(expected_span - set(out.ids)) == tape.missed
    assert tape.received == len(arriving)
    assert expected_span & in_history - set(out.ids) == set() or tape.missed


# Numbers without a trade, and trades that stand for several


def folded(last: int, count: int, ms: int = 0) -> TradePrint:
    """One message for `count` trades, the last of which is `last`."""
    return TradePrint("X", last, (ms or last) * 1_000_000, "1", str(count), False, count)


def test_a_number_that_is_no_trade_of_the_market_is_used_up_and_not_told() -> None:
    out = Published()
    tape = out.tape()
    feed(tape, 1)
    tape.on_trade(SkippedTrade("X", 2), 2)
    feed(tape, 3)
    assert (out.ids, out.requests, tape.last_id) == ([1, 3], [], 3)
    tape.on_trade(SkippedTrade("X", 2), 4)
    assert (tape.duplicates, tape.received) == (1, 4)


def test_a_skipped_number_closes_a_hole_and_shows_one() -> None:
    out = Published()
    tape = out.tape()
    feed(tape, 1)
    tape.on_trade(SkippedTrade("X", 3), 3)
    assert (out.requests, tape.missing) == ([(2, 2)], (2, 2))
    tape.on_trade(SkippedTrade("X", 2), 4)
    feed(tape, 4)
    assert (out.ids, tape.missing, tape.missed) == ([1, 4], None, 0)


def test_what_history_has_not_but_the_stream_skipped_is_not_lost() -> None:
    out = Published()
    tape = out.tape()
    feed(tape, 1, 6)
    tape.on_trade(SkippedTrade("X", 4), 7)
    filled = tape.fill([trade(3), trade(5)], 9)
    assert filled == (2, 1, ((2, 2),))
    assert (out.ids, tape.missed) == ([1, 3, 5, 6], 1)


def test_a_trade_that_stands_for_several_continues_what_came_before_the_first_of_them() -> None:
    out = Published()
    tape = out.tape()
    feed(tape, 10)
    tape.on_trade(folded(13, 3), 1)
    tape.on_trade(folded(14, 1), 2)
    assert (out.ids, [each.trade_count for each in out.trades]) == ([10, 13, 14], [0, 3, 1])
    assert out.requests == []
    tape.on_trade(folded(20, 2), 3)
    assert out.requests == [(15, 18)]
    assert tape.fill([trade(n) for n in range(1, 30)], 4) == (4, 0, ())
    assert out.ids == [10, 13, 14, 15, 16, 17, 18, 20]


def test_several_that_came_late_as_one_are_not_told_again_from_history() -> None:
    out = Published()
    tape = out.tape()
    feed(tape, 1, 9)
    tape.on_trade(folded(6, 3), 1)
    filled = tape.fill([trade(n) for n in range(1, 9)], 2)
    assert out.ids == [1, 2, 3, 6, 7, 8, 9]
    assert (filled, tape.missed) == ((4, 0, ()), 0)


def test_a_hole_is_closed_when_several_come_late_as_one() -> None:
    out = Published()
    tape = out.tape()
    feed(tape, 1, 6)
    tape.on_trade(folded(5, 4), 1)
    assert (out.ids, tape.missing, tape.missed) == ([1, 5, 6], None, 0)


def test_what_is_missing_beside_several_that_came_as_one_is_counted_by_number() -> None:
    out = Published()
    tape = out.tape()
    feed(tape, 1, 10)
    tape.on_trade(folded(6, 3), 1)
    assert tape.fill([], 2) == (0, 5, ((2, 3), (7, 9)))
    assert tape.missed == 5


def test_a_count_beyond_belief_costs_nothing() -> None:
    out = Published()
    tape = out.tape()
    feed(tape, 1, 10**18)
    tape.on_trade(folded(10**17, 10**17 - 10), 1)
    filled = tape.fill([trade(n) for n in range(1, 100)], 2)
    assert (filled.found, out.ids[-1]) == (9, 10**18)


# Numbering anew


def test_many_trades_at_one_time_that_another_connection_repeats_are_no_new_numbering() -> None:
    """One order may make hundreds of trades, and two connections tell each of them."""
    out = Published()
    tape = out.tape()
    sweep = [TradePrint("X", number, 10**18, "1", "1", False) for number in range(1, 201)]
    for _ in range(2):
        for each in sweep:
            tape.on_trade(each, 1)
    assert (out.ids, tape.renumbered, tape.duplicates) == (list(range(1, 201)), 0, 200)


def test_old_numbers_are_a_new_numbering_only_when_they_are_newer_by_time() -> None:
    out = Published()
    tape = out.tape()
    now = 10**18
    tape.on_trade(TradePrint("X", 10_000, now, "1", "1", False), 1)
    for number in range(1, 200):
        tape.on_trade(TradePrint("X", number, now - 1, "1", "1", False), 1)
    assert tape.renumbered == 0
    for number in range(1, 51):
        tape.on_trade(TradePrint("X", number, now + number, "1", "1", False), 1)
    assert (tape.renumbered, tape.last_id) == (1, 50)
    assert out.ids == [10_000, *range(1, 51)]
    tape.on_trade(TradePrint("X", 51, now + 51, "1", "1", False), 1)
    assert out.ids[-1] == 51


def test_a_new_numbering_is_seen_where_trades_stand_for_several() -> None:
    out = Published()
    tape = out.tape(last_id=10_000)
    for number in range(3, 3 * 51, 3):
        tape.on_trade(folded(number, 3), 1)
    assert (tape.renumbered, tape.last_id) == (1, 150)
    assert out.ids == list(range(3, 151, 3))


def test_a_venue_with_ids_of_its_own_is_told_by_them_and_numbered_beside() -> None:
    out = Published()
    tape = out.tape()
    tape.on_trade(TradePrint("X", 7, 1, "1", "1", False, venue_id="ETH-123"), 1)
    assert (out.trades[0].trade_id, out.trades[0].venue_sequence) == ("ETH-123", 7)
