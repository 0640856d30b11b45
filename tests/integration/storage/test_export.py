"""Files out of the store hold exactly what is in it, in bounded pieces."""

import csv
import dataclasses
import io
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytest_asyncio
from google.protobuf.message import Message
from marketprism.history.v1 import history_service_pb2 as pb
from marketprism.history.v1 import query_pb2
from marketprism.market.v1 import common_pb2, events_pb2, order_book_pb2

from services.shared.errors import InvalidArgument, NotFound
from services.storage import export_rows
from services.storage.engine import Engine
from services.storage.export import Export
from services.storage.known import KnownInstruments
from services.storage.migrate import migrate
from services.storage.settings import EngineSettings
from services.storage.tables import TABLES, frame

pytestmark = pytest.mark.asyncio(loop_scope="module")

DAY = 86_400 * 10**9
BEGIN = 1_700_006_400 * 10**9  # a midnight
TRADE = common_pb2.EVENT_KIND_TRADE
BOOK = common_pb2.EVENT_KIND_ORDER_BOOK
CSV, ARROW, PARQUET = 1, 2, 3
INSTRUMENT = {"exchange": "venue", "symbol": "BTC-USDT"}


class Call:
    def __init__(self, *, rest: bool = False) -> None:
        self._metadata = [("x-envoy-original-path", "/")] if rest else []
        self.headers: dict[str, str] = {}

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return self._metadata

    async def send_initial_metadata(self, metadata: Any) -> None:
        self.headers = dict(metadata)


