"""`marketprism record`: collects and writes every raw frame to capture files, until Ctrl-C."""

import asyncio
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp

from services.cli.client import reachable
from services.cli.mesh_plan import MeshOptions, MeshPlan
from services.cli.reporter import Reporter
from services.cli.up import run_mesh
from services.cli.venue import VenueOptions
from services.shared.errors import ConfigError, StartupError

__all__ = ["check_recordable", "run_record"]

_TELL_SECONDS = 5.0
_FIRST_SECONDS = 1.0


def check_recordable(venue: VenueOptions | None) -> None:
    """Raise `ConfigError` for simulated venues that nobody could tell apart in a recording."""
    if venue is not None and len(venue.exchanges) > 1:
        raise ConfigError(
            "--exchanges: expected one simulated venue, for a recording names local addresses "
            f"only, got {', '.join(venue.exchanges)}"
        )


def run_record(options: MeshOptions, out: Path, duration: float | None) -> int:
    """Record into `out` until a signal, or for `duration` seconds; gives the exit status.

    The collector runs as it always does, with a broker of its own in a temporary directory.
    Raises `ConfigError` and `StartupError`.
    """
    out = out.expanduser().absolute()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartupError(
            f"cannot make the directory {out}: {error.strerror}", reason="CANNOT_RECORD"
        ) from error
    before = _sizes(out)
    with tempfile.TemporaryDirectory(prefix="marketprism-record-") as scratch:
        chosen = replace(
            options,
            services=("broker", "collector"),
            data_dir=Path(scratch),
            free_ports=True,
            env={**options.env, "MARKETPRISM__COLLECTOR__RECORDING__DIRECTORY": str(out)},
        )

        async def on_ready(
            plan: MeshPlan, reporter: Reporter, _seconds: float, stop: Callable[[], None]
        ) -> None:
            reporter.say(f"recording {plan.told_source} into {out}; Ctrl-C ends it")
            try:
                async with asyncio.timeout(duration):
                    await _tell(plan, reporter, out, before)
            except TimeoutError:
                stop()

        status = run_mesh(chosen, quiet=True, on_ready=on_ready)
    written = _written(out, before)
    print(f"{_files(len(written))}, {_bytes(sum(written.values()))} in {out}")
    for path in sorted(written):
        print(f"  {path}")
    return status


async def _tell(plan: MeshPlan, reporter: Reporter, out: Path, before: dict[Path, int]) -> None:
    mesh = plan.configuration.mesh
    address = reachable(f"{mesh.host}:{mesh.service('collector').http_port}")
    timeout = aiohttp.ClientTimeout(total=2.0)
    pause = _FIRST_SECONDS
    async with aiohttp.ClientSession(timeout=timeout) as session:
        while True:
            await asyncio.sleep(pause)
            pause = _TELL_SECONDS
            facts = await _recording(session, f"http://{address}/health")
            written = _written(out, before)
            frames, dropped = facts.get("frames", 0), facts.get("dropped", 0)
            text = f"  {frames:,} frames, {_bytes(sum(written.values()))}, {_files(len(written))}"
            if dropped:
                text += f", {dropped:,} frames DROPPED ({facts.get('detail') or 'disk too slow'})"
            reporter.say(text, frames=frames, dropped=dropped, files=len(written))


async def _recording(session: aiohttp.ClientSession, url: str) -> dict[str, Any]:
    try:
        async with session.get(url) as answer:
            body = await answer.json()
        return dict(body["dependencies"]["recording"])
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError):
        # The collector restarts, and says so itself.
        return {}


def _sizes(directory: Path) -> dict[Path, int]:
    return {path: path.stat().st_size for path in directory.glob("*.jsonl*")}


def _written(directory: Path, before: dict[Path, int]) -> dict[Path, int]:
    return {path: size for path, size in _sizes(directory).items() if path not in before}


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} GB"
