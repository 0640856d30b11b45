"""The publisher against a real nats-server that is killed, cut off, full or without streams."""

import asyncio
import random
import signal
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from services.broker.server import NatsServer
from services.shared.errors import InvalidArgument
from services.shared.jetstream import Connection, ConnectionLost, Message, session
from services.shared.publisher import OutboxLimits, Publisher, PublisherOptions
from tests.integration.nats_tools import Relay, call, make_stream, nats_server, read_all, until

TRADE = "market.trade.simulated.{}-USDT"
UPDATE = "market.order_book_update.simulated.{}-USDT"


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path / "nats") as server:
        yield server


@pytest.fixture
async def publishers() -> AsyncIterator[list[Publisher]]:
    """Publishers to stop at the end of a test."""
    started: list[Publisher] = []
    yield started
    for publisher in started:
        await publisher.stop()


async def open_publisher(publishers: list[Publisher], url: str, **options: object) -> Publisher:
    callbacks = {k: options.pop(k) for k in list(options) if k.startswith("on_")}
    publisher = Publisher(
        url,
        name="test",
        options=PublisherOptions(**options),  # type: ignore[arg-type]
        **callbacks,  # type: ignore[arg-type]
    )
    publishers.append(publisher)
    await publisher.start()
    assert await publisher.wait_connected(10)
    return publisher


def numbers(messages: list[Message]) -> list[int]:
    return [int(message.headers["Nats-Msg-Id"].rpartition("-")[2]) for message in messages]


def assert_each_once_in_order(messages: list[Message], expected: int) -> None:
    found = numbers(messages)
    assert len(found) == len(set(found)), "expected no message twice in the stream"
    assert set(found) == set(range(expected)), "expected every message in the stream"
    by_subject: dict[str, list[int]] = defaultdict(list)
    for message, number in zip(messages, found, strict=True):
        by_subject[message.subject].append(number)
    for subject, order in by_subject.items():
        assert order == sorted(order), f"expected the order of publish() in {subject}"


async def test_messages_are_stored_once_and_in_order(
    nats: NatsServer, publishers: list[Publisher]
) -> None:
    await make_stream(nats.url, "TRADE", "market.trade.>")
    publisher = await open_publisher(publishers, nats.url)
    for number in range(5000):
        assert publisher.publish(TRADE.format(number % 7), b"x" * 500, f"t-{number}")
    assert await publisher.drain(10)
    status = publisher.status
    assert (status.acknowledged, status.in_flight, status.buffered) == (5000, 0, 0)
    assert status.buffered_bytes == 0
    messages = await read_all(nats.url, "TRADE")
    assert numbers(messages) == list(range(5000)), "expected the order across subjects too"
    assert messages[0].payload == b"x" * 500


async def test_a_single_message_is_acknowledged_without_followers(
    nats: NatsServer, publishers: list[Publisher]
) -> None:
    await make_stream(nats.url, "TRADE", "market.trade.>")
    publisher = await open_publisher(publishers, nats.url)
    publisher.publish(TRADE.format("BTC"), b"x", "t-0")
    await until(lambda: publisher.status.acknowledged == 1, "one message is acknowledged")


