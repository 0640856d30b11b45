"""Books as collectors publish them, from captures and made up to order; and plain dicts of them."""

import gzip
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from marketprism.collector.v1 import integrity_event_pb2 as integrity
from marketprism.market.v1 import common_pb2
from marketprism.market.v1 import order_book_pb2 as pb

from services.collector import verify
from services.collector.book_output import SnapshotPolicy
from services.shared.capture import read_capture

__all__ = ["SECOND", "Naive", "Story", "by_table", "deribit_capture", "published_books"]

SECOND = 1_000_000_000
_DERIBIT = "wss://www.deribit.com/ws/api/v2"
_PARTS = {
    pb.OrderBookSnapshot: "order_book_snapshot",
    pb.OrderBookUpdate: "order_book_update",
    pb.OrderBookStatus: "order_book_status",
    integrity.IntegrityEvent: "integrity",
}


def by_table(events: Iterable[Message]) -> dict[str, list[Message]]:
    """Give events by the name of their table."""
    found: dict[str, list[Message]] = {}
    for event in events:
        found.setdefault(_PARTS[type(event)], []).append(event)
    return found


class _Output:
    """Keeps what a book publishes, in order."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        _OUTPUTS.append(self)

    def publish_update(self, payload: bytes, epoch: int, sequence: int) -> None:
        self.events.append(pb.OrderBookUpdate.FromString(payload))

    def publish_snapshot(self, payload: bytes, epoch: int, sequence: int) -> None:
        self.events.append(pb.OrderBookSnapshot.FromString(payload))

    def publish_status(self, status: pb.OrderBookStatus) -> None:
        self.events.append(status)

    def request_snapshot(self, reason: object) -> None:
        """Ask nobody: the capture holds the snapshots there are."""


_OUTPUTS: list[_Output] = []


def published_books(path: Path, every_updates: int) -> list[Any]:
    """Give what a collector publishes of the busiest book of a capture, in order."""
    _OUTPUTS.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "_Discard", _Output)
        patch.setattr(
            verify, "_POLICY", SnapshotPolicy(every_updates=every_updates, every_seconds=1e9)
        )
        verify.verify_capture(path)
    return max((output.events for output in _OUTPUTS), key=len)


def deribit_capture(changes: Path, path: Path) -> Path:
    """Write real changes of a book, recorded without ids, as the frames they came in."""
    records = []
    lines = [line for line in map(json.loads, _lines(changes)) if line["type"] == "book_change"]
    for number, line in enumerate(lines):
        sides = {
            side: [
                ["delete" if not level["amount"] else "new", level["price"], level["amount"]]
                for level in line[side]
            ]
            for side in ("bids", "asks")
        }
        data: dict[str, Any] = {
            "type": "change" if number else "snapshot",
            "timestamp": 1_600_000_000_000 + number,
            "instrument_name": "BTC-PERPETUAL",
            "change_id": 1000 + number,
            **({"prev_change_id": 999 + number} if number else {}),
            **sides,
        }
        frame = {"jsonrpc": "2.0", "method": "subscription",
                 "params": {"channel": "book.BTC-PERPETUAL.100ms", "data": data}}  # fmt: skip
        records.append({"ts": 1_600_000_000 + number / 10, "kind": "ws", "url": _DERIBIT,
                        "conn": "c1", "data": json.dumps(frame)})  # fmt: skip
    path.write_text("\n".join(map(json.dumps, records)))
    assert sum(1 for _ in read_capture(path)) == len(lines)
    return path


def _lines(path: Path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode().splitlines()


@dataclass
class Naive:
    """A book of dicts that takes events one after the other, as a subscriber does."""

    events: Sequence[Any]
    index: int = 0
    epoch: int = 0
    sequence: int = 0
    venue_sequence: int = 0
    bids: dict[str, str] = field(default_factory=dict)
    asks: dict[str, str] = field(default_factory=dict)
    begun: bool = False

    def move_to(self, at: int) -> None:
        """Take everything that was published until the first event that came after the instant."""
        while self.index < len(self.events):
            event = self.events[self.index]
            is_status = isinstance(event, pb.OrderBookStatus)
            if not is_status and event.receive_time.ToNanoseconds() > at:
                return
            self.index += 1
            if is_status:
                continue
            if isinstance(event, pb.OrderBookSnapshot):
                self.bids.clear()
                self.asks.clear()
                self.begun = True
            self.epoch, self.sequence = event.epoch, event.sequence
            self.venue_sequence = event.venue_sequence
            for side, levels in ((self.bids, event.bids), (self.asks, event.asks)):
                for level in levels:
                    if level.quantity == "0":
                        side.pop(level.price, None)
                    else:
                        side[level.price] = level.quantity

    def levels(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """Give bids and asks, best first."""
        bids = sorted(self.bids.items(), key=lambda level: Decimal(level[0]), reverse=True)
        return bids, sorted(self.asks.items(), key=lambda level: Decimal(level[0]))


@dataclass
class Story:
    """What a collector publishes of a made-up book; times are seconds after `begin`."""

    symbol: str = "BTC-USDT"
    begin: int = 1_795_500_000 * SECOND
    events: list[Any] = field(default_factory=list)
    epoch: int = 0
    sequence: int = 0
    book: dict[tuple[str, int], int] = field(default_factory=dict)
    lost: list[Any] = field(default_factory=list)
    """Events that never get into the store."""

    @property
    def held(self) -> list[Any]:
        """What gets into the store."""
        return [event for event in self.events if not any(event is lost for lost in self.lost)]

    def at(self, seconds: float) -> int:
        """Give the instant, nanoseconds since 1970."""
        return self.begin + round(seconds * SECOND)

    def snapshot(self, seconds: float, epoch: int = 0) -> None:
        """Publish a snapshot: of a new epoch, or what the book is already."""
        made = pb.OrderBookSnapshot(exchange="binance", symbol=self.symbol)
        made.reason = pb.SNAPSHOT_REASON_PERIODIC
        if epoch:
            self.epoch, self.sequence = epoch, 0
            self.book = {("bids", 100): epoch, ("asks", 102): 7}
            made.reason = pb.SNAPSHOT_REASON_EPOCH_START
        made.epoch, made.sequence = self.epoch, self.sequence
        made.receive_time.FromNanoseconds(self.at(seconds))
        for side, down in (("bids", True), ("asks", False)):
            for (which, price), quantity in sorted(self.book.items(), reverse=down):
                if which == side:
                    getattr(made, side).add(price=str(price), quantity=str(quantity))
        self.events.append(made)

    def update(self, seconds: float, side: str, price: int, quantity: int) -> None:
        """Publish a change of a level."""
        self.sequence += 1
        made = pb.OrderBookUpdate(
            exchange="binance", symbol=self.symbol, epoch=self.epoch, sequence=self.sequence
        )
        made.receive_time.FromNanoseconds(self.at(seconds))
        getattr(made, side).add(price=str(price), quantity=str(quantity))
        self.book[side, price] = quantity
        if not quantity:
            del self.book[side, price]
        self.events.append(made)

    def status(self, seconds: float, state: str, reason: str, *, epoch: int | None = None) -> None:
        """Publish a change of state."""
        made = pb.OrderBookStatus(
            exchange="binance",
            symbol=self.symbol,
            epoch=self.epoch if epoch is None else epoch,
            sequence=self.sequence,
            state=pb.OrderBookState.Value(f"ORDER_BOOK_STATE_{state}"),
            reason=pb.OrderBookReason.Value(f"ORDER_BOOK_REASON_{reason}"),
            detail=f"because of {reason}",
        )
        made.time.FromNanoseconds(self.at(seconds))
        self.events.append(made)

    def entry(self, seconds: float, kind: str, begin: float, end: float, **more: Any) -> str:
        """Write to the ledger; gives the entry's id."""
        made = integrity.IntegrityEvent(
            exchange="binance",
            symbol=self.symbol,
            event_id=f"{seconds:012.3f}-{kind}",
            kind=integrity.IntegrityKind.Value(f"INTEGRITY_KIND_{kind}"),
            event_kind=common_pb2.EVENT_KIND_ORDER_BOOK,
            epoch=self.epoch,
            sequence=self.sequence,
            **more,
        )
        made.receive_time.FromNanoseconds(self.at(seconds))
        made.begin_time.FromNanoseconds(self.at(begin))
        made.end_time.FromNanoseconds(self.at(end))
        self.events.append(made)
        return made.event_id
