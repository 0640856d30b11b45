"""The supervisor with small processes of its own: order, restarts, failures, stops."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from services.cli import supervisor as supervisor_module
from services.cli.log_view import TerminalWriter
from services.cli.mesh_state import read_mesh_record
from services.cli.port_plan import find_free_ports
from services.cli.reporter import Reporter
from services.cli.supervisor import Part, Supervisor, SupervisorFacts
from services.shared.process import RestartPolicy, tcp_ready
from services.shared.run import EXIT_CONFIG, EXIT_FAILURE, EXIT_OK

DEADLINE = 20.0

# Listens on a port after a while, ends as it is told, writes a line of log.
SERVICE = """
import json, os, signal, socket, sys, time
port, delay, on_term, exit_now = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4]
print(json.dumps({"service": "fake", "event": "begins", "level": "info"}), flush=True)
if on_term == "ignore":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if on_term == "config":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(2))
if exit_now and not os.path.exists(exit_now):
    sys.exit(f"cannot work: {exit_now} is missing")
if exit_now and open(exit_now).read():
    sys.exit(int(open(exit_now).read()))
time.sleep(delay)
with socket.socket() as s:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("127.0.0.1", port))
    s.listen()
    while True:
        s.accept()[0].close()
"""


class Lines:
    """A terminal that keeps what is written to it."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        """Nothing waits here."""


class Bench:
    """Makes parts and a supervisor of them, and keeps what they said."""

    def __init__(self, tmp_path: Path) -> None:
        self.data_dir = tmp_path
        self.out, self.err = Lines(), Lines()
        self.reporter = Reporter(
            output="console",
            least="info",
            log_dir=tmp_path / "logs",
            out=TerminalWriter(self.out),  # type: ignore[arg-type]
            err=TerminalWriter(self.err),  # type: ignore[arg-type]
            colour=False,
        )

    def part(
        self,
        name: str,
        *,
        after: tuple[str, ...] = (),
        delay: float = 0.0,
        on_term: str = "end",
        needs: Path | None = None,
        **options: Any,
    ) -> Part:
        (port,) = find_free_ports("127.0.0.1", 1)
        arguments = [str(port), str(delay), on_term, str(needs or "")]
        return Part(
            name=name,
            command=[sys.executable, "-c", SERVICE, *arguments],
            ready=lambda: tcp_ready("127.0.0.1", port),
            services=(name,),
            after=after,
            **{"ready_seconds": 10.0, **options},
        )

    def supervisor(self, *parts: Part) -> Supervisor:
        return Supervisor(
            parts,
            SupervisorFacts(os.getpid(), "microservice", "simulated", {"all": "127.0.0.1:1"}),
            self.data_dir,
            self.reporter,
            restart=RestartPolicy(
                initial_seconds=0.05, jitter=0.0, never_after=frozenset({EXIT_CONFIG})
            ),
        )

    @contextlib.asynccontextmanager
    async def running(self, supervisor: Supervisor) -> AsyncIterator["asyncio.Task[int]"]:
        task = asyncio.ensure_future(supervisor.run())
        try:
            await eventually(lambda: supervisor.record().ready or task.done())
            yield task
        finally:
            if not task.done():
                supervisor.request_stop()
            async with asyncio.timeout(DEADLINE):
                await asyncio.wait({task})


async def eventually(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 - processes set no events
            await asyncio.sleep(0.01)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.reporter.close()


async def test_parts_start_in_order_and_stop_in_reverse(bench: Bench) -> None:
    supervisor = bench.supervisor(
        bench.part("first", delay=0.2), bench.part("second", after=("first", "absent"))
    )
    async with bench.running(supervisor) as task:
        pids = [child.pid for child in supervisor.children.values()]
        supervisor.request_stop()
        assert await task == EXIT_OK
    bench.reporter.close()
    told = bench.out.text
    places = [
        told.index(text)
        for text in (
            "starting first", "first is ready", "starting second", "second is ready",
            "stopping second", "stopping first",
        )
    ]  # fmt: skip
    assert places == sorted(places)
    assert not any(pid and psutil.pid_exists(pid) for pid in pids)


async def test_what_dies_is_started_again_counted_and_told(bench: Bench) -> None:
    supervisor = bench.supervisor(bench.part("one"))
    async with bench.running(supervisor):
        child = supervisor.children["one"]
        for count in (1, 2):
            pid = child.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            await eventually(
                lambda pid=pid, count=count: (  # type: ignore[misc]
                    child.restarts == count and child.state == "running" and child.pid != pid
                )
            )

        def recorded() -> bool:
            record = json.loads((bench.data_dir / "supervisor.json").read_text())
            (one,) = record["children"]
            return (one["restarts"], one["pid"], one["state"], one["last_exit"]) == (
                2, child.pid, "running", -9
            )  # fmt: skip

        await eventually(recorded)


async def test_a_part_that_cannot_start_ends_everything_with_the_reason(bench: Bench) -> None:
    supervisor = bench.supervisor(
        bench.part("good"), bench.part("bad", after=("good",), needs=bench.data_dir / "absent")
    )
    async with bench.running(supervisor) as task:
        assert await task == EXIT_FAILURE
    bench.reporter.close()
    assert "cannot start: bad ended with exit status 1; its last lines:" in bench.out.text
    assert f"cannot work: {bench.data_dir / 'absent'} is missing" in bench.out.text
    assert supervisor.children["good"].pid is None


async def test_a_part_with_a_wrong_configuration_gives_that_exit_status(bench: Bench) -> None:
    (bench.data_dir / "exit").write_text(str(EXIT_CONFIG))
    supervisor = bench.supervisor(bench.part("bad", needs=bench.data_dir / "exit"))
    async with bench.running(supervisor) as task:
        assert await task == EXIT_CONFIG


async def test_a_part_that_is_never_ready_is_given_up_with_what_it_waits_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "_TELL_SECONDS", 0.05)

    async def explain() -> str:
        return "broker: not connected"

    part = bench.part("slow", delay=60.0, ready_seconds=0.5, explain=explain)
    supervisor = bench.supervisor(part)
    async with bench.running(supervisor) as task:
        assert await task == EXIT_FAILURE
    bench.reporter.close()
    assert "waiting for slow, 0 s so far: broker: not connected" in bench.out.text
    assert "cannot start: slow was not ready within 0.5 s (broker: not connected)" in bench.out.text


async def test_an_end_that_a_restart_cannot_help_is_final(bench: Bench) -> None:
    supervisor = bench.supervisor(bench.part("one", on_term="config"), bench.part("two"))
    async with bench.running(supervisor) as task:
        supervisor.children["one"].kill(signal.SIGTERM)
        await eventually(lambda: supervisor.children["one"].state == "failed")
        assert supervisor.children["two"].state == "running"
        assert not task.done()
    bench.reporter.close()
    assert supervisor.children["one"].restarts == 0


async def test_what_ignores_the_request_to_stop_is_killed_in_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "_STOP_SECONDS", 1.5)
    supervisor = bench.supervisor(
        bench.part("polite"),
        bench.part("deaf", on_term="ignore"),
        bench.part("deafer", on_term="ignore"),
    )
    async with bench.running(supervisor) as task:
        pids = [child.pid for child in supervisor.children.values()]
        began = time.monotonic()
        supervisor.request_stop()
        assert await task == EXIT_OK
        assert time.monotonic() - began < 4.0
    bench.reporter.close()
    assert "deaf was killed" in bench.out.text
    assert "polite stopped" in bench.out.text
    assert not any(pid and psutil.pid_exists(pid) for pid in pids)


async def test_a_stop_during_the_start_leaves_nothing(bench: Bench) -> None:
    supervisor = bench.supervisor(bench.part("slow", delay=60.0))
    task = asyncio.ensure_future(supervisor.run())
    await eventually(lambda: "slow" in supervisor.children and supervisor.children["slow"].pid)
    pid = supervisor.children["slow"].pid
    supervisor.request_stop()
    async with asyncio.timeout(DEADLINE):
        assert await task == EXIT_OK
    assert pid is not None
    assert not psutil.pid_exists(pid)


async def test_log_lines_are_shown_with_their_service_and_kept_in_a_file(bench: Bench) -> None:
    supervisor = bench.supervisor(bench.part("one"))
    async with bench.running(supervisor):
        await eventually(lambda: "begins" in bench.err.text)
    assert "fake        info    begins" in bench.err.text
    kept = (bench.data_dir / "logs" / "one.log").read_text().splitlines()
    assert json.loads(kept[0])["event"] == "begins"


async def test_without_the_lock_a_record_is_not_believed(bench: Bench) -> None:
    supervisor = bench.supervisor(bench.part("one"))
    async with bench.running(supervisor):
        assert (bench.data_dir / "supervisor.json").exists()
        assert read_mesh_record(bench.data_dir) is None
