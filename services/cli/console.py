"""The console that tables are printed on."""

from rich.console import Console

__all__ = ["wide_console"]

_PIPE_WIDTH = 240


def wide_console() -> Console:
    """Give a console for stdout. A pipe has no width: whoever reads it wants whole cells."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PIPE_WIDTH)
