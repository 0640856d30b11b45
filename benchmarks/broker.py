"""A broker of its own for a benchmark: the real service in a process of its own."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from services.shared.ports import free_port

__all__ = ["running_broker", "start_service", "wait_healthy"]


def start_service(module: str, environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start `python -m <module>` with its output in a file."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", module],
            env={**os.environ, **environment},
            stdout=output,
            stderr=output,
        )


def wait_healthy(
    url: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 30
) -> None:
    """Wait until `/health` says healthy; exits with the log's end when it does not."""
    deadline = time.monotonic() + seconds
    last = ""
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError, ValueError):
            with urllib.request.urlopen(url, timeout=2) as answer:
                last = json.load(answer)["status"]
            if last == "healthy":
                return
        time.sleep(0.05)
    raise SystemExit(f"{url} is not healthy ({last}):\n{log.read_text()[-2000:]}")


@contextlib.contextmanager
def running_broker(directory: Path) -> Iterator[str]:
    """Run `python -m services.broker` on free ports; gives the URL of NATS."""
    directory.mkdir(parents=True)
    nats, monitor, http = free_port(), free_port(), free_port()
    prefix = "MARKETPRISM__SERVICES__"
    log = directory / "broker.log"
    process = start_service(
        "services.broker",
        {
            f"{prefix}DATA_DIR": str(directory),
            f"{prefix}NATS__PORT": str(nats),
            f"{prefix}NATS__MONITOR_PORT": str(monitor),
            f"{prefix}SERVICES__BROKER__GRPC_PORT": "0",
            f"{prefix}SERVICES__BROKER__HTTP_PORT": str(http),
        },
        log,
    )
    try:
        wait_healthy(f"http://127.0.0.1:{http}/health", process, log)
        with socket.create_connection(("127.0.0.1", nats), timeout=5):
            pass
        yield f"nats://127.0.0.1:{nats}"
    finally:
        process.terminate()
        process.wait(timeout=15)
