"""Options that commands of several modules take."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["ConfigDir"]

ConfigDir = Annotated[
    Path | None,
    typer.Option(
        help="Directory of the configuration files.",
        envvar="MARKETPRISM_CONFIG_DIR",
        exists=True,
        file_okay=False,
    ),
]
