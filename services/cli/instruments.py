"""`marketprism instruments`: what is collected, by the names that other commands take."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime

from google.protobuf.json_format import MessageToDict
from marketprism.market.v1 import instrument_pb2 as instrument_pb
from marketprism.market.v1 import market_data_service_pb2 as pb
from marketprism.market.v1 import market_data_service_pb2_grpc as pb_grpc
from rich.table import Table

from services.cli.book_keeper import enum_name
from services.cli.client import connect
from services.cli.console import wide_console

__all__ = ["list_instruments", "print_instruments"]

_CALL_SECONDS = 10.0
_PAGE = 1000
_COLUMNS = (
    "exchange",
    "symbol",
    "venue's name",
    "kind",
    "status",
    "price in",
    "quantity in",
    "tick",
    "lot",
    "contract",
    "expires",
)
_RIGHT = frozenset(("tick", "lot", "contract"))


async def list_instruments(
    address: str, exchange: str = "", seconds: float = _CALL_SECONDS
) -> list[instrument_pb.Instrument]:
    """Ask a gateway for the instruments of a venue, or of all; raises AioRpcError."""
    found: list[instrument_pb.Instrument] = []
    token = ""
    async with connect(address) as channel:
        stub = pb_grpc.MarketDataServiceStub(channel)
        while True:
            answer = await stub.ListInstruments(
                pb.ListInstrumentsRequest(exchange=exchange, page_size=_PAGE, page_token=token),
                timeout=seconds,
            )
            found += answer.instruments
            token = answer.next_page_token
            if not token:
                return found


async def print_instruments(address: str, exchange: str, *, as_json: bool) -> int:
    """Print them, a line each; gives how many there are. Raises AioRpcError."""
    found = await list_instruments(address, exchange)
    if as_json:
        for each in found:
            told = MessageToDict(
                each, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
            print(json.dumps(told))
    elif found:
        wide_console().print(_table(found))
    else:
        print(f"no instruments{f' of {exchange}' if exchange else ''} are collected")
    return len(found)


def _table(found: Sequence[instrument_pb.Instrument]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in _COLUMNS:
        table.add_column(column, justify="right" if column in _RIGHT else "left", no_wrap=True)
    for each in found:
        counted = {
            instrument_pb.QUANTITY_UNIT_BASE: each.base,
            instrument_pb.QUANTITY_UNIT_QUOTE: each.quote,
        }
        table.add_row(
            each.exchange,
            each.symbol,
            each.native_symbol,
            _word(instrument_pb.InstrumentKind, each.kind, "INSTRUMENT_KIND_"),
            _word(instrument_pb.InstrumentStatus, each.status, "INSTRUMENT_STATUS_"),
            each.quote,
            counted.get(each.quantity_unit, ""),
            each.tick_size,
            each.lot_size,
            each.contract_size,
            _day(each),
        )
    return table


def _word(kind: object, value: int, prefix: str) -> str:
    return enum_name(kind, value, prefix).lower().replace("_", " ")


def _day(instrument: instrument_pb.Instrument) -> str:
    if not instrument.HasField("expiry_time"):
        return ""
    return f"{datetime.fromtimestamp(instrument.expiry_time.seconds, UTC):%Y-%m-%d %H:%M}"
