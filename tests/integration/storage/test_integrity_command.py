"""`marketprism integrity` tells of each stored day whether it is whole, and why if it is not."""

import contextlib
import json
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from marketprism.collector.v1 import integrity_event_pb2 as ledger

from services.cli.integrity import days_of, print_integrity
from services.shared.errors import InvalidArgument
from services.shared.parts import PartsServicer
from services.storage.coverage import CoverageLists
from services.storage.integrity import Integrity
from services.storage.known import KnownInstruments
from services.storage.service import SERVICE
from tests.integration.storage.store_tools import fill, open_store
from tests.integration.storage.test_integrity import (
    BEGIN,
    BOOK,
    DAY,
    HOUR,
    SECOND,
    Writer,
    hourly,
)

TODAY = datetime.fromtimestamp(BEGIN // SECOND, UTC).date()


@contextlib.asynccontextmanager
async def store(tmp_path: Path, **events: Any) -> AsyncIterator[str]:
    """Serve what a store holds; gives its address."""
    async with open_store(tmp_path) as engine:
        await fill(engine, events)
        known = KnownInstruments(engine)
        parts = [
            Integrity(engine, known, now=lambda: BEGIN + 2 * DAY - HOUR),
            CoverageLists(engine, known),
        ]
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        PartsServicer(SERVICE, parts).add_to(server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.stop(None)


async def test_a_line_a_day_and_kind_with_the_causes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write = Writer()
    write("GAP", DAY + HOUR, ids=(5, 14), cause=ledger.INTEGRITY_CAUSE_VENUE_SEQUENCE)
    write("RESYNC_BEGUN", DAY + HOUR, event_kind=BOOK, cause=ledger.INTEGRITY_CAUSE_NETWORK)
    events = {**hourly(2), "integrity": write.entries}
    tomorrow = TODAY + timedelta(days=1)
    async with store(tmp_path, **events) as address:
        capsys.readouterr()
        whole = await print_integrity(address, "", "", TODAY, tomorrow, as_json=False)
        shown = capsys.readouterr().out
        assert not whole
        lines = [line.split() for line in shown.splitlines()]
        assert lines[0][:5] == ["exchange", "symbol", "day", "kind", "whole"]
        assert len(lines) == 5
        by_kind = {(line[2], line[3]): line for line in lines[1:]}
        trades = by_kind[str(tomorrow), "trade"]
        assert trades[4:10] == ["no", "100%", "24", "1", "10", "0"]
        assert " ".join(trades[12:]) == "venue sequence 1"
        assert by_kind[str(TODAY), "trade"][4] == "yes"
        assert by_kind[str(tomorrow), "order"][-2:] == ["network", "1"]

        assert await print_integrity(address, "binance", "BTC-USDT", TODAY, TODAY, as_json=True)
        told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [(each["kind"], each["whole"], each["causes"]) for each in told] == [
            ("EVENT_KIND_TRADE", True, {}),
            ("EVENT_KIND_ORDER_BOOK", True, {}),
        ]
        before = TODAY - timedelta(days=1)
        assert not await print_integrity(address, "", "", before, before, as_json=False)
        assert "nothing is stored" in capsys.readouterr().out
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await print_integrity(address, "binance", "NO-SUCH", TODAY, TODAY, as_json=False)
        assert refused.value.code() == grpc.StatusCode.UNKNOWN


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("", (TODAY, TODAY)),
        ("today", (TODAY, TODAY)),
        ("2026-01-02", (date(2026, 1, 2), date(2026, 1, 2))),
        ("2026-01-02..2026-01-05", (date(2026, 1, 2), date(2026, 1, 5))),
        ("2026-01-02..today", (date(2026, 1, 2), TODAY)),
    ],
)
def test_days_are_named_in_words(text: str, days: tuple[date, date]) -> None:
    assert days_of(text, TODAY) == days


@pytest.mark.parametrize(
    "text", ["yesterday", "2026-13-01", "2026-01-05..2026-01-02", "1970-01-01..2026-01-01"]
)
def test_other_words_are_refused_with_what_was_expected(text: str) -> None:
    with pytest.raises(InvalidArgument, match="expected a UTC day"):
        days_of(text, TODAY)
