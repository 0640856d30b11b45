"""Captures of Deribit end with the books that plain rules give, whatever order things came in."""

import gzip
import hashlib
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.collector.verify import verify_capture
from tests.unit.collector.support import captures

_WS = "wss://www.deribit.com/ws/api/v2"
_LIST = "https://www.deribit.com/api/v2/public/get_instruments?currency=BTC"


class Reference:
    """Books by the venue's rules alone: dicts of Decimal, from JSON read by the library."""

    def __init__(self) -> None:
        self.books: dict[tuple[str, str], dict[str, Any]] = {}

    def take(self, connection: str, text: str) -> None:
        push = json.loads(text, parse_float=Decimal, parse_int=Decimal)
        params = push.get("params") or {}
        if not str(params.get("channel", "")).startswith("book."):
            return
        data = params["data"]
        key = connection, data["instrument_name"]
        book = self.books.setdefault(
            key, {"last": None, "applied": 0, "gaps": 0, "sides": ({}, {}), "in_step": False}
        )
        snapshot = data.get("type") == "snapshot" or "prev_change_id" not in data
        if snapshot:
            book["sides"] = ({}, {})
            book["in_step"] = True
        elif not book["in_step"] or data["change_id"] == book["last"]:
            return
        elif data["prev_change_id"] != book["last"]:
            book["gaps"] += 1
            book["in_step"] = False
            return
        else:
            book["applied"] += 1
        book["last"] = data["change_id"]
        for side, levels in zip(book["sides"], (data["bids"], data["asks"]), strict=True):
            for level in levels:
                amount = Decimal(0) if level[0] == "delete" else level[-1]
                if amount:
                    side[level[-2]] = amount
                else:
                    side.pop(level[-2], None)

    def rows(self) -> dict[tuple[str, str], tuple[Any, ...]]:
        return {
            key: (book["applied"], book["gaps"], book["last"] or 0, self._digest(*book["sides"]))
            for key, book in self.books.items()
        }

    @staticmethod
    def _digest(bids: dict[Decimal, Decimal], asks: dict[Decimal, Decimal]) -> str:
        def plain(number: Decimal) -> str:
            text = format(number, "f")
            return text.rstrip("0").rstrip(".") if "." in text else text

        lines = [f"bid {plain(p)} {plain(bids[p])}\n" for p in sorted(bids, reverse=True)[:50]]
        lines += [f"ask {plain(p)} {plain(asks[p])}\n" for p in sorted(asks)[:50]]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def _book(
    native: str,
    last: int,
    previous: int | None = None,
    bids: str = "",
    asks: str = "",
    kind: str | None = "",
    interval: str = "100ms",
) -> str:
    """A frame of a book channel; `kind` None leaves `type` out, as in 2019 and 2020."""
    told = kind if kind != "" else "snapshot" if previous is None else "change"
    fields = [f'"timestamp":{last}', f'"instrument_name":"{native}"', f'"change_id":{last}']
    if told is not None:
        fields.insert(0, f'"type":"{told}"')
    if previous is not None:
        fields.append(f'"prev_change_id":{previous}')
    fields += [f'"bids":[{bids}]', f'"asks":[{asks}]']
    return (
        '{"jsonrpc":"2.0","method":"subscription","params":{"channel":'
        f'"book.{native}.{interval}","data":{{{",".join(fields)}}}}}}}'
    )


def _verify(path: Path, frames: list[tuple[str, str]], *others: dict[str, Any]) -> None:
    """Write a capture of these (connection, frame) and hold its verification against the rules."""
    reference = Reference()
    records = list(others)
    for number, (connection, frame) in enumerate(frames):
        reference.take(connection, frame)
        records.append(
            {"ts": 1.5 + number, "kind": "ws", "url": _WS, "conn": connection, "data": frame}
        )
    text = "\n".join(map(json.dumps, records)).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    report = verify_capture(path)
    assert not report.problems
    found = {}
    for row in report.books:
        assert row["exchange"] == "deribit"
        found[row["connection"], row["native_symbol"]] = (
            row["applied"], row["gaps"], row["venue_sequence"], row["digest"],
        )  # fmt: skip
        assert (row["checksum_ok"], row["checksum_bad"]) == (0, 0)
    assert found == reference.rows()


_CALL = "BTC-31DEC21-60000-C"
_PUT = "BTC-31DEC21-30000-P"


