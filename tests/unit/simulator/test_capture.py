"""A capture is read line by line; what cannot be used is counted and never stops the play."""

import gzip
import json
from pathlib import Path

import pytest

from services.simulator.capture import CaptureError, CaptureMarket
from services.simulator.capture_file import CapturedFrame, CaptureReader
from services.simulator.market import MarketState, UpdateIdUnavailableError


def _ws(data: object, **more: object) -> dict[str, object]:
    return {"ts": 1.0, "kind": "ws", "url": "wss://x/stream", "data": json.dumps(data), **more}


def _depth(first: int, last: int, bids: list, asks: list = [], symbol: str = "ABCUSDT") -> dict:  # noqa: B006
    event = {"e": "depthUpdate", "E": 1, "s": symbol, "U": first, "u": last, "b": bids, "a": asks}
    return _ws({"stream": f"{symbol.lower()}@depth@100ms", "data": event})


def _snapshot(update_id: int, bids: list, asks: list) -> dict:
    body = {"lastUpdateId": update_id, "bids": bids, "asks": asks}
    url = "https://x/api/v3/depth?symbol=ABCUSDT&limit=1000"
    return {"ts": 1.0, "kind": "http", "url": url, "data": json.dumps(body)}


def _write(path: Path, lines: list[object]) -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text(text + "\n")
    return path


class _Sink:
    """Takes everything at once."""

    def __init__(self) -> None:
        self.frames: list = []

    def publish(self, events) -> None:
        self.frames += events

    async def wait_subscribed(self) -> None:
        return

    async def wait_capacity(self) -> None:
        return

    def subscribed(self, stream: str) -> bool:
        return False


async def _play(market: CaptureMarket) -> _Sink:
    sink = _Sink()
    await market._play(sink)
    return sink


_GOOD = [
    _depth(1, 5, [["10.10", "1"]]),
    _snapshot(7, [["10.10", "2"], ["10.00", "3"]], [["10.20", "1.5"]]),
    _depth(6, 9, [["10.10", "0"]], [["10.30", "4"]]),
    _depth(10, 10, [["9.90", "1"]]),
]


async def test_the_book_begins_with_the_snapshot_and_follows_the_diffs(tmp_path: Path) -> None:
    market = CaptureMarket(_write(tmp_path / "c.jsonl", _GOOD), speed=None)
    assert market.state is MarketState.WAITING
    assert market.book("ABCUSDT").update_id == 7, "before its place, the captured snapshot"
    sink = await _play(market)
    assert [frame.event_id for frame in sink.frames] == [5, 9, 10]
    assert market.book("ABCUSDT").canonical() == (
        [("10", "3"), ("9.9", "1")],
        [("10.2", "1.5"), ("10.3", "4")],
    )
    assert market.book_at("ABCUSDT", 9).update_id == 9
    assert len(market.book_at("ABCUSDT", 7).bids) == 2
    with pytest.raises(UpdateIdUnavailableError, match="inside the frame"):
        market.book_at("ABCUSDT", 8)


async def test_a_gap_makes_the_book_unknown_until_a_later_snapshot(tmp_path: Path) -> None:
    lines = [
        *_GOOD,
        _depth(15, 18, [["9.80", "1"]]),
        _snapshot(18, [["9.70", "5"]], [["10.20", "1"]]),
        _depth(19, 20, [["9.60", "1"]]),
    ]
    market = CaptureMarket(_write(tmp_path / "c.jsonl", lines), speed=None)
    await _play(market)
    stats = market.stats()["symbols"]["ABCUSDT"]
    assert stats["gaps"] == 1
    assert stats["synchronised"]
    assert market.book("ABCUSDT").canonical()[0] == [("9.7", "5"), ("9.6", "1")]


async def test_without_a_snapshot_the_book_is_what_the_diffs_tell(tmp_path: Path) -> None:
    lines = [_depth(6, 9, [["10.10", "2"]], [["10.30", "4"]]), _depth(10, 12, [["10.10", "1"]])]
    market = CaptureMarket(_write(tmp_path / "c.jsonl", lines), speed=None)
    assert market.book("ABCUSDT").update_id == 5
    await _play(market)
    assert market.book("ABCUSDT").canonical() == ([("10.1", "1")], [("10.3", "4")])