@pytest.mark.parametrize("down_seconds", [0.0, 0.5], ids=["short", "beyond-duplicate-window"])
async def test_killing_the_broker_loses_repeats_and_reorders_nothing(
    nats: NatsServer, publishers: list[Publisher], down_seconds: float
) -> None:
    await make_stream(nats.url, "TRADE", "market.trade.>")
    await make_stream(nats.url, "BOOK", "market.order_book_update.>")
    publisher = await open_publisher(publishers, nats.url)
    running = True
    published = 0

    async def load() -> None:
        nonlocal published
        while running:
            for _ in range(10):
                publisher.publish(TRADE.format(published % 5), b"x" * 900, f"t-{published}")
                publisher.publish(
                    UPDATE.format(published % 5),
                    b"y" * 1400,
                    f"u-{published}",
                    droppable_key=f"book-{published % 5}",
                )
                published += 1
            await asyncio.sleep(0.001)

    loading = asyncio.create_task(load())
    dice = random.Random(7)
    for _ in range(6):
        before = publisher.status.acknowledged
        await until(lambda b=before: publisher.status.acknowledged > b + 500, "messages flow")
        await asyncio.sleep(dice.uniform(0.0, 0.05))
        nats.child.kill(signal.SIGKILL)
        await until(lambda: not publisher.status.connected, "the loss is noticed")
        if down_seconds:
            await nats.child.stop()
            await asyncio.sleep(down_seconds)
            await nats.child.start()
    running = False
    await loading
    assert await publisher.drain(20)
    assert publisher.status.acknowledged == 2 * published
    assert publisher.status.reconnects == 6
    assert publisher.status.dropped == publisher.status.rejected == 0
    assert_each_once_in_order(await read_all(nats.url, "TRADE"), published)
    assert_each_once_in_order(await read_all(nats.url, "BOOK"), published)


async def test_what_was_stored_without_acknowledgement_is_not_stored_again(
    nats: NatsServer, publishers: list[Publisher]
) -> None:
    """The duplicate window is 0.1 s here: only asking the stream can tell."""
    await make_stream(nats.url, "TRADE", "market.trade.>")
    async with Relay(nats.port).running() as relay:
        publisher = await open_publisher(publishers, relay.url)
        relay.hold_answers()
        for number in range(300):
            publisher.publish(TRADE.format(number % 3), b"x", f"t-{number}")
        async with asyncio.timeout(10):
            while True:
                info = await call(nats.url, "STREAM.INFO.TRADE")
                if info["state"]["messages"] == 300:
                    break
        assert publisher.status.acknowledged == 0
        relay.refuse()
        relay.cut()
        await until(lambda: not publisher.status.connected, "the loss is noticed")
        for number in range(300, 400):
            publisher.publish(TRADE.format(number % 3), b"x", f"t-{number}")
        await asyncio.sleep(0.3)
        relay.let_through()
        assert await publisher.drain(10)
        assert publisher.status.acknowledged == 400
        assert publisher.status.duplicates == 300
        assert_each_once_in_order(await read_all(nats.url, "TRADE"), 400)
        await publisher.stop()


async def test_silence_of_the_broker_counts_as_a_lost_connection(
    nats: NatsServer, publishers: list[Publisher]
) -> None:
    await make_stream(nats.url, "TRADE", "market.trade.>", duplicate_window=30_000_000_000)
    async with Relay(nats.port).running() as relay:
        told: list[tuple[bool, str]] = []
        publisher = await open_publisher(
            publishers,
            relay.url,
            ack_timeout=0.3,
            connect_timeout=0.5,
            on_connection=lambda connected, detail: told.append((connected, detail)),
        )
        relay.hold_answers()
        for number in range(100):
            publisher.publish(TRADE.format("BTC"), b"x", f"t-{number}")
        await until(lambda: publisher.status.reconnects == 1, "the connection is given up")
        relay.let_through()
        assert await publisher.drain(10)
        assert "no acknowledgement from stream TRADE" in told[1][1]
        assert [connected for connected, _ in told] == [True, False, True]
        assert_each_once_in_order(await read_all(nats.url, "TRADE"), 100)
        await publisher.stop()


async def test_messages_wait_for_a_missing_stream_and_block_no_other(
    nats: NatsServer, publishers: list[Publisher]
) -> None:
    await make_stream(nats.url, "TRADE", "market.trade.>")
    publisher = await open_publisher(publishers, nats.url)
    for number in range(200):
        publisher.publish(UPDATE.format(number % 3), b"y", f"u-{number}")
        publisher.publish(TRADE.format(number % 3), b"x", f"t-{number}")
    await until(lambda: publisher.status.acknowledged == 200, "the other stream is served")
    assert publisher.status.buffered == 200
    assert "no stream takes 3 subjects" in publisher.status.last_error
    await make_stream(nats.url, "BOOK", "market.order_book_update.>")
    assert await publisher.drain(10)
    assert_each_once_in_order(await read_all(nats.url, "BOOK"), 200)