def test_options_on_one_connection(tmp_path: Path) -> None:
    frames = [
        _book(_CALL, 100, bids='["new",0.0215,13.7],["new",0.021,5.0]', asks='["new",0.0225,64.5]'),
        _book(_PUT, 50, asks='["new",0.0005,0.1]'),
        _book(_CALL, 103, 100, bids='["change",0.0215,1.5],["delete",0.021,0.0]'),
        _book(_PUT, 60, 50, bids='["new",0.0005,1.0002e1]', asks='["delete",0.0005,0.0]'),
        _book(_CALL, 110, 103, asks='["new",0.022,1.0E+1],["delete",9.5,0.0]'),
        _book(_PUT, 61, 60, asks='["new",1e-3,12]'),
    ]
    answer = {"jsonrpc": "2.0", "id": "101", "result": [f"book.{_CALL}.100ms"], "usIn": 1}
    beat = {"params": {"type": "test_request"}, "method": "heartbeat", "jsonrpc": "2.0"}
    trades = {"jsonrpc": "2.0", "method": "subscription", "params": {
        "channel": f"trades.{_CALL}.100ms", "data": [
            {"trade_seq": 1, "trade_id": "1", "timestamp": 5, "price": 0.0215, "amount": 0.1,
             "direction": "sell", "instrument_name": _CALL, "liquidation": "M"}]}}  # fmt: skip
    listed = {"jsonrpc": "2.0", "result": [
        {"instrument_name": _CALL, "kind": "option", "base_currency": "BTC",
         "quote_currency": "BTC", "is_active": True, "tick_size": 0.0005, "min_trade_amount": 0.1},
        {"instrument_name": "BTC-FS-31DEC21_PERP", "kind": "future_combo",
         "base_currency": "BTC", "quote_currency": "USD"}]}  # fmt: skip
    others = [
        {"ts": 1, "kind": "http", "url": _LIST, "conn": "http", "data": json.dumps(listed)},
        {"ts": 1, "kind": "ws_open", "url": _WS, "conn": "a", "data": ""},
        {"ts": 1, "kind": "ws_send", "url": _WS, "conn": "a", "data": '{"method":"x"}'},
        *({"ts": 1, "kind": "ws", "url": _WS, "conn": "a", "data": json.dumps(each)}
          for each in (answer, beat, trades)),
    ]  # fmt: skip
    _verify(tmp_path / "c.jsonl.gz", [("a", frame) for frame in frames], *others)
    (call, put) = sorted(verify_capture(tmp_path / "c.jsonl.gz").books, key=lambda r: r["applied"])
    assert call["symbol"] in ("BTC-USD-20211231-60000-C", "BTC-USD-20211231-30000-P")
    assert {call["state"], put["state"]} == {"SYNCED"}


def test_a_hole_is_a_gap_until_the_next_snapshot(tmp_path: Path) -> None:
    frames = [
        _book(_CALL, 5, 4, bids='["new",9,9]'),  # before any snapshot
        _book(_CALL, 10, bids='["new",1,1]'),
        _book(_CALL, 12, 10, bids='["new",2,1]'),
        _book(_CALL, 14, 13, bids='["new",3,1]'),
        _book(_CALL, 15, 14, bids='["new",4,1]'),
        _book(_CALL, 20, bids='["new",5,1]'),
        _book(_CALL, 21, 20, bids='["new",6,1]'),
        _book(_CALL, 21, 20, bids='["new",6,1]'),  # once more
    ]
    _verify(tmp_path / "c.jsonl", [("a", frame) for frame in frames])
    (row,) = verify_capture(tmp_path / "c.jsonl").books
    assert (row["state"], row["applied"], row["gaps"], row["resyncs"]) == ("SYNCED", 2, 1, 1)


def test_several_snapshots_and_connections(tmp_path: Path) -> None:
    frames = [
        ("a", _book(_CALL, 10, bids='["new",1,1]', interval="raw")),
        ("b", _book(_CALL, 11, bids='["new",2,1]', interval="raw")),
        ("a", _book(_CALL, 13, 10, bids='["new",3,1]', interval="raw")),
        ("b", _book(_CALL, 13, 11, bids='["new",3,1]', interval="raw")),
        ("a", _book(_CALL, 7, bids='["new",4,1]', interval="raw")),
        ("a", _book(_CALL, 8, 7, asks='["new",4.5,1]', interval="raw")),
    ]
    _verify(tmp_path / "c.jsonl", frames)


def test_older_shapes(tmp_path: Path) -> None:
    frames = [
        _book(_CALL, 10, bids='["new",217.8,1895],["new",217.75,712]', kind=None),
        _book(_CALL, 12, 10, bids='["delete",217.8,0]', asks='["new",218.6,3]', kind=None),
        _book(_PUT, 3, bids="[0.5,2.0],[0.4,1]", kind=None),
        _book(_PUT, 4, 3, bids="[0.5,0.0]", asks="[0.6,7]", kind=None),
        _book(_PUT, 5, 4, bids="[0.4,0]", kind=None),
    ]
    _verify(tmp_path / "c.jsonl", [("", frame) for frame in frames])


def test_an_empty_book_is_a_book(tmp_path: Path) -> None:
    frames = [
        _book(_CALL, 0),
        _book(_CALL, 9, 0, bids='["new",0.019,93]', asks='["new",0.037,93]'),
        _book(_PUT, 77),
    ]
    _verify(tmp_path / "c.jsonl", [("", frame) for frame in frames])
    states = {row["state"] for row in verify_capture(tmp_path / "c.jsonl").books}
    assert states == {"SYNCED"}