async def test_a_stale_book_is_older_than_every_diff(tmp_path: Path) -> None:
    market = CaptureMarket(_write(tmp_path / "c.jsonl", _GOOD), speed=None)
    assert market.stale_book("ABCUSDT", market.pending_id("ABCUSDT") - 1).update_id == 0
    await _play(market)
    assert market.stale_book("ABCUSDT", 10).update_id == 9


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        '{"kind": 7}',
        '{"kind": "ws", "ts": 1, "data": null}',
        '{"kind": "ws", "ts": 1, "data": "{broken"}',
        json.dumps(_depth(1, 2, [["x", "1"]])),
        json.dumps(_depth(1, 2, "levels")),
        json.dumps({"kind": "http", "url": "https://x/api/v3/depth?limit=5", "data": "{}"}),
        json.dumps({"kind": "http", "url": "https://x/api/v3/depth?symbol=A", "data": "{}"}),
    ],
)
async def test_a_malformed_line_is_counted_told_and_skipped(tmp_path: Path, line: str) -> None:
    market = CaptureMarket(_write(tmp_path / "c.jsonl", [*_GOOD[:2], line, *_GOOD[2:]]), speed=None)
    sink = await _play(market)
    assert [frame.event_id for frame in sink.frames] == [5, 9, 10]
    assert market.malformed == 1
    assert "c.jsonl:3" in market.stats()["malformed"][0]


async def test_a_capture_cut_off_in_the_middle_plays_as_far_as_it_goes(tmp_path: Path) -> None:
    whole = gzip.compress(_write(tmp_path / "c.jsonl", _GOOD * 200).read_bytes())
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    reader = CaptureReader(path)
    assert list(reader)
    assert reader.malformed >= 1


def test_what_is_no_capture_is_refused_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="No such file"):
        CaptureMarket(tmp_path / "missing.jsonl")
    with pytest.raises(CaptureError, match="none that can be played"):
        CaptureMarket(_write(tmp_path / "empty.jsonl", []))
    with pytest.raises(CaptureError, match="malformed lines"):
        CaptureMarket(_write(tmp_path / "text.jsonl", ["hello", "world"]))
    path = tmp_path / "bad.jsonl.gz"
    path.write_bytes(b"\x1f\x8bnot gzip at all")
    with pytest.raises(CaptureError):
        CaptureMarket(path)


@pytest.mark.parametrize("speed", [0, -1, float("nan"), float("inf")])
def test_a_speed_must_be_above_nought(tmp_path: Path, speed: float) -> None:
    with pytest.raises(ValueError, match="speed"):
        CaptureMarket(_write(tmp_path / "c.jsonl", _GOOD), speed=speed)


def test_symbols_are_told_by_name_and_numbers_when_there_is_no_listing(tmp_path: Path) -> None:
    market = CaptureMarket(_write(tmp_path / "c.jsonl", _GOOD))
    spec = market.symbols["ABCUSDT"]
    assert (spec.base, spec.quote) == ("ABC", "USDT")
    assert (spec.tick, spec.lot) == (10_000_000, 10_000_000)


def test_raw_frames_find_their_stream_by_url_or_by_kind(tmp_path: Path) -> None:
    trade = {"e": "trade", "s": "ABCUSDT", "t": 5, "p": "1", "q": "2", "T": 9, "m": True}
    depth = {"e": "depthUpdate", "s": "ABCUSDT", "U": 1, "u": 2, "b": [], "a": []}
    lines = [
        _ws(trade, url="wss://x/ws/abcusdt@trade"),
        _ws(depth, url="wss://x/ws/abcusdt@depth"),
        _ws(depth, url="wss://x/ws"),
        _ws({"u": 3, "s": "ABCUSDT", "b": "1", "B": "1", "a": "2", "A": "1"}, url="wss://x/ws"),
        _ws({"result": None, "id": 1}),
    ]
    items = list(CaptureReader(_write(tmp_path / "c.jsonl", lines)))
    assert [item.stream for item in items if isinstance(item, CapturedFrame)] == [
        "abcusdt@trade",
        "abcusdt@depth",
        "abcusdt@depth@100ms",
        "abcusdt@bookTicker",
    ]
    assert [item.wrapped for item in items if isinstance(item, CapturedFrame)] == [None] * 4
