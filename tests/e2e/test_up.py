"""`marketprism up` with the real processes: it comes up, answers, heals, and leaves nothing."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import grpc
import psutil
import pytest
from marketprism.market.v1 import market_data_service_pb2 as pb
from marketprism.market.v1 import market_data_service_pb2_grpc as pb_grpc
from marketprism.market.v1 import order_book_pb2 as book_pb

_R = TypeVar("_R")

START_SECONDS = 60.0
STOP_SECONDS = 10.0
SYMBOL = "BTC-USDT"
# An instrument of each venue of the demo, all of them with dashes in REST paths.
VENUES = {
    "binance": SYMBOL,
    "binance_usdm": "BTC-USDT-PERP",
    "binance_coinm": "BTC-USD-PERP",
    "okx": "BTC-USDT-PERP",
    "deribit": "BTC-USD-PERP",
}
FIRST_BOOKS_SECONDS = 45.0
"""From the start of the command to every book in step; two slow, busy cores included."""
MARK = "MARKETPRISM_TEST_MARK"

pytestmark = pytest.mark.timeout(180)


def eventually(what: str, probe: Callable[[], _R | None], seconds: float = START_SECONDS) -> _R:
    """Give what `probe` gives once it is true; fail with `what` was awaited after the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        found = probe()
        if found:
            return found
        assert time.monotonic() < deadline, f"expected within {seconds:g} s: {what}"
        time.sleep(0.05)


