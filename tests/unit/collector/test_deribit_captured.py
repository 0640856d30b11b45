"""Every recorded frame of Deribit is read to what its JSON says, recomputed here by other means."""

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from marketprism.market.v1 import common_pb2, instrument_pb2
from marketprism.market.v1 import events_pb2 as pb

from services.collector.venues.base import (
    BookSnapshot,
    Ignored,
    Observation,
    Several,
    TopOfBook,
    TradePrint,
    VenueMessage,
)
from services.collector.venues.deribit import Deribit, DeribitBookUpdate
from tests.unit.collector.support import captures

DERIBIT = Deribit()
MS = 10**6
_FILES = ("deribit.jsonl.gz", "deribit_2021_2022.jsonl.gz", "present_day_2026.jsonl")


def _lines(name: str) -> Iterator[dict[str, Any]]:
    data = captures("frames", name).read_bytes()
    text = gzip.decompress(data) if name.endswith(".gz") else data
    for line in text.decode().splitlines():
        record = json.loads(line)
        if name != "present_day_2026.jsonl" or record["conn"].startswith("deribit"):
            yield record


def _frames(head: str) -> list[tuple[str, str, Any]]:
    """Frames of the channels that begin so: text, channel, data with Decimal numbers."""
    found = []
    for name in _FILES:
        for record in _lines(name):
            push = json.loads(record["data"], parse_float=Decimal, parse_int=Decimal)
            channel = push.get("params", {}).get("channel", "")
            if channel.startswith(f"{head}."):
                found.append((record["data"], channel, push["params"]["data"]))
    return found


def _all(message: VenueMessage) -> tuple[VenueMessage, ...]:
    return message.messages if isinstance(message, Several) else (message,)


