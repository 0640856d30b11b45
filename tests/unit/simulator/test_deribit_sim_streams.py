"""The simulated Deribit's frames: the venue's shape, and true at every change id."""

import json
import os
from collections.abc import Iterable
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from services.simulator.deribit import Deribit
from services.simulator.deribit_channels import parse_channel
from services.simulator.deribit_streams import DeribitStreams
from services.simulator.deribit_view import DeribitView
from services.simulator.fixed import canonical
from services.simulator.generated import GeneratedMarket
from services.simulator.market import Event
from services.simulator.venues import generated_market

_CAPTURES = os.environ.get("MARKETPRISM_CAPTURES")
_START = 1_795_000_000_000_000
_OPTION = "BTC-25DEC26-60000-C"
_SYMBOLS = ("BTC-PERPETUAL", "SOL_USDC-PERPETUAL", "BTC-25DEC26", _OPTION)


class Feed:
    """A market played without clock or sockets, its events told on a few channels."""

    def __init__(self, *channels: str, **options: Any) -> None:
        settings: dict[str, Any] = {
            "symbols": _SYMBOLS,
            "start_time_us": _START,
            "levels": 60,
            "trade_rate": 8.0,
            "warmup_seconds": 0.5,
        }
        self.market: GeneratedMarket = generated_market(Deribit(), **{**settings, **options})
        self.market.reference = True
        self.streams = DeribitStreams(DeribitView(self.market, 10_000), 1000)
        self.channels = set(channels)
        self.sent: dict[str, list[int]] = {}
        for name in channels:
            self.streams.begins(self.channel(name))

    def channel(self, name: str) -> Any:
        channel = parse_channel(name)
        assert channel is not None, name
        return channel

    def first(self, name: str) -> dict[str, Any]:
        text = self.streams.first(self.channel(name), None)
        assert text is not None
        return _data(text, name)

    def play(self, seconds: float) -> list[tuple[str, Any]]:
        """(channel, data) of every frame of the next seconds."""
        events: Iterable[Event] = self.market.advance(self.market.now_us + int(seconds * 1e6))
        frames = []
        for event in events:
            for name in self.streams.streams_of(event):
                if name not in self.channels:
                    continue
                text = self.streams.encode(event, name)
                if text is None:
                    continue
                frames.append((name, _data(text, name)))
                if name.startswith("trades."):
                    self.sent.setdefault(name, []).extend(self.streams.sent_ids(name))
        return frames


def _data(text: bytes, channel: str) -> Any:
    message = json.loads(text, parse_float=Decimal)
    assert list(message) == ["jsonrpc", "method", "params"]
    assert (message["method"], message["params"]["channel"]) == ("subscription", channel)
    return message["params"]["data"]


class NaiveBook:
    """A book kept by the venue's published rules and nothing else."""

    def __init__(self, snapshot: dict[str, Any]) -> None:
        assert snapshot["type"] == "snapshot"
        assert "prev_change_id" not in snapshot
        self.change_id = snapshot["change_id"]
        self.sides: dict[str, dict[Decimal, Decimal]] = {"bids": {}, "asks": {}}
        self._apply(snapshot)

    def change(self, data: dict[str, Any]) -> bool:
        """Whether the change continues the book; then it is applied."""
        assert data["type"] == "change"
        if data["prev_change_id"] != self.change_id:
            return False
        self.change_id = data["change_id"]
        self._apply(data)
        return True

    def _apply(self, data: dict[str, Any]) -> None:
        for name, side in self.sides.items():
            prices = [level[1] for level in data[name]]
            assert prices == sorted(prices, reverse=name == "bids"), "the venue sends best first"
            for action, price, amount in data[name]:
                price, amount = Decimal(price), Decimal(amount)
                if action == "new":
                    assert price not in side
                else:
                    assert price in side, f"{action} of a level that is not there"
                assert (action == "delete") == (amount == 0)
                if amount:
                    side[price] = amount
                else:
                    del side[price]

    def levels(self) -> tuple[list[tuple[Decimal, Decimal]], list[tuple[Decimal, Decimal]]]:
        return sorted(self.sides["bids"].items(), reverse=True), sorted(self.sides["asks"].items())


def _truth(
    market: GeneratedMarket, symbol: str, change_id: int, depth: int | None = None
) -> tuple[list[tuple[Decimal, Decimal]], list[tuple[Decimal, Decimal]]]:
    book = market.book_at(symbol, change_id, depth)
    return tuple(  # type: ignore[return-value]
        [(Decimal(canonical(price)), Decimal(canonical(amount))) for price, amount in side]
        for side in (book.bids, book.asks)
    )


