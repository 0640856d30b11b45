"""Make examples/vectors/order_book.json, which the book of every example client is tested with.

    python -m tools.client_vectors            writes it
    python -m tools.client_vectors --check    only compares

Each vector is a row of steps: a `MarketEvent` as base64, or the end of the stream, and what a
client must hold after it. Levels are those of the collector's own book: a client that passes holds
what the mesh holds. The same program gives the same bytes.
"""

import argparse
import base64
import json
import random
import sys
from pathlib import Path
from typing import Any

from marketprism.market.v1 import events_pb2, market_event_pb2, order_book_pb2
from marketprism.market.v1.market_event_pb2 import MarketEvent

from services.collector.book import OrderBook, book_digest
from tools.buf import ROOT

__all__ = ["VECTORS", "main", "render"]

VECTORS = "examples/vectors/order_book.json"

_EXCHANGE, _SYMBOL = "binance", "BTC-USDT"
_BEYOND_DOUBLES = 2**53 + 1
_STATE_PREFIX = "ORDER_BOOK_STATE_"

_Levels = list[tuple[str, str]]


class _Vector:
    """Builds one vector: every method is an event, and says what the client holds after it."""

    def __init__(self, name: str, rule: str, *, epoch: int = 1795518333632608) -> None:
        self._name = name
        self._rule = rule
        self._steps: list[dict[str, Any]] = []
        self._book = OrderBook()
        self._has_book = False
        self._open = False
        self._interrupted: set[str] = set()
        self._state = order_book_pb2.ORDER_BOOK_STATE_UNSPECIFIED
        self.epoch = epoch
        self.sequence = 0

    # ---- what a stream tells

    def snapshot(
        self,
        bids: _Levels,
        asks: _Levels,
        *,
        epoch: int | None = None,
        sequence: int = 0,
        reason: int = order_book_pb2.SNAPSHOT_REASON_SUBSCRIBED,
        horizons: tuple[str, str] = ("", ""),
    ) -> "_Vector":
        self.epoch = self.epoch if epoch is None else epoch
        self.sequence = sequence
        self._book.replace(bids, asks)
        self._book.bid_horizon, self._book.ask_horizon = horizons
        self._has_book = True
        message = order_book_pb2.OrderBookSnapshot.FromString(self._book.encode_levels())
        message.exchange, message.symbol = _EXCHANGE, _SYMBOL
        message.epoch, message.sequence = self.epoch, sequence
        message.reason = reason  # type: ignore[assignment]  # the enum's value is an int
        message.bid_horizon, message.ask_horizon = horizons
        return self._step(MarketEvent(order_book_snapshot=message))

    def update(self, bids: _Levels, asks: _Levels, *, merged: int = 0) -> "_Vector":
        first = self.sequence + 1 if merged else 0
        self.sequence += merged or 1
        changes = self._book.apply(bids, asks)
        return self._step(self._update(changes, self.epoch, self.sequence, first))

    def wrong_update(self, *, epoch: int | None = None, sequence: int, first: int = 0) -> "_Vector":
        changes = OrderBook().apply([("64250.1", "9")], [])
        event = self._update(changes, self.epoch if epoch is None else epoch, sequence, first)
        self._lose()
        return self._step(event, out_of_step=True)

    def status(self, state: str, reason: str = "UNSPECIFIED", detail: str = "") -> "_Vector":
        self._state = order_book_pb2.OrderBookState.Value(_STATE_PREFIX + state)
        status = order_book_pb2.OrderBookStatus(
            exchange=_EXCHANGE,
            symbol=_SYMBOL,
            epoch=self.epoch,
            sequence=self.sequence,
            state=self._state,
            reason=order_book_pb2.OrderBookReason.Value("ORDER_BOOK_REASON_" + reason),
            detail=detail,
        )
        return self._step(MarketEvent(order_book_status=status))

    def stream(
        self, state: str, reason: str = "", *, scope: str = "instrument", dropped: int = 0
    ) -> "_Vector":
        if state == "OPEN":
            self._open = True
            self._interrupted.discard(scope)
        elif state == "INTERRUPTED":
            self._interrupted.add(scope)
        elif state == "ENDED":
            self._open = False
        status = market_event_pb2.StreamStatus(
            state=market_event_pb2.StreamState.Value("STREAM_STATE_" + state),
            reason=reason,
            dropped_events=dropped,
            exchange="" if scope == "stream" else _EXCHANGE,
            symbol=_SYMBOL if scope == "instrument" else "",
        )
        return self._step(MarketEvent(stream_status=status))

    def foreign(self, event: MarketEvent) -> "_Vector":
        return self._step(event)

    def disconnect(self) -> "_Vector":
        self._open = False
        self._interrupted.clear()
        self._state = order_book_pb2.ORDER_BOOK_STATE_UNSPECIFIED
        return self._step(None)

    # ---- what a client holds

    def made(self) -> dict[str, Any]:
        return {"name": self._name, "rule": self._rule, "steps": self._steps}

    def _lose(self) -> None:
        self._book = OrderBook()
        self._has_book = False
        self._open = False
        self._interrupted.clear()
        self._state = order_book_pb2.ORDER_BOOK_STATE_UNSPECIFIED

    @staticmethod
    def _update(changes: bytes, epoch: int, sequence: int, first: int) -> MarketEvent:
        message = order_book_pb2.OrderBookUpdate.FromString(changes)
        message.exchange, message.symbol = _EXCHANGE, _SYMBOL
        message.epoch, message.sequence, message.first_sequence = epoch, sequence, first
        return MarketEvent(order_book_update=message)

    def _step(self, event: MarketEvent | None, *, out_of_step: bool = False) -> "_Vector":
        bids, asks = self._book.bids(), self._book.asks()
        known_bids, known_asks = self._book.levels_within_horizon()
        bids, asks = bids[:known_bids], asks[:known_asks]
        state = order_book_pb2.OrderBookState.Name(self._state).removeprefix(_STATE_PREFIX)
        is_heard = self._open and not self._interrupted
        step: dict[str, Any] = {}
        if event is None:
            step["disconnect"] = True
        else:
            step["event"] = base64.b64encode(event.SerializeToString()).decode()
        step["expect"] = {
            "out_of_step": out_of_step,
            "state": state,
            "trusted": is_heard and self._has_book and state == "SYNCED",
            "epoch": str(self.epoch if self._has_book else 0),
            "sequence": str(self.sequence if self._has_book else 0),
            "bids": [list(level) for level in bids],
            "asks": [list(level) for level in asks],
            "digest": book_digest(bids, asks),
        }
        self._steps.append(step)
        return self


