"""Two collectors share every venue's instruments; what one had, the other takes over."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.mesh import Mesh, running_mesh, wait_for
from tests.e2e.test_faults import BTC, OTHERS

pytestmark = pytest.mark.timeout(180)

# The usual lease: a shorter one is lost by a machine that is busy with other tests.
LEASES = {"MARKETPRISM__COLLECTOR__LEASES__ENABLED": "true"}


@contextlib.contextmanager
def another_collector(mesh: Mesh, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a second collector beside that of the mesh, with its configuration and another name."""
    environment = psutil.Process(mesh.pid("collector")).environ()
    changes = {
        "MARKETPRISM__COLLECTOR__COLLECTOR_ID": "second",
        "MARKETPRISM__SERVICES__SERVICES__COLLECTOR__GRPC_PORT": "0",
        "MARKETPRISM__SERVICES__SERVICES__COLLECTOR__HTTP_PORT": "0",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "services.collector"],
            env={**environment, **changes},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def status_of(mesh: Mesh) -> dict[str, Any]:
    """Give what `marketprism status --json` tells."""
    done = subprocess.run(
        [sys.executable, "-m", "services.cli", "status", "--json", "--data-dir", mesh.data_dir],
        capture_output=True,
        timeout=30,
        check=False,
    )
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_a_second_collector_shares_and_takes_over(tmp_path: Path) -> None:
    with (
        running_mesh(tmp_path / "mesh", "--simulated", env=LEASES) as mesh,
        another_collector(mesh, tmp_path / "second.log") as second,
    ):
        everything = {(each["exchange"], each["symbol"]) for each in mesh.instruments()}

        def shared() -> dict[str, Any] | None:
            told = status_of(mesh)
            both = len(told["leases"]) == 2 and all(each["held"] for each in told["leases"])
            rows = told["venues"]
            split = sum(row["instruments"] for row in rows) == len(everything)
            return told if both and split and told["healthy"] else None

        told = wait_for(shared, "both collectors have leases, and all is healthy", 90, every=0.5)
        assert sum(lease["held"] for lease in told["leases"]) == told["leases"][0]["total"]
        assert {row["collector"] for row in told["venues"] if row["instruments"]} == {
            lease["collector"] for lease in told["leases"]
        }

        # kill -9: what it had must be somebody's again, and equal the venues' books.
        second.kill()
        second.wait(10)
        wait_for(mesh.books_in_step, "every book is in step again", 40)
        for exchange, symbol, native in (("binance", *BTC), *OTHERS):
            wait_for(
                lambda e=exchange, s=symbol, n=native: mesh.equals_truth(s, n, e),  # type: ignore[misc]
                f"{exchange} {symbol} equals the truth",
            )
        alone = wait_for(
            lambda: next(
                (lease for lease in status_of(mesh)["leases"] if lease["held"] == lease["total"]),
                None,
            ),
            "the first collector has all leases",
            every=0.5,
        )
        assert alone["taken_over"] > 0
        health = mesh.get("/health")["dependencies"]
        assert {name: each["status"] for name, each in health.items()} == dict.fromkeys(
            health, "healthy"
        )
