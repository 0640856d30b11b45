"""REST from the venue to the client: the paths, which of them wins, odd names, and refusals."""

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import pytest
import pytest_asyncio
from marketprism.market.v1 import events_pb2, instrument_pb2

from services.shared.jetstream import Connection
from tests.integration.nats_tools import until
from tests.integration.rest_tools import RestMesh, eventually, rest_mesh
from tests.unit.marketdata.truth import Collected

pytestmark = pytest.mark.asyncio(loop_scope="module")

PERPETUAL = "deribit/BTC-USD-PERP"
ODD_SYMBOLS = [
    "币安人生-USDT",
    "1000SATS-USDT",
    "BTC-USDC-20261225-60000.5-C",
    "A+B-USDT",
    "A&B=C-USDT",
    "50%-USDT",
    "ñ~_:@!$'(),;-USDT",
    "status",
    "stream",
    "snapshot",
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RestMesh]:
    async with rest_mesh(tmp_path_factory.mktemp("rest")) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def odd(mesh: RestMesh) -> AsyncIterator[RestMesh]:
    """Add instruments of a venue whose names are as odd as names can be."""
    connection = await Connection.open([mesh.bench.nats_url], name="odd venue")
    for symbol in ODD_SYMBOLS:
        book = Collected(exchange="odd", symbol=symbol)
        about = instrument_pb2.Instrument(exchange="odd", symbol=symbol)
        for subject, payload in (
            (book.subject("instrument"), about.SerializeToString()),
            (book.subject("order_book_snapshot"), book.rebuild()),
            (book.subject("order_book_status"), book.synced()),
            (
                book.subject("ticker"),
                events_pb2.Ticker(exchange="odd", symbol=symbol).SerializeToString(),
            ),
        ):
            await connection.request(subject, payload)
    await until(
        lambda: ("odd", ODD_SYMBOLS[-1]) in mesh.marketdata.market.books, "the last of them came"
    )
    yield mesh
    connection.close("test done")


async def data(mesh: RestMesh, path: str, **more: Any) -> Any:
    """Ask for what must be there, and check the envelope."""
    answer = await mesh.ask(path, **more)
    assert answer.status == 200, answer.text
    body = answer.json()
    assert list(body) == ["success", "data", "message", "timestamp", "request_id"]
    assert body["success"] is True
    return body["data"]


# ---- the paths


async def test_a_book_its_snapshot_and_its_status(mesh: RestMesh) -> None:
    book = await data(mesh, f"/api/v1/orderbook/{PERPETUAL}?depth=3")
    assert len(book["order_book"]["bids"]) == len(book["order_book"]["asks"]) == 3
    assert book["status"]["state"] == "ORDER_BOOK_STATE_SYNCED"
    snapshot = await data(mesh, f"/api/v1/orderbook/{PERPETUAL}/snapshot?depth=2")
    assert len(snapshot["order_book"]["bids"]) == 2
    status = await data(mesh, f"/api/v1/orderbook/status/{PERPETUAL}")
    assert status["status"]["epoch"] == book["order_book"]["epoch"]


async def test_a_refresh_begins_a_new_epoch(mesh: RestMesh) -> None:
    before = await data(mesh, f"/api/v1/orderbook/status/{PERPETUAL}")
    for options in ({"json": {}}, {}):
        answer = await mesh.ask(f"/api/v1/orderbook/{PERPETUAL}/refresh", method="POST", **options)
        assert answer.status == 200, answer.text

    async def renewed() -> bool:
        now = await data(mesh, f"/api/v1/orderbook/status/{PERPETUAL}")
        later: bool = int(now["status"]["epoch"]) > int(before["status"]["epoch"])
        return later and now["status"]["state"] == "ORDER_BOOK_STATE_SYNCED"

    await eventually(renewed, "a new epoch is in step")


async def test_counts_health_and_statuses_of_all_books(mesh: RestMesh) -> None:
    stats = await data(mesh, "/api/v1/orderbook/stats")
    states = {each["state"]: each["count"] for each in stats["books"]}
    assert states["ORDER_BOOK_STATE_SYNCED"] > 0
    assert int(stats["updates"]) > 0 < int(stats["snapshots"])
    health = await data(mesh, "/api/v1/orderbook/health")
    (venue,) = (each for each in health["exchanges"] if each["exchange"] == "deribit")
    assert venue["synced"] == venue["books"]
    statuses = await data(mesh, "/api/v1/orderbook/status?exchange=deribit&page_size=1")
    assert len(statuses["statuses"]) == 1
    following = await data(
        mesh,
        "/api/v1/orderbook/status?exchange=deribit&page_size=1&page_token="
        + statuses["next_page_token"],
    )
    assert following["statuses"][0]["symbol"] > statuses["statuses"][0]["symbol"]