@pytest.mark.parametrize("symbol", _SYMBOLS)
@pytest.mark.parametrize("interval", ["100ms", "agg2"])
def test_a_book_chains_and_equals_the_truth_at_every_change_id(symbol: str, interval: str) -> None:
    name = f"book.{symbol}.{interval}"
    feed = Feed(name)
    book = NaiveBook(feed.first(name))
    assert book.levels() == _truth(feed.market, symbol, book.change_id)
    steps = set()
    frames = feed.play(6.0)
    assert len(frames) >= (50 if interval == "100ms" else 5)
    for _, data in frames:
        before = book.change_id
        assert book.change(data), "a change does not continue the one before"
        assert book.levels() == _truth(feed.market, symbol, book.change_id)
        steps.add(book.change_id - before)
    assert min(steps) > 0
    assert len(steps) > 1, "change ids jump irregularly"


def test_a_later_subscriber_is_given_a_snapshot_which_the_same_changes_continue() -> None:
    name = "book.BTC-PERPETUAL.100ms"
    feed = Feed(name)
    NaiveBook(feed.first(name))
    feed.play(1.0)
    later = NaiveBook(feed.first(name))
    assert all(later.change(data) for _, data in feed.play(1.0))
    assert later.levels() == _truth(feed.market, "BTC-PERPETUAL", later.change_id)


def test_a_channel_that_nobody_followed_for_a_while_begins_with_the_book_of_now() -> None:
    name = "book.BTC-PERPETUAL.100ms"
    feed = Feed(name)
    NaiveBook(feed.first(name))
    feed.channels.clear()
    feed.play(1.0)
    feed.channels.add(name)
    book = NaiveBook(feed.first(name))
    assert all(book.change(data) for _, data in feed.play(1.0))
    assert book.levels() == _truth(feed.market, "BTC-PERPETUAL", book.change_id)


def test_a_reset_of_the_sequence_is_a_lower_change_id_without_a_snapshot() -> None:
    name = "book.BTC-PERPETUAL.100ms"
    feed = Feed(name)
    book = NaiveBook(feed.first(name))
    feed.market.reset_sequence("BTC-PERPETUAL", chained=False)
    frames = [data for _, data in feed.play(1.0)]
    continued = [book.change(data) for data in frames]
    broken = continued.index(False)
    assert frames[broken]["change_id"] < book.change_id
    assert not any(continued[broken:])
    again = NaiveBook(feed.first(name))
    assert all(again.change(data) for _, data in feed.play(1.0))
    assert again.levels() == _truth(feed.market, "BTC-PERPETUAL", again.change_id)


def test_left_out_ids_break_the_chain_though_nothing_was_lost() -> None:
    name = "book.BTC-PERPETUAL.100ms"
    feed = Feed(name)
    book = NaiveBook(feed.first(name))
    feed.market.skip_ids("BTC-PERPETUAL", 7)
    continued = [book.change(data) for _, data in feed.play(1.0)]
    assert not all(continued)


@pytest.mark.parametrize("depth", [1, 10, 20])
def test_a_grouped_book_tells_the_best_levels_whole(depth: int) -> None:
    name = f"book.BTC-PERPETUAL.none.{depth}.100ms"
    feed = Feed(name)
    for data in [feed.first(name), *(data for _, data in feed.play(2.0))]:
        told = tuple([(Decimal(p), Decimal(a)) for p, a in data[side]] for side in ("bids", "asks"))
        assert told == _truth(feed.market, "BTC-PERPETUAL", data["change_id"], depth)


def test_grouping_adds_up_the_amounts_within_a_step() -> None:
    name = "book.BTC-PERPETUAL.5.10.100ms"
    feed = Feed(name)
    frames = feed.play(1.0)
    assert frames
    for _, data in frames:
        bids, asks = _truth(feed.market, "BTC-PERPETUAL", data["change_id"])
        for levels, told, rounding in (
            (bids, data["bids"], ROUND_FLOOR),
            (asks, data["asks"], ROUND_CEILING),
        ):
            sums: dict[Decimal, Decimal] = {}
            for price, amount in levels:
                step = (price / 5).to_integral_value(rounding) * 5
                sums[step] = sums.get(step, Decimal(0)) + amount
            assert [(Decimal(p), Decimal(a)) for p, a in told] == list(sums.items())[:10]


