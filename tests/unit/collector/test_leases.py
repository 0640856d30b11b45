"""Settings of the leases, and what is told of a process."""

import asyncio
import os
import signal
import sys

import pytest
from pydantic import ValidationError

from services.collector.leases import LeaseSettings
from services.collector.leases_process import has_ended, this_process


def test_by_default_nothing_is_shared() -> None:
    assert not LeaseSettings().enabled


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"renew_seconds": 1.6}, "renew_seconds of at most 1.5"),
        ({"lease_seconds": 2}, "renew_seconds of at most 0.6"),
        ({"lease_seconds": 0}, "greater than or equal to 0.5"),
        ({"slots": 0}, "greater than or equal to 1"),
        ({"group": "a b"}, "match pattern"),
        ({"leases": 3}, "Extra inputs"),
    ],
)
def test_what_is_wrong_is_refused_with_what_was_expected(
    values: dict[str, object], says: str
) -> None:
    with pytest.raises(ValidationError, match=says):
        LeaseSettings.model_validate(values)


needs_proc = pytest.mark.skipif(
    not this_process(), reason="needs Linux's /proc to tell one process from another"
)


@needs_proc
def test_this_process_has_not_ended() -> None:
    assert not has_ended(this_process())


@needs_proc
async def test_a_process_has_ended_when_it_was_killed() -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "import sys; sys.stdin.read()", stdin=asyncio.subprocess.PIPE
    )
    place, _, mine = this_process().split("/")
    start = _start_time(child.pid)
    told = f"{place}/{child.pid}/{start}"
    assert not has_ended(told)
    child.send_signal(signal.SIGKILL)
    await child.wait()
    assert has_ended(told)
    assert has_ended(f"{place}/{os.getpid()}/{int(mine) - 1}"), (
        "expected a process that has its number but was started at another time to be another"
    )


@needs_proc
@pytest.mark.parametrize("what", ["", "x", "another-boot/1/2", "a/b/c", "{place}/x/1", "{place}/1"])
def test_what_cannot_be_told_counts_as_alive(what: str) -> None:
    place = this_process().split("/")[0]
    assert not has_ended(what.replace("{place}", place))
    assert not has_ended(f"{place}/1/abc")


def _start_time(pid: int) -> str:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[19].decode()
