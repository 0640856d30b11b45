"""A child is ready before it is used, returns when it dies, and never outlives its parent."""

import asyncio
import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from services.shared.errors import StartupError
from services.shared.health import Health
from services.shared.ports import bind_socket, free_port, port_owner
from services.shared.process import (
    ChildProcess,
    ChildState,
    RestartPolicy,
    find_binary,
    http_ready,
    tcp_ready,
)
from services.shared.telemetry import Metrics

QUICK = RestartPolicy(initial_seconds=0.01, max_seconds=0.02)


def python(code: str) -> list[str]:
    return [sys.executable, "-u", "-c", textwrap.dedent(code)]


def serving(port: int, then: str = "signal.pause()") -> list[str]:
    return python(
        f"""
        import signal, socket, subprocess, sys, time
        s = socket.create_server(("127.0.0.1", {port}))
        print("listening")
        {then}
        """
    )


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.01)  # between two looks at the condition


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_start_returns_when_ready_and_stop_when_ended() -> None:
    port = free_port()
    lines: list[str] = []
    child = ChildProcess(
        "echo", serving(port), ready=lambda: tcp_ready("127.0.0.1", port), on_line=lines.append
    )
    assert child.status().status is Health.UNHEALTHY
    async with child.running():
        assert child.state is ChildState.RUNNING
        assert child.status().status is Health.HEALTHY
        pid = child.pid
        assert pid is not None
        assert os.getpgid(pid) == pid
        assert str(pid) in (port_owner(port) or "")
        await until(lambda: lines == ["listening"])
    assert (child.state, child.pid) == (ChildState.STOPPED, None)
    assert gone(pid)
    await child.stop()


async def test_stop_right_after_start_leaves_nothing_behind() -> None:
    child = ChildProcess("brief", ["sleep", "600"])
    await child.start()
    pid = child.pid
    assert pid is not None
    await child.stop()
    assert gone(pid)


async def test_child_gets_its_environment_and_directory(tmp_path: Path) -> None:
    lines: list[str] = []
    child = ChildProcess(
        "env",
        python("import os; print(os.environ['MARK'], os.getcwd())"),
        env={"MARK": "here"},
        cwd=tmp_path,
        on_line=lines.append,
        restart=None,
    )
    await child.start()
    await child.wait_for(ChildState.FAILED)
    await child.stop()
    assert lines == [f"here {tmp_path}"]


async def test_child_that_dies_at_start_is_told_with_its_last_words() -> None:
    child = ChildProcess(
        "doomed",
        python("import sys; print('password=hunter2'); print('no disk'); sys.exit(3)"),
        ready=lambda: tcp_ready("127.0.0.1", 1),
    )
    with pytest.raises(StartupError, match=r"(?s)doomed ended with exit status 3; .*no disk") as e:
        await child.start()
    assert "hunter2" not in str(e.value)
    assert (child.state, child.pid) == (ChildState.STOPPED, None)


async def test_child_that_is_never_ready_is_ended() -> None:
    child = ChildProcess(
        "slow",
        python("import os, signal; print(os.getpid()); signal.pause()"),
        ready=lambda: tcp_ready("127.0.0.1", 1),
        ready_seconds=0.3,
    )
    with pytest.raises(StartupError, match=r"was not ready within 0\.3 s"):
        await child.start()
    assert all(gone(int(pid)) for pid in child.output)


async def test_command_that_does_not_exist_is_told(tmp_path: Path) -> None:
    child = ChildProcess("none", [tmp_path / "none"], ready=lambda: tcp_ready("127.0.0.1", 1))
    with pytest.raises(StartupError, match="No such file"):
        await child.start()


async def test_dead_child_returns_and_is_counted() -> None:
    port = free_port()
    metrics = Metrics("test")
    child = ChildProcess(
        "phoenix",
        serving(port),
        ready=lambda: tcp_ready("127.0.0.1", port),
        restart=QUICK,
        metrics=metrics,
    )
    async with child.running():
        for count in (1, 2):
            old = child.pid
            child.kill()
            await child.wait_for(ChildState.BACKOFF)
            assert child.last_exit == -signal.SIGKILL
            await child.wait_for(ChildState.RUNNING)
            assert child.pid != old
            assert child.restarts == count
        labels = {"child": "phoenix"}
        value = metrics.registry.get_sample_value
        assert value("marketprism_child_restarts_total", labels) == 2
        assert value("marketprism_child_running", labels) == 1
    assert value("marketprism_child_running", labels) == 0


async def test_restart_goes_on_until_the_child_comes_back(tmp_path: Path) -> None:
    port = free_port()
    flag = tmp_path / "broken"
    command = serving(port, "signal.pause()")
    command[3] = f"import os, sys\nif os.path.exists({str(flag)!r}): sys.exit(1)\n" + command[3]
    child = ChildProcess(
        "flaky", command, ready=lambda: tcp_ready("127.0.0.1", port), restart=QUICK
    )
    async with child.running():
        flag.touch()
        child.kill()
        await until(lambda: child.restarts >= 3)
        assert child.status().status is Health.UNHEALTHY
        flag.unlink()
        await child.wait_for(ChildState.RUNNING)


async def test_a_probe_that_fails_does_not_end_the_supervision() -> None:
    asked = 0

    async def probe() -> bool:
        nonlocal asked
        asked += 1
        if asked in (2, 3):
            raise ValueError("not what was expected")
        return True

    child = ChildProcess("odd", ["sleep", "600"], ready=probe, restart=QUICK)
    async with child.running():
        child.kill()
        await child.wait_for(ChildState.BACKOFF)
        async with asyncio.timeout(10):
            await child.wait_for(ChildState.RUNNING)
        assert (asked, child.restarts) == (4, 3)