_BIDS: _Levels = [("64250.1", "0.32882"), ("64250.09", "0.0204"), ("64249", "3")]
_ASKS: _Levels = [("64250.11", "1.55369"), ("64250.12", "0.04906"), ("64251", "7.5")]


def _opened(name: str, rule: str, **more: Any) -> _Vector:
    vector = _Vector(name, rule, **more).stream("OPEN", "SUBSCRIBED")
    return vector.snapshot(_BIDS, _ASKS, sequence=7).status("SYNCED", "SYNCHRONISED")


def _walk(name: str, levels: int, updates: int) -> _Vector:
    vector = _Vector(name, "A snapshot and the updates that continue it give the whole book.")
    chance = random.Random(levels)  # noqa: S311 - the same numbers again are wanted

    def price(offset: int) -> str:
        return f"{(10_000 + offset) / 100:.2f}"

    def quantity() -> str:
        return f"{chance.randrange(1, 10**9) / 10**8:.8f}"

    vector.stream("OPEN", "SUBSCRIBED").snapshot(
        [(price(-offset), quantity()) for offset in range(1, levels + 1)],
        [(price(offset), quantity()) for offset in range(1, levels + 1)],
    )
    vector.status("SYNCED", "SYNCHRONISED")
    for _ in range(updates):
        sides: list[_Levels] = [
            [
                (price(sign * offset), "0.00000000" if chance.random() < 0.4 else quantity())
                for offset in chance.sample(range(1, levels * 3 // 2), chance.randrange(0, 9))
            ]
            for sign in (-1, 1)
        ]
        vector.update(*sides)
    return vector


def _continuity() -> list[_Vector]:
    return [
        _opened("gap", "An update that is not the next one means that something is missing.")
        .wrong_update(sequence=9)
        .disconnect()
        .stream("OPEN", "SUBSCRIBED")
        .snapshot(_BIDS[:1], _ASKS[:2], sequence=12)
        .status("SYNCED", "SYNCHRONISED")
        .update([("64250.1", "0")], [("64250.2", "4")]),
        _opened("repeat", "An update that came already does not continue the book.")
        .update([("64249", "2")], [])
        .wrong_update(sequence=8),
        _opened("other epoch", "The next sequence of another epoch does not continue the book.")
        .wrong_update(epoch=1795518333632609, sequence=8)
        .snapshot(_BIDS, _ASKS[:1], epoch=1795518333632609, sequence=8)
        .stream("OPEN", "SUBSCRIBED")
        .status("SYNCED", "SYNCHRONISED"),
        _Vector("no snapshot", "An update before any snapshot continues nothing.")
        .stream("OPEN", "SUBSCRIBED")
        .status("SYNCED", "SYNCHRONISED")
        .wrong_update(epoch=0, sequence=1),
        _opened("merged", "A merged update continues the book when its first one does.")
        .update([("64249", "2"), ("64250.1", "0")], [], merged=5)
        .update([], [("64250.11", "0")])
        .update([("64248", "1")], [], merged=1)
        .wrong_update(sequence=20, first=16),
        _opened(
            "merged repeat", "A merged update that begins too early does not continue it."
        ).wrong_update(sequence=9, first=7),
        _opened("replacement", "A snapshot replaces everything, whatever its reason.")
        .snapshot(
            [("64240", "1")],
            [("64260", "2")],
            sequence=5,
            reason=order_book_pb2.SNAPSHOT_REASON_PERIODIC,
        )
        .update([("64241", "1.5")], [("64260", "0")])
        .snapshot([], [], sequence=90, reason=order_book_pb2.SNAPSHOT_REASON_RESUME_TOO_OLD)
        .update([("1", "1")], []),
        _opened(
            "large numbers",
            "Epoch and sequence are unsigned integers of 64 bits, also beyond what doubles hold.",
            epoch=2**64 - 1,
        )
        .snapshot(_BIDS, _ASKS, sequence=_BEYOND_DOUBLES)
        .update([("64250.1", "1")], [])
        .wrong_update(sequence=_BEYOND_DOUBLES + 3),
    ]


def _trust() -> list[_Vector]:
    return [
        _opened("resync", "A book that is being rebuilt is not to be used until it is SYNCED.")
        .update([("64250.1", "1")], [])
        .status("RESYNCING", "VENUE_GAP", "expected update 9, update 11 came")
        .snapshot(
            _BIDS[:2],
            _ASKS,
            epoch=1795518333999999,
            reason=order_book_pb2.SNAPSHOT_REASON_EPOCH_START,
        )
        .status("SYNCED", "SYNCHRONISED")
        .update([], [("64250.11", "0")]),
        _opened("stale", "A stale book is right so far, and nobody says whether it still is.")
        .status("STALE", "FEED_SILENT")
        .status("SYNCED", "SYNCHRONISED")
        .status("STALE", "COLLECTOR_SILENT")
        .update([("64250.1", "1")], [])
        .status("SYNCED", "SYNCHRONISED"),
        _Vector("not ready", "A book that was never in step has a state and no levels.")
        .stream("OPEN", "SUBSCRIBED")
        .status("SYNCING", "STARTUP")
        .stream("HEARTBEAT", "IDLE")
        .snapshot(_BIDS, _ASKS)
        .status("SYNCED", "SYNCHRONISED"),
        _opened("heartbeat", "A heartbeat changes nothing, whether or not it names the book.")
        .stream("HEARTBEAT", "IDLE")
        .stream("HEARTBEAT", "IDLE", scope="stream"),
        _opened("lagging", "Who lags gets a snapshot of the book as it is now.")
        .stream("LAGGING", "SLOW_READER", dropped=400)
        .snapshot(
            _BIDS[1:], _ASKS[1:], sequence=407, reason=order_book_pb2.SNAPSHOT_REASON_CONFLATED
        )
        .status("SYNCED", "SYNCHRONISED")
        .update([("64250.1", "2")], []),
        _opened("interrupted", "From INTERRUPTED to OPEN events may be missing.")
        .stream("INTERRUPTED", "BROKER_DISCONNECTED")
        .stream("HEARTBEAT", "IDLE")
        .stream("OPEN", "RESTORED")
        .update([("64250.1", "2")], []),
        _opened("scopes", "What is interrupted stays so until the same scope is open again.")
        .stream("INTERRUPTED", "BROKER_DISCONNECTED", scope="stream")
        .stream("INTERRUPTED", "COLLECTOR_SILENT", scope="venue")
        .stream("OPEN", "BROKER_DISCONNECTED", scope="stream")
        .stream("INTERRUPTED", "VENUE_GAP")
        .stream("OPEN", "COLLECTOR_SILENT", scope="venue")
        .stream("OPEN", "VENUE_GAP")
        .stream("INTERRUPTED", "COLLECTOR_SILENT", scope="venue")
        .disconnect()
        .stream("OPEN", "SUBSCRIBED", scope="stream")
        .status("SYNCED", "SYNCHRONISED"),
        _opened("ended", "After the last message nothing is known.")
        .stream("ENDED", "SERVER_STOPPING", scope="stream")
        .disconnect(),
        _opened(
            "resumed", "A resumed stream goes on where the book stands; its state is told anew."
        )
        .update([("64250.1", "2")], [])
        .disconnect()
        .stream("OPEN", "RESUMED")
        .update([("64250.1", "3")], [])
        .status("SYNCED", "SYNCHRONISED")
        .update([], [("64250.11", "0")]),
        _opened("other instruments", "Events of other instruments and kinds change nothing.")
        .foreign(
            MarketEvent(
                order_book_snapshot=order_book_pb2.OrderBookSnapshot(
                    exchange=_EXCHANGE, symbol="ETH-USDT", epoch=1, sequence=3
                )
            )
        )
        .foreign(
            MarketEvent(
                order_book_update=order_book_pb2.OrderBookUpdate(
                    exchange="okx", symbol=_SYMBOL, epoch=1795518333632608, sequence=8
                )
            )
        )
        .foreign(
            MarketEvent(
                order_book_status=order_book_pb2.OrderBookStatus(
                    exchange="okx",
                    symbol=_SYMBOL,
                    state=order_book_pb2.ORDER_BOOK_STATE_RESYNCING,
                )
            )
        )
        .foreign(
            MarketEvent(
                stream_status=market_event_pb2.StreamStatus(
                    state=market_event_pb2.STREAM_STATE_INTERRUPTED,
                    exchange=_EXCHANGE,
                    symbol="ETH-USDT",
                )
            )
        )
        .foreign(
            MarketEvent(
                trade=events_pb2.Trade(exchange=_EXCHANGE, symbol=_SYMBOL, trade_id="1", price="1")
            )
        )
        .foreign(MarketEvent())
        .update([("64250.1", "2")], []),
    ]


def _numbers() -> list[_Vector]:
    return [
        _opened("order", "Levels are ordered by the value of the price, not by its text.")
        .snapshot(
            [("9.5", "1"), ("10", "2"), ("9.45", "3"), ("100", "4"), ("0.00000001", "5")],
            [
                ("1000", "1"),
                ("999.99999999", "2"),
                ("100000", "3"),
                ("101.1", "4"),
                ("101.10001", "5"),
            ],
        )
        .update([("99.999999999999999999", "6"), ("10", "0")], [("100.5", "7"), ("1000", "0")]),
        _opened("digits", "Numbers keep every digit, also those that no double has.")
        .snapshot(
            [
                ("12345678901234567890.123456789", "98765432109876543210.123456789"),
                ("12345678901234567890.123456788", "0.000000000000000001"),
            ],
            [("12345678901234567891", "1"), ("12345678901234567890.2", "1")],
        )
        .update([("12345678901234567890.123456788", "0")], [("12345678901234567890.20001", "5")]),
        _opened("negative", "A price may be negative: more negative is lower.")
        .snapshot(
            [("-2", "1"), ("-1.5", "1"), ("-10", "1"), ("-1.25", "1")],
            [("-1", "1"), ("0.5", "1"), ("-0.5", "1"), ("3", "1")],
        )
        .update([("-1.5", "0"), ("-1.05", "3")], [("0", "1")]),
        _opened("absent", "Deleting a level that is not there is normal.")
        .update([("1", "0")], [("99999", "0.00000000")])
        .update([], []),
        _opened("horizon", "Beyond the horizon the book is unknown: levels there are not given.")
        .snapshot(_BIDS, _ASKS, horizons=("64250", "64250.12"))
        .update([("64248", "1"), ("64250", "2")], [("64250.12", "0"), ("64300", "5")])
        .snapshot(_BIDS, _ASKS, sequence=1, horizons=("", "64251")),
    ]


def render() -> str:
    """Make the file's text."""
    vectors = [
        _walk("walk", 15, 25),
        _walk("deep walk", 60, 4),
        *_continuity(),
        *_trust(),
        *_numbers(),
    ]
    document = {
        "about": "Made by `python -m tools.client_vectors`; every example client's book passes it.",
        "exchange": _EXCHANGE,
        "symbol": _SYMBOL,
        "vectors": [vector.made() for vector in vectors],
    }
    # A step a line: a change shows what it changed.
    text = json.dumps(document, separators=(",", ":"))
    return text.replace('{"event"', '\n{"event"').replace('{"disconnect"', '\n{"disconnect"') + "\n"


def main(arguments: list[str] | None = None, *, root: Path = ROOT) -> int:
    """Write the vectors, or with --check compare them; return 0, or 1 when they differ."""
    parser = argparse.ArgumentParser(prog="python -m tools.client_vectors", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, only compare")
    options = parser.parse_args(arguments)
    path = root / VECTORS
    text = render()
    if options.check:
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            print(
                f"{VECTORS} is not what the books give: run `python -m tools.client_vectors`",
                file=sys.stderr,
            )
            return 1
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"wrote {VECTORS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
