"""The pull consumer against a real nats-server that is killed, purged, made anew or shared."""

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.broker.server import NatsServer
from services.shared.jetstream import Connection, pull
from services.shared.jetstream.api import api_request
from services.shared.jetstream.pull import PullConsumer
from services.shared.jetstream.pull_session import Begun, begin_session
from services.shared.jetstream.pull_types import Lost, PullBatch, PullOptions
from services.shared.publisher import Publisher
from tests.integration.nats_tools import call, connected, make_stream, nats_server, until

TRADE = "market.trade.simulated.A-USDT"
TICKER = "market.ticker.simulated.A-USDT"
QUICK = PullOptions(
    batch_messages=1000, linger=0.02, check=0.1, note=0.1, expires=2.0, heartbeat=0.2
)


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path / "nats") as server:
        await make_stream(server.url, "S", "market.>")
        yield server


@pytest.fixture
async def publisher(nats: NatsServer) -> AsyncIterator[Publisher]:
    publisher = Publisher(nats.url)
    await publisher.start()
    yield publisher
    await publisher.stop()


class Pulling:
    """A consumer whose batches are kept, and acknowledged unless told otherwise."""

    def __init__(
        self,
        url: str,
        *,
        acknowledge: bool = True,
        filter_subject: str = "market.trade.>",
        options: PullOptions = QUICK,
        durable: str = "d",
    ) -> None:
        self.acknowledge = acknowledge
        self.batches: list[PullBatch] = []
        self.lost: list[Lost] = []
        self.consumer = PullConsumer(
            url, "S", durable, filter_subject=filter_subject, options=options,
            on_lost=self.lost.append,
        )  # fmt: skip
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Pulling":
        await self.consumer.start()
        self._task = asyncio.create_task(self._pull())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self.consumer.stop()

    async def _pull(self) -> None:
        while True:
            batch = await self.consumer.next_batch()
            self.batches.append(batch)
            if self.acknowledge:
                self.consumer.acknowledge(batch)

    @property
    def sequences(self) -> list[int]:
        return [s for batch in self.batches for s in batch.received.sequences]

    @property
    def payloads(self) -> list[bytes]:
        return [p for batch in self.batches for p in batch.received.payloads]


async def publish(publisher: Publisher, first: int, count: int, subject: str = TRADE) -> None:
    for number in range(first, first + count):
        assert publisher.publish(subject, b"%d" % number, f"{subject}/{number}")
    assert await publisher.drain(20)


async def ack_floor(url: str, durable: str = "d") -> int:
    info = await call(url, f"CONSUMER.INFO.S.{durable}")
    return int(info["ack_floor"]["stream_seq"])


async def keep_only(url: str, messages: int) -> None:
    """Let the stream drop all but its newest messages, as it does when it is full."""
    config = (await call(url, "STREAM.INFO.S"))["config"]
    await call(url, "STREAM.UPDATE.S", {**config, "max_msgs": messages})


async def test_every_message_comes_once_in_order_with_its_subject_and_bytes(
    nats: NatsServer, publisher: Publisher
) -> None:
    await publish(publisher, 0, 3500)
    async with Pulling(nats.url) as pulling:
        await until(lambda: len(pulling.sequences) >= 3500, "all is read")
        await publish(publisher, 3500, 10)
        await until(lambda: len(pulling.sequences) >= 3510, "new messages come too")
        assert pulling.sequences == list(range(1, 3511))
        assert pulling.payloads == [b"%d" % n for n in range(3510)]
        assert {s for b in pulling.batches for s in b.received.subjects} == {TRADE.encode()}
        assert max(len(b.received) for b in pulling.batches) <= QUICK.batch_messages
        assert pulling.consumer.status.pending == 0
    assert await ack_floor(nats.url) == 3510


async def test_a_full_batch_is_handed_over_at_once_and_a_small_one_after_the_linger(
    nats: NatsServer, publisher: Publisher
) -> None:
    slow = PullOptions(batch_messages=100, linger=30.0)
    async with Pulling(nats.url, options=slow) as pulling:
        await publish(publisher, 0, 150)
        await until(lambda: pulling.batches, "the first batch comes without waiting")
        assert len(pulling.batches[0].received) == 100
    async with Pulling(nats.url, durable="e") as quick:
        await until(lambda: len(quick.sequences) == 150, "a short linger ends a small batch")


async def test_what_was_not_acknowledged_comes_again_at_once_to_the_next_process(
    nats: NatsServer, publisher: Publisher
) -> None:
    await publish(publisher, 0, 500)
    async with Pulling(nats.url, acknowledge=False) as dying:
        await until(lambda: len(dying.sequences) >= 500, "all is delivered")
        dying.consumer.acknowledge(dying.batches[0])
        stored = dying.batches[0].last_sequence
    begun = asyncio.get_running_loop().time()
    async with Pulling(nats.url) as next_one:
        await until(lambda: len(next_one.sequences) >= 500 - stored, "the rest comes again")
        assert next_one.sequences == list(range(stored + 1, 501))
    assert asyncio.get_running_loop().time() - begun < 5


