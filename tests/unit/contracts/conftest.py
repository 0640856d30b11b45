from pathlib import Path

import pytest
from google.api import annotations_pb2, field_behavior_pb2  # noqa: F401 - known before reading
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from tools.buf import ROOT, run_buf
from tools.openapi_schemas import Contracts


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> FileDescriptorSet:
    """The contracts as they stand in proto/, compiled with their comments."""
    image: Path = tmp_path_factory.mktemp("contracts") / "image.binpb"
    result = run_buf("build", "--as-file-descriptor-set", "--output", str(image), root=ROOT)
    assert result.returncode == 0, result.stderr
    return FileDescriptorSet.FromString(image.read_bytes())


@pytest.fixture(scope="session")
def contracts(files: FileDescriptorSet) -> Contracts:
    """Messages, enums and services of the contracts by name."""
    return Contracts(files)
