"""Captures of OKX that begin a book more than once, or number its changes, end as they should."""

import gzip
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from services.collector.venues.okx_checksum import OkxChecksum
from services.collector.venues.registry import exchange_for_url
from services.collector.verify import verify_capture
from tests.unit.collector.support import captures

Record = dict[str, Any]


class Recorded:
    """The capture of 2022, and what is needed to say the same differently."""

    def __init__(self) -> None:
        text = gzip.decompress(captures("streams", "OKX.jsonl.gz").read_bytes()).decode()
        self.records: list[Record] = [json.loads(line) for line in text.splitlines()]
        rows = map(json.loads, captures("streams", "EXPECTED.jsonl").read_text().splitlines())
        self.expected = {row["symbol"]: row for row in rows if row["capture"] == "OKX.jsonl.gz"}

    def books(self) -> Iterator[tuple[int, Record, dict[str, Any]]]:
        """Number, record and push of each book frame."""
        for number, record in enumerate(self.records):
            if record["kind"] == "ws" and '"action"' in record["data"]:
                yield number, record, json.loads(record["data"])


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return Recorded()


class Levels:
    """A book in the venue's spelling, kept in the plainest way."""

    def __init__(self) -> None:
        self.sides: dict[str, dict[str, str]] = {"bids": {}, "asks": {}}

    def take(self, push: dict[str, Any]) -> None:
        if push["action"] == "snapshot":
            self.sides = {"bids": {}, "asks": {}}
        for side, levels in self.sides.items():
            for price, size, *_ in push["data"][0][side]:
                if float(size):
                    levels[price] = size
                else:
                    levels.pop(price, None)

    def snapshot(self, push: dict[str, Any]) -> dict[str, Any]:
        """The snapshot that the venue would send after this push."""
        bids = sorted(self.sides["bids"].items(), key=lambda each: -float(each[0]))
        asks = sorted(self.sides["asks"].items(), key=lambda each: float(each[0]))
        checksum = OkxChecksum()
        checksum.replace(bids, asks)
        assert checksum.value() == push["data"][0]["checksum"]
        data = {"bids": [[*each, "0", "1"] for each in bids],
                "asks": [[*each, "0", "1"] for each in asks],
                "ts": push["data"][0]["ts"], "checksum": checksum.value()}  # fmt: skip
        return {"arg": push["arg"], "action": "snapshot", "data": [data]}


def write(path: Path, records: list[Record]) -> Path:
    path.write_text("\n".join(json.dumps(each) for each in records))
    return path


def verify(path: Path, records: list[Record]) -> dict[str, dict[str, Any]]:
    report = verify_capture(write(path, records))
    assert report.problems == []
    return {row["native_symbol"]: row for row in report.books}


def with_snapshots(recorded: Recorded, when: Callable[[int], bool]) -> list[Record]:
    """The capture with a snapshot after those of each book's updates that `when` names."""
    books: dict[str, Levels] = defaultdict(Levels)
    updates: dict[str, int] = defaultdict(int)
    after: dict[int, Record] = {}
    for number, record, push in recorded.books():
        name = push["arg"]["instId"]
        books[name].take(push)
        updates[name] += push["action"] == "update"
        if push["action"] == "update" and when(updates[name]):
            again = json.dumps(books[name].snapshot(push), separators=(",", ":"))
            after[number] = {**record, "data": again}
    records = []
    for number, record in enumerate(recorded.records):
        records.append(record)
        if number in after:
            records.append(after[number])
    return records


def test_a_second_snapshot_simply_begins_the_book_anew(recorded: Recorded, tmp_path: Path) -> None:
    rows = verify(tmp_path / "c.jsonl", with_snapshots(recorded, lambda nth: nth in (1, 40, 41)))
    for name, expected in recorded.expected.items():
        row = rows[name]
        assert (row["state"], row["gaps"], row["resyncs"], row["checksum_bad"]) == (
            "SYNCED", 0, 0, 0,
        )  # fmt: skip
        assert (row["applied"], row["digest"]) == (expected["applied"], expected["digest"])
        assert row["checksum_ok"] == expected["checksum_ok"] + 3


