"""Runs the processes of a mesh: started in order, watched, restarted, stopped in reverse.

Every child is a `ChildProcess`: it has a process group of its own and dies with the supervisor,
however that ends. What the children own (nats-server, Envoy) dies with them in the same way.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from services.cli.mesh_state import ChildRecord, MeshRecord, write_mesh_record
from services.cli.reporter import Reporter
from services.shared.errors import StartupError
from services.shared.log import get_logger
from services.shared.process import ChildProcess, ChildState, RestartPolicy
from services.shared.run import EXIT_CONFIG, EXIT_FAILURE, EXIT_OK

__all__ = ["Part", "Supervisor", "SupervisorFacts"]

_STOP_SECONDS = 9.0
_LEAST_STOP_SECONDS = 0.5
_TAIL_LINES = 12
_TELL_SECONDS = 5.0
_RESTART = RestartPolicy(never_after=frozenset({EXIT_CONFIG}))


@dataclass(frozen=True, slots=True)
class Part:
    """One process to run."""

    name: str
    """Prefix of its log lines."""

    command: Sequence[str]
    """What to run."""

    ready: Callable[[], Awaitable[bool]]
    """Readiness probe."""

    services: tuple[str, ...] = ()
    """Services of the mesh inside it."""

    after: tuple[str, ...] = ()
    """Parts that must be ready before; those that are not run do not count."""

    ready_seconds: float = 30.0
    """Time from its start until it must be ready."""

    explain: Callable[[], Awaitable[str]] | None = None
    """Asks it what keeps it from being ready; an empty answer means that it does not tell."""

    told: str = ""
    """What it is, for the line that says that it starts: `NATS 4222, gRPC 50084`."""

    env: Mapping[str, str] = field(default_factory=dict)
    """Its environment beside ours."""


@dataclass(frozen=True, slots=True)
class SupervisorFacts:
    """What the supervisor writes into its record beside the state of its children."""

    pid: int
    """Its own process."""

    mode: str
    """`microservice` or `full`."""

    source: str
    """`live`, `simulated` or the capture's path."""

    addresses: Mapping[str, str]
    """`host:port` by purpose."""


