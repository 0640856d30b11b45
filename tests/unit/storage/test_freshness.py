from typing import Any

from marketprism.collector.v1 import integrity_event_pb2
from marketprism.market.v1 import events_pb2

from services.storage.freshness import Freshness, late_instruments
from services.storage.tables import TABLES

NOW = 1_700_000_000 * 10**9
SETTLED = NOW - 120 * 10**9


def trade(seconds_ago: int, symbol: str = "S", *, backfilled: bool = False) -> bytes:
    event = events_pb2.Trade(exchange="v", symbol=symbol, price="1", backfilled=backfilled)
    event.receive_time.FromNanoseconds(NOW)
    event.exchange_time.FromNanoseconds(NOW - seconds_ago * 10**9)
    return event.SerializeToString()


def late(name: str, *payloads: bytes) -> dict[tuple[str, str], int]:
    return late_instruments(TABLES[name], payloads, SETTLED)


def test_rows_of_the_present_are_not_late() -> None:
    assert late("trade", trade(1), trade(119)) == {}


def test_a_batch_that_begins_late_is_looked_at_whole() -> None:
    found = late("trade", trade(500), trade(400, "OTHER"), trade(1, "NEW"))
    assert found == {("v", "S"): NOW - 500 * 10**9, ("v", "OTHER"): NOW - 400 * 10**9}


def test_trades_fetched_afterwards_are_found_between_others() -> None:
    assert late("trade", trade(1), trade(900, "GAP", backfilled=True), trade(1)) == {
        ("v", "GAP"): NOW - 900 * 10**9
    }


def test_trades_fetched_at_once_are_not_late() -> None:
    assert late("trade", trade(1), trade(2, backfilled=True)) == {}


def test_the_ledger_speaks_of_the_past() -> None:
    entry = integrity_event_pb2.IntegrityEvent(exchange="v", symbol="S")
    entry.receive_time.FromNanoseconds(NOW)
    whole = integrity_event_pb2.IntegrityEvent(exchange="v")
    whole.receive_time.FromNanoseconds(NOW)
    found = late("integrity", entry.SerializeToString(), whole.SerializeToString())
    assert set(found) == {("v", "S"), ("v", "")}


def test_what_cannot_be_decoded_is_passed_over() -> None:
    assert late("trade", b"\xff", trade(1)) == {}


def test_nothing_is_stored_before_the_broker_was_seen() -> None:
    class State:
        live = False
        oldest_waiting = 0.0

    class Ingest:
        def __init__(self) -> None:
            consumer = type("Consumer", (), {"status": State})
            self.tables = {"trade": type("Table", (), {"consumer": consumer})}

    moment = NOW
    freshness = Freshness(120, now=lambda: moment)
    assert freshness.stored_until() == NOW
    ingest: Any = Ingest()
    freshness.watch(ingest)

    def until() -> int:
        freshness._looked = 0.0
        return freshness.stored_until()

    assert until() == 0
    State.live = True
    assert until() == NOW
    State.oldest_waiting = NOW / 1e9 - 1000
    assert until() == NOW - 1000 * 10**9
    State.live = False
    State.oldest_waiting = 0.0
    moment += 10**12
    assert until() == NOW - 1000 * 10**9
