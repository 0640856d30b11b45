"""What is recorded can be read again, and a disk that fails costs only the recording."""

import asyncio
import base64
import contextlib
import gzip
import json
import threading
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.collector import recording
from services.collector.recording import Recorder
from services.collector.settings import RecordingSettings
from services.shared.capture import CaptureRecord, read_capture
from services.shared.errors import InvalidArgument

NOW = 1_700_000_000_123_456_789


@contextlib.asynccontextmanager
async def running(recorder: Recorder) -> AsyncIterator[None]:
    """Run it, and end as a service does: what is queued is written."""
    task = asyncio.create_task(recorder.run())
    await asyncio.sleep(0)
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_frames_come_back_as_they_were(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "deep" / "er", "col", RecordingSettings())
    frames: list[bytes | str] = [
        b'{"a":"\xc3\xa9"}',
        '{"b":1}',
        b"\x00\xff\xfe",
        b"",
        b"line\nline",
    ]
    async with running(recorder):
        for index, frame in enumerate(frames):
            recorder.record("ws", "wss://x/stream", "c1", frame, NOW + index)
        recorder.record("http", "https://x/api", "c1.http", b"[]", NOW)
    (path,) = (tmp_path / "deep" / "er").iterdir()
    assert path == recorder.path
    assert path.name.startswith("col-")
    records = list(read_capture(path))
    expected = [frame.encode() if isinstance(frame, str) else frame for frame in frames]
    assert [record.payload() for record in records[:-1]] == expected
    assert [record.receive_time for record in records[:-1]] == [NOW + i for i in range(len(frames))]
    assert records[2].enc == "b64"
    assert records[-1] == CaptureRecord(
        kind="http", data="[]", url="https://x/api", conn="c1.http", ts=NOW / 1e9, ts_ns=NOW
    )
    assert (recorder.frames, recorder.files, recorder.dropped) == (6, 1, 0)


async def test_a_new_file_begins_after_so_much(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, "col", RecordingSettings(rotate_megabytes=1))
    task = asyncio.create_task(recorder.run())
    for index in range(3):
        recorder.record("ws", "u", "c", json.dumps("x" * 1_100_000), NOW + index)
        async with asyncio.timeout(10):
            while recorder.frames <= index:  # noqa: ASYNC110 - a thread writes
                await asyncio.sleep(0.01)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    files = sorted(tmp_path.iterdir())  # noqa: ASYNC240
    assert len(files) == recorder.files == 3
    assert [r.ts_ns for file in files for r in read_capture(file)] == [NOW, NOW + 1, NOW + 2]


async def test_the_end_waits_for_what_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(tmp_path, "col", RecordingSettings())
    begun, go_on = threading.Event(), threading.Event()
    encode = recording._encode

    def held_up(record: CaptureRecord) -> bytes:
        begun.set()
        assert go_on.wait(20)
        return encode(record)

    monkeypatch.setattr(recording, "_encode", held_up)
    monkeypatch.setattr(recording, "_FLUSH_SECONDS", 0.001)
    task = asyncio.create_task(recorder.run())
    for index in range(100):
        recorder.record("ws", "u", "c", "before", NOW + index)
    assert await asyncio.to_thread(begun.wait, 20)
    for index in range(100, 200):
        recorder.record("ws", "u", "c", "after", NOW + index)
    task.cancel()
    await asyncio.sleep(0.05)
    assert recorder.frames == 0, "expected nothing to be written while the first write lasts"
    go_on.set()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert (recorder.frames, recorder.dropped) == (200, 0)
    (path,) = tmp_path.iterdir()  # noqa: ASYNC240
    assert [record.ts_ns for record in read_capture(path)] == [NOW + i for i in range(200)]


@pytest.mark.parametrize("frame", ["币".encode() * 1000, b"\xff" * 3000])
async def test_room_is_given_back_whatever_was_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frame: bytes
) -> None:
    monkeypatch.setattr(recording, "_FLUSH_SECONDS", 0.001)
    recorder = Recorder(tmp_path, "col", RecordingSettings(buffer_megabytes=1))
    async with running(recorder):
        for number in range(1, 11):
            for _ in range(200):
                recorder.record("ws", "u", "c", frame, NOW)
            async with asyncio.timeout(20):
                while recorder.frames + recorder.dropped < 200 * number:  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
    assert recorder.dropped == 0


