"""Writes rows as files, piece by piece: CSV as the database spells it, Arrow and Parquet.

Arrow and Parquet are written here from pieces of Arrow, because the database would hold a whole
answer to write the one or the other in one go. A decimal is a decimal there (decimal128(38, 18), or
decimal256 for what venues compute), a time is timestamp[ns, UTC], and what was not told is null.
"""

import io
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from marketprism.history.v1 import query_pb2

__all__ = ["SUFFIXES", "ArrowFile", "CsvFile", "ExportFile", "ParquetFile", "export_file"]

SUFFIXES: Final[Mapping[int, str]] = MappingProxyType({
    query_pb2.EXPORT_FORMAT_CSV: "csv",
    query_pb2.EXPORT_FORMAT_ARROW: "arrows",
    query_pb2.EXPORT_FORMAT_PARQUET: "parquet",
})  # fmt: skip
"""How the name of a file of each format ends."""

_ARROW_SETTINGS: Final = MappingProxyType({
    "output_format_arrow_string_as_string": 1,
    "output_format_arrow_low_cardinality_as_dictionary": 0,
    "output_format_arrow_compression_method": "none",
})  # fmt: skip


class ExportFile(Protocol):
    """A file that is written by pieces. Its methods take time: call them on a thread."""

    content_type: str
    """Media type."""

    fmt: str
    """Format in which the database gives a piece."""

    settings: Mapping[str, Any]
    """Settings of the database for that."""

    rows: int
    """Rows written so far."""

    def begin(self, empty: bytes, columns: list[str]) -> bytes:
        """Give how the file begins; `empty` is a piece without rows."""
        ...

    def add(self, piece: bytes) -> bytes:
        """Give the file's next bytes."""
        ...

    def end(self) -> bytes:
        """Give how the file ends."""
        ...


class CsvFile:
    """CSV with a header line; text and times in quotes, times as in ISO 8601, null empty."""

    content_type = "text/csv"
    fmt = "CSV"
    settings: Mapping[str, Any] = MappingProxyType(
        {"date_time_output_format": "iso", "format_csv_null_representation": ""}
    )

    def __init__(self, *, end_line: bool) -> None:
        self.rows = 0
        self._end_line = end_line

    def begin(self, empty: bytes, columns: list[str]) -> bytes:
        """Give the header line."""
        return (",".join(columns) + "\n").encode()

    def add(self, piece: bytes) -> bytes:
        """Give the piece as it is, counted."""
        # A line end within quotes ends no row, and a quote within a text is written twice.
        self.rows += sum(part.count(b"\n") for part in piece.split(b'"')[::2])
        return piece

    def end(self) -> bytes:
        """Give the line that tells a whole file from a cut one, when it was asked for."""
        return f"# complete, {self.rows} rows\n".encode() if self._end_line else b""


class ArrowFile:
    """An Arrow IPC stream; one that was cut has no end-of-stream mark."""

    content_type = "application/vnd.apache.arrow.stream"
    fmt = "ArrowStream"
    settings: Mapping[str, Any] = _ARROW_SETTINGS

    def __init__(self) -> None:
        self.rows = 0
        self._sink = _Sink()
        self._schema: pa.Schema | None = None
        self._writer: Any = None

    def begin(self, empty: bytes, columns: list[str]) -> bytes:
        """Give the schema."""
        self._schema = _read(empty).schema
        self._writer = self._open(self._sink, self._schema)
        return self._sink.take()

    def add(self, piece: bytes) -> bytes:
        """Give the piece as record batches, or as a row group."""
        table = _read(piece).cast(self._schema)
        if table.num_rows:
            self._writer.write_table(table)
            self.rows += table.num_rows
        return self._sink.take()

    def end(self) -> bytes:
        """Give the end mark, or the footer."""
        self._writer.close()
        return self._sink.take()

    def _open(self, sink: io.RawIOBase, schema: pa.Schema) -> Any:
        return pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression="zstd"))


class ParquetFile(ArrowFile):
    """Parquet with zstd, a row group a piece; one that was cut has no footer."""

    content_type = "application/vnd.apache.parquet"

    def _open(self, sink: io.RawIOBase, schema: pa.Schema) -> Any:
        return pq.ParquetWriter(sink, schema, compression="zstd", write_statistics=True)


def export_file(fmt: int, *, end_line: bool = False) -> ExportFile:
    """Make a file of an `ExportFormat`, which was checked."""
    if fmt == query_pb2.EXPORT_FORMAT_ARROW:
        return ArrowFile()
    if fmt == query_pb2.EXPORT_FORMAT_PARQUET:
        return ParquetFile()
    return CsvFile(end_line=end_line)


class _Sink(io.RawIOBase):
    """Takes what a writer writes, until it is taken."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []
        self._place = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def write(self, data: Any) -> int:
        part = bytes(data)
        self._parts.append(part)
        self._place += len(part)
        return len(part)

    def take(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


def _read(piece: bytes) -> Any:
    with pa.ipc.open_stream(piece) as reader:
        return reader.read_all()
