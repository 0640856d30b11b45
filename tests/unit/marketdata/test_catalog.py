"""Unknown instruments: what is said, and when it may be known soon."""

import time

import pytest
from marketprism.market.v1 import instrument_pb2

from services.marketdata.catalog import Catalog
from services.shared.errors import NotFound, Unavailable


def described(exchange: str, symbol: str) -> bytes:
    return instrument_pb2.Instrument(exchange=exchange, symbol=symbol).SerializeToString()


@pytest.fixture
def catalog() -> Catalog:
    made = Catalog(100)
    for symbol in ("BTC-USDT", "ETH-USDT", "BTC-USDC"):
        assert made.describe(("binance", symbol), described("binance", symbol))
    made.ready = True
    return made


def test_nothing_is_unknown_for_good_before_everything_was_read() -> None:
    catalog = Catalog(10)
    for ready in (False, True):
        catalog.ready = ready
        with pytest.raises(Unavailable) as caught:
            catalog.check(("binance", "BTC-USDT"))
        assert (caught.value.reason, caught.value.retry_after) == ("STARTING", 1.0)
    assert "no collector" in caught.value.message


@pytest.mark.parametrize("spelling", ["btc-usdt", "BTCUSDT", "BTC_USDT", "BTC/USDT", "BTC-USDTT"])
def test_a_near_miss_is_answered_with_what_was_meant(catalog: Catalog, spelling: str) -> None:
    with pytest.raises(NotFound, match=r"did you mean .*BTC-USDT") as caught:
        catalog.check(("binance", spelling))
    assert caught.value.reason == "INSTRUMENT_NOT_FOUND"
    assert caught.value.metadata == {"exchange": "binance", "symbol": spelling}


def test_a_far_miss_is_answered_with_where_to_look(catalog: Catalog) -> None:
    with pytest.raises(NotFound, match="it has 3, see ListInstruments"):
        catalog.check(("binance", "ZZZ"))
    with pytest.raises(NotFound, match="there is binance") as caught:
        catalog.check(("nasdaq", "BTC-USDT"))
    assert caught.value.reason == "EXCHANGE_NOT_FOUND"


def test_an_instrument_that_was_not_described_is_known_all_the_same(catalog: Catalog) -> None:
    key = ("okx", "BTC-USDT")
    assert catalog.add(key)
    catalog.check(key)
    with pytest.raises(NotFound, match="nothing describes it yet"):
        catalog.payload(key)


def test_only_so_many_are_kept() -> None:
    catalog = Catalog(2)
    assert catalog.add(("a", "1"))
    assert catalog.describe(("a", "2"), described("a", "2"))
    assert not catalog.add(("a", "3"))
    assert not catalog.describe(("a", "3"), described("a", "3"))
    assert catalog.add(("a", "1"))
    assert len(catalog) == 2


@pytest.mark.parametrize("payload", [b"\xff", b"", described("okx", "BTC-USDT")])
def test_a_description_of_something_else_is_refused(catalog: Catalog, payload: bytes) -> None:
    assert not catalog.describe(("binance", "X"), payload)
    assert ("binance", "X") not in catalog


def test_a_miss_among_thousands_is_answered_at_once() -> None:
    catalog = Catalog(30_000)
    for number in range(20_000):
        catalog.add(("okx", f"BTC-USD-20261225-{number}-C"))
    catalog.ready = True
    began = time.perf_counter()
    with pytest.raises(NotFound):
        catalog.check(("okx", "BTC-USD-20261225-99999-P"))
    assert time.perf_counter() - began < 0.5
