"""The shared log: bounded, numbered, and cheap for whoever is behind."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from services.marketdata.event_log import Cursor, EventLog


def item(number: int) -> bytes:
    return b"<%d>" % number


@given(
    st.lists(st.one_of(st.integers(1, 400), st.just(0)), max_size=300),
    st.integers(1, 40),
    st.integers(20, 4000),
    st.integers(1, 1200),
)
def test_the_log_holds_the_newest_within_its_bounds_and_reads_all_of_them(
    sizes: list[int], max_events: int, max_bytes: int, message_bytes: int
) -> None:
    log = EventLog(max_events, max_bytes)
    written: list[bytes] = []
    for number, size in enumerate(sizes):
        if size:
            written.append(bytes([number % 256]) * size)
            log.append(written[-1], mark=len(written))
        else:
            log.trim_to(log.first + 1)
        held = written[log.first :]
        assert log.end == len(written)
        assert log.size == sum(map(len, held))
        assert len(held) <= max(1, max_events)
        assert log.size <= max_bytes or len(held) == 1
        assert log.items(log.first) == held
        assert log.floor == log.first
        for position in {log.first, (log.first + log.end) // 2}:
            read: list[bytes] = []
            at = position
            while at < log.end:
                message, after = log.read(at, message_bytes)
                assert after > at
                assert len(message) <= message_bytes or after == at + 1
                read.append(message)
                at = after
            assert b"".join(read) == b"".join(written[position:])


def test_readers_at_one_place_share_one_message() -> None:
    log = EventLog(100, 10_000)
    for number in range(10):
        log.append(item(number))
    first, end = log.read(2, 1000)
    second, _ = log.read(2, 1000)
    assert first is second
    assert (first, end) == (b"".join(map(item, range(2, 10))), 10)
    log.append(item(10))
    assert log.read(2, 1000) == (b"".join(map(item, range(2, 11))), 11)


def test_marks_find_the_place_after_them() -> None:
    log = EventLog(8, 10_000)
    for mark in (5, 6, 6, 7, 9):
        log.append(b"x", mark)
    assert [log.after_mark(mark, 0) for mark in (4, 5, 6, 7, 8, 9)] == [0, 1, 3, 4, 4, 5]
    assert log.after_mark(4, 2) == 2


def test_what_is_old_is_known_by_the_times_that_were_noted() -> None:
    log = EventLog(100, 10_000)
    log.append(b"a")
    assert log.age(0.0, 10.0) == 0
    log.append(b"b")
    assert log.age(5.0, 10.0) == 0
    assert log.age(10.0, 10.0) == 1, "expected what was there at 0 to be old at 10"
    assert log.age(14.9, 10.0) == 0, "expected each place to be given once"
    assert log.age(15.0, 10.0) == 2


async def test_many_appends_of_one_turn_wake_a_reader_once() -> None:
    log = EventLog(100, 10_000)
    cursor = Cursor(log, 0, 60)
    wakes = 0

    async def read() -> None:
        nonlocal wakes
        while await cursor.wait():
            wakes += 1
            cursor.position = log.end

    task = asyncio.create_task(read())
    await asyncio.sleep(0)
    assert log.waiting == 1
    for number in range(50):
        log.append(item(number))
    await asyncio.sleep(0.01)
    assert (wakes, cursor.position, log.waiting) == (1, 50, 1)
    log.close()
    await task
    cursor.close()
    assert log.waiting == 0


async def test_silence_ends_a_wait_and_events_put_the_heartbeat_off() -> None:
    log = EventLog(100, 10_000)
    cursor = Cursor(log, 0, 0.2)
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await cursor.wait() is False
    assert loop.time() - began >= 0.19
    cursor.spoke()
    await asyncio.sleep(0.1)
    cursor.spoke()
    began = loop.time()
    assert await cursor.wait() is False
    assert loop.time() - began >= 0.19, "expected a whole interval after what was sent last"
    cursor.close()


async def test_a_cancelled_wait_leaves_nothing_behind() -> None:
    log = EventLog(100, 10_000)
    cursor = Cursor(log, 0, 60)
    task = asyncio.create_task(cursor.wait())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert log.waiting == 0
    cursor.close()