def test_trades_are_contiguous_told_once_and_batched() -> None:
    name = "trades.BTC-PERPETUAL.100ms"
    feed = Feed(name, "trades.any.any.100ms", trade_rate=60.0)
    frames = feed.play(4.0)
    mine = [trade for channel, data in frames if channel == name for trade in data]
    made = [trade.trade_id for trade in feed.market.recent_trades("BTC-PERPETUAL", 10**6)]
    told = [trade["trade_seq"] for trade in mine]
    assert told == list(range(told[0], told[0] + len(told)))
    assert set(told) <= set(made)
    assert told == feed.sent[name]
    assert any(len(data) > 1 for channel, data in frames if channel == name)
    everything = [trade for channel, data in frames if channel != name for trade in data]
    assert [trade for trade in everything if trade["instrument_name"] == "BTC-PERPETUAL"] == mine
    assert len({trade["trade_id"] for trade in everything}) == len(everything)


def test_tick_directions_follow_from_the_prices() -> None:
    name = "trades.BTC-PERPETUAL.100ms"
    feed = Feed(name, trade_rate=60.0)
    trades = [trade for _, data in feed.play(4.0) for trade in data]
    assert {trade["tick_direction"] for trade in trades} == {0, 1, 2, 3}
    for before, after in pairwise(trades):
        if after["price"] != before["price"]:
            assert after["tick_direction"] == (0 if after["price"] > before["price"] else 2)
        else:
            assert after["tick_direction"] in (1, 3)


def test_liquidations_are_marked_by_whose_order_was_one() -> None:
    name = "trades.BTC-PERPETUAL.100ms"
    feed = Feed(name, trade_rate=400.0)
    trades = [trade for _, data in feed.play(6.0) for trade in data]
    marks = [trade["liquidation"] for trade in trades if "liquidation" in trade]
    assert set(marks) >= {"T", "M"}
    assert set(marks) <= {"T", "M", "MT"}
    taken = {each.trade_id for each in feed.market.liquidations("BTC-PERPETUAL", 10**6)}
    told = {trade["trade_seq"] for trade in trades if trade.get("liquidation") in ("T", "MT")}
    assert told
    assert told <= taken


def test_a_quote_is_the_best_level_of_the_book_grown_from_the_same_frames() -> None:
    feed = Feed("quote.BTC-PERPETUAL")
    quotes = [data for _, data in feed.play(2.0)]
    book = feed.market.book("BTC-PERPETUAL", 1)
    assert Decimal(quotes[-1]["best_bid_price"]) == Decimal(canonical(book.bids[0][0]))
    assert Decimal(quotes[-1]["best_ask_amount"]) == Decimal(canonical(book.asks[0][1]))


def test_a_candle_of_several_minutes_holds_those_of_one() -> None:
    one, three = (f"chart.trades.BTC-PERPETUAL.{minutes}" for minutes in (1, 3))
    feed = Feed(one, three)
    last: dict[tuple[str, int], Any] = {}
    for _ in range(400):
        for channel, data in feed.play(1.0):
            last[channel, data["tick"]] = data
    begins = sorted(tick for channel, tick in last if channel == three)
    begin = begins[1]
    assert begin % 180_000 == 0
    minutes = [last[one, begin + offset] for offset in (0, 60_000, 120_000)]
    whole = last[three, begin]
    assert whole["high"] == max(each["high"] for each in minutes)
    assert whole["cost"] == sum(each["cost"] for each in minutes)
    assert (whole["open"], whole["close"]) == (minutes[0]["open"], minutes[-1]["close"])


def test_listings_and_expirations_are_told_by_kind_and_currency() -> None:
    feed = Feed("instrument.state.future.BTC", "instrument.state.any.any", "book.BTC-25DEC26.100ms")
    feed.play(0.5)
    feed.market.expire("BTC-25DEC26")
    feed.market.list_instrument(Deribit().listed("BTC-26MAR27"))
    told = [data for channel, data in feed.play(0.5) if channel == "instrument.state.future.BTC"]
    assert [(data["instrument_name"], data["state"]) for data in told] == [
        ("BTC-25DEC26", "closed"),
        ("BTC-26MAR27", "started"),
    ]
    assert all(channel != "book.BTC-25DEC26.100ms" for channel, _ in feed.play(0.5))


def test_a_changed_tick_continues_the_book_on_the_new_grid() -> None:
    name = "book.BTC-PERPETUAL.100ms"
    feed = Feed(name)
    book = NaiveBook(feed.first(name))
    feed.market.change_tick("BTC-PERPETUAL", 5 * 10**8)
    assert all(book.change(data) for _, data in feed.play(2.0))
    assert book.levels() == _truth(feed.market, "BTC-PERPETUAL", book.change_id)
    assert all(price % 5 == 0 for side in book.levels() for price, _ in side)


