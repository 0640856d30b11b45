"""What a whole mesh stores is what it carried: once, in order, and replayed byte for byte.

`MARKETPRISM_KILLS` sets how many processes are killed; the suite kills a few.
"""

import contextlib
import os
import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from marketprism.history.v1 import history_service_pb2 as history
from marketprism.history.v1.history_service_pb2_grpc import HistoryServiceStub
from marketprism.market.v1 import common_pb2, market_data_service_pb2, market_event_pb2
from marketprism.market.v1.market_data_service_pb2_grpc import MarketDataServiceStub

from tests.e2e.mesh import Mesh, running_mesh, wait_for

KINDS = [
    common_pb2.EVENT_KIND_TRADE,
    common_pb2.EVENT_KIND_ORDER_BOOK,
    common_pb2.EVENT_KIND_BEST_BID_OFFER,
    common_pb2.EVENT_KIND_MARK_PRICE,
]
INSTRUMENTS = ["binance/*", "okx/*", "deribit/BTC-USD-PERP"]
TRADED = [("binance", "BTC-USDT"), ("binance", "ETH-USDT"), ("okx", "BTC-USDT-PERP")]
OPTIONS = ("--simulated", "--exchanges", "binance,okx,deribit")

_Place = tuple[str, str, str]
_Lists = dict[_Place, list[tuple[int, bytes]]]


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    with running_mesh(tmp_path / "mesh", *OPTIONS) as running:
        wait_for(running.books_in_step, "every book is in step", 60)
        wait_for(
            lambda: running.get("/api/v1/history/ingest")["success"], "the gateway sees storage"
        )
        yield running


def sorted_out(events: list[market_event_pb2.MarketEvent], lists: _Lists) -> None:
    """Add each event to the list of its kind and instrument: when it was received, and its bytes.

    Snapshots are where a subscription begins, live and replayed at another place.
    """
    for event in events:
        kind = event.WhichOneof("event")
        assert kind is not None
        if kind in ("stream_status", "order_book_snapshot"):
            continue
        held = getattr(event, kind)
        when = held.time if kind == "order_book_status" else held.receive_time
        place = (kind, held.exchange, held.symbol)
        lists[place].append((when.ToNanoseconds(), held.SerializeToString()))


class LiveSubscriber:
    """Keeps every event that a live subscription brings."""

    def __init__(self, address: str) -> None:
        self.lists: _Lists = defaultdict(list)
        self.dropped = 0
        self.opened = 0
        self._channel = grpc.insecure_channel(address)
        self._call = MarketDataServiceStub(self._channel).StreamMarketData(  # type: ignore[no-untyped-call]
            market_data_service_pb2.StreamMarketDataRequest(instruments=INSTRUMENTS, kinds=KINDS)
        )
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "LiveSubscriber":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._call.cancel()
        self._thread.join(10)
        self._channel.close()

    def _run(self) -> None:
        with contextlib.suppress(grpc.RpcError):
            for response in self._call:
                self.opened = self.opened or time.time_ns()
                sorted_out(list(response.events), self.lists)
                self.dropped += sum(e.stream_status.dropped_events for e in response.events)

    def count(self, kind: str, exchange: str, symbol: str) -> int:
        return len(self.lists[kind, exchange, symbol])


def stub_of(mesh: Mesh, channel: grpc.Channel) -> Any:
    return HistoryServiceStub(channel)  # type: ignore[no-untyped-call]


def ingest_streams(mesh: Mesh) -> dict[str, dict[str, Any]]:
    streams = mesh.get("/api/v1/history/ingest")["data"]["streams"]
    return {each["stream"]: each for each in streams}


def wait_until_stored(mesh: Mesh, seconds: float = 60) -> None:
    """Wait until the store has what the broker held when this was called."""
    wanted = {
        name: int(each["stored_sequence"]) + int(each["pending"])
        for name, each in ingest_streams(mesh).items()
    }
    assert wanted["MARKET_TRADE"] > 0

    def stored() -> bool:
        streams = ingest_streams(mesh)
        late = {
            n: streams[n] for n, last in wanted.items() if int(streams[n]["stored_sequence"]) < last
        }
        if late:
            raise ValueError(f"not stored yet: {late}, wanted {wanted}")
        return True

    wait_for(stored, "everything is stored", seconds)


def replayed(mesh: Mesh, begin: int, end: int) -> tuple[_Lists, list[str]]:
    """Replay a range as fast as it goes; gives its events, and the reasons of its statuses."""
    lists: _Lists = defaultdict(list)
    reasons = []
    with grpc.insecure_channel(mesh.address("all")) as channel:
        request = history.ReplayMarketDataRequest(
            instruments=INSTRUMENTS,
            kinds=KINDS,
            start_time=stamp(begin),
            end_time=stamp(end),
            pace=history.REPLAY_PACE_UNPACED,
        )
        for response in stub_of(mesh, channel).ReplayMarketData(request, timeout=120):
            sorted_out(list(response.events), lists)
            reasons += [
                event.stream_status.reason
                for event in response.events
                if event.HasField("stream_status")
            ]
    return lists, reasons