def test_keys_in_any_order_and_spaces(tmp_path: Path) -> None:
    frames = []
    for text in (
        _book(_CALL, 10, bids='["new",1.50,2.0],["new",1.25,1e1]'),
        _book(_CALL, 11, 10, bids='["delete",1.5,0.0]', asks='["new",2.0,1]'),
    ):
        push = json.loads(text)
        push["params"]["data"] = dict(reversed(push["params"]["data"].items()))
        push["params"] = dict(reversed(push["params"].items()))
        frames.append(json.dumps(dict(reversed(push.items()))))
    _verify(tmp_path / "c.jsonl", [("a", frame) for frame in frames])


def test_a_frame_that_cannot_be_read_ends_continuity(tmp_path: Path) -> None:
    frames = [_book(_CALL, 10, bids='["new",1,1]'), _book(_CALL, 11, 10)[:-5],
              _book(_CALL, 12, 11, bids='["new",2,1]')]  # fmt: skip
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join(
        json.dumps({"kind": "ws", "url": _WS, "conn": "a", "data": frame}) for frame in frames
    ))  # fmt: skip
    report = verify_capture(path)
    (row,) = report.books
    assert (row["state"], row["applied"], row["venue_sequence"]) == ("RESYNCING", 0, 10)
    assert len(report.problems) == 1


def test_whole_books_of_fixed_depth_stand_at_the_last(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    frames = [_book(_CALL, last, None, bids, kind=None, interval="none.20.100ms")
              for last, bids in ((4, "[1.5,1],[1.0,2]"), (9, "[1.25,3.0]"))]  # fmt: skip
    _verify(path, [("a", frame) for frame in frames])
    (row,) = verify_capture(path).books
    assert (row["state"], row["applied"], row["bids"]) == ("SYNCED", 0, 1)


def test_recorded_book_frames_verify(tmp_path: Path) -> None:
    frames = []
    for name in ("deribit.jsonl.gz", "deribit_2021_2022.jsonl.gz"):
        text = gzip.decompress(captures("frames", name).read_bytes()).decode()
        frames += [(name, json.loads(line)["data"]) for line in text.splitlines()]
    for line in captures("frames", "present_day_2026.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["conn"].startswith("deribit"):
            frames.append((record["conn"], record["data"]))
    path = tmp_path / "c.jsonl"
    _verify(path, frames)
    option = next(
        row for row in verify_capture(path).books if row["native_symbol"] == "BTC-15SEP26-77000-C"
    )
    assert (option["symbol"], option["applied"]) == ("BTC-USD-20260915-77000-C", 2)


_prices = st.integers(1, 12).map(lambda n: f"{n / 8}")
_amounts = st.sampled_from(["1", "2.50", "10.0", "1.0002e6", "1e-3", "0.1"])
_level = st.one_of(
    st.tuples(st.sampled_from(["new", "change"]), _prices, _amounts),
    st.tuples(st.just("delete"), _prices, st.sampled_from(["0", "0.0"])),
).map(lambda level: f'["{level[0]}",{level[1]},{level[2]}]')
_side = st.lists(_level, max_size=5).map(",".join)
_step = st.tuples(
    st.sampled_from([_CALL, _PUT]),
    st.sampled_from(["change"] * 8 + ["snapshot", "lost", "again"]),
    _side,
    _side,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(steps=st.lists(_step, max_size=25))
def test_any_stream_ends_with_the_book_of_the_plain_rules(
    tmp_path: Path, steps: list[tuple[str, str, str, str]]
) -> None:
    last = {_CALL: 100, _PUT: 7000}
    frames: list[tuple[str, str]] = []
    for native, what, bids, asks in steps:
        previous = last[native]
        last[native] += 3
        if what == "lost":
            continue
        if what == "snapshot":
            frame = _book(native, last[native], None, bids.replace("delete", "new"), asks)
        else:
            frame = _book(native, last[native], previous, bids, asks)
        frames += [("a", frame)] * (2 if what == "again" else 1)
    if frames:
        _verify(tmp_path / "c.jsonl", frames)


@pytest.mark.parametrize("url", ["wss://streams.deribit.com/ws/api/v2",
                                 "wss://test.deribit.com/ws/api/v2", None])  # fmt: skip
def test_the_address_tells_the_venue(tmp_path: Path, url: str | None) -> None:
    path = tmp_path / "c.jsonl"
    frame = _book(_CALL, 10, bids='["new",1,1]')
    path.write_text(json.dumps({"kind": "ws", "url": url, "conn": "a", "data": frame}))
    (row,) = verify_capture(path, None if url else "deribit").books
    assert (row["exchange"], row["state"], row["best_bid"]) == ("deribit", "SYNCED", "1")
