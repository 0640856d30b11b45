"""Programs that a test needs and that the Python environment does not bring."""

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import pytest

__all__ = ["REQUIRE_ALL_VARIABLE", "missing", "require_tool"]

REQUIRE_ALL_VARIABLE = "MARKETPRISM_REQUIRE_ALL"
"""Set to 1 where nothing may be missing, as in CI: a skip is then a failure."""


def require_tool(name: str, hint: str) -> Path:
    """Give the path of a program; skips the test without it, or fails where all is required.

    `hint` says how to get it: `apt-get install docker-compose`.
    """
    beside = str(Path(sys.executable).parent)
    found = shutil.which(name) or shutil.which(name, path=beside)
    if found is None:
        missing(f"needs the program {name}; get it with: {hint}")
    return Path(found)


def missing(reason: str) -> NoReturn:
    """Skip the test because something is not there, or fail where all is required."""
    if os.environ.get(REQUIRE_ALL_VARIABLE) == "1":
        pytest.fail(f"{reason} ({REQUIRE_ALL_VARIABLE}=1 allows no skip)", pytrace=False)
    pytest.skip(reason)
