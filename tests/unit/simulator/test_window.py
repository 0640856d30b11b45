"""A window of a book tells exactly what a client of the best N levels must be told."""

import itertools
import random

import pytest

from services.simulator.generated import GeneratedMarket, GeneratedSettings
from services.simulator.market import DepthUpdate, UpdateIdUnavailableError
from services.simulator.window import BookWindow, WindowChange

_START = 1_780_000_000_000_000


def _market(**options: object) -> GeneratedMarket:
    values = {"symbols": ("BTCUSDT",), "start_time_us": _START, "levels": 100, "trade_rate": 20}
    return GeneratedMarket(GeneratedSettings.model_validate({**values, **options}))


def _apply(sides: list[dict[int, int]], change: WindowChange) -> None:
    for side, changes in zip(sides, (change.bids, change.asks), strict=True):
        for price, before, after in changes:
            assert side.get(price, 0) == before
            if after:
                side[price] = after
            else:
                del side[price]


@pytest.mark.parametrize("depth", [None, 1, 5, 40, 5000])
def test_the_changes_keep_a_client_at_exactly_the_best_levels(depth: int | None) -> None:
    market, window = _market(), BookWindow("BTCUSDT", depth)
    start = window.snapshot(market, market.frame_id("BTCUSDT"))
    sides, told = [dict(start.bids), dict(start.asks)], start.update_id
    empty = 0
    for event in market.advance(_START + 20_000_000):
        if type(event) is not DepthUpdate or event.interval_ms != 100:
            continue
        change = window.follow(market, event)
        if change.empty:
            empty += 1
            continue
        assert change.previous_id == told, "a change continues the one that was told before it"
        _apply(sides, change)
        told = change.last_id
        truth = market.book_at("BTCUSDT", told, depth)
        assert sides == [dict(truth.bids), dict(truth.asks)]
    assert told != start.update_id
    assert depth != 1 or empty, "with one level, some frames must change nothing that is seen"


def test_a_snapshot_taken_at_any_time_is_continued_by_the_next_change() -> None:
    market, window = _market(), BookWindow("BTCUSDT", 3)
    chosen = random.Random(7)
    holding: list[tuple[int, list[dict[int, int]]]] = []
    for number in range(1, 200):
        for event in market.advance(_START + number * 50_000):
            if type(event) is DepthUpdate and event.interval_ms == 100 and holding:
                change = window.follow(market, event)
                if change.empty:
                    continue
                for index, (told, sides) in enumerate(holding):
                    assert told == change.previous_id
                    _apply(sides, change)
                    holding[index] = (change.last_id, sides)
        if chosen.random() < 0.1:
            start = window.snapshot(market, market.frame_id("BTCUSDT"))
            assert start.bids == market.book_at("BTCUSDT", start.update_id, 3).bids
            holding.append((start.update_id, [dict(start.bids), dict(start.asks)]))
    assert len(holding) > 5


@pytest.mark.parametrize("chained", [True, False])
def test_ids_that_begin_again_lower_can_be_asked_for_on_both_sides(chained: bool) -> None:
    market, window = _market(), BookWindow("BTCUSDT", 50)
    begin = window.snapshot(market, market.frame_id("BTCUSDT"))
    sides, last = [dict(begin.bids), dict(begin.asks)], begin.update_id
    ids: list[int] = []
    breaks = 0
    for number in range(1, 7):
        for event in market.advance(_START + number * 1_000_000):
            if type(event) is not DepthUpdate or event.interval_ms != 100:
                continue
            change = window.follow(market, event)
            if change.previous_id != last:
                breaks += 1
            _apply(sides, change)
            last = change.last_id
            ids.append(last)
        market.reset_sequence("BTCUSDT", chained=chained)
    assert sum(later < earlier for earlier, later in itertools.pairwise(ids)) == 5
    assert breaks == (0 if chained else 5), "only a chained reset names the id before it"
    for update_id in ids:
        assert market.book_at("BTCUSDT", update_id).update_id == update_id
    truth = market.book_at("BTCUSDT", last, 50)
    assert sides == [dict(truth.bids), dict(truth.asks)]


def test_skipped_ids_break_the_chain_and_change_no_book() -> None:
    market, window = _market(), BookWindow("BTCUSDT", 50)
    start = window.snapshot(market, market.frame_id("BTCUSDT"))
    market.skip_ids("BTCUSDT", 9)
    changes = [
        window.follow(market, event)
        for event in market.advance(_START + 1_000_000)
        if type(event) is DepthUpdate and event.interval_ms == 100
    ]
    chain = [start.update_id, *(change.last_id for change in changes)]
    broken = [
        change.previous_id - before
        for change, before in zip(changes, chain, strict=False)
        if change.previous_id != before
    ]
    assert broken == [9]
    skipped = next(
        c.previous_id for c, before in zip(changes, chain, strict=False) if c.previous_id != before
    )
    whole = market.book_at("BTCUSDT", skipped)
    for update_id in range(skipped - 9, skipped):
        assert market.book_at("BTCUSDT", update_id).bids == whole.bids


def test_a_book_whose_ids_are_no_longer_kept_says_so() -> None:
    market = _market(history=100)
    old = market.frame_id("BTCUSDT")
    market.advance(_START + 5_000_000)
    with pytest.raises(UpdateIdUnavailableError, match="no longer kept"):
        market.book_at("BTCUSDT", old)
    market.reset_sequence("BTCUSDT", chained=True)
    market.advance(_START + 10_000_000)
    with pytest.raises(UpdateIdUnavailableError, match="no longer kept"):
        market.book_at("BTCUSDT", old)
    with pytest.raises(UpdateIdUnavailableError, match="not reached"):
        market.book_at("BTCUSDT", old + 10**9)


def test_a_change_of_the_tick_leaves_a_true_book_on_the_new_grid() -> None:
    market, window = _market(), BookWindow("BTCUSDT")
    start = window.snapshot(market, market.frame_id("BTCUSDT"))
    sides = [dict(start.bids), dict(start.asks)]
    for number, tick in enumerate((25 * 10**6, 10**6, 10**8), start=1):
        market.change_tick("BTCUSDT", tick)
        for event in market.advance(_START + number * 3_000_000):
            if type(event) is DepthUpdate and event.interval_ms == 100:
                _apply(sides, window.follow(market, event))
        truth = market.book_at("BTCUSDT", market.frame_id("BTCUSDT"))
        assert sides == [dict(truth.bids), dict(truth.asks)]
        assert max(truth.bids)[0] < min(truth.asks)[0]
        assert market.symbols["BTCUSDT"].tick == tick
    assert all(price % 10**8 == 0 for side in sides for price in side)