def test_an_instrument_that_is_listed_again_begins_anew() -> None:
    name = "book.BTC-25DEC26.100ms"
    feed = Feed(name, "trades.BTC-25DEC26.100ms")
    NaiveBook(feed.first(name))
    feed.play(1.0)
    feed.market.expire("BTC-25DEC26")
    feed.play(0.5)
    feed.market.list_instrument(Deribit().listed("BTC-25DEC26"))
    feed.play(0.5)
    book = NaiveBook(feed.first(name))
    frames = feed.play(2.0)
    assert all(book.change(data) for channel, data in frames if channel == name)
    assert book.levels() == _truth(feed.market, "BTC-25DEC26", book.change_id)
    assert any(channel.startswith("trades.") for channel, _ in frames)


def test_option_marks_come_together_for_an_index() -> None:
    name = "markprice.options.btc_usd"
    feed = Feed(name)
    frames = [data for _, data in feed.play(3.0)]
    assert frames
    row = frames[-1][0]
    assert list(row) == ["timestamp", "iv", "instrument_name", "mark_price"]
    assert row["instrument_name"] == _OPTION
    assert Decimal("0.1") < Decimal(row["iv"]) < 3


@pytest.mark.parametrize("symbol", _SYMBOLS)
def test_a_ticker_is_consistent_in_itself(symbol: str) -> None:
    name = f"ticker.{symbol}.100ms"
    feed = Feed(name)
    for data in (data for _, data in feed.play(1.0)):
        assert data["best_bid_price"] < data["best_ask_price"]
        assert data["min_price"] < data["mark_price"] < data["max_price"]
        assert ("funding_8h" in data) == ("current_funding" in data) == ("PERPETUAL" in symbol)
        assert ("greeks" in data) == ("mark_iv" in data) == (symbol == _OPTION)
        assert data["stats"]["volume"] > 0
    if symbol == "BTC-PERPETUAL":
        assert isinstance(data["open_interest"], int)
        average = data["stats"]["volume_usd"] / data["stats"]["volume"]
        assert data["stats"]["low"] <= average + 1
        assert average - 1 <= data["stats"]["high"]


def _captured() -> list[tuple[str, Any]]:
    assert _CAPTURES is not None
    told = []
    path = Path(_CAPTURES) / "frames" / "present_day_2026.jsonl"
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if row["conn"].startswith("deribit"):
            params = json.loads(row["data"])["params"]
            told.append((params["channel"], params["data"]))
    return told


def _like(channel: str) -> str:
    # The channel of ours that is of the same kind as a captured one.
    kind, name, *rest = channel.split(".")
    return ".".join([kind, _OPTION if name.endswith("-C") else "BTC-PERPETUAL", *rest])


# A trade's keys stand in another order in each of the captured frames: only their set counts.
@pytest.mark.skipif(_CAPTURES is None, reason="needs MARKETPRISM_CAPTURES")
def test_frames_have_the_keys_of_those_that_the_venue_sends_today() -> None:
    captured = _captured()
    feed = Feed(*{_like(channel) for channel, _ in captured})
    firsts = {name: feed.first(name) for name in feed.channels if not name.startswith("trades.")}
    ours = [*firsts.items(), *feed.play(5.0)]
    compared = 0
    for channel, theirs in captured:
        name = _like(channel)
        candidates = [data for mine, data in ours if mine == name]
        if isinstance(theirs, list):
            assert set(candidates[-1][0]) - {"liquidation"} == set(theirs[0])
        else:
            same_type = [data for data in candidates if data.get("type") == theirs.get("type")]
            assert list(same_type[-1]) == list(theirs), channel
            for key, value in theirs.items():
                if isinstance(value, dict):
                    assert list(same_type[-1][key]) == list(value), (channel, key)
        compared += 1
    assert compared >= 7


@pytest.mark.skipif(_CAPTURES is None, reason="needs MARKETPRISM_CAPTURES")
def test_amounts_are_spelt_with_exponents_as_the_venue_does() -> None:
    assert _CAPTURES is not None
    text = (Path(_CAPTURES) / "frames" / "present_day_2026.jsonl").read_text()
    assert "1.0002e6" in text
    feed = Feed("book.BTC-PERPETUAL.100ms", levels=400)
    feed.first("book.BTC-PERPETUAL.100ms")
    events = feed.market.advance(feed.market.now_us + 3_000_000)
    frames = [
        feed.streams.encode(event, "book.BTC-PERPETUAL.100ms")
        for event in events
        if "book.BTC-PERPETUAL.100ms" in feed.streams.streams_of(event)
    ]
    assert any(frame is not None and b"e4]" in frame for frame in frames)