async def test_memory_is_bounded_and_the_rest_stays_in_the_stream(
    nats: NatsServer, publisher: Publisher
) -> None:
    await publish(publisher, 0, 5000)
    consumer = PullConsumer(nats.url, "S", "d", filter_subject="market.trade.>", options=QUICK)
    await consumer.start()
    await until(lambda: consumer.status.waiting >= 500, "a batch waits")
    first = await consumer.next_batch()
    await until(lambda: consumer.status.waiting >= 500, "the next comes while one is handled")
    await asyncio.sleep(0.3)  # Nothing may come: there is no condition to wait for.
    assert consumer.status.waiting + len(first.received) <= 2 * QUICK.batch_messages
    assert consumer.status.pending >= 3000
    await consumer.stop()


async def test_one_message_larger_than_a_batch_comes_alone(
    nats: NatsServer, publisher: Publisher
) -> None:
    small = PullOptions(batch_messages=1000, batch_bytes=20_000, linger=0.02)
    await publish(publisher, 0, 10)
    assert publisher.publish(TRADE, b"x" * 300_000, "large")
    await publish(publisher, 11, 10)
    async with Pulling(nats.url, options=small) as pulling:
        await until(lambda: len(pulling.sequences) >= 21, "all is read")
        assert pulling.sequences == list(range(1, 22))


async def test_a_broker_that_is_killed_again_and_again_loses_and_doubles_nothing_acknowledged(
    nats: NatsServer, publisher: Publisher
) -> None:
    async with Pulling(nats.url) as pulling:
        for number in range(5):
            for each in range(400):
                assert publisher.publish(TRADE, b"%d" % (number * 400 + each), f"{number}/{each}")
            await asyncio.sleep(random.uniform(0, 0.2))
            before = pulling.consumer.status.sessions
            nats.child.kill()
            await until(
                lambda before=before: pulling.consumer.status.sessions > before,  # type: ignore[misc]
                "it reads again",
            )
        assert await publisher.drain(20)
        await until(lambda: set(pulling.sequences) >= set(range(1, 2001)), "all is read")
        by_sequence = dict(zip(pulling.sequences, pulling.payloads, strict=True))
        assert [by_sequence[n] for n in range(1, 2001)] == [b"%d" % n for n in range(2000)]
        assert pulling.consumer.status.lost == 0
        await until(lambda: pulling.consumer.status.acknowledged_sequence == 2000, "acknowledged")


async def test_an_acknowledgement_of_an_interrupted_session_does_not_count(
    nats: NatsServer, publisher: Publisher
) -> None:
    await publish(publisher, 0, 10)
    async with Pulling(nats.url, acknowledge=False) as pulling:
        await until(lambda: len(pulling.sequences) == 10, "all is delivered")
        old = pulling.batches[-1]
        nats.child.kill()
        await until(lambda: len(pulling.sequences) == 20, "all comes again")
        assert not pulling.consumer.is_current(old)
        assert not pulling.consumer.acknowledge(old)
        assert pulling.consumer.acknowledge(pulling.batches[-1])


async def test_a_stream_made_anew_is_another_stream(nats: NatsServer, publisher: Publisher) -> None:
    await publish(publisher, 0, 20)
    async with Pulling(nats.url) as pulling:
        await until(lambda: len(pulling.sequences) == 20, "the old stream is read")
        await call(nats.url, "STREAM.DELETE.S")
        await make_stream(nats.url, "S", "market.>")
        await publish(publisher, 100, 5)
        await until(lambda: len(pulling.sequences) == 25, "the new stream is read from its begin")
        assert pulling.sequences[20:] == [1, 2, 3, 4, 5]
        old, new = pulling.batches[0].session, pulling.batches[-1].session
        assert new.stream_created > old.stream_created
        assert not pulling.consumer.acknowledge(pulling.batches[0])


async def test_a_deleted_consumer_goes_on_where_it_was(
    nats: NatsServer, publisher: Publisher
) -> None:
    await publish(publisher, 0, 20)
    async with Pulling(nats.url) as pulling:
        await until(lambda: len(pulling.sequences) == 20, "all is read")
        await call(nats.url, "CONSUMER.DELETE.S.d")
        await publish(publisher, 20, 5)
        await until(lambda: len(pulling.sequences) == 25, "it reads on")
        assert pulling.sequences == list(range(1, 26))


async def test_messages_gone_before_they_were_read_are_counted_exactly(
    nats: NatsServer, publisher: Publisher
) -> None:
    await publish(publisher, 0, 10)
    async with Pulling(nats.url, filter_subject="market.>") as pulling:
        await until(lambda: len(pulling.sequences) == 10, "ten are read")
    await publish(publisher, 10, 30)
    await keep_only(nats.url, 10)
    nats.child.kill()
    async with Pulling(nats.url, filter_subject="market.>") as late:
        await until(lambda: len(late.sequences) == 10, "what is left is read")
        assert late.lost == [Lost(11, 30, 20, late.batches[0].session.stream_created)]
        assert late.consumer.status.lost == 20


