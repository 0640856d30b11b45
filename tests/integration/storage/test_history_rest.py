"""History over REST: the real storage service behind the real Envoy."""

import asyncio
import contextlib
import io
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pyarrow.parquet as pq
import pytest
import pytest_asyncio
from marketprism.market.v1 import events_pb2

from services.gateway.service import GatewayService
from services.gateway.settings import ListenerSettings
from services.storage.ingest_settings import IngestSettings
from services.storage.service import StorageService
from services.storage.settings import StorageSettings
from services.storage.sql_settings import SqlSettings
from services.storage.tables import TABLES, frame
from tests.integration.gateway_mesh import base_settings, gateway_settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

BEGIN = 1_700_006_400 * 10**9
RANGE = "start_time=2023-11-15T00:00:00Z&end_time=2023-11-16T00:00:00Z"
INSTRUMENT = "venue/BTC-USDT"


@dataclass
class Rest:
    """Where REST is, and how to ask there."""

    session: aiohttp.ClientSession
    ports: dict[str, int]

    async def ask(
        self, path: str, *, listener: str = "all", method: str = "GET", **options: Any
    ) -> tuple[int, dict[str, str], bytes]:
        url = f"http://127.0.0.1:{self.ports[listener]}{path}"
        async with self.session.request(method, url, **options) as answer:
            headers = {name.lower(): value for name, value in answer.headers.items()}
            return answer.status, headers, await answer.read()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rest(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rest]:
    directory: Path = tmp_path_factory.mktemp("history")
    mesh = base_settings(directory)
    # Without a broker it could not be known what is still to come.
    settings = StorageSettings(
        ingest=IngestSettings(enabled=False), sql=SqlSettings(enabled=True, max_rows_read=10**15)
    )
    async with contextlib.AsyncExitStack() as stack:
        storage = await stack.enter_async_context(StorageService(mesh, settings).running())
        rows = []
        for number in range(20_000):
            trade = events_pb2.Trade(exchange="venue", symbol="BTC-USDT", price="1.5", quantity="2")
            trade.trade_id = str(number + 1)
            trade.receive_time.FromNanoseconds(BEGIN + number)
            rows.append(frame(trade.SerializeToString(), number + 1, 1))
        await storage.engine.insert(TABLES["trade"], b"".join(rows))
        listeners = {
            "all": ListenerSettings(port=0),
            "storage": ListenerSettings(port=0, service="storage"),
        }
        gateway = GatewayService(mesh, gateway_settings({"storage": storage}, listeners=listeners))
        await stack.enter_async_context(gateway.running())
        session = await stack.enter_async_context(aiohttp.ClientSession())
        running = Rest(session, dict(gateway.ports))

        deadline = time.monotonic() + 10
        while (await running.ask("/api/v1/history/coverage"))[0] == 503:
            assert time.monotonic() < deadline, "expected storage behind the gateway within 10 s"
            await asyncio.sleep(0.02)
        yield running


@pytest.mark.parametrize("listener", ["all", "storage"])
async def test_the_settled_past_may_be_kept_by_anybody(rest: Rest, listener: str) -> None:
    path = f"/api/v1/history/trades/{INSTRUMENT}?{RANGE}&page_size=3"
    status, headers, body = await rest.ask(path, listener=listener)
    assert status == 200
    assert [each["trade_id"] for each in json.loads(body)["data"]["trades"]] == ["1", "2", "3"]
    assert headers["cache-control"] == "public, max-age=86400, immutable"
    known = {"if-none-match": headers["etag"]}
    status, again, body = await rest.ask(path, listener=listener, headers=known)
    assert (status, body, again["etag"]) == (304, b"", headers["etag"])


async def test_what_has_no_end_is_kept_by_nobody(rest: Rest) -> None:
    status, headers, _ = await rest.ask(f"/api/v1/history/trades/{INSTRUMENT}?page_size=3")
    assert (status, headers["cache-control"]) == (200, "no-store")
    assert "etag" not in headers


async def test_an_export_is_the_bare_file(rest: Rest) -> None:
    path = f"/api/v1/history/export/{INSTRUMENT}?kind=EVENT_KIND_TRADE"
    status, headers, body = await rest.ask(f"{path}&end_line=true&columns=trade_id&columns=price")
    assert status == 200
    assert headers["content-type"] == "text/csv"
    assert headers["content-disposition"] == 'attachment; filename="venue_BTC-USDT_trade.csv"'
    assert headers["cache-control"] == "no-store"
    lines = body.decode().splitlines()
    assert lines[:2] == ["trade_id,price", '"1",1.5']
    assert (len(lines), lines[-1]) == (20_002, "# complete, 20000 rows")

    status, headers, body = await rest.ask(f"{path}&format=EXPORT_FORMAT_PARQUET")
    assert (status, headers["content-type"]) == (200, "application/vnd.apache.parquet")
    assert pq.read_table(io.BytesIO(body)).num_rows == 20_000


