"""The broker service with a real nats-server: start, streams, faults, what it shows."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import psutil
import pytest
from google.rpc import error_details_pb2, status_pb2
from marketprism.broker.v1 import broker_pb2, broker_service_pb2_grpc
from marketprism.broker.v1 import broker_service_pb2 as pb

from services.broker.server import NatsServer
from services.broker.service import BrokerService
from services.broker.settings import BrokerSettings, ServerSettings, load_broker_settings
from services.broker.streams import StreamConflict, ensure_streams
from services.shared.errors import StartupError
from services.shared.jetstream import JetStreamError
from services.shared.ports import bind_socket
from services.shared.publisher import Publisher
from services.shared.settings import MeshSettings, NatsSettings, ServiceSettings
from tests.integration.nats_tools import call, connected, make_stream, nats_server, until

REPOSITORY = Path(__file__).resolve().parents[2]
TRADE = "market.trade.binance.BTC-USDT"


def mesh_settings(tmp_path: Path, **nats: Any) -> MeshSettings:
    return MeshSettings(
        data_dir=tmp_path / "var",
        nats=NatsSettings(**{"port": 0, "monitor_port": 0, **nats}),
        services={"broker": ServiceSettings()},
    )


def broker_settings(**more: Any) -> BrokerSettings:
    streams = {
        "TRADE": {"subjects": ["market.trade.>"], "max_age": "1h"},
        "BOOK": {"subjects": ["market.order_book_update.>"]},
    }
    return BrokerSettings.model_validate({"streams": streams, "monitor_seconds": 0.1, **more})


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[BrokerService]:
    service = BrokerService(mesh_settings(tmp_path), broker_settings())
    async with service.running():
        yield service


@pytest.fixture
async def stub(broker: BrokerService) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{broker.grpc_port}") as channel:
        yield broker_service_pb2_grpc.BrokerServiceStub(channel)


def reason_of(error: grpc.aio.AioRpcError) -> str:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return info.reason
    return ""


async def test_it_starts_with_the_mesh_s_own_streams(tmp_path: Path) -> None:
    settings = load_broker_settings()
    async with BrokerService(mesh_settings(tmp_path), settings).running() as service:
        streams = (await call(service.nats_url, "STREAM.NAMES"))["streams"]
        assert sorted(streams) == sorted(settings.stream_names)
        config = (await call(service.nats_url, "STREAM.INFO.MARKET_ORDER_BOOK"))["config"]
        assert config["max_age"] == 900_000_000_000
        assert config["allow_batched"]
        assert 'listen: "127.0.0.1:' in (tmp_path / "var/nats/nats-server.conf").read_text()


async def test_a_killed_server_comes_back_with_its_streams_and_messages(
    broker: BrokerService,
) -> None:
    publisher = Publisher(broker.nats_url)
    await publisher.start()
    for number in range(100):
        publisher.publish(TRADE, b"x", f"t-{number}")
    assert await publisher.drain(5)
    assert broker.server is not None
    await call(broker.nats_url, "STREAM.DELETE.BOOK")
    broker.server.child.kill(signal.SIGKILL)
    await until(lambda: broker.health()[0] == 503, "the death shows in the health")
    await until(lambda: broker.health()[0] == 200, "it is healthy again")
    names = (await call(broker.nats_url, "STREAM.NAMES"))["streams"]
    assert sorted(names) == ["BOOK", "TRADE"], "expected the streams to be ensured again"
    info = await call(broker.nats_url, "STREAM.INFO.TRADE")
    assert info["state"]["messages"] == 100
    assert broker.server.restarts == 1
    publisher.publish(TRADE, b"x", "t-100")
    assert await publisher.drain(10)
    await publisher.stop()


async def test_a_server_whose_store_was_deleted_begins_anew(
    tmp_path: Path, broker: BrokerService
) -> None:
    assert broker.server is not None
    shutil.rmtree(tmp_path / "var/nats")
    broker.server.child.kill(signal.SIGKILL)
    await until(lambda: broker.health()[0] == 503, "the death shows in the health")
    await until(lambda: broker.health()[0] == 200, "it is healthy again")
    names = (await call(broker.nats_url, "STREAM.NAMES"))["streams"]
    assert sorted(names) == ["BOOK", "TRADE"], "expected the streams to be made again"


async def test_a_server_that_gave_up_writing_is_started_again(broker: BrokerService) -> None:
    server = broker.server
    assert server is not None
    assert server.child.pid is not None
    publisher = Publisher(broker.nats_url)
    await publisher.start()
    publisher.publish(TRADE, b"x", "t-0")
    assert await publisher.drain(5)
    # No file may grow any more: to the server that is a disk without room.
    psutil.Process(server.child.pid).rlimit(psutil.RLIMIT_FSIZE, (64, 64))
    for number in range(1, 100):
        publisher.publish(TRADE, b"x", f"t-{number}")
    await until(lambda: "gave up writing" in str(broker.health()[1]), "the health tells it")
    assert broker.health()[0] == 503
    await until(lambda: server.restarts == 1, "it is started again", 20)
    await until(lambda: broker.health()[0] == 200, "it is healthy again", 20)
    assert await publisher.drain(20), "expected what waited to be stored"
    info = await call(broker.nats_url, "STREAM.INFO.TRADE")
    assert info["state"]["messages"] == 100
    await publisher.stop()


async def test_health_tells_the_real_state(broker: BrokerService) -> None:
    await until(lambda: broker.monitor.reading is not None, "the monitoring is read")
    status, body = broker.health()
    assert (status, body["status"]) == (200, "healthy")
    nats = body["dependencies"]["nats"]
    assert nats["connected"]
    assert (nats["streams"], nats["restarts"], nats["bytes_used"]) == (2, 0, 0)
    assert nats["bytes_limit"] == 16 << 30
    assert body["dependencies"]["nats_server"]["state"] == "running"
    assert broker.server is not None
    await broker.server.child.stop()
    await until(lambda: broker.health()[0] == 503, "the loss shows")
    nats = broker.health()[1]["dependencies"]["nats"]
    assert not nats["connected"]
    await broker.server.child.start()
    await until(lambda: broker.health()[0] == 200, "it is healthy again")


async def test_the_server_ends_with_the_service(tmp_path: Path) -> None:
    async with BrokerService(mesh_settings(tmp_path), broker_settings()).running() as service:
        assert service.server is not None
        pid = service.server.child.pid
        assert pid is not None
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_the_server_never_outlives_the_process(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.broker",
        cwd=REPOSITORY,
        env={
            **os.environ,
            "MARKETPRISM__SERVICES__DATA_DIR": str(tmp_path / "var"),
            "MARKETPRISM__SERVICES__NATS__PORT": "0",
            "MARKETPRISM__SERVICES__NATS__MONITOR_PORT": "0",
            "MARKETPRISM__SERVICES__SERVICES__BROKER": "{grpc_port: 0, http_port: 0}",
            "MARKETPRISM__SERVICES__LOG__FORMAT": "json",
        },
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        async with asyncio.timeout(20):
            while b'"event": "ready"' not in (line := await process.stderr.readline()):
                assert line, "expected the broker to become ready"
        children = psutil.Process(process.pid).children(recursive=True)
        assert [child.name() for child in children] == ["nats-server"]
        process.send_signal(number)
        async with asyncio.timeout(10):
            status = await process.wait()
        assert status == (0 if number is signal.SIGTERM else -signal.SIGKILL)
        await until(lambda: not children[0].is_running(), "nats-server is gone too")
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def test_a_taken_port_is_told_in_one_sentence(tmp_path: Path) -> None:
    with bind_socket("127.0.0.1", 0, "nats.port") as taken:
        taken.listen()
        port = taken.getsockname()[1]
        service = BrokerService(mesh_settings(tmp_path, port=port), broker_settings())
        with pytest.raises(
            StartupError, match=rf"port {port} on 127.0.0.1 is taken by .* set nats"
        ):
            await service.start()


async def test_a_store_has_one_broker(tmp_path: Path, broker: BrokerService) -> None:
    second = BrokerService(mesh_settings(tmp_path), broker_settings())
    with pytest.raises(StartupError, match="another broker uses the store"):
        await second.start()


async def test_streams_are_ensured_again_and_again(tmp_path: Path) -> None:
    first = broker_settings()
    async with nats_server(tmp_path / "nats") as nats, connected(nats.url) as connection:
        assert await ensure_streams(connection, first) == {"TRADE": "created", "BOOK": "created"}
        assert set((await ensure_streams(connection, first)).values()) == {"unchanged"}
        changed = broker_settings(
            streams={
                "TRADE": {"subjects": ["market.trade.>"], "max_age": "2h", "max_bytes": "1MiB"},
                "BOOK": {"subjects": ["market.order_book_update.>"]},
            }
        )
        assert await ensure_streams(connection, changed) == {
            "TRADE": "updated",
            "BOOK": "unchanged",
        }
        config = (await call(nats.url, "STREAM.INFO.TRADE"))["config"]
        assert (config["max_age"], config["max_bytes"]) == (7_200_000_000_000, 1 << 20)


async def test_a_subject_moves_from_one_stream_to_another(tmp_path: Path) -> None:
    async with nats_server(tmp_path / "nats") as nats, connected(nats.url) as connection:
        one = {"A": {"subjects": ["a.>"]}, "B": {"subjects": ["b.>", "c.>"]}}
        await ensure_streams(connection, broker_settings(streams=one))
        other = {"A": {"subjects": ["a.>", "c.>"]}, "B": {"subjects": ["b.>"]}}
        done = await ensure_streams(connection, broker_settings(streams=other))
        assert done == {"A": "updated", "B": "updated"}


async def test_an_impossible_change_is_told(tmp_path: Path) -> None:
    async with nats_server(tmp_path / "nats") as nats, connected(nats.url) as connection:
        await make_stream(nats.url, "TRADE", "market.trade.>", storage="memory")
        with pytest.raises(StreamConflict, match="storage is 'memory' and cannot be changed to"):
            await ensure_streams(connection, broker_settings())
        await call(nats.url, "STREAM.DELETE.TRADE")
        await make_stream(nats.url, "OTHER", "market.trade.>")
        with pytest.raises(StreamConflict, match=r"stream TRADE cannot .* subjects overlap"):
            await ensure_streams(connection, broker_settings())
        await call(nats.url, "STREAM.DELETE.OTHER")
        with pytest.raises(StreamConflict, match="replicas > 1 not supported"):
            await ensure_streams(connection, broker_settings(replicas=3))


async def test_an_impossible_change_stops_the_start(tmp_path: Path) -> None:
    async with nats_server(tmp_path / "elsewhere") as nats:
        await make_stream(nats.url, "TRADE", "market.trade.>", storage="memory")
        service = BrokerService(mesh_settings(tmp_path, url=nats.url), broker_settings())
        with pytest.raises(StartupError, match="change the configuration, or delete the stream"):
            await service.start()


async def test_an_external_server_gets_the_streams_and_none_is_started(tmp_path: Path) -> None:
    async with nats_server(tmp_path / "elsewhere") as nats:
        settings = broker_settings(monitor_url=nats.monitor_url)
        service = BrokerService(mesh_settings(tmp_path, url=nats.url), settings)
        async with service.running():
            assert service.server is None
            names = (await call(nats.url, "STREAM.NAMES"))["streams"]
            assert sorted(names) == ["BOOK", "TRADE"]
            await until(lambda: service.monitor.reading is not None, "its monitoring is read")
            assert service.health()[0] == 200
            nats.child.kill(signal.SIGKILL)
            await until(lambda: service.health()[0] == 503, "its death shows")
            await until(lambda: service.health()[0] == 200, "its return shows")
        assert psutil.pid_exists(nats.child.pid or 0)


async def test_an_external_server_that_is_away_stops_the_start(tmp_path: Path) -> None:
    url = "nats://user:hunter2@127.0.0.1:1"
    service = BrokerService(mesh_settings(tmp_path, url=url), broker_settings())
    with pytest.raises(StartupError, match="NATS cannot be reached") as caught:
        await service.start()
    assert "hunter2" not in str(caught.value)


async def test_metrics_of_server_and_streams(broker: BrokerService) -> None:
    publisher = Publisher(broker.nats_url)
    await publisher.start()
    for number in range(10):
        publisher.publish(TRADE, b"x", f"t-{number}")
    assert await publisher.drain(5)
    url = f"http://127.0.0.1:{broker.http_port}/metrics"
    async with aiohttp.ClientSession() as session, asyncio.timeout(10):
        text = ""
        while 'marketprism_nats_stream_messages{stream="TRADE"} 10.0' not in text:
            async with session.get(url) as response:
                text = await response.text()
            await asyncio.sleep(0.05)
    await publisher.stop()
    for line in (
        "marketprism_nats_up 1.0",
        "marketprism_nats_connections ",
        "marketprism_nats_in_messages_total ",
        "marketprism_nats_out_bytes_total ",
        "marketprism_nats_storage_bytes ",
        'marketprism_nats_stream_bytes{stream="TRADE"} ',
        'marketprism_child_restarts_total{child="nats-server"} 0.0',
    ):
        assert line in text, f"expected {line} in the metrics"


async def test_streams_over_grpc(broker: BrokerService, stub: Any) -> None:
    publisher = Publisher(broker.nats_url)
    await publisher.start()
    publisher.publish(TRADE, b"x", "t-0")
    assert await publisher.drain(5)
    await publisher.stop()
    await make_stream(broker.nats_url, "FOREIGN", "foreign.>")
    answer = await stub.ListStreams(pb.ListStreamsRequest())
    assert [stream.config.name for stream in answer.streams] == ["BOOK", "FOREIGN", "TRADE"]
    assert [stream.managed for stream in answer.streams] == [True, False, True]
    trade = (await stub.GetStream(pb.GetStreamRequest(stream="TRADE"))).stream
    assert list(trade.config.subjects) == ["market.trade.>"]
    assert trade.config.max_age.seconds == 3600
    assert trade.config.max_bytes == 0
    assert trade.config.storage == broker_pb2.STREAM_STORAGE_FILE
    assert (trade.state.messages, trade.state.last_sequence) == (1, 1)
    assert trade.state.last_time.seconds > 1_700_000_000
    assert trade.replicas[0].leader
    first = await stub.ListStreams(pb.ListStreamsRequest(page_size=2))
    assert [stream.config.name for stream in first.streams] == ["BOOK", "FOREIGN"]
    rest = await stub.ListStreams(
        pb.ListStreamsRequest(page_size=2, page_token=first.next_page_token)
    )
    assert [stream.config.name for stream in rest.streams] == ["TRADE"]
    assert rest.next_page_token == ""
    taking = await stub.ListStreams(pb.ListStreamsRequest(subject=TRADE))
    assert [stream.config.name for stream in taking.streams] == ["TRADE"]


async def test_consumers_over_grpc(broker: BrokerService, stub: Any) -> None:
    config = {
        "durable_name": "ledger",
        "ack_policy": "explicit",
        "filter_subject": "market.trade.>",
    }
    await call(
        broker.nats_url,
        "CONSUMER.DURABLE.CREATE.TRADE.ledger",
        {"stream_name": "TRADE", "config": config},
    )
    answer = await stub.ListConsumers(pb.ListConsumersRequest(stream="TRADE"))
    assert [consumer.config.name for consumer in answer.consumers] == ["ledger"]
    consumer = (
        await stub.GetConsumer(pb.GetConsumerRequest(stream="TRADE", consumer="ledger"))
    ).consumer
    assert consumer.stream == "TRADE"
    assert list(consumer.config.filter_subjects) == ["market.trade.>"]
    assert consumer.config.ack_policy == broker_pb2.ACK_POLICY_EXPLICIT
    assert consumer.config.ack_wait.seconds == 30
    assert consumer.state.pending == 0


async def test_servers_and_use_over_grpc(broker: BrokerService, stub: Any) -> None:
    await until(lambda: broker.monitor.reading is not None, "the monitoring is read")
    cluster = await stub.GetCluster(pb.GetClusterRequest())
    (node,) = cluster.nodes
    assert (node.name, node.version, node.streams) == ("marketprism", "2.15.1", 2)
    assert node.online
    usage = (await stub.GetAccountUsage(pb.GetAccountUsageRequest())).usage
    assert (usage.streams, usage.storage_limit_bytes) == (2, 16 << 30)
    assert usage.api_requests > 0


@pytest.mark.parametrize(
    ("method", "request_message", "code", "reason"),
    [
        ("GetStream", pb.GetStreamRequest(stream="X"), "NOT_FOUND", "STREAM_NOT_FOUND"),
        ("GetStream", pb.GetStreamRequest(), "INVALID_ARGUMENT", "REQUIRED_FIELD_MISSING"),
        ("GetStream", pb.GetStreamRequest(stream="a.b"), "INVALID_ARGUMENT", "INVALID_ARGUMENT"),
        ("ListConsumers", pb.ListConsumersRequest(stream="X"), "NOT_FOUND", "STREAM_NOT_FOUND"),
        (
            "GetConsumer",
            pb.GetConsumerRequest(stream="TRADE", consumer="x"),
            "NOT_FOUND",
            "CONSUMER_NOT_FOUND",
        ),
        (
            "ListStreams",
            pb.ListStreamsRequest(page_size=-1),
            "INVALID_ARGUMENT",
            "INVALID_ARGUMENT",
        ),
        ("PurgeStream", pb.PurgeStreamRequest(stream="TRADE"), "UNIMPLEMENTED", "UNIMPLEMENTED"),
    ],
)
async def test_errors_over_grpc(
    stub: Any, method: str, request_message: Any, code: str, reason: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(stub, method)(request_message)
    assert caught.value.code().name == code
    assert reason_of(caught.value) == reason


async def test_a_replay_is_not_offered_yet(stub: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in stub.ReplayMessages(pb.ReplayMessagesRequest(stream="TRADE")):
            pass
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert reason_of(caught.value) == "UNIMPLEMENTED"


async def test_a_broker_that_is_away_is_unavailable(broker: BrokerService, stub: Any) -> None:
    assert broker.server is not None
    await broker.server.child.stop()
    await until(lambda: broker.health()[0] == 503, "the loss shows")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ListStreams(pb.ListStreamsRequest())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert reason_of(caught.value) == "BROKER_UNAVAILABLE"


async def test_a_refusal_of_jetstream_is_an_error_with_its_code(tmp_path: Path) -> None:
    async with nats_server(tmp_path / "nats") as nats:
        with pytest.raises(JetStreamError, match="stream not found") as caught:
            await call(nats.url, "STREAM.DELETE.X")
        assert caught.value.code == 10059


async def test_a_server_that_hangs_is_unhealthy(broker: BrokerService) -> None:
    assert broker.server is not None
    pid = broker.server.child.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        await until(lambda: broker.health()[0] == 503, "the silence shows")
        assert "JetStream does not answer" in str(broker.health()[1]["dependencies"]["nats"])
    finally:
        os.kill(pid, signal.SIGCONT)
    await until(lambda: broker.health()[0] == 200, "it is healthy again")


async def test_the_servers_memory_has_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GOMEMLIMIT", raising=False)
    settings = ServerSettings(process_memory=128 * 2**20)
    async with NatsServer(tmp_path, settings).running() as server:
        environment = psutil.Process(server.child.pid).environ()
    assert environment["GOMEMLIMIT"] == str(128 * 2**20)
