"""What is counted reaches the metrics, each count once."""

from services.marketdata.figures import Figures
from services.marketdata.market import Market
from services.marketdata.settings import MarketDataSettings
from services.shared.telemetry import Metrics
from tests.unit.marketdata.test_market import Stored, begin
from tests.unit.marketdata.truth import Collected


def test_counts_are_handed_over_once() -> None:
    metrics = Metrics("marketdata")
    figures = Figures(metrics)
    market = Market(MarketDataSettings(), tally=figures.tally, observe_lag=figures.observe_lag)
    figures.watch(market)
    book = Collected()
    begin(market, book)
    update = Stored(book.subject("order_book_update"), book.update())
    market.on_order_book([update, update])
    market.catalog.ready = True
    live = market.book(("binance", "BTC-USDT"))
    live.order_book(5, 0)

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"marketprism_marketdata_{name}", labels)

    for _ in range(2):
        figures.flush()
        assert value("events_total", kind="order_book") == 4
        assert value("duplicates_total") == 1
        assert value("gaps_total") == 0
    assert value("books", state="ORDER_BOOK_STATE_SYNCED") == 1
    assert value("books", state="ORDER_BOOK_STATE_STALE") == 0
    assert value("instruments") == 1
    assert value("log_bytes", kind="order_book") == live.log.size
    assert value("put_together_seconds_count") == 1
