"""A whole mesh of real processes for a test, as `marketprism up` starts it, on free ports."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from decimal import Decimal
from operator import ge, le
from pathlib import Path
from typing import Any

import psutil

__all__ = ["Mesh", "running_mesh", "wait_for"]

_HORIZONS: tuple[tuple[str, str, Callable[[Decimal, Decimal], bool]], ...] = (
    ("bids", "bid_horizon", ge),
    ("asks", "ask_horizon", le),
)


def wait_for(
    condition: Callable[[], Any], what: str, seconds: float = 30.0, every: float = 0.05
) -> Any:
    """Wait until the condition gives something true, and give that; fail saying what did not."""
    deadline = time.monotonic() + seconds
    last: Any = None
    while time.monotonic() < deadline:
        try:
            last = condition()
        except (OSError, KeyError, ValueError, urllib.error.URLError) as error:
            last = repr(error)
        else:
            if last:
                return last
        time.sleep(every)
    raise AssertionError(f"not within {seconds:g} s: {what}; last: {last}")


class Mesh:
    """A mesh that runs in processes of its own."""

    def __init__(self, data_dir: Path, process: subprocess.Popen[bytes], log: Path) -> None:
        self.data_dir = data_dir
        self.process = process
        self.log = log

    # What it says of itself

    def record(self) -> dict[str, Any]:
        """Read what the supervisor tells."""
        text = (self.data_dir / "supervisor.json").read_text()
        record: dict[str, Any] = json.loads(text)
        return record

    def address(self, purpose: str) -> str:
        """Give host:port of `all`, `collector`, `nats`, `simulator.okx`, ..."""
        return str(self.record()["addresses"][purpose])

    def registered(self, service: str) -> dict[str, Any]:
        """Give the registration of a service."""
        for path in (self.data_dir / "registry").glob("*.json"):
            entry: dict[str, Any] = json.loads(path.read_text())
            if entry["service"] == service:
                return entry
        raise KeyError(f"{service} is not registered")

    def pid(self, service: str) -> int:
        """Give the process id of a service's process."""
        for child in self.record()["children"]:
            if (child["name"] == service or service in child["services"]) and child["pid"]:
                return int(child["pid"])
        raise KeyError(f"{service} has no process")

    def pid_of_binary(self, service: str, name: str) -> int:
        """Give the process id of the program (nats-server, envoy) that a service has started."""
        for child in psutil.Process(self.pid(service)).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if Path(child.exe()).name == name:
                    return child.pid
        raise KeyError(f"{service} runs no {name}")

    def processes(self) -> list[psutil.Process]:
        """Give the supervisor and everything below it."""
        try:
            supervisor = psutil.Process(self.process.pid)
            return [supervisor, *supervisor.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    # Asking

    def get(self, path: str, purpose: str = "all", timeout: float = 10.0) -> dict[str, Any]:
        """GET a REST path; gives the JSON body, whatever the status."""
        return self.get_with_status(path, purpose, timeout)[1]

    def get_with_status(
        self, path: str, purpose: str = "all", timeout: float = 10.0
    ) -> tuple[int, dict[str, Any]]:
        """GET a REST path; gives status and JSON body."""
        url = f"http://{self.address(purpose)}{path}"
        try:
            with urllib.request.urlopen(url, timeout=timeout) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def venue(self, path: str, exchange: str = "binance") -> dict[str, Any]:
        """GET a path of a simulated venue."""
        return self.get(path, f"simulator.{exchange}")

    def fault(self, exchange: str = "binance", **request: Any) -> dict[str, Any]:
        """Switch a fault of a simulated venue on."""
        data = json.dumps(request).encode()
        url = f"http://{self.address(f'simulator.{exchange}')}/sim/faults"
        call = urllib.request.Request(
            url, data=data, headers={"Content-Type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(call, timeout=10) as answer:
            body: dict[str, Any] = json.load(answer)
            return body

    def instruments(self) -> list[dict[str, Any]]:
        """Give what is collected, as marketdata describes it."""
        listed: list[dict[str, Any]] = self.get("/api/v1/instruments?page_size=1000")["data"][
            "instruments"
        ]
        return listed

    # The truth

    def books_in_step(self) -> bool:
        """Tell whether every book that is collected is SYNCED, as marketdata tells it."""
        answer = self.get("/api/v1/orderbook/status?page_size=1000")
        statuses = answer["data"]["statuses"]
        return bool(statuses) and all(
            each["state"] == "ORDER_BOOK_STATE_SYNCED" for each in statuses
        )

    def equals_truth(self, symbol: str, native: str, exchange: str = "binance") -> bool:
        """Hold the served book against the simulated venue's at the venue sequence it names."""
        served = self.get(f"/api/v1/orderbook/{exchange}/{symbol}")["data"]
        if served["status"]["state"] != "ORDER_BOOK_STATE_SYNCED":
            return False
        book = served["order_book"]
        truth = self.venue(
            f"/sim/book?symbol={native}&update_id={book['venue_sequence']}", exchange
        )
        # The venue counts contracts, we the currency that they stand for.
        size = Decimal(truth["contract_size"]) * Decimal(truth["multiplier"])
        for side, horizon, within in _HORIZONS:
            edge = Decimal(book[horizon]) if book[horizon] else None

            def levels(
                told: list[tuple[str, str]],
                size: Decimal,
                edge: Decimal | None = edge,
                within: Callable[[Decimal, Decimal], bool] = within,
            ) -> list[tuple[Decimal, Decimal]]:
                numbers = [(Decimal(price), Decimal(quantity) * size) for price, quantity in told]
                return [each for each in numbers if edge is None or within(each[0], edge)]

            ours = levels([(each["price"], each["quantity"]) for each in book[side]], Decimal(1))
            theirs = levels(truth[side], size)
            if ours != theirs:
                different = set(ours) ^ set(theirs)
                raise AssertionError(
                    f"{exchange} {symbol} at {book['venue_sequence']}: {side} differ in "
                    f"{len(different)} levels within the horizon, such as {sorted(different)[:4]}"
                )
        return True

    # Ending

    def stop(self, seconds: float = 15.0) -> float:
        """Send SIGINT as Ctrl-C does; gives the seconds until everything was gone."""
        before = self.processes()
        began = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout=seconds)
        finally:
            _, alive = psutil.wait_procs(before, timeout=2)
            for left in alive:
                left.kill()
        assert not alive, f"still alive after the stop: {alive}"
        return time.monotonic() - began

    def kill(self, pid: int) -> None:
        """Kill -9."""
        os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def running_mesh(
    directory: Path, *arguments: str, env: dict[str, str] | None = None, seconds: float = 60.0
) -> Iterator[Mesh]:
    """Run `marketprism up --free-ports <arguments>` until the block ends, ready at its begin."""
    data_dir = directory / "data"
    log = directory / "mesh.log"
    directory.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "services.cli", "up", "--free-ports",
                "--data-dir", str(data_dir), *arguments,
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
        )  # fmt: skip
    mesh = Mesh(data_dir, process, log)
    try:

        def ready() -> bool:
            if process.poll() is not None:
                raise AssertionError(f"the mesh ended at its start:\n{log.read_text()[-3000:]}")
            return bool(mesh.record()["ready"])

        wait_for(ready, "the mesh is ready", seconds)
        yield mesh
    except BaseException:
        sys.stderr.write(f"--- end of {log}\n{log.read_text(errors='replace')[-6000:]}\n")
        raise
    finally:
        mesh.stop()