def test_a_second_snapshot_mends_what_was_lost_before_it(
    recorded: Recorded, tmp_path: Path
) -> None:
    whole = with_snapshots(recorded, lambda nth: nth == 40)
    seen: dict[str, int] = defaultdict(int)
    records = []
    for record in whole:
        if record["kind"] == "ws" and '"action":"update"' in record["data"]:
            name = json.loads(record["data"])["arg"]["instId"]
            seen[name] += 1
            if 10 <= seen[name] < 15:
                continue
        records.append(record)
    rows = verify(tmp_path / "c.jsonl", records)
    for name, expected in recorded.expected.items():
        row = rows[name]
        assert (row["state"], row["digest"]) == ("SYNCED", expected["digest"])
        assert (row["resyncs"], row["checksum_bad"]) == (1, 1), "the checksum tells what is missing"
        assert row["applied"] == expected["applied"] - 40 + 9


def test_each_connection_has_a_book_of_its_own(recorded: Recorded, tmp_path: Path) -> None:
    records = []
    for record in recorded.records:
        records.append(record)
        if record["kind"] == "ws":
            records.append({**record, "conn": "another"})
    report = verify_capture(write(tmp_path / "c.jsonl", records))
    assert len(report.books) == 6
    for row in report.books:
        expected = recorded.expected[row["native_symbol"]]
        assert (row["state"], row["applied"], row["digest"]) == (
            "SYNCED", expected["applied"], expected["digest"],
        )  # fmt: skip


def numbered(recorded: Recorded) -> list[Record]:
    """The capture as OKX sends it today: ids that jump, keepalives, no checksum, a new numbering
    in the middle."""
    last: dict[str, int] = {}
    records = []
    for record in recorded.records:
        records.append(record)
        if record["kind"] != "ws" or '"action"' not in record["data"]:
            continue
        push = json.loads(record["data"])
        name, data = push["arg"]["instId"], push["data"][0]
        previous = last.get(name, -1)
        last[name] = previous + 7 if previous < 500 else 3
        data |= {"checksum": 0, "seqId": last[name], "prevSeqId": previous}
        records[-1] = {**record, "data": json.dumps(push)}
        if push["action"] == "update" and last[name] % 5 == 0:
            data |= {"bids": [], "asks": [], "prevSeqId": last[name]}
            records.append({**record, "data": json.dumps(push)})
    return records


def test_numbered_changes_follow_each_other_through_a_new_numbering(
    recorded: Recorded, tmp_path: Path
) -> None:
    rows = verify(tmp_path / "c.jsonl", numbered(recorded))
    for name, expected in recorded.expected.items():
        row = rows[name]
        assert (row["state"], row["gaps"], row["checksum_ok"]) == ("SYNCED", 0, 0)
        assert (row["applied"], row["digest"]) == (expected["applied"], expected["digest"])
        assert 0 < row["venue_sequence"] < 500, "numbered anew"


def test_a_number_that_is_missing_is_a_gap(recorded: Recorded, tmp_path: Path) -> None:
    records = numbered(recorded)
    lost = next(n for n, r in enumerate(records) if '"prevSeqId": 69' in r["data"])
    name = json.loads(records[lost]["data"])["arg"]["instId"]
    row = verify(tmp_path / "c.jsonl", records[:lost] + records[lost + 1 :])[name]
    assert (row["state"], row["gaps"], row["resyncs"]) == ("RESYNCING", 1, 1)


@pytest.mark.parametrize(
    "url",
    ["wss://ws.okx.com:8443/ws/v5/public", "wss://ws.okex.com:8443/ws/v5/public",
     "wss://wsaws.okx.com:8443/ws/v5/business", "wss://wspap.okx.com:8443/ws/v5/public?brokerId=9",
     "wss://wseea.okx.com:8443/ws/v5/public", "wss://wsus.okx.com:8443/ws/v5/public",
     "wss://wseeapap.okx.com:8443/ws/v5/public", "https://www.okex.com/api/v5/market/books",
     "https://aws.okx.com/api/v5/market/books", "https://my.okx.com/api/v5/market/books",
     "wss://real.okex.com:8443/ws/v3", "https://okx.com/api/v5/market/books"],
)  # fmt: skip
def test_every_site_of_the_venue_is_the_venue(url: str) -> None:
    assert exchange_for_url(url) == "okx"
    assert exchange_for_url(url.replace(".com", ".com.example.org")) is None
