"""The reader against a real nats-server that is killed, purged, made anew or faster than it."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from services.broker.server import NatsServer
from services.shared.errors import NotFound
from services.shared.jetstream import (
    Connection,
    ConnectionLost,
    Message,
    StartAt,
    StreamReader,
    last_per_subject,
)
from services.shared.jetstream import reader as reader_module
from services.shared.publisher import Publisher
from tests.integration.nats_tools import (
    Relay,
    call,
    connected,
    make_stream,
    nats_server,
    until,
)

TRADE = "market.trade.simulated.{}-USDT"


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path / "nats") as server:
        await make_stream(server.url, "TRADE", "market.trade.>", "market.ticker.>")
        yield server


@pytest.fixture
async def publisher(nats: NatsServer) -> AsyncIterator[Publisher]:
    publisher = Publisher(nats.url)
    await publisher.start()
    yield publisher
    await publisher.stop()


class Reading:
    """A reader and what it told."""

    def __init__(self, url: str, start: StartAt, **options: object) -> None:
        self.messages: list[Message] = []
        self.interruptions: list[str] = []
        self.resumed: list[bool] = []
        options.setdefault("on_batch", self.messages.extend)
        self.reader = StreamReader(
            url,
            "TRADE",
            start=start,
            on_interruption=self.interruptions.append,
            on_resumed=self.resumed.append,
            **options,  # type: ignore[arg-type]
        )

    async def __aenter__(self) -> "Reading":
        await self.reader.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.reader.stop()

    async def live(self) -> "Reading":
        assert await self.reader.wait_live(10)
        return self

    @property
    def numbers(self) -> list[int]:
        return [int(message.payload) for message in self.messages]


async def publish(publisher: Publisher, first: int, count: int, subjects: int = 3) -> None:
    for number in range(first, first + count):
        publisher.publish(TRADE.format(number % subjects), b"%d" % number, f"t-{number}")
    assert await publisher.drain(10)


async def test_messages_come_as_they_were_stored(nats: NatsServer, publisher: Publisher) -> None:
    await publish(publisher, 0, 100)
    async with Reading(nats.url, StartAt.all()) as reading:
        await until(lambda: len(reading.messages) == 100, "all come")
        first = reading.messages[0]
        assert (first.subject, first.payload, first.stream_sequence) == (TRADE.format(0), b"0", 1)
        assert first.headers == {"Nats-Msg-Id": "t-0"}
        await publish(publisher, 100, 100)
        await until(lambda: len(reading.messages) == 200, "new ones come")
        assert reading.numbers == list(range(200))
        status = reading.reader.status
        assert (status.live, status.delivered, status.stream_sequence) == (True, 200, 200)
        assert (status.pending, status.interruptions) == (0, 0)


async def test_where_a_reader_begins(nats: NatsServer, publisher: Publisher) -> None:
    await publish(publisher, 0, 30)
    between = datetime.now(UTC)
    await publish(publisher, 30, 30)
    for start, expected in (
        (StartAt.all(), list(range(60))),
        (StartAt.sequence(11), list(range(10, 60))),
        (StartAt.time(between), list(range(30, 60))),
        (StartAt.last_per_subject(), [57, 58, 59]),
        (StartAt.new(), []),
    ):
        async with Reading(nats.url, start) as reading:
            await reading.live()
            await until(lambda r=reading, e=expected: r.numbers == e, f"{start} gives its part")
    async with Reading(nats.url, StartAt.new()) as reading:
        await reading.live()
        await publish(publisher, 60, 5)
        await until(lambda: reading.numbers == list(range(60, 65)), "only new ones come")


async def test_filters_choose_subjects(nats: NatsServer, publisher: Publisher) -> None:
    await publish(publisher, 0, 30)
    for filters, expected in (
        ([TRADE.format(1)], list(range(1, 30, 3))),
        ([TRADE.format(0), TRADE.format(2)], [n for n in range(30) if n % 3 != 1]),
        (["market.trade.simulated.*"], list(range(30))),
        (["market.ticker.>"], []),
    ):
        async with Reading(nats.url, StartAt.all(), filter_subjects=filters) as reading:
            await reading.live()
            await until(lambda r=reading, e=expected: r.numbers == e, f"{filters} choose")


async def test_killing_the_broker_repeats_and_loses_nothing(
    nats: NatsServer, publisher: Publisher
) -> None:
    running = True
    published = 0

    async def load() -> None:
        nonlocal published
        while running:
            for _ in range(20):
                publisher.publish(TRADE.format(published % 5), b"%d" % published, f"t-{published}")
                published += 1
            await asyncio.sleep(0.001)

    dice = random.Random(3)
    async with Reading(nats.url, StartAt.new()) as reading:
        await reading.live()
        loading = asyncio.create_task(load())
        for kill in range(5):
            before = len(reading.messages)
            await until(lambda b=before: len(reading.messages) > b + 1000, "messages flow")
            await asyncio.sleep(dice.uniform(0.0, 0.05))
            nats.child.kill(signal.SIGKILL)
            await until(lambda k=kill: len(reading.interruptions) == k + 1, "it is told")
        running = False
        await loading
        assert await publisher.drain(20)
        await until(lambda: len(reading.messages) >= published, "all come")
        assert reading.numbers == list(range(published))
        sequences = [message.stream_sequence for message in reading.messages]
        assert sequences == list(range(1, published + 1))
        assert reading.resumed == [False] * 5


async def test_a_cut_connection_repeats_and_loses_nothing(
    nats: NatsServer, publisher: Publisher
) -> None:
    async with (
        Relay(nats.port).running() as relay,
        Reading(relay.url, StartAt.new()) as reading,
    ):
        await reading.live()
        for cut in range(5):
            for number in range(cut * 1000, cut * 1000 + 1000):
                publisher.publish(TRADE.format(number % 3), b"%d" % number, f"t-{number}")
            await until(lambda c=cut: len(reading.messages) > c * 1000, "messages flow")
            relay.cut()
            await until(lambda c=cut: len(reading.resumed) == c + 1, "it goes on")
        await until(lambda: len(reading.messages) >= 5000, "all come")
        assert reading.numbers == list(range(5000))
        assert reading.resumed == [False] * 5


async def test_an_interruption_before_the_first_message_loses_none(
    nats: NatsServer, publisher: Publisher
) -> None:
    await publish(publisher, 0, 10)
    async with (
        Relay(nats.port).running() as relay,
        Reading(relay.url, StartAt.new()) as reading,
    ):
        await reading.live()
        relay.refuse()
        relay.cut()
        await until(lambda: reading.interruptions, "the cut is told")
        await publish(publisher, 10, 10)
        relay.let_through()
        await until(lambda: len(reading.messages) == 10, "what came meanwhile is read")
        assert reading.numbers == list(range(10, 20))


async def test_a_purge_while_it_was_away_is_told(nats: NatsServer, publisher: Publisher) -> None:
    async with (
        Relay(nats.port).running() as relay,
        Reading(relay.url, StartAt.all()) as reading,
    ):
        await reading.live()
        await publish(publisher, 0, 10)
        await until(lambda: len(reading.messages) == 10, "they come")
        relay.refuse()
        relay.cut()
        await until(lambda: reading.interruptions, "the cut is told")
        await publish(publisher, 10, 10)
        await call(nats.url, "STREAM.PURGE.TRADE", {"seq": 16})
        relay.let_through()
        await until(lambda: reading.resumed == [True], "the loss is told")
        await until(lambda: len(reading.messages) == 15, "the rest is read")
        assert reading.numbers == [*range(10), *range(15, 20)]
        assert reading.reader.status.missed == 1


async def test_a_purge_of_what_was_read_is_no_loss(nats: NatsServer, publisher: Publisher) -> None:
    async with (
        Relay(nats.port).running() as relay,
        Reading(relay.url, StartAt.all()) as reading,
    ):
        await reading.live()
        await publish(publisher, 0, 10)
        await until(lambda: len(reading.messages) == 10, "they come")
        relay.refuse()
        relay.cut()
        await until(lambda: reading.interruptions, "the cut is told")
        await call(nats.url, "STREAM.PURGE.TRADE")
        await publish(publisher, 10, 10)
        relay.let_through()
        await until(lambda: len(reading.messages) == 20, "the rest is read")
        assert reading.numbers == list(range(20))
        assert reading.resumed == [False]


async def test_what_others_lost_is_no_loss_of_a_filtered_reader(
    nats: NatsServer, publisher: Publisher
) -> None:
    """Nothing of its own subject was missed, though the stream begins behind its last message."""
    async with (
        Relay(nats.port).running() as relay,
        Reading(relay.url, StartAt.all(), filter_subjects=[TRADE.format(0)]) as reading,
    ):
        await reading.live()
        publisher.publish(TRADE.format(0), b"0", "t-0")
        assert await publisher.drain(5)
        await until(lambda: len(reading.messages) == 1, "it comes")
        for number in range(1, 50):
            publisher.publish(TRADE.format(1), b"%d" % number, f"t-{number}")
        assert await publisher.drain(5)
        await until(
            lambda: reading.reader.status.stream_sequence == 50, "a heartbeat tells how far"
        )
        relay.refuse()
        relay.cut()
        await until(lambda: reading.interruptions, "the cut is told")
        await call(nats.url, "STREAM.PURGE.TRADE", {"seq": 40})
        relay.let_through()
        await until(lambda: reading.resumed, "it goes on")
        assert reading.resumed == [False]


async def test_a_stream_made_anew_is_told_and_read_from_its_begin(
    nats: NatsServer, publisher: Publisher
) -> None:
    async with Reading(nats.url, StartAt.all()) as reading:
        await reading.live()
        await publish(publisher, 0, 10)
        await until(lambda: len(reading.messages) == 10, "they come")
        await call(nats.url, "STREAM.DELETE.TRADE")
        await make_stream(nats.url, "TRADE", "market.trade.>")
        await publish(publisher, 100, 20)
        await until(lambda: len(reading.messages) == 30, "the new stream is read", 30)
        assert reading.numbers == [*range(10), *range(100, 120)]
        assert reading.resumed == [True]
        assert "heartbeat" in reading.interruptions[0]


async def test_a_consumer_that_vanished_is_made_again(
    nats: NatsServer, publisher: Publisher
) -> None:
    async with Reading(nats.url, StartAt.new()) as reading:
        await reading.live()
        await publish(publisher, 0, 10)
        await until(lambda: len(reading.messages) == 10, "they come")
        names = (await call(nats.url, "CONSUMER.NAMES.TRADE"))["consumers"]
        await call(nats.url, f"CONSUMER.DELETE.TRADE.{names[0]}")
        await publish(publisher, 10, 10)
        await until(lambda: len(reading.messages) == 20, "they come again", 30)
        assert reading.numbers == list(range(20))
        assert reading.resumed == [False]


async def test_a_missing_stream_is_awaited(tmp_path: Path) -> None:
    async with (
        nats_server(tmp_path / "nats") as nats,
        Reading(nats.url, StartAt.all()) as reading,
    ):
        await until(
            lambda: "stream TRADE does not exist" in reading.reader.status.last_error,
            "the reason is told",
        )
        assert not reading.reader.status.live
        await make_stream(nats.url, "TRADE", "market.trade.>")
        await reading.live()
        assert reading.interruptions == [], "expected no interruption of what never flowed"


async def test_a_slow_handler_slows_the_server_down_and_loses_nothing(
    nats: NatsServer, publisher: Publisher
) -> None:
    """48 MB in the stream, at most about 2 MB in memory."""
    count, size = 3000, 16 * 1024
    for number in range(count):
        publisher.publish(TRADE.format(number % 3), b"x" * size, f"t-{number}")
    assert await publisher.drain(30)
    handled: list[int] = []
    most_waiting = 0
    go_on = asyncio.Event()

    async def handle(messages: list[Message]) -> None:
        await go_on.wait()
        handled.extend(message.stream_sequence for message in messages)

    async with Reading(
        nats.url, StartAt.all(), on_batch=handle, max_pending_bytes=1024 * 1024
    ) as reading:
        await reading.live()

        async def watch() -> None:
            nonlocal most_waiting
            while True:
                most_waiting = max(most_waiting, reading.reader.status.waiting)
                await asyncio.sleep(0.005)

        watching = asyncio.create_task(watch())
        # Longer than it takes to give up a connection or a consumer that is silent.
        await asyncio.sleep(7)
        assert most_waiting * size < 2 * 1024 * 1024
        go_on.set()
        await until(lambda: len(handled) == count, "all are handled")
        watching.cancel()
        assert handled == list(range(1, count + 1))
        assert most_waiting * size < 2 * 1024 * 1024
        assert reading.interruptions == []


async def test_a_subject_that_is_not_utf8_holds_nobody_up(
    nats: NatsServer, publisher: Publisher
) -> None:
    async with connected(nats.url) as connection:
        connection.write(b"PUB market.trade.\xff\xfe 1\r\n0\r\n")
        await connection.flush()
    await publish(publisher, 1, 10)
    async with Reading(nats.url, StartAt.all()) as reading:
        await until(lambda: len(reading.messages) == 11, "all come")
        assert reading.messages[0].subject == r"market.trade.\xff\xfe"
        assert reading.interruptions == []
    newest = await last_per_subject(nats.url, "TRADE", "market.trade.>")
    assert newest[0].subject == r"market.trade.\xff\xfe"


async def test_an_answer_that_nobody_expects_is_told_and_asked_for_again(
    nats: NatsServer, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(publisher, 0, 10)
    async with Reading(nats.url, StartAt.all()) as reading:
        await until(lambda: len(reading.messages) == 10, "all come")
        true_answer = reader_module.stream_info

        async def answer(connection: Connection, stream: str) -> dict[str, Any] | None:
            return await true_answer(connection, stream) if hopeful else {}

        hopeful = False
        monkeypatch.setattr(reader_module, "stream_info", answer)
        nats.child.kill(signal.SIGKILL)
        await until(lambda: "was not expected" in reading.reader.status.last_error, "it is told")
        assert not reading.reader.status.live
        hopeful = True
        await publisher.wait_connected(10)
        await publish(publisher, 10, 10)
        await until(lambda: len(reading.messages) == 20, "the reader goes on")
        assert reading.numbers == list(range(20))
        assert (len(reading.interruptions), reading.resumed) == (1, [False])


@pytest.mark.parametrize("lost", [5, 9], ids=["by-what-follows", "by-the-next-heartbeat"])
async def test_a_message_lost_on_the_way_is_noticed_and_read_again(
    nats: NatsServer, publisher: Publisher, lost: int
) -> None:
    reading = Reading(nats.url, StartAt.all())
    take = reading.reader._on_message
    losses: list[bytes] = []

    def lossy(subject: bytes, reply: bytes, header: bytes, payload: bytes) -> None:
        if payload == b"%d" % lost and not losses:
            losses.append(payload)
        else:
            take(subject, reply, header, payload)

    reading.reader._on_message = lossy  # type: ignore[method-assign]
    async with reading:
        await reading.live()
        await publish(publisher, 0, 10)
        await until(lambda: len(reading.messages) == 10, "all come")
        assert losses
        assert reading.numbers == list(range(10))
        assert (len(reading.interruptions), reading.resumed) == (1, [False])


async def test_batches_can_be_iterated(nats: NatsServer, publisher: Publisher) -> None:
    await publish(publisher, 0, 100)
    reader = StreamReader(nats.url, "TRADE", start=StartAt.all())
    await reader.start()
    found: list[int] = []
    async with asyncio.timeout(10):
        async for messages in reader:
            found += [int(message.payload) for message in messages]
            if len(found) == 100:
                break
    assert found == list(range(100))
    await reader.stop()


async def test_a_handler_that_fails_does_not_stop_the_reader(
    nats: NatsServer, publisher: Publisher
) -> None:
    seen: list[int] = []

    def handle(messages: list[Message]) -> None:
        seen.extend(message.stream_sequence for message in messages)
        raise RuntimeError("a bug of the caller")

    async with Reading(nats.url, StartAt.new(), on_batch=handle) as reading:
        await reading.live()
        for number in range(3):
            await publish(publisher, number, 1)
            await until(lambda n=number: len(seen) == n + 1, "the next one is handed over")
        assert reading.interruptions == []


async def test_the_last_message_of_each_subject(nats: NatsServer, publisher: Publisher) -> None:
    assert await last_per_subject(nats.url, "TRADE", "market.trade.>") == []
    await publish(publisher, 0, 3000, subjects=1500)
    messages = await last_per_subject(nats.url, "TRADE", "market.trade.>")
    assert [int(message.payload) for message in messages] == list(range(1500, 3000))
    assert [message.stream_sequence for message in messages] == list(range(1501, 3001))
    only = await last_per_subject(nats.url, "TRADE", [TRADE.format(7), "market.ticker.>"])
    assert [(message.subject, int(message.payload)) for message in only] == [
        (TRADE.format(7), 1507)
    ]
    with pytest.raises(NotFound, match="stream OTHER does not exist"):
        await last_per_subject(nats.url, "OTHER", "market.trade.>")
    with pytest.raises(ConnectionLost, match="cannot be reached"):
        await last_per_subject("nats://127.0.0.1:1", "TRADE", "market.trade.>")


async def test_stop_hands_nothing_over_any_more(nats: NatsServer, publisher: Publisher) -> None:
    reading = Reading(nats.url, StartAt.new())
    await reading.reader.start()
    await reading.live()
    await publish(publisher, 0, 10)
    await until(lambda: len(reading.messages) == 10, "they come")
    await reading.reader.stop()
    await publish(publisher, 10, 10)
    assert len(reading.messages) == 10
    assert not reading.reader.status.live
