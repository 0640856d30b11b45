"""The example client of every language keeps its book right, and says when it cannot.

Each is built from the contracts, runs beside real processes behind a stretch of network that can
be cut, and lives through a forced rebuild, a restart of marketdata, a network that goes silent and
one that breaks. Every book that it held is compared with what the server held at the same epoch
and sequence.
"""

import contextlib
import functools
import itertools
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from marketprism.collector.v1 import collector_service_pb2, collector_service_pb2_grpc
from marketprism.market.v1 import market_data_service_pb2, market_data_service_pb2_grpc

from services.collector.book import book_digest
from tests.e2e.mesh import Mesh, running_mesh, wait_for
from tests.e2e.tcp_proxy import TcpProxy
from tests.requirements_helper import require_tool
from tools.clients import CLIENTS, build

ROOT = Path(__file__).parents[2]
EXCHANGE, SYMBOL = "binance", "BTC-USDT"

# The first test of a language builds it, on a fresh machine with downloads and a cold compiler.
pytestmark = pytest.mark.timeout(600)

_Place = tuple[str, str]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    directory = tmp_path_factory.mktemp("mesh")
    with running_mesh(
        directory, "--simulated", "--exchanges", EXCHANGE, "--symbols", SYMBOL, "--depth-rate", "4"
    ) as mesh:
        wait_for(mesh.books_in_step, "every book is in step")
        yield mesh


@pytest.fixture(
    params=[
        pytest.param(("go",), id="go"),
        pytest.param(("typescript",), id="typescript"),
        pytest.param(("typescript", "--transport", "grpc-web"), id="typescript-grpc-web"),
        pytest.param(("java",), id="java"),
        pytest.param(("rust",), id="rust"),
    ]
)
def command(request: pytest.FixtureRequest) -> list[str]:
    language, *arguments = request.param
    return [*built(language), *arguments]


def built(language: str) -> tuple[str, ...]:
    """Build a client, once, and give how to run it; skips where its toolchain is not there."""
    for program, hint in CLIENTS[language].programs.items():
        require_tool(program, hint)
    return _build_once(language)


@functools.cache
def _build_once(language: str) -> tuple[str, ...]:
    build(CLIENTS[language])
    return CLIENTS[language].command