class Mesh:
    """One `marketprism up` and everything that it started."""

    def __init__(self, tmp_path: Path, *options: str, data_dir: Path | None = None) -> None:
        self.mark = uuid.uuid4().hex
        self.data_dir = data_dir or tmp_path / "var"
        self.out = tmp_path / f"{self.mark}.out"
        self.err = tmp_path / f"{self.mark}.err"
        self.tmp_path = tmp_path
        command = [
            sys.executable, "-m", "services.cli", "up", "--data-dir", str(self.data_dir), *options
        ]  # fmt: skip
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, MARK: self.mark},
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.out.read_text()

    def record(self) -> dict[str, Any]:
        try:
            record: dict[str, Any] = json.loads((self.data_dir / "supervisor.json").read_text())
        except (OSError, ValueError):
            return {}
        return record

    def child(self, name: str) -> dict[str, Any]:
        return next((c for c in self.record().get("children", ()) if c["name"] == name), {})

    def address(self, name: str) -> str:
        return str(self.record()["addresses"][name])

    def simulated(self) -> list[str]:
        """The venues that are simulated."""
        names = [name.split(".") for name in self.record()["addresses"]]
        return [name[1] for name in names if name[0] == "simulator"]

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, f"it ended:\n{self.said}{self.err.read_text()}"
            return bool(self.record().get("ready")) and " in step after " in self.said

        try:
            eventually("the mesh is ready and its books in step", ready)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.said}{self.err.read_text()}") from None

    def run(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "services.cli", *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def processes(self) -> list[psutil.Process]:
        """Everything that lives and descends from this mesh, however it was reparented."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE and (
                    process.environ().get(MARK) == self.mark
                ):
                    found.append(process)
        return found

    def named(self, name: str) -> psutil.Process | None:
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if process.name() == name:
                    return process
        return None

    def stop(self) -> float:
        """Send Ctrl-C's signal; give the seconds until the end."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        self.process.wait(STOP_SECONDS + 5)
        return time.monotonic() - began

    def destroy(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()


@contextlib.contextmanager
def mesh_of(tmp_path: Path, *options: str, data_dir: Path | None = None) -> Iterator[Mesh]:
    mesh = Mesh(tmp_path, *options, data_dir=data_dir)
    try:
        yield mesh
    finally:
        mesh.destroy()


def get_json(url: str) -> Any:
    try:
        with urlopen(url, timeout=5) as answer:
            return json.loads(answer.read())
    except (HTTPError, URLError, OSError, ValueError):
        return None


def book_of(address: str, exchange: str, symbol: str) -> pb.GetOrderBookResponse | None:
    with grpc.insecure_channel(address) as channel:
        try:
            answer: pb.GetOrderBookResponse = pb_grpc.MarketDataServiceStub(channel).GetOrderBook(
                pb.GetOrderBookRequest(exchange=exchange, symbol=symbol, depth=5), timeout=5
            )
        except grpc.RpcError:
            return None
    return answer


def synced_book(
    address: str, exchange: str = "binance", symbol: str = SYMBOL
) -> pb.GetOrderBookResponse | None:
    answer = book_of(address, exchange, symbol)
    if answer is None or answer.status.state != book_pb.ORDER_BOOK_STATE_SYNCED:
        return None
    return answer


def no_process_left(mesh: Mesh) -> None:
    eventually("no process is left", lambda: not mesh.processes(), 5.0)


@pytest.mark.parametrize("mode", ["microservice", "full"])
def test_a_mesh_comes_up_answers_and_leaves_nothing_behind(tmp_path: Path, mode: str) -> None:
    with mesh_of(tmp_path, "--simulated", "--free-ports", "--mode", mode) as mesh:
        eventually("progress within the first seconds", lambda: "starting" in mesh.said, 10.0)
        mesh.wait_ready()
        address = mesh.address("all")
        told = re.search(r"(\d+) books are in step after ([\d.]+) s", mesh.said)
        assert told is not None
        assert int(told[1]) >= len(VENUES)
        assert float(told[2]) < FIRST_BOOKS_SECONDS, mesh.said

        for exchange, symbol in VENUES.items():
            answer = synced_book(address, exchange, symbol)
            assert answer is not None, f"expected {exchange} {symbol} in step over gRPC"
            assert len(answer.order_book.bids) == 5
            rest = get_json(f"http://{address}/api/v1/orderbook/{exchange}/{symbol}?depth=5")
            assert rest["success"] is True
            assert rest["data"]["status"]["state"] == "ORDER_BOOK_STATE_SYNCED"
            assert len(rest["data"]["order_book"]["asks"]) == 5
            url = f"http://{address}/api/v1/trades/{exchange}/{symbol}?page_size=1"
            (trade,) = eventually(
                f"a trade of {exchange} {symbol}",
                lambda url=url: (get_json(url) or {"data": {}})["data"].get("trades"),  # type: ignore[misc]
            )
            assert (trade["exchange"], trade["symbol"]) == (exchange, symbol)
        eventually(
            "the gateway sees every service",
            lambda: get_json(f"http://{address}/health")["status"] == "healthy",
        )

        status = mesh.run("status", "--json", "--data-dir", str(mesh.data_dir))
        assert status.returncode == 0, status.stdout
        told = json.loads(status.stdout)
        assert told["healthy"] is True
        assert {row["name"] for row in told["services"]} == {
            "simulator", "broker", "collector", "marketdata", "storage", "gateway"
        }  # fmt: skip
        assert {book["state"] for book in told["books"]} == {"SYNCED"}
        assert {book["exchange"] for book in told["books"]} == set(VENUES)
        for venue in told["venues"]:
            assert venue["in_step"] == venue["instruments"] > 0
            assert venue["connected"] == venue["connections"] > 0
            assert (venue["refused"], venue["collector"]) == (0, told["venues"][0]["collector"])
            assert {"order_book", "trade", "ticker"} <= set(venue["kinds"])
            assert venue["weight_limit"] > 0
        assert {venue["exchange"] for venue in told["venues"]} == set(VENUES)
        assert told["leases"] == []

        once = mesh.run("book", "binance", SYMBOL, "--once", "--data-dir", str(mesh.data_dir))
        assert once.returncode == 0, once.stderr
        assert f"binance {SYMBOL}  SYNCED" in once.stdout
        other = mesh.run(
            "book", "binance_coinm", "BTC-USD-PERP", "--once", "--data-dir", str(mesh.data_dir)
        )
        assert "quantity USD" in other.stdout, "expected the unit of inverse contracts"
        trades = mesh.run("trades", "binance", SYMBOL, "--json", "-n", "2", "--address", address)
        assert trades.returncode == 0, trades.stderr
        assert [json.loads(line)["symbol"] for line in trades.stdout.splitlines()] == [SYMBOL] * 2
        listed = mesh.run("instruments", "okx", "--json", "--address", address)
        assert listed.returncode == 0, listed.stderr
        names = {each["symbol"]: each for each in map(json.loads, listed.stdout.splitlines())}
        assert names["BTC-USD-PERP"]["native_symbol"] == "BTC-USD-SWAP"
        assert names["BTC-USD-PERP"]["quantity_unit"] == "QUANTITY_UNIT_QUOTE"
        missing = mesh.run("book", "binance", "NO-SUCH", "--once", "--address", address)
        assert missing.returncode == 1
        assert "INSTRUMENT_NOT_FOUND" in missing.stderr
        assert "Traceback" not in missing.stderr

        assert mesh.stop() < STOP_SECONDS
        assert mesh.process.returncode == 0
        assert "stopping" in mesh.said
        no_process_left(mesh)
        assert not (mesh.data_dir / "supervisor.json").exists()
        assert (mesh.data_dir / "logs").is_dir()


def test_what_is_killed_comes_back_and_the_book_is_in_step_again(tmp_path: Path) -> None:
    with mesh_of(tmp_path, "--simulated", "--free-ports") as mesh:
        mesh.wait_ready()
        address = mesh.address("all")
        for name in ("collector", "marketdata", "storage", "broker", "gateway"):
            before = mesh.child(name)
            os.kill(before["pid"], signal.SIGKILL)
            eventually(
                f"{name} runs again",
                lambda name=name, before=before: (  # type: ignore[misc]
                    mesh.child(name)["state"] == "running"
                    and mesh.child(name)["restarts"] > before["restarts"]
                    and mesh.child(name)["pid"] != before["pid"]
                ),
            )
            eventually(f"a book in step after {name} died", lambda: synced_book(address))
        for engine in ("nats-server", "envoy"):
            process = eventually(f"{engine} runs", lambda engine=engine: mesh.named(engine))  # type: ignore[misc]
            process.kill()
            eventually(
                f"another {engine} runs",
                lambda engine=engine, process=process: (  # type: ignore[misc]
                    (found := mesh.named(engine)) is not None and found.pid != process.pid
                ),
            )
            eventually(f"a book in step after {engine} died", lambda: synced_book(address))
        died = [line for line in mesh.err.read_text().splitlines() if "died" in line]
        assert len(died) >= 6, died
        assert mesh.stop() < STOP_SECONDS
        no_process_left(mesh)


def test_nothing_survives_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    with mesh_of(tmp_path, "--simulated", "--free-ports") as mesh:
        mesh.wait_ready()
        assert len(mesh.processes()) >= 8
        mesh.process.kill()
        mesh.process.wait(10)
        no_process_left(mesh)
        with mesh_of(tmp_path, "--simulated", "--free-ports") as again:
            again.wait_ready()
            assert again.stop() < STOP_SECONDS


def test_venues_and_symbols_are_chosen(tmp_path: Path) -> None:
    options = ("--simulated", "--free-ports", "--symbols", "ETH-USDT-PERP,ETH-USD-PERP")
    with mesh_of(tmp_path, *options, "--exchanges", "deribit,okx") as mesh:
        mesh.wait_ready()
        url = f"http://{mesh.address('all')}/api/v1/instruments?page_size=1000"
        listed = get_json(url)["data"]["instruments"]
        assert {(each["exchange"], each["symbol"]) for each in listed} == {
            ("deribit", "ETH-USD-PERP"),
            ("okx", "ETH-USDT-PERP"),
            ("okx", "ETH-USD-PERP"),
        }
        assert "marketprism book deribit ETH-USD-PERP" in mesh.said
        assert mesh.stop() < STOP_SECONDS


def test_a_second_interrupt_kills_at_once(tmp_path: Path) -> None:
    with mesh_of(tmp_path, "--simulated", "--free-ports", "--services", "broker") as mesh:
        eventually("the broker runs", lambda: mesh.child("broker").get("state") == "running")
        broker = psutil.Process(mesh.child("broker")["pid"])
        # A broker that stands still does not stop on request.
        broker.suspend()
        mesh.process.send_signal(signal.SIGINT)
        eventually("it stops the broker", lambda: "stopping broker" in mesh.said, 5.0)
        began = time.monotonic()
        mesh.process.send_signal(signal.SIGINT)
        mesh.process.wait(5)
        assert time.monotonic() - began < 3.0
        no_process_left(mesh)


def test_an_interrupt_during_the_start_ends_it_cleanly(tmp_path: Path) -> None:
    with mesh_of(tmp_path, "--simulated", "--free-ports") as mesh:
        eventually("something is started", lambda: "starting broker" in mesh.said, 10.0)
        assert mesh.stop() < STOP_SECONDS
        assert mesh.process.returncode == 0
        no_process_left(mesh)


def test_a_taken_port_is_told_before_anything_is_started(tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        os.environ["MARKETPRISM__SERVICES__NATS__PORT"] = str(port)
        try:
            with mesh_of(tmp_path, "--simulated", "--services", "broker") as mesh:
                assert mesh.process.wait(20) == 1
                told = mesh.err.read_text()
        finally:
            del os.environ["MARKETPRISM__SERVICES__NATS__PORT"]
    line = next(line for line in told.splitlines() if str(port) in line)
    assert re.search(rf"port {port}, which broker needs for NATS clients, is taken by .*pid", line)
    assert "nats.port in config/services.yaml" in line
    assert "Traceback" not in told
    assert mesh.said == ""


def test_a_second_mesh_on_the_same_data_is_refused(tmp_path: Path) -> None:
    options = ("--simulated", "--free-ports", "--services", "broker")
    with mesh_of(tmp_path, *options) as mesh:
        eventually("the broker runs", lambda: mesh.child("broker").get("state") == "running")
        with mesh_of(tmp_path, *options) as second:
            assert second.process.wait(20) == 1
            told = second.err.read_text()
        assert f"another mesh (pid {mesh.process.pid}" in told
        assert mesh.child("broker")["state"] == "running"
        mesh.stop()


def test_a_simulated_market_begins_anew_and_leaves_live_data_alone(tmp_path: Path) -> None:
    live = tmp_path / "var" / "nats" / "stored"
    earlier = tmp_path / "var" / "nats-simulated" / "stored"
    for path in (live, earlier):
        path.parent.mkdir(parents=True)
        path.write_text("")
    with mesh_of(tmp_path, "--simulated", "--free-ports", "--services", "broker") as mesh:
        eventually("the broker runs", lambda: mesh.child("broker").get("state") == "running")
        assert not earlier.exists()
        assert (earlier.parent / "jetstream").is_dir()
        mesh.stop()
    assert [path.name for path in live.parent.iterdir()] == ["stored"]


def test_a_start_that_fails_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "nats-simulated").write_text("in the way of the broker's store")
    with mesh_of(tmp_path, "--simulated", "--free-ports") as mesh:
        assert mesh.process.wait(START_SECONDS) == 1
        assert "cannot start: broker ended with exit status 1" in mesh.said
        assert "broker's store" in mesh.said
        assert "Traceback" not in mesh.said
        no_process_left(mesh)


def test_json_logs_are_one_object_a_line(tmp_path: Path) -> None:
    options = ("--simulated", "--free-ports", "--services", "broker", "--log-format", "json")
    with mesh_of(tmp_path, *options) as mesh:
        eventually("it is ready", lambda: "the mesh is ready" in mesh.err.read_text())
        mesh.stop()
        records = [json.loads(line) for line in mesh.err.read_text().splitlines()]
    assert mesh.said == ""
    assert {"marketprism", "broker", "simulator"} <= {record["service"] for record in records}
    ready = next(record for record in records if record["event"] == "the mesh is ready")
    assert ready["ports"]["nats.port"] > 0


@pytest.mark.parametrize(
    ("file", "exchange", "symbol"),
    [
        ("HBT_spot_ethusdt.jsonl.gz", "binance", "ETH-USDT"),
        ("OKX.jsonl.gz", "okx", ""),
    ],
)
def test_a_recorded_market_is_served(tmp_path: Path, file: str, exchange: str, symbol: str) -> None:
    captures = os.environ.get("MARKETPRISM_CAPTURES")
    if not captures:
        pytest.skip("MARKETPRISM_CAPTURES does not name the directory of the captures")
    capture = Path(captures) / "streams" / file
    with mesh_of(tmp_path, "--capture", str(capture), "--free-ports") as mesh:
        mesh.wait_ready()
        assert mesh.simulated() == [exchange]
        base = f"http://{mesh.address('all')}/api/v1"
        listed = get_json(f"{base}/instruments")["data"]["instruments"]
        assert {each["exchange"] for each in listed} == {exchange}
        name = symbol or listed[0]["symbol"]
        url = f"{base}/orderbook/{exchange}/{name}?depth=1"

        def sequence() -> int:
            answer = get_json(url)
            return int(answer["data"]["order_book"]["sequence"]) if answer else 0

        first = eventually("the book has moved", sequence)
        eventually("the book moves on", lambda: sequence() > first)
        assert mesh.stop() < STOP_SECONDS


@pytest.mark.parametrize(("exchange", "count"), [("binance", 5), ("deribit", 9)])
def test_a_recording_is_made_and_verifies(tmp_path: Path, exchange: str, count: int) -> None:
    out = tmp_path / "captures"
    process = subprocess.run(
        [
            sys.executable, "-m", "services.cli", "record", "--simulated", "--out", str(out),
            "--duration", "4", "--exchanges", exchange,
        ],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr
    assert "frames" in process.stdout
    (capture,) = out.glob("*.jsonl.gz")
    verified = subprocess.run(
        [
            sys.executable, "-m", "services.cli", "verify", "--json", "--exchange", exchange,
            str(capture),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )  # fmt: skip
    rows = [json.loads(line) for line in verified.stdout.splitlines()]
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert {row["state"] for row in rows} == {"SYNCED"}
    assert len(rows) == count