def _plain(number: Any) -> str:
    """A JSON number as a plain decimal; empty where there is none."""
    if number is None or isinstance(number, str):
        return ""
    text = format(number, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _level(price: Any, amount: Any) -> tuple[str, str]:
    return (_plain(price), _plain(amount)) if amount else ("", "")


def _time(message: Any) -> int:
    return int(message.exchange_time.ToNanoseconds())


def _stated(data: Any, *names: str) -> dict[str, str]:
    return {name: _plain(data.get(name)) for name in names}


def _unit(native: str) -> str:
    """Unit of an instrument, read from its name as the venue's documents describe it."""
    if any(part in native for part in ("-FS-", "-STRD-", "-CSR12-")):
        return "?"
    parts = native.split("-")
    return "quote" if "_" not in parts[0] and len(parts) == 2 else "base"


def test_every_frame_is_of_a_kind_that_is_told() -> None:
    seen: Counter[str] = Counter()
    for name in _FILES:
        for record in _lines(name):
            for message in _all(DERIBIT.decode(record["data"])):
                if isinstance(message, Ignored):
                    assert '"result"' in record["data"], "only answers of the REST interface"
                    seen["answer"] += 1
                elif isinstance(message, Observation):
                    seen[common_pb2.EventKind.Name(message.kind)] += 1
                else:
                    seen[type(message).__name__] += 1
    assert seen == {
        "BookSnapshot": 9,
        "DeribitBookUpdate": 7,
        "TradePrint": 10,
        "EVENT_KIND_LIQUIDATION": 2,
        "TopOfBook": 3,
        "EVENT_KIND_TICKER": 15,
        "EVENT_KIND_MARK_PRICE": 15,
        "EVENT_KIND_OPEN_INTEREST": 15,
        "EVENT_KIND_FUNDING_RATE": 4,
        "EVENT_KIND_OPTION_GREEKS": 9,
        "EVENT_KIND_CANDLE": 3,
        "answer": 7,
    }


def test_books() -> None:
    for text, channel, data in _frames("book"):
        message = DERIBIT.decode(text)
        changes = "prev_change_id" in data and data.get("type") != "snapshot"
        if changes:
            assert isinstance(message, DeribitBookUpdate)
            assert (message.previous, message.first) == (data["prev_change_id"], data["change_id"])
        else:
            assert isinstance(message, BookSnapshot)
            assert message.limit == (20 if ".none.20." in channel else 0)
        assert message.native_symbol == data["instrument_name"] == channel.split(".")[1]
        assert (message.last, message.checksum) == (data["change_id"], 0)
        assert message.exchange_time == data["timestamp"] * MS
        for levels, told in ((message.bids, data["bids"]), (message.asks, data["asks"])):
            assert [(Decimal(price), Decimal(amount)) for price, amount in levels] == [
                (each[-2], 0 if each[0] == "delete" else each[-1]) for each in told
            ]


def test_trades_and_liquidations() -> None:
    for text, _, data in _frames("trades"):
        messages = list(_all(DERIBIT.decode(text)))
        for trade in data:
            taker_buys = trade["direction"] == "buy"
            price, quantity = _plain(trade["price"]), _plain(trade["amount"])
            whose = trade.get("liquidation", "")
            assert messages.pop(0) == TradePrint(
                trade["instrument_name"],
                int(trade["trade_seq"]),
                int(trade["timestamp"]) * MS,
                price,
                quantity,
                not taker_buys,
                liquidation=bool(whose),
                venue_id=trade["trade_id"],
            )
            if whose:
                forced = messages.pop(0)
                assert isinstance(forced, Observation)
                message: Any = forced.message
                buys = taker_buys if whose == "T" else not taker_buys
                assert message.side == (common_pb2.SIDE_BUY if buys else common_pb2.SIDE_SELL)
                assert (message.price, message.quantity) == (price, quantity)
                assert (message.average_price, message.filled_quantity) == (price, quantity)
                assert (message.liquidation_id, message.sampled) == (trade["trade_id"], False)
                assert _time(message) == trade["timestamp"] * MS
                assert forced.native_symbol == trade["instrument_name"]
                assert forced.event_id.startswith(trade["trade_id"])
        assert not messages


def test_quotes() -> None:
    for text, _, data in _frames("quote"):
        assert DERIBIT.decode(text) == TopOfBook(
            data["instrument_name"],
            0,
            int(data["timestamp"]) * MS,
            _level(data["best_bid_price"], data["best_bid_amount"]),
            _level(data["best_ask_price"], data["best_ask_amount"]),
        )


def _tickers() -> list[tuple[Any, dict[int, Any]]]:
    """Data of each ticker, and its messages by kind."""
    found = []
    for text, _, data in _frames("ticker"):
        messages: dict[int, Any] = {}
        for each in _all(DERIBIT.decode(text)):
            assert isinstance(each, Observation)
            assert (each.native_symbol, each.symbol) == (data["instrument_name"], "")
            assert _time(each.message) == data["timestamp"] * MS
            messages[each.kind] = each.message
        found.append((data, messages))
    return found


def test_tickers_tell_statistics() -> None:
    for data, messages in _tickers():
        stats = data["stats"]
        told: pb.Ticker = messages[common_pb2.EVENT_KIND_TICKER]
        assert told.last_price == _plain(data["last_price"])
        assert (told.high_price, told.low_price) == (
            _plain(stats.get("high")), _plain(stats.get("low")),
        )  # fmt: skip
        assert told.base_volume == _plain(stats["volume"])
        assert told.price_change_percent == _plain(stats.get("price_change"))
        bid = _level(data["best_bid_price"], data["best_bid_amount"])
        ask = _level(data["best_ask_price"], data["best_ask_amount"])
        assert (told.bid_price, told.bid_quantity) == bid
        assert (told.ask_price, told.ask_quantity) == ask
        if _unit(data["instrument_name"]) == "quote":
            assert told.quote_volume == _plain(stats.get("volume_usd"))
        else:
            assert told.quote_volume == _plain(stats.get("volume_notional"))


def test_tickers_tell_marks_interest_and_funding() -> None:
    perpetuals = 0
    for data, messages in _tickers():
        mark: pb.MarkPrice = messages[common_pb2.EVENT_KIND_MARK_PRICE]
        assert mark.mark_price == _plain(data["mark_price"])
        assert mark.index_price == _plain(data["index_price"])
        assert mark.estimated_settlement_price == _plain(data.get("estimated_delivery_price"))
        interest: pb.OpenInterest = messages[common_pb2.EVENT_KIND_OPEN_INTEREST]
        number, unit = _plain(data["open_interest"]), _unit(data["instrument_name"])
        assert interest.open_interest == number
        assert interest.open_interest_base == (number if unit == "base" else "")
        assert interest.open_interest_quote == (number if unit == "quote" else "")
        funding: pb.FundingRate | None = messages.get(common_pb2.EVENT_KIND_FUNDING_RATE)
        assert (funding is not None) == data["instrument_name"].endswith("-PERPETUAL")
        if funding is not None:
            perpetuals += 1
            assert funding.funding_rate == _plain(data["current_funding"])
            assert funding.funding_interval.seconds == 8 * 3600
            assert not funding.HasField("funding_time")
    assert perpetuals == 4


def test_tickers_of_options_tell_greeks() -> None:
    options = 0
    for data, messages in _tickers():
        told: pb.OptionGreeks | None = messages.get(common_pb2.EVENT_KIND_OPTION_GREEKS)
        assert (told is not None) == ("greeks" in data)
        if told is None:
            continue
        options += 1
        for name in ("delta", "gamma", "vega", "theta", "rho"):
            assert getattr(told, name) == _plain(data["greeks"][name])
        for name in ("mark_iv", "bid_iv", "ask_iv"):
            assert getattr(told, name) == _plain(data[name] / 100)
        assert told.mark_price == _plain(data["mark_price"])
        assert told.underlying_price == _plain(data["underlying_price"])
        assert told.underlying == data["underlying_index"]
        assert told.interest_rate == _plain(data["interest_rate"])
    assert options == 9


def test_candles() -> None:
    for text, channel, data in _frames("chart"):
        message = DERIBIT.decode(text)
        assert isinstance(message, Observation)
        _, _, native, resolution = channel.split(".")
        seconds = int(resolution) * 60
        told: Any = message.message
        assert (message.native_symbol, message.key) == (native, f"{seconds}s")
        assert told.interval.seconds == seconds
        assert told.open_time.ToMilliseconds() == data["tick"]
        assert told.close_time.ToMilliseconds() == data["tick"] + seconds * 1000
        assert (told.open_price, told.high_price) == (_plain(data["open"]), _plain(data["high"]))
        assert (told.low_price, told.close_price) == (_plain(data["low"]), _plain(data["close"]))
        assert (told.base_volume, told.quote_volume) == (
            _plain(data["volume"]), _plain(data["cost"]),
        )  # fmt: skip
        assert not told.closed
        assert not told.HasField("exchange_time"), "the venue tells none"


def test_books_asked_for_by_rest() -> None:
    found = 0
    for record in _lines("deribit_2021_2022.jsonl.gz"):
        answer = json.loads(record["data"], parse_float=Decimal)
        book = answer.get("result")
        if not isinstance(book, dict):
            continue
        found += 1
        native = book["instrument_name"]
        snapshot = DERIBIT.decode_snapshot(
            record["data"].encode(), DERIBIT.snapshot_request(native, 3)
        )
        assert (snapshot.native_symbol, snapshot.last) == (native, book["change_id"])
        assert snapshot.exchange_time == book["timestamp"] * MS
        assert snapshot.limit == 5, "the next depth that the venue has"
        for levels, told in ((snapshot.bids, book["bids"]), (snapshot.asks, book["asks"])):
            assert [[Decimal(number) for number in level] for level in levels] == told
    assert found == 3


@pytest.mark.parametrize("name", _FILES)
def test_every_instrument_has_one_symbol(name: str) -> None:
    natives = set()
    for record in _lines(name):
        for message in _all(DERIBIT.decode(record["data"])):
            if native := getattr(message, "native_symbol", ""):
                natives.add(native)
    specs = [DERIBIT.infer_instrument(native) for native in natives]
    assert len({spec.symbol for spec in specs}) == len(natives) > 1
    for spec in specs:
        known = spec.kind != instrument_pb2.INSTRUMENT_KIND_UNSPECIFIED
        assert known == (_unit(spec.native_symbol) != "?")