def stamp(nanoseconds: int) -> Timestamp:
    made = Timestamp()
    made.FromNanoseconds(nanoseconds)
    return made


def trade_ids(mesh: Mesh, exchange: str, symbol: str) -> list[int]:
    """Give the ids of all trades stored, page by page."""
    ids: list[int] = []
    token = ""
    with grpc.insecure_channel(mesh.address("all")) as channel:
        while True:
            answer = stub_of(mesh, channel).ListTrades(
                history.ListTradesRequest(
                    exchange=exchange, symbol=symbol, page_size=777, page_token=token
                ),
                timeout=30,
            )
            ids += [int(trade.trade_id) for trade in answer.trades]
            token = answer.next_page_token
            if not token:
                return ids


def test_a_replay_gives_what_a_live_subscriber_got_byte_for_byte(mesh: Mesh) -> None:
    with LiveSubscriber(mesh.address("all")) as live:
        wait_for(
            lambda: (
                live.count("order_book_update", "binance", "BTC-USDT") > 60
                and live.count("trade", "binance", "BTC-USDT") > 5
                and live.count("trade", "okx", "BTC-USDT-PERP") > 5
                and live.count("mark_price", "deribit", "BTC-USD-PERP") > 2
            ),
            "a live subscriber got enough of everything",
        )
        wait_for(lambda: live.lists["order_book_update", "binance", "BTC-USDT"], "one more", 5)
    assert live.dropped == 0
    wait_until_stored(mesh)
    updates = live.lists["order_book_update", "binance", "BTC-USDT"]
    # A book's updates come from a moment before the subscription, everything else from its begin.
    begin, end = live.opened + 200_000_000, updates[-5][0]
    assert sum(begin <= when < end for when, _ in updates) > 20
    lists, reasons = replayed(mesh, begin, end)
    assert reasons[-1] == "RANGE_COMPLETE"
    places = {
        place for place, events in live.lists.items() if any(begin <= t < end for t, _ in events)
    }
    assert {kind for kind, _, _ in places} >= {"trade", "order_book_update", "best_bid_offer"}
    for place in places:
        seen = [event for event in live.lists[place] if begin <= event[0] < end]
        given = [event for event in lists[place] if begin <= event[0] < end]
        assert given == seen, f"{place}: {len(given)} replayed, {len(seen)} live"
    again, _ = replayed(mesh, begin, end)
    assert again == lists, "a replay is the same every time"


def test_nothing_is_missing_and_nothing_twice_whoever_is_killed(mesh: Mesh) -> None:
    chance = random.Random(os.environ.get("MARKETPRISM_SEED", "7"))
    victims = [("storage", None), ("broker", "nats-server"), ("collector", None), ("broker", None)]
    for turn in range(int(os.environ.get("MARKETPRISM_KILLS", "4"))):
        service, binary = victims[turn % len(victims)]
        before = {key: len(trade_ids(mesh, *key)) for key in TRADED[:1]}
        pid = mesh.pid_of_binary(service, binary) if binary else mesh.pid(service)
        threading.Event().wait(chance.random())  # at any moment of a batch
        mesh.kill(pid)

        def goes_on(before: dict[tuple[str, str], int] = before) -> bool:
            with contextlib.suppress(grpc.RpcError):
                return all(len(trade_ids(mesh, *key)) > held for key, held in before.items())
            return False

        wait_for(goes_on, f"trades are stored again after {service} was killed", 60)
    wait_for(mesh.books_in_step, "every book is in step", 60)
    wait_until_stored(mesh)
    natives = {
        (each["exchange"], each["symbol"]): each["native_symbol"] for each in mesh.instruments()
    }
    for exchange, symbol in TRADED:
        made = mesh.venue(f"/sim/trades?symbol={natives[exchange, symbol]}", exchange)["made"]

        def complete(
            exchange: str = exchange, symbol: str = symbol, last: int = made[-1]
        ) -> list[int] | None:
            ids = trade_ids(mesh, exchange, symbol)
            return ids if ids and ids[-1] >= last else None

        ids = wait_for(complete, f"the last trade of {exchange} {symbol} is stored")
        assert ids == list(range(ids[0], ids[-1] + 1)), f"{exchange} {symbol}: missing or twice"
        # Lists hide what is stored twice; the days' duplicates are counted without.
        days = mesh.get(f"/api/v1/history/integrity/{exchange}/{symbol}/days")["data"]["days"]
        assert days
        assert not [day for day in days if int(day["duplicates"])], "stored more than once"