@pytest.mark.parametrize(
    ("query", "status", "field"),
    [
        ("kind=EVENT_KIND_TRADE&columns=prize", 400, "columns[0]"),
        ("kind=EVENT_KIND_TRADE&end_line=true&format=EXPORT_FORMAT_ARROW", 400, "end_line"),
        ("format=EXPORT_FORMAT_ARROW", 400, "kind"),
        ("kind=EVENT_KIND_TRADE&colums=price", 400, "colums"),
    ],
)
async def test_a_wrong_export_is_refused_in_the_envelope(
    rest: Rest, query: str, status: int, field: str
) -> None:
    answered, headers, body = await rest.ask(f"/api/v1/history/export/{INSTRUMENT}?{query}")
    assert answered == status
    assert headers["content-type"] == "application/json"
    error = json.loads(body)["error"]
    assert field in [each.get("field") for each in error["details"]]


async def test_sql_answers_and_refuses(rest: Rest) -> None:
    question = {
        "sql": "SELECT count() AS n, {x:String} AS x FROM trade",
        "parameters": {"x": "it's"},
    }
    status, headers, body = await rest.ask("/api/v1/history/query", method="POST", json=question)
    assert (status, headers["cache-control"]) == (200, "no-store")
    data = json.loads(body)["data"]
    assert data["rows"] == [["20000", "it's"]]
    assert data["columns"][0] == {"name": "n", "type": "UInt64"}
    status, _, body = await rest.ask(
        "/api/v1/history/query", method="POST", json={"sql": "DROP TABLE trade"}
    )
    assert (status, json.loads(body)["error"]["code"]) == (403, "SQL_NOT_ALLOWED")


async def test_sql_may_take_longer_than_other_calls(rest: Rest) -> None:
    # The gateway of this test gives other calls one second.
    question = {
        "sql": "SELECT sum(cityHash64(number)) FROM numbers(1000000000000)",
        "timeout": "1.5s",
    }
    status, _, body = await rest.ask("/api/v1/history/query", method="POST", json=question)
    assert (status, json.loads(body)["error"]["code"]) == (504, "QUERY_TIMEOUT")


async def test_everything_of_history_is_described_and_routed(rest: Rest) -> None:
    _, _, body = await rest.ask("/openapi.json")
    paths = json.loads(body)["paths"]
    history = {path: each for path, each in paths.items() if path.startswith("/api/v1/history/")}
    assert len(history) >= 24
    assert (await rest.ask("/docs"))[0] == 200
    for path, operations in history.items():
        filled = path.replace("{exchange}", "venue").replace("{symbol}", "BTC-USDT")
        for verb in operations:
            if verb == "get":
                # Whatever is missing in the request, it is the service that says so.
                status, _, body = await rest.ask(f"{filled}?nothing=1", method=verb.upper())
                assert status == 400, path
                assert "nothing" in json.loads(body)["error"]["message"]


@pytest.mark.parametrize("listener", ["all", "storage"])
@pytest.mark.parametrize(
    "path",
    [
        f"/api/v1/history/stream?instruments={INSTRUMENT}&kinds=EVENT_KIND_TRADE&{RANGE}",
        f"/api/v1/history/replay?instruments={INSTRUMENT}&kinds=EVENT_KIND_TRADE&{RANGE}"
        "&pace=REPLAY_PACE_UNPACED",
    ],
    ids=["stream", "replay"],
)
async def test_streams_come_as_lines_and_as_server_sent_events(
    rest: Rest, path: str, listener: str
) -> None:
    status, headers, lines = await rest.ask(path, listener=listener)
    assert (status, headers["content-type"]) == (200, "application/json")
    assert headers["cache-control"] == "no-store"
    accept = {"accept": "text/event-stream"}
    status, headers, events = await rest.ask(path, listener=listener, headers=accept)
    assert (status, headers["content-type"]) == (200, "text/event-stream")
    bare = [json.loads(line) for line in lines.splitlines()]
    sent = [json.loads(line.removeprefix(b"data: ")) for line in events.splitlines() if line]
    for messages in (bare, sent):
        found = [event for message in messages for event in message["events"]]
        ids = [event["trade"]["trade_id"] for event in found if "trade" in event]
        assert ids == [str(number + 1) for number in range(20_000)]
        assert found[-1]["stream_status"]["state"] == "STREAM_STATE_ENDED"


async def test_a_refused_stream_has_its_status_and_the_envelope(rest: Rest) -> None:
    status, headers, body = await rest.ask(
        "/api/v1/history/stream?instruments=nothing&kinds=EVENT_KIND_TRADE"
    )
    assert (status, headers["content-type"]) == (400, "application/json")
    assert json.loads(body)["success"] is False
