"""What the examples promise, each run against a mesh of real processes."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.mesh import Mesh, running_mesh, wait_for

EXAMPLES = Path(__file__).parents[2] / "examples" / "python"


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    directory = tmp_path_factory.mktemp("mesh")
    with running_mesh(
        directory, "--simulated", "--exchanges", "binance", "--trade-rate", "20"
    ) as mesh:
        wait_for(mesh.books_in_step, "every book is in step")
        yield mesh


def run(name: str, *arguments: str) -> list[str]:
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_a_client_in_plain_grpcio_keeps_the_book(mesh: Mesh) -> None:
    lines = run(
        "keep_book.py", "binance", "BTC-USDT", "--address", mesh.address("all"), "--lines", "5"
    )
    assert len(lines) == 5
    assert lines[-1].startswith("SYNCED")


def test_a_subscriber_of_nats_reads_the_events_themselves(mesh: Mesh) -> None:
    url = f"nats://{mesh.address('nats')}"
    trades = [
        json.loads(line)["trade"]
        for line in run(
            "nats_subscriber.py", "market.trade.binance.BTC-USDT", "--url", url, "--replay",
            "--count", "5",
        )
    ]  # fmt: skip
    ids = [int(trade["tradeId"]) for trade in trades]
    assert ids == list(range(ids[0], ids[0] + 5))
    (snapshot,) = run(
        "nats_subscriber.py", "market.order_book_snapshot.binance.BTC-USDT", "--url", url,
        "--replay", "--count", "1",
    )  # fmt: skip
    assert json.loads(snapshot)["orderBookSnapshot"]["reason"] == "SNAPSHOT_REASON_EPOCH_START"
