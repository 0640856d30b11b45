"""Prometheus metrics of the collector, read from its own counters when they are asked for."""

from collections import Counter
from collections.abc import Iterable

from marketprism.market.v1 import order_book_pb2 as pb
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.collector.feed import InstrumentFeed
from services.collector.recording import Recorder
from services.collector.topics import TopicState
from services.collector.venue import Venue

__all__ = ["VenueMetrics"]

_PER_INSTRUMENT = (
    ("frames", "Depth frames received."),
    ("applied", "Depth frames applied to the book."),
    ("duplicates", "Depth frames that were contained already."),
    ("gaps", "Breaks of the venue's sequence."),
    ("resyncs", "Rebuilds of a book that had been in step."),
    ("malformed", "Frames of the instrument that could not be read."),
)


class VenueMetrics(Collector):
    """Counts a frame costs nothing: the numbers are taken from the books at the scrape."""

    def __init__(self, venues: list[Venue], recorder: Recorder | None) -> None:
        self._venues = venues
        self._recorder = recorder

    def collect(self) -> Iterable[Metric]:
        """Give all metrics."""
        instrument = ["exchange", "symbol"]
        for name, text in _PER_INSTRUMENT:
            family = CounterMetricFamily(f"marketprism_book_{name}", text, labels=instrument)
            for feed in self._feeds():
                family.add_metric([feed.spec.exchange, feed.spec.symbol], getattr(feed.book, name))
            yield family
        trades = CounterMetricFamily(
            "marketprism_trades", "Trades by what became of them.", labels=[*instrument, "outcome"]
        )
        checks = CounterMetricFamily(
            "marketprism_book_top_checks",
            "Comparisons of a book with the venue's best bid and offer at the same id.",
            labels=[*instrument, "result"],
        )
        other_checks = CounterMetricFamily(
            "marketprism_book_checks",
            "Comparisons of a book with the venue's checksum, or with the id of its own book.",
            labels=[*instrument, "check", "result"],
        )
        repeated = CounterMetricFamily(
            "marketprism_book_repeated",
            "Depth frames that another connection had brought before.",
            labels=instrument,
        )
        levels = GaugeMetricFamily(
            "marketprism_book_levels", "Levels of a book.", labels=[*instrument, "side"]
        )
        for feed in self._feeds():
            labels = [feed.spec.exchange, feed.spec.symbol]
            for outcome in ("received", "duplicates", "missed", "backfilled"):
                trades.add_metric([*labels, outcome], getattr(feed.trades, outcome))
            trades.add_metric([*labels, "rejected"], feed.losses.trades)
            checks.add_metric([*labels, "equal"], feed.top_checks - feed.top_mismatches)
            checks.add_metric([*labels, "different"], feed.top_mismatches)
            levels.add_metric([*labels, "bid"], feed.book.book.bid_count)
            levels.add_metric([*labels, "ask"], feed.book.book.ask_count)
            for name, passed, failed in (
                ("checksum", feed.book.checksums_ok, feed.book.checksums_bad),
                ("id", feed.probes - feed.probe_mismatches, feed.probe_mismatches),
            ):
                other_checks.add_metric([*labels, name, "equal"], passed)
                other_checks.add_metric([*labels, name, "different"], failed)
            repeated.add_metric(labels, feed.lanes.duplicates)
        yield from (trades, checks, other_checks, repeated, levels)
        yield self._states()
        yield from self._connections()
        yield from self._subscriptions()
        yield from self._observations()
        if self._recorder is not None:
            recorded = CounterMetricFamily(
                "marketprism_recorded_frames", "Frames recorded.", labels=["outcome"]
            )
            recorded.add_metric(["written"], self._recorder.frames)
            recorded.add_metric(["dropped"], self._recorder.dropped)
            yield recorded

    def _feeds(self) -> Iterable[InstrumentFeed]:
        return (feed for venue in self._venues for feed in venue.feeds.values())

    def _states(self) -> Metric:
        family = GaugeMetricFamily(
            "marketprism_books", "Books by state.", labels=["exchange", "state"]
        )
        for venue in self._venues:
            states = Counter(feed.book.state for feed in venue.feeds.values())
            for number, name in pb.OrderBookState.items():
                if name != 0:
                    state = number.removeprefix("ORDER_BOOK_STATE_").lower()
                    family.add_metric([venue.exchange, state], states.get(name, 0))
        return family

    def _connections(self) -> Iterable[Metric]:
        labels = ["exchange", "connection"]
        frames = CounterMetricFamily(
            "marketprism_venue_frames", "WebSocket frames received.", labels=labels
        )
        malformed = CounterMetricFamily(
            "marketprism_venue_malformed_frames", "Frames that could not be read.", labels=labels
        )
        reconnects = CounterMetricFamily(
            "marketprism_venue_reconnects", "Connections opened anew.", labels=labels
        )
        weight = GaugeMetricFamily(
            "marketprism_venue_rest_weight",
            "Request weight used in the window.",
            labels=["exchange"],
        )
        limit = GaugeMetricFamily(
            "marketprism_venue_rest_limit", "Request weight that we allow ourselves in a window.",
            labels=["exchange"],
        )  # fmt: skip
        requests = CounterMetricFamily(
            "marketprism_venue_rest_requests", "REST requests by outcome.",
            labels=["exchange", "outcome"],
        )  # fmt: skip
        for venue in self._venues:
            for each in venue.connections:
                key = [venue.exchange, each.connection_id]
                frames.add_metric(key, each.frames)
                malformed.add_metric(key, each.malformed)
                reconnects.add_metric(key, each.reconnects)
            budget = venue.rest.budget
            weight.add_metric([venue.exchange], budget.used)
            limit.add_metric([venue.exchange], budget.limit)
            requests.add_metric([venue.exchange, "made"], budget.requests)
            requests.add_metric([venue.exchange, "rate_limited"], budget.rate_limited)
        return frames, malformed, reconnects, weight, limit, requests

    def _subscriptions(self) -> Iterable[Metric]:
        states = GaugeMetricFamily(
            "marketprism_venue_subscriptions",
            "Subscriptions by state, each connection counted.",
            labels=["exchange", "state"],
        )
        refusals = CounterMetricFamily(
            "marketprism_venue_refusals", "Subscriptions that the venue refused.",
            labels=["exchange"],
        )  # fmt: skip
        rollovers = CounterMetricFamily(
            "marketprism_venue_rollovers", "Connections replaced without a gap.",
            labels=["exchange"],
        )  # fmt: skip
        quiet = CounterMetricFamily(
            "marketprism_venue_quiet",
            "Silent subscriptions by what was done: compared with the venue, subscribed to anew.",
            labels=["exchange", "action"],
        )
        for venue in self._venues:
            connections = venue.connections
            counts = Counter(
                topic.state.value for each in connections for topic in each.topics.topics.values()
            )
            for state in TopicState:
                states.add_metric([venue.exchange, state.value], counts[state.value])
            refusals.add_metric([venue.exchange], sum(each.topics.refusals for each in connections))
            rollovers.add_metric([venue.exchange], venue.pool.rollovers)
            quiet.add_metric([venue.exchange, "compared"], venue.quiet.probes)
            quiet.add_metric([venue.exchange, "renewed"], venue.quiet.renewals)
        return states, refusals, rollovers, quiet

    def _observations(self) -> Iterable[Metric]:
        labels = ["exchange", "kind", "outcome"]
        observations = CounterMetricFamily(
            "marketprism_observations",
            "What venues told beside books, trades and tops, by what became of it.",
            labels=labels,
        )
        polls = CounterMetricFamily("marketprism_polls", "REST polls by outcome.", labels=labels)
        for venue in self._venues:
            for outcome in ("published", "duplicates", "unresolved", "malformed", "dropped"):
                counts: Counter[str] = getattr(venue.tape, outcome)
                for kind, count in sorted(counts.items()):
                    observations.add_metric([venue.exchange, kind, outcome], count)
            for kind, count in sorted(venue.poller.requests.items()):
                polls.add_metric([venue.exchange, kind, "made"], count)
                polls.add_metric([venue.exchange, kind, "failed"], venue.poller.failures[kind])
        return observations, polls