async def test_a_stream_deleted_and_made_again_gets_what_follows_in_order(
    nats: NatsServer, publishers: list[Publisher]
) -> None:
    await make_stream(nats.url, "TRADE", "market.trade.>")
    publisher = await open_publisher(publishers, nats.url)
    publisher.publish(TRADE.format("BTC"), b"x", "old-0")
    assert await publisher.drain(5)
    await call(nats.url, "STREAM.DELETE.TRADE")
    for number in range(500):
        publisher.publish(TRADE.format(number % 3), b"x", f"t-{number}")
        if number % 50 == 0:
            await asyncio.sleep(0.001)
    await until(lambda: "no stream" in publisher.status.last_error, "the loss is told")
    assert publisher.status.acknowledged == 1
    await make_stream(nats.url, "TRADE", "market.trade.>")
    assert await publisher.drain(10)
    assert_each_once_in_order(await read_all(nats.url, "TRADE"), 500)


async def test_subjects_that_move_to_another_stream_keep_their_order(
    nats: NatsServer, publishers: list[Publisher]
) -> None:
    await make_stream(nats.url, "ONE", "market.trade.>", "market.ticker.>")
    publisher = await open_publisher(publishers, nats.url)
    published = 0

    def publish(count: int) -> None:
        nonlocal published
        for _ in range(count):
            publisher.publish(TRADE.format(published % 3), b"x", f"t-{published}")
            published += 1

    publish(100)
    assert await publisher.drain(5)
    first = await read_all(nats.url, "ONE")
    config = (await call(nats.url, "STREAM.INFO.ONE"))["config"]
    await call(nats.url, "STREAM.UPDATE.ONE", {**config, "subjects": ["market.ticker.>"]})
    publish(100)
    await asyncio.sleep(0.05)
    publish(100)
    await make_stream(nats.url, "TWO", "market.trade.>")
    publish(100)
    assert await publisher.drain(10)
    moved = await read_all(nats.url, "TWO")
    assert numbers(first) + numbers(moved) == sorted(numbers(first) + numbers(moved))
    assert len(first) + len(moved) == published


async def test_a_full_stream_holds_messages_back_until_there_is_room(
    nats: NatsServer, publishers: list[Publisher]
) -> None:
    """Sizes differ, so that a later message would fit where an earlier one does not."""
    await make_stream(nats.url, "TRADE", "market.trade.>", max_bytes=64 * 1024, discard="new")
    publisher = await open_publisher(publishers, nats.url)
    dice = random.Random(11)
    for number in range(400):
        payload = b"x" * dice.choice([10, 100, 3000])
        publisher.publish(TRADE.format(number % 3), payload, f"t-{number}")
    await until(lambda: "maximum bytes exceeded" in publisher.status.last_error, "it is full")
    stored: list[Message] = []
    async with asyncio.timeout(30):
        while len(stored) < 400:
            # Reading and purging what was read is what frees the room.
            held = await read_all(nats.url, "TRADE")
            if held:
                stored += held
                last = held[-1].stream_sequence
                await call(nats.url, "STREAM.PURGE.TRADE", {"seq": last + 1})
    assert await publisher.drain(5)
    assert numbers(stored) == list(range(400))
    assert publisher.status.reordered == 0


