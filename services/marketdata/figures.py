"""The service's own metrics."""

from typing import TYPE_CHECKING

from marketprism.market.v1 import market_data_service_pb2, order_book_pb2

from services.marketdata.tally import Tally
from services.shared.telemetry import Metrics

if TYPE_CHECKING:
    from services.marketdata.market import Market

__all__ = ["Figures"]

_COUNTED = {
    "updates": "Updates that continued their book.",
    "snapshots": "Snapshots that were taken.",
    "malformed": "Messages that are not what their subject says.",
    "duplicates": "Updates and snapshots that were held already.",
    "old_epoch": "Updates and statuses of an epoch before the present one.",
    "gaps": "Times that an update did not continue its book.",
    "skipped": "Updates that could not be used, because one before them is missing.",
    "unplaced": "Updates that came before any snapshot of their book.",
    "ignored": "Messages on subjects that are none of ours, or beyond the limit of instruments.",
    "messages": "Messages sent to subscribers.",
    "deliveries": "Events sent to subscribers.",
    "dropped": "Events left out for subscribers who read too slowly.",
}
_STREAM_LABELS = ("grpc_service", "grpc_method", "grpc_type")
_SERVICE = market_data_service_pb2.DESCRIPTOR.services_by_name["MarketDataService"].full_name
_FAST = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


class Figures:
    """Hands what was counted to the metrics, once a second by `flush`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._events = metrics.counter(
            "marketdata_events", "Messages from the broker by kind.", ["kind"]
        )
        self._counters = {
            name: metrics.counter(f"marketdata_{name}", text) for name, text in _COUNTED.items()
        }
        self._flushed = dict.fromkeys(_COUNTED, 0)
        self._events_flushed: dict[str, int] = {}
        # The gauge is the interceptor's: the same one for the same name and labels.
        self._streams = metrics.gauge("grpc_streams_open", "Streams in progress.", _STREAM_LABELS)
        self.tally = Tally(
            open_streams=self._open_streams,
            put_together=metrics.histogram(
                "marketdata_put_together_seconds",
                "Time to bring a book's levels forward and encode them.",
                buckets=_FAST,
            ).observe,
        )
        """What the hot path counts into."""
        self.observe_lag = metrics.histogram(
            "marketdata_lag_seconds",
            "Time from the collector's socket read to here, one event in 64.",
        ).observe
        """Called with the lag of one event."""
        self._states = metrics.gauge("marketdata_books", "Books by state.", ["state"])
        self._market: Market | None = None

    def watch(self, market: "Market") -> None:
        """Count this market's instruments, books and subscribers."""
        self._market = market
        self._metrics.gauge("marketdata_instruments", "Instruments known.").set_function(
            lambda: len(market.catalog)
        )
        held = self._metrics.gauge("marketdata_log_bytes", "Bytes of events held.", ["kind"])
        held.labels("order_book").set_function(
            lambda: sum(book.log.size for book in market.books.values())
        )
        held.labels("trade").set_function(
            lambda: sum(trades.log.size for trades in market.trades.values())
        )
        held.labels("other").set_function(lambda: market.kinds.log_bytes)

    def _open_streams(self) -> int:
        samples = (sample for metric in self._streams.collect() for sample in metric.samples)
        return sum(
            int(sample.value) for sample in samples if sample.labels.get("grpc_service") == _SERVICE
        )

    def flush(self) -> None:
        """Bring the metrics up to what was counted."""
        tally = self.tally
        for name, counter in self._counters.items():
            value = getattr(tally, name)
            counter.inc(value - self._flushed[name])
            self._flushed[name] = value
        for kind, value in tally.events.items():
            self._events.labels(kind).inc(value - self._events_flushed.get(kind, 0))
            self._events_flushed[kind] = value
        if self._market is not None:
            counts: dict[int, int] = {}
            for book in self._market.books.values():
                counts[book.state] = counts.get(book.state, 0) + 1
            for value in order_book_pb2.OrderBookState.DESCRIPTOR.values:
                if value.number:
                    self._states.labels(value.name).set(counts.get(value.number, 0))
