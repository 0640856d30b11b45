"""`marketprism replay`: stored history as a live subscriber got it, with progress."""

import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any

import grpc
from google.protobuf.json_format import MessageToJson
from marketprism.client.past import Replay, replay_of
from marketprism.client.session import ClientError
from marketprism.collector.v1.integrity_event_pb2 import IntegrityEvent, IntegrityKind
from marketprism.history.v1.history_service_pb2_grpc import HistoryServiceStub
from marketprism.market.v1.market_event_pb2 import MarketEvent

from services.cli.client import connect
from services.cli.watch import event_json, event_line
from services.shared.errors import InvalidArgument, Unavailable

__all__ = ["moment", "print_replay", "speed_of"]

_SHOWN_EVERY = 0.5
_NANOS = 1_000_000_000


def moment(text: str) -> datetime:
    """Read an instant such as 2026-11-24T16:00:00Z; without a zone it is UTC.

    Raises InvalidArgument.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidArgument(
            f"expected a time such as 2026-11-24T16:00:00Z, got {text!r}"
        ) from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def speed_of(text: str, *, unpaced: bool) -> Decimal | None:
    """Read a speed such as 10; None for a replay without pace. Raises InvalidArgument."""
    if unpaced:
        return None
    try:
        found = Decimal(text)
    except InvalidOperation:
        found = Decimal("NaN")
    if not found.is_finite():
        raise InvalidArgument(f"--speed: expected a number such as 10, got {text!r}")
    return found


async def print_replay(
    address: str,
    instruments: Sequence[str],
    kinds: Sequence[str],
    start: datetime,
    end: datetime | None,
    *,
    speed: Decimal | None,
    longest_pause: float | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Print a replay, an event a line, and progress on the standard error; gives the events.

    Raises InvalidArgument for what is refused before anything is asked, Unavailable when the replay
    is not complete, and AioRpcError.
    """
    until = end or datetime.now(UTC)
    try:
        replay = replay_of(
            instruments, kinds, start, until, speed=speed, longest_pause=longest_pause,
            on_gap=lambda entry: _print_gap(entry, as_json=as_json),
        )  # fmt: skip
    except ValueError as error:
        raise InvalidArgument(str(error)) from error
    meter = _Meter(replay, quiet=quiet)
    async with connect(address) as channel:
        stub: Any = HistoryServiceStub(channel)
        call = stub.ReplayMarketData(replay.request)
        try:
            while (response := await call.read()) is not grpc.aio.EOF:
                for event in replay.take(response):
                    if event.WhichOneof("event") != "stream_status":
                        meter.events += 1
                        _print_event(event, as_json=as_json)
                meter.show()
            if await call.code() != grpc.StatusCode.OK:
                raise grpc.aio.AioRpcError(
                    await call.code(),
                    await call.initial_metadata(),
                    await call.trailing_metadata(),
                    details=await call.details(),
                )
            replay.finish()
        except ClientError as error:
            raise Unavailable(str(error), reason="REPLAY_CUT") from error
        finally:
            call.cancel()
            meter.end()
    return meter.events


def _print_event(event: MarketEvent, *, as_json: bool) -> None:
    sys.stdout.write((event_json(event) if as_json else event_line(event)) + "\n")


def _print_gap(entry: IntegrityEvent, *, as_json: bool) -> None:
    if as_json:
        text = MessageToJson(entry, preserving_proto_field_name=True, indent=None)
        sys.stdout.write(f'{{"gap": {text}}}\n')
        return
    kind = IntegrityKind.Name(entry.kind).removeprefix("INTEGRITY_KIND_")
    when = entry.receive_time.ToJsonString()
    sys.stdout.write(
        f"{when:30} {'gap':20} {entry.exchange}/{entry.symbol} {kind} {entry.detail}\n"
    )


class _Meter:
    """Progress on the standard error: one line that is written over, at a terminal."""

    def __init__(self, replay: Replay, *, quiet: bool) -> None:
        self.events = 0
        self._replay = replay
        self._quiet = quiet
        self._over = sys.stderr.isatty()
        self._began = self._last = time.monotonic()
        self._events = 0

    def show(self) -> None:
        now = time.monotonic()
        if self._quiet or not self._over or now - self._last < _SHOWN_EVERY:
            return
        rate = (self.events - self._events) / (now - self._last)
        self._last, self._events = now, self.events
        sys.stdout.flush()
        sys.stderr.write(f"\r\x1b[K{self._told(rate)}")
        sys.stderr.flush()

    def end(self) -> None:
        sys.stdout.flush()
        if self._quiet:
            return
        rate = self.events / max(1e-9, time.monotonic() - self._began)
        begin = "\r\x1b[K" if self._over else ""
        sys.stderr.write(f"{begin}{self._told(rate)}\n")

    def _told(self, rate: float) -> str:
        request = self._replay.request
        start, end = request.start_time.ToNanoseconds(), request.end_time.ToNanoseconds()
        position = max(start, self._replay.position)
        share = 100 * (position - start) // max(1, end - start)
        at = datetime.fromtimestamp(position // _NANOS, UTC)
        return (
            f"{at:%Y-%m-%d %H:%M:%S} UTC  {share:3d} %  {self.events} events  {rate:,.0f} events/s"
        )