class RunningClient:
    """A client as a process, and every line that it printed."""

    def __init__(self, command: list[str], address: str) -> None:
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [
                *command, "--address", address, "--exchange", EXCHANGE, "--symbol", SYMBOL,
                "--heartbeat-ms", "500", "--digests", "--json",
            ],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> "RunningClient":
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(10)
        self._reader.join(10)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))

    def wait_for_line(self, beginning: str, since: int = 0, seconds: float = 30) -> int:
        """Wait for a line that begins so, and give the number of the line after it."""

        def found() -> int:
            for number in range(since, len(self.lines)):
                if self.lines[number].startswith(beginning):
                    return number + 1
            if self._process.poll() is not None:
                raise AssertionError(f"the client ended: {self.lines[-5:]}")
            return 0

        try:
            return int(wait_for(found, f"a line {beginning!r}", seconds))
        except AssertionError as error:
            raise AssertionError(f"{error}; {self._last_words()}") from None

    def wait_until_shown(self, since: int = 0) -> int:
        """Wait until the client shows its book, which it does only when it believes it."""
        return self.wait_for_line(f"{EXCHANGE} {SYMBOL} ", since)

    def end(self) -> dict[str, Any]:
        """Ask the client to end; gives the book that it held then."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"the client did not end within 10 s of SIGTERM; {self._last_words()}"
            ) from None
        self._reader.join(10)
        last: dict[str, Any] = json.loads(self.lines[-1])
        return last

    def _last_words(self) -> str:
        told = [line for line in self.lines if not line.startswith("digest")][-12:]
        return "the client said last:\n" + "\n".join(told)

    def digests(self) -> dict[_Place, str]:
        """Give the fingerprint of the book at each place where the client held one."""
        words = [line.split() for line in self.lines if line.startswith("digest ")]
        return {(epoch, sequence): digest for _, epoch, sequence, digest in words}


class ServedBooks:
    """Asks the server for its book again and again, and keeps the fingerprint of each."""

    def __init__(self, mesh: Mesh) -> None:
        self.digests: dict[_Place, str] = {}
        self._address = mesh.address("all")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "ServedBooks":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)
        assert not self._thread.is_alive(), "the thread that asks does not end"

    def _run(self) -> None:
        request = market_data_service_pb2.GetOrderBookRequest(
            exchange=EXCHANGE, symbol=SYMBOL, depth=50
        )
        with grpc.insecure_channel(self._address) as channel:
            stub = market_data_service_pb2_grpc.MarketDataServiceStub(channel)
            while not self._stop.wait(0.02):
                # While marketdata restarts there is nobody to ask.
                with contextlib.suppress(grpc.RpcError):
                    book = stub.GetOrderBook(request, timeout=5).order_book
                    bids, asks = (
                        [(level.price, level.quantity) for level in side]
                        for side in (book.bids, book.asks)
                    )
                    place = str(book.epoch), str(book.sequence)
                    self.digests[place] = book_digest(bids, asks)


def shown_without_trust(lines: list[str]) -> list[str]:
    """Give the lines that show a book although the client had been told not to believe it."""
    is_open = is_synced = False
    wrong = []
    for line in lines:
        if line.startswith("-- stream OPEN"):
            is_open = True
        elif line.startswith(("-- lost", "-- stream ENDED", "-- stream INTERRUPTED")):
            is_open = False
            is_synced = is_synced and not line.startswith("-- lost")
        elif line.startswith("-- book "):
            is_synced = line.startswith("-- book SYNCED")
        elif line.startswith(f"{EXCHANGE} ") and not (is_open and is_synced):
            wrong.append(line)
    return wrong


def resync(mesh: Mesh) -> None:
    with grpc.insecure_channel(mesh.address("all")) as channel:
        collector_service_pb2_grpc.CollectorServiceStub(channel).Resync(
            collector_service_pb2.ResyncRequest(exchange=EXCHANGE, symbol=SYMBOL), timeout=10
        )


def test_a_client_never_holds_a_wrong_book_without_saying_so(
    command: list[str], mesh: Mesh
) -> None:
    with (
        TcpProxy(mesh.address("all")) as network,
        ServedBooks(mesh) as served,
        RunningClient(command, network.address) as client,
    ):
        client.wait_until_shown()

        before = len(client.lines)
        resync(mesh)
        told = client.wait_for_line("-- book RESYNCING", before)
        client.wait_until_shown(client.wait_for_line("-- book SYNCED", told))

        before = len(client.lines)
        pid = mesh.pid("marketdata")
        os.kill(pid, signal.SIGTERM)
        told = client.wait_for_line("-- stream ENDED SERVER_STOPPING", before)
        told = client.wait_for_line("-- lost ", told)
        client.wait_until_shown(client.wait_for_line("-- stream OPEN", told))
        wait_for(lambda: mesh.pid("marketdata") != pid, "marketdata is a new process")

        before = len(client.lines)
        network.freeze()
        told = client.wait_for_line("-- lost SILENT", before)
        # Whoever retries into a dead network says so again.
        told = client.wait_for_line("-- lost SILENT", told)
        network.thaw()
        client.wait_until_shown(client.wait_for_line("-- stream OPEN RESUMED", told))

        before = len(client.lines)
        network.cut()
        told = client.wait_for_line("-- lost ", before)
        shown = client.wait_until_shown(client.wait_for_line("-- stream OPEN RESUMED", told))
        for _ in range(5):
            shown = client.wait_until_shown(shown)
        last = client.end()
        # What was asked for before the client ended has been answered.
        time_of_end = time.monotonic()
        wait_for(lambda: time.monotonic() > time_of_end + 0.2, "the last answers are here")

    held = client.digests()
    place = last["epoch"], last["sequence"]
    assert last["trusted"] is True
    assert last["reconnects"] >= 4
    assert len(last["bids"]) == len(last["asks"]) == 50
    assert held[place] == book_digest(map(tuple, last["bids"]), map(tuple, last["asks"]))
    assert shown_without_trust(client.lines) == []

    compared = [each for each in held if each in served.digests]
    assert [each for each in compared if held[each] != served.digests[each]] == []
    assert len({epoch for epoch, _ in compared}) >= 2, "the rebuild began a new epoch"
    assert set(compared) & set(itertools.islice(reversed(held), 5)), (
        "none of the last books was compared with the server's"
    )


@pytest.mark.parametrize("language", CLIENTS)
def test_a_client_says_what_is_wrong_and_ends(language: str, mesh: Mesh) -> None:
    result = subprocess.run(
        [*built(language), "--address", mesh.address("all"), "--symbol", "NOPE-USDT"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert "binance has no instrument 'NOPE-USDT'" in result.stderr
    assert result.stdout == ""
