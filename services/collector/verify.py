"""Replays captures offline through the very code that runs live, and says how each book ended."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from marketprism.market.v1 import order_book_pb2 as pb

from services.collector.book import book_digest
from services.collector.synchroniser import BookSynchroniser, SnapshotPolicy
from services.collector.venues.base import (
    Acknowledgement,
    BookHeartbeat,
    BookSnapshot,
    Goodbye,
    Ignored,
    InstrumentsChanged,
    InstrumentSpec,
    MalformedFrameError,
    Observation,
    Ping,
    RestRequest,
    Several,
    SkippedTrade,
    SnapshotSource,
    TopOfBook,
    TradePrint,
    VenueAdapter,
    VenueFault,
    VenueMessage,
)
from services.collector.venues.registry import adapter_for_exchange, exchange_for_url, url_host
from services.shared.capture import CaptureRecord, read_numbered
from services.shared.errors import InvalidArgument

__all__ = ["CaptureReport", "verify_capture", "verify_captures"]

_POLICY = SnapshotPolicy(every_seconds=float("inf"), refresh_seconds=float("inf"))
_TICKERS_KEPT = 512
_NO_BOOK = (
    Acknowledgement,
    Goodbye,
    Ignored,
    InstrumentsChanged,
    Observation,
    Ping,
    SkippedTrade,
    VenueFault,
)


class _Discard:
    """Output of a book under verification: what is encoded is not sent anywhere."""

    def publish_update(self, payload: bytes, epoch: int, sequence: int) -> None:
        """Take nothing."""

    def publish_snapshot(self, payload: bytes, epoch: int, sequence: int) -> None:
        """Take nothing."""

    def publish_status(self, status: pb.OrderBookStatus) -> None:
        """Take nothing."""

    def request_snapshot(self, reason: "pb.OrderBookReason.ValueType") -> None:
        """Ask nobody: the capture holds the snapshots there are."""


@dataclass(slots=True)
class _Book:
    """One book of a capture, and the oracle that the venue's bookTicker is."""

    synchroniser: BookSynchroniser
    snapshots: list[tuple[BookSnapshot, int]] = field(default_factory=list)
    tickers: deque[TopOfBook] = field(default_factory=lambda: deque(maxlen=_TICKERS_KEPT))
    tops_compared: int = 0
    tops_different: int = 0

    def compare_top(self) -> None:
        """Hold the book against a bookTicker of the very same update id, when there is one."""
        sequence = self.synchroniser.venue_sequence
        while self.tickers and self.tickers[0].venue_sequence < sequence:
            self.tickers.popleft()
        if not self.synchroniser.in_step:
            return
        if self.tickers and self.tickers[0].venue_sequence == sequence:
            top = self.tickers.popleft()
            book = self.synchroniser.book
            self.tops_compared += 1
            if (book.best_bid() or ("", "")) != top.bid or (book.best_ask() or ("", "")) != top.ask:
                self.tops_different += 1


@dataclass(slots=True)
class CaptureReport:
    """What one capture held.

    `books` are the rows that `marketprism verify` prints, one a (connection, native symbol).
    `tops_compared` and `tops_different` count comparisons of a book with the venue's own
    bookTicker at the same update id. `problems` are lines and frames that could not be read.
    """

    capture: str
    books: list[dict[str, Any]] = field(default_factory=list)
    trades: int = 0
    tops_compared: int = 0
    tops_different: int = 0
    problems: list[str] = field(default_factory=list)
    unknown_urls: set[str] = field(default_factory=set)