async def test_venues_symbols_and_instruments(mesh: RestMesh) -> None:
    exchanges = (await data(mesh, "/api/v1/orderbook/exchanges"))["exchanges"]
    (deribit,) = (each for each in exchanges if each["exchange"] == "deribit")
    assert {"EVENT_KIND_ORDER_BOOK", "EVENT_KIND_TICKER"} <= set(deribit["kinds"])
    symbols = (await data(mesh, "/api/v1/orderbook/symbols/deribit"))["symbols"]
    assert "BTC-USD-PERP" in symbols
    assert symbols == sorted(symbols)
    options = await data(
        mesh, "/api/v1/instruments?exchange=deribit&kind=INSTRUMENT_KIND_OPTION&base=BTC"
    )
    assert options["instruments"]
    assert all(each["strike"] for each in options["instruments"])
    one = await data(mesh, f"/api/v1/instruments/{PERPETUAL}")
    assert one["instrument"]["native_symbol"] == "BTC-PERPETUAL"


async def test_the_latest_of_every_kind(mesh: RestMesh) -> None:
    assert (await data(mesh, f"/api/v1/tickers/{PERPETUAL}"))["ticker"]["last_price"]
    assert (await data(mesh, f"/api/v1/bbo/{PERPETUAL}"))["best_bid_offer"]["bid_price"]
    tickers = (await data(mesh, "/api/v1/tickers?exchange=deribit"))["tickers"]
    assert {each["exchange"] for each in tickers} == {"deribit"}

    async def has_trades() -> bool:
        return bool((await data(mesh, f"/api/v1/trades/{PERPETUAL}"))["trades"])

    await eventually(has_trades, "a trade came")
    latest = (await data(mesh, f"/api/v1/latest/{PERPETUAL}"))["events"]
    kinds = {next(iter(each)) for each in latest}
    assert {"trade", "ticker", "mark_price", "funding_rate"} <= kinds
    funding = await data(
        mesh, f"/api/v1/latest/{PERPETUAL}?kinds=EVENT_KIND_FUNDING_RATE&kinds=EVENT_KIND_TICKER"
    )
    assert [next(iter(each)) for each in funding["events"]] == ["ticker", "funding_rate"]


async def test_indices_have_a_price_and_no_book(mesh: RestMesh) -> None:
    async def comes(symbol: str, kind: str) -> bool:
        answer = await mesh.ask(f"/api/v1/latest/deribit/{symbol}")
        return answer.status == 200 and kind in answer.text

    await eventually(lambda: comes("BTC-USD", '"index_price"'), "the index comes")
    await eventually(lambda: comes("BTC-USD-DVOL", '"volatility"'), "the volatility index comes")
    answer = await mesh.ask("/api/v1/orderbook/deribit/BTC-USD-DVOL")
    assert (answer.status, answer.error["code"]) == (404, "INSTRUMENT_NOT_FOUND")
    assert "is an index" in answer.error["message"]


async def test_the_collector_tells_its_status(mesh: RestMesh) -> None:
    status = await data(mesh, "/api/v1/collector/status")
    assert status["collector_id"] == "test"


async def test_several_books_at_once(mesh: RestMesh) -> None:
    symbols = ["ETH-USD-PERP", "BTC-USD-PERP"]
    wanted = [{"exchange": "deribit", "symbol": symbol} for symbol in symbols]
    books = await data(
        mesh,
        "/api/v1/orderbook:batchGet",
        method="POST",
        json={"instruments": wanted, "depth": 1},
    )
    assert [each["order_book"]["symbol"] for each in books["order_books"]] == symbols


# ---- which path wins


@pytest.mark.parametrize(
    ("path", "holds"),
    [
        ("/api/v1/orderbook/stats", "start_time"),
        ("/api/v1/orderbook/health", "health"),
        ("/api/v1/orderbook/exchanges", "exchanges"),
        ("/api/v1/orderbook/status", "statuses"),
        ("/api/v1/orderbook/symbols/deribit", "symbols"),
        (f"/api/v1/orderbook/status/{PERPETUAL}", "status"),
        (f"/api/v1/orderbook/{PERPETUAL}", "order_book"),
        (f"/api/v1/orderbook/{PERPETUAL}/snapshot", "order_book"),
    ],
)
async def test_a_literal_path_wins_over_exchange_and_symbol(
    mesh: RestMesh, path: str, holds: str
) -> None:
    assert holds in await data(mesh, path)