async def test_what_finds_no_room_is_dropped_and_counted(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, "col", RecordingSettings(buffer_megabytes=1))
    async with running(recorder):
        for index in range(1000):
            recorder.record("ws", "u", "c", b"x" * 10_000, NOW + index)
        dropped = recorder.dropped
        assert 880 < dropped < 920
    assert (recorder.frames, recorder.dropped) == (1000 - dropped, dropped)
    assert recorder.path is not None
    assert len(list(read_capture(recorder.path))) == recorder.frames
    recorder.record("ws", "u", "c", b"x" * 900_000, NOW)
    assert recorder.dropped == dropped, "what was written made room"


async def test_a_folder_that_cannot_be_written_costs_only_the_recording(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    recorder = Recorder(blocked / "inside", "col", RecordingSettings())
    async with running(recorder):
        recorder.record("ws", "u", "c", b"{}", NOW)
    assert (recorder.frames, recorder.dropped) == (0, 1)
    assert recorder.last_error


async def test_recording_goes_on_when_the_disk_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "_FLUSH_SECONDS", 0.01)
    target = tmp_path / "folder"
    target.write_text("in the way")
    recorder = Recorder(target, "col", RecordingSettings())
    async with running(recorder), asyncio.timeout(10):
        recorder.record("ws", "u", "c", b"1", NOW)
        while not recorder.dropped:  # noqa: ASYNC110 - a thread writes
            await asyncio.sleep(0.01)
        target.unlink()
        recorder.record("ws", "u", "c", b"2", NOW)
        while not recorder.frames:  # noqa: ASYNC110 - a thread writes
            await asyncio.sleep(0.01)
    assert recorder.path is not None
    assert [record.data for record in read_capture(recorder.path)] == ["2"]
    assert recorder.last_error == "", "health tells the present state"


# Reading.


def _line(**more: object) -> bytes:
    return json.dumps({"kind": "ws", "data": "{}", **more}).encode()


def test_malformed_lines_are_told_by_number_and_skipped(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    lines = [_line(conn="1"), b"", b"not json", b"[]", b'{"kind":"ws"}', b'{"kind":1,"data":"x"}',
             b"\xff\xfe", b"[" * 100_000, _line(conn="2"), b"null"]  # fmt: skip
    path.write_bytes(b"\n".join(lines))
    complaints: list[int] = []
    records = list(read_capture(path, lambda number, _: complaints.append(number)))
    assert [record.conn for record in records] == ["1", "2"]
    assert complaints == [3, 4, 5, 6, 7, 8, 10]


@pytest.mark.parametrize("keep", [0.3, 0.7, 0.99])
def test_a_file_cut_short_gives_what_can_be_read_and_says_so(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "c.jsonl.gz"
    data = gzip.compress(b"\n".join(_line(ts_ns=n, data=str(n * n)) for n in range(5000)))
    path.write_bytes(data[: int(len(data) * keep)])
    complaints: list[str] = []
    records = list(read_capture(path, lambda _, what: complaints.append(what)))
    assert [record.ts_ns for record in records] == list(range(len(records)))
    assert 0 < len(records) < 5000
    assert len(complaints) == 1


def test_damaged_compressed_data_is_told_and_not_raised(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl.gz"
    data = bytearray(gzip.compress(b"\n".join(_line(ts_ns=n) for n in range(5000))))
    for index in range(len(data) // 2, len(data) // 2 + 50):
        data[index] ^= 0xFF
    path.write_bytes(data)
    complaints: list[str] = []
    list(read_capture(path, lambda _, what: complaints.append(what)))
    assert complaints


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_a_capture_that_is_no_file_is_one_clear_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"expected a .jsonl or .jsonl.gz file"):
        list(read_capture(tmp_path / name))


@given(st.binary(max_size=500))
def test_binary_payloads_survive_base64_and_deflate(data: bytes) -> None:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    packed = base64.b64encode(packer.compress(data) + packer.flush()).decode()
    assert CaptureRecord(kind="ws", data=packed, enc="b64").payload() == data


@pytest.mark.parametrize(
    ("data", "encoding"), [("###", "b64"), ("AAAA", "b64"), ("x", "zip"), ("\ud800", None)]
)
def test_a_payload_that_cannot_be_unpacked_is_a_value_error(
    data: str, encoding: str | None
) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the kind is the contract
        CaptureRecord(kind="ws", data=data, enc=encoding).payload()


def test_receive_time_is_exact_where_nanoseconds_are_known() -> None:
    assert CaptureRecord(kind="ws", data="", ts=1.5, ts_ns=NOW).receive_time == NOW
    seconds = CaptureRecord(kind="ws", data="", ts=1634050323.123456).receive_time
    assert seconds == 1634050323123456000
    assert CaptureRecord(kind="ws", data="").receive_time == 0