async def test_a_message_that_is_too_large_is_refused_and_the_rest_goes_on(
    tmp_path: Path, publishers: list[Publisher]
) -> None:
    async with nats_server(tmp_path / "nats", max_payload=64 * 1024) as nats:
        await make_stream(nats.url, "TRADE", "market.trade.>")
        await make_stream(nats.url, "BOOK", "market.order_book_update.>", max_msg_size=1024)
        refused: list[tuple[str, str, str]] = []
        dropped: list[tuple[str, int]] = []
        publisher = await open_publisher(
            publishers,
            nats.url,
            on_rejected=lambda *what: refused.append(what),
            on_dropped=lambda *what: dropped.append(what),
        )
        publisher.publish(TRADE.format("BTC"), b"x", "t-0")
        publisher.publish(TRADE.format("BTC"), b"x" * 70_000, "t-large")
        publisher.publish(TRADE.format("BTC"), b"x", "t-1")
        publisher.publish(UPDATE.format("BTC"), b"y" * 2000, "u-large", droppable_key="BTC")
        publisher.publish(UPDATE.format("BTC"), b"y", "u-0", droppable_key="BTC")
        publisher.publish(UPDATE.format("ETH"), b"y", "u-1", droppable_key="ETH")
        assert await publisher.drain(5)
        assert refused == [
            (TRADE.format("BTC"), "t-large", "TOO_LARGE"),
            (UPDATE.format("BTC"), "u-large", "TOO_LARGE"),
        ]
        assert dropped == [("BTC", 2)], "expected the book to be given up with its large message"
        assert numbers(await read_all(nats.url, "TRADE")) == [0, 1]
        assert numbers(await read_all(nats.url, "BOOK")) == [1]
        assert publisher.status.refused == 2
        assert publisher.status.reconnects == 0


async def test_a_limit_lowered_meanwhile_refuses_only_what_exceeds_it(
    nats: NatsServer, publishers: list[Publisher]
) -> None:
    await make_stream(nats.url, "TRADE", "market.trade.>")
    refused: list[str] = []
    publisher = await open_publisher(
        publishers, nats.url, on_rejected=lambda _subject, ident, _reason: refused.append(ident)
    )
    publisher.publish(TRADE.format("BTC"), b"x", "t-0")
    assert await publisher.drain(5)
    config = (await call(nats.url, "STREAM.INFO.TRADE"))["config"]
    await call(nats.url, "STREAM.UPDATE.TRADE", {**config, "max_msg_size": 1000})
    for number in range(1, 50):
        publisher.publish(TRADE.format("BTC"), b"x" * 10, f"t-{number}")
    publisher.publish(TRADE.format("BTC"), b"x" * 5000, "t-large")
    for number in range(50, 100):
        publisher.publish(TRADE.format("BTC"), b"x" * 10, f"t-{number}")
    assert await publisher.drain(5)
    assert refused == ["t-large"]
    assert_each_once_in_order(await read_all(nats.url, "TRADE"), 100)


async def test_a_repeated_message_id_is_stored_once(
    nats: NatsServer, publishers: list[Publisher]
) -> None:
    await make_stream(nats.url, "TRADE", "market.trade.>", duplicate_window=60_000_000_000)
    first = await open_publisher(publishers, nats.url)
    for number in range(20):
        first.publish(TRADE.format("BTC"), b"x", f"t-{number}")
    assert await first.drain(5)
    second = await open_publisher(publishers, nats.url)
    for number in range(40):
        second.publish(TRADE.format("BTC"), b"x", f"t-{number}")
    assert await second.drain(10)
    assert second.status.acknowledged == 40
    assert_each_once_in_order(await read_all(nats.url, "TRADE"), 40)