def trades() -> list[events_pb2.Trade]:
    """Three days with an empty one between, several trades of one instant, odd ids, odd values."""
    made = []
    for number in range(60):
        day = (0, 1, 3)[number // 20]
        trade = events_pb2.Trade(
            **INSTRUMENT,
            trade_id=str(number) if number % 7 else f'"odd",\n{number}',
            price=f"{number + 1}.{'0' * 17}1",
            quantity="0.5",
            side=events_pb2.Trade.DESCRIPTOR.fields_by_name["side"].enum_type.values[1].number,
        )
        trade.receive_time.FromNanoseconds(BEGIN + day * DAY + number // 5 * 1001)
        if number % 2:
            trade.exchange_time.FromNanoseconds(BEGIN + day * DAY + number // 5 * 1001)
        made.append(trade)
    return made


def book() -> list[Message]:
    snapshot = order_book_pb2.OrderBookSnapshot(**INSTRUMENT, epoch=7, sequence=1)
    snapshot.receive_time.FromNanoseconds(BEGIN)
    snapshot.bids.add(price="2", quantity="4")
    snapshot.asks.add(price="3", quantity="5")
    update = order_book_pb2.OrderBookUpdate(**INSTRUMENT, epoch=7, sequence=2)
    update.receive_time.FromNanoseconds(BEGIN + 1)
    update.bids.add(price="2", quantity="0")
    nothing = order_book_pb2.OrderBookUpdate(**INSTRUMENT, epoch=7, sequence=3)
    nothing.receive_time.FromNanoseconds(BEGIN + 2)
    again = order_book_pb2.OrderBookSnapshot(**INSTRUMENT, epoch=7, sequence=3)
    again.receive_time.FromNanoseconds(BEGIN + 2)
    again.asks.add(price="3", quantity="5")
    return [snapshot, update, nothing, again]


def rows(messages: list[Any]) -> bytes:
    return b"".join(frame(each.SerializeToString(), n + 1, 1) for n, each in enumerate(messages))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Engine]:
    made = Engine(EngineSettings(readers=2), tmp_path_factory.mktemp("store"))
    await made.open()
    try:
        await migrate(made)
        # Twice, as after an insert of unknown outcome.
        for _ in range(2):
            await made.insert(TABLES["trade"], rows(trades()))
        for name, kind in (
            ("order_book_snapshot", order_book_pb2.OrderBookSnapshot),
            ("order_book_update", order_book_pb2.OrderBookUpdate),
        ):
            await made.insert(TABLES[name], rows([m for m in book() if isinstance(m, kind)]))
        yield made
    finally:
        await made.close()


async def export(engine: Engine, call: Call | None = None, **fields: Any) -> tuple[bytes, int]:
    """Give the file and its rows; checks the chunks on the way."""
    request = pb.ExportEventsRequest(**{**INSTRUMENT, "kind": TRADE, **fields})
    context: Any = call or Call()
    data, last = b"", None
    async for each in Export(engine, KnownInstruments(engine)).ExportEvents(request, context):
        assert last is None or not last.complete, "nothing comes behind the last chunk"
        assert bool(each.chunk.content_type) == (last is None), "the type comes once, first"
        assert len(each.chunk.data) <= 1024 * 1024
        data += each.chunk.data
        last = each
    assert last is not None
    assert last.complete
    return data, last.rows


def table(data: bytes, fmt: int) -> Any:
    if fmt == PARQUET:
        return pq.read_table(io.BytesIO(data))
    return pa.ipc.open_stream(data).read_all()


async def test_csv_is_every_trade_once_in_order(engine: Engine) -> None:
    data, count = await export(engine, end_line=True)
    *lines, end = list(csv.reader(io.StringIO(data.decode())))
    head, body = lines[0], [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    assert head[:4] == ["time", "exchange", "symbol", "trade_id"]
    assert (count, len(body), end) == (60, 60, ["# complete", " 60 rows"])
    assert [each["time"] for each in body] == sorted(each["time"] for each in body)
    assert {each["trade_id"] for each in body} == {each.trade_id for each in trades()}
    first = body[0]
    assert first["time"] == "2023-11-15T00:00:00.000000000Z"
    assert {each["price"] for each in body} == {each.price for each in trades()}
    told = [each for each in body if each["exchange_time"]]
    assert len(told) == 30
    assert all(each["exchange_time"] == each["time"] for each in told)


@pytest.mark.parametrize("fmt", [ARROW, PARQUET])
async def test_arrow_and_parquet_are_exact(engine: Engine, fmt: int) -> None:
    data, count = await export(engine, format=fmt)
    read = table(data, fmt)
    assert count == read.num_rows == 60
    assert read.schema.field("price").type == pa.decimal128(38, 18)
    assert read.schema.field("time").type == pa.timestamp("ns", tz="UTC")
    expected = {each.trade_id: each for each in trades()}
    times = read.column("time").cast(pa.int64()).to_pylist()
    for time, row in zip(times, read.drop(["time"]).to_pylist(), strict=True):
        trade = expected.pop(row["trade_id"])
        assert row["price"] == Decimal(trade.price)
        assert time == trade.receive_time.ToNanoseconds()
        assert (row["exchange_time"] is None) == (not trade.HasField("exchange_time"))
    assert not expected


@pytest.mark.parametrize("events", [1, 3, 7])
@pytest.mark.parametrize("fmt", [CSV, ARROW, PARQUET])
async def test_pieces_make_no_difference(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, fmt: int, events: int
) -> None:
    async def read() -> list[Any]:
        data, _ = await export(engine, format=fmt)
        if fmt == CSV:
            return list(csv.reader(io.StringIO(data.decode())))
        found: list[Any] = table(data, fmt).to_pylist()
        return found

    whole = await read()
    small = dataclasses.replace(export_rows.export_kind(TRADE), events_a_piece=events)
    monkeypatch.setitem(export_rows._KINDS, TRADE, small)
    assert await read() == whole


async def test_a_range_and_columns_narrow_it(engine: Engine) -> None:
    fields: dict[str, Any] = {"columns": ["price", "time"]}
    request = pb.ExportEventsRequest()
    request.start_time.FromNanoseconds(BEGIN + DAY)
    request.end_time.FromNanoseconds(BEGIN + 2 * DAY)
    fields |= {"start_time": request.start_time, "end_time": request.end_time}
    data, count = await export(engine, **fields)
    lines = data.decode().splitlines()
    assert (lines[0], count) == ("price,time", 20)
    assert {line.partition(",")[0] for line in lines[1:]} == {
        each.price for each in trades()[20:40]
    }
    assert all(',"2023-11-16T' in line for line in lines[1:])


@pytest.mark.parametrize("fmt", [CSV, ARROW, PARQUET])
async def test_a_range_without_events_is_a_whole_file(engine: Engine, fmt: int) -> None:
    request = pb.ExportEventsRequest()
    request.end_time.FromNanoseconds(BEGIN)
    data, count = await export(engine, format=fmt, end_time=request.end_time)
    assert count == 0
    if fmt == CSV:
        assert data.decode().count("\n") == 1
    else:
        assert table(data, fmt).num_rows == 0


async def test_a_book_is_one_row_a_changed_level(engine: Engine) -> None:
    data, count = await export(
        engine,
        kind=BOOK,
        columns=["epoch", "sequence", "snapshot", "side", "price", "quantity"],
    )
    assert data.decode().splitlines()[1:] == [
        '7,1,true,"bid",2,4',
        '7,1,true,"ask",3,5',
        '7,2,false,"bid",2,0',
        '7,3,true,"ask",3,5',
    ]
    assert count == 4


@pytest.mark.parametrize("kind", [number for number in export_rows._KINDS])  # noqa: C416
async def test_every_kind_has_files(engine: Engine, kind: int) -> None:
    for fmt in (CSV, ARROW, PARQUET):
        data, count = await export(engine, kind=kind, format=fmt)
        if fmt != CSV:
            assert table(data, fmt).num_rows == count


async def test_a_large_file_comes_in_bounded_chunks(engine: Engine) -> None:
    many = []
    for number in range(30_000):
        trade = events_pb2.Trade(exchange="venue", symbol="MANY", trade_id=str(number + 1))
        trade.price = trade.quantity = "1"
        trade.receive_time.FromNanoseconds(BEGIN + number)
        many.append(trade)
    await engine.insert(TABLES["trade"], rows(many))
    data, count = await export(engine, symbol="MANY")
    assert count == 30_000 == data.count(b"\n") - 1
    assert len(data) > 3 * 1024 * 1024


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"kind": 99}, "kind"),
        ({"format": 99}, "format"),
        ({"columns": ["price", "prize"]}, "columns[1]"),
        ({"columns": ["price", "price"]}, "columns[1]"),
        ({"end_line": True, "format": PARQUET}, "end_line"),
        ({"symbol": "BTC*"}, "symbol"),
    ],
)
async def test_a_wrong_request_is_refused_by_field(
    engine: Engine, fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await export(engine, **fields)
    assert [each.field for each in caught.value.violations] == [named]


async def test_an_unknown_instrument_is_told_before_the_file_begins(engine: Engine) -> None:
    call = Call(rest=True)
    with pytest.raises(NotFound):
        await export(engine, call, symbol="NONE")
    assert call.headers == {}


async def test_rest_is_told_the_files_name(engine: Engine) -> None:
    call = Call(rest=True)
    await export(engine, call, format=query_pb2.EXPORT_FORMAT_PARQUET)
    name = 'attachment; filename="venue_BTC-USDT_trade.parquet"'
    assert call.headers == {"content-disposition": name}
