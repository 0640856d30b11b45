"""What HTTP caches on the way may keep of REST answers, through the real Envoy."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from marketprism.history.v1 import history_service_pb2 as history_pb2
from marketprism.history.v1 import history_service_pb2_grpc as history_grpc

from tests.integration.gateway_mesh import Mesh, running_mesh

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTLED = "/api/v1/history/trades/venue/SETTLED"
CHANGING = "/api/v1/history/trades/venue/CHANGING"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    async with running_mesh(tmp_path_factory.mktemp("http_cache")) as running:
        yield running


async def test_what_never_changes_may_be_kept(mesh: Mesh) -> None:
    answer = await mesh.rest(SETTLED)
    assert answer.status == 200
    assert answer.headers["cache-control"] == "public, max-age=60, immutable"
    assert answer.headers["etag"].startswith('W/"')
    assert answer.headers["vary"] == "origin"
    assert answer.json()["data"]["next_page_token"] == "SETTLED"


async def test_whoever_has_it_is_not_sent_it_again(mesh: Mesh) -> None:
    tag = (await mesh.rest(SETTLED)).headers["etag"]
    for known in (tag, tag.removeprefix("W/"), f'"other", {tag}', "*"):
        answer = await mesh.rest(SETTLED, headers={"if-none-match": known})
        assert (answer.status, answer.text) == (304, ""), known
        assert answer.headers["etag"] == tag
        assert answer.headers["cache-control"] == "public, max-age=60, immutable"
        assert "content-type" not in answer.headers
        assert "x-not-modified" not in answer.headers
    # The connection is in order afterwards.
    assert (await mesh.rest(SETTLED)).status == 200


async def test_whoever_has_another_is_sent_it(mesh: Mesh) -> None:
    answer = await mesh.rest(SETTLED, headers={"if-none-match": 'W/"0123"'})
    assert answer.json()["data"]["next_page_token"] == "SETTLED"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (CHANGING, 200),
        ("/api/v1/orderbook/venue/ANY", 200),
        ("/api/v1/orderbook/venue/NONE", 404),
        ("/api/v1/nothing", 404),
        (f"{SETTLED}?page=1", 400),
        ("/api/v1/history/coverage", 500),
        ("/health", 200),
        ("/api/v1/history/export/venue/ANY?kind=EVENT_KIND_TRADE", 200),
    ],
)
async def test_everything_else_is_kept_by_nobody(mesh: Mesh, path: str, status: int) -> None:
    answer = await mesh.rest(path, headers={"if-none-match": "*"})
    assert answer.status == status
    assert answer.headers["cache-control"] == "no-store"
    assert "etag" not in answer.headers


async def test_grpc_always_gets_the_answer(mesh: Mesh) -> None:
    stub = history_grpc.HistoryServiceStub(mesh.channel)
    request = history_pb2.ListTradesRequest(exchange="venue", symbol="SETTLED")
    answer = await stub.ListTrades(request, metadata=(("if-none-match", "*"),))
    assert answer.next_page_token == "SETTLED"