async def test_memory_stays_bounded_without_a_broker() -> None:
    """Trades are refused one by one, books are given up whole, and both are told."""
    rejected: list[str] = []
    dropped: dict[str, int] = defaultdict(int)
    limits = OutboxLimits(messages=1000, bytes=10_000_000, keyed_share=0.5)

    def on_dropped(key: str, count: int) -> None:
        dropped[key] += count

    publisher = Publisher(
        "nats://127.0.0.1:1",
        options=PublisherOptions(limits=limits),
        on_rejected=lambda _subject, ident, _reason: rejected.append(ident),
        on_dropped=on_dropped,
    )
    taken = 0
    for number in range(5000):
        key = f"book-{number % 10}"
        taken += publisher.publish(UPDATE.format(key), b"y" * 100, f"u-{number}", droppable_key=key)
        assert publisher.status.buffered <= 500
    assert sum(dropped.values()) + publisher.status.buffered == 5000
    for number in range(2000):
        publisher.publish(TRADE.format("BTC"), b"x" * 100, f"t-{number}")
        assert publisher.status.buffered <= 1000
    assert rejected == [f"t-{number}" for number in range(1000, 2000)]
    assert publisher.status.buffered == 1000, "expected trades to take the room of the books"
    assert publisher.status.rejected == 1000


async def test_books_that_were_dropped_leave_no_hole_in_what_is_stored(
    nats: NatsServer, publishers: list[Publisher]
) -> None:
    await make_stream(nats.url, "BOOK", "market.order_book_update.>")
    broken: set[str] = set()
    publisher = await open_publisher(
        publishers,
        nats.url,
        limits=OutboxLimits(messages=400, bytes=100_000_000, keyed_share=0.5),
        on_dropped=lambda key, _count: broken.add(key),
    )
    publisher.publish(UPDATE.format(0), b"y", "u0-0", droppable_key="0")
    assert await publisher.drain(5)
    nats.child.kill(signal.SIGKILL)
    await until(lambda: not publisher.status.connected, "the loss is noticed")
    await nats.child.stop()
    sent: dict[int, int] = defaultdict(int)
    for number in range(1, 300):
        book = 0 if number % 2 else number % 5
        if str(book) not in broken:
            publisher.publish(
                UPDATE.format(book), b"y", f"u{book}-{number}", droppable_key=str(book)
            )
            sent[book] += 1
    assert "0" in broken, "expected the largest book to be given up"
    await nats.child.start()
    assert await publisher.drain(10)
    stored: dict[str, int] = defaultdict(int)
    for message in await read_all(nats.url, "BOOK"):
        stored[message.subject] += 1
    assert stored[UPDATE.format(0)] == 1
    for book, count in sent.items():
        if str(book) not in broken:
            assert stored[UPDATE.format(book)] == count


async def test_callbacks_may_publish_and_may_fail(
    nats: NatsServer, publishers: list[Publisher]
) -> None:
    await make_stream(nats.url, "ALL", "market.>")
    publisher = Publisher(
        nats.url,
        options=PublisherOptions(limits=OutboxLimits(messages=10, bytes=10_000_000)),
        on_dropped=lambda key, count: tell(key, count),
    )
    publishers.append(publisher)

    def tell(key: str, count: int) -> None:
        publisher.publish("market.integrity.simulated.BTC-USDT", b"gap", f"gap-{key}-{count}")
        raise RuntimeError("a bug of the caller")

    for number in range(9):
        publisher.publish(UPDATE.format("BTC"), b"y", f"u-{number}", droppable_key="BTC")
    await publisher.start()
    assert await publisher.drain(10)
    subjects = [message.subject for message in await read_all(nats.url, "ALL")]
    assert subjects == ["market.integrity.simulated.BTC-USDT", UPDATE.format("BTC")]


async def test_bad_subjects_and_ids_are_refused_and_told(
    nats: NatsServer, publishers: list[Publisher]
) -> None:
    await make_stream(nats.url, "ALL", "market.>")
    told: list[tuple[str, str]] = []
    publisher = await open_publisher(
        publishers, nats.url, on_rejected=lambda s, _i, reason: told.append((s, reason))
    )
    for subject in ("", "market.trade.*", "market..x", "market.x y", "market.x\r\nPUB y 0", ">"):
        assert not publisher.publish(subject, b"x", "id-1")
        assert told.pop() == (subject, "INVALID_SUBJECT")
    for ident in ("", "a\r\nb: c", "a\u2028b", "\ud800", " a", "x" * 2000):
        assert not publisher.publish("market.trade.x", b"x", ident)
        assert told.pop() == ("market.trade.x", "INVALID_MESSAGE_ID")
    assert publisher.publish("market.trade.x", b"x", "id-1")
    assert await publisher.drain(5)
    assert publisher.status.refused == 12
    with pytest.raises(InvalidArgument, match="expected a NATS address"):
        Publisher("http://127.0.0.1:4222")


