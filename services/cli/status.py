"""`marketprism status`: what runs, how healthy it is, and the state of every venue and book."""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import psutil
from marketprism.market.v1 import market_data_service_pb2 as pb
from marketprism.market.v1 import market_data_service_pb2_grpc as pb_grpc
from marketprism.market.v1 import order_book_pb2 as book_pb
from rich.console import Console
from rich.table import Table

from services.cli.book_keeper import state_name
from services.cli.client import connect, mesh_record, reachable
from services.cli.console import wide_console
from services.cli.health import health_detail
from services.cli.mesh_state import MeshRecord
from services.cli.status_venues import Refusal, VenueRow, Venues, collect_venues
from services.shared.errors import from_rpc_error
from services.shared.registration import LocalRegistrar, Registration

__all__ = [
    "BookRow",
    "MeshStatus",
    "ServiceRow",
    "collect_status",
    "print_status",
    "status_json",
]

_HTTP_SECONDS = 3.0
_CALL_SECONDS = 5.0
_PAGE = 1000
_MOST_BOOKS_SHOWN = 40
_MOST_REFUSALS_SHOWN = 10
_HEALTHY = "healthy"
_RIGHT = frozenset(("pid", "up", "restarts", "epoch", "sequence", "streams", "refused", "frames/s"))


@dataclass(frozen=True, slots=True)
class ServiceRow:
    """One process or service, as `status` shows it."""

    name: str
    """Service or part."""

    health: str
    """`healthy`, `degraded`, `unhealthy`, or what the supervisor knows of it."""

    pid: int | None
    """Its process."""

    grpc: str
    """Address of its gRPC server; empty when it has none."""

    http: str
    """Address of its /health; empty when it has none."""

    uptime_seconds: float | None
    """How long it has been up."""

    restarts: int | None
    """How often the supervisor started it again; None without a supervisor."""

    detail: str = ""
    """What is wrong, by the dependencies that are not healthy."""

    dependencies: Mapping[str, Any] = field(default_factory=dict)
    """What its /health tells of its dependencies."""


@dataclass(frozen=True, slots=True)
class BookRow:
    """One book, as `status` shows it."""

    exchange: str
    """Venue id."""

    symbol: str
    """Canonical symbol."""

    state: str
    """`SYNCED`, `STALE`, `RESYNCING`, `SYNCING`."""

    epoch: int
    """Its epoch."""

    sequence: int
    """Last sequence known to be right."""

    detail: str
    """Why it is not in step."""


@dataclass(frozen=True, slots=True)
class MeshStatus:
    """Everything that `status` tells."""

    data_dir: str
    """Whose mesh."""

    supervisor: Mapping[str, Any] | None
    """What the supervisor tells, None when there is none."""

    services: Sequence[ServiceRow]
    """Services and other processes."""

    books: Sequence[BookRow]
    """All books."""

    problems: Sequence[str]
    """Sentences on what could not be asked."""

    venues: Venues = field(default_factory=Venues)
    """What collectors tell of the venues."""

    @property
    def healthy(self) -> bool:
        """Whether all services are healthy and all books in step."""
        return (
            bool(self.services)
            and not self.problems
            and all(row.health == _HEALTHY for row in self.services)
            and all(book.state == "SYNCED" for book in self.books)
        )

    def to_json(self) -> dict[str, Any]:
        """Give it for a program."""
        return {
            "healthy": self.healthy,
            "data_dir": self.data_dir,
            "supervisor": self.supervisor,
            "services": [asdict(row) for row in self.services],
            "venues": [asdict(row) for row in self.venues.rows],
            "leases": [asdict(row) for row in self.venues.leases],
            "refused": [asdict(refusal) for refusal in self.venues.refusals],
            "books": [asdict(book) for book in self.books],
            "problems": list(self.problems),
        }