class _Verifier:
    def __init__(self, path: Path, exchange: str | None) -> None:
        self.report = CaptureReport(path.name)
        self._path = path
        self._exchange = exchange
        self._adapters: dict[str, VenueAdapter] = {}
        self._instruments: dict[tuple[str, str], InstrumentSpec] = {}
        self._books: dict[tuple[str, str, str], _Book] = {}
        self._early: dict[tuple[str, str], list[tuple[BookSnapshot, int]]] = {}

    def run(self, on_progress: Callable[[int], None] | None) -> CaptureReport:
        def problem(line: int, what: str) -> None:
            self.report.problems.append(f"{self._path.name}:{line}: {what}")

        for number, record in read_numbered(self._path, problem):
            if on_progress is not None and number % 5000 == 0:
                on_progress(number)
            if record.kind not in ("ws", "http"):
                continue
            adapter = self._adapter(record)
            if adapter is None:
                continue
            try:
                if record.kind == "ws":
                    self._frame(adapter, record)
                else:
                    self._answer(adapter, record)
            except (MalformedFrameError, ValueError) as error:
                self.report.problems.append(f"{self._path.name}: record {number}: {error}")
                self._malformed(adapter, record, error)
        for (connection, _, native), book in sorted(self._books.items()):
            self.report.books.append(self._row(connection, native, book))
            self.report.tops_compared += book.tops_compared
            self.report.tops_different += book.tops_different
        return self.report

    def _adapter(self, record: CaptureRecord) -> VenueAdapter | None:
        exchange = self._exchange or exchange_for_url(record.url)
        if exchange is None:
            host = url_host(record.url)
            if host:
                self.report.unknown_urls.add(host)
            return None
        if exchange not in self._adapters:
            self._adapters[exchange] = adapter_for_exchange(exchange)
        return self._adapters[exchange]

    def _book(self, adapter: VenueAdapter, connection: str, native: str) -> _Book:
        key = (connection, adapter.exchange, native)
        book = self._books.get(key)
        if book is None:
            spec = self._instruments.get((adapter.exchange, native)) or adapter.infer_instrument(
                native
            )
            book = _Book(
                BookSynchroniser(adapter.exchange, spec.symbol, adapter, _Discard(), _POLICY)
            )
            book.snapshots = list(self._early.get((adapter.exchange, native), ()))
            book.synchroniser.begin(0)
            self._books[key] = book
        return book

    def _frame(self, adapter: VenueAdapter, record: CaptureRecord) -> None:
        self._message(adapter, record, adapter.decode(record.payload()))

    def _message(self, adapter: VenueAdapter, record: CaptureRecord, message: VenueMessage) -> None:
        connection = record.conn or ""
        if isinstance(message, TopOfBook):
            # A top without an id says nothing of which book it was the top.
            book = self._books.get((connection, adapter.exchange, message.native_symbol))
            if book is not None and message.venue_sequence:
                book.tickers.append(message)
                book.compare_top()
        elif isinstance(message, TradePrint):
            self.report.trades += 1
        elif isinstance(message, Several):
            for each in message.messages:
                self._message(adapter, record, each)
        elif not isinstance(message, _NO_BOOK):
            book = self._book(adapter, connection, message.native_symbol)
            if isinstance(message, BookSnapshot):
                book.synchroniser.on_stream_snapshot(message, record.receive_time)
            elif isinstance(message, BookHeartbeat):
                book.synchroniser.on_heartbeat(message, record.receive_time)
            else:
                book.synchroniser.on_diff(message, record.receive_time)
            # Snapshots that came before the first diff are judged against it, not before it.
            for snapshot, received in book.snapshots:
                book.synchroniser.on_snapshot(snapshot, received)
            book.snapshots.clear()
            book.compare_top()

    def _answer(self, adapter: VenueAdapter, record: CaptureRecord) -> None:
        parts = urlsplit(record.url or "")
        query = dict(parse_qsl(parts.query))
        if any(parts.path == request.path for request in adapter.instrument_requests()):
            for spec in adapter.decode_instruments(record.payload()):
                self._instruments[adapter.exchange, spec.native_symbol] = spec
            return
        if adapter.snapshot_source is not SnapshotSource.REQUEST:
            return
        native = query.get("symbol", "")
        if parts.path != adapter.snapshot_request(native, 1).path:
            return
        snapshot = adapter.decode_snapshot(record.payload(), RestRequest(parts.path, 0, query))
        self._early.setdefault((adapter.exchange, native), []).append(
            (snapshot, record.receive_time)
        )
        for (_, exchange, symbol), book in self._books.items():
            if exchange == adapter.exchange and symbol == native:
                book.synchroniser.on_snapshot(snapshot, record.receive_time)

    def _malformed(self, adapter: VenueAdapter, record: CaptureRecord, error: Exception) -> None:
        native = getattr(error, "native_symbol", "")
        key = (record.conn or "", adapter.exchange, native)
        concerns_book = getattr(error, "concerns_book", True)
        if record.kind == "ws" and concerns_book and key in self._books:
            self._books[key].synchroniser.on_malformed(str(error), record.receive_time)

    def _row(self, connection: str, native: str, book: _Book) -> dict[str, Any]:
        state = book.synchroniser
        bids, asks = state.book.bids(), state.book.asks()
        return {
            "capture": self._path.name,
            "connection": connection,
            "exchange": state.exchange,
            "symbol": state.symbol,
            "native_symbol": native,
            "state": pb.OrderBookState.Name(state.state).removeprefix("ORDER_BOOK_STATE_"),
            "frames": state.frames,
            "applied": state.applied,
            "gaps": state.gaps,
            "resyncs": state.resyncs,
            "checksum_ok": state.checksums_ok,
            "checksum_bad": state.checksums_bad,
            "bids": len(bids),
            "asks": len(asks),
            "best_bid": bids[0].price if bids else None,
            "best_ask": asks[0].price if asks else None,
            "venue_sequence": state.venue_sequence,
            "digest": book_digest(bids, asks),
        }


def verify_capture(
    path: Path,
    exchange: str | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> CaptureReport:
    """Replay one capture. `on_progress` is told the number of lines read, now and then.

    The adapter is chosen by the URLs in the capture, or is that of `exchange`. Raises
    InvalidArgument when the file cannot be read or holds no frame of a venue that is known.
    """
    if exchange is not None:
        adapter_for_exchange(exchange)
    report = _Verifier(path, exchange).run(on_progress)
    if not report.books:
        hosts = ", ".join(sorted(report.unknown_urls))
        raise InvalidArgument(
            f"capture {path}: no order book in it"
            + (f"; no adapter for {hosts}: name one with --exchange" if hosts else "")
            + (f"; {len(report.problems)} unreadable lines, first: {report.problems[0]}"
               if report.problems else "")
        )  # fmt: skip
    return report


def verify_captures(
    paths: list[Path],
    exchange: str | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[CaptureReport]:
    """Replay captures one after the other; see `verify_capture`."""
    for path in paths:
        yield verify_capture(path, exchange, on_progress)