async def test_symbols_that_are_not_ascii_are_stored_once_like_any_other(
    nats: NatsServer, publishers: list[Publisher]
) -> None:
    await make_stream(nats.url, "TRADE", "market.trade.>", duplicate_window=60_000_000_000)
    subject = TRADE.format("币安人生")
    publisher = await open_publisher(publishers, nats.url)
    for number in (0, 1, 1, 2):
        assert publisher.publish(subject, b"%d" % number, f"simulated.币安人生-USDT.t-{number}")
        publisher.publish(TRADE.format("BTC"), b"x", f"b-{number}")
    assert await publisher.drain(5)
    messages = [m for m in await read_all(nats.url, "TRADE") if m.subject == subject]
    assert [message.payload for message in messages] == [b"0", b"1", b"2"]
    assert messages[0].headers == {"Nats-Msg-Id": "simulated.币安人生-USDT.t-0"}
    newest = await publisher.last_message(subject)
    assert newest is not None
    assert newest.message_id == "simulated.币安人生-USDT.t-2"


async def test_the_last_message_of_a_subject_can_be_read(
    nats: NatsServer, publishers: list[Publisher]
) -> None:
    await make_stream(nats.url, "TRADE", "market.trade.>")
    publisher = await open_publisher(publishers, nats.url)
    assert await publisher.last_message(TRADE.format("BTC")) is None
    assert await publisher.last_message("other.subject") is None
    for number in range(3):
        publisher.publish(TRADE.format("BTC"), b"%d" % number, f"t-{number}")
    assert await publisher.drain(5)
    message = await publisher.last_message(TRADE.format("BTC"))
    assert message is not None
    assert (message.payload, message.message_id, message.stream_sequence) == (b"2", "t-2", 3)


async def test_without_a_broker_waiting_ends_in_time(publishers: list[Publisher]) -> None:
    publisher = Publisher("nats://127.0.0.1:1")
    publishers.append(publisher)
    await publisher.start()
    assert not await publisher.wait_connected(0.1)
    publisher.publish("market.trade.x", b"x", "t-0")
    assert not await publisher.drain(0.1)
    with pytest.raises(ConnectionLost, match="does not answer within"):
        await publisher.last_message("market.trade.x", timeout=0.1)
    await until(lambda: "cannot be reached" in publisher.status.last_error, "the reason is told")