async def collect_status(data_dir: Path, address: str | None = None) -> MeshStatus:
    """Ask everything that is registered below a data directory.

    `address` is the gateway to ask for books and venues; by default the mesh's own, or its
    marketdata and collectors.
    """
    record = mesh_record(data_dir)
    registrations = await LocalRegistrar.below(data_dir).list()
    timeout = aiohttp.ClientTimeout(total=_HTTP_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        rows = list(await asyncio.gather(*(_ask(session, each, record) for each in registrations)))
    rows += _unregistered(record, {row.name for row in rows})
    rows.sort(key=lambda row: _order(record, row.name))
    problems: list[str] = []
    books: list[BookRow] = []
    target = address or _books_address(record, registrations)
    if target is not None:
        try:
            books = await _books(target)
        except grpc.aio.AioRpcError as error:
            said = from_rpc_error(error).message.splitlines()
            problems.append(f"cannot ask {target} for the books: {said[0] if said else error}")
    venues = await collect_venues(_collectors(address, registrations))
    problems += venues.problems
    return MeshStatus(
        data_dir=str(data_dir),
        supervisor=asdict(record) if record is not None else None,
        services=tuple(rows),
        books=tuple(books),
        problems=tuple(problems),
        venues=venues,
    )


def print_status(status: MeshStatus) -> None:
    """Print it for a person."""
    console = wide_console()
    if not status.services:
        console.print(
            f"no mesh runs on {status.data_dir}: start one with `marketprism up`, or name its "
            "directory with --data-dir",
            soft_wrap=True,
        )
    else:
        console.print(_head(status), soft_wrap=True)
        console.print(_service_table(status.services))
    if status.venues.rows:
        console.print()
        console.print(_venue_table(status.venues.rows))
        _print_sharing(console, status.venues)
    if status.books:
        in_step = sum(book.state == "SYNCED" for book in status.books)
        console.print(f"\nbooks: {in_step} of {len(status.books)} in step")
        console.print(_book_table(status.books))
    elif status.services and not status.problems:
        console.print("\nbooks: none yet")
    for problem in status.problems:
        console.print(problem, style="red", soft_wrap=True)


def _print_sharing(console: Console, venues: Venues) -> None:
    """Print what collectors hold of what they share, and what venues refuse."""
    for lease in venues.leases:
        others = ", ".join(name for name in lease.members if name != lease.collector)
        console.print(
            f"{lease.collector} holds {lease.held} of {lease.total} leases, "
            + (f"with {others}" if others else "alone")
            + (f"; took over {lease.taken_over}" if lease.taken_over else "")
        )
    for refusal in venues.refusals[:_MOST_REFUSALS_SHOWN]:
        console.print(_refusal_line(refusal), style="yellow", soft_wrap=True)
    if len(venues.refusals) > _MOST_REFUSALS_SHOWN:
        left = len(venues.refusals) - _MOST_REFUSALS_SHOWN
        console.print(f"and {left} more refusals; --json has all", style="yellow")


def _refusal_line(refusal: Refusal) -> str:
    return f"{refusal.exchange} refuses {refusal.kind} of {refusal.symbol}: {refusal.why}"


# ---- services


async def _ask(
    session: aiohttp.ClientSession, registration: Registration, record: MeshRecord | None
) -> ServiceRow:
    base = reachable(f"{registration.host}:{registration.http_port}")
    health, detail, uptime, dependencies = "unhealthy", "", None, {}
    try:
        async with session.get(f"http://{base}/health") as answer:
            body = await answer.json()
        health = str(body["status"])
        uptime = float(body["uptime_seconds"])
        dependencies = dict(body["dependencies"])
        detail = health_detail(body)
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
        detail = f"/health does not answer: {type(error).__name__}"
    return ServiceRow(
        name=registration.service,
        health=health,
        pid=registration.pid,
        grpc=reachable(f"{registration.host}:{registration.grpc_port}"),
        http=base,
        uptime_seconds=uptime,
        restarts=_restarts(record, registration.service),
        detail=detail,
        dependencies=dependencies,
    )


def _unregistered(record: MeshRecord | None, known: set[str]) -> list[ServiceRow]:
    """Give a row for each process of the supervisor that has not registered (any more)."""
    rows = []
    for child in record.children if record is not None else ():
        missing = [name for name in child.services if name not in known]
        for name in missing or ([] if child.services else [child.name]):
            running = child.state == "running" and not child.services
            health = _HEALTHY if running else child.state
            if child.state == "running" and child.services:
                health = "unhealthy"
            rows.append(
                ServiceRow(
                    name=name,
                    health=health,
                    pid=child.pid,
                    grpc="",
                    http=_first_address(record, name),
                    uptime_seconds=_process_age(child.pid),
                    restarts=child.restarts,
                    detail="" if running else f"not registered, its process is {child.state}",
                )
            )
    return rows


def _first_address(record: MeshRecord | None, name: str) -> str:
    """Give where a process listens that is no service; simulated venues have several places."""
    for purpose, address in record.addresses.items() if record is not None else ():
        if purpose.partition(".")[0] == name:
            return reachable(address)
    return ""


def _process_age(pid: int | None) -> float | None:
    try:
        return None if pid is None else round(time.time() - psutil.Process(pid).create_time(), 1)
    except psutil.Error:
        return None


def _restarts(record: MeshRecord | None, service: str) -> int | None:
    for child in record.children if record is not None else ():
        if service in child.services:
            return child.restarts
    return None


def _order(record: MeshRecord | None, name: str) -> tuple[int, str]:
    names = [
        each
        for child in (record.children if record is not None else ())
        for each in (child.services or (child.name,))
    ]
    return (names.index(name) if name in names else len(names), name)


# ---- books


def _books_address(record: MeshRecord | None, registrations: Sequence[Registration]) -> str | None:
    if record is not None and "all" in record.addresses:
        return reachable(record.addresses["all"])
    for registration in registrations:
        if registration.service == "marketdata":
            return reachable(f"{registration.host}:{registration.grpc_port}")
    return None


def _collectors(address: str | None, registrations: Sequence[Registration]) -> list[str]:
    """Give whom to ask for venues: each collector, for a gateway answers for one of them."""
    found = [
        reachable(f"{each.host}:{each.grpc_port}")
        for each in registrations
        if each.service == "collector"
    ]
    return found or ([address] if address is not None else [])


async def _books(address: str) -> list[BookRow]:
    rows: list[BookRow] = []
    token = ""
    async with connect(address) as channel:
        stub = pb_grpc.MarketDataServiceStub(channel)
        while True:
            answer = await stub.ListOrderBookStatuses(
                pb.ListOrderBookStatusesRequest(page_size=_PAGE, page_token=token),
                timeout=_CALL_SECONDS,
            )
            rows += [_book_row(status) for status in answer.statuses]
            token = answer.next_page_token
            if not token:
                return rows


def _book_row(status: book_pb.OrderBookStatus) -> BookRow:
    return BookRow(
        exchange=status.exchange,
        symbol=status.symbol,
        state=state_name(status.state),
        epoch=status.epoch,
        sequence=status.sequence,
        detail="" if status.state == book_pb.ORDER_BOOK_STATE_SYNCED else status.detail,
    )


# ---- tables


def _head(status: MeshStatus) -> str:
    supervisor = status.supervisor
    if supervisor is None:
        return f"services on {status.data_dir}, without a supervisor"
    began = datetime.fromisoformat(supervisor["started"])
    seconds = (datetime.now(UTC) - began).total_seconds()
    return (
        f"mesh on {status.data_dir}: {supervisor['source']}, {supervisor['mode']} mode, "
        f"up {_duration(seconds)}, supervisor pid {supervisor['pid']}"
    )


def _service_table(rows: Sequence[ServiceRow]) -> Table:
    table = _table("service", "health", "pid", "gRPC", "http", "up", "restarts", "detail")
    for row in rows:
        style = {_HEALTHY: "green", "degraded": "yellow"}.get(row.health, "bold red")
        table.add_row(
            row.name,
            f"[{style}]{row.health}[/]",
            "" if row.pid is None else str(row.pid),
            row.grpc,
            row.http,
            "" if row.uptime_seconds is None else _duration(row.uptime_seconds),
            "" if row.restarts is None else str(row.restarts),
            row.detail,
        )
    return table


def _venue_table(rows: Sequence[VenueRow]) -> Table:
    shared = len({row.collector for row in rows}) > 1
    columns = ["venue", "books in step", "connections", "streams", "refused", "frames/s"]
    table = _table(*(["collector"] if shared else []), *columns, "REST weight", "kinds")
    for row in rows:
        # A venue without instruments has not read its list yet, or others collect all of it.
        in_step = row.in_step == row.instruments and row.instruments
        up = row.connected == row.connections
        waiting = f", {row.requests_waiting} waiting" if row.requests_waiting else ""
        cells = [
            row.exchange,
            _good(f"{row.in_step} of {row.instruments}", bool(in_step)),
            _good(f"{row.connected} of {row.connections}", up),
            str(row.subscriptions),
            _good(str(row.refused), not row.refused),
            f"{row.frames_per_second:g}",
            f"{row.weight_used}/{row.weight_limit} in {row.weight_seconds:g} s{waiting}",
            ", ".join(kind.replace("_", " ") for kind in row.kinds),
        ]
        table.add_row(*([row.collector] if shared else []), *cells)
    return table


def _good(text: str, is_good: bool) -> str:
    return text if is_good else f"[bold yellow]{text}[/]"


def _book_table(books: Sequence[BookRow]) -> Table:
    table = _table("exchange", "symbol", "state", "epoch", "sequence", "detail")
    # Those out of step first: they are what one looks for.
    ordered = sorted(books, key=lambda book: book.state == "SYNCED")
    for book in ordered[:_MOST_BOOKS_SHOWN]:
        style = "green" if book.state == "SYNCED" else "bold red"
        table.add_row(
            book.exchange,
            book.symbol,
            f"[{style}]{book.state}[/]",
            str(book.epoch),
            str(book.sequence),
            book.detail,
        )
    if len(ordered) > _MOST_BOOKS_SHOWN:
        table.add_row("...", f"and {len(ordered) - _MOST_BOOKS_SHOWN} more", "", "", "", "")
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(
            column,
            justify="right" if column in _RIGHT else "left",
            no_wrap=column not in ("detail", "kinds"),
        )
    return table


def _duration(seconds: float) -> str:
    whole = int(seconds)
    days, rest = divmod(whole, 86_400)
    hours, rest = divmod(rest, 3600)
    minutes, left = divmod(rest, 60)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"


def status_json(status: MeshStatus) -> str:
    """Give it as one JSON document."""
    return json.dumps(status.to_json(), indent=2, default=str)
