"""One mesh a data directory, and other programs see the one that really runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from services.cli.mesh_state import (
    ChildRecord,
    DataDirLock,
    MeshRecord,
    read_mesh_record,
    write_mesh_record,
)
from services.shared.errors import StartupError

RECORD = MeshRecord(
    pid=4711,
    started="2026-01-31T10:11:12Z",
    mode="microservice",
    source="simulated",
    ready=True,
    addresses={"all": "127.0.0.1:8080"},
    log_dir="/var/logs",
    children=(ChildRecord("broker", ("broker",), 12, "running", 3, -9),),
)


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    with DataDirLock(tmp_path):
        write_mesh_record(tmp_path, RECORD)
        assert read_mesh_record(tmp_path) == RECORD


def test_a_second_mesh_on_the_directory_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    with DataDirLock(tmp_path):
        write_mesh_record(tmp_path, RECORD)
        with pytest.raises(StartupError) as caught, DataDirLock(tmp_path):
            pass
    assert "pid 4711" in caught.value.message
    assert str(tmp_path) in caught.value.message
    assert "--data-dir" in caught.value.message


def test_the_directory_is_free_again_afterwards_and_nothing_tells_of_the_mesh(
    tmp_path: Path,
) -> None:
    with DataDirLock(tmp_path):
        write_mesh_record(tmp_path, RECORD)
    assert read_mesh_record(tmp_path) is None
    assert not (tmp_path / "supervisor.json").exists()
    with DataDirLock(tmp_path):
        pass


def test_what_a_killed_supervisor_left_behind_is_not_believed(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path;"
        "from services.cli.mesh_state import DataDirLock;"
        f"DataDirLock(Path({str(tmp_path)!r})).__enter__();"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script], check=False)
    write_mesh_record(tmp_path, RECORD)
    assert read_mesh_record(tmp_path) is None
    with DataDirLock(tmp_path):
        pass


def test_a_record_that_is_none_gives_none(tmp_path: Path) -> None:
    with DataDirLock(tmp_path):
        for text in ("", "{", "[]", json.dumps({"pid": 1, "children": []})):
            (tmp_path / "supervisor.json").write_text(text)
            assert read_mesh_record(tmp_path) is None


def test_a_directory_that_does_not_exist_has_no_mesh(tmp_path: Path) -> None:
    assert read_mesh_record(tmp_path / "absent") is None


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="cannot write in the data directory"):
        DataDirLock(tmp_path / "file" / "below").__enter__()
