"""Frames, headers, subjects and pages: what the broker's parts agree on."""

import asyncio

import pytest

from services.shared.errors import InvalidArgument
from services.shared.jetstream import Connection, message_headers, server_urls, subject_matches
from services.shared.jetstream.consumer import places
from services.shared.jetstream.lane import Lane
from services.shared.jetstream.outbox import Entry, Outbox, OutboxLimits


@pytest.mark.parametrize(
    ("pattern", "subject", "matches"),
    [
        ("market.trade.>", "market.trade.binance.BTC-USDT", True),
        ("market.trade.>", "market.trade", False),
        ("market.*.binance", "market.trade.binance", True),
        ("market.*", "market.trade.binance", False),
        ("market.trade", "market.trade", True),
        ("market.trade.x", "market.trade", False),
        (">", "anything", True),
    ],
)
def test_subject_patterns(pattern: str, subject: str, matches: bool) -> None:
    assert subject_matches(pattern, subject) is matches


def test_headers_are_parsed() -> None:
    block = b"NATS/1.0\r\nNats-Msg-Id: t-1\r\nX: a:b\r\n\r\n"
    assert message_headers(block) == {"Nats-Msg-Id": "t-1", "X": "a:b"}


def test_places_of_both_forms_of_a_delivery() -> None:
    assert places(b"$JS.ACK.S.c.1.42.7.1700000000.3") == (42, 7, 3)
    assert places(b"$JS.ACK.hub.acc.S.c.1.42.7.1700000000.3.tok") == (42, 7, 3)


@pytest.mark.parametrize(
    "url", ["", "http://a:1", "nats://", "nats://a:port", "nats://a:99999", "nats://[::1"]
)
def test_bad_addresses_are_refused_without_their_secrets(url: str) -> None:
    with pytest.raises(InvalidArgument, match="expected a NATS address") as caught:
        server_urls(url.replace("//", "//user:hunter2@") if "//" in url else url)
    assert "hunter2" not in str(caught.value)


def test_several_addresses() -> None:
    assert server_urls("nats://a:1, nats://b") == ("nats://a:1", "nats://b")
    assert server_urls(["tls://a", "b:4222"]) == ("tls://a", "b:4222")


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 16, 64, 1000])
async def test_frames_are_parsed_however_the_socket_cuts_them(chunk: int) -> None:
    frames: list[tuple[bytes, bytes, bytes, bytes]] = []
    connection = Connection("test", "nats://127.0.0.1", 60.0)

    def handler(subject: bytes, reply: bytes, header: bytes, payload: bytes) -> None:
        frames.append((subject, reply, header, payload))

    connection.subscribe("a.b", handler)
    connection.subscribe("a.c", handler)
    stream = (
        b"PING\r\n+OK\r\n"
        b"MSG a.b 1 5\r\nhello\r\n"
        b"MSG a.b 1 reply.to 0\r\n\r\n"
        b"HMSG a.c 2 21 24\r\nNATS/1.0\r\nKey: v1\r\n\r\nxyz\r\n"
        b"HMSG a.c 2 r 16 16\r\nNATS/1.0 503\r\n\r\n\r\n"
        b"MSG a.b 9 3\r\nwho\r\n"
        b"MSG a.b 1 7\r\nMSG x\r\n\r\n"
    )
    for start in range(0, len(stream), chunk):
        connection.data_received(stream[start : start + chunk])
    assert frames == [
        (b"a.b", b"", b"", b"hello"),
        (b"a.b", b"reply.to", b"", b""),
        (b"a.c", b"", b"NATS/1.0\r\nKey: v1\r\n\r\n", b"xyz"),
        (b"a.c", b"r", b"NATS/1.0 503\r\n\r\n", b""),
        (b"a.b", b"", b"", b"MSG x\r\n"),
    ]
    assert not connection.is_closed


@pytest.mark.parametrize("garbage", [b"HELLO there\r\n", b"MSG a b c d e\r\n", b"x" * 70_000])
async def test_garbage_ends_the_connection(garbage: bytes) -> None:
    connection = Connection("test", "nats://127.0.0.1", 60.0)
    connection.data_received(garbage)
    assert "cannot handle what NATS at 127.0.0.1:4222 sent" in await connection.closed


async def test_a_server_that_is_silent_or_no_nats_is_told_apart() -> None:
    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH\r\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(Exception, match=r"expected a NATS frame, got b'SSH-2\.0-OpenSSH'"):
        await Connection.open([f"nats://127.0.0.1:{port}"], name="test", timeout=2)
    server.close()
    await server.wait_closed()


def filled(lane: Lane, count: int, window: int = 100) -> list[bytes]:
    box = Outbox(OutboxLimits(), lambda _key, _count: None)
    for number in range(count):
        each = Entry("market.trade.x", b"payload", f"t-{number}")
        assert box.add(each, None)
        lane.buffer.append(each)
    frames: list[bytes] = []
    lane.fill(
        frames,
        box,
        lambda _entry: None,
        window=window,
        window_bytes=1 << 30,
        room=1 << 30,
        max_payload=1 << 20,
        now=1.0,
    )
    return frames


def test_what_a_message_looks_like_on_the_wire() -> None:
    lane = Lane("S")
    batch = lane.begin("_INBOX.a.p", 32)
    head = b"".join(filled(lane, 2))
    reply = f"_INBOX.a.p.{batch}.32.fail"
    assert head.decode() == (
        f"HPUB market.trade.x {reply}.1.0.$FI 30 37\r\n"
        "NATS/1.0\r\nNats-Msg-Id: t-0\r\n\r\npayload\r\n"
        f"HPUB market.trade.x {reply}.2.1.$FI 30 37\r\n"
        "NATS/1.0\r\nNats-Msg-Id: t-1\r\n\r\npayload\r\n"
    )


def test_a_window_bounds_what_is_in_flight() -> None:
    lane = Lane("S")
    lane.begin("_INBOX.a.p", 32)
    filled(lane, 10, window=4)
    assert (len(lane.unacknowledged), len(lane.buffer)) == (4, 6)
    assert lane.acknowledge(3, 2.0) == 3
    assert [each.message_id for each in lane.unacknowledged] == ["t-3"]
    assert lane.acknowledge(3, 2.0) == 0


def test_nothing_behind_a_refused_message_counts_as_stored() -> None:
    lane = Lane("S")
    lane.begin("_INBOX.a.p", 32)
    filled(lane, 10)
    lane.refused[5] = (10077, "no space")
    assert lane.acknowledge(9, 2.0) == 4
    assert [each.number for each in lane.unacknowledged] == [5, 6, 7, 8, 9, 10]
