"""Whatever is subscribed to, dropped and sent in whatever order: each event comes once, or is told.

A reference model says what the subscriber must get; the session is driven at random beside it.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any, Final

from hypothesis import given, settings
from hypothesis import strategies as st

from services.marketdata.catalog import Key
from services.marketdata.patterns import Pattern
from services.marketdata.settings import StreamSettings
from tests.unit.marketdata.subscriber import (
    BOOK,
    TICKER,
    TRADE,
    Exchange,
    Subscriber,
    add,
)

KEYS: Final = [("binance", "BTC-USDT"), ("binance", "ETH-USDT"), ("okx", "BTC-USDT")]
PATTERNS: Final = ["*/*", "binance/*", "*/BTC-*", "binance/BTC-USDT", "okx/BTC-USDT", "okx/X-*"]
KINDS: Final = [TRADE, BOOK, TICKER]
Place = tuple[int, Key]


@dataclass
class Model:
    """What is subscribed to, and from which event on each source must come."""

    patterns: dict[str, tuple[list[Pattern], list[int]]] = field(default_factory=dict)
    seen: set[Place] = field(default_factory=set)
    counts: dict[Place, int] = field(default_factory=dict)
    begun: dict[Place, int] = field(default_factory=dict)
    spans: dict[Key, list[list[int]]] = field(default_factory=dict)

    def wants(self, place: Place) -> bool:
        kind, key = place
        return any(
            kind in kinds
            and any(
                pattern.matches(key)
                and (place in self.seen if not pattern.is_literal else self.knows(key))
                for pattern in patterns
            )
            for patterns, kinds in self.patterns.values()
        )

    def knows(self, key: Key) -> bool:
        return any(key == other for _, other in self.seen)

    def settle(self) -> None:
        """Note what is wanted since just now, and what is wanted no more."""
        for kind in KINDS:
            for key in KEYS:
                place = (kind, key)
                if place not in self.begun and self.wants(place):
                    self.begun[place] = self.counts.get(place, 0)
                    if kind == TRADE:
                        self.spans.setdefault(key, []).append([self.begun[place], -1])
                elif place in self.begun and not self.wants(place):
                    del self.begun[place]
                    if kind == TRADE:
                        self.spans[key][-1][1] = self.counts.get(place, 0)


steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("put"), st.sampled_from(KINDS), st.sampled_from(KEYS), st.integers(1, 25)
        ),
        st.tuples(
            st.just("add"),
            st.sampled_from("abc"),
            st.lists(st.sampled_from(PATTERNS), min_size=1, max_size=2),
            st.lists(st.sampled_from(KINDS), min_size=1, max_size=3),
        ),
        st.tuples(st.just("remove"), st.sampled_from("abc")),
        st.tuples(st.just("read"), st.integers(1, 4)),
        st.tuples(st.just("rebuild"), st.sampled_from(KEYS)),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=300)
@given(steps, st.sampled_from([1024, 4096, 262144]))
def test_a_subscriber_gets_what_the_contract_says(
    steps: list[tuple[object, ...]], max_bytes: int
) -> None:
    asyncio.run(_run(steps, max_bytes))


async def _run(steps: list[tuple[object, ...]], max_bytes: int) -> None:
    settings = StreamSettings(slow_reader_losses=10_000, max_message_bytes=max_bytes)
    exchange = Exchange(settings)
    session = exchange.open()
    subscriber = Subscriber(session)
    model = Model()
    for name, *values in steps:
        await _step(name, values, exchange, subscriber, model)
    subscriber.read()
    for place in model.begun:
        _check_source(place, exchange, subscriber)
    _check_trades(model, subscriber, exchange)
    _check_statuses(subscriber)
    exchange.sessions.close(session)
    waiting = [trades.log.waiting for trades in exchange.market.trades.values()]
    waiting += [book.log.waiting for book in exchange.market.books.values()]
    assert not any(waiting), "expected a closed session to watch nothing"


async def _step(
    name: object, values: list[Any], exchange: Exchange, subscriber: Subscriber, model: Model
) -> None:
    if name == "put":
        kind, key, count = values
        model.seen.add((kind, key))
        # Who waits for a new one gets its first event too.
        model.settle()
        for _ in range(count):
            exchange.put(kind, key)
            model.counts[kind, key] = model.counts.get((kind, key), 0) + 1
    elif name == "add":
        identity, patterns, kinds = values
        if identity not in model.patterns:
            await add(subscriber.session, identity, patterns, kinds)
            model.patterns[identity] = ([Pattern(p) for p in patterns], kinds)
    elif name == "remove":
        if values[0] in model.patterns:
            subscriber.session.remove(values[0])
            del model.patterns[values[0]]
    elif name == "read":
        subscriber.read(values[0])
    elif values[0] in exchange.books:
        exchange.rebuild(values[0])
    model.settle()


def _check_source(place: Place, exchange: Exchange, subscriber: Subscriber) -> None:
    kind, key = place
    if kind == TICKER and exchange.tickers[key]:
        assert subscriber.tickers[key][-1] == exchange.tickers[key] - 1, (
            f"expected the latest ticker of {key}"
        )
    elif kind == BOOK and key in exchange.books:
        assert subscriber.books[key].best() == exchange.books[key].best(), (
            f"expected the book of {key} to be the true one"
        )


def _check_trades(model: Model, subscriber: Subscriber, exchange: Exchange) -> None:
    for key in KEYS:
        came = subscriber.trades[key]
        assert came == sorted(set(came)), f"expected each trade of {key} once and in order"
        wanted = {
            number
            for begin, end in model.spans.get(key, ())
            for number in range(begin, end if end >= 0 else exchange.trades[key])
        }
        assert set(came) <= wanted, f"expected no trade of {key} that was not subscribed to"
        spans = model.spans.get(key, [])
        if len(spans) == 1 and spans[0][1] < 0:
            assert len(came) + subscriber.dropped[TRADE, key] == len(wanted), (
                f"expected every trade of {key} to come or to be counted"
            )


def _check_statuses(subscriber: Subscriber) -> None:
    reasons = subscriber.reasons
    assert reasons[:1] == ["SUBSCRIBED"], "expected OPEN to be told first"
    live: set[str] = set()
    for status in subscriber.statuses:
        if status.reason == "ADDED":
            assert status.subscription_id not in live
            live.add(status.subscription_id)
        elif status.reason == "REMOVED":
            live.remove(status.subscription_id)
