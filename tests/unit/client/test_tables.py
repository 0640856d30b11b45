"""Events become columns, exact unless asked otherwise."""

import pytest
from marketprism.client.book import OrderBook
from marketprism.client.tables import book_columns, columns, to_arrow, to_pandas
from marketprism.market.v1 import common_pb2, events_pb2
from marketprism.market.v1.market_event_pb2 import MarketEvent, StreamStatus

from tests.unit.client.test_book import snapshot


def trade(number: int) -> MarketEvent:
    message = events_pb2.Trade(
        exchange="x", symbol="S", trade_id=str(number), price="10.10", quantity="0.1",
        side=common_pb2.SIDE_SELL,
    )  # fmt: skip
    message.exchange_time.FromNanoseconds(number)
    return MarketEvent(trade=message)


def test_events_of_one_kind_are_columns() -> None:
    table = columns([trade(1), MarketEvent(stream_status=StreamStatus()), trade(2)])
    assert table["trade_id"] == ["1", "2"]
    assert table["price"] == ["10.10", "10.10"]
    assert table["side"] == ["SIDE_SELL", "SIDE_SELL"]
    assert table["exchange_time"] == [1, 2]
    assert table["receive_time"] == [None, None]
    assert columns([trade(1)], floats=["price"])["price"] == [10.1]


def test_mixed_kinds_and_books_are_refused() -> None:
    with pytest.raises(ValueError, match="messages of one kind, got Trade and Ticker"):
        columns([trade(1), events_pb2.Ticker()])
    with pytest.raises(ValueError, match="without lists"):
        columns([snapshot(1, [], [])])


def test_a_book_is_columns_of_its_levels() -> None:
    book = OrderBook("x", "S")
    book.apply(snapshot(1, [("10", "1"), ("9", "2")], [("11", "0.00000001")]))
    assert book_columns(book) == {
        "side": ["bid", "bid", "ask"],
        "level": [0, 1, 0],
        "price": ["10", "9", "11"],
        "quantity": ["1", "2", "0.00000001"],
    }
    assert len(book_columns(book, 1)["side"]) == 2


@pytest.mark.parametrize(("convert", "module"), [(to_arrow, "pyarrow"), (to_pandas, "pandas")])
def test_what_is_missing_is_named(
    convert: object, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(ImportError, match=f"pip install {module}"):
        convert({"a": [1]})  # type: ignore[operator]
