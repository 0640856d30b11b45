"""The registry lists what lives, and only that."""

import asyncio
import os
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from services.shared.registration import LocalRegistrar, Registration


def record(service: str = "echo") -> Registration:
    return Registration.of_this_process(
        service, host="127.0.0.1", grpc_port=1, http_port=2, version="0"
    )


async def test_registered_instance_is_listed_until_it_is_deregistered(tmp_path: Path) -> None:
    registrar = LocalRegistrar.below(tmp_path)
    assert list(await registrar.list()) == []
    first, second, other = record(), record(), record("other")
    for each in (first, second, other):
        await registrar.register(each)
    assert list(await registrar.list("echo")) == [first, second]
    assert list(await registrar.list()) == [first, second, other]
    await registrar.deregister(first)
    await registrar.deregister(first)
    assert list(await registrar.list("echo")) == [second]


async def test_instance_of_a_dead_process_is_dropped(tmp_path: Path) -> None:
    registrar = LocalRegistrar(tmp_path)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "pass")
    await process.wait()
    await registrar.register(replace(record(), pid=process.pid))
    assert list(await registrar.list()) == []
    assert os.listdir(tmp_path) == []


async def test_instance_whose_pid_went_to_a_later_process_is_dropped(tmp_path: Path) -> None:
    registrar = LocalRegistrar(tmp_path)
    long_ago = (datetime.now(UTC) - timedelta(days=300)).isoformat()
    await registrar.register(replace(record(), started=long_ago, pid=os.getpid()))
    assert list(await registrar.list()) == []


async def test_file_that_is_no_registration_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text('{"service": "x"}')
    (tmp_path / "c.json").write_text("[]")
    assert list(await LocalRegistrar(tmp_path).list()) == []


async def test_instance_id_cannot_leave_the_directory(tmp_path: Path) -> None:
    registrar = LocalRegistrar(tmp_path / "registry")
    await registrar.register(replace(record(), instance_id="../../evil"))
    assert os.listdir(tmp_path) == ["registry"]
    assert len(os.listdir(tmp_path / "registry")) == 1
