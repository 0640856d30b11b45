"""`verify` replays captures through the live code and tells truly how each book ended."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from services.collector.book import book_digest
from services.collector.synchroniser import BookSynchroniser, SnapshotPolicy
from services.collector.venues.base import RestRequest
from services.collector.venues.binance_spot import BinanceSpot, DepthUpdate
from services.collector.verify import verify_capture, verify_captures
from services.shared.capture import read_capture
from services.shared.errors import InvalidArgument
from tests.unit.collector.support import Subscriber, captures

ROW_KEYS = [
    "capture", "connection", "exchange", "symbol", "native_symbol", "state", "frames", "applied",
    "gaps", "resyncs", "checksum_ok", "checksum_bad", "bids", "asks", "best_bid", "best_ask",
    "venue_sequence", "digest",
]  # fmt: skip
_WS = "wss://stream.binance.com:9443/stream"
_REST = "https://api.binance.com/api/v3/depth?symbol=ABCUSDT&limit=1000"


@pytest.mark.parametrize(
    ("name", "tops"),
    [
        ("BINANCE", True),
        ("BINANCE_US", True),
        ("HBT_spot_ethusdt", True),
        ("BINANCE_FUTURES", True),
        ("HBT_usdm_ethusdt", True),
        ("HBT_cm_ethusd_perp", True),
        ("OKX", False),
        ("OKEX_202107", False),
    ],
)
def test_recorded_books_end_as_the_independent_reference_says(name: str, tops: bool) -> None:
    expected = {
        (row["symbol"], row["conn"]): row
        for line in captures("streams", "EXPECTED.jsonl").read_text().splitlines()
        if (row := json.loads(line))["capture"] == f"{name}.jsonl.gz"
    }
    report = verify_capture(captures("streams", f"{name}.jsonl.gz"))
    assert len(report.books) == len(expected) > 0
    for row in report.books:
        assert list(row) == ROW_KEYS
        name_of_row = row["native_symbol"]
        reference = expected.get((name_of_row, row["connection"])) or expected[name_of_row, None]
        for key in ("state", "frames", "applied", "gaps", "venue_sequence", "bids", "asks",
                    "best_bid", "best_ask", "checksum_ok", "digest"):  # fmt: skip
            if key in reference:
                assert row[key] == reference[key], f"{name_of_row} {key}"
        assert row["resyncs"] == row["checksum_bad"] == 0
    assert (report.tops_compared > 0) == tops
    assert report.tops_different == 0, "the venue's own bookTicker is an oracle"
    assert report.problems == []


def _replay(path: Path) -> list[bytes]:
    """Run a capture through synchronisers, and give what they publish."""
    adapter = BinanceSpot()
    books: dict[str, BookSynchroniser] = {}
    outputs: dict[str, Subscriber] = {}
    for record in read_capture(path):
        if record.kind == "ws":
            message = adapter.decode(record.payload())
            if not isinstance(message, DepthUpdate):
                continue
            name = message.native_symbol
            if name not in books:
                outputs[name] = Subscriber()
                books[name] = BookSynchroniser(
                    "binance", name, adapter, outputs[name], SnapshotPolicy(every_updates=50)
                )
                books[name].begin(record.receive_time)
            books[name].on_diff(message, record.receive_time)
        elif record.kind == "http" and "/depth" in (record.url or ""):
            name = (record.url or "").partition("symbol=")[2].partition("&")[0]
            if name in books:
                request = RestRequest("/api/v3/depth", 50, {"symbol": name, "limit": "1000"})
                books[name].on_snapshot(
                    adapter.decode_snapshot(record.payload(), request), record.receive_time
                )
    for output in outputs.values():
        assert not output.problems
    return [payload for name in sorted(outputs) for payload in outputs[name].payloads]


def test_replaying_twice_publishes_the_same_bytes() -> None:
    path = captures("streams", "BINANCE.jsonl.gz")
    first = _replay(path)
    assert len(first) > 150
    assert first == _replay(path)


def _depth(first: int, last: int, bid: str = "10", **record: Any) -> dict[str, Any]:
    event = {"e": "depthUpdate", "E": 1, "s": "ABCUSDT", "U": first, "u": last,
             "b": [[bid, "1.0"]], "a": []}  # fmt: skip
    data = json.dumps({"stream": "abcusdt@depth@100ms", "data": event}, separators=(",", ":"))
    return {"kind": "ws", "ts": 1.0, "conn": "c1", "url": _WS, "data": data, **record}


def _snapshot(last: int, **record: Any) -> dict[str, Any]:
    body = {"lastUpdateId": last, "bids": [["9.50", "1"]], "asks": [["11", "2"]]}
    return {"kind": "http", "ts": 1.0, "url": _REST, "data": json.dumps(body), **record}


def _write(path: Path, *records: dict[str, Any] | str) -> Path:
    text = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize("order", ["snapshot first", "snapshot later"])
def test_a_capture_without_holes_ends_in_step(tmp_path: Path, suffix: str, order: str) -> None:
    records = [_depth(101, 102), _depth(103, 103)]
    records.insert(0 if order == "snapshot first" else 1, _snapshot(101))
    report = verify_capture(_write(tmp_path / f"c{suffix}", *records))
    (row,) = report.books
    assert row == {
        "capture": f"c{suffix}", "connection": "c1", "exchange": "binance", "symbol": "ABC-USDT",
        "native_symbol": "ABCUSDT", "state": "SYNCED", "frames": 2, "applied": 2, "gaps": 0,
        "resyncs": 0, "checksum_ok": 0, "checksum_bad": 0, "bids": 2, "asks": 1, "best_bid": "10",
        "best_ask": "11", "venue_sequence": 103,
        "digest": book_digest([("10", "1"), ("9.5", "1")], [("11", "2")]),
    }  # fmt: skip


def test_a_capture_with_a_gap_does_not_end_in_step(tmp_path: Path) -> None:
    path = _write(tmp_path / "c.jsonl", _depth(101, 101), _snapshot(100), _depth(103, 103))
    (row,) = verify_capture(path).books
    assert (row["state"], row["gaps"], row["resyncs"]) == ("RESYNCING", 1, 1)


def test_a_later_snapshot_mends_a_gap(tmp_path: Path) -> None:
    path = _write(tmp_path / "c.jsonl", _depth(101, 101), _snapshot(100), _depth(103, 103),
                  _snapshot(103), _depth(104, 104))  # fmt: skip
    (row,) = verify_capture(path).books
    assert (row["state"], row["gaps"], row["venue_sequence"]) == ("SYNCED", 1, 104)


def test_a_malformed_frame_is_reported_and_ends_continuity(tmp_path: Path) -> None:
    broken = _depth(102, 102)
    broken["data"] = broken["data"][:-5]
    path = _write(tmp_path / "c.jsonl", _depth(101, 101), _snapshot(100), broken, _depth(103, 103))
    report = verify_capture(path)
    assert report.books[0]["state"] == "RESYNCING"
    assert len(report.problems) == 1
    assert "record 3" in report.problems[0]


def test_connections_are_books_of_their_own(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "c.jsonl",
        _depth(101, 101, conn="a"),
        _depth(100, 100, conn="b"),
        _snapshot(100),
        _depth(102, 102, conn="a"),
        _depth(105, 105, conn="b"),
    )
    rows = verify_capture(path).books
    assert [(row["connection"], row["state"]) for row in rows] == [
        ("a", "SYNCED"),
        ("b", "RESYNCING"),
    ]


def test_the_list_of_instruments_names_what_the_name_alone_does_not_tell(tmp_path: Path) -> None:
    symbol = {"symbol": "ABCUSDT", "status": "TRADING", "baseAsset": "AB", "quoteAsset": "CUSDT"}
    info = {"kind": "http", "url": "https://api.binance.com/api/v3/exchangeInfo",
            "data": json.dumps({"symbols": [symbol]})}  # fmt: skip
    path = _write(tmp_path / "c.jsonl", info, _depth(101, 101), _snapshot(100))
    assert verify_capture(path).books[0]["symbol"] == "AB-CUSDT"


def test_an_unknown_venue_is_named_and_can_be_given(tmp_path: Path) -> None:
    records = [
        _depth(101, 101, url="wss://stream.example.org/stream"),
        _snapshot(100, url="https://api.example.org/api/v3/depth?symbol=ABCUSDT&limit=1000"),
    ]
    path = _write(tmp_path / "c.jsonl", *records)
    with pytest.raises(InvalidArgument, match=r"stream\.example\.org: name one with --exchange"):
        verify_capture(path)
    (row,) = verify_capture(path, "binance").books
    assert (row["exchange"], row["state"]) == ("binance", "SYNCED")


@pytest.mark.parametrize(
    "url", [None, "", "http://[", "wss://", "x", "wss://fstream.example.org/ws"]
)
def test_urls_that_are_none_are_no_venue(tmp_path: Path, url: str | None) -> None:
    path = _write(tmp_path / "c.jsonl", _depth(101, 101, url=url))
    with pytest.raises(InvalidArgument, match="no order book in it"):
        verify_capture(path)
    assert verify_capture(path, "binance").books[0]["state"] == "SYNCING"


def test_an_adapter_that_does_not_exist_is_refused_before_reading(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="expected one of binance, binance_coinm, binance_us"):
        verify_capture(tmp_path / "missing.jsonl", "nasdaq")


def test_unreadable_files_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"missing\.jsonl"):
        list(verify_captures([tmp_path / "missing.jsonl"]))
    path = _write(tmp_path / "c.jsonl", "not a capture", "at all")
    with pytest.raises(InvalidArgument, match="2 unreadable lines"):
        verify_capture(path)


def test_progress_is_told(tmp_path: Path) -> None:
    records = [_depth(101 + n, 101 + n) for n in range(10_001)]
    told: list[int] = []
    verify_capture(_write(tmp_path / "c.jsonl", _snapshot(100), *records), None, told.append)
    assert told == [5000, 10000]
