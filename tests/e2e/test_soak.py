"""The soak, short: simulated venues disturbed at random, no book ever wrong, nothing left behind.

Ten minutes or an hour of the same are run on demand (docs/soak.md).
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
VENUES = ("binance", "binance_usdm", "okx", "deribit")


def start(directory: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.soak", "--json", directory / "verdict.json", *options],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "gen/python"))),
            "TMPDIR": str(directory),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


# A busy machine makes all of it slower; nothing here is about speed.
pytestmark = pytest.mark.timeout(300)


def test_no_book_is_ever_wrong_while_every_venue_misbehaves(tmp_path: Path) -> None:
    soak = start(
        tmp_path, "--seconds", "24", "--instruments", "24", "--rate", "600", "--every", "1.5",
        "--fault-every", "1.5", "--instruments-every", "8", "--settle", "60",
    )  # fmt: skip
    told, _ = soak.communicate(timeout=280)
    assert soak.returncode == 0, told
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert verdict["problems"] == []
    assert verdict["wrong"] == 0
    assert set(verdict["comparisons"]) == set(VENUES), "expected comparisons on every venue"
    assert all(count > 20 for count in verdict["comparisons"].values())
    assert sum(verdict["incidents"].values()) > 20, "expected that much went wrong at the venues"
    assert verdict["ledger"]["resync_finished"] > 20
    assert set(verdict["growth"]) == {"rss", "fds", "sockets", "tasks"}


def test_an_interrupted_soak_gives_its_verdict_and_leaves_no_process(tmp_path: Path) -> None:
    soak = start(
        tmp_path, "--venues", "okx,deribit", "--instruments", "4", "--rate", "60", "--every", "1",
        "--settle", "60",
    )  # fmt: skip
    try:
        assert soak.stdout is not None
        for line in soak.stdout:
            if "compared" in line:
                break
        children = psutil.Process(soak.pid).children(recursive=True)
        soak.send_signal(signal.SIGINT)
        told, _ = soak.communicate(timeout=240)
    finally:
        soak.kill()
    assert soak.returncode == 0, told
    assert "PASSED" in told
    deadline = time.monotonic() + 5
    while alive := [child for child in children if child.is_running()]:
        assert time.monotonic() < deadline, f"still there: {alive}"
        time.sleep(0.05)