async def test_an_answer_that_nobody_expects_is_told_and_asked_for_again(
    nats: NatsServer, publishers: list[Publisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_stream(nats.url, "TRADE", "market.trade.>")
    true_answer = session.list_streams
    problems: list[str] = []

    async def answer(connection: Connection) -> list[dict[str, Any]]:
        if not problems:
            return [{}]
        return await true_answer(connection)

    monkeypatch.setattr(session, "list_streams", answer)
    publisher = Publisher(nats.url)
    publishers.append(publisher)
    publisher.publish(TRADE.format("BTC"), b"x", "t-0")
    await publisher.start()
    await until(lambda: "was not expected" in publisher.status.last_error, "it is told")
    problems.append(publisher.status.last_error)
    assert await publisher.drain(10)


async def test_its_metrics_tell_what_became_of_messages(
    nats: NatsServer, publishers: list[Publisher]
) -> None:
    await make_stream(nats.url, "TRADE", "market.trade.>")
    publisher = await open_publisher(publishers, nats.url)
    publisher.publish(TRADE.format("BTC"), b"x", "t-0")
    assert await publisher.drain(5)
    registry = CollectorRegistry()
    registry.register(publisher)
    text = generate_latest(registry).decode()
    acknowledged = 'marketprism_publisher_messages_total{outcome="acknowledged",publisher="test"}'
    assert f"{acknowledged} 1.0" in text
    assert 'marketprism_publisher_connected{publisher="test"} 1.0' in text


async def test_a_stream_without_batches_is_told_with_the_remedy(
    nats: NatsServer, publishers: list[Publisher]
) -> None:
    await make_stream(nats.url, "TRADE", "market.trade.>", allow_batched=False)
    publisher = await open_publisher(publishers, nats.url)
    for number in range(50):
        publisher.publish(TRADE.format("BTC"), b"x", f"t-{number}")
    await until(
        lambda: "set allow_batched on the stream" in publisher.status.last_error, "it is told"
    )
    config = (await call(nats.url, "STREAM.INFO.TRADE"))["config"]
    await call(nats.url, "STREAM.UPDATE.TRADE", {**config, "allow_batched": True})
    assert await publisher.drain(10)
    assert_each_once_in_order(await read_all(nats.url, "TRADE"), 50)


class Permit:
    """What `may_send` tells."""

    def __init__(self) -> None:
        self.given = True

    def __call__(self) -> bool:
        return self.given


async def test_nothing_is_sent_while_it_may_not_be_and_everything_afterwards(
    nats: NatsServer, publishers: list[Publisher]
) -> None:
    await make_stream(nats.url, "TRADE", "market.trade.>")
    permit = Permit()
    publisher = Publisher(nats.url, name="test", may_send=permit)
    publishers.append(publisher)
    permit.given = False
    await publisher.start()
    assert await publisher.wait_connected(10)
    for number in range(100):
        publisher.publish(TRADE.format(number % 3), b"x", f"t-{number}")
    assert not await publisher.drain(0.2)
    assert (publisher.status.buffered, publisher.status.in_flight) == (100, 0)
    permit.given = True
    publisher.resume()
    assert await publisher.drain(10)
    assert_each_once_in_order(await read_all(nats.url, "TRADE"), 100)


async def test_what_may_not_be_sent_is_not_sent_by_a_new_connection_either(
    nats: NatsServer, publishers: list[Publisher]
) -> None:
    await make_stream(nats.url, "TRADE", "market.trade.>")
    permit = Permit()
    async with Relay(nats.port).running() as relay:
        publisher = Publisher(relay.url, name="test", may_send=permit)
        publishers.append(publisher)
        await publisher.start()
        assert await publisher.wait_connected(10)
        publisher.publish(TRADE.format("BTC"), b"x", "t-0")
        assert await publisher.drain(10)
        permit.given = False
        publisher.publish(TRADE.format("BTC"), b"x", "t-1")
        relay.cut()
        await until(lambda: publisher.status.reconnects == 1, "the loss is noticed")
        assert await publisher.wait_connected(10)
        assert not await publisher.drain(0.2)
        permit.given = True
        publisher.resume()
        assert await publisher.drain(10)
        assert_each_once_in_order(await read_all(nats.url, "TRADE"), 2)
        await publisher.stop()


async def test_what_is_settled_is_what_was_published_before(
    nats: NatsServer, publishers: list[Publisher]
) -> None:
    await make_stream(nats.url, "TRADE", "market.trade.>")
    permit = Permit()
    publisher = Publisher(nats.url, name="test", may_send=permit)
    publishers.append(publisher)
    await publisher.start()
    assert await publisher.settle(0.1), "nothing was published"
    publisher.publish(TRADE.format("BTC"), b"x", "t-0")
    settling = asyncio.create_task(publisher.settle(10))
    await asyncio.sleep(0)
    await until(lambda: publisher.status.in_flight == 1 or settling.done(), "it is sent")
    permit.given = False
    publisher.publish(TRADE.format("BTC"), b"x", "t-1")
    assert await settling, "expected what comes afterwards not to be waited for"
    assert not await publisher.settle(0.1), "expected what may not be sent to be waited for"
    assert publisher.status.buffered == 1


async def test_what_is_discarded_is_not_sent_and_the_rest_is(
    nats: NatsServer, publishers: list[Publisher]
) -> None:
    await make_stream(nats.url, "MARKET", "market.>")
    permit = Permit()
    publisher = Publisher(nats.url, name="test", may_send=permit)
    publishers.append(publisher)
    permit.given = False
    await publisher.start()
    assert await publisher.wait_connected(10)
    for number in range(30):
        subject = (TRADE, UPDATE)[number % 2].format(("BTC", "ETH")[number % 3 == 0])
        publisher.publish(subject, b"x", f"t-{number}", droppable_key="a" if number % 2 else None)
    waiting = asyncio.create_task(publisher.settle(10))
    await asyncio.sleep(0)
    assert publisher.discard(lambda subject: subject.endswith(".BTC-USDT")) == 20
    assert publisher.discard(lambda subject: subject.endswith(".BTC-USDT")) == 0
    status = publisher.status
    assert status.buffered == 10
    permit.given = True
    publisher.resume()
    assert await waiting
    messages = await read_all(nats.url, "MARKET")
    assert numbers(messages) == list(range(0, 30, 3))
    assert (publisher.status.buffered, publisher.status.buffered_bytes) == (0, 0)


async def test_who_waits_for_what_is_discarded_waits_no_longer(
    nats: NatsServer, publishers: list[Publisher]
) -> None:
    await make_stream(nats.url, "TRADE", "market.trade.>")
    publisher = Publisher(nats.url, name="test", may_send=lambda: False)
    publishers.append(publisher)
    await publisher.start()
    assert await publisher.wait_connected(10)
    publisher.publish(TRADE.format("BTC"), b"x", "t-0")
    draining = asyncio.create_task(publisher.drain(10))
    settling = asyncio.create_task(publisher.settle(10))
    await asyncio.sleep(0)
    assert publisher.discard(lambda subject: True) == 1
    async with asyncio.timeout(2):
        assert await draining
        assert await settling


@pytest.mark.parametrize("arrived", [True, False], ids=["had arrived", "had not"])
async def test_what_was_on_its_way_and_is_discarded_is_not_sent_again(
    nats: NatsServer, publishers: list[Publisher], arrived: bool
) -> None:
    """Who has lost an instrument must not tell of it when the broker is back: others do by then."""
    await make_stream(nats.url, "TRADE", "market.trade.>")
    async with Relay(nats.port).running() as relay:
        publisher = await open_publisher(publishers, relay.url, tail_check=5.0)
        publisher.publish(TRADE.format("BTC"), b"x", "t-0")
        publisher.publish(TRADE.format("ETH"), b"x", "t-1")
        assert await publisher.drain(10)
        if arrived:
            relay.hold_answers()
        else:
            nats.child.kill(signal.SIGSTOP)
        publisher.publish(TRADE.format("BTC"), b"x", "t-2")
        publisher.publish(TRADE.format("ETH"), b"x", "t-3")
        await until(lambda: publisher.status.in_flight == 2, "they are on their way")
        publisher.publish(TRADE.format("BTC"), b"x", "t-4")
        if arrived:
            async with asyncio.timeout(10):
                while (await call(nats.url, "STREAM.INFO.TRADE"))["state"]["messages"] < 5:
                    pass
        assert publisher.discard(lambda subject: subject == TRADE.format("BTC")) == 2
        relay.refuse()
        relay.cut()
        await until(lambda: not publisher.status.connected, "the loss is noticed")
        if not arrived:
            nats.child.kill(signal.SIGKILL)
        relay.let_through()
        assert await publisher.drain(10)
        found = numbers(await read_all(nats.url, "TRADE"))
        assert sorted(found) == ([0, 1, 2, 3, 4] if arrived else [0, 1, 3])
        await publisher.stop()
