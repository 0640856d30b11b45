"""How rows are framed, and how a refused batch is taken apart."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marketprism.market.v1 import events_pb2

from services.storage.errors import StoreRefused, StoreUnavailable
from services.storage.ingest_batch import Rows, frame_rows, store_good_rows
from services.storage.tables import frame

CREATED = 1_795_529_124_000_000_000


def rows_of(payloads: list[bytes]) -> Rows:
    return Rows(payloads, list(range(1, len(payloads) + 1)), CREATED)


@given(
    st.lists(
        st.tuples(st.binary(max_size=300), st.integers(min_value=1, max_value=2**63)), max_size=20
    ),
    st.integers(min_value=1, max_value=2**63),
)
def test_a_block_is_the_frames_of_its_rows(rows: list[tuple[bytes, int]], created: int) -> None:
    block = frame_rows(Rows([p for p, _ in rows], [s for _, s in rows], created))
    assert block == b"".join(frame(payload, sequence, created) for payload, sequence in rows)


@pytest.mark.parametrize("bits", [7, 14, 21, 28, 35])
def test_sequences_at_the_edges_of_a_varint_are_framed_exactly(bits: int) -> None:
    for sequence in (2**bits - 1, 2**bits, 2**bits + 1):
        assert frame_rows(Rows([b"x"], [sequence], CREATED)) == frame(b"x", sequence, CREATED)


class Table:
    """Takes blocks unless they hold a bad payload, as the database does."""

    def __init__(self, bad: set[bytes]) -> None:
        self.bad = bad
        self.inserts = 0
        self.stored: list[int] = []

    async def insert(self, block: bytes) -> None:
        self.inserts += 1
        if any(payload in block for payload in self.bad):
            raise StoreRefused("the database refuses", 395)

    def store(self, rows: Rows) -> asyncio.Future[object]:
        return asyncio.ensure_future(
            store_good_rows(
                rows,
                self.insert,
                events_pb2.Trade,
                lambda part: self.stored.extend(part.sequences),
            )
        )


def message(number: int, price: str = "1") -> bytes:
    return events_pb2.Trade(exchange="x", trade_id=f"<{number}>", price=price).SerializeToString()


@given(st.integers(1, 60), st.data())
async def test_exactly_the_bad_rows_are_left_out(count: int, data: st.DataObject) -> None:
    bad = data.draw(st.sets(st.integers(1, count)))
    payloads = [message(n, "BAD" if n in bad else "1") for n in range(1, count + 1)]
    table = Table({b"BAD"})
    refused = await table.store(rows_of(payloads))
    assert [each.sequence for each in refused] == sorted(bad)  # type: ignore[attr-defined]
    assert sorted(table.stored) == [n for n in range(1, count + 1) if n not in bad]


async def test_one_bad_row_costs_few_inserts() -> None:
    payloads = [message(n, "BAD" if n == 700 else "1") for n in range(1, 1025)]
    table = Table({b"BAD"})
    assert len(await table.store(rows_of(payloads))) == 1  # type: ignore[arg-type]
    assert table.inserts <= 21


async def test_what_is_no_message_is_found_without_asking_for_each() -> None:
    payloads = [b"\xff junk" if n % 3 == 0 else message(n) for n in range(300)]
    table = Table({b"\xff junk"})
    refused = await table.store(rows_of(payloads))
    assert len(refused) == 100  # type: ignore[arg-type]
    assert table.inserts == 2


async def test_an_outage_in_the_middle_tells_what_is_stored_already() -> None:
    class Failing(Table):
        async def insert(self, block: bytes) -> None:
            if self.inserts == 3:
                raise StoreUnavailable("away")
            await super().insert(block)

    payloads = [message(n, "BAD" if n == 8 else "1") for n in range(1, 9)]
    table = Failing({b"BAD"})
    with pytest.raises(StoreUnavailable):
        await table.store(rows_of(payloads))
    assert table.stored == [1, 2, 3, 4]