async def test_messages_gone_while_a_handler_stands_still_are_counted(
    nats: NatsServer, publisher: Publisher
) -> None:
    lost: list[Lost] = []
    consumer = PullConsumer(
        nats.url, "S", "d", filter_subject="market.>", options=QUICK, on_lost=lost.append
    )
    await consumer.start()
    await publish(publisher, 0, 1500)
    await until(lambda: consumer.status.waiting >= 1000, "a batch waits")
    batch = await consumer.next_batch()
    await until(lambda: consumer.status.read_sequence == 1500, "the rest is held")
    await publish(publisher, 1500, 3000)
    await until(lambda: consumer.status.read_sequence == 2000, "no more is taken")
    await keep_only(nats.url, 500)
    await until(lambda: lost, "the loss is noticed")
    assert [(each.first_sequence, each.last_sequence) for each in lost] == [(2001, 4000)]
    assert consumer.status.lost == 2000
    assert consumer.acknowledge(batch)
    await consumer.stop()


async def test_what_others_send_is_no_loss_when_it_goes(
    nats: NatsServer, publisher: Publisher
) -> None:
    eager = PullOptions(linger=0.02, check=0.05, expires=2.0, heartbeat=0.1, advance=0.1)
    await publish(publisher, 0, 10)
    async with Pulling(nats.url, options=eager) as pulling:
        await until(lambda: len(pulling.sequences) == 10, "ten are read")
        await publish(publisher, 0, 200, TICKER)
        await until(lambda: pulling.consumer.status.read_sequence == 210, "the rest is passed over")
        await until(lambda: pulling.consumer.status.acknowledged_sequence == 210, "it moves on")
        await keep_only(nats.url, 11)
        await publish(publisher, 10, 5)
        await until(lambda: len(pulling.sequences) == 15, "it reads on")
        assert pulling.consumer.status.lost == 0
    assert await ack_floor(nats.url) == 215
    async with Pulling(nats.url, options=eager) as again:
        await until(lambda: again.consumer.session is not None, "it begins")
        assert again.consumer.status.lost == 0


async def test_a_broker_that_lost_its_newest_messages_is_read_from_where_it_ends(
    nats: NatsServer, publisher: Publisher
) -> None:
    await publish(publisher, 0, 50)
    async with Pulling(nats.url) as pulling:
        await until(lambda: len(pulling.sequences) == 50, "all is read")
        # Nothing but a power failure loses a tail, so its outcome is made: the consumer is ahead.
        await call(nats.url, "CONSUMER.RESET.S.d", {"seq": 1000})
        await until(lambda: pulling.consumer.status.sessions > 1, "it begins anew", 30)
        await publish(publisher, 50, 5)
        await until(lambda: len(pulling.sequences) >= 55, "new messages come")
        assert pulling.sequences[-5:] == [51, 52, 53, 54, 55]


async def test_a_stream_that_is_not_there_yet_is_waited_for(
    nats: NatsServer, publisher: Publisher
) -> None:
    await call(nats.url, "STREAM.DELETE.S")
    async with Pulling(nats.url) as pulling:
        await until(lambda: "does not exist" in pulling.consumer.status.last_error, "it says so")
        assert not pulling.consumer.status.live
        await make_stream(nats.url, "S", "market.>")
        await publish(publisher, 0, 3)
        await until(lambda: len(pulling.sequences) == 3, "it reads")


async def test_two_that_share_a_durable_lose_nothing(
    nats: NatsServer, publisher: Publisher
) -> None:
    async with Pulling(nats.url) as one:
        async with Pulling(nats.url) as other:
            await publish(publisher, 0, 2000)
            await until(
                lambda: {*one.sequences, *other.sequences} >= set(range(1, 2001)), "all is read"
            )
        await publish(publisher, 2000, 10)
        await until(lambda: one.sequences[-1:] == [2010], "the one that is left reads on")


async def test_what_comes_while_a_session_begins_is_not_sent_to_the_pull_before(
    nats: NatsServer, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each session would begin with messages that the last one's open pull had taken."""

    async def begin(*args: Any, **named: Any) -> Begun:
        begun = await begin_session(*args, **named)
        await publish(publisher, 0, 10)
        return begun

    async with Pulling(nats.url) as pulling:
        await until(lambda: pulling.consumer.session, "a session, its pull open")
        monkeypatch.setattr(pull, "begin_session", begin)
        pulling.consumer._break("asked for")
        await until(lambda: pulling.sequences[:10] == list(range(1, 11)), "all is read")
        assert pulling.consumer.status.sessions == 2


async def test_a_consumer_of_another_form_is_told(nats: NatsServer) -> None:
    async with connected(nats.url) as connection:
        await _create_explicit(connection)
    async with Pulling(nats.url) as pulling:
        await until(lambda: "cannot be changed" in pulling.consumer.status.last_error, "it says so")


async def _create_explicit(connection: Connection) -> None:
    config = {"durable_name": "d", "ack_policy": "explicit", "filter_subject": "market.trade.>"}
    await api_request(
        connection, "CONSUMER.CREATE.S.d", {"stream_name": "S", "config": config, "action": ""}
    )