@pytest.mark.parametrize("symbol", ["status", "stream", "snapshot"])
async def test_a_symbol_may_be_called_like_a_path(odd: RestMesh, symbol: str) -> None:
    book = await data(odd, f"/api/v1/orderbook/odd/{symbol}")
    assert book["order_book"]["symbol"] == symbol
    status = await data(odd, f"/api/v1/orderbook/status/odd/{symbol}")
    assert status["status"]["symbol"] == symbol


# ---- names


@pytest.mark.parametrize("symbol", ODD_SYMBOLS)
async def test_any_symbol_can_be_asked_for(odd: RestMesh, symbol: str) -> None:
    # Reserved characters but the slash may stand in a segment as they are.
    for name in {quote(symbol, safe=""), quote(symbol, safe="+&=~_:@!$'(),;-")}:
        book = await data(odd, f"/api/v1/orderbook/odd/{name}")
        assert book["order_book"]["symbol"] == symbol
        ticker = await data(odd, f"/api/v1/tickers/odd/{name}")
        assert ticker["ticker"]["symbol"] == symbol


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("%FF%FE", 400),
        ("%00", 400),
        ("BTC%2FUSDT", 400),
        ("%ZZ", 404),
        ("..%2f..", 400),
        ("%E5%B8%81", 404),
        ("btc_usd_perp", 404),
        ("x" * 2000, 404),
        ("%F0%9F%98%80", 404),
    ],
)
async def test_a_name_that_is_none_is_refused_in_the_envelope(
    mesh: RestMesh, name: str, status: int
) -> None:
    answer = await mesh.ask(f"/api/v1/orderbook/deribit/{name}")
    assert answer.status == status, answer.text
    assert answer.error["code"] in ("BAD_REQUEST", "INVALID_PARAMETER", "INSTRUMENT_NOT_FOUND")


async def test_a_misspelt_name_is_answered_with_the_right_one(mesh: RestMesh) -> None:
    symbol = await mesh.ask("/api/v1/tickers/deribit/btc_usd_perp")
    assert symbol.error["code"] == "INSTRUMENT_NOT_FOUND"
    assert "BTC-USD-PERP" in symbol.error["message"]
    exchange = await mesh.ask("/api/v1/orderbook/symbols/deribt")
    assert exchange.error["code"] == "EXCHANGE_NOT_FOUND"
    assert "deribit" in exchange.error["message"]


# ---- refusals


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("/api/v1/orderbook/status?page_size=1001", "page_size"),
        ("/api/v1/orderbook/status?page_size=-1", "page_size"),
        ("/api/v1/orderbook/status?page_token=nonsense", "page_token"),
        ("/api/v1/orderbook/status?states=ORDER_BOOK_STATE_UNSPECIFIED", "states[0]"),
        ("/api/v1/orderbook/exchanges?page_size=2147483647", "page_size"),
        ("/api/v1/orderbook/symbols/deribit?page_token=%00", "page_token"),
        (f"/api/v1/orderbook/{PERPETUAL}?depth=-1", "depth"),
        (f"/api/v1/orderbook/{PERPETUAL}?depth=10001", "depth"),
        (f"/api/v1/trades/{PERPETUAL}?page_size=5000", "page_size"),
        (f"/api/v1/latest/{PERPETUAL}?kinds=EVENT_KIND_UNSPECIFIED", "kinds[0]"),
        ("/api/v1/instruments?kind=99", "kind"),
        ("/api/v1/tickers?page_size=0&page_token=e30", "page_token"),
    ],
)
async def test_a_wrong_parameter_is_named(mesh: RestMesh, query: str, field: str) -> None:
    answer = await mesh.ask(query)
    assert (answer.status, answer.error["code"]) == (400, "INVALID_PARAMETER"), answer.text
    assert [each["field"] for each in answer.error["details"] if "field" in each] == [field]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "HEAD"])
async def test_a_method_that_a_path_does_not_take_is_told_which_it_takes(
    mesh: RestMesh, method: str
) -> None:
    answer = await mesh.ask(f"/api/v1/orderbook/{PERPETUAL}", method=method)
    assert (answer.status, answer.headers["allow"]) == (405, "GET")
    if method != "HEAD":
        assert answer.error["code"] == "METHOD_NOT_ALLOWED"
    refresh = await mesh.ask(f"/api/v1/orderbook/{PERPETUAL}/refresh")
    assert (refresh.status, refresh.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    "path", ["/api/v1/orderbook", "/api/v1/orderbook/", "/api/v1", "/api/v2/orderbook/stats"]
)
async def test_a_path_that_is_none_is_not_found(mesh: RestMesh, path: str) -> None:
    answer = await mesh.ask(path)
    assert (answer.status, answer.error["code"]) == (404, "NOT_FOUND")