async def test_a_line_that_cannot_be_taken_does_not_cost_the_child_its_output() -> None:
    taken: list[str] = []

    def take(line: str) -> None:
        if line == "bad":
            raise ValueError("no room")
        taken.append(line)

    child = ChildProcess(
        "loud",
        python("print('good'); print('bad'); [print(n) for n in range(30000)]; print('end')"),
        on_line=take,
        restart=None,
    )
    await child.start()
    await child.wait_for(ChildState.FAILED)
    await child.stop()
    assert (taken[0], taken[-1], len(taken), child.lost_lines) == ("good", "end", 30002, 1)
    assert child.last_exit == 0


async def test_exit_that_a_restart_cannot_help_is_final() -> None:
    child = ChildProcess(
        "config",
        python("import sys; sys.exit(2)"),
        restart=RestartPolicy(never_after=frozenset({2})),
    )
    await child.start()
    await child.wait_for(ChildState.FAILED)
    assert (child.last_exit, child.restarts) == (2, 0)
    assert "exit status 2" in child.status().detail
    await child.stop()


async def test_deaf_child_is_killed_after_the_grace() -> None:
    child = ChildProcess(
        "deaf",
        python("import signal; signal.signal(15, signal.SIG_IGN); print('deaf'); signal.pause()"),
        stop_seconds=0.2,
    )
    await child.start()
    await until(lambda: "deaf" in child.output)
    await child.stop()
    assert child.last_exit == -signal.SIGKILL


async def test_what_the_child_left_behind_is_ended_too() -> None:
    child = ChildProcess(
        "parent",
        python(
            """
            import signal, subprocess
            print(subprocess.Popen(["sleep", "600"]).pid)
            signal.pause()
            """
        ),
    )
    await child.start()
    await until(lambda: len(child.output) == 1)
    grandchild = int(child.output[0])
    await child.stop()
    await until(lambda: gone(grandchild))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of a parent's death")
async def test_child_dies_with_a_parent_that_is_killed() -> None:
    code = """
    import asyncio, sys
    from services.shared.process import ChildProcess
    async def main():
        async with ChildProcess("c", ["sleep", "600"]).running() as child:
            print(child.pid, flush=True)
            await asyncio.sleep(600)
    asyncio.run(main())
    """
    parent = ChildProcess("parent", python(code), restart=None)
    await parent.start()
    await until(lambda: len(parent.output) == 1)
    child = int(parent.output[0])
    # The pid is that of the launcher first, which becomes the command.
    await until(lambda: psutil.Process(child).name() == "sleep")
    parent.kill()
    await until(lambda: gone(child))
    await parent.stop()


async def test_long_and_binary_output_is_bounded() -> None:
    child = ChildProcess(
        "noisy",
        python(
            "import sys; sys.stdout.buffer.write(b'x' * 300000 + b'\\n' + b'\\xff\\n' * 100);"
            "print('end')"
        ),
        on_line=lambda line: None,
        restart=None,
    )
    await child.start()
    await until(lambda: "end" in child.output)
    await child.stop()
    assert len(child.output) <= 40
    assert max(map(len, child.output)) <= 16 * 1024


def test_delays_double_up_to_the_limit_with_jitter() -> None:
    policy = RestartPolicy(initial_seconds=1.0, max_seconds=8.0, jitter=0.5)
    for failures, base in ((1, 1.0), (2, 2.0), (4, 8.0), (5000, 8.0)):
        assert base / 2 <= policy.delay(failures) <= base


def test_binary_is_found_next_to_python_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("bin", "path"):
        tool = tmp_path / folder / "tool"
        tool.parent.mkdir()
        tool.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    assert find_binary("tool") == tmp_path / "bin" / "tool"
    (tmp_path / "bin" / "tool").unlink()
    assert find_binary("tool") == tmp_path / "path" / "tool"
    (tmp_path / "path" / "tool").unlink()
    with pytest.raises(StartupError, match="tool is neither in"):
        find_binary("tool")


async def test_http_probe_wants_a_success(tmp_path: Path) -> None:
    port = free_port()
    assert not await http_ready(f"http://127.0.0.1:{port}/")
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    child = ChildProcess(
        "http", command, cwd=tmp_path, ready=lambda: http_ready(f"http://127.0.0.1:{port}/")
    )
    async with child.running():
        assert not await http_ready(f"http://127.0.0.1:{port}/missing")


def test_taken_port_is_one_sentence_with_port_setting_and_owner() -> None:
    with bind_socket("127.0.0.1", 0, "x") as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StartupError) as caught:
            bind_socket("127.0.0.1", port, "services.echo.grpc_port")
    text = str(caught.value)
    assert text.startswith(f"port {port} on 127.0.0.1 is taken by ")
    assert f"(pid {os.getpid()})" in text
    assert "set services.echo.grpc_port to another port" in text
    assert caught.value.reason == "PORT_TAKEN"


@pytest.mark.parametrize(
    ("host", "reason"), [("no.such.host.invalid", "BAD_HOST"), ("203.0.113.1", "CANNOT_LISTEN")]
)
def test_address_of_another_machine_is_told(host: str, reason: str) -> None:
    with pytest.raises(StartupError, match=host.replace(".", r"\.")) as caught:
        bind_socket(host, 0, "services.echo.grpc_port")
    assert caught.value.reason == reason