class Supervisor:
    """One mesh from start to stop. `run` it once, in the main thread, where signals arrive."""

    def __init__(
        self,
        parts: Sequence[Part],
        facts: SupervisorFacts,
        data_dir: Path,
        reporter: Reporter,
        *,
        on_ready: Callable[[float], Awaitable[None]] | None = None,
        restart: RestartPolicy = _RESTART,
    ) -> None:
        """`on_ready` is called once with the seconds that the start took."""
        self._parts = parts
        self._facts = facts
        self._data_dir = data_dir
        self._reporter = reporter
        self._on_ready = on_ready
        self._restart = restart
        self._log = get_logger()
        self._children: dict[str, ChildProcess] = {}
        self._ready = {part.name: asyncio.Event() for part in parts}
        self._waits_for: dict[str, str] = {}
        self._all_ready = False
        self._started = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        self._stop_asked = asyncio.Event()
        self._kill_asked = asyncio.Event()

    @property
    def children(self) -> Mapping[str, ChildProcess]:
        """The children by name, those that were started so far."""
        return self._children

    def request_stop(self) -> None:
        """Begin to stop; asked a second time, kill everything at once."""
        if self._stop_asked.is_set():
            self._kill_asked.set()
            for child in self._children.values():
                with contextlib.suppress(ProcessLookupError):
                    child.kill(signal.SIGKILL)
        self._stop_asked.set()

    async def run(self) -> int:
        """Run until SIGINT, SIGTERM or SIGHUP; gives the exit status."""
        began = time.monotonic()
        status = EXIT_OK
        with self._signals():
            watch: list[asyncio.Task[None]] = []
            try:
                status = await self._start(watch)
                if status == EXIT_OK and not self._stop_asked.is_set():
                    self._all_ready = True
                    self._write_record()
                    if self._on_ready is not None:
                        await self._tell_ready(self._on_ready(time.monotonic() - began))
                    await self._stop_asked.wait()
            finally:
                for task in watch:
                    task.cancel()
                await self._stop()
        return status

    # ---- start

    async def _start(self, watch: list[asyncio.Task[None]]) -> int:
        starting = asyncio.ensure_future(self._start_all(watch))
        await self._until_stop(starting)
        if starting.cancelled():
            return EXIT_OK
        error = starting.exception()
        if error is None or self._stop_asked.is_set():
            return EXIT_OK
        if not isinstance(error, BaseExceptionGroup):
            raise error
        failed, rest = error.split(_PartFailed)
        if rest is not None:
            raise rest
        assert failed is not None
        first = _leaf(failed)
        self._reporter.say(f"cannot start: {first}", reason=first.reason)
        return EXIT_CONFIG if first.exit == EXIT_CONFIG else EXIT_FAILURE

    async def _tell_ready(self, telling: Awaitable[None]) -> None:
        task = asyncio.ensure_future(telling)
        await self._until_stop(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # The mesh runs; that something about it could not be told does not end it.
            self._log.warning("cannot tell what is ready", error=str(error))

    async def _until_stop(self, work: Awaitable[None]) -> None:
        """Await work, or cancel it when a stop is asked for; its error stays in the future."""
        task = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self._stop_asked.wait())
        try:
            await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        finally:
            stop.cancel()

    async def _start_all(self, watch: list[asyncio.Task[None]]) -> None:
        async with asyncio.TaskGroup() as group:
            for part in self._parts:
                group.create_task(self._start_part(part, watch), name=f"start {part.name}")

    async def _start_part(self, part: Part, watch: list[asyncio.Task[None]]) -> None:
        for name in part.after:
            if name in self._ready:
                await self._ready[name].wait()
        began = time.monotonic()
        told = f" ({part.told})" if part.told else ""
        self._reporter.say(f"  starting {part.name}{told}", part=part.name)
        try:
            child = ChildProcess(
                part.name,
                part.command,
                ready=part.ready,
                ready_seconds=part.ready_seconds,
                stop_seconds=_STOP_SECONDS,
                restart=self._restart,
                env=part.env,
                on_line=lambda line: self._reporter.log(part.name, line),
            )
            self._children[part.name] = child
            watch.append(asyncio.create_task(self._watch(child), name=f"watch {part.name}"))
            waiting = asyncio.create_task(self._tell_waiting(part, began))
            try:
                await child.start()
            finally:
                waiting.cancel()
        except StartupError as error:
            raise self._part_failed(part, error) from error
        seconds = time.monotonic() - began
        self._reporter.say(
            f"  {part.name} is ready after {seconds:.1f} s (pid {child.pid})",
            part=part.name,
            seconds=round(seconds, 3),
            pid=child.pid,
        )
        self._ready[part.name].set()

    async def _tell_waiting(self, part: Part, began: float) -> None:
        while True:
            await asyncio.sleep(_TELL_SECONDS)
            why = await part.explain() if part.explain is not None else ""
            if why:
                self._waits_for[part.name] = why
            self._reporter.say(
                f"  waiting for {part.name}, {time.monotonic() - began:.0f} s so far"
                + (f": {why}" if why else ""),
                part=part.name,
            )

    def _part_failed(self, part: Part, error: StartupError) -> "_PartFailed":
        what = error.message.split("; its last output:")[0].split("; it wrote nothing")[0]
        child = self._children.get(part.name)
        lines = list(child.output)[-_TAIL_LINES:] if child is not None else []
        tail = "".join(f"\n  {self._reporter.readable(part.name, line)}" for line in lines)
        last_exit = child.last_exit if child is not None else None
        why = self._waits_for.get(part.name)
        if why and "was not ready" in what:
            what += f" ({why})"
        return _PartFailed(
            what + (f"; its last lines:{tail}" if tail else ""), error.reason, last_exit
        )

    async def _watch(self, child: ChildProcess) -> None:
        state: ChildState | None = None
        while True:
            state = await child.wait_for(*(each for each in ChildState if each is not state))
            self._write_record()
            if state is ChildState.FAILED:
                self._log.error(
                    f"{child.name} is not started again: its configuration is wrong; correct it "
                    "and start the mesh anew",
                    last_exit=child.last_exit,
                )

    # ---- stop

    async def _stop(self) -> None:
        deadline = time.monotonic() + _STOP_SECONDS
        names = [part.name for part in reversed(self._parts) if part.name in self._children]
        for index, name in enumerate(names):
            # The rest gets its time too.
            reserved = _LEAST_STOP_SECONDS * (len(names) - index - 1)
            budget = max(_LEAST_STOP_SECONDS, deadline - time.monotonic() - reserved)
            await self._stop_child(self._children[name], budget)

    async def _stop_child(self, child: ChildProcess, budget: float) -> None:
        began = time.monotonic()
        running = child.pid is not None
        if running:
            self._reporter.say(f"  stopping {child.name}", part=child.name)
        stopping = asyncio.ensure_future(child.stop())
        killed = asyncio.ensure_future(self._kill_asked.wait())
        await asyncio.wait({stopping, killed}, timeout=budget, return_when="FIRST_COMPLETED")
        killed.cancel()
        by_force = not stopping.done()
        while not stopping.done():
            with contextlib.suppress(ProcessLookupError):
                child.kill(signal.SIGKILL)
            await asyncio.wait({stopping}, timeout=0.2)
        if running:
            how = "was killed" if by_force else "stopped"
            seconds = time.monotonic() - began
            self._reporter.say(
                f"  {child.name} {how} after {seconds:.1f} s",
                part=child.name,
                seconds=round(seconds, 3),
                killed=by_force,
            )

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

        def on_signal() -> None:
            if not self._stop_asked.is_set():
                self._reporter.say("stopping; once more kills everything at once")
            self.request_stop()

        for number in numbers:
            loop.add_signal_handler(number, on_signal)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    # ---- what is told to other programs

    def record(self) -> MeshRecord:
        """Give the present state of the mesh."""
        children = []
        for part in self._parts:
            child = self._children.get(part.name)
            if child is None:
                continue
            children.append(
                ChildRecord(
                    name=part.name,
                    services=part.services,
                    pid=child.pid,
                    state=child.state.value,
                    restarts=child.restarts,
                    last_exit=child.last_exit,
                )
            )
        return MeshRecord(
            pid=self._facts.pid,
            started=self._started,
            mode=self._facts.mode,
            source=self._facts.source,
            ready=self._all_ready,
            addresses=dict(self._facts.addresses),
            log_dir=str(self._reporter.log_dir),
            children=tuple(children),
        )

    def _write_record(self) -> None:
        try:
            write_mesh_record(self._data_dir, self.record())
        except OSError as error:
            self._log.warning("cannot write the supervisor's state", error=str(error))


class _PartFailed(Exception):  # noqa: N818 - it never leaves this module
    def __init__(self, what: str, reason: str, last_exit: int | None) -> None:
        super().__init__(what)
        self.reason = reason
        self.exit = last_exit


def _leaf(group: BaseExceptionGroup[_PartFailed]) -> _PartFailed:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, _PartFailed)
    return error
